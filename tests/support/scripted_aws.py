"""An AWS that gives the answers it is told to: for what moto never does."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType


class ScriptedAws:
    """A server that answers every request as `answer` last said, and keeps count of them."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.forget()
        self._released = threading.Event()
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else headers and body, two packets, wait 40 ms for each other

            def setup(self) -> None:
                script.connections += 1
                super().setup()

            def do_GET(self) -> None:
                script.bodies.append(self.rfile.read(int(self.headers.get("content-length", 0))))
                script.requests.append({name.lower(): value for name, value in self.headers.items()})
                if script._delay:
                    script._released.wait(script._delay)
                self.send_response(script._status)
                for name, value in {**script._headers, "content-length": str(len(script._body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(script._body)

            do_POST = do_PUT = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_port}"

    def forget(self) -> None:
        """Begin anew: no requests, and an empty answer to each."""
        self.requests: list[Mapping[str, str]] = []
        """The headers of each request."""
        self.bodies: list[bytes] = []
        self.connections = 0
        self.answer(200, {})

    def answer(
        self,
        status: int = 200,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        delay: float = 0.0,
    ) -> None:
        """What to answer from now on: `body` as JSON, or as it is where it is bytes; `delay` in seconds."""
        self._status, self._delay, self._headers = status, delay, dict(headers or {})
        self._body = body if isinstance(body, bytes) else json.dumps(body).encode()

    def refuse(
        self, code: str, message: str = "", *, status: int = 400, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer with an error as AWS's JSON services write them."""
        self.answer(status, {"__type": code, "message": message}, headers={"x-amzn-errortype": code, **(headers or {})})

    def __enter__(self) -> ScriptedAws:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
