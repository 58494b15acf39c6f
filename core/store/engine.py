"""A database with our tables in it: SQLite or PostgreSQL, opened, upgraded, asked, closed."""

import asyncio
import fcntl
import os
import sqlite3
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from core import child
from core.errors import StoreError
from core.store.connection import AsyncConnection, AsyncEngine, create_async_engine
from core.store.errors import RecordRefused, blames_the_values, plain_reason
from core.store.migrations import HEAD, make_afresh, upgrade_to_head
from core.store.sqlite import READING, SqliteThread, sqlite_engine
from core.store.tables import SCHEMA
from core.store.url import StoreUrl

if TYPE_CHECKING:
    from core.store.alerts import AlertRepository
    from core.store.allocations import AllocationRepository
    from core.store.audit import AuditRepository
    from core.store.batches import BatchRepository
    from core.store.budgets import BudgetRepository
    from core.store.feedback import FeedbackRepository
    from core.store.instances import InstanceRepository
    from core.store.overlay import OverlayRepository
    from core.store.routing_versions import RoutingVersionRepository
    from core.store.usage import UsageRepository

T = TypeVar("T")

_UPGRADE_WITHIN = 60.0
_UPGRADE_LOCK = 0x6C6C6D01  # any number, the same in every version


class Store:
    """What lasts. Made by `open_store`; nothing is connected before the first use.

    Every failure of the database raises StoreError, which names the store without its password.
    """

    def __init__(self, url: StoreUrl, written: str, clock: Callable[[], float] = time.time) -> None:
        self.url = url
        self._written = written
        """As it was given, with its password."""
        self.clock = clock
        # A database in memory has the one connection, which is the event loop's.
        self._writer = SqliteThread(url) if url.file is not None else None
        self._reader = SqliteThread(url, reads=True) if url.file is not None else None
        try:
            self.engine: AsyncEngine = sqlite_engine(url) if url.is_sqlite else _postgresql_engine(url)
        except ModuleNotFoundError as error:
            extra = "postgres" if error.name == "asyncpg" else "a driver"
            raise StoreError(
                f"{url} needs {error.name}, which is not installed: pip install 'litellm-orchestration[{extra}]'"
            ) from error

    @property
    def is_sqlite(self) -> bool:
        return self.url.is_sqlite

    @cached_property
    def usage(self) -> "UsageRepository":
        """Usage events: written by the ledger, read by reports."""
        from core.store.usage import UsageRepository

        return UsageRepository(self)

    @cached_property
    def budgets(self) -> "BudgetRepository":
        """What budgets have spent and may spend; the ledger charges their accounts."""
        from core.store.budgets import BudgetRepository

        return BudgetRepository(self)

    @cached_property
    def instances(self) -> "InstanceRepository":
        """The workers that use this store."""
        from core.store.instances import InstanceRepository

        return InstanceRepository(self)

    @cached_property
    def audit(self) -> "AuditRepository":
        """What was done, and who asked for it."""
        from core.store.audit import AuditRepository

        return AuditRepository(self)

    @cached_property
    def alerts(self) -> "AlertRepository":
        """What people are told, and whether it has arrived."""
        from core.store.alerts import AlertRepository

        return AlertRepository(self)

    @cached_property
    def batches(self) -> "BatchRepository":
        """Files of batches, and what goes on after its request."""
        from core.store.batches import BatchRepository

        return BatchRepository(self)

    @cached_property
    def overlay(self) -> "OverlayRepository":
        """What administrators changed at run time."""
        from core.store.overlay import OverlayRepository

        return OverlayRepository(self)

    @cached_property
    def feedback(self) -> "FeedbackRepository":
        """What callers said about their answers."""
        from core.store.feedback import FeedbackRepository

        return FeedbackRepository(self)

    @cached_property
    def allocations(self) -> "AllocationRepository":
        """What instances agree on about experiments."""
        from core.store.allocations import AllocationRepository

        return AllocationRepository(self)

    @cached_property
    def routing_versions(self) -> "RoutingVersionRepository":
        """The configurations that were in force."""
        from core.store.routing_versions import RoutingVersionRepository

        return RoutingVersionRepository(self)

    async def upgrade(self, *, apart: bool = False) -> None:
        """Bring the tables to this version. Any number of workers may do so at once; one works, the others wait.

        With `apart` a process of its own does what there is to do, so that what that needs takes no memory here.
        """
        with self._explained("could not be upgraded"):
            if self.url.file is not None:
                self.url.file.absolute().parent.mkdir(parents=True, exist_ok=True)
            if apart and await self._upgraded_apart():
                return
            async with self._alone():
                if await self.version() != HEAD:
                    await self._upgrade_here()

    async def _upgrade_here(self) -> None:
        async with self.engine.begin() as connection:
            if not self.is_sqlite:
                await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
            if not await connection.run_sync(make_afresh):
                await connection.run_sync(upgrade_to_head)

    async def _upgraded_apart(self) -> bool:
        """Whether the tables are of this version now. False where there can be no process that does it."""
        if self.is_sqlite and self.url.file is None:
            return False
        async with self._alone():
            if await self.version() == HEAD or await self.write(make_afresh):
                return True
        try:
            answered = await child.ask("core.store.migrations", self._written.encode())
        except (OSError, NotImplementedError):
            return False
        if answered.printed:
            raise StoreError(answered.printed.decode(errors="replace"))
        return answered.returncode == 0

    @asynccontextmanager
    async def _alone(self) -> AsyncGenerator[None]:
        """With a file: nobody else upgrades it meanwhile, and it is read and written side by side from now on."""
        if self.url.file is None:
            yield
            return
        async with _directory_lock(self.url.file.absolute().parent):
            await self._set_wal()
            yield

    async def _set_wal(self) -> None:
        # A property of the file, so it is set once; here, where nobody else can be in the middle of it.
        async with self.engine.connect() as connection:
            raw = await connection.get_raw_connection()
            driver: Any = raw.driver_connection
            await driver.execute_fetchall("PRAGMA journal_mode=WAL")

    async def version(self) -> str | None:
        """The revision of the tables; None for a store without any."""
        name = "alembic_version" if self.is_sqlite else f"{SCHEMA}.alembic_version"
        found = "SELECT name FROM sqlite_master WHERE name = :name" if self.is_sqlite else "SELECT to_regclass(:name)"
        async with self.reading() as connection:
            if (await connection.execute(text(found), {"name": name})).scalar() is None:
                return None
            return (await connection.execute(text(f"SELECT version_num FROM {name}"))).scalar()  # noqa: S608

    async def ping(self) -> None:
        """One round trip. Raises StoreError when there is no answer."""
        async with self.reading() as connection:
            await connection.execute(text("SELECT 1"))

    async def close(self) -> None:
        """Let go of every connection, after what is being written."""
        for thread in (self._writer, self._reader):
            if thread is not None:
                await thread.close()
        await self.engine.dispose()

    @asynccontextmanager
    async def reading(self) -> AsyncGenerator[AsyncConnection]:
        """A connection whose statements all see the same state, and which keeps no writer waiting."""
        with self._explained("could not be read"):
            async with self.engine.connect() as connection:
                options: dict[str, Any] = {READING: True}
                if not self.is_sqlite:
                    options["isolation_level"] = "REPEATABLE READ"
                yield await connection.execution_options(**options)

    @asynccontextmanager
    async def writing(self) -> AsyncGenerator[AsyncConnection]:
        """One transaction: all of it, or nothing."""
        with self._explained("could not be written"):
            async with self.engine.begin() as connection:
                yield connection

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work`, which reads a little, as `write` does, and return what it returns: in one go, where `reading`
        is for what may take long. Its statements all see the same state, and it keeps no writer waiting."""
        if self._reader is not None:
            with self._explained("could not be read"):
                return await self._reader.run(work)
        async with self.reading() as connection:
            return await connection.run_sync(work)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one transaction, all of it or nothing, and return what it returns.

        It is plain, synchronous SQLAlchemy: a file of SQLite takes it in one go in a thread of its own, instead of by
        a change of threads and greenlets for each statement, which costs several times as much as the statement.
        """
        with self._explained("could not be written"):
            if self._writer is not None:
                return await self._writer.run(work)
            async with self.engine.begin() as connection:
                return await connection.run_sync(work)

    @contextmanager
    def _explained(self, what: str) -> Generator[None]:
        try:
            yield
        except StoreError:
            raise
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            kind = RecordRefused if blames_the_values(error) else StoreError
            raise kind(f"the store {self.url} {what}: {plain_reason(error)}") from error
        except (OverflowError, ValueError, TypeError, sqlite3.Error) as error:
            raise RecordRefused(f"the store {self.url} {what}: {error}") from error


def open_store(url: str, clock: Callable[[], float] = time.time) -> Store:
    """The store at this URL (`StoreUrl.parse`). Raises StoreError for a URL that cannot be used."""
    return Store(StoreUrl.parse(url), url, clock)


def _postgresql_engine(url: StoreUrl) -> AsyncEngine:
    settings = {"application_name": "orchestration", **url.connect_arguments.get("server_settings", {})}
    arguments = {"timeout": 10.0, "command_timeout": 60.0, **url.connect_arguments, "server_settings": settings}
    return create_async_engine(
        url.url, connect_args=arguments, pool_pre_ping=True, pool_size=3, pool_recycle=1800, hide_parameters=True
    )


@asynccontextmanager
async def _directory_lock(directory: Path) -> AsyncGenerator[None]:
    """Hold a lock on the directory itself: it needs no file of its own, and ends with the process."""
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    deadline = asyncio.get_running_loop().time() + _UPGRADE_WITHIN
    try:
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if asyncio.get_running_loop().time() > deadline:
                raise StoreError(f"another process has been upgrading the store in {directory} for over a minute")
            await asyncio.sleep(0.05)
        yield
    finally:
        os.close(fd)
