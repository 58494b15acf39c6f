"""Alembic's entry: runs in the transaction that `upgrade_to_head` gives it."""

from alembic import context
from sqlalchemy import Connection

from core.store.tables import SCHEMA, metadata

connection: Connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    version_table_schema=SCHEMA if connection.dialect.name == "postgresql" else None,
)
context.run_migrations()
