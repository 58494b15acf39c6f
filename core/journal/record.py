"""One line of the journal: `<crc32 in hex> <kind><json>`, so that a torn or damaged line is seen for what it is."""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any
from zlib import crc32

import orjson

from core.journal.amendment import Amendment
from core.journal.sent import SentAttempt
from core.usage import UsageEvent

_EVENT = b"E"
_AMENDMENT = b"A"
_SENT = b"S"
_PREFIX = 9  # eight hex digits and a space
_SENT_LINE = re.compile(rb"^[0-9a-f]{8} S.*\n", re.MULTILINE)


@dataclass(slots=True)
class Rejected:
    """A line that is whole and cannot be used, and why."""

    line: bytes
    reason: str


@dataclass(slots=True)
class Batch:
    """What one read of a segment gave. `end` is the offset behind it; `torn` counts lines with a wrong checksum.

    Attempts that were sent are not read: they matter only once their process is no more (`unanswered`).
    """

    end: int
    events: list[UsageEvent] = field(default_factory=list[UsageEvent])
    amendments: list[Amendment] = field(default_factory=list[Amendment])
    rejected: list[Rejected] = field(default_factory=list[Rejected])
    torn: int = 0

    @property
    def records(self) -> int:
        """Lines that were whole, without those of attempts that were sent."""
        return len(self.events) + len(self.amendments) + len(self.rejected)


def encode(record: UsageEvent | Amendment | SentAttempt) -> bytes:
    """The journal's line for a record, newline included."""
    kind = _EVENT if isinstance(record, UsageEvent) else _AMENDMENT if isinstance(record, Amendment) else _SENT
    try:
        body = kind + record.to_json()
    except TypeError:
        body = kind + _anything_to_json(record.event if isinstance(record, SentAttempt) else record)
    return b"%08x %b\n" % (crc32(body), body)


def _anything_to_json(record: UsageEvent | Amendment) -> bytes:
    """JSON for what orjson refuses: lone surrogates (a client can send them) and integers past 64 bits."""
    fields: dict[str, Any] = asdict(record)
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", errors="replace")


def decode_lines(data: bytes, start: int) -> Batch:
    """Every line in `data`, which begins at offset `start` of its segment and ends with a newline."""
    batch = Batch(end=start + len(data))
    for line in data.split(b"\n"):
        if line:
            _decode(line, batch)
    return batch


def count_records(data: bytes) -> int:
    """How many lines there are in `data`, without those of attempts that were sent."""
    return data.count(b"\n") - sum(1 for _ in _SENT_LINE.finditer(data))


def unanswered(chunks: Iterable[bytes]) -> tuple[list[UsageEvent], list[Rejected]]:
    """The events of requests which were sent and have none in the same lines, and what cannot be read of them.

    Of several attempts of a request, its last line speaks for all.
    """
    sent: dict[str, UsageEvent] = {}
    answered: set[str] = set()
    rejected: list[Rejected] = []
    for line in (line for data in chunks for line in data.split(b"\n")):
        body = _body(line)
        kind = body[:1]
        if kind not in (_EVENT, _SENT):
            continue
        try:
            if kind == _SENT:
                event = SentAttempt.from_json(body[1:]).killed()
                sent[event.request_id] = event
            else:
                answered.add(orjson.loads(body[1:])["request_id"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if kind == _SENT:  # an event was rejected when it was read the first time
                rejected.append(Rejected(line, f"{type(error).__name__}: {error}"))
    return [event for request_id, event in sent.items() if request_id not in answered], rejected


def _body(line: bytes) -> bytes:
    """The kind and the JSON of a line; empty for one that is torn or damaged."""
    body = line[_PREFIX:]
    return body if b"%08x " % crc32(body) == line[:_PREFIX] else b""


def _decode(line: bytes, batch: Batch) -> None:
    body = _body(line)
    if not body:
        batch.torn += 1
        return
    kind = body[:1]
    try:
        if kind == _EVENT:
            batch.events.append(UsageEvent.from_json(body[1:]))
        elif kind == _AMENDMENT:
            batch.amendments.append(Amendment.from_json(body[1:]))
        elif kind != _SENT:
            batch.rejected.append(Rejected(line, f"unknown kind of record {kind!r}"))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        batch.rejected.append(Rejected(line, f"{type(error).__name__}: {error}"))
