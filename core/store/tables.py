"""The tables. Columns of the first two are the fields of `UsageEvent` and `Attempt`, in their order."""

from dataclasses import fields

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, MetaData, Table, Text

from core.usage import Attempt, UsageEvent

SCHEMA = "orchestration"
"""Our own schema in PostgreSQL; SQLite has none and sees the bare table names."""

metadata = MetaData(schema=SCHEMA)

_NUMBERS = {
    *("time_ms", "input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens", "cost_nano", "unknown_nano"),
    *("latency_ms", "first_token_ms", "started_ms", "priority"),
}
_SMALL_NUMBERS = {"status", "fallbacks", "number"}
_FLAGS = {"streamed", "degraded", "disconnected"}
_KINDS = ((_NUMBERS, BigInteger), (_SMALL_NUMBERS, Integer), (_FLAGS, Boolean))
_OPTIONAL = {
    *("litellm_call_id", "key_hash", "key_alias", "user_id", "team_id", "tier", "task_type", "priority", "session_id"),
    *("asked_model", "used_model", "deployment", "provider", "provider_model", "variant", "price_version", "cache"),
    *("error_class", "first_token_ms"),
}

EVENT_COLUMNS = tuple(field.name for field in fields(UsageEvent) if field.name != "attempts")
ATTEMPT_COLUMNS = tuple(field.name for field in fields(Attempt))


def _column(name: str, key: bool = False) -> Column[object]:
    kind = next((kind for names, kind in _KINDS if name in names), Text)
    return Column(name, kind, primary_key=key, nullable=name in _OPTIONAL and not key)


usage_events = Table(
    "usage_events",
    metadata,
    *(_column(name, key=name == "request_id") for name in EVENT_COLUMNS),  # groups: a JSON array of names
)

usage_attempts = Table(
    "usage_attempts",
    metadata,
    Column("request_id", Text, primary_key=True),
    *(_column(name, key=name == "number") for name in ATTEMPT_COLUMNS),
    sqlite_with_rowid=False,
)

usage_amendments = Table(
    "usage_amendments",
    metadata,
    # Amendments whose event has not arrived: it is still in the journal of another worker.
    Column("request_id", Text, primary_key=True),
    Column("amendment", Text, primary_key=True),
    sqlite_with_rowid=False,
)

Index("usage_events_time", usage_events.c.time_ms)
for _name, _who in (("key", "key_hash"), ("user", "user_id"), ("team", "team_id")):
    _present = usage_events.c[_who].is_not(None)
    Index(
        f"usage_events_{_name}_time",
        usage_events.c[_who],
        usage_events.c.time_ms,
        postgresql_where=_present,
        sqlite_where=_present,
    )
_called = usage_events.c.litellm_call_id.is_not(None)
Index("usage_events_call", usage_events.c.litellm_call_id, postgresql_where=_called, sqlite_where=_called)
