"""The tables. Columns of the first two are the fields of `UsageEvent` and `Attempt`, in their order."""

from dataclasses import fields

from sqlalchemy import BigInteger, Boolean, Column, Double, Index, Integer, MetaData, Table, Text

from core.usage import Attempt, UsageEvent

SCHEMA = "orchestration"
"""Our own schema in PostgreSQL; SQLite has none and sees the bare table names."""

metadata = MetaData(schema=SCHEMA)

_NUMBERS = {
    *("time_ms", "input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens", "cost_nano", "unknown_nano"),
    *("latency_ms", "first_token_ms", "started_ms", "priority", "reserved_nano", "clamped"),
}
_SMALL_NUMBERS = {"status", "fallbacks", "number"}
_FLAGS = {"streamed", "degraded", "disconnected"}
_KINDS = ((_NUMBERS, BigInteger), (_SMALL_NUMBERS, Integer), (_FLAGS, Boolean))
_OPTIONAL = {
    *("litellm_call_id", "key_hash", "key_alias", "user_id", "team_id", "tier", "task_type", "priority", "session_id"),
    *("asked_model", "used_model", "deployment", "provider", "provider_model", "variant", "price_version", "cache"),
    *("error_class", "first_token_ms", "accounts", "clamped", "policy", "route", "traits", "settings"),
}
_ELSEWHERE = {"assignments", "attempts"}
"""Fields with tables of their own."""

EVENT_COLUMNS = tuple(field.name for field in fields(UsageEvent) if field.name not in _ELSEWHERE)
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
    *(_column(name, key=name == "number") for name in ATTEMPT_COLUMNS),  # accounts: a JSON array of keys, NULL for none
    sqlite_with_rowid=False,
)

