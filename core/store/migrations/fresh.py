"""Writes `sqlite.sql`: what the revisions make of an empty SQLite database.

python -m core.store.migrations.fresh
"""

from sqlalchemy import Connection, create_engine

from core.store.migrations import FRESH, upgrade_to_head


def migrated() -> str:
    """The tables, indices and triggers after all revisions, as a script."""
    engine = create_engine("sqlite://", execution_options={"schema_translate_map": {"orchestration": None}})
    with engine.begin() as connection:
        upgrade_to_head(connection)
        return script_of(connection)


def script_of(connection: Connection) -> str:
    """What a SQLite database has of them, in the order in which they were made."""
    rows = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid")
    tidy = ("\n".join(line.strip() for line in sql.strip().splitlines()) for sql in rows.scalars())
    return "\n\n".join(f"{sql};" for sql in tidy) + "\n"


if __name__ == "__main__":
    FRESH.write_text(migrated())
