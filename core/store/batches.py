"""Files of batches, and jobs that go on after their request: whose they are, and what they can cost at most."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, delete, or_, select, update

from core.context import Caller
from core.store.tables import batch_files, batch_jobs
from core.store.writing import insert

if TYPE_CHECKING:
    from core.store.engine import Store

_KEPT_MS = 90 * 86_400_000
"""How long files, and jobs that are over, are known."""
_files, _jobs = batch_files.c, batch_jobs.c


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a file or a job is."""

    key_hash: str | None = None
    user_id: str | None = None
    team_id: str | None = None

    @classmethod
    def of(cls, caller: Caller) -> "Owner":
        return cls(caller.key_hash, caller.user_id, caller.team_id)

    def is_(self, caller: Caller) -> bool:
        """Whether the caller is the owner: the same user; where one of them is none, the same key, or for what no user
        owns, the same team. A trusted key that speaks for another user is another owner."""
        if self.user_id is not None and caller.user_id is not None:
            return self.user_id == caller.user_id
        if self.key_hash is not None and self.key_hash == caller.key_hash:
            return True
        return self.user_id is None and self.team_id is not None and self.team_id == caller.team_id


class Purpose(StrEnum):
    """What a file is for."""

    INPUT = "input"
    OUTPUT = "output"


@dataclass(frozen=True, slots=True)
class BatchFile:
    """A file as its lines were when it was uploaded; `id` is the one that clients know.

    All lines ask the model group `model`, and the provider for `provider_model`, at the same `endpoint` (its path).
    `bound_nano` is the most that all of them can cost together, in nano-dollars; `unbounded` says why there is no such
    sum after all. `prices` names the prices it was made with, and changes with them. Outputs have an owner and a model.
    """

    id: str
    purpose: Purpose
    owner: Owner
    model: str
    provider_model: str = ""
    endpoint: str = ""
    lines: int = 0
    input_tokens: int = 0
    bound_nano: int = 0
    unbounded: str | None = None
    prices: str = ""
    created_ms: int = 0


class JobKind(StrEnum):
    """What goes on."""

    BATCH = "batch"
    RESPONSE = "response"


@dataclass(frozen=True, slots=True)
class Job:
    """A batch or a background response; `id` is the one that clients know, `request_id` that of its usage event.

    `reserved_nano` is what it is charged until it is known what it cost. Times in Unix milliseconds; `done_ms` says
    since when that is known, or given up.
    """

    id: str
    kind: JobKind
    request_id: str
    owner: Owner
    model: str
    deployment: str | None
    provider_model: str
    endpoint: str
    input_file: str | None
    reserved_nano: int
    status: str
    created_ms: int
    next_ms: int = 0
    claimed_until_ms: int = 0
    done_ms: int | None = None


