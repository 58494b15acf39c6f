"""Equal requests at the same time, in the proxy: one goes on through LiteLLM, the others wait for its answer."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from core.asgi import Message, Send
from core.cache.flights import FlightLost, Flights, Follower, Head, Leader
from core.errors import AnswerLost
from plugins.caching import recording

if TYPE_CHECKING:
    from plugins.caching.service import Caching
    from plugins.exchange import Exchange


class Turn:
    """One exchange's part in a flight. Where it `leads`, its own way through LiteLLM makes the answer, and what is sent
    to its client goes to the others as well."""

    __slots__ = (
        *("_alone", "_begins", "_ended_well", "_follower", "_leading", "_led", "_over", "_pump"),
        *("_to_client", "ended", "exchange", "keeping", "key", "leader", "told"),
    )

    def __init__(self, exchange: "Exchange", flights: Flights, key: bytes, leading: "dict[bytes, Exchange]") -> None:
        self.exchange = exchange
        self.key = key
        self.told: Exchange | None = None
        """Whose answer it is that this one waits for, where that is made here."""
        self._leading = leading
        self.ended = self._ended_well = False
        self._to_client: Send | None = None
        self._begins: Message | None = None
        """The beginning of the leader's answer, until it is seen whether there is more to come than one piece."""
        self._pump: asyncio.Task[None] | None = None
        self._alone = False
        self.keeping: asyncio.Task[bool] | None = None
        self._follower: Follower | None = None
        """Where it waits, or has waited until it was its turn to lead."""
        self.leader: Leader | None = flights.lead(key)
        if self.leader is None:
            self._over = asyncio.Event()
            self._led: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._follower = flights.join(key, self._call)
        else:
            leading[key] = exchange

    @property
    def leads(self) -> bool:
        return self.leader is not None

    @property
    def follower(self) -> Follower:
        """Who reads the answer for this exchange."""
        if self._follower is not None:
            return self._follower
        assert self.leader is not None
        return self.leader.follower

    def _leave(self) -> None:
        if self._follower is not None:
            self._follower.leave()
        elif self.leader is not None:
            self.leader.leave()

    async def _call(self, leader: Leader) -> None:
        self.leader = leader
        if self.ended:
            raise FlightLost("the request is over")
        if not self._led.done():
            self._led.set_result(None)
        await self._over.wait()
        if (failure := self._failure(leader)) is not None:
            raise failure
        if self.keeping is not None:
            # Whoever asks from now on finds it in Redis. A client that leaves with its answer cancels what waits in its
            # name, so this waits here.
            await self.keeping

    def _failure(self, leader: Leader) -> FlightLost | None:
        if leader.flight.head is None:
            return FlightLost("the request ended without an answer")
        return None if self._ended_well else FlightLost("the answer was cut short")

    # -- waiting ---------------------------------------------------------------------------------------------------

    async def head(self) -> Head | None:
        """How the answer begins that somebody else gets; None where it is for this exchange to get after all.

        Raises FlightLost where there will be none.
        """
        if self.follower.led:
            await self._led
            self._leading[self.key] = self.exchange
            return None
        self.told = self._leading.get(self.key)
        head = asyncio.ensure_future(self.follower.head())
        left = asyncio.ensure_future(self.exchange.left())
        try:
            await asyncio.wait({head, left, self._led}, return_when=asyncio.FIRST_COMPLETED)
            if head.done():
                self.told = self._leading.get(self.key) or self.told
                return head.result()
            if self._led.done():
                self._leading[self.key] = self.exchange
                return None
            raise ClientLeft
        finally:
            head.cancel()
            left.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await left
            if head.done() and not head.cancelled():
                head.exception()

    # -- leading ---------------------------------------------------------------------------------------------------

    def lead(self, to_client: Send) -> Send:
        """Where an answer goes from now on: that of a leader to all who wait for it."""
        if self.leader is None or self._to_client is not None:
            return to_client
        self._to_client = to_client
        return self._send

    async def deserted(self) -> None:
        """The leader's client has left; returns when nobody else waits."""
        self._leave()
        if self._pump is not None:
            self._pump.cancel()
        if self.leader is not None and not self.ended:
            await self.leader.wait_deserted()

    async def _send(self, message: Message) -> None:
        assert self.leader is not None
        assert self._to_client is not None
        leader = self.leader
        if message["type"] == "http.response.start":
            if not _is_personal(self.exchange, message["status"]):
                self._begins = message
                return
            self._alone = True
            leader.part()
            self._forget()
            leader.start(message["status"], message["headers"])
            await self._to_client(message)
        elif message["type"] == "http.response.body":
            chunk: bytes = message.get("body", b"")
            last = not message.get("more_body", False)
            if self._begins is not None:
                start, self._begins = self._begins, None
                if last and self.keeping is None:
                    await self._whole(leader, start, message)
                    return
                leader.start(start["status"], start["headers"])
                self._pump = asyncio.create_task(self._pumped(start))
            if self._alone:
                await self._to_client(message)
            elif chunk:
                await leader.send(chunk)
            if last:
                self._ended_well = True
                leader.finish()
                if self._follower is not None:
                    self._over.set()
                if self._pump is not None:
                    with suppress(asyncio.CancelledError, FlightLost, OSError):
                        await self._pump
                self.end()
        else:
            await self._to_client(message)

    async def _whole(self, leader: Leader, start: Message, body: Message) -> None:
        """An answer in one piece, which nobody has to wait for another's pace for."""
        assert self._to_client is not None
        if leader.ends_alone():
            self.ended = True
            self._forget()
        else:
            leader.start(start["status"], start["headers"])
            leader.finish(body.get("body", b""))
            self._ended_well = True
            self.end()
        await self._to_client(start)
        await self._to_client(body)

    async def _pumped(self, start: Message) -> None:
        """The leader's own client gets the answer at its own pace."""
        assert self._to_client is not None
        await self._to_client(start)
        waiting: bytes | None = None
        async for chunk in self.follower.chunks():
            if waiting is not None:
                await self._to_client({"type": "http.response.body", "body": waiting, "more_body": True})
                waiting = None
            if self.follower.flight.ended and self._is_last():
                waiting = chunk
            else:
                await self._to_client({"type": "http.response.body", "body": chunk, "more_body": True})
        await self._to_client({"type": "http.response.body", "body": waiting or b""})

    def _is_last(self) -> bool:
        return self.follower.position >= self.follower.flight.written

    def _forget(self) -> None:
        if self._leading.get(self.key) is self.exchange:
            del self._leading[self.key]

    async def relay(
        self,
        to_client: Send,
        record: Callable[[], None],
        cache: "Caching",
        own: Callable[[], list[tuple[bytes, bytes]]],
    ) -> None:
        """Send what somebody else gets to a client as its own; ends without a last byte where the answer is cut short
        or its client too slow."""
        exchange = self.exchange
        try:
            head = await self.follower.head()
            exchange.status = head.status
            cache.begins(exchange, self)
            exchange.stream = any(value.startswith(_EVENTS) for name, value in head.headers if name == _KIND)
            if exchange.stream:
                headers = [*head.headers, *own()]
                await to_client({"type": "http.response.start", "status": head.status, "headers": headers})
                async for chunk in self.follower.chunks():
                    if exchange.first_byte is None:
                        exchange.note_first_byte()
                    body = recording.for_nothing(chunk)
                    await to_client({"type": "http.response.body", "body": body, "more_body": True})
                cache.shared(exchange, self)
                record()
                await to_client({"type": "http.response.body", "body": b""})
                return
            body = b"".join([chunk async for chunk in self.follower.chunks()])
            cache.shared(exchange, self)
            record()
            headers = [*head.headers, *own(), (b"content-length", b"%d" % len(body))]
            await to_client({"type": "http.response.start", "status": head.status, "headers": headers})
            await to_client({"type": "http.response.body", "body": body})
        except FlightLost as error:
            exchange.error_class = type(error).__name__
            if not exchange.stream:
                raise AnswerLost(
                    "The answer that this request waited for was cut short; ask again.", headers={"retry-after": "1"}
                ) from error
        finally:
            self.end()

    def end(self) -> None:
        """This exchange is over, one way or another."""
        if self.ended:
            return
        self.ended = True
        self._forget()
        self._leave()
        if self._pump is not None:
            self._pump.cancel()
        if self._follower is not None:
            self._over.set()
        elif self.leader is not None and not self.leader.ends_alone():
            self.leader.over(self._failure(self.leader))


_KIND, _EVENTS = b"content-type", b"text/event-stream"


class ClientLeft(Exception):
    """Whoever waited for an answer has gone."""


def _is_personal(exchange: "Exchange", status: int) -> bool:
    """Whether an error is for this one alone: a limit, a budget, a permission. What a provider said, everybody who
    asked the same would be told."""
    if status == 200 or status >= 500:
        return False
    last = exchange.attempts[-1] if exchange.attempts else None
    return last is None or last.status != status
