"""The environment variables that override config.yaml, in one table."""

import copy
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from core.errors import ConfigError
from core.settings.finding import Finding, Loc
from core.settings.models import Settings
from core.settings.reference import is_reference, is_vault_reference, resolve_environ
from core.settings.urls import checked_redis_url, checked_store_url


def _same(value: str) -> str:
    return value


@dataclass(frozen=True, slots=True)
class Override:
    """One variable and the setting, below `orchestration:`, that it overrides. Checked like the file's."""

    variable: str
    loc: tuple[str, ...]
    meaning: str
    read: Callable[[str], str] = _same
    ambient: bool = False
    """Often set for other reasons, so that it alone does not mean that somebody wants the feature."""


OVERRIDES: tuple[Override, ...] = (
    Override("KEY_VAULT_PROVIDER", ("secrets", "default_provider"), "azure, aws, hashicorp or local"),
    Override("AZURE_KEY_VAULT_URL", ("secrets", "providers", "azure", "vault_url"), "https://<name>.vault.azure.net/"),
    Override("AWS_REGION", ("secrets", "providers", "aws", "region"), "region of AWS Secrets Manager", ambient=True),
    Override("VAULT_URL", ("secrets", "providers", "hashicorp", "url"), "URL of HashiCorp Vault"),
    Override(
        "VAULT_TOKEN",
        ("secrets", "providers", "hashicorp", "auth", "token"),
        "token for HashiCorp Vault; only that it is set is remembered",
        read=lambda _: "os.environ/VAULT_TOKEN",
    ),
    # The later of two rows wins.
    Override("DATABASE_URL", ("store", "url"), "database, unless LLM_GATEWAY_DB_URL is set", ambient=True),
    Override("LLM_GATEWAY_DB_URL", ("store", "url"), "database"),
    Override("REDIS_URL", ("shared_state", "url"), "Redis"),
    Override("CACHE_TTL", ("caching", "default_ttl"), "seconds"),
    Override("MAX_CONCURRENT_REQUESTS", ("limits", "max_concurrent_requests"), "requests in flight at once"),
    Override("CIRCUIT_BREAKER_THRESHOLD", ("resilience", "circuit_breaker", "failure_threshold"), "failures"),
    Override("ENABLE_METRICS", ("analytics", "metrics"), "true or false"),
    Override("METRICS_ENABLED", ("analytics", "metrics"), "true or false; the same as ENABLE_METRICS"),
    Override("LOG_LEVEL", ("analytics", "log_level"), "DEBUG, INFO, WARNING, ERROR or CRITICAL"),
)


def effective_environ(document: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """The environment as LiteLLM leaves it: `environment_variables` of the file put over it."""
    written = document.get("environment_variables")
    pairs = cast(dict[object, object], written).items() if isinstance(written, dict) else ()
    merged = dict(environ)
    for name, value in pairs:
        if is_reference(value):
            # What only a vault knows stays what it was.
            with suppress(ConfigError):
                merged[str(name)] = resolve_environ(str(value), environ)
        elif value is not None:
            merged[str(name)] = str(value)
    return merged


def overridden(
    section: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[dict[str, Any], dict[Loc, str], list[Finding]]:
    """The section with the environment's values put in, which variable each came from, and what contradicts itself."""
    merged = copy.deepcopy(dict(section))
    variables: dict[Loc, str] = {}
    findings: list[Finding] = []
    for override in OVERRIDES:
        # An empty variable is how compose files and charts say "not set".
        value = environ.get(override.variable)
        if value and _put(merged, override.loc, override.read(value)):
            variables[("orchestration", *override.loc)] = override.variable
    one, other = environ.get("ENABLE_METRICS"), environ.get("METRICS_ENABLED")
    if one and other and one.lower() != other.lower():
        loc = ("orchestration", "analytics", "metrics")
        message = "ENABLE_METRICS and METRICS_ENABLED contradict each other; unset one"
        findings.append(Finding("error", loc, message, variable="ENABLE_METRICS"))
    return merged, variables, findings


Vault = Callable[[str], str | None]
"""The value behind a reference to a vault, None where there is none."""


def store_url(settings: Settings, environ: Mapping[str, str], vault: Vault | None = None) -> str:
    """The store's SQLAlchemy URL with its reference resolved, by `vault` where it needs one.

    Raises ConfigError; the message never holds the URL.
    """
    return _checked(settings.store.url, environ, vault, checked_store_url, "orchestration.store.url")


def shared_state_url(settings: Settings, environ: Mapping[str, str], vault: Vault | None = None) -> str | None:
    """Redis's URL with its reference resolved, or None for memory. Raises ConfigError as `store_url` does."""
    url = settings.shared_state.url
    return None if url is None else _checked(url, environ, vault, checked_redis_url, "orchestration.shared_state.url")


def _checked(url: str, environ: Mapping[str, str], vault: Vault | None, check: Callable[[str], str], path: str) -> str:
    try:
        if vault is not None and is_vault_reference(url):
            resolved = vault(url)
            if not resolved:
                raise ConfigError("the secret has no value")
        else:
            resolved = resolve_environ(url, environ)
        # A reference to a reference would only be found out when connecting.
        if is_reference(resolved):
            raise ConfigError("the environment variable holds another reference")
        return check(resolved)
    except (ConfigError, ValueError) as error:
        raise ConfigError(f"{path} ({url if is_reference(url) else 'as written'}): {error}") from None


def _put(section: dict[str, Any], loc: tuple[str, ...], value: str) -> bool:
    """Put the value at its place; False when the file has something there that is not a mapping."""
    for name in loc[:-1]:
        if section.get(name) is None:
            section[name] = {}
        if not isinstance(section[name], dict):
            return False
        section = cast(dict[str, Any], section[name])
    section[loc[-1]] = value
    return True
