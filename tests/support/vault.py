"""A double of HashiCorp Vault: its REST API over HTTP or HTTPS, in a thread, told what to do wrong.

`with VaultDouble() as vault: vault.kv2("secret/app", key="sk-1"); vault.url, vault.token(policies=("reader",))`. What
it answers is in `vault_api.py`; what goes wrong is here: sealed, standby, throttled, slow, silent, away.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

import trustme

from tests.support.vault_api import Namespace, Role, Token, VaultApi, Version

Answer = tuple[int, dict[str, Any] | str, dict[str, str]]
"""Status, body and headers; a text for a body is sent as it is."""


class VaultDouble:
    """A Vault on a free port of 127.0.0.1. Everything is in the root namespace unless `namespace` is given.

    `tls` is a folder in which the files of a CA of its own are made: `ca_file`. `calls` counts requests by method and
    path without `/v1/`; `seen` holds what was asked, in order, with the namespace; `header_names` what came with it;
    `connections` counts those that were made.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        *,
        tls: Path | None = None,
        hostname: str = "localhost",
        client_certificates: bool = False,
    ) -> None:
        self.api = VaultApi(clock)
        self.calls: Counter[str] = Counter()
        self.seen: list[tuple[str, str, str]] = []
        self.header_names: set[str] = set()
        self.connections = 0
        self.mode = "active"
        """active | standby | performance_standby | dr_secondary | redirecting | sealed | uninitialised | silent."""
        self.redirect_to = ""
        self.latency = 0.0
        self.gate = threading.Event()
        """Cleared, it holds back every answer."""
        self.gate.set()
        self._next: list[tuple[str, Answer]] = []
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._server: _Server | None = None
        self.port = 0
        self._context = self._tls(tls, hostname, client_certificates) if tls else None

    @property
    def url(self) -> str:
        return f"{'https' if self._context else 'http'}://localhost:{self.port}"

    def __enter__(self) -> Self:
        self.back()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gate.set()
        self.away()

    # -- what is in it --

    def namespace(self, name: str) -> Namespace:
        return self.api.namespaces.setdefault(name, Namespace())

    def mount(self, path: str, kind: str = "kv", version: str | None = "2", namespace: str = "") -> None:
        """An engine; `kv` of a version, or another kind (version None)."""
        self.namespace(namespace).mounts[path] = (kind, {"version": version} if version else None)

    def kv2(self, path: str, namespace: str = "", delete_at: float = 0, **fields: Any) -> int:
        """A new version of a secret; `path` as a reference has it, with a mount of one segment made if need be."""
        space = self.namespace(namespace)
        if not any(path.startswith(f"{mount}/") for mount in space.mounts):
            self.mount(path.partition("/")[0], namespace=namespace)
        versions = space.kv2.setdefault(path, [])
        versions.append(Version(fields, self.api.clock(), delete_at))
        return len(versions)

    def version(self, path: str, number: int, namespace: str = "") -> Version:
        return self.namespace(namespace).kv2[path][number - 1]

    def kv1(self, path: str, namespace: str = "", **fields: Any) -> None:
        space = self.namespace(namespace)
        if not any(path.startswith(f"{mount}/") for mount in space.mounts):
            self.mount(path.partition("/")[0], version="1", namespace=namespace)
        space.kv1[path] = fields

    def database(self, role: str, *, mount: str = "database", namespace: str = "", **fields: Any) -> Role:
        self.mount(mount, "database", None, namespace)
        return self.namespace(namespace).databases.setdefault(mount, {}).setdefault(role, Role(**fields))

    def policy(self, name: str, *paths: str, can: str = "read", namespace: str = "") -> None:
        self.namespace(namespace).policies[name] = {path: [can] for path in paths}

    def token(self, *policies: str, ttl: float = 0, namespace: str = "", token: str = "", **fields: Any) -> str:
        """A token of these policies and `default`; none: root."""
        token = token or f"hvs.{uuid.uuid4().hex}"
        given = fields.pop("exactly", None) or ((*policies, "default") if policies else ("root",))
        self.api.new_token(self.namespace(namespace), token, Token(given, self.api.clock(), ttl, **fields))
        return token

    def revoke(self, token: str, namespace: str = "") -> None:
        space = self.namespace(namespace)
        for lease in space.tokens.pop(token).leases:
            space.leases.pop(lease, None)

    def approle(self, *policies: str, mount: str = "approle", namespace: str = "", **fields: Any) -> Role:
        role = Role((*policies, "default"), role_id=uuid.uuid4().hex, secret_ids={uuid.uuid4().hex}, **fields)
        self.namespace(namespace).auth.setdefault(mount, {})[uuid.uuid4().hex] = role
        return role

    def kubernetes(self, role: str, jwt: str, *policies: str, mount: str = "kubernetes", **fields: Any) -> Role:
        made = Role((*policies, "default"), jwts={jwt}, **fields)
        self.namespace("").auth.setdefault(mount, {})[role] = made
        return made

    # -- what goes wrong --

    def answer_next(self, path: str, status: int, *errors: str, times: int = 1, **headers: str) -> None:
        """Answer the next requests for paths that start so with a status; `Retry_After="3"` is a header."""
        body: dict[str, Any] = {"errors": list(errors)}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._next += [(path, (status, body, named))] * times

    def page_next(self, path: str, status: int, page: str) -> None:
        """Answer the next request for a path that starts so with a page that is not Vault's."""
        self._next.append((path, (status, page, {"Content-Type": "text/html"})))

    def away(self) -> None:
        """Stop listening, and break off what is open."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def back(self) -> None:
        """Listen (again) on the same port."""
        self._server = _Server(("127.0.0.1", self.port), _Handler, self)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), name="vault-double", daemon=True).start()

    # -- answering --

    def handle(self, method: str, target: str, headers: Any, body: dict[str, Any]) -> Answer | None:
        """Status, body and headers; None = break the connection off."""
        parts = urlsplit(target)
        path = unquote(parts.path.removeprefix("/v1/"))
        namespace = headers.get("X-Vault-Namespace", "").strip("/")
        with self._lock:
            self.calls[f"{method} {path}"] += 1
            self.seen.append((method, path, namespace))
            self.header_names |= {name.lower() for name in headers}
            planned = next((one for one in self._next if path.startswith(one[0])), None)
            if planned is not None:
                self._next.remove(planned)
        self.gate.wait()
        if self.latency:
            time.sleep(self.latency)
        if planned is not None:
            return planned[1]
        if path == "sys/health":
            return self._health(namespace)
        match self.mode:
            case "silent":
                return None
            case "sealed" | "uninitialised":
                return 503, {"errors": ["Vault is sealed"]}, {}
            case "dr_secondary":
                return 400, {"errors": ["path disabled in replication DR secondary mode"]}, {}
            case "redirecting":
                return 307, {}, {"Location": f"{self.redirect_to}{target}"}
        with self._lock:
            token = headers.get("X-Vault-Token", "")
            status, answer = self.api.answer(method, path, dict(parse_qsl(parts.query)), body, token, namespace)
        return status, answer, {}

    def _health(self, namespace: str) -> Answer:
        if namespace:
            return 404, {"errors": ["unsupported path"]}, {}
        statuses = {"standby": 429, "dr_secondary": 472, "performance_standby": 473, "uninitialised": 501}
        body = {
            "initialized": self.mode != "uninitialised",
            "sealed": self.mode in {"sealed", "uninitialised"},
            "standby": self.mode in {"standby", "redirecting"},
            "performance_standby": self.mode == "performance_standby",
            "version": "1.20.0",
            "cluster_name": "double",
        }
        return {**statuses, "sealed": 503, "redirecting": 429}.get(self.mode, 200), body, {}

    def _tls(self, folder: Path, hostname: str, client_certificates: bool) -> ssl.SSLContext:
        authority = trustme.CA()
        self.ca_file, self.client_file = folder / "ca.pem", folder / "client.pem"
        authority.cert_pem.write_to_path(self.ca_file)
        authority.issue_cert("client@example.com").private_key_and_cert_chain_pem.write_to_path(self.client_file)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(hostname).configure_cert(context)
        if client_certificates:
            context.verify_mode = ssl.CERT_REQUIRED
            authority.configure_trust(context)
        return context

    def wrapped(self, connection: socket.socket) -> socket.socket:
        """The connection, with TLS where it is spoken; the handshake is made by the connection's own thread."""
        if self._context is not None:
            connection = self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        with self._lock:
            self._open.add(connection)
            self.connections += 1
        return connection

    def dropped(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.discard(connection)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], vault: VaultDouble) -> None:
        self.vault = vault
        super().__init__(address, handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        return self.vault.wrapped(connection), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that broke off, or does not trust us, is meant."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    server: _Server

    def finish(self) -> None:
        self.server.vault.dropped(self.connection)
        with suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        answer = self.server.vault.handle(self.command, self.path, self.headers, body)
        if answer is None:
            self.close_connection = True
            return
        status, content, headers = answer
        text = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Cache-Control": "no-store", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = do_DELETE = _serve
