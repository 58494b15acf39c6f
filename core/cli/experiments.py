"""`llm-orchestration experiments`: what is compared on a running proxy, what came of it, and how it goes on."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from core.cli.proxy import ask, every, part, proxy_options
from core.cli.table import print_table

_NUMBERS = ("control", "variant's", "lift", "units", "p", "to win", "still needed", "share", "weight")


@click.group("experiments")
def command() -> None:
    """Start, stop and judge experiments."""


@command.command("list")
@proxy_options
def list_command(url: str, key_file: Path | None, as_json: bool) -> None:
    """The experiments in force."""
    found = list(every(url, key_file, "experiments"))
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    columns = ("experiment", "status", "policy", "unit", "variants", "decides")
    print_table(columns, [_listed(entry["entry"]) for entry in found])


@command.command("show")
@click.argument("experiment", metavar="ID")
@proxy_options
def show_command(experiment: str, url: str, key_file: Path | None, as_json: bool) -> None:
    """One experiment as it is configured."""
    found = ask("GET", url, key_file, _path(experiment))
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _print_entry(found)


@command.command("results")
@click.argument("experiment", metavar="ID")
@proxy_options
def results_command(experiment: str, url: str, key_file: Path | None, as_json: bool) -> None:
    """Which variant is better than the control, by how much, and how sure that is.

    Ends with 1 where the units were not divided as the weights say: then nothing of it holds.
    """
    found = ask("GET", url, key_file, f"{_path(experiment)}/results")
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _print_results(found)
    if found["split"]["mismatch"]:
        sys.exit(1)


@command.command("start")
@click.argument("experiment", metavar="ID")
@click.option("--again", is_flag=True, help="Also one that was stopped: it goes on with the same units.")
@proxy_options
def start_command(experiment: str, again: bool, url: str, key_file: Path | None, as_json: bool) -> None:
    """Have units assigned to its variants."""
    _step(experiment, "start", {"again": True} if again else {}, url, key_file, as_json)


@command.command("pause")
@click.argument("experiment", metavar="ID")
@proxy_options
def pause_command(experiment: str, url: str, key_file: Path | None, as_json: bool) -> None:
    """Have no units assigned for a while."""
    _step(experiment, "pause", {}, url, key_file, as_json)


@command.command("stop")
@click.argument("experiment", metavar="ID")
@click.option("--promote", metavar="VARIANT", help="The variant that everybody gets from now on.")
@proxy_options
def stop_command(experiment: str, promote: str | None, url: str, key_file: Path | None, as_json: bool) -> None:
    """End it."""
    _step(experiment, "stop", {} if promote is None else {"promote": promote}, url, key_file, as_json)


@command.command("reopen")
@click.argument("experiment", metavar="ID")
@click.argument("variant")
@proxy_options
def reopen_command(experiment: str, variant: str, url: str, key_file: Path | None, as_json: bool) -> None:
    """Let VARIANT, which a guardrail has closed, have requests again."""
    found = ask("POST", url, key_file, f"{_path(experiment)}/reopen", {"variant": variant})
    click.echo(json.dumps(found, indent=2) if as_json else f"{experiment}: {variant} gets requests again")


def _step(experiment: str, word: str, body: Mapping[str, Any], url: str, key_file: Path | None, as_json: bool) -> None:
    found = ask("POST", url, key_file, f"{_path(experiment)}/{word}", body)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    entry = found["entry"]
    promoted = f", everybody gets {entry['promote']}" if entry.get("promote") else ""
    click.echo(f"{experiment}: {entry['status']}{promoted}")


def _path(experiment: str) -> str:
    return f"experiments/{part(experiment)}"


# -- on paper --------------------------------------------------------------------------------------------------------


def _listed(entry: Mapping[str, Any]) -> tuple[str, ...]:
    variants = ", ".join(f"{one['id']} {one.get('weight', 50):g}" for one in entry["variants"])
    status = str(entry.get("status", "draft"))
    if entry.get("promote"):
        status += f", {entry['promote']} promoted"
    metrics: dict[str, Any] = entry.get("metrics") or {}
    decides = str(metrics.get("primary", "rating"))
    return (entry["id"], status, entry["policy"], entry.get("unit", "user"), variants, decides)


def _print_entry(found: Mapping[str, Any]) -> None:
    entry = found["entry"]
    click.echo(f"{found['id']}: {entry.get('status', 'draft')}")
    told = ("policy", "unit", "audience", "traffic", "ramp", "start", "end", "seed", "namespace", "forced")
    for name in (*told, "allocation", "metrics", "promote"):
        value = entry.get(name, "user" if name == "unit" else None)
        if value is not None:
            click.echo(f"  {name:10} {value if isinstance(value, str) else json.dumps(value)}")
    click.echo()
    rows = [
        (
            one["id"],
            f"{one.get('weight', 50):g}",
            one.get("model") or "",
            json.dumps(one["set"]) if one.get("set") else "",
            one.get("system_prefix") or "",
        )
        for one in entry["variants"]
    ]
    print_table(("variant", "weight", "model", "sets", "system prefix"), rows, _NUMBERS)


def _print_results(found: Mapping[str, Any]) -> None:
    for message in found["messages"]:
        click.echo(f"! {message}")
    began = f", since {found['began_at']}" if found["began_at"] else ", nobody took part yet"
    click.echo(f"{found['id']}: {found['status']}{began}; {found['primary']} decides")
    click.echo()
    print_table(("variant", "model", "units", "share", "state"), [_variant(one) for one in found["variants"]], _NUMBERS)
    click.echo()
    bayesian = found["method"] == "bayesian"
    columns = ("metric", "for", "variant", "control", "variant's", "lift", "to win" if bayesian else "p")
    rows = [_comparison(one, bayesian) for one in found["comparisons"]]
    print_table((*columns, "still needed", "verdict", "why"), rows, _NUMBERS)


def _variant(one: Mapping[str, Any]) -> tuple[str, ...]:
    name = f"{one['id']} (control)" if one["control"] else one["id"]
    state = ""
    if one["closed"]:
        state = f"closed since {one['closed']['since']}: {one['closed']['reason']}"
    elif one["reopened_at"]:
        state = f"reopened {one['reopened_at']}"
    return (name, one["model"] or "", f"{one['units']:,}", f"{one['share']:.1%}", state)


def _comparison(one: Mapping[str, Any], bayesian: bool) -> tuple[str, ...]:
    sure = one["chance_to_win"] if bayesian else one["corrected"]
    shown = "-" if sure is None else (f"{sure:.1%}" if bayesian else f"{sure:.2g}")
    needed = one["still_needed"]
    return (
        *(one["metric"], one["role"], one["variant"], _number(one["control"]), _number(one["estimate"])),
        *(_lift(one["lift"], one["lift_interval"]), shown),
        *("-" if needed is None else f"{sum(needed):,}", one["verdict"], one["why"]),
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _lift(lift: float | None, interval: Sequence[float | None] | None) -> str:
    if lift is None:
        return "-"
    if interval is None:
        return f"{lift:+.1%}"
    low, high = ("…" if end is None else f"{end:+.1%}" for end in interval)
    return f"{lift:+.1%} ({low} to {high})"
