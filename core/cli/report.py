"""`llm-orchestration report`: what was used and what it cost, for people, spreadsheets and programs."""

import asyncio
import csv
import io
import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from core.cli.store import chosen_store
from core.errors import OrchestrationError
from core.money import format_dollars, to_dollars
from core.report_query import filter_value, moment_ms

if TYPE_CHECKING:
    from core.reports import Usage, UsageReport, Value

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@click.group()
def report() -> None:
    """Report from the store."""


@report.command()
@click.option("--since", default="7d", show_default=True, help="30m, 24h, 7d, 2w ago, or an ISO date (UTC).")
@click.option("--until", default=None, help="The same; default: now.")
@click.option("--by", default="user,model", show_default=True, help="Dimensions, separated by commas.")
@click.option("--user", default=None, help="Only this user.")
@click.option("--where", multiple=True, metavar="DIMENSION=VALUE", help="Only events like this; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="JSON for programs; money in nano-dollars.")
@click.option("--csv", "as_csv", is_flag=True, help="CSV for spreadsheets; money in dollars.")
@click.option("--config", type=click.Path(dir_okay=False), default=None, help="The proxy's config.yaml.")
@click.option("--store", default=None, help="The store's URL, in place of the configured one.")
def usage(
    since: str,
    until: str | None,
    by: str,
    user: str | None,
    where: Sequence[str],
    as_json: bool,
    as_csv: bool,
    config: str | None,
    store: str | None,
) -> None:
    """Requests, errors, tokens, cost, cache share and latency, grouped."""
    from core.reports import DIMENSIONS

    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other")
    dimensions = [name.strip() for name in by.split(",") if name.strip()]
    filters = _filters(where) | ({"user": user} if user is not None else {})
    for name in (*dimensions, *filters):
        if name not in DIMENSIONS:
            raise click.UsageError(f"no dimension {name!r}; there are {', '.join(DIMENSIONS)}")
    now = time.time()
    start, end = _moment_ms(since, now), _moment_ms(until, now) if until else int(now * 1000) + 1
    if start >= end:
        raise click.UsageError(f"--since {since} is not before --until {until or 'now'}")
    try:
        found = asyncio.run(
            _read(chosen_store(store, Path(config) if config else None), start, end, dimensions, filters)
        )
    except (OrchestrationError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        from core.reports import as_json as for_programs

        click.echo(json.dumps(for_programs(found), indent=2))
    elif as_csv:
        click.echo(_csv(found), nl=False)
    else:
        _print_table(found)


def _filters(where: Sequence[str]) -> dict[str, "Value"]:
    filters: dict[str, Value] = {}
    for each in where:
        name, equals, value = each.partition("=")
        if not equals:
            raise click.UsageError(f"--where {each}: write DIMENSION=VALUE")
        try:
            filters[name.strip()] = filter_value(name.strip(), value)
        except ValueError as error:
            raise click.UsageError(f"--where {error}") from None
    return filters


def _moment_ms(text: str, now: float) -> int:
    """Unix milliseconds of `7d` (ago) or an ISO date."""
    try:
        return moment_ms(text, now)
    except ValueError:
        raise click.UsageError(f"{text!r} is no time: write 30m, 24h, 7d, 2w, 2026-07-01 or 2026-07-01T12:00") from None


async def _read(url: str, start: int, end: int, by: Sequence[str], filters: dict[str, "Value"]) -> "UsageReport":
    from core.reports import UsageReport
    from core.store import open_store

    store = open_store(url)
    empty = UsageReport(start, end, tuple(by))
    try:
        # Reading must not make a database where there is none.
        if store.url.file is not None and not store.url.file.exists():
            click.echo(f"There is no store at {store.url} yet: it is made when the proxy first starts.", err=True)
            return empty
        if await store.version() is None:
            click.echo(f"The store {store.url} has no usage tables yet: the proxy makes them at its start.", err=True)
            return empty
        return await store.usage.usage_report(start, end, by, filters)
    finally:
        await store.close()


_CSV_COLUMNS: dict[str, Callable[["Usage"], Any]] = {
    "requests": lambda usage: usage.requests,
    "errors": lambda usage: usage.errors,
    "input_tokens": lambda usage: usage.input_tokens,
    "output_tokens": lambda usage: usage.output_tokens,
    "cached_tokens": lambda usage: usage.cached_tokens,
    "reasoning_tokens": lambda usage: usage.reasoning_tokens,
    "cost_usd": lambda usage: format_dollars(usage.cost_nano),
    "unknown_usd": lambda usage: format_dollars(usage.unknown_nano),
    "cache_hits": lambda usage: usage.cache_hits,
    "cache_share": lambda usage: f"{usage.cache_share:.4f}",
    "latency_p50_ms": lambda usage: usage.latency_p50_ms,
    "latency_p95_ms": lambda usage: usage.latency_p95_ms,
    "first_token_p50_ms": lambda usage: usage.first_token_p50_ms,
    "first_token_p95_ms": lambda usage: usage.first_token_p95_ms,
}


def _csv(found: "UsageReport") -> str:
    """No line of totals: a spreadsheet would add it up again."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*found.by, *_CSV_COLUMNS])
    for row in found.rows:
        values = [read(row.usage) for read in _CSV_COLUMNS.values()]
        writer.writerow([*(_inert(part) for part in row.key), *values])
    return text.getvalue()


def _inert(value: "Value") -> "Value":
    """A text that a spreadsheet will not take for a formula: user names come from outside."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _print_table(found: "UsageReport") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not found.totals.requests:
        click.echo(f"No usage from {_iso(found.start_ms)} to {_iso(found.end_ms)}.")
        return
    table = Table(title=f"Usage from {_iso(found.start_ms)} to {_iso(found.end_ms)}", title_justify="left")
    for name in found.by:
        # Text, not markup: a user named "[red]" is a user named "[red]".
        table.add_column(Text(name), overflow="fold")
    for name in ("requests", "errors", "tokens in", "tokens out", "cost $", "cached", "p50", "p95", "first p50"):
        table.add_column(name, justify="right", no_wrap=True)
    decimals = _decimals([row.usage.cost_nano for row in found.rows] + [found.totals.cost_nano])
    for row in found.rows:
        table.add_row(*(Text(_shown(part)) for part in row.key), *_cells(row.usage, decimals))
    table.add_section()
    labels = ["total", *("" for _ in found.by[1:])] if found.by else []
    table.add_row(*labels, *_cells(found.totals, decimals), style="bold")
    console = Console()
    # Piped into a file, nothing should be cut off at the width of a terminal that is not there.
    (console if console.is_terminal else Console(width=240)).print(table)
    if found.totals.unknown_nano:
        click.echo(
            f"Of the cost, ${format_dollars(found.totals.unknown_nano)} is an upper bound: "
            "the provider never said what these requests used."
        )


def _cells(of: "Usage", decimals: int) -> list[str]:
    return [
        *(f"{number:,}" for number in (of.requests, of.errors, of.input_tokens, of.output_tokens)),
        f"{to_dollars(of.cost_nano):,.{decimals}f}",
        f"{of.cache_share:.0%}",
        *(_milliseconds(number) for number in (of.latency_p50_ms, of.latency_p95_ms, of.first_token_p50_ms)),
    ]


def _decimals(costs: Sequence[int]) -> int:
    """Six, or as many as it takes for every cost to be exact."""
    exponents = [to_dollars(cost).normalize().as_tuple().exponent for cost in costs if cost]
    return max([6, *(-exponent for exponent in exponents if isinstance(exponent, int))])


def _milliseconds(number: float | None) -> str:
    if number is None:
        return "-"
    return f"{Decimal(number) / 1000:.2f} s" if number >= 10_000 else f"{number:.0f} ms"


def _shown(value: "Value") -> str:
    return "-" if value is None else str(value)


def _iso(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
