"""The configurations that were in force, by digest, so that what was decided under them can be explained later."""

from typing import TYPE_CHECKING

from sqlalchemy import select

from core.store.tables import settings_versions
from core.store.writing import insert, without_nul

if TYPE_CHECKING:
    from core.store.engine import Store

_columns = settings_versions.c


class RoutingVersionRepository:
    """The table of configurations. Every method raises StoreError while the database cannot be used."""

    def __init__(self, store: "Store") -> None:
        self._store = store

    async def put(self, digest: str, document: str) -> bool:
        """Keep a configuration, JSON without anything secret; False where it is kept already, and stays as it is."""
        row = (digest, int(self._store.clock() * 1000), document)
        return await self._store.write(lambda connection: insert(connection, settings_versions, [row])) > 0

    async def of(self, digest: str) -> str | None:
        """The configuration with this digest; None where there is none."""
        chosen = select(_columns.document).where(_columns.digest == without_nul(digest))
        async with self._store.reading() as connection:
            return (await connection.execute(chosen)).scalar()
