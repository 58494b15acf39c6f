"""An answer as it is kept: what the client saw, and what that had cost."""

import struct
import sys
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

import orjson

from core.record import record

Headers = tuple[tuple[bytes, bytes], ...]

KEPT_HEADERS: Final = frozenset({b"content-type", b"content-encoding", b"content-language"})
"""Headers of an answer that are every reader's. The others are about the one request: its id, its cost, its limits."""

_FORMAT: Final = 1
_PLAIN, _DEFLATED = 0, 1
_BEGINNING: Final = struct.Struct("<BBIIQ")
"""Format, how the rest is packed, and bytes of the header, number of chunks, bytes of the body."""
_COMPRESSED_FROM = 1024
_OVERHEAD = 520
"""Bytes of an entry's own objects, without its texts and body; measured."""


def kept_headers(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    return tuple([header for header in headers if header[0] in KEPT_HEADERS])


@record
class Entry:
    """`body` is the whole answer; `ends` says where each chunk of a stream ends in it, and is empty for what is no
    stream.

    Times are Unix milliseconds. It is fresh for `ttl_ms` from `created_ms`, and may stand in for `stale_ms` more when
    nothing else answers. `cost_nano` is what the answer cost, and each hit saves. `user_id` caused it, `tags` are for
    taking it out by. `reports_usage`: its stream ends with the usage that the client asked for.
    """

    status: int
    headers: Headers
    body: bytes
    ends: "array[int]"
    model: str
    created_ms: int
    ttl_ms: int
    stale_ms: int = 0
    user_id: str | None = None
    task_type: str | None = None
    tags: tuple[str, ...] = ()
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nano: int = 0
    reports_usage: bool = False

    @property
    def is_stream(self) -> bool:
        return bool(self.ends)

    def chunks(self) -> Iterator[bytes]:
        """The parts in which the answer came."""
        start = 0
        for end in self.ends or (len(self.body),):
            yield self.body[start:end]
            start = end

    def fresh(self, now_ms: int) -> bool:
        return now_ms < self.created_ms + self.ttl_ms

    def usable(self, now_ms: int) -> bool:
        """Fresh, or stale and better than nothing."""
        return now_ms < self.created_ms + self.ttl_ms + self.stale_ms

    @property
    def marks(self) -> tuple[str, ...]:
        """By what it can be taken out: `mark` of its model, user, and tags, among them the task type."""
        found = [mark("model", self.model)]
        if self.user_id is not None:
            found.append(mark("user", self.user_id))
        if self.task_type is not None:
            found.append(mark("task_type", self.task_type))
        if self.tags:
            found += [mark("tag", tag) for tag in self.tags]
        return tuple(found)

    @property
    def size(self) -> int:
        """About how many bytes of memory it takes."""
        size = _OVERHEAD + len(self.body) + len(self.ends) * self.ends.itemsize
        for name, value in self.headers:
            size += len(name) + len(value) + 130
        for text in self.tags:
            size += sys.getsizeof(text) + 8
        return size + sys.getsizeof(self.model) + sys.getsizeof(self.user_id) + sys.getsizeof(self.task_type) + 24


def mark(kind: str, name: str) -> str:
    """What entries can be taken out by: `model:gpt`, `user:ada`, `tag:docs`."""
    return f"{kind}:{name}"


def ends_of(chunks: Sequence[bytes]) -> "array[int]":
    """`Entry.ends` of the chunks of a stream."""
    ends, end = array("I"), 0
    for chunk in chunks:
        end += len(chunk)
        ends.append(end)
    return ends


def packed(entry: Entry) -> bytes:
    """An entry as bytes, compressed where that pays. Takes some 10 ms a MiB."""
    header = orjson.dumps(
        (
            entry.status,
            [(name.decode("latin-1"), value.decode("latin-1")) for name, value in entry.headers],
            entry.model,
            entry.created_ms,
            entry.ttl_ms,
            entry.stale_ms,
            entry.user_id,
            entry.task_type,
            entry.tags,
            entry.input_tokens,
            entry.output_tokens,
            entry.cost_nano,
            entry.reports_usage,
        )
    )
    rest = b"".join((header, struct.pack(f"<{len(entry.ends)}I", *entry.ends), entry.body))
    how = _PLAIN
    if len(rest) >= _COMPRESSED_FROM:
        deflated = zlib.compress(rest, 1)
        if len(deflated) < len(rest):
            how, rest = _DEFLATED, deflated
    return _BEGINNING.pack(_FORMAT, how, len(header), len(entry.ends), len(entry.body)) + rest


def unpacked(data: bytes, most: int) -> Entry:
    """The inverse of `packed`. Raises ValueError for what is no entry of this version, or has more than `most` bytes
    of body."""
    try:
        form, how, header_bytes, chunks, body_bytes = _BEGINNING.unpack_from(data)
        length = header_bytes + 4 * chunks + body_bytes
        if form != _FORMAT or body_bytes > most or length > 5 * most + 65_536:
            raise ValueError("no entry of this version or size")
        rest = data[_BEGINNING.size :]
        if how == _DEFLATED:
            rest = zlib.decompressobj().decompress(rest, length + 1)
        if len(rest) != length:
            raise ValueError("an entry that is cut or too long")
        return _read(rest, header_bytes, chunks)
    except (struct.error, zlib.error, TypeError, KeyError, orjson.JSONDecodeError) as error:
        raise ValueError(f"no entry: {type(error).__name__}") from error


def _read(rest: bytes, header_bytes: int, chunks: int) -> Entry:
    fields: list[Any] = orjson.loads(rest[:header_bytes])
    status, headers, model, created, ttl, stale, user, task, tags, tokens_in, tokens_out, cost, usage = fields
    body_at = header_bytes + 4 * chunks
    ends = array("I", struct.unpack_from(f"<{chunks}I", rest, header_bytes))
    body = rest[body_at:]
    if any(after < before for before, after in pairwise(ends)) or (ends and ends[-1] != len(body)):
        raise ValueError("chunks that are none of the body")
    return Entry(
        status=int(status),
        headers=tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers),
        body=body,
        ends=ends,
        model=str(model),
        created_ms=int(created),
        ttl_ms=int(ttl),
        stale_ms=int(stale),
        user_id=user,
        task_type=task,
        tags=tuple(tags),
        input_tokens=int(tokens_in),
        output_tokens=int(tokens_out),
        cost_nano=int(cost),
        reports_usage=bool(usage),
    )
