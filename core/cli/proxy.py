"""Asking a running proxy's admin API."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import quote, urlsplit

import click

MASTER_KEY = "LITELLM_MASTER_KEY"
_TIMEOUT = 60.0
_PAGE = 1000
_THIS_MACHINE = ("127.0.0.1", "::1", "localhost")

F = TypeVar("F", bound=Callable[..., Any])


def proxy_options(command: F) -> F:
    """--url, --key-file and --json, as `url`, `key_file` and `as_json`."""
    options = (
        click.option("--url", default="http://127.0.0.1:4000", show_default=True, help="Where the proxy listens."),
        click.option(
            "--key-file",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help=f"A file with an administrator's key; default: the variable {MASTER_KEY}.",
        ),
        click.option("--json", "as_json", is_flag=True, help="JSON for programs."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def ask(
    method: str, url: str, key_file: Path | None, path: str, body: Any = None, query: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What `/orchestration/<path>` answers; Any because it is JSON.

    Raises click.UsageError without a key, and click.ClickException where the proxy does not answer or says no.
    """
    import httpx

    key = key_file.read_text().strip() if key_file else os.environ.get(MASTER_KEY, "")
    if not key:
        raise click.UsageError(f"An administrator's key is needed: --key-file, or the variable {MASTER_KEY}.")
    try:
        answer = httpx.request(
            method,
            f"{url.rstrip('/')}/orchestration/{path}",
            json=body,
            params=query,
            headers={"Authorization": f"Bearer {key}"},
            timeout=_TIMEOUT,
            # HTTP_PROXY without NO_PROXY would send an administrator's key for this machine to another one.
            trust_env=urlsplit(url).hostname not in _THIS_MACHINE,
        )
    except httpx.HTTPError as error:
        raise click.ClickException(f"{url} does not answer: {type(error).__name__}") from None
    except (httpx.InvalidURL, UnicodeEncodeError):
        raise click.UsageError(f"{url} is no address, or the key is none") from None
    try:
        found: Any = answer.json()
    except ValueError:
        found = None
    if answer.status_code >= 300 or not isinstance(found, dict):
        raise click.ClickException(f"{url} answered {answer.status_code}: {_message(found)}")
    return cast("dict[str, Any]", found)


def every(url: str, key_file: Path | None, section: str) -> Iterator[dict[str, Any]]:
    """All entries of a section of the admin API, page by page; as `ask`."""
    query: dict[str, Any] = {"limit": _PAGE}
    while True:
        page = ask("GET", url, key_file, section, query=query)
        yield from page[section]
        if page["next_cursor"] is None:
            return
        query["cursor"] = page["next_cursor"]


def part(name: str) -> str:
    """A name as one part of an address."""
    return quote(name, safe="")


def _message(found: Any) -> str:
    error: Any = cast("Mapping[str, Any]", found).get("error") if isinstance(found, dict) else None
    return (
        str(cast("Mapping[str, Any]", error).get("message")) if isinstance(error, dict) else "is a proxy with us there?"
    )
