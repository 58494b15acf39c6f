"""The history of the tables. `upgrade_to_head` runs what is missing; a new file in versions/ must move HEAD."""

import logging
from pathlib import Path

from sqlalchemy import Connection, text
from sqlalchemy.schema import CreateSchema

from core.errors import StoreError
from core.store.tables import SCHEMA

HEAD = "0008"
"""The newest revision. Named here so that a start with nothing to do need not import alembic."""


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