usage_assignments = Table(
    "usage_assignments",
    metadata,
    # The requests of experiments' units that count, with the arm that each was assigned to.
    Column("experiment", Text, primary_key=True),
    Column("request_id", Text, primary_key=True),
    Column("variant", Text, nullable=False),
    Column("unit", Text, nullable=False),
    Column("time_ms", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

Index("usage_assignments_time", usage_assignments.c.experiment, usage_assignments.c.time_ms)

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

budget_spend = Table(
    "budget_spend",
    metadata,
    # A row for each account that money moved in. What is spent is spent_nano, charged by usage events that name the
    # account, and base_nano, found in older events; extra_nano is the sum of its adjustments.
    Column("budget", Text, primary_key=True),
    Column("start_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("member", Text, primary_key=True),
    Column("spent_nano", BigInteger, nullable=False),
    Column("base_nano", BigInteger, nullable=False),
    Column("extra_nano", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

budget_adjustments = Table(
    "budget_adjustments",
    metadata,
    # What changed the limit of one account: kind is grant, carry or reset.
    Column("id", Text, primary_key=True),
    Column("budget", Text, nullable=False),
    Column("start_ms", BigInteger, nullable=False),
    Column("member", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("amount_nano", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("time_ms", BigInteger, nullable=False),
)

Index(
    "budget_adjustments_account",
    *(budget_adjustments.c.budget, budget_adjustments.c.start_ms, budget_adjustments.c.member),
)

budget_pauses = Table(
    "budget_pauses",
    metadata,
    Column("budget_id", Text, primary_key=True),
    Column("since_ms", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
)

budget_backfills = Table(
    "budget_backfills",
    metadata,
    # The periods whose older events were summed into base_nano, and when that was last done.
    Column("budget", Text, primary_key=True),
    Column("start_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("done_ms", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

Index("audit_records_id", audit_records.c.id, unique=True)
Index("audit_records_time", audit_records.c.time_ms, audit_records.c.chain, audit_records.c.seq)

# The only index of usage: every report is about a period. One on who asked would be a page to read and write for each
# event, in no order, which halves what SQLite can take.
Index("usage_events_time", usage_events.c.time_ms)

# -- alerts ----------------------------------------------------------------------------------------------------------

alerts = Table(
    "alerts",
    metadata,
    # What was told, in the order of `seq`. `alert` is JSON; `times` how often it happened, for what comes in floods.
    Column("id", Text, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("dedupe_key", Text, nullable=False),
    Column("alert", Text, nullable=False),
    Column("times", BigInteger, nullable=False),
    Column("over_ms", BigInteger),
)

alert_deliveries = Table(
    "alert_deliveries",
    metadata,
    # A row for each alert and channel: pending | sent | dead. Who sends it holds a claim until `claimed_until_ms`.
    Column("alert_id", Text, primary_key=True),
    Column("channel", Text, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("subject", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_ms", BigInteger, nullable=False),
    Column("claimed_by", Text),
    Column("claimed_until_ms", BigInteger, nullable=False),
    Column("last_error", Text),
)

alert_floods = Table(
    "alert_floods",
    metadata,
    # What happened since the last message about it, and when the next one is due. `channels` is a JSON array.
    Column("dedupe_key", Text, primary_key=True),
    Column("alert", Text, nullable=False),
    Column("channels", Text, nullable=False),
    Column("times", BigInteger, nullable=False),
    Column("until_ms", BigInteger, nullable=False),
)

Index("alerts_key", alerts.c.dedupe_key, unique=True)
Index("alerts_seq", alerts.c.seq, unique=True)
Index("alerts_over", alerts.c.over_ms)
Index("alert_deliveries_state", alert_deliveries.c.state, alert_deliveries.c.next_ms)
# Whether an earlier one of the same channel and subject waits, asked for each that is due.
Index(
    "alert_deliveries_order",
    *(alert_deliveries.c.channel, alert_deliveries.c.subject, alert_deliveries.c.seq, alert_deliveries.c.state),
)

overlay_versions = Table(
    "overlay_versions",
    metadata,
    # The newest row is in force. Older ones lose the whole overlay in time, and keep what was changed.
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("time_ms", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("change", Text, nullable=False),
    Column("overlay", Text),
)

# -- batches and background responses --------------------------------------------------------------------------------

batch_files = Table(
    "batch_files",
    metadata,
    # Files of batches by the id that clients know, whose they are, and what their lines can cost at most. `purpose` is
    # input or output; the columns after `model` are of inputs. `prices` names the prices that the bound was made with.
    Column("id", Text, primary_key=True),
    Column("purpose", Text, nullable=False),
    Column("key_hash", Text),
    Column("user_id", Text),
    Column("team_id", Text),
    Column("model", Text, nullable=False),
    Column("provider_model", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("lines", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("bound_nano", BigInteger, nullable=False),
    Column("unbounded", Text),
    Column("prices", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
)

batch_jobs = Table(
    "batch_jobs",
    metadata,
    # What goes on after its request: kind is batch or response. `request_id` is that of the usage event, which is
    # charged `reserved_nano` until it is known what the job cost (`done_ms`). Who asks about it holds a claim.
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("key_hash", Text),
    Column("user_id", Text),
    Column("team_id", Text),
    Column("model", Text, nullable=False),
    Column("deployment", Text),
    Column("provider_model", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("input_file", Text),
    Column("reserved_nano", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("next_ms", BigInteger, nullable=False),
    Column("claimed_until_ms", BigInteger, nullable=False),
    Column("done_ms", BigInteger),
)

Index("batch_jobs_next", batch_jobs.c.done_ms, batch_jobs.c.next_ms)

# -- routing and experiments -----------------------------------------------------------------------------------------

feedback = Table(
    "feedback",
    metadata,
    # What callers said about their answers: the last value for each metric, first said and last changed when, and the
    # key that said it last.
    Column("request_id", Text, primary_key=True),
    Column("metric", Text, primary_key=True),
    Column("value", Double, nullable=False),
    Column("time_ms", BigInteger, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
    Column("key_hash", Text),
    sqlite_with_rowid=False,
)

feedback_waiting = Table(
    "feedback_waiting",
    metadata,
    # Feedback on requests whose events had not arrived, one row for each that may turn out to be the owner. `giver` is
    # the key that said it, or the user where there is no key; `any_request` is set for administrators.
    Column("request_id", Text, primary_key=True),
    Column("metric", Text, primary_key=True),
    Column("giver", Text, primary_key=True),
    Column("value", Double, nullable=False),
    Column("time_ms", BigInteger, nullable=False),
    Column("key_hash", Text),
    Column("user_id", Text),
    Column("any_request", Boolean, nullable=False),
    sqlite_with_rowid=False,
)

Index("feedback_waiting_giver", feedback_waiting.c.giver)

settings_versions = Table(
    "settings_versions",
    metadata,
    # What decided about requests, by the digest that their events carry.
    Column("digest", Text, primary_key=True),
    Column("first_ms", BigInteger, nullable=False),
    Column("document", Text, nullable=False),
)

experiment_ranges = Table(
    "experiment_ranges",
    metadata,
    # Whose an experiment's buckets are. The newest version is in force; the older ones say what was in force when.
    Column("experiment", Text, primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("seed", Text, nullable=False),
    Column("ranges", Text, nullable=False),
    Column("time_ms", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

experiment_closures = Table(
    "experiment_closures",
    metadata,
    # Arms that a guardrail has stopped; one that was opened again keeps its row.
    Column("experiment", Text, primary_key=True),
    Column("variant", Text, primary_key=True),
    Column("reason", Text, nullable=False),
    Column("time_ms", BigInteger, nullable=False),
    Column("reopened_ms", BigInteger),
    sqlite_with_rowid=False,
)
