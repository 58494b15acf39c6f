"""What was done and who asked for it: a table that takes records and never gives one back."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_REFUSAL = "audit records are never changed or deleted"


def upgrade() -> None:
    postgresql = op.get_bind().dialect.name == "postgresql"
    schema = "orchestration" if postgresql else None
    op.create_table(
        "audit_records",
        sa.Column("chain", sa.Text, primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("time_ms", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("version", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("previous_hash", sa.Text, nullable=False),
        sa.Column("hash", sa.Text, nullable=False),
        schema=schema,
    )
    op.create_index("audit_records_id", "audit_records", ["id"], unique=True, schema=schema)
    op.create_index("audit_records_time", "audit_records", ["time_ms", "chain", "seq"], schema=schema)
    # Against mistakes. Whoever owns the table can drop these; the hash chain is for that.
    if postgresql:
        op.execute(
            "CREATE FUNCTION orchestration.refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{_REFUSAL}'; END $$"
        )
        op.execute(
            "CREATE TRIGGER audit_records_append_only BEFORE UPDATE OR DELETE OR TRUNCATE "
            "ON orchestration.audit_records FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_audit_change()"
        )
    else:
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER audit_records_no_{change.lower()} BEFORE {change} ON audit_records "
                f"BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
            )
