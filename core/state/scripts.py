"""The Lua scripts of this package, run in Redis. Calls that come while others are under way travel together: most of
what a call costs is its way through the client."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from core.state.reservations import StateAway

if TYPE_CHECKING:
    from redis.asyncio import Redis

Words = Sequence[str | bytes]

_ALONE = 4
"""How many calls, or companies of calls, are under way at once."""
_TOGETHER = 32
_REDIRECTIONS = 4
_CONNECTIONS = 16
_QUEUE_SECONDS = 30.0
"""How long a call waits for a connection; they take a fraction of a millisecond each."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    answer: "asyncio.Future[Any]"
    name: str
    keys: Words
    arguments: Words


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
        self._client: Redis | None = None
        self._under_way = 0
        self._waiting: deque[_Waiting] = deque()
        self._companies: set[asyncio.Task[None]] = set()

    async def run(self, name: str, keys: Words, arguments: Words) -> Any:
        """What `lua/<name>.lua` says; Any because each says something else. Raises StateAway."""
        if self._under_way >= _ALONE or self._waiting:
            answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            self._waiting.append(_Waiting(answer, name, keys, arguments))
            return await answer
        self._under_way += 1
        try:
            return await self._call(name, keys, arguments)
        except Exception as error:
            raise away(error) or error from error
        finally:
            self._under_way -= 1
            self._go_on()

    def client(self) -> "Redis":
        """For what is no script."""
        if self._client is None:
            from redis.asyncio import BlockingConnectionPool, Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
            from redis.exceptions import ConnectionError

            pool = BlockingConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
                self._url if self._node is None else _at(self._url, *self._node),
                max_connections=_CONNECTIONS,
                timeout=_QUEUE_SECONDS,
                socket_timeout=self._patience,
                socket_connect_timeout=self._patience,
                socket_keepalive=True,
                retry=Retry(NoBackoff(), 1, supported_errors=(ConnectionError,)),
            )
            self._client = Redis.from_pool(pool)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
        return self._client

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _call(self, name: str, keys: Words, arguments: Words) -> Any:
        from redis.exceptions import ConnectionError, MovedError, NoScriptError

        text, digest = _script(name)
        for _ in range(_REDIRECTIONS):
            client: Any = self.client()
            node = self._node
            try:
                try:
                    return await client.evalsha(digest, len(keys), *keys, *arguments)
                except NoScriptError:
                    return await client.eval(text, len(keys), *keys, *arguments)
            except MovedError as moved:
                await self._go_to((str(moved.host), moved.port))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
            except ConnectionError:
                if self._node == node:  # else others have gone elsewhere meanwhile, and closed this connection
                    if node is None:
                        raise
                    await self._go_to(None)  # the keys may be another one's by now
        raise StateAway("the nodes of the Redis Cluster send each other its keys")

    async def _go_to(self, node: tuple[str, int] | None) -> None:
        if node != self._node:
            self._node = node
            await self.close()

    def _go_on(self) -> None:
        if self._waiting and self._under_way < _ALONE:
            company = [self._waiting.popleft() for _ in range(min(_TOGETHER, len(self._waiting)))]
            self._under_way += 1
            task = asyncio.get_running_loop().create_task(self._travel(company))
            self._companies.add(task)
            task.add_done_callback(self._companies.discard)

    async def _travel(self, company: Sequence[_Waiting]) -> None:
        try:
            pipeline: Any = self.client().pipeline(transaction=False)
            for one in company:
                pipeline.evalsha(_script(one.name)[1], len(one.keys), *one.keys, *one.arguments)
            for one, answer in zip(company, await pipeline.execute(raise_on_error=False), strict=True):
                await self._deliver(one, answer)
        except Exception as error:
            for one in company:
                _fail(one, error)
            await self._go_to(None)
        finally:
            self._under_way -= 1
            self._go_on()

    async def _deliver(self, one: _Waiting, answer: Any) -> None:
        from redis.exceptions import MovedError, NoScriptError

        if isinstance(answer, NoScriptError | MovedError):
            answer = await self._call(one.name, one.keys, one.arguments)
        if isinstance(answer, Exception):
            _fail(one, answer)
        elif not one.answer.done():  # whoever waited may have left
            one.answer.set_result(answer)


def _fail(one: _Waiting, error: Exception) -> None:
    if not one.answer.done():
        one.answer.set_exception(away(error) or error)


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
