"""SQLAlchemy's engine and connection for asyncio, as far as they are used here.

`sqlalchemy.ext.asyncio` has the same and more of it; importing that loads SQLAlchemy's ORM as well, which takes six
megabytes in every worker and which nothing here uses.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, CursorResult, Engine, Executable, PoolProxiedConnection, Row, create_engine
from sqlalchemy.engine import URL
from sqlalchemy.util import greenlet_spawn

P = ParamSpec("P")
T = TypeVar("T")
Parameters = Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""Of a statement, or of each of its executions; as for `Connection.execute`."""
_Result = CursorResult[*tuple[Any, ...]]
_Row = Row[*tuple[Any, ...]]


class AsyncConnection:
    """A connection whose calls are awaited; `await` it, or enter it, to open it.

    What it raises is what SQLAlchemy's own raises. Entered, it is closed at the end, cancelled or not.
    """

    __slots__ = ("_connection", "_engine")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Connection | None = None

    def __await__(self) -> Generator[Any, None, "AsyncConnection"]:
        return self._open().__await__()

    async def __aenter__(self) -> "AsyncConnection":
        return await self._open()

    async def __aexit__(self, *_: object) -> None:
        await asyncio.shield(asyncio.ensure_future(self.close()))

    async def _open(self) -> "AsyncConnection":
        self._connection = await greenlet_spawn(self._engine.connect)
        return self

    @property
    def sync_connection(self) -> Connection:
        """The one behind it, for what does not wait for the database."""
        assert self._connection is not None, "the connection is not open yet"
        return self._connection

    @property
    def closed(self) -> bool:
        return self.sync_connection.closed

    @property
    def invalidated(self) -> bool:
        return self.sync_connection.invalidated

    @asynccontextmanager
    async def begin(self) -> AsyncGenerator[None]:
        """A transaction: kept at the end, undone on an exception."""
        transaction = await greenlet_spawn(self.sync_connection.begin)
        try:
            yield
        except BaseException as error:
            await greenlet_spawn(transaction.__exit__, type(error), error, error.__traceback__)
            raise
        await greenlet_spawn(transaction.__exit__, None, None, None)

    async def execute(self, statement: Executable, parameters: Parameters | None = None) -> _Result:
        """The rows are here when it returns."""
        return await greenlet_spawn(self.sync_connection.execute, statement, parameters)

    async def exec_driver_sql(self, statement: str, parameters: Any = None) -> _Result:  # as the driver's
        return await greenlet_spawn(self.sync_connection.exec_driver_sql, statement, parameters)

    async def partitions(
        self, statement: Executable, size: int, parameters: Parameters | None = None
    ) -> AsyncIterator[Sequence[_Row]]:
        """The rows, `size` at a time, fetched as they are read."""
        execute, streamed = self.sync_connection.execute, {"stream_results": True}
        result = await greenlet_spawn(execute, statement, parameters, execution_options=streamed)
        while rows := await greenlet_spawn(result.fetchmany, size):
            yield rows

    async def run_sync(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **named: P.kwargs) -> T:
        """Run plain SQLAlchemy on this connection; it must wait for nothing else."""
        return await greenlet_spawn(work, self.sync_connection, *args, **named)

    async def execution_options(self, **options: Any) -> "AsyncConnection":  # any that SQLAlchemy knows
        await greenlet_spawn(self.sync_connection.execution_options, **options)
        return self

    async def get_raw_connection(self) -> PoolProxiedConnection:
        return await greenlet_spawn(getattr, self.sync_connection, "connection")

    async def invalidate(self) -> None:
        await greenlet_spawn(self.sync_connection.invalidate)

    async def close(self) -> None:
        await greenlet_spawn(self.sync_connection.close)


class AsyncEngine:
    """Hands out connections; `sync_engine` is the one behind it, for events."""

    __slots__ = ("sync_engine",)

    def __init__(self, sync_engine: Engine) -> None:
        self.sync_engine = sync_engine

    def connect(self) -> AsyncConnection:
        return AsyncConnection(self.sync_engine)

    @asynccontextmanager
    async def begin(self) -> AsyncGenerator[AsyncConnection]:
        """A connection in a transaction: kept at the end, undone on an exception."""
        async with self.connect() as connection, connection.begin():
            yield connection

    async def dispose(self) -> None:
        """Close every connection of the pool."""
        await greenlet_spawn(self.sync_engine.dispose)


def create_async_engine(url: URL, **options: Any) -> AsyncEngine:  # any that `create_engine` knows
    """For the URL of a driver that is made for asyncio."""
    return AsyncEngine(create_engine(url, **options))
