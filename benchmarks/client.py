"""A load generator that is light enough to share a machine with what it measures: raw HTTP/1.1 over asyncio."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import httptools


class Interrupted(ConnectionError):
    """The connection ended before the answer did."""


@dataclass(slots=True)
class Answer:
    """An answer that arrived in full. `seconds` is from the request's first byte to the answer's last."""

    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    body: bytes = b""
    seconds: float = 0.0


class Connection(asyncio.Protocol):
    """One keep-alive connection; one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer = Answer()
        self._body: list[bytes] = []
        self._waiting: asyncio.Future[None] | None = None
        self._parser = httptools.HttpResponseParser(self)

    @classmethod
    async def open(cls, port: int) -> Connection:
        """A connection to 127.0.0.1. Raises OSError when nobody listens."""
        _, connection = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return connection

    async def ask(self, request: bytes) -> Answer:
        """Send a whole request and wait for the whole answer. Raises Interrupted when the connection ends before."""
        if self._transport is None or not self.is_open:
            raise Interrupted("the connection is closed")
        self._answer, self._body = Answer(), []
        self._parser = httptools.HttpResponseParser(self)
        self._waiting = asyncio.get_running_loop().create_future()
        started = time.perf_counter()
        self._transport.write(request)
        await self._waiting
        self._answer.seconds = time.perf_counter() - started
        self._answer.body = b"".join(self._body)
        return self._answer

    @property
    def is_open(self) -> bool:
        """Whether neither side has closed it: servers do after some idle seconds."""
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # ---- asyncio calls these ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(Interrupted("the connection ended before the answer did"))

    # ---- the parser calls these ----

    def on_header(self, name: bytes, value: bytes) -> None:
        self._answer.headers[name.lower()] = value

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        self._answer.status = self._parser.get_status_code()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


def post(path: str, body: Mapping[str, Any], key: str) -> bytes:
    """The bytes of a POST request with a JSON body."""
    payload = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
    )
    return head.encode() + payload


def get(path: str) -> bytes:
    """The bytes of a GET request without credentials."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


@dataclass(slots=True)
class Window:
    """Load while it lasted: seconds as a whole, and each request's."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list[float])

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.latencies) / self.seconds


class Clients:
    """Keep-alive connections that ask at the same time: `async with Clients(port, 16) as clients:`."""

    def __init__(self, port: int, connections: int) -> None:
        self._port = port
        self._count = connections
        self._connections: list[Connection] = []

    async def __aenter__(self) -> Clients:
        self._connections = [await Connection.open(self._port) for _ in range(self._count)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.close()

    async def send(self, request: bytes, count: int, window: Window) -> None:
        """Send `request` `count` times, every connection its next as soon as its last is answered; adds to `window`.

        Raises a group with a RuntimeError on an answer that is not a 200: figures of failures would mean nothing.
        """
        tickets = itertools.count()
        started = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for connection in self._connections[:count]:
                tasks.create_task(_keep_asking(connection, request, tickets, count, window))
        window.seconds += time.perf_counter() - started


async def _keep_asking(
    connection: Connection, request: bytes, tickets: itertools.count[int], count: int, window: Window
) -> None:
    while next(tickets) < count:
        answer = await connection.ask(request)
        if answer.status != 200:
            raise RuntimeError(f"the proxy answered {answer.status}: {answer.body[:500]!r}")
        window.latencies.append(answer.seconds)
