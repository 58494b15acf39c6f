"""Requests that are read, written anew and sent on, and answers that are held until they are complete."""

import secrets
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from core.asgi import App, Message, Receive, Scope, Send
from core.errors import BodyTooLarge, RequestRefused

_ABOUT_BODIES = (b"content-length", b"content-type", b"transfer-encoding", b"content-encoding")
_STEERING = (b"custom-llm-provider", b"accept-encoding")
_KEPT = b"x-litellm-api-key"


def bounded(receive: Receive, most: int) -> Receive:
    """`receive`, which raises `BodyTooLarge` past `most` bytes."""
    size = 0

    async def counted() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > most:
            raise BodyTooLarge(f"The body is larger than the {most} bytes that limits.max_body_bytes allows.")
        return message

    return counted


async def read_body(receive: Receive) -> bytes:
    """The whole body. Raises ConnectionError for a client that leaves before its end."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ConnectionError("the client left")
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def rewritten(
    scope: Scope,
    *,
    path: str | None = None,
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> Scope:
    """The request without what could send it elsewhere: no query, no headers that steer LiteLLM, none about the body
    or compression; `headers` are added."""
    kept = [
        (name, value)
        for name, value in scope["headers"]
        if name not in _ABOUT_BODIES and name not in _STEERING and (name == _KEPT or not name.startswith(b"x-litellm-"))
    ]
    changed: dict[str, Any] = {**scope, "query_string": b"", "headers": [*kept, *headers]}
    if path is not None:
        root = scope.get("root_path", "")
        changed |= {"path": root + path, "raw_path": (root + path).encode()}
    return changed


def replay(body: bytes, receive: Receive) -> Receive:
    """A body that is there, and after it whatever comes."""
    told = False

    async def replayed() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def form(fields: Mapping[str, str], filename: str, content: bytes) -> tuple[bytes, bytes]:
    """A form with a file, and its content type."""
    boundary = secrets.token_hex(24)
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n'
        "Content-Type: application/jsonl\r\n\r\n"
    )
    end = f"\r\n--{boundary}--\r\n"
    return b"".join(
        [*parts, head.encode(), content, end.encode()]
    ), f"multipart/form-data; boundary={boundary}".encode()


class Held:
    """The sending side of an answer that is not to leave before somebody has read it."""

    def __init__(self) -> None:
        self._messages: list[Message] = []

    async def send(self, message: Message) -> None:
        self._messages.append(message)

    @property
    def status(self) -> int:
        """0 where there was no answer."""
        return next((one["status"] for one in self._messages if one["type"] == "http.response.start"), 0)

    def json(self) -> dict[str, Any]:
        """The answer's object; empty for an error, and for anything else."""
        if self.status != 200:
            return {}
        try:
            given = orjson.loads(b"".join(one.get("body", b"") for one in self._messages))
        except orjson.JSONDecodeError:
            return {}
        return given if isinstance(given, dict) else {}

    async def release(self, send: Send) -> None:
        for message in self._messages:
            await send(message)


async def ask_for_models(app: App, scope: Scope, send: Send) -> None:
    """Have LiteLLM say in its own words what is wrong with a key."""

    async def no_body() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    await app({**rewritten(scope, path="/v1/models"), "method": "GET"}, no_body, send)


async def send_json(send: Send, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
    """`value` is anything JSON can say."""
    body = orjson.dumps(value)
    named = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    named += [(name.encode(), text.encode()) for name, text in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": named})
    await send({"type": "http.response.body", "body": body})


async def send_refusal(send: Send, refusal: RequestRefused) -> None:
    await send_json(send, {"error": refusal.body()}, refusal.status, refusal.headers)
