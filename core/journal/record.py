"""One line of the journal: `<crc32 in hex> <kind><json>`, so that a torn or damaged line is seen for what it is."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any
from zlib import crc32

from core.journal.amendment import Amendment
from core.usage import UsageEvent

_EVENT = b"E"
_AMENDMENT = b"A"
_PREFIX = 9  # eight hex digits and a space


@dataclass(slots=True)
class Rejected:
    """A line that is whole and cannot be used, and why."""

    line: bytes
    reason: str


@dataclass(slots=True)
class Batch:
    """What one read of a segment gave. `end` is the offset behind it; `torn` counts lines with a wrong checksum."""

    end: int
    events: list[UsageEvent] = field(default_factory=list[UsageEvent])
    amendments: list[Amendment] = field(default_factory=list[Amendment])
    rejected: list[Rejected] = field(default_factory=list[Rejected])
    torn: int = 0

    @property
    def records(self) -> int:
        """Lines that were whole."""
        return len(self.events) + len(self.amendments) + len(self.rejected)


def encode(record: UsageEvent | Amendment) -> bytes:
    """The journal's line for an event or an amendment, newline included."""
    kind = _EVENT if isinstance(record, UsageEvent) else _AMENDMENT
    try:
        body = kind + record.to_json()
    except TypeError:
        body = kind + _anything_to_json(record)
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


def _decode(line: bytes, batch: Batch) -> None:
    body = line[_PREFIX:]
    if b"%08x " % crc32(body) != line[:_PREFIX] or not body:
        batch.torn += 1
        return
    kind = body[:1]
    try:
        if kind == _EVENT:
            batch.events.append(UsageEvent.from_json(body[1:]))
        elif kind == _AMENDMENT:
            batch.amendments.append(Amendment.from_json(body[1:]))
        else:
            batch.rejected.append(Rejected(line, f"unknown kind of record {kind!r}"))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        batch.rejected.append(Rejected(line, f"{type(error).__name__}: {error}"))
