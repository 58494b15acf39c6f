"""`llm-orchestration doctor`: what is wrong with an installation, and what to do about each thing.

It looks from outside: LiteLLM is never imported (that takes seconds), only asked for its metadata.
"""

import asyncio
import getpass
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import socket
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast
from urllib.parse import urlsplit

import click

from core.errors import ConfigError, StoreError
from core.installation import (
    CALLBACK,
    SECRETS_FILE,
    SECRETS_SOURCE,
    Data,
    callbacks_of,
    names_our_secret_manager,
)
from litellm_orchestration._namespace import PACKAGES, clashing_modules, explain_shadowing, shadowing_paths

# The range pyproject.toml requires; a test holds them together.
OLDEST, BEFORE = (1, 105, 2), (1, 107)
_PRICES = "https://raw.githubusercontent.com/BerriAI/litellm/main/model_prices_and_context_window.json"
_FORGETFUL_FILE_SYSTEMS = {"tmpfs", "ramfs", "overlay"}
_LITTLE_SPACE = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `do` is empty where nothing is to be done."""

    level: Literal["ok", "warning", "error"]
    what: str
    do: str = ""


@click.command("doctor")
@click.argument("words", nargs=-1, metavar="[secrets] [CONFIG]")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(words: tuple[str, ...], as_json: bool) -> None:
    """Look for problems of this installation and of CONFIG (config.yaml in this folder, if there is one).

    With `secrets`: is each vault that CONFIG uses reachable, does the log-in work, which permission is missing?

    Exits with 1 if something is an error; warnings alone are 0.
    """
    secrets = words[:1] == ("secrets",)
    config = _named(words[1:] if secrets else words)
    findings = list(_vaults(config) if secrets else examine(config))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            colour = {"ok": "green", "warning": "yellow", "error": "red"}[finding.level]
            click.echo(f"{click.style(finding.level.ljust(8), fg=colour)}{finding.what}")
            if finding.do:
                click.echo(f"{'':8}-> {finding.do}")
    raise SystemExit(any(finding.level == "error" for finding in findings))


def _named(words: tuple[str, ...]) -> Path | None:
    """The config that is named, else config.yaml if it is here."""
    if len(words) > 1:
        raise click.UsageError(f"one CONFIG at most, not {', '.join(words)}")
    if words:
        config = Path(words[0])
        if not config.is_file():
            raise click.UsageError(f"File '{config}' does not exist.")
        return config
    return Path("config.yaml") if Path("config.yaml").is_file() else None


def _vaults(config: Path | None) -> Iterator[Finding]:
    """What each vault says of itself. The vaults are no part of the core, so they are reached by name."""
    if config is None:
        raise click.UsageError("there is no config.yaml here; name a CONFIG")
    for name, check in importlib.import_module("secrets_manager.cli").examine(config):
        yield Finding(check.level, f"{name}: {check.what}", check.do)


def examine(config: Path | None) -> Iterator[Finding]:
    """Every finding, of the installation first, then of the config and what it names."""
    yield from _litellm()
    yield from _speed()
    yield from _packages(config.resolve().parent if config else Path.cwd())
    yield from _prices()
    if config is None:
        yield Finding("warning", "No config was looked at.", "Name one: llm-orchestration doctor CONFIG")
    else:
        yield from _config(config)


def _litellm() -> Iterator[Finding]:
    supported = f">={'.'.join(map(str, OLDEST))},<{'.'.join(map(str, BEFORE))}"
    install = f"pip install 'litellm[proxy]{supported}'"
    try:
        version = importlib.metadata.version("litellm")
    except importlib.metadata.PackageNotFoundError:
        yield Finding("error", "LiteLLM is not installed in this environment.", install)
        return
    if OLDEST <= _numbers(version) < BEFORE:
        yield Finding("ok", f"LiteLLM {version} is supported.")
    else:
        yield Finding("error", f"LiteLLM {version} is not one of the versions tested ({supported}).", install)
    if importlib.util.find_spec("fastapi") is None:
        yield Finding("error", "LiteLLM is installed without its proxy.", install)


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def _speed() -> Iterator[Finding]:
    costs = {
        "opentelemetry.sdk": ("opentelemetry-sdk", "without it LiteLLM repeats a failing import on every request"),
        "httptools": ("httptools", "without it uvicorn parses HTTP in Python"),
    }
    for module, (distribution, cost) in costs.items():
        if _importable(module):
            yield Finding("ok", f"{distribution} is installed.")
        else:
            yield Finding("warning", f"{distribution} is missing: {cost}.", f"pip install {distribution}")


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False


def _packages(folder: Path) -> Iterator[Finding]:
    shadowing = shadowing_paths()
    for package, path in shadowing.items():
        yield Finding("error", explain_shadowing(package, path))
    owners = importlib.metadata.packages_distributions()
    for package in PACKAGES:
        others = sorted(set(owners.get(package, ())) - {"litellm-orchestration"})
        if others:
            yield Finding(
                "error",
                f"{', '.join(others)} installed files into our package {package!r}.",
                "Uninstall it, then: pip install --force-reinstall --no-deps litellm-orchestration",
            )
    clashes = clashing_modules(folder)
    for name, file in clashes.items():
        yield Finding(
            "warning",
            f"`import {name}` finds our module, not {file}.",
            "Rename that one if your own code imports it; what the config names is loaded from the file in any case.",
        )
    if not (shadowing or clashes):
        yield Finding("ok", "Our packages and your own modules do not hide each other.")


def _prices() -> Iterator[Finding]:
    if os.environ.get("LITELLM_LOCAL_MODEL_COST_MAP", "").lower() == "true":
        yield Finding("ok", "Prices come from the installed LiteLLM (LITELLM_LOCAL_MODEL_COST_MAP).")
        return
    host = urlsplit(os.environ.get("LITELLM_MODEL_COST_MAP_URL", _PRICES)).hostname or ""
    if "https" in urllib.request.getproxies() or _answers(host):
        yield Finding("ok", f"Prices can be fetched from {host} at start.")
    else:
        yield Finding(
            "warning",
            f"{host} cannot be reached: LiteLLM tries three times for its prices and starts some ten seconds later.",
            "export LITELLM_LOCAL_MODEL_COST_MAP=True",
        )


def _answers(host: str, timeout: float = 2.0) -> bool:
    """Whether the port for HTTPS opens within `timeout` seconds, the look-up of the name included."""
    connected = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((host, 443), timeout).close()
        except OSError:
            return
        connected.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout)
    return connected.is_set()


def _config(config: Path) -> Iterator[Finding]:
    # The settings' models and SQLAlchemy: only where there is a config to look at.
    from core.settings.source import read

    try:
        document = read(config).document
    except ConfigError as error:
        yield Finding("error", str(error), f"Mend {config}; LiteLLM cannot start with it.")
        return
    if CALLBACK in callbacks_of(document):
        yield Finding("ok", f"{config} loads {CALLBACK}.")
    else:
        yield Finding("error", f"{config} does not load us.", f"llm-orchestration init {config}")
    if names_our_secret_manager(document):
        yield _secrets_file(config)
    if _section(document, "orchestration").get("keys"):
        yield from _keys(document)
    yield from _services(config)


def _secrets_file(config: Path) -> Finding:
    file = config.parent / SECRETS_FILE  # a symbolic link's own folder: that is where LiteLLM looks
    try:
        source = file.read_text("utf-8", "replace")
    except OSError as error:
        what = f"{file}, which {config} names, cannot be read ({error.strerror}): LiteLLM cannot start."
        return Finding("error", what, f"llm-orchestration init {config}, and copy the file wherever the config goes")
    if source != SECRETS_SOURCE:
        do = f"If that was not meant: remove it, then llm-orchestration init {config}"
        return Finding("warning", f"{file} is not as init writes it.", do)
    return Finding("ok", f"{file} loads our secret manager.")


def _section(document: Data, name: str) -> Data:
    section = document.get(name)
    return cast(Data, section) if isinstance(section, dict) else {}


def _keys(document: Data) -> Iterator[Finding]:
    """Keys under `orchestration.keys` are only checked, and only limited to their models, with all three settings."""
    wanted: dict[tuple[str, str], object] = {
        ("general_settings", "custom_auth"): "litellm_orchestration.authenticate",
        ("general_settings", "custom_auth_run_common_checks"): True,
        ("litellm_settings", "enable_post_custom_auth_checks"): True,
    }
    missing = {path: value for path, value in wanted.items() if _section(document, path[0]).get(path[1]) != value}
    for (section, name), value in missing.items():
        shown = json.dumps(value) if isinstance(value, bool) else value
        yield Finding(
            "error",
            f"orchestration.keys is used, but {section}.{name} is not {shown}.",
            f"Set {name}: {shown} under {section}:",
        )
    if not missing:
        yield Finding("ok", "The keys under orchestration.keys are checked by us.")


def _services(config: Path) -> Iterator[Finding]:
    """The journal and the store that this config and the environment name."""
    from core.cli.vault import values_of
    from core.settings import load, store_url

    try:
        settings = load(config).settings
        url = store_url(settings, os.environ, values_of(settings))
    except ConfigError as error:
        yield Finding("error", str(error), f"llm-orchestration check {config}")
        return
    yield journal_finding(Path(settings.journal.dir).absolute())
    yield asyncio.run(store_finding(url))


def journal_finding(folder: Path) -> Finding:
    """Whether events can be written to `folder` (which may not be there yet), and whether they would last."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"written")
            os.fsync(file.fileno())
    except OSError as error:
        return Finding(
            "error",
            f"The journal {folder} cannot be written: {error.strerror}.",
            f"Give {getpass.getuser()} the right to write {existing}, or set orchestration.journal.dir.",
        )
    free, kind = shutil.disk_usage(existing).free, file_system(existing)
    place = f"The journal {folder} is on {kind} with {free / 2**30:.1f} GiB free"
    if kind in _FORGETFUL_FILE_SYSTEMS:
        return Finding(
            "warning",
            f"{place}; what is not in the store yet is lost when the machine or container goes.",
            "Mount a volume there, or set orchestration.journal.dir to one.",
        )
    if free < _LITTLE_SPACE:
        return Finding("warning", f"{place}, and requests are refused when it is full.", "Free or add space.")
    return Finding("ok", f"{place}.")


