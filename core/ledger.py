"""The background writer: from the journal's files into the store, in batches, for as long as it takes."""

import asyncio
import logging
import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import orjson

from core import pauses
from core.budgets import Balance
from core.errors import StoreError
from core.journal import Amendment, Batch, Journal, Rejected, Segment, decode_lines
from core.journal.record import encode, unanswered
from core.journal.segment import is_gone, is_newest
from core.usage import UsageEvent

_LOG = logging.getLogger("orchestration.ledger")
_LOG_EVERY = 60.0
_LONGEST_PAUSE = 30.0
_LOOK_FOR_THE_DEAD_EVERY = 30.0
_BATCH_BYTES = 2 << 20
_INLINE_BYTES = 64 << 10  # decoding more than this (about 1 ms) would be felt by requests on the same loop


class Stored(Protocol):
    """What the store says of one batch; `core.store.Written` has it."""

    @property
    def balances(self) -> Sequence[Balance]:
        """What every account that the batch's attempts name has spent now."""
        ...


class UsageStore(Protocol):
    """What the ledger needs of the store; `core.store.UsageRepository` has it."""

    async def write(self, events: Sequence[UsageEvent], amendments: Sequence[Amendment] = ()) -> Stored:
        """All or nothing, idempotent by request id. Raises StoreError, or RecordRefused for values it cannot hold."""
        ...


@dataclass(slots=True, frozen=True)
class LedgerStatus:
    """How far the store is behind the journal. Times in milliseconds."""

    backlog_events: int
    backlog_bytes: int
    oldest_ms: int
    """Age of the oldest event that is not in the store yet; 0 when there is none."""
    written: int
    """Records acknowledged since the start."""
    rejected: int
    torn: int
    last_error: str | None
    """Why the last batch did not go through; None after one that did."""


@dataclass(slots=True, frozen=True)
class _Ahead:
    """A batch that is read before its turn."""

    segment: Segment
    start: int
    batch: asyncio.Task[Batch]


