"""`llm-orchestration alerts`: trying channels out, and messages that a running proxy could not deliver."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from core.cli.proxy import ask, part, proxy_options
from core.cli.table import print_table

_MOST = 1000


@click.group("alerts")
def command() -> None:
    """Try channels out, see what did not arrive, send it again."""


@command.command("test")
@click.argument("channel")
@proxy_options
def test_command(channel: str, url: str, key_file: Path | None, as_json: bool) -> None:
    """Have a running proxy send a test message to CHANNEL. Exits with 1 if the channel does not take it."""
    found = ask("POST", url, key_file, "alerts/test", {"channel": channel})
    click.echo(json.dumps(found, indent=2) if as_json else f"{channel}: sent")


@command.command("dead")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, _MOST), help="Newest to show.")
@proxy_options
def dead_command(limit: int, url: str, key_file: Path | None, as_json: bool) -> None:
    """Messages that were given up, with the reason. Exits with 1 if there are any."""
    found: list[dict[str, Any]] = ask("GET", url, key_file, "alerts/dead", query={"limit": limit})["dead"]
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        columns = ("id", "time", "event", "subject", "attempts", "error")
        print_table(columns, [tuple(str(one[name] or "") for name in columns) for one in found])
    raise SystemExit(bool(found))


@command.command("resend")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All that were given up.")
@proxy_options
def resend_command(ids: Sequence[str], every: bool, url: str, key_file: Path | None, as_json: bool) -> None:
    """Send messages again that were given up."""
    if bool(ids) == every:
        raise click.UsageError("Say which, by their ids, or --all.")
    if every:
        dead: list[dict[str, Any]] = ask("GET", url, key_file, "alerts/dead", query={"limit": _MOST})["dead"]
        ids = [one["id"] for one in reversed(dead)]
    found = [ask("POST", url, key_file, f"alerts/dead/{part(one)}/resend") for one in ids]
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo(f"{len(found)} sent again; `llm-orchestration alerts dead` shows what fails once more.")
