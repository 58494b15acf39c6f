"""One connection to Redis that all calls of a worker share.

A call writes at once and waits for its answer, which come in the order of the calls: nobody waits for somebody else's
way there and back, and calls that are made together travel together. redis-py opens the connection (TLS, log-in,
Unix sockets) and parses the answers; its own client, with a pool and a timer a call, takes three times as long.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

_GRACE = 0.05
"""Seconds for an answer that lies unread because this process was busy."""


class Connection:
    """`patience` is how many seconds an answer may take; a connection on which one takes longer is given up."""

    def __init__(self, connection: "AbstractConnection", patience: float) -> None:
        self._connection = connection
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        """For an answer, with when they were written."""
        self._reading: asyncio.Task[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._failure: Exception | None = None

    @property
    def broken(self) -> bool:
        return self._failure is not None

    async def open(self) -> None:
        """Raises what redis-py and the network do."""
        try:
            async with asyncio.timeout(self._patience):
                await self._connection.connect()
        except BaseException:
            await self._connection.disconnect(nowait=True)
            raise
        self._reading = self._loop.create_task(self._read())

    async def call(self, words: Sequence[str | bytes | int]) -> Any:
        """The answer to a command. Raises ResponseError where Redis refuses, ConnectionError where the connection ended
        (the command may have been done), TimeoutError where nothing came."""
        if self._failure is not None:
            raise self._failure
        command = _packed(words)
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.append((answer, self._loop.time()))
        if self._watch is None:
            self._watch = self._loop.call_later(self._patience, self._look, None)
        # Nothing is waited for between here and the words being written: their order is that of the answers.
        try:
            await self._connection.send_packed_command(command, check_health=False)
        except Exception as error:
            answer.cancel()
            self._fail(error)
            raise
        return await answer

    async def close(self) -> None:
        from redis.exceptions import ConnectionError

        self._fail(ConnectionError("Connection closed"))
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})

    async def _read(self) -> None:
        from redis.exceptions import ResponseError

        try:
            while True:
                try:
                    said = cast("Any", await self._connection.read_response(disconnect_on_error=False))  # pyright: ignore[reportUnknownMemberType]
                except ResponseError as refusal:
                    said = refusal
                answer = self._waiting.popleft()[0]
                if answer.done():  # whoever waited has left
                    continue
                if isinstance(said, ResponseError):
                    answer.set_exception(said)
                else:
                    answer.set_result(said)
        except Exception as error:
            self._fail(error)
        finally:
            await self._connection.disconnect(nowait=True)

    def _look(self, oldest: asyncio.Future[Any] | None) -> None:
        """Give the connection up if what is waited for longest is late, and was so at the last look."""
        from redis.exceptions import TimeoutError

        self._watch = None
        if not self._waiting:
            return
        answer, since = self._waiting[0]
        late = self._loop.time() - since - self._patience
        if late < 0:
            self._watch = self._loop.call_later(-late, self._look, None)
        elif answer is not oldest:
            self._watch = self._loop.call_later(_GRACE, self._look, answer)
        else:
            self._fail(TimeoutError("Timeout reading from Redis"))
            if self._reading is not None:
                self._reading.cancel()

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        while self._waiting:
            answer = self._waiting.popleft()[0]
            if not answer.done():
                answer.set_exception(error)


def _packed(words: Sequence[str | bytes | int]) -> bytes:
    """A command in Redis's protocol."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        text = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(text), text))
    return b"".join(parts)
