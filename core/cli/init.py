"""`llm-orchestration init`: load us into a LiteLLM proxy that is already there, by a few lines and a small file."""

import contextlib
import difflib
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click

from core.installation import (
    SECRETS_FILE,
    SECRETS_SOURCE,
    CannotEdit,
    Change,
    install,
    overriding_include,
    secret_manager_named_in,
    uninstall,
)
from litellm_orchestration._namespace import clashing_modules


@click.command("init")
@click.argument("config", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--yes", is_flag=True, help="Write without asking.")
@click.option("--undo", is_flag=True, help="Take out what init added, and nothing else.")
@click.option("--no-secrets", is_flag=True, help="Leave general_settings alone and add no secret manager.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def command(config: Path, yes: bool, undo: bool, no_secrets: bool, as_json: bool) -> None:
    """Add litellm-orchestration to the LiteLLM config file CONFIG.

    Adds `litellm_orchestration.callback` to litellm_settings.callbacks, a section `orchestration:` and, unless there is
    one, a secret manager: two lines in general_settings and a small file beside CONFIG. Comments, order and formatting
    stay as they are. Shows the change and asks before it writes.
    """
    try:
        _init(config, yes=yes, undo=undo, secrets=not no_secrets, as_json=as_json)
    except UnicodeDecodeError as error:
        raise _Refused(f"{config} is not UTF-8 text: {error}.") from error
    except CannotEdit as error:
        raise _Refused(f"{config}: {error}") from error
    except OSError as error:
        raise _Refused(f"{config} was left as it is: {error}.") from error


def _init(config: Path, *, yes: bool, undo: bool, secrets: bool, as_json: bool) -> None:
    before = config.read_bytes()
    change = _change(config, before.decode("utf-8"), undo=undo, secrets=secrets)
    after = change.text.encode("utf-8")
    file = _secrets_file(config, change.text, undo=undo)
    diff = _diff(config, before.decode("utf-8"), change.text) + file.diff
    notes = [*change.notes, *filter(None, [file.note])]
    warnings = [] if undo else _clashes(config.resolve().parent)
    changed = before != after or file.changes

    if not as_json:
        click.echo(diff, nl=False)
    if changed:
        if not yes:
            _ask(config)
        if config.read_bytes() != before:
            raise _Refused(f"{config} was changed by somebody else meanwhile. Run init again.")
        _apply(config, after if before != after else None, file)
    if as_json:
        outcome = {"config": str(config), "changed": changed, "notes": notes, "warnings": warnings}
        click.echo(json.dumps({**outcome, "diff": diff}, indent=2))
        return
    for line in (*notes, *(f"Warning: {warning}" for warning in warnings)):
        click.echo(line)
    if changed and not undo:
        click.echo(f"Start the proxy as always: litellm --config {config}. To check: llm-orchestration doctor {config}")


class _Refused(click.ClickException):
    """A config that init leaves alone; exit 1, where wrong usage is 2."""

    exit_code = 1


@dataclass(frozen=True)
class _SecretsFile:
    """The file beside the config that LiteLLM loads our secret manager from: what it is, and what it is to be."""

    path: Path
    before: str | None
    after: str | None
    note: str = ""

    @property
    def changes(self) -> bool:
        return self.before != self.after

    @property
    def diff(self) -> str:
        if not self.changes:
            return ""
        old, new = (None, "/dev/null") if self.after is None else ("/dev/null", None)
        return _diff(self.path, self.before or "", self.after or "", old, new)


def _secrets_file(config: Path, text: str, *, undo: bool) -> _SecretsFile:
    """What becomes of the file when the config is `text`. One that is not as init writes it stays.

    Its folder is that of the path as it was given, symbolic link or not: there LiteLLM looks.
    """
    path = config.parent / SECRETS_FILE
    wanted = secret_manager_named_in(text)
    there = path.read_text("utf-8", "replace") if path.exists() else None
    if there is None:
        if undo or not wanted:
            return _SecretsFile(path, None, None)
        return _SecretsFile(path, None, SECRETS_SOURCE, f"Wrote {path}, from which LiteLLM loads the secret manager.")
    if there != SECRETS_SOURCE:
        kept = wanted or undo
        return _SecretsFile(path, there, there, f"Kept {path}: it is not as init writes it." if kept else "")
    if not undo or wanted:
        return _SecretsFile(path, there, there)
    others = [file for file in sorted(path.parent.glob("*.y*ml")) if not file.samefile(config) and _names(file)]
    if others:
        return _SecretsFile(path, there, there, f"Kept {path}: {others[0]} names it too.")
    return _SecretsFile(path, there, None, f"Removed {path}.")


def _names(config: Path) -> bool:
    return config.is_file() and Path(SECRETS_FILE).stem.encode() in config.read_bytes()


def _apply(config: Path, after: bytes | None, file: _SecretsFile) -> None:
    """Write both, in an order in which no config ever names a file that is missing."""
    if file.changes and file.after is not None:
        _write(file.path, file.after.encode(), like=config)
    try:
        if after is not None:
            _write(config.resolve(), after, like=config)  # a symbolic link stays one
    except BaseException:
        if file.before is None:
            file.path.unlink(missing_ok=True)
        raise
    if file.changes and file.after is None:
        file.path.unlink(missing_ok=True)


def _change(config: Path, text: str, *, undo: bool, secrets: bool) -> Change:
    if undo:
        return uninstall(text)
    replaced_by = {
        section: overriding_include(text, section, lambda name: (config.parent / name).read_text("utf-8"))
        for section in ("litellm_settings", "general_settings")
    }
    if (include := replaced_by["litellm_settings"]) is not None:
        # The file with the secret manager must stand beside the config that LiteLLM is started with.
        flag = "" if (config.parent / include).parent == config.parent else "--no-secrets "
        raise CannotEdit(
            f"its include {include} has a section litellm_settings, which replaces the one here. "
            f"Run init {flag}on {config.parent / include}."
        )
    return install(text, secrets=secrets, replaced_by=replaced_by["general_settings"])


def _diff(path: Path, before: str, after: str, old: str | None = None, new: str | None = None) -> str:
    names = (old or str(path), new or f"{path} (new)")
    lines = difflib.unified_diff(before.splitlines(keepends=True), after.splitlines(keepends=True), *names)
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


def _write(target: Path, content: bytes, *, like: Path) -> None:
    """Replace or make a file in one step, with the mode and owner of the file `like`."""
    status = like.stat()
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
