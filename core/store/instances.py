"""The workers that use a store, as each says of itself every few seconds."""

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from sqlalchemy import Connection, delete, select

from core.store.tables import instances
from core.store.writing import upserting

if TYPE_CHECKING:
    from core.store.engine import Store

_FORGOTTEN_AFTER_MS = 86_400_000


@dataclass(slots=True, frozen=True)
class Instance:
    """One worker process. Times in Unix milliseconds; `seen_ms` is when it last said so, filled in by the store."""

    instance: str
    host: str
    pid: int
    started_ms: int
    version: str
    config_digest: str
    config_version: int
    seen_ms: int = 0


class InstanceRepository:
    """The table of workers. Times are the writers' own: hosts whose clocks differ see each other as early or late."""

    def __init__(self, store: "Store") -> None:
        self._store = store

    async def beat(self, instance: Instance) -> None:
        """Say that this worker lives; workers not seen for a day are forgotten. Raises StoreError."""
        now = int(self._store.clock() * 1000)
        row = asdict(instance) | {"seen_ms": now}
        insert = upserting(instances, is_sqlite=self._store.is_sqlite).values(row)
        rest = {name: insert.excluded[name] for name in row if name != "instance"}
        upsert = insert.on_conflict_do_update(index_elements=["instance"], set_=rest)
        old = delete(instances).where(instances.c.seen_ms < now - _FORGOTTEN_AFTER_MS)

        def write(connection: Connection) -> None:
            connection.execute(upsert)
            connection.execute(old)

        await self._store.write(write)

    async def live(self, within_seconds: float) -> list[Instance]:
        """The workers seen in the last `within_seconds`, longest running first. Raises StoreError."""
        since = int((self._store.clock() - within_seconds) * 1000)
        columns = [instances.c[field.name] for field in fields(Instance)]
        seen = select(*columns).where(instances.c.seen_ms >= since)
        chosen = seen.order_by(instances.c.started_ms, instances.c.instance)
        return [Instance(*row) for row in await self._store.read(lambda connection: connection.execute(chosen).all())]
