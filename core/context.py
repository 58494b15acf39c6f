"""Who asks, for what: everything later decisions may look at, worked out once per request."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, cast

from core.errors import BadField
from core.record import record

LABEL_LENGTH = 128
"""The longest task type, session id, user id or tier a request may name."""

LOWEST_PRIORITY = 10
"""Priorities run from 1, served first, to this."""


@record
class Principal:
    """What authentication knows about the key behind a request, before our settings have a say.

    `key_metadata` can be written by ordinary users through LiteLLM's own API, `team_metadata` only by administrators.
    """

    key_hash: str | None = None
    key_alias: str | None = None
    user_id: str | None = None
    team_id: str | None = None
    key_metadata: Mapping[str, Any] | None = None
    team_metadata: Mapping[str, Any] | None = None
    is_admin: bool = False


@record
class Caller:
    """A principal as our settings see it.

    `tiers` must all permit a model: the granted tier, and a narrower one that the key's own metadata asks for. `tier`
    is the one of them that decides, by name.
    """

    key_hash: str | None = None
    key_alias: str | None = None
    user_id: str | None = None
    team_id: str | None = None
    groups: tuple[str, ...] = ()
    tier: str | None = None
    tiers: tuple[str, ...] = ()
    trusted: bool = False
    is_admin: bool = False


class Need(StrEnum):
    """What a request asks of a model that not every model can do."""

    IMAGES = "images"
    AUDIO = "audio"
    DOCUMENTS = "documents"
    TOOLS = "tools"
    JSON = "json"


@record
class RequestContext:
    """One request. Bounds are upper bounds of the request as it stands: `input_bytes` bounds the input tokens of
    byte-level tokenizers; `output_limit` is what the client allows in total over all copies, None where it sets no
    limit.

    `input_tokens` is an estimate, for decisions that need no bound. `metadata` is the client's own, its plain values
    alone; `headers` are those that the configuration lets conditions look at. `time_ms` is the arrival, Unix
    milliseconds.
    """

    request_id: str
    endpoint: str
    caller: Caller
    asked_model: str
    task_type: str | None = None
    priority: int | None = None
    session_id: str | None = None
    stream: bool = False
    input_bytes: int = 0
    output_limit: int | None = None
    input_tokens: int = 0
    needs: frozenset[Need] = frozenset()
    metadata: Mapping[str, str | int | float | bool] = field(default_factory=dict[str, str | int | float | bool])
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    time_ms: int = 0


@dataclass(frozen=True, slots=True)
class Claims:
    """What the request says about itself, checked for form but not yet for the right to say it."""

    task_type: str | None = None
    priority: int | None = None
    session_id: str | None = None
    user_id: str | None = None
    user_tier: str | None = None


NOTHING_CLAIMED = Claims()
_HEADERS: dict[bytes, str] = {
    b"x-task-type": "task_type",
    b"x-priority": "priority",
    b"x-session-id": "session_id",
    b"x-user-id": "user_id",
    b"x-user-tier": "user_tier",
}
_METADATA = ("task_type", "priority", "session_id", "user_id", "user_tier")


def read_claims(headers: list[tuple[bytes, bytes]], metadata: Mapping[str, Any] | None) -> Claims:
    """Take the claims out of ASGI headers (lower-case names) and the body's `metadata`; a header wins.

    Raises `BadField` for a value of the wrong form, naming where it stood.
    """
    found: dict[str, Any] | None = None
    if metadata:
        for name in _METADATA:
            value = metadata.get(name)
            if value is not None:
                found = found or {}
                found[name] = _checked(name, value, f"metadata.{name}")
    for header, raw in headers:
        name = _HEADERS.get(header) if header[:2] == b"x-" else None
        if name is not None:
            found = found or {}
            found[name] = _checked(name, raw.decode("latin-1").strip(), header.decode())
    return Claims(**found) if found else NOTHING_CLAIMED


def _checked(name: str, value: Any, where: str) -> Any:
    if name == "priority":
        return _priority(value, where)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadField(f"{where} must be a text of 1 to {LABEL_LENGTH} characters, not {type(value).__name__}.")
    text = str(value)
    if not 0 < len(text) <= LABEL_LENGTH or not text.isprintable():
        raise BadField(f"{where} must be a text of 1 to {LABEL_LENGTH} printable characters, not {text[:40]!r}.")
    return text


def _priority(value: Any, where: str) -> int:
    try:
        number = int(value) if isinstance(value, int | str) and not isinstance(value, bool) else 0
    except ValueError:
        number = 0
    if not 1 <= number <= LOWEST_PRIORITY:
        raise BadField(f"{where} must be a whole number from 1 (first) to {LOWEST_PRIORITY}, not {str(value)[:40]!r}.")
    return number


_OUTPUT_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_COPIES = ("n", "best_of")


def output_limit(body: Mapping[str, Any]) -> int | None:
    """The most output tokens `body` allows in total: the largest of its limits times its largest number of copies.

    `extra_body` reaches the provider beside the fields of the body, so its limits count as well. None where there is no
    limit that can be read.
    """
    extra = body.get("extra_body")
    layers = (body, cast("Mapping[str, Any]", extra)) if isinstance(extra, dict) else (body,)
    limit = _largest(layers, _OUTPUT_LIMITS)
    return None if limit is None else limit * (_largest(layers, _COPIES) or 1)


def _largest(layers: tuple[Mapping[str, Any], ...], names: tuple[str, ...]) -> int | None:
    largest: int | None = None
    for layer in layers:
        for name in names:
            value = layer.get(name)
            if isinstance(value, int) and value > 0 and (largest is None or value > largest):
                largest = value
    return largest
