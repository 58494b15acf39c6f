"""`llm-orchestration simulate`: what a proposed configuration would do with the requests that were recorded."""

import asyncio
import importlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from core.cli.store import chosen_store
from core.cli.table import print_table
from core.report_query import moment_ms

if TYPE_CHECKING:
    from core.settings.loading import Loaded

_MOST_ROWS = 15


@click.command("simulate")
@click.option(
    "--config",
    "file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The proposed config.yaml.",
)
@click.option("--since", default="7d", show_default=True, help="30m, 24h, 7d, 2w ago, or an ISO date (UTC).")
@click.option("--until", default=None, help="The same; default: now.")
@click.option(
    "--sample",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="The share of the requests to look at.",
)
@click.option("--workers", default=None, type=click.IntRange(1, 64), help="Processes; default: one for each core.")
@click.option("--store", default=None, help="The store's URL, in place of the configured one.")
@click.option("--json", "as_json", is_flag=True, help="JSON for programs.")
def command(
    file: Path, since: str, until: str | None, sample: float, workers: int | None, store: str | None, as_json: bool
) -> None:
    """Replay recorded requests through a proposed configuration: shares, cost, refusals and budgets, before and after.

    Nothing is sent to a model, and nothing is written. What it takes for granted is in docs/simulate.md.
    """
    from core.settings.loading import load

    loaded = load(file)
    now = time.time()
    since_ms, until_ms = _moment(since, now), int(now * 1000) if until is None else _moment(until, now)
    if since_ms >= until_ms:
        raise click.UsageError(f"--since {since} is not before --until {until or 'now'}")
    found = simulated(loaded, chosen_store(store, file), since_ms, until_ms, sample, workers or os.cpu_count() or 1)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        print_comparison(found)


def simulated(loaded: "Loaded", url: str, since_ms: int, until_ms: int, sample: float, workers: int) -> dict[str, Any]:
    """`custom_router.comparison.compared` of a configuration and a store; Any because it is JSON.

    Routing is no part of the core, so it is reached by name here. Raises StoreError.
    """
    recordings = importlib.import_module("custom_router.recordings")
    comparison = importlib.import_module("custom_router.comparison")
    section: Any = loaded.document.get("orchestration") or {}
    proposal, spans = asyncio.run(
        _prepared(recordings.prepared, url, section, _candidates(loaded.document), since_ms, until_ms)
    )
    job = recordings.Job(proposal, url, spans, sample)
    total = sum(span.requests for span in spans)
    with _Bar(total) as advance:
        tally = recordings.run(job, workers, advance)
    return comparison.compared(tally, loaded.settings, spans, sample)


async def _prepared(
    prepare: Callable[..., Any], url: str, section: Any, candidates: Any, since_ms: int, until_ms: int
) -> Any:
    from core.store import open_store

    store = open_store(url)
    try:
        # Reading must not make a database where there is none.
        if store.url.file is not None and not store.url.file.exists():
            raise click.ClickException(f"There is no store at {store.url} yet: it is made when the proxy first starts.")
        if await store.version() is None:
            raise click.ClickException(f"The store {store.url} has no usage tables yet: the proxy makes them.")
        return await prepare(store, section, candidates, since_ms, until_ms)
    finally:
        await store.close()


def _candidates(document: Mapping[str, Any]) -> dict[str, Any]:
    """The model groups of a configuration, with the prices and abilities that it or LiteLLM's map gives them."""
    # The map that LiteLLM brings along; it would go and fetch the newest.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    candidate_of = importlib.import_module("plugins.routing.candidates").candidate_of
    listed: object = document.get("model_list")
    entries: dict[str, list[Any]] = {}
    for entry in cast("list[Any]", listed) if isinstance(listed, list) else []:
        if isinstance(entry, Mapping):
            known = cast("Mapping[str, Any]", entry)
            entries.setdefault(str(known.get("model_name")), []).append(known)
    return {name: candidate_of(name, deployments) for name, deployments in entries.items()}


def _moment(text: str, now: float) -> int:
    try:
        return moment_ms(text, now)
    except (ValueError, OverflowError):
        raise click.UsageError(f"{text!r} is no time: write 30m, 24h, 7d, 2w, 2026-07-01 or 2026-07-01T12:00") from None


