"""A small HTTP or HTTPS server on 127.0.0.1 for doubles of JSON APIs: a thread for each connection, which it keeps."""

from __future__ import annotations

import http.server
import json
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Answer = tuple[int, dict[str, str], object]
"""Status, headers, and what becomes the body: JSON, or a text as it is, or None for none."""


class Request(http.server.BaseHTTPRequestHandler):
    """A request as a double sees it: `command`, `path`, `headers`, `body`, `query`."""

    protocol_version = "HTTP/1.1"
    server: _Http
    body: bytes

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.path).query))

    def answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, headers, content = self.server.answers(self)
        body = b"" if content is None else (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response_only(status)
        for name, value in {"Content-Type": "application/json; charset=utf-8", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = answer

    def setup(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        if self.server.tls is not None:
            self.request = self.server.tls.wrap_socket(self.request, server_side=True)
        self.server.connections.add(self.request)
        self.server.accepted += 1
        super().setup()

    def finish(self) -> None:
        super().finish()
        self.server.connections.discard(self.request)
        self.request.close()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the tests have `requests` of the double."""


class _Http(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, port: int, answers: Callable[[Request], Answer], tls: ssl.SSLContext | None) -> None:
        self.answers = answers
        self.tls = tls
        self.connections: set[socket.socket] = set()
        self.accepted = 0
        super().__init__(("127.0.0.1", port), Request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: clients that go away, or do not trust us, are part of the tests."""


class JsonServer:
    """Listens from the moment it is made until `stop`, on `port` (0 = a free one)."""

    def __init__(
        self, port: int, answers: Callable[[Request], Answer], certificate: ssl.SSLContext | None = None
    ) -> None:
        self._http = _Http(port, answers, certificate)
        self.port = int(self._http.server_address[1])
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def accepted(self) -> int:
        """How many connections there have been."""
        return self._http.accepted

    def stop(self) -> None:
        """Stop listening and cut what is connected."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        for connection in list(self._http.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
