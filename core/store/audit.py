"""Audit records in the store: appended, read, verified; never changed and never deleted."""

import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, ColumnElement, Connection, Row, Select, func, literal, select, text, tuple_

from core.audit import (
    OPENED,
    AuditRecord,
    Broken,
    ChainReader,
    Entry,
    Head,
    Verification,
    chained,
    genesis,
    links,
    opening,
)
from core.errors import StoreError
from core.store.tables import audit_records
from core.store.writing import insert, without_nul

if TYPE_CHECKING:
    from core.store.connection import AsyncConnection
    from core.store.engine import Store

_LOG = logging.getLogger("orchestration.audit")
_PAGE = 2000  # records read at once by a verification
_CHUNK = 500  # ids in one IN (...)
_LOCKS = 0x6C6C6D02  # any number, the same in every version
_columns = audit_records.c


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Which records: of a period (Unix milliseconds, `until_ms` not included), with a subject and an action that match
    a pattern (`*` is any text, `?` any character), newest first; `cursor` is where the page before ended."""

    since_ms: int
    until_ms: int
    subject: str | None = None
    action: str | None = None
    limit: int = 100
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Records, newest first, and the cursor of the next page; None where there is none."""

    entries: tuple[Entry, ...]
    cursor: str | None


class AuditRepository:
    """The table of audit records. Every method raises StoreError while the database cannot be used."""

    def __init__(self, store: "Store") -> None:
        self._store = store
        self._known: dict[str, Head] = {}
        """The last record of each chain that was written here."""

    async def append(self, chain: str, records: Sequence[AuditRecord]) -> int:
        """Put the records behind the last one of `chain`, all or none; returns how many were new.

        What is there already, by its id, is left out: after a failure of any kind, append the same again. A chain goes
        on from the last record that this repository wrote, even where the store has lost that: then the gap is seen.
        Raises RecordRefused (a StoreError) for what the database cannot hold.
        """
        if any(record.action == OPENED for record in records):
            raise ValueError(f"{OPENED} is written by the store alone")
        chain = _storable(chain)
        given = {record.id: _clean(record) for record in reversed(records)}

        def work(connection: Connection) -> tuple[int, Head]:
            self._lock(connection, chain)
            there = _present(connection, list(given))
            fresh = [record for name, record in reversed(given.items()) if name not in there]
            head = self._head(connection, chain)
            if not fresh:
                return 0, head
            first: list[AuditRecord] = []
            if head.seq == 0:
                first.append(opening(chain, fresh[0].time_ms, _loose_heads(connection)))
            entries = chained(head, [*first, *fresh])
            if insert(connection, audit_records, [_row(entry) for entry in entries]) != len(entries):
                raise StoreError(f"somebody else wrote to the audit chain {chain}; trying again helps")
            last = entries[-1]
            return len(fresh), Head(chain, last.seq, last.hash)

        written, head = await self._store.write(work)
        self._known[chain] = head
        return written

    async def query(self, query: AuditQuery) -> AuditPage:
        """One page of records. Raises ValueError for a cursor that is none of ours."""
        place = tuple_(_columns.time_ms, _columns.chain, _columns.seq)
        chosen = select(audit_records).where(_columns.time_ms >= query.since_ms, _columns.time_ms < query.until_ms)
        if query.subject is not None:
            chosen = chosen.where(self._matches(_columns.subject, query.subject))
        if query.action is not None:
            chosen = chosen.where(self._matches(_columns.action, query.action))
        if query.cursor is not None:
            chosen = chosen.where(place < _place_of(query.cursor))
        ordered = chosen.order_by(_columns.time_ms.desc(), _columns.chain.desc(), _columns.seq.desc())
        async with self._store.reading() as connection:
            rows = (await connection.execute(ordered.limit(query.limit + 1))).all()
        entries = tuple(_entry(row) for row in rows[: query.limit])
        more = len(rows) > query.limit and entries
        return AuditPage(entries, _cursor(entries[-1]) if more else None)

    async def count(self) -> int:
        """How many records there are."""
        async with self._store.reading() as connection:
            return (await connection.execute(select(func.count()).select_from(audit_records))).scalar_one()

    async def verify(
        self, noted: Iterable[Head] = (), progress: Callable[[int], None] = lambda read: None
    ) -> Verification:
        """Read every chain, and find the first place of each that is not as it was written.

        `noted` are heads of an earlier verification that must still be there; `progress` is told how many records were
        read since it was last told. `core.audit` says what this can find.
        """
        records = 0
        heads: list[Head] = []
        broken: dict[str, Broken] = {}
        claims = [(head, "it was noted") for head in noted]
        async with self._store.reading() as connection:
            for chain in (await connection.execute(_chains())).scalars().all():
                reader = ChainReader(chain)
                async for page in _pages(connection, chain):
                    for entry in page:
                        reader.read(entry)
                    records += len(page)
                    progress(len(page))
                heads.append(reader.head)
                if reader.broken is not None:
                    broken[chain] = reader.broken
                claims += [(head, f"it was named by {chain}") for head in reader.links]
            last = {head.chain: head for head in heads}
            for head, why in claims:
                found = await _missed(connection, head, last.get(head.chain), why)
                if found is not None and (head.chain not in broken or found.seq < broken[head.chain].seq):
                    broken[head.chain] = found
        return Verification(records, tuple(heads), tuple(broken[chain] for chain in sorted(broken)))

    def _lock(self, connection: Connection, chain: str) -> None:
        """One writer of a chain at a time; writers of other chains do not wait. SQLite has but one writer anyway."""
        if not self._store.is_sqlite:
            lock = "SELECT pg_advisory_xact_lock(hashtextextended(:chain, :seed))"
            connection.execute(text(lock), {"chain": chain, "seed": _LOCKS})

    def _head(self, connection: Connection, chain: str) -> Head:
        """Where the chain goes on: at the store's last record, unless that is before what we know to have written."""
        beginning = Head(chain, 0, genesis(chain))
        known = self._known.get(chain, beginning)
        last = select(_columns.seq, _columns.hash).where(_columns.chain == chain).order_by(_columns.seq.desc()).limit(1)
        row = connection.execute(last).first()
        found = beginning if row is None else Head(chain, row.seq, row.hash)
        if found == known or found.seq > known.seq:
            return found
        _LOG.error(
            "the audit chain %s was cut or changed in the store at its record %d: see `secrets audit --verify`",
            chain,
            found.seq,
        )
        return known

    def _matches(self, column: ColumnElement[str], pattern: str) -> ColumnElement[bool]:
        if not {"*", "?"} & set(pattern):
            return column == pattern
        if self._store.is_sqlite:  # where LIKE takes ADA for ada
            return column.op("GLOB", is_comparison=True)(pattern.replace("[", "[[]"))
        escaped = pattern.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        return column.like(escaped.replace("*", "%").replace("?", "_"), escape="\\")