class BatchRepository:
    """The tables of files and jobs. Every method raises StoreError while the database cannot be used."""

    def __init__(self, store: "Store") -> None:
        self._store = store
        self.kept = 0
        """How many jobs this worker has made known."""

    async def keep_files(self, files: Sequence[BatchFile]) -> None:
        """Know these files; those that are known stay as they are."""
        rows = [_row(file) for file in files]
        await self._store.write(lambda connection: insert(connection, batch_files, rows))

    async def file(self, file_id: str) -> BatchFile | None:
        async with self._store.reading() as connection:
            row = (await connection.execute(select(batch_files).where(_files.id == file_id))).mappings().first()
        return None if row is None else _file(row)

    async def files_of(self, caller: Caller, limit: int) -> list[BatchFile]:
        """The caller's own, newest first."""
        chosen = select(batch_files).where(_own(_files, caller)).order_by(_files.created_ms.desc(), _files.id)
        async with self._store.reading() as connection:
            rows = (await connection.execute(chosen.limit(limit))).mappings().all()
        return [_file(row) for row in rows]

    async def keep_job(self, job: Job) -> None:
        """Know this job; one that is known stays as it is."""
        await self._store.write(lambda connection: insert(connection, batch_jobs, [_row(job)]))
        self.kept += 1

    async def job(self, job_id: str) -> Job | None:
        async with self._store.reading() as connection:
            row = (await connection.execute(select(batch_jobs).where(_jobs.id == job_id))).mappings().first()
        return None if row is None else _job(row)

    async def jobs_of(self, caller: Caller, kind: JobKind, limit: int) -> list[Job]:
        """The caller's own, newest first."""
        chosen = select(batch_jobs).where(_own(_jobs, caller), _jobs.kind == kind)
        async with self._store.reading() as connection:
            rows = await connection.execute(chosen.order_by(_jobs.created_ms.desc(), _jobs.id).limit(limit))
            return [_job(row) for row in rows.mappings()]

    async def claim(self, now_ms: int, until_ms: int, limit: int = 20) -> list[Job]:
        """Jobs that it is time to ask about; nobody else gets them before `until_ms`."""
        due = and_(_jobs.done_ms.is_(None), _jobs.next_ms <= now_ms, _jobs.claimed_until_ms <= now_ms)
        chosen = select(batch_jobs).where(due).order_by(_jobs.next_ms).limit(limit)
        rows = await self._store.read(lambda connection: connection.execute(chosen).mappings().all())
        found = [_job(row) for row in rows]
        if not found:
            return []

        def work(connection: Connection) -> list[Job]:
            return [job for job in found if _changed(connection, and_(due, _jobs.id == job.id), until_ms)]

        return await self._store.write(work)

    async def any_open(self) -> bool:
        """Whether there is a job of which it is not known what it cost."""
        going_on = select(_jobs.id).where(_jobs.done_ms.is_(None)).limit(1)
        return await self._store.read(lambda connection: connection.execute(going_on).first()) is not None

    async def look_again(self, job_id: str, status: str, next_ms: int) -> None:
        """The job goes on: ask again at `next_ms`."""
        values = {"status": status, "next_ms": next_ms, "claimed_until_ms": 0}
        await self._update(job_id, values)

    async def finish(self, job_id: str, status: str, done_ms: int) -> None:
        """It is known what the job cost, or never will be."""
        await self._update(job_id, {"status": status, "done_ms": done_ms, "claimed_until_ms": 0})

    async def forget(self, now_ms: int) -> None:
        """Drop what is long over."""
        old = now_ms - _KEPT_MS

        def work(connection: Connection) -> None:
            connection.execute(delete(batch_jobs).where(_jobs.done_ms < old))
            connection.execute(delete(batch_files).where(_files.created_ms < old))

        await self._store.write(work)

    async def _update(self, job_id: str, values: Mapping[str, str | int]) -> None:
        changing = update(batch_jobs).where(_jobs.id == job_id, _jobs.done_ms.is_(None)).values(dict(values))
        await self._store.write(lambda connection: connection.execute(changing).rowcount)


def _changed(connection: Connection, where: ColumnElement[bool], until_ms: int) -> bool:
    return connection.execute(update(batch_jobs).where(where).values(claimed_until_ms=until_ms)).rowcount == 1


def _own(columns: Any, caller: Caller) -> ColumnElement[bool]:  # either table's columns
    """What `Owner.is_` says."""
    ways: list[ColumnElement[bool]] = []
    if caller.user_id is not None:
        ways.append(columns.user_id == caller.user_id)
    if caller.key_hash is not None:
        same = columns.key_hash == caller.key_hash
        ways.append(same if caller.user_id is None else and_(same, columns.user_id.is_(None)))
    if caller.team_id is not None:
        ways.append(and_(columns.user_id.is_(None), columns.team_id == caller.team_id))
    return or_(False, *ways)


def _row(record: BatchFile | Job) -> tuple[Any, ...]:
    """The values in the order of the table's columns: those of the record, the owner's three in its place."""
    values: list[Any] = []
    for field in fields(record):
        value = getattr(record, field.name)
        values += astuple(value) if isinstance(value, Owner) else [value]
    return tuple(values)


def _owned(row: RowMapping) -> dict[str, Any]:
    values = dict(row)
    owner = Owner(values.pop("key_hash"), values.pop("user_id"), values.pop("team_id"))
    return {**values, "owner": owner}


def _file(row: RowMapping) -> BatchFile:
    values = _owned(row)
    values["purpose"] = Purpose(values["purpose"])
    return BatchFile(**values)


def _job(row: RowMapping) -> Job:
    values = _owned(row)
    values["kind"] = JobKind(values["kind"])
    return Job(**values)
