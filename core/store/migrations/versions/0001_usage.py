"""Usage events, their attempts, and amendments that wait for their event."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _text(name: str, nullable: bool = True) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=nullable)


def _number(name: str, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=nullable)


def upgrade() -> None:
    schema = "orchestration" if op.get_bind().dialect.name == "postgresql" else None
    op.create_table(
        "usage_events",
        sa.Column("request_id", sa.Text, primary_key=True),
        _number("time_ms"),
        _text("endpoint", nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        _text("instance", nullable=False),
        _text("litellm_call_id"),
        _text("key_hash"),
        _text("key_alias"),
        _text("user_id"),
        _text("team_id"),
        _text("groups", nullable=False),
        _text("tier"),
        _text("task_type"),
        _number("priority", nullable=True),
        _text("session_id"),
        _text("asked_model"),
        _text("used_model"),
        _text("deployment"),
        _text("provider"),
        _text("provider_model"),
        _text("variant"),
        _number("input_tokens"),
        _number("output_tokens"),
        _number("cached_tokens"),
        _number("reasoning_tokens"),
        _text("usage", nullable=False),
        _number("cost_nano"),
        _number("unknown_nano"),
        _text("price_version"),
        _text("cache"),
        sa.Column("fallbacks", sa.Integer, nullable=False),
        _text("error_class"),
        _number("latency_ms"),
        _number("first_token_ms", nullable=True),
        sa.Column("streamed", sa.Boolean, nullable=False),
        sa.Column("degraded", sa.Boolean, nullable=False),
        sa.Column("disconnected", sa.Boolean, nullable=False),
        schema=schema,
    )
    op.create_table(
        "usage_attempts",
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        _text("model", nullable=False),
        _text("deployment"),
        _text("provider"),
        _text("provider_model"),
        _number("started_ms"),
        _number("latency_ms"),
        sa.Column("status", sa.Integer, nullable=False),
        _text("error_class"),
        _text("usage", nullable=False),
        _number("input_tokens"),
        _number("output_tokens"),
        _number("cost_nano"),
        schema=schema,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "usage_amendments",
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("amendment", sa.Text, primary_key=True),
        schema=schema,
        sqlite_with_rowid=False,
    )
    op.create_index("usage_events_time", "usage_events", ["time_ms"], schema=schema)
    for name, column in (("key", "key_hash"), ("user", "user_id"), ("team", "team_id")):
        present = sa.text(f"{column} IS NOT NULL")
        op.create_index(
            f"usage_events_{name}_time",
            "usage_events",
            [column, "time_ms"],
            schema=schema,
            postgresql_where=present,
            sqlite_where=present,
        )
    called = sa.text("litellm_call_id IS NOT NULL")
    op.create_index(
        "usage_events_call",
        "usage_events",
        ["litellm_call_id"],
        schema=schema,
        postgresql_where=called,
        sqlite_where=called,
    )
