"""What each budget's accounts have spent, what was granted to them, and which attempts they were charged for."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    schema = "orchestration" if op.get_bind().dialect.name == "postgresql" else None
    op.add_column("usage_events", sa.Column("clamped", sa.BigInteger), schema=schema)
    op.add_column("usage_attempts", sa.Column("accounts", sa.Text), schema=schema)
    # With a default, so that workers of the version before can go on writing.
    reserved = sa.Column("reserved_nano", sa.BigInteger, nullable=False, server_default="0")
    op.add_column("usage_attempts", reserved, schema=schema)
    op.create_table(
        "budget_spend",
        sa.Column("budget", sa.Text, primary_key=True),
        sa.Column("start_ms", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("member", sa.Text, primary_key=True),
        sa.Column("spent_nano", sa.BigInteger, nullable=False),
        sa.Column("base_nano", sa.BigInteger, nullable=False),
        sa.Column("extra_nano", sa.BigInteger, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        schema=schema,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "budget_adjustments",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("budget", sa.Text, nullable=False),
        sa.Column("start_ms", sa.BigInteger, nullable=False),
        sa.Column("member", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("amount_nano", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("time_ms", sa.BigInteger, nullable=False),
        schema=schema,
    )
    of_account = ["budget", "start_ms", "member"]
    op.create_index("budget_adjustments_account", "budget_adjustments", of_account, schema=schema)
    op.create_table(
        "budget_pauses",
        sa.Column("budget_id", sa.Text, primary_key=True),
        sa.Column("since_ms", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        schema=schema,
    )
    op.create_table(
        "budget_backfills",
        sa.Column("budget", sa.Text, primary_key=True),
        sa.Column("start_ms", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("done_ms", sa.BigInteger, nullable=False),
        schema=schema,
        sqlite_with_rowid=False,
    )
