"""What instances agree on about experiments: whose buckets are whose, and which arms guardrails have stopped."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson
from pydantic import JsonValue
from sqlalchemy import ColumnElement, Connection, Row, and_, func, select

from core.store.tables import experiment_closures, experiment_ranges
from core.store.writing import insert, upserting

if TYPE_CHECKING:
    from core.store.engine import Store

_ranges, _closures = experiment_ranges.c, experiment_closures.c


@dataclass(frozen=True, slots=True)
class StoredRanges:
    """Whose an experiment's buckets are from `time_ms` (Unix milliseconds) on. Versions count from 1."""

    experiment: str
    seed: str
    ranges: JsonValue
    version: int
    time_ms: int


@dataclass(frozen=True, slots=True)
class Closure:
    """An arm that was stopped, why and when. Unix milliseconds; `reopened_ms` is when it was opened again."""

    experiment: str
    variant: str
    reason: str
    time_ms: int
    reopened_ms: int | None = None


class AllocationRepository:
    """The tables of ranges and of stopped arms. Every method raises StoreError while the database cannot be used."""

    def __init__(self, store: "Store") -> None:
        self._store = store

    async def load(self) -> dict[str, StoredRanges]:
        """The ranges in force, by experiment."""
        newest = select(_ranges.experiment, func.max(_ranges.version).label("version")).group_by(_ranges.experiment)
        last = newest.subquery("newest")
        same = and_(_ranges.experiment == last.c.experiment, _ranges.version == last.c.version)
        chosen = select(experiment_ranges).join(last, same)
        rows = await self._store.read(lambda connection: connection.execute(chosen).all())
        return {row.experiment: _stored(row) for row in rows}

    async def history(self, experiment: str) -> list[StoredRanges]:
        """Every version of an experiment's ranges, oldest first."""
        chosen = select(experiment_ranges).where(_ranges.experiment == experiment).order_by(_ranges.version)
        async with self._store.reading() as connection:
            return [_stored(row) for row in await connection.execute(chosen)]

    async def put(self, experiment: str, seed: str, ranges: JsonValue, expected_version: int) -> bool:
        """Put new ranges in force, as version `expected_version` + 1, if that is the one in force now (0: none is).

        False where another instance was first: load what it has put.
        """
        now = int(self._store.clock() * 1000)
        row = (experiment, expected_version + 1, seed, orjson.dumps(ranges).decode(), now)
        newest = select(func.max(_ranges.version)).where(_ranges.experiment == experiment)

        def work(connection: Connection) -> bool:
            if (connection.execute(newest).scalar() or 0) != expected_version:
                return False
            # Of two that come at once, one waits for the other here and then finds its version taken.
            return insert(connection, experiment_ranges, [row]) > 0

        return await self._store.write(work)

    async def close(self, experiment: str, variant: str, reason: str) -> bool:
        """Stop an arm; False where it is stopped already, which stays as it is."""
        row = {"experiment": experiment, "variant": variant, "reason": reason}
        row |= {"time_ms": int(self._store.clock() * 1000), "reopened_ms": None}
        new = upserting(experiment_closures, is_sqlite=self._store.is_sqlite).values(row)
        closing = new.on_conflict_do_update(
            index_elements=[_closures.experiment, _closures.variant],
            set_={"reason": new.excluded.reason, "time_ms": new.excluded.time_ms, "reopened_ms": None},
            where=_closures.reopened_ms.is_not(None),
        )
        return await self._store.write(lambda connection: connection.execute(closing).rowcount) > 0

    async def reopen(self, experiment: str, variant: str) -> bool:
        """Let an arm have requests again; False where it is not stopped."""
        of_arm: ColumnElement[bool] = and_(_closures.experiment == experiment, _closures.variant == variant)
        stopped = and_(of_arm, _closures.reopened_ms.is_(None))
        opening = experiment_closures.update().where(stopped).values(reopened_ms=int(self._store.clock() * 1000))
        return await self._store.write(lambda connection: connection.execute(opening).rowcount) > 0

    async def closed(self) -> dict[str, dict[str, Closure]]:
        """The arms that are stopped now: experiment -> variant -> why."""
        found: dict[str, dict[str, Closure]] = {}
        stopped = select(experiment_closures).where(_closures.reopened_ms.is_(None))
        for row in await self._store.read(lambda connection: connection.execute(stopped).all()):
            found.setdefault(row.experiment, {})[row.variant] = Closure(*row)
        return found

    async def reopened(self, experiment: str) -> dict[str, Closure]:
        """The arms of an experiment that were stopped and are open again, by variant: what was measured before
        `reopened_ms` must not stop them a second time."""
        chosen = select(experiment_closures).where(
            _closures.experiment == experiment, _closures.reopened_ms.is_not(None)
        )
        async with self._store.reading() as connection:
            return {row.variant: Closure(*row) for row in await connection.execute(chosen)}


def _stored(row: Row[tuple[object, ...]]) -> StoredRanges:
    fields = row._mapping  # pyright: ignore[reportPrivateUsage]
    return StoredRanges(
        *(fields["experiment"], fields["seed"], orjson.loads(fields["ranges"]), fields["version"], fields["time_ms"])
    )
