"""Further ways through LiteLLM's pipeline, for a stream of text completions that its provider did not begin.

LiteLLM opens these streams when its router is done with them, so neither its retries nor its fallbacks learn of a
failure. On every other endpoint the router makes the next attempt; for this one the whole request is made again, on
what its course has left to try, as long as nothing has been sent to the client.
"""

from core.asgi import App, Message, Receive, Scope, Send
from plugins.exchange import Exchange

ENDPOINTS = {"completions"}


class SecondTry:
    """Keeps what the client sent, and holds back an answer that says that an attempt failed until it is clear that
    there is no other."""

    def __init__(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        self._exchange = exchange
        self._receive = receive
        self._send = send
        self._received: list[Message] = []
        self._replayed = 0
        self._held: list[Message] = []

    async def run(self, app: App, scope: Scope) -> None:
        exchange = self._exchange
        while True:
            made, held, error_class = len(exchange.attempts), self._held, exchange.error_class
            self._held, self._replayed = [], 0
            if exchange.repeated:
                exchange.error_class = None
            try:
                await app(dict(scope), self._replay, self._hold)  # LiteLLM keeps the parsed body in the scope
            except Exception:
                await self._tell()  # what Starlette answers before it raises
                raise
            if not self._held:
                return
            if exchange.repeated and len(exchange.attempts) == made:
                # Nobody was asked: what came of the last attempt is what there is to tell.
                self._held, exchange.error_class = held, error_class
                break
            if not await self._goes_on():
                break
        await self._tell()

    async def _tell(self) -> None:
        for message in self._held:
            await self._send(message)

    async def _goes_on(self) -> bool:
        """Whether another attempt is to be made, now that it is time for it."""
        exchange = self._exchange
        course = exchange.course
        if course is None or exchange.under_way or self._client_left():
            return False
        await course.decide(another_key=exchange.has_another_key)
        if not course.left():
            return False
        exchange.again()
        return True

    def _client_left(self) -> bool:
        return any(message["type"] == "http.disconnect" for message in self._received)

    async def _replay(self) -> Message:
        if self._replayed == len(self._received):
            self._received.append(await self._receive())
        self._replayed += 1
        return self._received[self._replayed - 1]

    async def _hold(self, message: Message) -> None:
        if self._held or (message["type"] == "http.response.start" and self._failed(message["status"])):
            self._held.append(message)
        else:
            await self._send(message)

    def _failed(self, status: int) -> bool:
        """Whether this is what came of an attempt at a stream, and not of a refusal of ours."""
        exchange = self._exchange
        context = exchange.context
        return (
            status >= _ERROR
            and bool(exchange.attempts)
            and exchange.refusal is None
            and context is not None
            and context.stream
        )


_ERROR = 400
