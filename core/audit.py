"""Audit records, and the hash chains that hold them together: what is hashed, and what a verification looks at.

Every instance has a chain of its own, so that writers never wait for each other. A record's hash is the SHA-256, in
lower-case hexadecimal, of the UTF-8 of a JSON array without blanks, in which everything outside ASCII is an escape:

    ["litellm-orchestration audit record 1", chain, seq, id, time_ms, actor, action, subject, version, reason,
     outcome, detail, previous_hash]

`seq` counts from 1; `previous_hash` is the hash of the record before, and for the first one that of
`["litellm-orchestration audit chain 1", chain]`. The first record of a chain says which chains there were, and names
the last record of each that no other chain had named yet; so each chain holds on to all that came before it.

What this proves, since there is no key in it: nobody has changed, removed, put in or moved a record without writing
everything anew that follows it, in its own chain and in every chain that was begun later. The records at the end that
nothing follows yet can be removed unseen, unless their writer still lives: it goes on from what it knows, not from what
it finds. Whoever may write the whole table can write a whole other history; only a head that was noted elsewhere shows
that. `secrets audit --verify --json` prints the heads to note, and `--against` compares with them later.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from core.ids import new_request_id

OPENED = "audit.opened"
"""The action of the first record of a chain. Its detail is `{"chains": [[chain, seq, hash], ...]}`."""

Outcome = Literal["ok", "failed", "denied"]


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """Something that was done, or tried. Never a secret's value, nor anything made from one.

    `actor` is who or what asked, `action` what for ("secret.fetched"), `subject` what it was about (a reference's URI),
    `version` which version of that, `reason` why it failed, in a word. `detail` is JSON. `id` makes it one record
    however often it is written.
    """

    time_ms: int
    actor: str
    action: str
    subject: str
    outcome: Outcome = "ok"
    version: str | None = None
    reason: str | None = None
    detail: str = "{}"
    id: str = field(default_factory=new_request_id)


@dataclass(frozen=True, slots=True)
class Entry:
    """A record in its place in a chain."""

    chain: str
    seq: int
    record: AuditRecord
    previous_hash: str
    hash: str


@dataclass(frozen=True, slots=True, order=True)
class Head:
    """A record of a chain by its place and hash; mostly the last one."""

    chain: str
    seq: int
    hash: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The first place of a chain that is not as it was written."""

    chain: str
    seq: int
    what: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What a verification found: the last record of every chain, and the first broken place of those that have one."""

    records: int
    heads: tuple[Head, ...]
    broken: tuple[Broken, ...]


def genesis(chain: str) -> str:
    """What the first record of a chain has for a previous hash."""
    return _sha256(["litellm-orchestration audit chain 1", chain])


def record_hash(chain: str, seq: int, record: AuditRecord, previous_hash: str) -> str:
    """The hash of a record in its place; the module says of what."""
    parts = (chain, seq, record.id, record.time_ms, record.actor, record.action, record.subject, record.version)
    rest = (record.reason, record.outcome, record.detail, previous_hash)
    return _sha256(["litellm-orchestration audit record 1", *parts, *rest])


def chained(head: Head, records: Iterable[AuditRecord]) -> list[Entry]:
    """The records behind `head`, one after the other."""
    entries: list[Entry] = []
    seq, previous = head.seq, head.hash
    for record in records:
        seq += 1
        found = record_hash(head.chain, seq, record, previous)
        entries.append(Entry(head.chain, seq, record, previous, found))
        previous = found
    return entries


def opening(chain: str, time_ms: int, others: Iterable[Head]) -> AuditRecord:
    """The first record of a chain, which holds on to `others`."""
    names = [[other.chain, other.seq, other.hash] for other in sorted(others)]
    return AuditRecord(time_ms, chain, OPENED, "audit", detail=_json({"chains": names}))


def links(record: AuditRecord) -> tuple[Head, ...]:
    """The records of other chains that a record holds on to: none but the first of a chain does."""
    if record.action != OPENED:
        return ()
    try:
        found = cast("Sequence[Sequence[Any]]", json.loads(record.detail)["chains"])
        return tuple(Head(str(chain), int(seq), str(hash_)) for chain, seq, hash_ in found)
    except (ValueError, TypeError, LookupError):
        return ()


class ChainReader:
    """Reads one chain from its beginning; `broken` is the first place that is not as it was written."""

    def __init__(self, chain: str) -> None:
        self.head = Head(chain, 0, genesis(chain))
        self.broken: Broken | None = None
        self.links: list[Head] = []

    def read(self, entry: Entry) -> None:
        """Take the next record, by `seq`."""
        seq, record = entry.seq, entry.record
        intact = entry.hash == record_hash(entry.chain, seq, record, entry.previous_hash)
        if self.broken is None:
            self.broken = self._what_is_wrong(entry, intact)
        if intact:
            self.links += links(record)
        self.head = Head(entry.chain, seq, entry.hash)

    def _what_is_wrong(self, entry: Entry, intact: bool) -> Broken | None:
        chain, seq, expected = entry.chain, entry.seq, self.head.seq + 1
        if seq != expected:
            gone = f"record {expected} is" if seq == expected + 1 else f"records {expected} to {seq - 1} are"
            return Broken(chain, expected, f"{gone} missing")
        if not intact:
            return Broken(chain, seq, f"record {seq} was changed")
        if entry.previous_hash != self.head.hash:
            before = f"record {seq - 1}" if seq > 1 else "the beginning of this chain"
            return Broken(chain, seq, f"record {seq} does not follow {before}: one of them was replaced")
        return None


def _sha256(parts: Sequence[Any]) -> str:
    return hashlib.sha256(_json(parts).encode()).hexdigest()


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
