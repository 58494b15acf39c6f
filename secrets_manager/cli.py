"""`llm-orchestration secrets`: what a running proxy knows about its secrets, reading them again, and the audit."""

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from core.cli.proxy import ask, proxy_options
from core.cli.store import chosen_store
from core.cli.table import print_table
from core.errors import BadField, ConfigError, OrchestrationError

if TYPE_CHECKING:
    from core.audit import Head, Verification
    from core.store import Store
    from secrets_manager.provider import Check

_json = click.option("--json", "as_json", is_flag=True, help="JSON for programs.")


@click.group("secrets")
def command() -> None:
    """See, refresh and audit secrets by reference. No command ever shows a value."""


@command.command("list")
@proxy_options
def list_command(url: str, key_file: Path | None, as_json: bool) -> None:
    """Which secrets a running proxy uses, how old they are, and what is wrong with them.

    Exits with 1 if one has no value or is not the newest.
    """
    found: list[dict[str, Any]] = ask("GET", url, key_file, "secrets")["secrets"]
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        print_table(
            ("reference", "state", "version", "age", "next refresh", "models", "last error"),
            [
                (
                    entry["reference"],
                    entry["state"],
                    entry["version"] or "",
                    _seconds(entry["age_seconds"]),
                    _seconds(entry["next_refresh"] and max(0.0, entry["next_refresh"] - time.time())),
                    ", ".join(entry["models"]),
                    entry["last_error"] or "",
                )
                for entry in found
            ],
        )
    raise SystemExit(any(entry["state"] != "fresh" for entry in found))


@command.command("refresh")
@click.argument("references", nargs=-1)
@proxy_options
def refresh_command(references: Sequence[str], url: str, key_file: Path | None, as_json: bool) -> None:
    """Have a running proxy read REFERENCES again, or all there are, and every instance that shares its Redis.

    Exits with 1 if one could not be read.
    """
    answer = ask("POST", url, key_file, "secrets/refresh", {"references": list(references) or None})
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        for reference, error in answer["refreshed"].items():
            click.echo(f"{reference}: {error or 'read'}")
        if answer["told_other_instances"]:
            click.echo("The other instances were told.")
    raise SystemExit(any(answer["refreshed"].values()))


@command.command("audit")
@click.option("--since", default="7d", show_default=True, help="30m, 24h, 7d, 2w ago, or an ISO date (UTC).")
@click.option("--until", default=None, help="The same; default: now.")
@click.option("--reference", default=None, help="Only this one, or a glob such as azure://openai-*.")
@click.option("--action", default=None, help="Only this: fetched, rotated, failed, denied, ...")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 1000), help="Newest records to show.")
@click.option("--verify", is_flag=True, help="Check the hash chains of the whole audit in place of showing it.")
@click.option(
    "--against",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="What --verify --json printed earlier: its heads must still be there.",
)
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), default=None, help="The proxy's config.yaml."
)
@click.option("--store", default=None, help="The store's URL, in place of the configured one.")
@_json
def audit_command(
    since: str,
    until: str | None,
    reference: str | None,
    action: str | None,
    limit: int,
    verify: bool,
    against: Path | None,
    config: Path | None,
    store: str | None,
    as_json: bool,
) -> None:
    """What happened to which secret, when, why, and what came of it; from the store.

    With --verify it exits with 1 where a record was changed or removed.
    """
    given = {"since": since, "until": until, "reference": reference, "action": action, "limit": str(limit)}
    query = {name: value for name, value in given.items() if value is not None}
    try:
        if verify or against:
            found = asyncio.run(_verified(_store_url(store, config), _noted(against)))
            _print_verification(found, as_json)
            raise SystemExit(bool(found.broken))
        page = asyncio.run(_page(_store_url(store, config), query))
    except BadField as error:
        raise click.UsageError(error.message) from None
    if as_json:
        click.echo(json.dumps(page, indent=2))
        return
    columns = ("time", "action", "reference", "version", "outcome", "actor", "reason", "instance")
    print_table(columns, [tuple(str(record[name] or "") for name in columns) for record in page["records"]])
    if page["next_cursor"]:
        click.echo(f"There are more; --limit shows up to 1000, --until {page['records'][-1]['time']} what came before.")


def examine(config: Path) -> Iterator[tuple[str, "Check"]]:
    """What `doctor secrets` finds: every vault that a configuration uses, with its name."""
    from core.settings import load
    from secrets_manager.provider import Check
    from secrets_manager.service import SecretService

    try:
        loaded = load(config)
    except ConfigError as error:
        yield "config", Check("error", str(error), f"llm-orchestration check {config}")
        return
    nothing = True
    for found in SecretService().diagnose(loaded.settings, loaded.document):
        nothing = False
        yield found
    if nothing:
        yield "config", Check("ok", f"{config} uses no secrets by reference")


# ---- The store ----


def _store_url(given: str | None, config: Path | None) -> str:
    if not given and config is not None and not config.exists():
        raise click.UsageError(f"{config} is not there")
    return chosen_store(given, config)


async def _opened(url: str) -> "Store":
    from core.store import open_store
    from core.store.migrations import HEAD

    store = open_store(url)
    # Reading must not make a database where there is none.
    if store.url.file is not None and not store.url.file.exists():
        raise OrchestrationError(f"there is no store at {store.url} yet: it is made when the proxy first starts")
    try:
        if await store.version() != HEAD:
            raise OrchestrationError(
                f"the store {store.url} has no audit of this version yet; a start of the proxy makes it"
            )
    except BaseException:
        await store.close()
        raise
    return store


async def _page(url: str, query: dict[str, str]) -> dict[str, Any]:
    from secrets_manager.audit_page import audit_page

    store = await _opened(url)
    try:
        return await audit_page(store, query)
    finally:
        await store.close()


async def _verified(url: str, noted: "Sequence[Head]") -> "Verification":
    store = await _opened(url)
    try:
        return await store.audit.verify(noted)
    finally:
        await store.close()


def _noted(file: Path | None) -> "list[Head]":
    from core.audit import Head

    if file is None:
        return []
    try:
        return [Head(one["chain"], one["seq"], one["hash"]) for one in json.loads(file.read_text())["heads"]]
    except (ValueError, KeyError, TypeError):
        raise click.UsageError(f"{file} is not what --verify --json prints") from None


# ---- On paper ----


def _print_verification(found: "Verification", as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
        return
    for place in found.broken:
        click.echo(f"{click.style('broken', fg='red')}  {place.chain}, record {place.seq}: {place.what}")
    verdict = "not intact" if found.broken else "intact"
    click.echo(f"{found.records} records in {len(found.heads)} chains: {verdict}")
    if not found.broken:
        click.echo("Keep these heads somewhere else: a later verification can be held against them.")
        for head in found.heads:
            click.echo(f"{head.chain} {head.seq} {head.hash}")


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f} s" if value < 600 else str(timedelta(seconds=round(value)))