class _Bar:
    """A progress bar on standard error, gone when it is done."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task("requests", total=total)

    def __enter__(self) -> Callable[[int], None]:
        self._progress.start()
        return lambda count: self._progress.advance(self._task, count)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


# -- on paper --------------------------------------------------------------------------------------------------------


def print_comparison(found: Mapping[str, Any]) -> None:
    """What was found, in tables."""
    period, cost = found["period"], found["cost"]
    if not found["requests"]:
        click.echo("No requests were recorded in this time.")
        return
    click.echo(f"{found['requests']:,} requests from {_iso(period['since_ms'])} to {_iso(period['until_ms'])}.")
    change = "" if cost["change"] is None else f" ({cost['change']:+.1%})"
    click.echo(
        f"Cost {_dollars(cost['before'])} before, {_dollars(cost['after'])} after{change}, at the proposal's prices; "
        f"{_dollars(cost['recorded'])} were recorded."
    )
    _titled("Models")
    columns = (
        "model",
        "requests",
        "share",
        "cost",
        "mean",
        "requests after",
        "share after",
        "cost after",
        "mean after",
    )
    rows = [(one["model"], *_side(one["before"]), *_side(one["after"])) for one in found["models"]]
    print_table(columns, rows, columns[1:])
    _listed(
        "What moves",
        ("task type", "from", "to", "requests", "cost before", "cost after"),
        [
            (
                _name(one["task_type"]),
                one["from"],
                one["to"],
                f"{one['requests']:,}",
                _dollars(one["cost_before"]),
                _dollars(one["cost_after"]),
            )
            for one in found["moved"]
        ],
        ("requests", "cost before", "cost after"),
    )
    _refusals(found["refused"])
    _listed(
        "Experiments",
        ("experiment", "variant", "model", "requests", "share"),
        [
            (one["experiment"], one["variant"], _name(one["model"]), f"{one['requests']:,}", f"{one['share']:.1%}")
            for one in found["experiments"]
        ],
        ("requests", "share"),
    )
    _listed(
        "Rules",
        ("rule", "requests"),
        [(one["id"], f"{one['requests']:,}") for one in found["rules"]],
        ("requests",),
    )
    _budgets(found["budgets"])
    for note in found["notes"]:
        click.echo(f"Note: {note}")


def _side(one: Mapping[str, Any]) -> tuple[str, ...]:
    mean = "-" if one["mean_cost"] is None else _dollars(one["mean_cost"])
    return f"{one['requests']:,}", f"{one['share']:.1%}", _dollars(one["cost"]), mean


def _refusals(refused: Mapping[str, Any]) -> None:
    _titled("Refused")
    click.echo(
        f"By tiers and rules: {refused['by_routing_then']:,} then, {refused['by_routing_now']:,} now; "
        f"{refused['admitted_now']:,} of those of then would be admitted. "
        f"By budgets then: {refused['by_budgets_then']:,}; otherwise: {refused['otherwise_then']:,}."
    )
    if refused["now"]:
        rows = [
            (_name(one["tier"]), one["model"], one["why"], f"{one['requests']:,}", f"{one['not_refused_then']:,}")
            for one in refused["now"][:_MOST_ROWS]
        ]
        print_table(("tier", "model", "why", "requests", "new"), rows, ("requests", "new"))


def _budgets(budgets: Sequence[Mapping[str, Any]]) -> None:
    columns = ("budget", "each", "accounts", "total", "spent before", "spent after", "over before", "over after")
    rows = [
        (
            one["budget_id"],
            one["per"] or "together",
            f"{one['accounts']:,}",
            _dollars(one["total"]),
            _dollars(one["before"]["spent"]),
            _dollars(one["after"]["spent"]),
            f"{one['before']['over']:,}",
            f"{one['after']['over']:,}",
        )
        for one in budgets
    ]
    _listed("Budgets", columns, rows, columns[2:])


def _listed(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str]) -> None:
    if rows:
        _titled(title)
        print_table(columns, rows[:_MOST_ROWS], numbers)
        if len(rows) > _MOST_ROWS:
            click.echo(f"... and {len(rows) - _MOST_ROWS} more; --json has them.")


def _titled(title: str) -> None:
    click.echo(f"\n{title}")


def _name(text: str | None) -> str:
    return "-" if text is None else text


def _dollars(text: str) -> str:
    """As cents where there are any, else with the digits that say something."""
    exact = Decimal(text)
    return f"${exact:,.2f}" if abs(exact) >= 1 or not exact else f"${Decimal(f'{exact:.3g}').normalize():f}"


def _iso(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
