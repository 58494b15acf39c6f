"""The usage event: who asked for what, where it went and what it cost. Prompts and answers are not in it."""

from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field, fields
from enum import StrEnum
from operator import attrgetter, itemgetter
from typing import Any, Self, cast

import orjson


class UsageState(StrEnum):
    """How the token counts of an attempt or a request are known."""

    REPORTED = "reported"
    """The provider reported them."""
    ESTIMATED = "estimated"
    """Counted from what arrived, because the provider never got to report (a cut or abandoned stream)."""
    UNKNOWN = "unknown"
    """The request was sent and may have been billed, but nothing says how much; charged at its upper bound."""
    NONE = "none"
    """Nothing was billed: never sent, answered from a cache, or refused by the provider with an error status."""


@dataclass(slots=True)
class Attempt:
    """One try at one deployment. Several make up a request when it is retried or falls back.

    Times in milliseconds, money in nano-dollars. `accounts` are the keys of the accounts (`core.budgets.Account`) that
    its cost is charged to, `reserved_nano` is what was reserved in each of them before it was sent.
    """

    number: int
    model: str
    deployment: str | None = None
    provider: str | None = None
    provider_model: str | None = None
    started_ms: int = 0
    latency_ms: int = 0
    status: int = 0
    error_class: str | None = None
    usage: str = UsageState.NONE
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nano: int = 0
    accounts: tuple[str, ...] = ()
    reserved_nano: int = 0


@dataclass(slots=True)
class UsageEvent:
    """One request as the books keep it; `request_id` identifies it everywhere.

    `time_ms` is the arrival in Unix milliseconds; `cost_nano` is the sum over all attempts, of which `unknown_nano` was
    charged at an upper bound because the true usage is not known. `clamped` is the output limit (tokens of each
    answer) that was set where the client gave none or a higher one.

    `policy` was asked for, `variant` names the arms ("experiment/variant", several joined by commas), `route` says
    compactly why it went where it went, `traits` is JSON of what that looked at and no other field has, `settings` the
    digest of the configuration in force. `assignments` are those that count in experiments: experiment, variant, unit.
    """

    request_id: str
    time_ms: int
    endpoint: str
    status: int
    instance: str = ""
    litellm_call_id: str | None = None
    key_hash: str | None = None
    key_alias: str | None = None
    user_id: str | None = None
    team_id: str | None = None
    groups: tuple[str, ...] = ()
    tier: str | None = None
    task_type: str | None = None
    priority: int | None = None
    session_id: str | None = None
    asked_model: str | None = None
    used_model: str | None = None
    deployment: str | None = None
    provider: str | None = None
    provider_model: str | None = None
    variant: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    usage: str = UsageState.NONE
    cost_nano: int = 0
    unknown_nano: int = 0
    price_version: str | None = None
    cache: str | None = None
    fallbacks: int = 0
    error_class: str | None = None
    latency_ms: int = 0
    first_token_ms: int | None = None
    streamed: bool = False
    degraded: bool = False
    disconnected: bool = False
    clamped: int | None = None
    policy: str | None = None
    route: str | None = None
    traits: str | None = None
    settings: str | None = None
    assignments: tuple[tuple[str, str, str], ...] = ()
    attempts: list[Attempt] = field(default_factory=list[Attempt])

    def to_json(self) -> bytes:
        """One line of JSON (no newline inside), fields that have their default left out."""
        # One line of JSON for every request: attrgetter and `is` before `==` make it three times as fast as getattr.
        record = {
            name: value
            for (name, default), value in zip(_DEFAULTS, _values(self), strict=True)
            if value is not default and value != default
        }
        line = orjson.dumps(record)
        if len(self.attempts) > 1:
            # Many attempts are charged to no account. Inside a text, the quotes of this would be escaped.
            return line.replace(_NO_ACCOUNTS, b"}")
        # Attempts come last; searching the line for the one would take half as long as all the rest.
        return line[:-_NO_ACCOUNTS_AT_END] + b"}]}" if line.endswith(_NO_ACCOUNTS + b"]}") else line

    @classmethod
    def from_json(cls, line: bytes) -> Self:
        """The inverse of `to_json`; unknown fields of a newer version are dropped.

        Raises KeyError for a field that every event has, ValueError and TypeError for what is not JSON of an event.
        """
        # By position: looking up that many keyword arguments takes four times as long.
        event = cls(*_in_order(_OPTIONAL | orjson.loads(line)))
        event.groups = tuple(event.groups)
        event.assignments = tuple(map(_assignment, event.assignments)) if event.assignments else ()
        event.attempts = [Attempt(*_attempt_in_order(_ATTEMPT_OPTIONAL | attempt)) for attempt in _records(event)]
        for attempt in event.attempts:
            attempt.accounts = tuple(attempt.accounts)
        return event


_NO_ACCOUNTS = b',"accounts":[],"reserved_nano":0}'
_NO_ACCOUNTS_AT_END = len(_NO_ACCOUNTS + b"]}")
_DEFAULTS: tuple[tuple[str, object], ...] = tuple(
    (f.name, f.default if f.name != "attempts" else []) for f in fields(UsageEvent)
)
_OPTIONAL: dict[str, Any] = {name: default for name, default in _DEFAULTS if default is not MISSING}
_ATTEMPT_OPTIONAL: dict[str, Any] = {f.name: f.default for f in fields(Attempt) if f.default is not MISSING}
_values = attrgetter(*(name for name, _ in _DEFAULTS))
_in_order = itemgetter(*(name for name, _ in _DEFAULTS))
_attempt_in_order = itemgetter(*(f.name for f in fields(Attempt)))


def _assignment(given: Iterable[str]) -> tuple[str, str, str]:
    """As JSON gave it. Raises ValueError for what has not three parts."""
    experiment, variant, unit = given
    return experiment, variant, unit


def _records(event: UsageEvent) -> list[dict[str, Any]]:
    """The attempts of an event that is still as JSON gave it."""
    return cast(list[dict[str, Any]], event.attempts)
