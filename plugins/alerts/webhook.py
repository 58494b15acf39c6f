"""Our own webhook: JSON, signed, sent to the address that was checked."""

import asyncio
import hashlib
import hmac
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import quote, unquote, urlsplit

import orjson

from plugins.alerts.destination import Reach
from plugins.alerts.message import Message, NotSent, refusal, seconds_of

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host. Raises OSError where it has none."""

TIMEOUT = 10.0
_CONNECT_TIMEOUT = 4.0
_MOST_ADDRESSES = 4
_AS_WRITTEN = "/?%:@!$&'()*+,;=~-._"

_trusted: ssl.SSLContext | None = None


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """`v1=` and the HMAC-SHA256, in hexadecimal, of the timestamp (Unix seconds), a full stop and the body."""
    return "v1=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


class Webhook:
    """Posts to one URL. Redirects are not followed and no proxy of the environment is used: either would lead past the
    check of the address."""

    def __init__(
        self,
        url: str,
        secret: str,
        reach: Reach,
        *,
        clock: Callable[[], float] = time.time,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Raises NotSent for what is no http or https URL with a host, and for one without a secret."""
        try:
            parts = urlsplit(url)
            host = (parts.hostname or "").encode("idna").decode()
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:  # a UnicodeError is one
            raise NotSent("the channel's webhook URL is malformed", retryable=False) from None
        if parts.scheme not in ("http", "https") or not host:
            raise NotSent("the channel's webhook URL must be webhook+https://<host>/<path>", retryable=False)
        if not secret:
            raise NotSent("the webhook has no key to sign with; add ?secret=<key> or a secret", retryable=False)
        self._parts = parts
        self._host = host
        bracketed = f"[{host}]" if ":" in host else host
        self._called = bracketed if parts.port is None else f"{bracketed}:{port}"
        self._port = port
        query = f"?{parts.query}" if parts.query else ""
        self._target = quote(f"{parts.path or '/'}{query}", safe=_AS_WRITTEN)
        self._secret = secret
        self._reach = reach
        self._clock = clock
        self._resolve = resolve or _addresses
        self._tls = tls

    def __repr__(self) -> str:
        return f"Webhook({self._host})"

    async def send(self, message: Message) -> None:
        """Post it; any answer of 2xx is taken for a receipt. Raises NotSent."""
        body = orjson.dumps(
            {
                "id": message.id,
                "event": message.event,
                "severity": message.severity,
                "subject": message.subject,
                "message": message.text,
                "details": dict(message.details),
                "times": message.times,
                "time_ms": message.time_ms,
            }
        )
        timestamp = str(int(self._clock()))
        headers = {
            "content-type": "application/json",
            "user-agent": "litellm-orchestration",
            "host": self._called,
            **self._authorization(),
            "x-orchestration-timestamp": timestamp,
            "x-orchestration-signature": signature(self._secret, timestamp, body),
            "x-orchestration-delivery": message.id,
        }
        try:
            async with asyncio.timeout(TIMEOUT):
                status, retry_after = await self._post(await self._checked(), headers, body)
        except TimeoutError:
            raise NotSent(f"{self._host} did not answer within {TIMEOUT:g} s") from None
        if not 200 <= status < 300:
            raise refusal(self._host, status, seconds_of(retry_after, self._clock()))

    def _authorization(self) -> dict[str, str]:
        if self._parts.username is None:
            return {}
        credentials = f"{unquote(self._parts.username)}:{unquote(self._parts.password or '')}"
        return {"authorization": "Basic " + b64encode(credentials.encode()).decode()}

    async def _checked(self) -> Sequence[str]:
        """The addresses of the host, if all of them may be connected to."""
        try:
            addresses = await self._resolve(self._host, self._port)
        except (OSError, UnicodeError):
            raise NotSent(f"{self._host} has no address; check the name and the DNS") from None
        for address in addresses:
            if not self._reach.allows(self._host, address):
                message = (
                    f"{self._host} is at {address}, which is not a public address; "
                    "name the host in alerts.allowed_hosts if that is meant"
                )
                raise NotSent(message, retryable=False)
        return addresses[:_MOST_ADDRESSES]

    async def _post(self, addresses: Sequence[str], headers: dict[str, str], body: bytes) -> tuple[int, str | None]:
        # Not httpx, which logs every URL whole.
        import httpcore

        context = await self._context() if self._parts.scheme == "https" else None
        why = "it has no address"
        for address in addresses:
            try:
                async with httpcore.AsyncConnectionPool(ssl_context=context) as connections:
                    # The certificate is asked for, and checked, by the name; the connection goes to the address.
                    url = httpcore.URL(scheme=self._parts.scheme, host=address, port=self._port, target=self._target)
                    more = {"sni_hostname": self._host, "timeout": {"connect": _CONNECT_TIMEOUT}}
                    sent = [(name.encode(), value.encode()) for name, value in headers.items()]
                    async with connections.stream("POST", url, headers=sent, content=body, extensions=more) as got:
                        return got.status, _header(got.headers, b"retry-after")
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                # Another address may answer; nothing has been sent to this one.
                why = "its certificate is not trusted" if "CERTIFICATE" in str(error) else "the connection failed"
            except (httpcore.NetworkError, httpcore.ProtocolError) as error:
                raise NotSent(f"{self._host} did not take it: {type(error).__name__}") from None
        raise NotSent(f"{self._host} cannot be reached: {why}")

    async def _context(self) -> ssl.SSLContext:
        """Whom to trust; reading that takes long enough to be felt, so it is done once and in a thread."""
        global _trusted
        if self._tls is not None:
            return self._tls
        if _trusted is None:
            import httpx

            _trusted = await asyncio.to_thread(httpx.create_ssl_context)
        return _trusted


def _header(headers: Sequence[tuple[bytes, bytes]], wanted: bytes) -> str | None:
    return next((value.decode("latin-1") for name, value in headers if name.lower() == wanted), None)


async def _addresses(host: str, port: int) -> Sequence[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
