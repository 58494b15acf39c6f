"""`llm-orchestration init`: load us into a LiteLLM proxy that is already there, by two additions to its config."""

import contextlib
import difflib
import json
import os
import sys
import tempfile
from pathlib import Path

import click

from core.installation import CannotEdit, Change, install, overriding_include, uninstall
from litellm_orchestration._namespace import clashing_modules


@click.command("init")
@click.argument("config", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--yes", is_flag=True, help="Write without asking.")
@click.option("--undo", is_flag=True, help="Take out what init added, and nothing else.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def command(config: Path, yes: bool, undo: bool, as_json: bool) -> None:
    """Add litellm-orchestration to the LiteLLM config file CONFIG.

    Adds `litellm_orchestration.callback` to litellm_settings.callbacks and a section `orchestration:`; comments, order
    and formatting stay as they are. Shows the change and asks before it writes.
    """
    try:
        _init(config, yes=yes, undo=undo, as_json=as_json)
    except UnicodeDecodeError as error:
        raise _Refused(f"{config} is not UTF-8 text: {error}.") from error
    except CannotEdit as error:
        raise _Refused(f"{config}: {error}") from error
    except OSError as error:
        raise _Refused(f"{config} was left as it is: {error}.") from error


def _init(config: Path, *, yes: bool, undo: bool, as_json: bool) -> None:
    before = config.read_bytes()
    change = _change(config, before.decode("utf-8"), undo=undo)
    after = change.text.encode("utf-8")
    diff = _diff(config, before.decode("utf-8"), change.text)
    warnings = [] if undo else _clashes(config.resolve().parent)

    if not as_json:
        click.echo(diff, nl=False)
    if before != after:
        if not yes:
            _ask(config)
        if config.read_bytes() != before:
            raise _Refused(f"{config} was changed by somebody else meanwhile. Run init again.")
        _write(config, after)
    if as_json:
        outcome = {"config": str(config), "changed": before != after, "notes": change.notes, "warnings": warnings}
        click.echo(json.dumps({**outcome, "diff": diff}, indent=2))
        return
    for line in (*change.notes, *(f"Warning: {warning}" for warning in warnings)):
        click.echo(line)
    if before != after and not undo:
        click.echo(f"Start the proxy as always: litellm --config {config}. To check: llm-orchestration doctor {config}")


class _Refused(click.ClickException):
    """A config that init leaves alone; exit 1, where wrong usage is 2."""

    exit_code = 1


def _change(config: Path, text: str, *, undo: bool) -> Change:
    if undo:
        return uninstall(text)
    replaced_by = overriding_include(text, lambda name: (config.parent / name).read_text("utf-8"))
    if replaced_by is not None:
        raise CannotEdit(
            f"its include {replaced_by} has a section litellm_settings, which replaces the one here. "
            f"Run init on {config.parent / replaced_by}."
        )
    return install(text)


def _diff(config: Path, before: str, after: str) -> str:
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), str(config), f"{config} (new)"
    )
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def _clashes(folder: Path) -> list[str]:
    return [
        f"`import {name}` in your own code finds our module, not {file}. Rename that one if anything imports it."
        for name, file in clashing_modules(folder).items()
    ]


def _ask(config: Path) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError(f"Nobody is there to ask. Add --yes to write {config}.")
    click.confirm(f"Write {config}?", abort=True)


def _write(config: Path, content: bytes) -> None:
    """Replace the file in one step, with the mode and owner of the old one; a symbolic link stays one."""
    target = config.resolve()
    status = target.stat()
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), status.st_mode & 0o7777)
            with contextlib.suppress(PermissionError):  # only root may give files away
                os.fchown(file.fileno(), status.st_uid, status.st_gid)
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
