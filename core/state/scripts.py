"""The Lua scripts of this package, run in Redis over one connection that all calls share."""

import asyncio
from collections.abc import Sequence
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from core.state.connection import Connection
from core.state.reservations import StateAway

if TYPE_CHECKING:
    from redis.asyncio import Redis

Words = Sequence[str | bytes | int]

_REDIRECTIONS = 4


class Scripts:
    """In Redis, or in the node of a Redis Cluster that has the slot of their keys: all keys of a script carry one hash
    tag, and whoever says that they have moved says where to.

    `patience` is how many seconds an answer may take. It has to be more than a busy event loop takes to come round:
    by then an answer may long be there. Every script may be run twice, since a connection that lay idle may have ended.
    """

    def __init__(self, url: str, patience: float) -> None:
        self._url = url
        self._patience = patience
        self._node: tuple[str, int] | None = None
        """Where the keys have moved to."""
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[Connection] | None = None
        self._client: Redis | None = None

    async def run(self, name: str, keys: Words, arguments: Words) -> Any:
        """What `lua/<name>.lua` says; Any because each says something else. Raises StateAway."""
        try:
            connection = self._connection
            if connection is None or connection.broken:
                connection = await self._connected()
            return await connection.call((b"EVALSHA", _script(name)[1], len(keys), *keys, *arguments))
        except Exception as error:
            return await self._again(error, name, keys, arguments)

    def client(self) -> "Redis":
        """For what is no script."""
        if self._client is None:
            from redis.asyncio import Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff

            self._client = Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
                self._address,
                socket_timeout=self._patience,
                socket_connect_timeout=self._patience,
                socket_keepalive=True,
                retry=Retry(NoBackoff(), 1),
            )
        return self._client

    async def close(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
        await self._part()

    async def _again(self, failure: Exception, name: str, keys: Words, arguments: Words) -> Any:
        """What is left to do for a script that failed: to load it, to follow its keys, to connect anew."""
        from redis.exceptions import ConnectionError, MovedError, NoScriptError

        rest = (len(keys), *keys, *arguments)
        command: tuple[str | bytes | int, ...] = (b"EVALSHA", _script(name)[1], *rest)
        connected_anew = False
        for _ in range(_REDIRECTIONS):
            if isinstance(failure, NoScriptError):
                command = (b"EVAL", _script(name)[0], *rest)
            elif isinstance(failure, MovedError):
                await self._go_to((str(failure.host), failure.port))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
            elif isinstance(failure, ConnectionError) and (not connected_anew or self._node is not None):
                connected_anew = True
                if self._connection is None or self._connection.broken:
                    await self._go_to(None)  # the keys may be another node's by now
            else:
                raise away(failure) or failure from failure
            try:
                return await (await self._connected()).call(command)
            except Exception as error:
                failure = error
        raise StateAway("the nodes of the Redis Cluster send each other its keys")

    @property
    def _address(self) -> str:
        return self._url if self._node is None else _at(self._url, *self._node)

    async def _connected(self) -> Connection:
        """The connection, opened where there is none; whoever comes meanwhile waits for the same attempt."""
        from redis.exceptions import ConnectionError

        if self._connection is not None and not self._connection.broken:
            return self._connection
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
        connecting, task = self._connecting, asyncio.current_task()
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            if connecting.cancelled() and not (task and task.cancelling()):
                raise ConnectionError("Connection closed") from None
            raise

    async def _connect(self) -> Connection:
        from redis.asyncio.connection import ConnectionPool
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        if self._connection is not None:
            await self._connection.close()
        while True:
            address = self._address
            # No limit of redis-py's own to an answer: it costs a timer a call.
            pool = ConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
                address, socket_timeout=None, socket_keepalive=True, retry=Retry(NoBackoff(), 0)
            )
            connection = Connection(pool.make_connection(), self._patience)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
            await connection.open()
            if address == self._address:
                self._connection = connection
                return connection
            await connection.close()

    async def _go_to(self, node: tuple[str, int] | None) -> None:
        if node != self._node:
            self._node = node
            await self._part()

    async def _part(self) -> None:
        connection, self._connection = self._connection, None
        client, self._client = self._client, None
        if connection is not None:
            await connection.close()
        if client is not None:
            await client.aclose()


def away(error: Exception) -> StateAway | None:
    """What it means that a call failed so; None where it is no failure of Redis's."""
    from redis.exceptions import RedisError, ResponseError

    if isinstance(error, ResponseError):  # out of memory, read-only, no permission
        return StateAway(f"Redis refuses: {error}")
    if isinstance(error, RedisError | OSError | TimeoutError):
        return StateAway(f"Redis does not answer: {type(error).__name__}")
    return None


def _at(url: str, host: str, port: int) -> str:
    """The same way to another node."""
    parts = urlsplit(url)
    login = parts.netloc.rpartition("@")[0]
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return urlunsplit(parts._replace(netloc=f"{login}@{where}" if login else where))


@cache
def _script(name: str) -> tuple[str, str]:
    """A script and the SHA-1 by which Redis knows it."""
    text = files("core.state").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
    return text, sha1(text.encode()).hexdigest()  # noqa: S324 - what Redis asks for
