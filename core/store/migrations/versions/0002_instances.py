"""Who uses the store; since when amendments wait; only the index that every report uses."""

import time

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    schema = "orchestration" if op.get_bind().dialect.name == "postgresql" else None
    op.create_table(
        "instances",
        sa.Column("instance", sa.Text, primary_key=True),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("started_ms", sa.BigInteger, nullable=False),
        sa.Column("seen_ms", sa.BigInteger, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("config_digest", sa.Text, nullable=False),
        sa.Column("config_version", sa.Integer, nullable=False),
        schema=schema,
    )
    op.add_column(
        "usage_amendments", sa.Column("since_ms", sa.BigInteger, nullable=False, server_default="0"), schema=schema
    )
    # What waits already starts waiting now.
    amendments = sa.table("usage_amendments", sa.column("since_ms"), schema=schema)
    op.execute(amendments.update().values(since_ms=int(time.time() * 1000)))
    for name in ("key_time", "user_time", "team_time", "call"):
        op.drop_index(f"usage_events_{name}", "usage_events", schema=schema)
