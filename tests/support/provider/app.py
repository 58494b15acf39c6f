"""The fake provider's ASGI app: reads a request, asks the script what to do, does it, and writes the bill."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from tests.support.provider.answers import DIALECTS, Answer, Dialect, error, plan
from tests.support.provider.bill import Attempt, Bill, Outcome
from tests.support.provider.script import BEHAVIOUR_HEADER, Behaviour, Script

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_JSON = (b"content-type", b"application/json")
_EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")
_MALFORMED = b'{"id": "fake-broken", "choices": [{"index": 0, "mess'
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Gate:
    """Where hanging requests wait until a test lets them go. Usable from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    @property
    def held(self) -> int:
        """How many requests hang right now."""
        return len(self._held)

    def release(self) -> None:
        """Let every hanging request go on."""
        with self._lock:
            held = list(self._held)
        for loop, event in held:
            loop.call_soon_threadsafe(event.set)

    async def wait(self) -> None:
        place = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            self._held.add(place)
        try:
            await place[1].wait()
        finally:
            with self._lock:
                self._held.discard(place)


class ClientLeft(Exception):
    """The client closed the connection before the answer was complete."""


class _Exchange:
    """One request's connection: waiting that notices the client's leaving, sending, and breaking off."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self.send = send
        self._departure: asyncio.Task[Message] | None = None

    async def body(self) -> bytes:
        message = await self._receive()
        body: bytes = message.get("body", b"")
        while message.get("more_body"):
            message = await self._receive()
            body += message.get("body", b"")
        return body

    async def until(self, waiting: Awaitable[None]) -> None:
        """Wait for something, or raise ClientLeft as soon as the client is gone."""
        if self._departure is None:
            # Past the body, the next message can only be http.disconnect.
            self._departure = asyncio.ensure_future(self._receive())
        task = asyncio.ensure_future(waiting)
        await asyncio.wait({task, self._departure}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            raise ClientLeft

    async def start(self, status: int, *headers: tuple[bytes, bytes]) -> None:
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes, *, more: bool) -> None:
        await self.send({"type": "http.response.body", "body": data, "more_body": more})

    @property
    def _transport(self) -> asyncio.Transport:
        # `send` is a method of uvicorn's request cycle. ASGI itself has no way to drop a connection.
        return self.send.__self__.transport  # type: ignore[attr-defined]

    def cut(self) -> None:
        """Close the connection in the middle of the answer; what was written still arrives."""
        self._transport.close()

    def reset(self) -> None:
        """Make the client see a connection reset."""
        connection = self._transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._transport.abort()

    def close(self) -> None:
        if self._departure is not None:
            self._departure.cancel()


def _api_key(headers: dict[bytes, bytes]) -> str:
    bearer = headers.get(b"authorization", b"")
    if bearer[:7].lower() == b"bearer ":
        return bearer[7:].decode("latin-1")
    return (headers.get(b"x-api-key") or headers.get(b"api-key") or b"").decode("latin-1")


class ProviderApp:
    """An ASGI app that answers as OpenAI and Anthropic do, however its script says."""

    def __init__(self, *, itemised: bool = True) -> None:
        self.script = Script()
        self.bill = Bill(itemised=itemised)
        self.gate = Gate()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "the fake provider is started without a lifespan"
        path: str = scope["path"]
        exchange = _Exchange(receive, send)
        endpoint = path if path in DIALECTS else _endpoint(path)
        if scope["method"] == "POST" and endpoint is not None:
            try:
                await self._answer(endpoint, dict(scope["headers"]), exchange)
            finally:
                exchange.close()
        elif path.endswith("/models"):
            models = [{"id": "fake", "object": "model", "created": 0, "owned_by": "fake"}]
            await _whole(exchange, 200, {"object": "list", "data": models})
        elif path.startswith("/_control/"):
            await self._control(path.removeprefix("/_control/"), exchange)
        else:
            await _whole(exchange, 404, error(path, 404))

    async def _answer(self, endpoint: str, headers: dict[bytes, bytes], exchange: _Exchange) -> None:
        raw = await exchange.body()
        try:
            body = orjson.loads(raw)
            model = str(body["model"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            await _whole(exchange, 400, error(endpoint, 400))
            return
        api_key = _api_key(headers)
        behaviour, status = self.script.take(model, api_key)
        if (own := headers.get(BEHAVIOUR_HEADER.encode())) is not None:
            behaviour = Behaviour.from_mapping(orjson.loads(own))
            status = behaviour.statuses[0] if behaviour.statuses else behaviour.status
        dialect = DIALECTS[endpoint]
        streamed = bool(body.get("stream")) and dialect.stream is not None
        attempt = Attempt(
            at=time.time(),
            endpoint=endpoint,
            model=model,
            api_key=api_key,
            body_sha256=hashlib.sha256(raw).hexdigest(),
            streamed=streamed,
            body=body,
        )
        self.bill.open(attempt)
        answer = plan(endpoint, body, behaviour)
        outcome: Outcome = "abandoned"
        try:
            outcome = await self._perform(exchange, attempt, dialect, answer, behaviour, status)
        except ClientLeft:
            # Nobody listens any more, but the model has worked: a whole answer costs the same, heard or not.
            if status < 400 or behaviour.bill_failures:
                _charge(attempt, answer, whole=not streamed)
        finally:
            self.bill.close(attempt, outcome)

    async def _perform(
        self,
        exchange: _Exchange,
        attempt: Attempt,
        dialect: Dialect,
        answer: Answer,
        behaviour: Behaviour,
        status: int,
    ) -> Outcome:
        if behaviour.first_byte_delay:
            await exchange.until(asyncio.sleep(behaviour.first_byte_delay))
        if behaviour.hang:
            await exchange.until(self.gate.wait())
        attempt.status = status
        if status >= 400:
            if behaviour.bill_failures:
                _charge(attempt, answer, whole=True)
            extra = [] if behaviour.retry_after is None else [(b"retry-after", b"%g" % behaviour.retry_after)]
            await _whole(exchange, status, error(attempt.endpoint, status), *extra)
            return "refused" if status < 500 else "failed"
        if behaviour.reset_connection:
            attempt.status = 0
            _charge(attempt, answer, whole=True)
            exchange.reset()
            return "reset"
        if attempt.streamed:
            return await self._stream(exchange, attempt, dialect, answer, behaviour)
        _charge(attempt, answer, whole=True)
        if behaviour.malformed:
            await exchange.start(status, _JSON)
            await exchange.write(_MALFORMED, more=False)
            return "malformed"
        await _whole(exchange, status, dialect.whole(answer, attempt.body))
        return "answered"

    async def _stream(
        self, exchange: _Exchange, attempt: Attempt, dialect: Dialect, answer: Answer, behaviour: Behaviour
    ) -> Outcome:
        assert dialect.stream is not None
        _charge(attempt, answer, whole=False)
        await exchange.start(attempt.status, _EVENTS)
        for sent, event in enumerate(dialect.stream(answer, attempt.body)):
            if behaviour.chunk_delay and sent:
                await exchange.until(asyncio.sleep(behaviour.chunk_delay))
            if sent == behaviour.cut_after_chunks:
                exchange.cut()
                return "cut"
            if sent == behaviour.end_after_chunks:
                await exchange.write(b"", more=False)
                return "cut"
            if sent == behaviour.hang_after_chunks:
                await exchange.until(self.gate.wait())
            attempt.completion_tokens += event.tokens
            await exchange.write(b"data: " + _MALFORMED + b"\n\n" if behaviour.malformed else event.data, more=True)
            if behaviour.malformed:
                await exchange.write(b"", more=False)
                return "malformed"
        await exchange.write(b"", more=False)
        return "answered"

    async def _control(self, command: str, exchange: _Exchange) -> None:
        """What a test in another process may ask; `ProviderProcess` in this package is the client."""
        given = orjson.loads(await exchange.body() or b"{}")
        result: object = {}
        if command == "script":
            behaviour = Behaviour.from_mapping(given["behaviour"])
            self.script.set(behaviour, model=given.get("model"), api_key=given.get("api_key"))
        elif command == "reset":
            self.script.reset()
            self.bill.reset()
            self.gate.release()
        elif command == "release":
            self.gate.release()
        elif command == "held":
            result = self.gate.held
        elif command == "bill":
            result = self.bill.attempts
        elif command == "totals":
            result = self.bill.totals
        else:
            await _whole(exchange, 404, {"error": f"unknown command {command}"})
            return
        await _whole(exchange, 200, result)


def _endpoint(path: str) -> str | None:
    """The API endpoint that a path with another prefix means, as of a deployment or a base URL without /v1."""
    for endpoint in DIALECTS:
        if path.endswith(endpoint.removeprefix("/v1")):
            return endpoint
    return None


def _charge(attempt: Attempt, answer: Answer, *, whole: bool) -> None:
    """Bill the input, and with `whole` all of the output at once."""
    attempt.prompt_tokens = answer.prompt_tokens
    attempt.cached_tokens = answer.cached_tokens
    attempt.reasoning_tokens = answer.reasoning_tokens * answer.choices
    if whole:
        attempt.completion_tokens = answer.completion_tokens


async def _whole(exchange: _Exchange, status: int, value: object, *headers: tuple[bytes, bytes]) -> None:
    data = orjson.dumps(value)
    await exchange.start(status, _JSON, (b"content-length", b"%d" % len(data)), *headers)
    await exchange.write(data, more=False)
