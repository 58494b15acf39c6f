"""The lock that says: state in memory is right, because nobody else writes to this store."""

import fcntl
import os
import socket
from pathlib import Path
from typing import Protocol

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from core.errors import StoreError, StoreLocked
from core.store.connection import AsyncConnection
from core.store.engine import Store
from core.store.errors import plain_reason

_KEY = 0x6C6C6D02


class StoreLock(Protocol):
    """Held until `release`, or until the process ends in whatever way."""

    async def held(self) -> bool:
        """Whether it is still ours (PostgreSQL drops it with the connection)."""
        ...

    async def release(self) -> None: ...


async def acquire_single_writer_lock(store: Store, owner: str) -> StoreLock:
    """Take the lock for `owner`, a name people recognise. Raises StoreLocked, which says who has it."""
    if not store.is_sqlite:
        return await _PostgresqlLock.take(store, owner)
    if store.url.file is None:
        return _NoLock()
    return _FileLock.take(store, store.url.file, owner)


def _locked(store: Store, holder: str) -> StoreLocked:
    return StoreLocked(
        f"the store {store.url} is already in use by {holder}, and shared state is in memory, which only one "
        "worker can have: stop the other one, or set REDIS_URL (shared_state.url) for all of them"
    )


class _NoLock:
    """For a database in memory, which nobody else can reach."""

    async def held(self) -> bool:
        return True

    async def release(self) -> None:
        return


class _FileLock:
    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd

    @classmethod
    def take(cls, store: Store, file: Path, owner: str) -> "_FileLock":
        path = file.with_name(file.name + ".lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"the lock file {path} cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 1000, 0).decode(errors="replace").strip() or "another process"
            os.close(fd)
            raise _locked(store, holder) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{owner} (pid {os.getpid()} on {socket.gethostname()})\n".encode(), 0)
        return cls(fd)

    async def held(self) -> bool:
        return self._fd is not None

    async def release(self) -> None:
        # The file stays: removing it would let two processes lock two files of the same name.
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class _PostgresqlLock:
    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    @classmethod
    async def take(cls, store: Store, owner: str) -> "_PostgresqlLock":
        connection: AsyncConnection | None = None
        try:
            connection = await store.engine.connect()
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            name = f"{owner} (pid {os.getpid()} on {socket.gethostname()})"
            await connection.execute(text("SELECT set_config('application_name', :name, false)"), {"name": name})
            taken = (await connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _KEY})).scalar()
            if not taken:
                raise _locked(store, await cls._holder(connection))
        except BaseException as error:
            if connection is not None:
                await connection.invalidate()
                await connection.close()
            if isinstance(error, (SQLAlchemyError, OSError)):
                raise StoreError(f"the store {store.url} could not be locked: {plain_reason(error)}") from error
            raise
        return cls(connection)

    @staticmethod
    async def _holder(connection: AsyncConnection) -> str:
        statement = (
            "SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid "
            "WHERE l.locktype = 'advisory' AND l.granted AND l.objid = :key AND l.database = "
            "(SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        return (await connection.execute(text(statement), {"key": _KEY})).scalar() or "another process"

    async def held(self) -> bool:
        if self._connection.closed or self._connection.invalidated:
            return False
        # Not "try again": the lock counts how often it was taken, and another may have had it in between.
        statement = (
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objid = :key "
            "AND pid = pg_backend_pid()"
        )
        try:
            return bool((await self._connection.execute(text(statement), {"key": _KEY})).scalar())
        except (SQLAlchemyError, OSError):
            return False

    async def release(self) -> None:
        # The connection is thrown away, not returned to the pool: the lock ends with it.
        await self._connection.invalidate()
        await self._connection.close()
