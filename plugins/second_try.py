"""A second way through LiteLLM's pipeline, for a stream of text completions whose key its provider refused.

LiteLLM opens these streams when its router is done with them, so neither its retries nor its fallbacks learn of the
refusal. On every other endpoint the router makes the attempt again (`plugins/secrets.py`).
"""

from core.asgi import App, Message, Receive, Scope, Send
from core.usage import UsageState
from plugins import secrets
from plugins.exchange import Exchange

ENDPOINTS = {"completions"}


class SecondTry:
    """Keeps what the client sent, and holds back an answer that says its key was refused until it is clear that there
    is no other."""

    def __init__(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        self._exchange = exchange
        self._receive = receive
        self._send = send
        self._received: list[Message] = []
        self._replayed = 0
        self._held: list[Message] = []

    async def run(self, app: App, scope: Scope) -> None:
        again = dict(scope)  # LiteLLM keeps the parsed body in it
        await app(scope, self._record, self._hold)
        if not self._held:
            return
        if await self._another_key():
            await app(again, self._replay, self._send)
            return
        for message in self._held:
            await self._send(message)

    async def _another_key(self) -> bool:
        exchange = self._exchange
        exchange.end_attempt(self._held[0]["status"], "AuthenticationError", UsageState.NONE)
        if not await secrets.another(exchange):
            return False
        exchange.answer = exchange.error_class = None
        return True

    async def _record(self) -> Message:
        message = await self._receive()
        self._received.append(message)
        return message

    async def _replay(self) -> Message:
        if self._replayed < len(self._received):
            self._replayed += 1
            return self._received[self._replayed - 1]
        return await self._receive()

    async def _hold(self, message: Message) -> None:
        refused = message["type"] == "http.response.start" and message["status"] in secrets.REFUSED
        if self._held or (refused and self._exchange.secrets):
            self._held.append(message)
        else:
            await self._send(message)