def file_system(path: Path) -> str:
    """The type of the file system `path` is on ("ext4", "tmpfs"); "an unknown file system" where /proc is missing."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return "an unknown file system"
    real = path.resolve()
    points = {Path(point.replace("\\040", " ")): kind for _, point, kind, *_ in mounts}  # the last one mounted counts
    return next((points[point] for point in (real, *real.parents) if point in points), "an unknown file system")


async def store_finding(url: str) -> Finding:
    """Whether the store answers, and whether its tables are of this version. A SQLite file is not created."""
    from core.store import open_store
    from core.store.migrations import HEAD

    try:
        store = open_store(url)
        if store.url.file is not None and not store.url.file.exists():
            return Finding("ok", f"The store {store.url} is made at the first start.")
        try:
            version = await store.version()
        finally:
            await store.close()
    except StoreError as error:
        return Finding("error", f"{error}", "Check orchestration.store.url, LLM_GATEWAY_DB_URL and DATABASE_URL.")
    if version is not None and version > HEAD:  # revisions are numbered
        return Finding(
            "error",
            f"The store {store.url} has tables of revision {version}; this version knows up to {HEAD}.",
            "pip install --upgrade litellm-orchestration",
        )
    if version != HEAD:
        return Finding("ok", f"The store {store.url} answers; the next start brings its tables to revision {HEAD}.")
    return Finding("ok", f"The store {store.url} answers and is at revision {HEAD}.")
