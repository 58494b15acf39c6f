"""The admin overlay in the store: a row for each version, the newest in force, all of them kept."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection, func, select, update

from core.errors import StoreError
from core.overlay import Overlay
from core.store.tables import overlay_versions
from core.store.writing import upserting

if TYPE_CHECKING:
    from core.store.engine import Store

_WHOLE_KEPT = 100
"""Versions that keep the whole overlay; of those before, what was changed is kept."""
_columns = overlay_versions.c


@dataclass(frozen=True, slots=True)
class OverlayVersion:
    """A version in the history: when (Unix milliseconds), by whom, and what was changed, as JSON."""

    version: int
    time_ms: int
    actor: str
    change: str


class OverlayRepository:
    """The table of the overlay's versions. Every method raises StoreError while the database cannot be used."""

    def __init__(self, store: "Store") -> None:
        self._store = store

    async def version(self) -> int:
        """The newest version; 0 where there is none."""
        newest = select(func.max(_columns.version))
        return await self._store.read(lambda connection: connection.execute(newest).scalar()) or 0

    async def latest(self) -> Overlay:
        """The newest overlay; an empty one of version 0 where there is none."""
        newest = select(_columns.version, _columns.overlay).order_by(_columns.version.desc()).limit(1)
        row = await self._store.read(lambda connection: connection.execute(newest).first())
        if row is None:
            return Overlay()
        try:
            return Overlay.parse(row.version, row.overlay)
        except (ValueError, TypeError) as error:
            raise StoreError(
                f"version {row.version} of the admin overlay in the store cannot be read: {error}"
            ) from error

    async def write(self, overlay: Overlay, *, actor: str, change: str) -> bool:
        """Make `overlay` the newest version, if the one before it is the newest now; whether it was.

        `change` says what was changed, as JSON.
        """
        row = {
            "version": overlay.version,
            "time_ms": int(self._store.clock() * 1000),
            "actor": actor.encode("utf-8", "replace").decode().replace("\0", "\ufffd"),
            "change": change,
            "overlay": overlay.text,
        }
        insert = upserting(overlay_versions, is_sqlite=self._store.is_sqlite).values(row)
        # Of two that come at once, one waits for the other here and then finds its version taken.
        guarded = insert.on_conflict_do_nothing(index_elements=["version"])
        old = (_columns.version <= overlay.version - _WHOLE_KEPT) & _columns.overlay.is_not(None)
        forget = update(overlay_versions).where(old).values(overlay=None)

        def work(connection: Connection) -> bool:
            newest = connection.execute(select(func.max(_columns.version))).scalar() or 0
            if newest != overlay.version - 1 or connection.execute(guarded).rowcount != 1:
                return False
            connection.execute(forget)
            return True

        return await self._store.write(work)

    async def history(self, limit: int, before: int | None = None) -> list[OverlayVersion]:
        """Up to `limit` versions, newest first, of those before version `before`."""
        names = (_columns.version, _columns.time_ms, _columns.actor, _columns.change)
        chosen = select(*names).order_by(_columns.version.desc()).limit(limit)
        if before is not None:
            chosen = chosen.where(_columns.version < before)
        async with self._store.reading() as connection:
            return [OverlayVersion(*row) for row in await connection.execute(chosen)]
