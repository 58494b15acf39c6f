"""What a place that keeps secrets offers to the resolver, and how it says why it cannot."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, Protocol, runtime_checkable

from core.errors import OrchestrationError
from secrets_manager.value import SecretValue


class Reason(StrEnum):
    """Why a secret could not be read."""

    NOT_FOUND = "not_found"
    """There is no such secret, version or field."""
    FORBIDDEN = "forbidden"
    """We are known, and may not read it."""
    UNAUTHENTICATED = "unauthenticated"
    """The log-in at the vault failed, or there is nothing to log in with."""
    DISABLED = "disabled"
    """The secret, or this version of it, is disabled or deleted."""
    EXPIRED = "expired"
    """It is past its expiry date."""
    NOT_YET_VALID = "not_yet_valid"
    """It is before its not-before date."""
    SEALED = "sealed"
    """The vault is sealed or not initialised."""
    THROTTLED = "throttled"
    """The vault asks us to slow down."""
    UNREACHABLE = "unreachable"
    """No answer: the network, its name, TLS, a timeout, or an error of the vault itself (5xx)."""
    MISCONFIGURED = "misconfigured"
    """Our settings of the provider, or the package it needs, are missing or wrong."""


_RETRYABLE = frozenset({Reason.SEALED, Reason.THROTTLED, Reason.UNREACHABLE})
_WITHDRAWN = frozenset({Reason.NOT_FOUND, Reason.DISABLED, Reason.EXPIRED, Reason.NOT_YET_VALID})


class SecretUnavailable(OrchestrationError):
    """A secret could not be read: which, why, and what to do, in a sentence that holds no value.

    `retry_after` is what the vault asked for, in seconds.
    """

    def __init__(self, message: str, reason: Reason, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after = retry_after

    @property
    def retryable(self) -> bool:
        """Whether asking again at once may help."""
        return self.reason in _RETRYABLE

    @property
    def keeps_stale(self) -> bool:
        """Whether this says nothing about the secret itself, so that the value we have may still be right. A policy
        that shuts us out is more often a mistake than meant; who means it revokes the key."""
        return self.reason not in _WITHDRAWN


@dataclass(frozen=True, slots=True)
class Lease:
    """A dynamic secret's lease: it ends `seconds` after it was given or renewed."""

    id: str
    seconds: float
    renewable: bool


@dataclass(frozen=True, slots=True)
class Fetched:
    """What one call to a vault gave: a whole secret, JSON where it has fields, and which version it is.

    `version` is the vault's own name for it. Times are Unix seconds. `lease` is there for dynamic secrets.
    """

    value: SecretValue
    version: str
    expires_at: float | None = None
    not_before: float | None = None
    lease: Lease | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One thing `doctor secrets` looked at: `what` is so; `do` says what to change where it is not as it should be."""

    level: Literal["ok", "warning", "error"]
    what: str
    do: str = ""


@runtime_checkable
class SecretProvider(Protocol):
    """A place that keeps secrets. Methods block and may be called from several threads at once.

    Each makes one try with the settings' timeouts; trying again, caching and waiting are the resolver's. A provider is
    made by `<class>(settings, environ)`, where `settings` is its section under `secrets.providers` (for a provider that
    another package adds: a mapping) and may raise SecretUnavailable (MISCONFIGURED). Making one asks nothing of the
    network.
    """

    def fetch(self, identifier: str, version: str) -> Fetched:
        """The secret's `version`, or its newest where that is "latest". Raises SecretUnavailable and nothing else."""
        ...

    def renew(self, lease: Lease) -> Lease:
        """The lease with its new length. Raises SecretUnavailable; a provider without leases is never asked."""
        ...

    def diagnose(self, identifiers: Mapping[str, str]) -> Iterator[Check]:
        """Whether this provider is set up well enough to read these secrets (identifier -> version), step by step:
        settings, network, log-in, permissions by their names. Never a value, never an exception."""
        ...

    def close(self) -> None:
        """Let go of connections and threads."""
        ...


Settings = Any
"""A provider's section of the settings; each provider knows its own."""
