"""An httpx transport into an ASGI app that streams; httpx's own waits for the whole answer."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx

from core.asgi import App, Message

_BUFFERED_MESSAGES = 16


class StreamingASGITransport(httpx.AsyncBaseTransport):
    """Runs each request as a task of the app; closing the answer early looks to the app like a client that left."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        exchange = _Exchange(body)
        task = asyncio.create_task(self._run(_scope(request), exchange))
        start = await exchange.next_message()
        if start is None:
            await task
            raise httpx.RemoteProtocolError("the app ended without an answer", request=request)
        return httpx.Response(
            start["status"], headers=start.get("headers", []), stream=_Body(exchange, task), request=request
        )

    async def _run(self, scope: dict[str, Any], exchange: "_Exchange") -> None:
        try:
            await self._app(scope, exchange.receive, exchange.send)
        finally:
            await exchange.answers.put(None)


class _Exchange:
    def __init__(self, body: bytes) -> None:
        self.answers: asyncio.Queue[Message | None] = asyncio.Queue(_BUFFERED_MESSAGES)
        self.left = asyncio.Event()
        self._body: bytes | None = body

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if not self.left.is_set():
            await self.answers.put(message)

    async def next_message(self) -> Message | None:
        return await self.answers.get()


class _Body(httpx.AsyncByteStream):
    def __init__(self, exchange: _Exchange, task: "asyncio.Task[None]") -> None:
        self._exchange = exchange
        self._task = task

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (message := await self._exchange.next_message()) is not None:
            if chunk := message.get("body", b""):
                yield chunk
        await self._task

    async def aclose(self) -> None:
        self._exchange.left.set()
        while not self._task.done():
            # An app that is blocked on a full queue can only notice that nobody listens once there is room.
            while not self._exchange.answers.empty():
                self._exchange.answers.get_nowait()
            await asyncio.wait({self._task}, timeout=0.05)


def _scope(request: httpx.Request) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.url.scheme,
        "path": request.url.path,
        "raw_path": request.url.raw_path.split(b"?")[0],
        "query_string": request.url.query,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "client": ("127.0.0.1", 0),
        "server": (request.url.host, request.url.port or 80),
        "state": {},
    }
