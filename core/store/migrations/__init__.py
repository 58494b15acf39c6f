"""The history of the tables. `upgrade_to_head` runs what is missing; a new file in versions/ must move HEAD.

An empty SQLite database gets the tables as they are in the end, from `sqlite.sql`: to load alembic and go through the
history takes longer than all else of ours at a first start. `python -m core.store.migrations.fresh` writes that file.
"""

import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Connection, text
from sqlalchemy.schema import CreateSchema

from core.errors import StoreError
from core.store.tables import SCHEMA

HEAD = "0008"
"""The newest revision. Named here so that a start with nothing to do need not import alembic."""


FRESH = Path(__file__).with_name("sqlite.sql")


def make_afresh(connection: Connection) -> bool:
    """Make the tables of the newest revision in an empty SQLite database, in this connection's transaction; whether
    this is one."""
    if connection.dialect.name != "sqlite":
        return False
    if connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar():
        return False
    for statement in _statements(FRESH.read_text()):
        connection.exec_driver_sql(statement)
    connection.exec_driver_sql("INSERT INTO alembic_version VALUES (?)", (HEAD,))
    return True


def _statements(script: str) -> Iterator[str]:
    """Each of them; a trigger has more in it."""
    begun = ""
    for line in script.splitlines(keepends=True):
        begun += line
        if sqlite3.complete_statement(begun):
            yield begun
            begun = ""


def upgrade_to_head(connection: Connection) -> None:
    """Run the missing revisions in this connection's transaction. Raises StoreError for tables of a newer version."""
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    if connection.dialect.name == "postgresql":
        # Asked first: an account that may not create schemas can still use one that was made for it.
        found = "SELECT 1 FROM information_schema.schemata WHERE schema_name = :name"
        if connection.execute(text(found), {"name": SCHEMA}).scalar() is None:
            connection.execute(CreateSchema(SCHEMA, if_not_exists=True))
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StoreError(
            f"the store has tables that this version does not know ({error}); run the version that made them"
        ) from error
