"""How requests were decided about, what they count for in experiments, what was said of them, what was agreed on."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    schema = "orchestration" if op.get_bind().dialect.name == "postgresql" else None
    for name in ("policy", "route", "traits", "settings"):
        op.add_column("usage_events", sa.Column(name, sa.Text), schema=schema)
    op.create_table(
        "usage_assignments",
        sa.Column("experiment", sa.Text, primary_key=True),
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("variant", sa.Text, nullable=False),
        sa.Column("unit", sa.Text, nullable=False),
        sa.Column("time_ms", sa.BigInteger, nullable=False),
        schema=schema,
        sqlite_with_rowid=False,
    )
    op.create_index("usage_assignments_time", "usage_assignments", ["experiment", "time_ms"], schema=schema)
    op.create_table(
        "feedback",
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("metric", sa.Text, primary_key=True),
        sa.Column("value", sa.Double, nullable=False),
        sa.Column("time_ms", sa.BigInteger, nullable=False),
        sa.Column("updated_ms", sa.BigInteger, nullable=False),
        sa.Column("key_hash", sa.Text),
        schema=schema,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "feedback_waiting",
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("metric", sa.Text, primary_key=True),
        sa.Column("giver", sa.Text, primary_key=True),
        sa.Column("value", sa.Double, nullable=False),
        sa.Column("time_ms", sa.BigInteger, nullable=False),
        sa.Column("key_hash", sa.Text),
        sa.Column("user_id", sa.Text),
        sa.Column("any_request", sa.Boolean, nullable=False),
        schema=schema,
        sqlite_with_rowid=False,
    )
    op.create_index("feedback_waiting_giver", "feedback_waiting", ["giver"], schema=schema)
    op.create_table(
        "settings_versions",
        sa.Column("digest", sa.Text, primary_key=True),
        sa.Column("first_ms", sa.BigInteger, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        schema=schema,
    )
    op.create_table(
        "experiment_ranges",
        sa.Column("experiment", sa.Text, primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("seed", sa.Text, nullable=False),
        sa.Column("ranges", sa.Text, nullable=False),
        sa.Column("time_ms", sa.BigInteger, nullable=False),
        schema=schema,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "experiment_closures",
        sa.Column("experiment", sa.Text, primary_key=True),
        sa.Column("variant", sa.Text, primary_key=True),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("time_ms", sa.BigInteger, nullable=False),
        sa.Column("reopened_ms", sa.BigInteger),
        schema=schema,
        sqlite_with_rowid=False,
    )
