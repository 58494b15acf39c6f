"""An answer as its client sees it, taken down while it is sent."""

import re
from array import array
from collections.abc import Iterable

import orjson

from core.asgi import Message
from core.cache.entry import Headers, ends_of, kept_headers
from core.money import to_dollars


class Recording:
    """Takes the messages of an ASGI answer; `chunks` is None once there was more than `most` bytes."""

    __slots__ = ("chunks", "complete", "headers", "most", "size", "status", "stream")

    def __init__(self, most: int) -> None:
        self.most = most
        self.status = 0
        self.headers: Headers = ()
        self.stream = False
        self.chunks: list[bytes] | None = []
        self.size = 0
        self.complete = False

    def start(self, message: Message, stream: bool) -> None:
        self.status, self.stream = message["status"], stream
        self.headers = kept_headers(message.get("headers", ()))

    def body(self, message: Message) -> None:
        chunk: bytes = message.get("body", b"")
        self.size += len(chunk)
        if self.size > self.most:
            self.chunks = None
        elif chunk and self.chunks is not None:
            self.chunks.append(chunk)
        if not message.get("more_body", False):
            self.complete = True

    def without_cost(self, cost_nano: int) -> list[bytes]:
        """The chunks, with the cost that a stream's last events name made that of a hit."""
        chunks = self.chunks or []
        return free(chunks, cost_nano) if self.stream else chunks


def free(chunks: Iterable[bytes], cost_nano: int) -> list[bytes]:
    """Chunks of a stream in which a cost stands as `plugins.edge` writes it, which costs nothing now."""
    told = b'"cost":' + orjson.dumps(float(to_dollars(cost_nano)))
    # Inside a text the quotes would be escaped.
    return [chunk.replace(told, b'"cost":0.0') for chunk in chunks]


def for_nothing(chunk: bytes) -> bytes:
    """A chunk of a stream as whoever shares it gets it, wherever a cost stands in it."""
    return _COST.sub(b'"cost":0.0', chunk) if b'"cost":' in chunk else chunk


_COST = re.compile(rb'"cost":[0-9.eE+-]+')


def as_one(chunks: list[bytes], stream: bool) -> "tuple[bytes, array[int]]":
    """`Entry.body` and `Entry.ends`."""
    return b"".join(chunks), ends_of(chunks) if stream else array("I")
