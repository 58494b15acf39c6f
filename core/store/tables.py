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
    Column("since_ms", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

instances = Table(
    "instances",
    metadata,
    # A row for each worker that lives, or died within the last day.
    Column("instance", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started_ms", BigInteger, nullable=False),
    Column("seen_ms", BigInteger, nullable=False),
    Column("version", Text, nullable=False),
    Column("config_digest", Text, nullable=False),
    Column("config_version", Integer, nullable=False),
)

audit_records = Table(
    "audit_records",
    metadata,
    # What core/audit.py describes. Triggers of the migration refuse to change or delete a row.
    Column("chain", Text, primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("id", Text, nullable=False),
    Column("time_ms", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("version", Text),
    Column("reason", Text),
    Column("outcome", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("previous_hash", Text, nullable=False),
    Column("hash", Text, nullable=False),
)

Index("audit_records_id", audit_records.c.id, unique=True)
Index("audit_records_time", audit_records.c.time_ms, audit_records.c.chain, audit_records.c.seq)

# The only index of usage: every report is about a period. One on who asked would be a page to read and write for each
# event, in no order, which halves what SQLite can take.
Index("usage_events_time", usage_events.c.time_ms)