class Ledger:
    """Moves what the journal holds into the store.

    The journal's files are the queue: however long the database is away, memory stays flat, and segments that a killed
    process left behind are taken over and written as well. A record the database cannot hold is moved to
    `rejected.jsonl` beside the segments, loudly, and the rest goes on.

    Attempts that a killed process had sent, and whose request has no event, become events too: of a segment, once every
    later one of the same instance is in the store, since that is where the answer would stand.

    `on_written` is called on the event loop with the events that the store has now, whoever wrote them first, and the
    balances of the accounts that their attempts name.
    """

    def __init__(
        self,
        journal: Journal,
        store: UsageStore,
        *,
        clock: Callable[[], float] = time.time,
        linger: float = 1.0,
        batch_bytes: int = _BATCH_BYTES,
        on_written: Callable[[Sequence[UsageEvent], Sequence[Balance]], None] | None = None,
    ) -> None:
        self._journal = journal
        self._store = store
        self._clock = clock
        self._linger = linger
        self._batch_bytes = batch_bytes
        self._on_written = on_written
        self._adopted: list[Segment] = []
        self._killed: dict[Segment, list[UsageEvent]] = {}
        """Of adopted segments that are in the store: the requests that their process was killed over."""
        self.ended: set[str] = set()
        """Instances that are no more and whose last records this one has put into the store."""
        self._scan: asyncio.Task[tuple[list[UsageEvent], list[Rejected]]] | None = None
        self._look_again = 0.0
        self._looks = 0
        """How often it was looked for what the dead left."""
        self._wake = asyncio.Event()
        self._progress = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self._failures = 0
        self._next_complaint = 0.0
        self._written = 0
        self._rejected = 0
        self._torn = 0
        self._last_error: str | None = None
        self._oldest_ms: int | None = None
        self._ahead: _Ahead | None = None

    def start(self) -> None:
        """Begin, with whatever processes that are no more left behind."""
        self._task = asyncio.create_task(self._run(), name="orchestration-ledger")

    async def stop(self, within: float = 10) -> None:
        """Write what is there, for at most `within` seconds; the rest stays in the journal for the next start."""
        if self._task is None:
            return
        if not await self.flush(within):
            _LOG.warning("%d usage records stay in the journal until the next start", self.status().backlog_events)
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self._task = None
        if self._ahead is not None:
            # A thread still reads the file: it must not be closed under its hands.
            await asyncio.wait([self._ahead.batch])
            self._ahead = None
        if self._scan is not None:
            await asyncio.wait([self._scan])
            self._scan = None
        for segment in self._adopted:
            segment.close()
        self._adopted.clear()
        self._killed.clear()

    async def flush(self, within: float = 10) -> bool:
        """Wait until everything appended so far is in the store; False if that took longer than `within` seconds."""
        self._wake.set()
        try:
            async with asyncio.timeout(within), self._progress:
                # First, since memory may empty into a file.
                await self._progress.wait_for(lambda: not self._journal.waiting_in_memory)
                goals = [(segment, segment.size) for segment in self._sources()]
                await self._progress.wait_for(lambda: all(segment.acknowledged >= size for segment, size in goals))
        except TimeoutError:
            return False
        return True

    async def catch_up(self, within: float = 10) -> bool:
        """As `flush`, and with everything that processes which are no more have left behind."""
        self._look_again = 0.0
        self._wake.set()
        try:
            async with asyncio.timeout(within), self._progress:
                before = self._looks
                await self._progress.wait_for(lambda: self._looks > before and not self._adopted)
        except TimeoutError:
            return False
        return await self.flush(within)

    def status(self) -> LedgerStatus:
        """Where it stands now."""
        sources = self._sources()
        waiting = self._journal.waiting_in_memory
        backlog = sum(segment.backlog for segment in sources)
        oldest = 0
        if backlog and self._oldest_ms is not None:
            oldest = max(0, int(self._clock() * 1000) - self._oldest_ms)
        return LedgerStatus(
            backlog_events=sum(segment.unread for segment in sources) + waiting,
            backlog_bytes=backlog,
            oldest_ms=oldest,
            written=self._written,
            rejected=self._rejected,
            torn=self._torn,
            last_error=self._last_error,
        )

    def _sources(self) -> list[Segment]:
        return [*self._journal.segments, *self._adopted]

    async def _run(self) -> None:
        while True:
            try:
                await self._adopt()
                more = await self._one_round()
            except (StoreError, OSError) as error:
                await self._rest(self._failed(error))
            except Exception as error:
                # A bug of ours must not end the only task that empties the journal.
                _LOG.exception("the ledger failed in a way it should not")
                await self._rest(self._failed(error))
            else:
                self._failures = 0
                self._last_error = None
                async with self._progress:
                    self._progress.notify_all()
                if not more:
                    self._oldest_ms = None
                    await self._rest(self._linger)

    async def _adopt(self) -> None:
        if self._clock() >= self._look_again:
            self._look_again = self._clock() + _LOOK_FOR_THE_DEAD_EVERY
            found = await asyncio.to_thread(self._journal.adopt)
            if found:
                waiting = sum(segment.unread for segment in found)
                _LOG.info("taking over %d usage records from %d journal files", waiting, len(found))
            self._adopted += found
            self._looks += 1

    async def _one_round(self) -> bool:
        """What waits in memory, one batch of our own records and one of each adopted segment; whether more is there."""
        await self._what_the_disk_refused()
        own = self._journal.segments
        await self._one_batch(own[0])
        if len(own) > 1 and not own[0].backlog:
            self._journal.release(own[0])
        for segment in self._adopted:
            await self._one_batch(segment)
        # The newest first: what was sent before a segment ended may have been answered in the next.
        for segment in sorted(self._adopted, key=lambda each: each.number, reverse=True):
            if not segment.backlog:
                await self._finish(segment)
        # A few new lines may linger, so that they make one transaction and not many.
        adopted = any(segment.backlog for segment in self._adopted)
        return len(own) > 1 or adopted or own[0].backlog >= self._batch_bytes

    async def _finish(self, segment: Segment) -> None:
        """Charge what the segment's process was killed over, and delete it; later, where that cannot be known yet."""
        if segment not in self._killed:
            # From the beginning: an attempt may have been sent long before the store got to where it is.
            self._scan = asyncio.create_task(asyncio.to_thread(lambda: unanswered(segment.chunks())))
            found, unreadable = await asyncio.shield(self._scan)
            self._scan = None
            if unreadable:
                self._set_aside(unreadable)
            self._killed[segment] = found
        killed = self._killed[segment]
        if killed:
            if not is_newest(segment):
                return
            rejected = await self._write(killed, ())
            if rejected:
                self._set_aside(rejected)
            self._written += len(killed) - len(rejected)
            _LOG.warning(
                "%d requests were in flight when %s ended; charged what was reserved", len(killed), segment.instance
            )
        del self._killed[segment]
        self._adopted.remove(segment)
        segment.delete()
        if is_gone(self._journal.directory, segment.instance):
            self.ended.add(segment.instance)

    async def _what_the_disk_refused(self) -> None:
        """Store what only memory holds while the disk takes nothing: a kill would lose it, and it fills up."""
        while lines := self._journal.waiting():
            batch = decode_lines(b"".join(lines), 0)
            rejected = batch.rejected + await self._write(batch.events, batch.amendments)
            if rejected:
                self._set_aside(rejected)
            self._journal.let_go(lines)
            self._written += batch.records - len(rejected)
            async with self._progress:
                self._progress.notify_all()

    async def _one_batch(self, segment: Segment) -> None:
        if not segment.backlog:
            return
        batch = await self._next_batch(segment)
        if batch.events and self._oldest_ms is None:
            self._oldest_ms = batch.events[0].time_ms
        rejected = batch.rejected + await self._write(batch.events, batch.amendments)
        if rejected:
            self._set_aside(rejected)
        if batch.torn:
            self._torn += batch.torn
            _LOG.error("%s has %d damaged lines before byte %d; skipped", segment.path, batch.torn, batch.end)
        try:
            segment.acknowledge(batch.end, batch.records)
        except OSError as error:
            # At worst the next start does this again, which changes nothing. On a full disk above all, go on.
            self._complain(f"how far the store has got cannot be noted beside {segment.path}: {error}")
        self._written += len(batch.events) + len(batch.amendments) - len(rejected) + len(batch.rejected)
        self._oldest_ms = None
        async with self._progress:
            self._progress.notify_all()

    async def _next_batch(self, segment: Segment) -> Batch:
        """What is not acknowledged; of a long backlog, the batch after it is read while this one is written."""
        start, ahead = segment.acknowledged, self._ahead
        if ahead is not None and ahead.segment is segment:
            # Shielded: `stop` may cancel the waiting, not the thread.
            batch = await asyncio.shield(ahead.batch)
            self._ahead = None
            if ahead.start != start:
                batch = await asyncio.to_thread(self._read, segment, start)
        elif segment.backlog <= _INLINE_BYTES:
            return self._read(segment, start)
        else:
            batch = await asyncio.to_thread(self._read, segment, start)
        if self._ahead is None and segment.size - batch.end > _INLINE_BYTES:
            reading = asyncio.create_task(asyncio.to_thread(self._read, segment, batch.end))
            self._ahead = _Ahead(segment, batch.end, reading)
        return batch

    def _read(self, segment: Segment, start: int) -> Batch:
        return decode_lines(segment.read(self._batch_bytes, start), start)

    async def _write(self, events: Sequence[UsageEvent], amendments: Sequence[Amendment]) -> list[Rejected]:
        """Store them, halving the batch round any record that the database will not hold; returns those."""
        from core.store.errors import RecordRefused

        if not events and not amendments:
            return []
        try:
            stored = await self._store.write(events, amendments)
        except RecordRefused as refused:
            if len(events) + len(amendments) == 1:
                return [Rejected(encode([*events, *amendments][0]).rstrip(), str(refused))]
        else:
            self._tell(events, stored.balances)
            return []
        half, later = len(events) // 2, len(amendments) // 2
        if len(events) == 1:
            # The event before its amendments, each on its own.
            return await self._write(events, ()) + await self._write((), amendments)
        first = await self._write(events[:half], amendments[:later])
        return first + await self._write(events[half:], amendments[later:])

    def _tell(self, events: Sequence[UsageEvent], balances: Sequence[Balance]) -> None:
        if self._on_written is None:
            return
        try:
            self._on_written(events, balances)
        except Exception:
            _LOG.exception("%d usage records are in the store, but whoever follows that failed", len(events))

    def _set_aside(self, rejected: Sequence[Rejected]) -> None:
        path = self._journal.directory / "rejected.jsonl"
        lines = [
            orjson.dumps({"reason": each.reason, "record": each.line.decode(errors="replace")}) + b"\n"
            for each in rejected
        ]
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, b"".join(lines))
            os.fsync(fd)
        finally:
            os.close(fd)
        self._rejected += len(rejected)
        _LOG.error("%d usage records cannot be stored (%s); moved to %s", len(rejected), rejected[0].reason, path)

    def _failed(self, error: Exception) -> float:
        """Note the failure; returns how long to pause, in seconds."""
        self._failures += 1
        self._last_error = str(error)
        self._complain(f"usage stays in the journal for now ({self.status().backlog_events} records): {error}")
        longest = min(_LONGEST_PAUSE, 0.25 * 2 ** min(self._failures - 1, 10))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311

    def _complain(self, what: str) -> None:
        now = self._clock()
        if now >= self._next_complaint:
            self._next_complaint = now + _LOG_EVERY
            _LOG.error("%s", what)

    async def _rest(self, seconds: float) -> None:
        self._wake.clear()
        await pauses.wait(self._wake, seconds)
