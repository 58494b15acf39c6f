"""Which requests a budget covers: all the scopes that are given must match, none given means every request."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Self

import orjson

from core.context import Caller
from core.settings.models import Budget


class Per(StrEnum):
    """Whom a budget is given to one by one."""

    USER = "user"
    TEAM = "team"
    KEY = "key"
    MODEL = "model"


@dataclass(frozen=True, slots=True)
class Coverage:
    """Scopes, each a set of names; an empty one does not narrow.

    `models` are names or globs of model groups that serve, or of policies that were asked for; `keys` are key hashes
    (hex, nothing before it) or aliases. With `per`, a request that has no such member (no user, no team) is not
    covered.
    """

    users: frozenset[str] = frozenset()
    teams: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    task_types: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()
    per: Per | None = None

    @classmethod
    def of(cls, budget: Budget) -> Self:
        return cls(
            users=frozenset(budget.users),
            teams=frozenset(budget.teams),
            groups=frozenset(budget.user_groups),
            keys=frozenset(bare_hash(key) for key in budget.keys),
            task_types=frozenset(budget.task_types),
            models=frozenset(budget.models),
            per=None if budget.per is None else Per(budget.per.value),
        )

    def covers(self, caller: Caller, task_type: str | None, model: str, asked_model: str | None = None) -> bool:
        """Whether a request is covered that is served by the group `model`; `asked_model` is what the client named."""
        return self.covers_caller(caller, task_type) and self.covers_model((model, asked_model or model))

    def covers_caller(self, caller: Caller, task_type: str | None) -> bool:
        """The part of `covers` that is the same whatever model serves the request."""
        return (
            (not self.users or caller.user_id in self.users)
            and (not self.teams or caller.team_id in self.teams)
            and (not self.groups or not self.groups.isdisjoint(caller.groups))
            and (not self.keys or caller.key_hash in self.keys or caller.key_alias in self.keys)
            and (not self.task_types or task_type in self.task_types)
            and (self.per is None or self.per is Per.MODEL or bool(self.member(caller)))
        )

    def covers_model(self, names: Iterable[str]) -> bool:
        """Whether one of the names that a request's model goes by is in scope: the group, its aliases, the policy."""
        return not self.models or any(fnmatchcase(name, pattern) for name in names for pattern in self.models)

    def member(self, caller: Caller) -> str:
        """Whose account a request is charged to: empty for a shared budget, for a caller that is nobody's, and for
        `per: model`, where it is the model group that serves."""
        if self.per is Per.USER:
            return caller.user_id or ""
        if self.per is Per.TEAM:
            return caller.team_id or ""
        return (caller.key_hash or "") if self.per is Per.KEY else ""

    def described(self) -> Mapping[str, str | list[str]]:
        """The scopes that narrow, in an order that does not depend on how they were written down."""
        scopes = {
            "users": self.users,
            "teams": self.teams,
            "groups": self.groups,
            "keys": self.keys,
            "task_types": self.task_types,
            "models": self.models,
        }
        said: dict[str, str | list[str]] = {name: sorted(names) for name, names in scopes.items() if names}
        return said if self.per is None else {**said, "per": self.per.value}


def revision(coverage: Coverage, periods: Mapping[str, str | int]) -> str:
    """Eight hex digits that change when a budget covers other requests or begins its periods elsewhere (`periods` as
    `Calendar.described` says), and by nothing else: accounts of another revision are other accounts."""
    text = orjson.dumps({**coverage.described(), **periods}, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(text).hexdigest()[:8]


def bare_hash(key: str) -> str:
    """A key's hash as callers have it, without the `sha256:` that may be written before it."""
    return key.removeprefix("sha256:")
