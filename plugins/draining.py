"""The last thing a worker does: everything in the store, before the server lets the process end.

uvicorn ends a process by the signal it was stopped with, right after LiteLLM's shutdown, so work that merely waits to
be cancelled is never finished. LiteLLM's shutdown in turn waits for requests in flight. So when a signal to stop
arrives, one request of ours goes in flight, which ends when the books are closed.
"""

import asyncio
import logging
import signal
import threading
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any

from fastapi import APIRouter, HTTPException, Request

from plugins import compat

_LOG = logging.getLogger("orchestration")
_PATH = "/orchestration/drain"
_OURS = "orchestration.drain"
_POLL_SECONDS = 0.02
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Draining:
    """Calls `close` once, when LiteLLM has begun to shut down after a signal."""

    def __init__(self, close: Callable[[], Awaitable[None]]) -> None:
        self._close = close
        self._loop = asyncio.get_running_loop()
        self._request: asyncio.Task[None] | None = None

    def router(self) -> APIRouter:
        """The route our own request goes to; nobody else can make one that counts."""
        router = APIRouter(include_in_schema=False)

        @router.post(_PATH)
        async def drain(request: Request) -> dict[str, Any]:
            if request.scope.get(_OURS) is not self:
                raise HTTPException(404)
            while not compat.shutting_down():  # noqa: ASYNC110 - LiteLLM offers no event to wait for
                await asyncio.sleep(_POLL_SECONDS)
            await self._close()
            return {}

        return router

    def follow_signals(self) -> None:
        """Hear of a signal to stop before the server acts on it; its own handlers stay in force."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            before = signal.getsignal(number)
            if callable(before):
                signal.signal(number, self._heard(before))

    def _heard(self, before: Callable[[int, FrameType | None], Any]) -> Callable[[int, FrameType | None], Any]:
        def heard(number: int, frame: FrameType | None) -> Any:
            self._loop.call_soon_threadsafe(self._go_in_flight)
            return before(number, frame)

        return heard

    def _go_in_flight(self) -> None:
        if self._request is None:
            self._request = self._loop.create_task(self._send_request())

    async def _send_request(self) -> None:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": _PATH,
            "raw_path": _PATH.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [],
            "client": None,
            "server": None,
            "state": {},
            _OURS: self,
        }

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start" and message["status"] != 200:
                _LOG.error("closing the books failed; what is not in the store stays in the journal")

        await compat.call_app(scope, receive, send)
