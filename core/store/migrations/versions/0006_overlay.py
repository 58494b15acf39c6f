"""What administrators change at run time: a row for each version of the overlay."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "overlay_versions",
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("time_ms", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("change", sa.Text, nullable=False),
        sa.Column("overlay", sa.Text),
        schema="orchestration" if op.get_bind().dialect.name == "postgresql" else None,
    )
