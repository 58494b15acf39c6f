"""Batches and background responses: files with what their lines can cost, and jobs that outlive their request."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    schema = "orchestration" if op.get_bind().dialect.name == "postgresql" else None
    op.create_table(
        "batch_files",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("key_hash", sa.Text),
        sa.Column("user_id", sa.Text),
        sa.Column("team_id", sa.Text),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("provider_model", sa.Text, nullable=False),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("lines", sa.BigInteger, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("bound_nano", sa.BigInteger, nullable=False),
        sa.Column("unbounded", sa.Text),
        sa.Column("prices", sa.Text, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        schema=schema,
    )
    op.create_table(
        "batch_jobs",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("key_hash", sa.Text),
        sa.Column("user_id", sa.Text),
        sa.Column("team_id", sa.Text),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("deployment", sa.Text),
        sa.Column("provider_model", sa.Text, nullable=False),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("input_file", sa.Text),
        sa.Column("reserved_nano", sa.BigInteger, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("next_ms", sa.BigInteger, nullable=False),
        sa.Column("claimed_until_ms", sa.BigInteger, nullable=False),
        sa.Column("done_ms", sa.BigInteger),
        schema=schema,
    )
    op.create_index("batch_jobs_next", "batch_jobs", ["done_ms", "next_ms"], schema=schema)
