"""What instances tell one another at once, by Redis's publish and subscribe: hints, which may get lost."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from redis.asyncio import Redis

_LOG = logging.getLogger("orchestration.state")
_CHANNEL = "orchestration:signals"
_LONGEST_PAUSE = 30.0
_PATIENCE = 5.0

Handler = Callable[[dict[str, Any]], Awaitable[None]]


class Signals:
    """`tell("kind", {...})` reaches the handlers of that kind on every other instance that listens just then.

    Nobody waits for an answer and nothing is kept: whoever was away has to find out by other means. Bodies are JSON and
    hold no secrets, since everybody with access to the Redis can read them.
    """

    def __init__(self, url: str, instance: str) -> None:
        self._url = url
        self._instance = instance
        self._handlers: dict[str, Handler] = {}
        self._client: Redis | None = None
        self.connected = False

    def on(self, kind: str, handler: Handler) -> None:
        """Call `handler` with the body of each signal of this kind that another instance sends."""
        self._handlers[kind] = handler

    async def tell(self, kind: str, body: dict[str, Any]) -> bool:
        """Send; whether Redis took it."""
        message = orjson.dumps({"from": self._instance, "kind": kind, "body": body})
        # Twice, since a connection that has lain idle may have ended meanwhile.
        for left in (1, 0):
            try:
                async with asyncio.timeout(_PATIENCE):
                    await self._redis().publish(_CHANNEL, message)  # pyright: ignore[reportUnknownMemberType]
                return True
            except Exception as error:  # redis-py and the network raise what they like; the caller only wants to know
                if not left:
                    _LOG.warning("other instances could not be told (%s): Redis: %s", kind, type(error).__name__)
        return False

    async def run(self) -> None:
        """Listen until cancelled; connect again for as long as it takes."""
        pause = 0.5
        try:
            while True:
                try:
                    await self._listen()
                    pause = 0.5
                except Exception as error:
                    if self.connected or pause == 0.5:
                        _LOG.warning("signals of other instances cannot be heard: Redis: %s", type(error).__name__)
                self.connected = False
                await asyncio.sleep(random.uniform(0.5, 1.0) * pause)  # noqa: S311
                pause = min(pause * 2, _LONGEST_PAUSE)
        finally:
            if self._client is not None:
                await self._client.aclose()

    async def _listen(self) -> None:
        async with self._redis().pubsub() as subscription:  # pyright: ignore[reportUnknownMemberType]
            await subscription.subscribe(_CHANNEL)  # pyright: ignore[reportUnknownMemberType] # not typed in redis-py
            self.connected = True
            async for message in subscription.listen():  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
                if message["type"] == "message":
                    await self._hear(message["data"])  # pyright: ignore[reportUnknownArgumentType]

    async def _hear(self, data: bytes) -> None:
        try:
            signal: dict[str, Any] = orjson.loads(data)
            handler = self._handlers.get(signal["kind"])
            if handler is not None and signal["from"] != self._instance:
                await handler(signal["body"])
        except Exception:  # whoever can write to the channel must not stop us from listening to it
            _LOG.exception("a signal of another instance could not be followed")

    def _redis(self) -> "Redis":
        if self._client is None:
            from redis.asyncio import Redis

            # A subscription waits for as long as nobody says anything, but notices a peer that is gone.
            self._client = Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
                self._url, socket_connect_timeout=_PATIENCE, socket_keepalive=True, health_check_interval=15
            )
        return self._client
