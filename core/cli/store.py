"""Which store a command reads."""

import os
from pathlib import Path
from typing import Any

import click

_DEFAULT = "sqlite+aiosqlite:///orchestration.db"


def chosen_store(given: str | None, config: Path | None) -> str:
    """--store, else the environment, else the configuration, else the default.

    Raises click.UsageError for a configuration that is named and not there, and ConfigError or click.ClickException
    where it does not say which store.
    """
    if given:
        return given
    for name in ("LLM_GATEWAY_DB_URL", "DATABASE_URL"):
        if value := os.environ.get(name):
            return value
    path = config or Path("config.yaml")
    if not path.exists():
        if config is not None:
            raise click.UsageError(f"there is no {config}")
        return _DEFAULT
    return _configured(path)


def _configured(path: Path) -> str:
    from core.cli.vault import values_of
    from core.settings import InvalidConfig, load, store_url

    try:
        settings = load(path).settings
    except InvalidConfig:
        # What is wrong elsewhere in the file must not keep anybody from reading the store.
        return _as_written(path) or _DEFAULT
    return store_url(settings, os.environ, values_of(settings))


def _as_written(path: Path) -> str | None:
    import yaml

    try:
        document: Any = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise click.ClickException(f"{path} cannot be read: {error}; name the store with --store") from error
    for name in ("orchestration", "store", "url"):
        document = document.get(name) if isinstance(document, dict) else None  # pyright: ignore
    if isinstance(document, str) and document.startswith("os.environ/"):
        variable = document.removeprefix("os.environ/")
        if variable not in os.environ:
            raise click.ClickException(f"{path} takes the store's URL from {variable}, which is not set here")
        return os.environ[variable]
    return document if isinstance(document, str) else None
