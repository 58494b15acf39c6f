"""What is convenient in development and refused in production."""

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, cast

from core.errors import ConfigError
from core.settings.environment import shared_state_url, store_url
from core.settings.finding import Finding, Loc
from core.settings.models import AtLimit, Environment, OutageMode, SecretProvider, Settings
from core.settings.reference import is_reference, is_vault_reference, resolve_environ
from core.settings.source import SECTION
from core.settings.urls import travels_in_the_clear

_EPHEMERAL = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/var/run")  # noqa: S108 - these are what is refused
_CREDENTIAL = re.compile(
    r"(^|_)(api_key|master_key|salt_key|secret|secret_access_key|session_token|token|password)$", re.I
)
_PLACEHOLDERS = {"", "none", "null", "empty", "dummy", "fake", "fake-key", "not-needed", "no-key"}


def unsafe(settings: Settings, document: Mapping[str, Any], environ: Mapping[str, str]) -> list[Finding]:
    """Unsafe defaults and choices: errors where `environment: production`, and otherwise only written-out keys, as
    warnings. Nothing here repeats a value."""
    production = settings.environment is Environment.PRODUCTION
    findings = [
        Finding(
            "error" if production else "warning", loc, "a secret is written out; write os.environ/NAME in its place"
        )
        for loc in _written_out(settings, document)
    ]
    findings += _unset(settings, environ)
    if production:
        findings += [*_storage(settings, environ), *_secrets(settings, document, environ)]
        if settings.trust_key_metadata:
            message = "lets every user who may create a key grant themselves a tier"
            findings.append(Finding("warning", (SECTION, "trust_key_metadata"), message))
        findings += _budgets(settings)
    return findings


def _storage(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    folder = PurePosixPath(settings.journal.dir)
    ephemeral = not folder.is_absolute() or any(folder.is_relative_to(place) for place in _EPHEMERAL)
    if ephemeral and settings.journal.redis is None:
        message = (
            "production needs a journal that survives the container: an absolute path on a mounted volume, or Redis"
        )
        yield Finding("error", (SECTION, "journal", "dir"), message, settings.journal.dir)
    for loc, what, url in (
        (("store", "url"), "PostgreSQL", _resolved_store(settings, environ)),
        (("shared_state", "url"), "Redis", _resolved_redis(settings, environ)),
    ):
        if url and travels_in_the_clear(url):
            hint = "use rediss://" if what == "Redis" else "add ?sslmode=verify-full (or require)"
            yield Finding("error", (SECTION, *loc), f"production does not talk to {what} without TLS; {hint}")
    if (url := _resolved_store(settings, environ)) and url.startswith("sqlite"):
        message = "SQLite serves one instance and lives on its disk; production usually wants PostgreSQL"
        yield Finding("warning", (SECTION, "store", "url"), message)


def _budgets(settings: Settings) -> Iterator[Finding]:
    if settings.shared_state.on_outage is OutageMode.ALLOW and any(
        budget.at_limit is not AtLimit.WARN for budget in settings.budgets
    ):
        message = "no budget holds while Redis is away; deny and local keep them"
        yield Finding("warning", (SECTION, "shared_state", "on_outage"), message, "allow")


def _secrets(settings: Settings, document: Mapping[str, Any], environ: Mapping[str, str]) -> Iterator[Finding]:
    providers = settings.secrets.providers
    said = "default_provider" in settings.secrets.model_fields_set
    if said and settings.secrets.default_provider is SecretProvider.LOCAL:
        loc = (SECTION, "secrets", "default_provider")
        yield Finding("error", loc, "the local provider is for development; use azure, aws or hashicorp", "local")
    if providers.local.enabled:
        loc = (SECTION, "secrets", "providers", "local", "enabled")
        yield Finding("error", loc, "the local provider is for development; remove this or set it to false", "true")
    if providers.local.file is not None:
        loc = (SECTION, "secrets", "providers", "local", "file")
        yield Finding("error", loc, "secrets in a file are for development; put them into a vault and remove this")
    for loc in _strings(document, starting="os.environ/env://"):
        yield Finding(
            "error", loc, "env:// is the local secret provider, for development; use a vault or os.environ/NAME"
        )
    if settings.secrets.default_provider is SecretProvider.LOCAL:
        for loc in _strings(document, starting="os.environ/secret://"):
            message = "means the local secret provider, for development; set secrets.default_provider to a vault"
            yield Finding("error", loc, message)
    for name, field, url in (
        ("hashicorp", "url", providers.hashicorp.url),
        ("aws", "endpoint_url", providers.aws.endpoint_url),
        ("aws", "sts_endpoint_url", providers.aws.sts_endpoint_url),
    ):
        try:
            resolved = None if url is None else resolve_environ(url, environ)
        except ConfigError:
            continue
        if resolved is not None and travels_in_the_clear(resolved):
            loc = (SECTION, "secrets", "providers", name, field)
            yield Finding("error", loc, "production does not talk to a vault without TLS; use https://")


def _unset(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """References of plain settings that stand for nothing here; they may on the machine that serves."""
    for loc, url, resolve in (
        (("store", "url"), settings.store.url, store_url),
        (("shared_state", "url"), settings.shared_state.url, shared_state_url),
    ):
        if is_vault_reference(url):
            continue  # nothing here asks a vault
        try:
            resolve(settings, environ)
        except ConfigError as error:
            yield Finding("warning", (SECTION, *loc), str(error).partition(": ")[2])


def _resolved_store(settings: Settings, environ: Mapping[str, str]) -> str | None:
    try:
        return store_url(settings, environ)
    except ConfigError:
        return None


def _resolved_redis(settings: Settings, environ: Mapping[str, str]) -> str | None:
    try:
        return shared_state_url(settings, environ)
    except ConfigError:
        return None


def _written_out(settings: Settings, document: Mapping[str, Any]) -> Iterator[Loc]:
    """Credentials that are not references, in LiteLLM's sections and in those of secret providers that other packages
    add. (In ours, the models refuse them.)"""
    places: list[tuple[Loc, object]] = [
        (("general_settings",), document.get("general_settings")),
        (("environment_variables",), document.get("environment_variables")),
    ]
    for name, added in settings.secrets.providers.added.items():
        places.append(((SECTION, "secrets", "providers", name), dict(added)))
    models = document.get("model_list")
    for index, entry in enumerate(cast(list[object], models) if isinstance(models, list) else []):
        if isinstance(entry, dict):
            params = cast(dict[str, object], entry).get("litellm_params")
            places.append((("model_list", index, "litellm_params"), params))
    for loc, mapping in places:
        for name, value in cast(dict[object, object], mapping).items() if isinstance(mapping, dict) else ():
            if not isinstance(value, str) or is_reference(value) or value.strip().lower() in _PLACEHOLDERS:
                continue
            if _CREDENTIAL.search(str(name)) or re.search(r"://[^/@\s]*:[^/@\s]+@", value):
                yield (*loc, str(name))


def _strings(value: object, *, starting: str, loc: Loc = (), above: frozenset[int] = frozenset()) -> Iterator[Loc]:
    if isinstance(value, str) and value.startswith(starting):
        yield loc
    if id(value) in above:
        return
    inside = above | {id(value)}
    if isinstance(value, dict):
        for name, item in cast(dict[object, object], value).items():
            yield from _strings(item, starting=starting, loc=(*loc, str(name)), above=inside)
    elif isinstance(value, list):
        for index, item in enumerate(cast(list[object], value)):
            yield from _strings(item, starting=starting, loc=(*loc, index), above=inside)