def _chains() -> Select[str]:
    """The names of the chains, jumping from one to the next in the primary key: it costs by chain, not by record."""
    names = select(func.min(_columns.chain).label("chain")).cte("chains", recursive=True)
    following = select(func.min(_columns.chain)).where(_columns.chain > names.c.chain).scalar_subquery()
    names = names.union_all(select(following).where(names.c.chain.is_not(None)))
    return select(names.c.chain).where(names.c.chain.is_not(None))


def _loose_heads(connection: Connection) -> list[Head]:
    """The last record of each chain, unless another chain holds on to it already."""
    names = _chains().subquery()
    last = select(func.max(_columns.seq)).where(_columns.chain == names.c.chain).correlate(names).scalar_subquery()
    ends = select(_columns.chain, _columns.seq, _columns.hash).join_from(
        names, audit_records, (_columns.chain == names.c.chain) & (_columns.seq == last)
    )
    heads = {Head(row.chain, row.seq, row.hash) for row in connection.execute(ends)}
    begun = select(audit_records).join_from(
        names, audit_records, (_columns.chain == names.c.chain) & (_columns.seq == 1)
    )
    for row in connection.execute(begun):
        heads.difference_update(links(_entry(row).record))
    return sorted(heads)


async def _pages(connection: "AsyncConnection", chain: str) -> AsyncGenerator[list[Entry]]:
    """A chain from its beginning, some records at a time."""
    after: int | None = None
    of_chain = select(audit_records).where(_columns.chain == chain).order_by(_columns.seq).limit(_PAGE)
    while True:
        rows = (await connection.execute(of_chain if after is None else of_chain.where(_columns.seq > after))).all()
        if not rows:
            return
        yield [_entry(row) for row in rows]
        after = rows[-1].seq


async def _missed(connection: "AsyncConnection", claim: Head, last: Head | None, why: str) -> Broken | None:
    """What is wrong with the place of a record that must be there."""
    if last is None:
        return Broken(claim.chain, 1, f"the whole chain is missing: record {claim.seq} must be there, {why}")
    if last.seq < claim.seq:
        return Broken(claim.chain, last.seq + 1, f"the end is missing: record {claim.seq} must be there, {why}")
    at = select(_columns.hash).where(_columns.chain == claim.chain, _columns.seq == claim.seq)
    found = (await connection.execute(at)).scalar()
    if found == claim.hash:
        return None
    what = "is missing" if found is None else "was replaced, with what stands before it or behind it"
    return Broken(claim.chain, claim.seq, f"record {claim.seq} {what}: {why}")


def _present(connection: Connection, ids: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for start in range(0, len(ids), _CHUNK):
        chosen = select(_columns.id).where(_columns.id.in_(ids[start : start + _CHUNK]))
        found.update(connection.execute(chosen).scalars())
    return found


def _clean(record: AuditRecord) -> AuditRecord:
    """The record as both databases keep it, so that its hash is that of what is read again."""
    texts: Mapping[str, Any] = {
        name: _storable(value)
        for name in ("actor", "action", "subject", "version", "reason", "detail")
        if (value := getattr(record, name)) is not None
    }
    return replace(record, **texts)


def _storable(value: str) -> str:
    return without_nul(value.encode("utf-8", "replace").decode()) or ""


def _row(entry: Entry) -> tuple[Any, ...]:
    record = entry.record
    return (
        *(entry.chain, entry.seq, record.id, record.time_ms, record.actor, record.action, record.subject),
        *(record.version, record.reason, record.outcome, record.detail, entry.previous_hash, entry.hash),
    )


def _entry(row: Row[Any]) -> Entry:
    record = AuditRecord(
        time_ms=row.time_ms,
        actor=row.actor,
        action=row.action,
        subject=row.subject,
        outcome=row.outcome,
        version=row.version,
        reason=row.reason,
        detail=row.detail,
        id=row.id,
    )
    return Entry(row.chain, row.seq, record, row.previous_hash, row.hash)


def _cursor(entry: Entry) -> str:
    return f"{entry.record.time_ms}.{entry.seq}.{entry.chain}"


def _place_of(cursor: str) -> ColumnElement[Any]:
    time_ms, _, rest = cursor.partition(".")
    seq, dot, chain = rest.partition(".")
    if not dot or not time_ms.isdecimal() or not seq.isdecimal() or max(len(time_ms), len(seq)) > 18:
        raise ValueError("the cursor is none that a page ended with")
    return tuple_(literal(int(time_ms), BigInteger), literal(chain), literal(int(seq), BigInteger))
