"""Which limits a request has to fit, from the settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from core.context import Caller
from core.settings import Settings
from core.settings.models import Key


class Kind(StrEnum):
    """What is limited; the value is the setting's name."""

    REQUESTS = "requests_per_minute"
    TOKENS = "tokens_per_minute"
    PARALLEL = "max_parallel_requests"


class Scope(StrEnum):
    """Whom a limit is set for."""

    TIER = "tier"
    KEY = "key"
    USER = "user"
    ADDRESS = "address"


@dataclass(frozen=True, slots=True)
class Quota:
    """At most `most` of one kind. `counter` is where it is counted: the same for everything that shares the limit, and
    without the amount, so that a count goes on when only the amount changes."""

    kind: Kind
    scope: Scope
    name: str
    counter: str
    most: int


Quotas = tuple[Quota, ...]


class _Limited(Protocol):
    """The fields that tiers, keys and users share."""

    @property
    def requests_per_minute(self) -> int | None: ...
    @property
    def tokens_per_minute(self) -> int | None: ...
    @property
    def max_parallel_requests(self) -> int | None: ...


class QuotaBook:
    """The quotas of one settings snapshot. `keys` are the entries under `keys:` by the hash of their key."""

    def __init__(self, settings: Settings, keys: Mapping[str, Key]) -> None:
        self._tiers = {name: tier for name, tier in settings.tiers.items() if _limits(tier)}
        self._keys = {key_hash: key for key_hash, key in keys.items() if _limits(key)}
        self._users = {user: limits for user, limits in settings.limits.users.items() if _limits(limits)}
        self.empty = not (self._tiers or self._keys or self._users)
        self._known: dict[tuple[str | None, str | None, tuple[str, ...]], Quotas] = {}

    def of(self, caller: Caller) -> Quotas:
        """Everything the caller's requests must fit; each user of a tier has its own, a key without a user too.

        Of a caller in two tiers (a key that narrows itself) both count: a narrower tier must not bring higher limits.
        """
        who = (caller.key_hash, caller.user_id, caller.tiers)
        quotas = self._known.get(who)
        if quotas is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            quotas = self._known[who] = self._worked_out(caller)
        return quotas

    def _worked_out(self, caller: Caller) -> Quotas:
        user, key = caller.user_id, caller.key_hash
        member = f"user {user}" if user is not None else f"key {key or ''}"
        quotas: list[Quota] = []
        for name in caller.tiers:
            if name in self._tiers:
                # Names of tiers hold no spaces, so that no two counters have one name.
                quotas += _quotas(self._tiers[name], Scope.TIER, name, f"tier {name} {member}")
        if key is not None and key in self._keys:
            quotas += _quotas(self._keys[key], Scope.KEY, caller.key_alias or "", f"key {key}")
        if user is not None and user in self._users:
            quotas += _quotas(self._users[user], Scope.USER, user, f"user {user}")
        return tuple(quotas)


_REMEMBERED = 4096
"""Callers whose quotas are kept worked out."""


def _limits(limited: _Limited) -> bool:
    return any(getattr(limited, kind) is not None for kind in Kind)


def _quotas(limited: _Limited, scope: Scope, name: str, whose: str) -> list[Quota]:
    amounts: list[tuple[Kind, int | None]] = [(kind, getattr(limited, kind)) for kind in Kind]
    return [Quota(kind, scope, name, f"{kind} {whose}", most) for kind, most in amounts if most is not None]
