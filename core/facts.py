"""What conditions of rules and experiments may look at: the variables, and their values for one request.

A variable whose value is not known is null: equal to null and to nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any

from core.context import LOWEST_PRIORITY, Need, RequestContext

if TYPE_CHECKING:
    from cel import Context

LONGEST = 1024
"""Of a longer text, expressions see this many characters; so does every condition of one in metadata or headers."""

WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
MAPS = ("metadata", "headers")
"""Variables that are looked into by a name that is written out: `metadata.app`, `headers['x-app']`."""


class Kind(StrEnum):
    """What a variable's values are."""

    TEXT = "text"
    NUMBER = "whole number"
    FLAG = "true or false"
    LIST = "list of texts"
    TIME = "time"
    PLAIN = "text, number, true or false"


@dataclass(frozen=True, slots=True)
class Variable:
    """A name that conditions may use. `values` are the only ones it has, where they can be told."""

    kind: Kind
    description: str
    values: tuple[str, ...] | range | None = None


VARIABLES: Mapping[str, Variable] = {
    "task_type": Variable(Kind.TEXT, "The task type that the request names; null = none."),
    "user_tier": Variable(Kind.TEXT, "The tier of the caller; null = none."),
    "user_id": Variable(Kind.TEXT, "The user; null = not known."),
    "team_id": Variable(Kind.TEXT, "The team of the key; null = none."),
    "key_alias": Variable(Kind.TEXT, "The alias of the key; null = none."),
    "groups": Variable(Kind.LIST, "The groups that the caller is in."),
    "priority": Variable(
        Kind.NUMBER, "1 (first) to 10; null where neither request nor tier says.", range(1, LOWEST_PRIORITY + 1)
    ),
    "session_id": Variable(Kind.TEXT, "The session that the request names; null = none."),
    "model": Variable(Kind.TEXT, "The model or policy that was asked for."),
    "endpoint": Variable(Kind.TEXT, "What kind of request it is, such as chat_completions or embeddings."),
    "stream": Variable(Kind.FLAG, "Whether the answer is streamed."),
    "input_tokens": Variable(Kind.NUMBER, "About how many tokens the request has."),
    "output_limit": Variable(Kind.NUMBER, "The most output tokens that the client allows; null = no limit."),
    "has_images": Variable(Kind.FLAG, "Whether there are images in it."),
    "has_audio": Variable(Kind.FLAG, "Whether there is audio in it."),
    "has_documents": Variable(Kind.FLAG, "Whether there are documents in it."),
    "has_tools": Variable(Kind.FLAG, "Whether it offers tools."),
    "wants_json": Variable(Kind.FLAG, "Whether it asks for JSON."),
    "metadata": Variable(Kind.PLAIN, "The request's own metadata, by name: metadata.app; null where it is not there."),
    "headers": Variable(
        Kind.TEXT, "Headers of routing.headers, by lower-case name: headers['x-app']; null where it is not there."
    ),
    "hour": Variable(Kind.NUMBER, "The hour of the day, 0 to 23, in UTC.", range(24)),
    "weekday": Variable(Kind.TEXT, "monday to sunday, in UTC.", WEEKDAYS),
    "time": Variable(Kind.TIME, "When the request came, to compare with timestamp('2026-03-01T00:00:00Z')."),
}
"""Every variable by name."""

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIME = "time"
_THURSDAY = 3
"""The weekday of the epoch."""


def facts_of(context: RequestContext) -> dict[str, Any]:
    """The value of every variable; Any because each has its own type, `VARIABLES` says which."""
    return {**_at_once(context), _TIME: _moment(context.time_ms)}


def _moment(time_ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=time_ms)


def _at_once(context: RequestContext) -> dict[str, Any]:
    """All but the time, which few conditions look at and takes the longest to work out."""
    caller, needs, now = context.caller, context.needs, context.time_ms
    return {
        "task_type": context.task_type,
        "user_tier": caller.tier,
        "user_id": caller.user_id,
        "team_id": caller.team_id,
        "key_alias": caller.key_alias,
        "groups": caller.groups,
        "priority": context.priority,
        "session_id": context.session_id,
        "model": context.asked_model,
        "endpoint": context.endpoint,
        "stream": context.stream,
        "input_tokens": context.input_tokens,
        "output_limit": context.output_limit,
        "has_images": Need.IMAGES in needs,
        "has_audio": Need.AUDIO in needs,
        "has_documents": Need.DOCUMENTS in needs,
        "has_tools": Need.TOOLS in needs,
        "wants_json": Need.JSON in needs,
        "metadata": context.metadata,
        "headers": context.headers,
        "hour": now // _HOUR_MS % 24,
        "weekday": WEEKDAYS[(now // _DAY_MS + _THURSDAY) % 7],
    }


class Facts:
    """The facts of one request, converted for expressions at most once. For one thread.

    A reference is the name of a variable, or `metadata.NAME`, `headers.NAME`.
    """

    __slots__ = ("_context", "_references", "_time_ms", "values")

    def __init__(self, context: RequestContext) -> None:
        self.values = _at_once(context)
        """Of every variable but the time; Any because each has its own type."""
        self._time_ms = context.time_ms
        self._context: Context | None = None
        self._references: frozenset[str] = frozenset()

    def value(self, reference: str) -> Any:
        """The value of a reference, None where it is absent; Any because each has its own type."""
        values = self.values
        if reference in values:
            return values[reference]
        if reference == _TIME:
            values[_TIME] = _moment(self._time_ms)
            return values[_TIME]
        name, _, key = reference.partition(".")
        return _bounded(values[name].get(key))

    def cel(self, references: frozenset[str]) -> "Context":
        """What expressions are evaluated in, with at least these references in it under their `flat_name`."""
        context = self._context
        if context is not None and references <= self._references:
            return context
        from cel import Context

        self._references |= references
        variables = {flat_name(reference): _bounded(self.value(reference)) for reference in self._references}
        try:
            context = Context(variables=variables)
        except (ValueError, TypeError, OverflowError):
            # Text that is no valid Unicode, which JSON can smuggle in.
            context = Context(variables={name: _valid(value) for name, value in variables.items()})
        self._context = context
        return context


@cache
def flat_name(reference: str) -> str:
    """The name of a reference within expressions: `metadata.app` as one variable. Only configurations make these."""
    name, _, key = reference.partition(".")
    if not key:
        return name
    return f"{name}__" + "".join(c if c.isascii() and c.isalnum() else f"_{ord(c):x}_" for c in key)


def _bounded(value: Any) -> Any:
    if isinstance(value, str):
        return value[:LONGEST]
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return float("inf") if value > 0 else float("-inf")
    return value


def _valid(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, (list, tuple)):
        return [_valid(one) for one in value]  # pyright: ignore[reportUnknownVariableType]
    return _bounded(value) if isinstance(value, (int, float, datetime)) else None
