"""SQLite: how its connections are set up, and the threads that write and look things up."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event

from core.store.connection import AsyncEngine, create_async_engine
from core.store.tables import SCHEMA
from core.store.url import StoreUrl

T = TypeVar("T")

READING = "orchestration_reading"
"""The execution option of a connection that will only read."""

_BUSY_SECONDS = 5
# The driver's own transactions are off (isolation_level None): it would begin them late and deferred.
_OPTIONS: dict[str, Any] = {
    "connect_args": {"timeout": _BUSY_SECONDS, "isolation_level": None},
    "execution_options": {"schema_translate_map": {SCHEMA: None}},
    "hide_parameters": True,
}


def sqlite_engine(url: StoreUrl) -> AsyncEngine:
    """For the event loop: reports, upgrades, whatever is not written all the time."""
    engine = create_async_engine(url.url, **_OPTIONS)
    _set_up(engine.sync_engine)
    return engine


class SqliteThread:
    """One connection in one thread, in which whole transactions run, one after the other: those that write, or with
    `reads` those that do not, which keep no writer waiting and need not wait for any."""

    def __init__(self, url: StoreUrl, *, reads: bool = False) -> None:
        self._url = url
        self._reads = reads
        self._thread = self._new_thread()

    def _new_thread(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, "orchestration-store-reads" if self._reads else "orchestration-store")

    @cached_property
    def _engine(self) -> Engine:
        engine = create_engine(self._url.url.set(drivername="sqlite+pysqlite"), **_OPTIONS)
        _set_up(engine)
        return engine.execution_options(**{READING: self._reads})

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction. One that is cancelled goes on to its end, and `close` waits for it."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work)

    async def close(self) -> None:
        """Finish what was begun, then close the connection; the next `run` opens another."""
        thread, self._thread = self._thread, self._new_thread()
        await asyncio.to_thread(thread.shutdown)
        if "_engine" in self.__dict__:
            self._engine.dispose()

    def _run(self, work: Callable[[Connection], T]) -> T:
        with self._engine.begin() as connection:
            return work(connection)


def _set_up(engine: Engine) -> None:
    def configure(connection: Any, _record: object) -> None:  # the DBAPI has no types
        cursor = connection.cursor()
        # FULL, not NORMAL: with NORMAL a power cut may take back commits, and by then the journal is deleted.
        cursor.execute("PRAGMA synchronous=FULL")
        # Room for the indices' pages (8 MiB), and a log long enough that each is copied back once for many batches.
        cursor.execute("PRAGMA cache_size=-8192")
        cursor.execute("PRAGMA wal_autocheckpoint=4000")
        cursor.close()

    def begin(connection: Connection) -> None:
        # A transaction that will write takes its lock at once; one that only reads must not.
        reads = connection.get_execution_options().get(READING, False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    event.listen(engine, "connect", configure)
    event.listen(engine, "begin", begin)
