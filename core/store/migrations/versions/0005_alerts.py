"""What people are told, whether each channel has taken it, and the floods that are being counted."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    schema = "orchestration" if op.get_bind().dialect.name == "postgresql" else None
    op.create_table(
        "alerts",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("dedupe_key", sa.Text, nullable=False),
        sa.Column("alert", sa.Text, nullable=False),
        sa.Column("times", sa.BigInteger, nullable=False),
        sa.Column("over_ms", sa.BigInteger),
        schema=schema,
    )
    op.create_index("alerts_key", "alerts", ["dedupe_key"], unique=True, schema=schema)
    op.create_index("alerts_seq", "alerts", ["seq"], unique=True, schema=schema)
    op.create_index("alerts_over", "alerts", ["over_ms"], schema=schema)
    op.create_table(
        "alert_deliveries",
        sa.Column("alert_id", sa.Text, primary_key=True),
        sa.Column("channel", sa.Text, primary_key=True),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_ms", sa.BigInteger, nullable=False),
        sa.Column("claimed_by", sa.Text),
        sa.Column("claimed_until_ms", sa.BigInteger, nullable=False),
        sa.Column("last_error", sa.Text),
        schema=schema,
    )
    op.create_index("alert_deliveries_state", "alert_deliveries", ["state", "next_ms"], schema=schema)
    order = ["channel", "subject", "seq", "state"]
    op.create_index("alert_deliveries_order", "alert_deliveries", order, schema=schema)
    op.create_table(
        "alert_floods",
        sa.Column("dedupe_key", sa.Text, primary_key=True),
        sa.Column("alert", sa.Text, nullable=False),
        sa.Column("channels", sa.Text, nullable=False),
        sa.Column("times", sa.BigInteger, nullable=False),
        sa.Column("until_ms", sa.BigInteger, nullable=False),
        schema=schema,
    )
