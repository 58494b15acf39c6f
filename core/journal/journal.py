"""What the request path writes into: one line an event, at once, into the page cache of this machine."""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path

from core.errors import JournalFull, StoreError
from core.journal.amendment import Amendment, UsageFields
from core.journal.record import encode
from core.journal.segment import Segment, segment_paths
from core.journal.sent import SentAttempt
from core.usage import UsageEvent

_LOG = logging.getLogger("orchestration.journal")
_LOG_EVERY = 60.0
_NAMES = frozenset(field.name for field in fields(Amendment)) - {"request_id"}


@dataclass(slots=True)
class JournalCounts:
    """What became of every record given to this journal since it was opened."""

    appended: int = 0
    """On disk, at once or later."""
    overflowed: int = 0
    """Had to wait in memory because the disk took nothing."""
    bypassed: int = 0
    """Of those, the ones that the store had before the disk took them."""
    lost: int = 0
    """Refused with JournalFull. More than 0 means that a caller went on although `accepting` was False."""


class Journal:
    """Usage events, kept in files of this machine from before their answer ends until the store has them.

    `append` is one `write` into the page cache: no event is lost when the process is killed. A thread flushes to the
    disk every `sync_interval` seconds, so a crash of the machine can cost what came in during the last one. When the
    disk takes nothing, up to `overflow_records` records wait in memory; after that `accepting` is False, and whoever
    would spend money must not. `max_bytes` bounds the files of this journal in the same way.

    `sent` says that an attempt goes to a provider. It is open until the event of its request is appended, and every
    segment begins with those that are open, so that the older ones can be deleted. If the process ends before that,
    whoever adopts the segments makes the event of it (`SentAttempt.killed`).

    Several journals may share a directory; each holds a lock on its own segments, and `adopt` finds those of the dead.
    """

    def __init__(
        self,
        directory: Path,
        instance: str,
        *,
        clock: Callable[[], float] = time.time,
        segment_bytes: int = 16 << 20,
        max_bytes: int = 4 << 30,
        overflow_records: int = 10_000,
        sync_interval: float = 1.0,
    ) -> None:
        self.directory = directory
        self.counts = JournalCounts()
        self._instance = instance
        self._clock = clock
        self._segment_bytes = segment_bytes
        self._max_bytes = max_bytes
        self._overflow_records = overflow_records
        self._overflow: deque[bytes] = deque()
        self._sent: dict[str, bytes] = {}
        """The line of each open request, by its id."""
        self._sent_is_on_disk = True
        self._carried = 0
        """Bytes at the beginning of the current segment that were written again."""
        self._lock = threading.RLock()
        self._next_complaint = 0.0
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._segments = [Segment.create(directory, instance)]
        except OSError as error:
            raise StoreError(
                f"the journal cannot be written in {directory} ({error.strerror}); "
                "make it writable or set orchestration.journal.dir"
            ) from error
        self._current = self._segments[0]
        self._sync = _BackgroundSync(sync_interval, self._turn)

    @property
    def healthy(self) -> bool:
        """Whether every record is on disk."""
        return not self._overflow and self._sent_is_on_disk

    @property
    def accepting(self) -> bool:
        """Whether another event can be kept. False: refuse new requests."""
        return len(self._overflow) < self._overflow_records

    @property
    def waiting_in_memory(self) -> int:
        """Records that the disk has not taken yet."""
        with self._lock:  # never in between a record's way to the disk and its leaving the memory
            return len(self._overflow)

    @property
    def segments(self) -> list[Segment]:
        """Our own files that are not yet acknowledged in full, oldest first; the last is still written to."""
        with self._lock:
            return list(self._segments)

    def append(self, event: UsageEvent) -> None:
        """Keep the event. Raises JournalFull when neither the disk nor the memory can."""
        line = encode(event)
        with self._lock:
            self._keep(line)
            self._sent.pop(event.request_id, None)

    def sent(self, record: SentAttempt) -> None:
        """An attempt is about to be sent: if this process is killed, it is charged what was reserved for it.

        One `write`; while the disk takes nothing, memory keeps it as it keeps events. The record of a request's later
        attempt replaces that of an earlier one. Raises JournalFull where the event of the request could not be kept
        either; then the attempt must not be sent.
        """
        line = encode(record)
        with self._lock:
            if not self.accepting:
                raise JournalFull(f"the journal in {self.directory} takes nothing; make room there")
            self._sent[record.event.request_id] = line
            if self._sent_is_on_disk and not self._overflow:
                try:
                    self._write(line, 0)
                    return
                except OSError as error:
                    self._complain(error)
            self._sent_is_on_disk = False
            self._sync.wake(self._current)

    def amend(self, request_id: str, fields: UsageFields) -> None:
        """Keep later knowledge about a request; where it is better than the books, it changes them (`Amendment`).

        Raises TypeError for a field that no amendment has, and JournalFull.
        """
        if unknown := fields.keys() - _NAMES:
            raise TypeError(f"an amendment has no {', '.join(sorted(unknown))}")
        self._keep(encode(Amendment(request_id, **fields)))

    def waiting(self, bound: int = 1000) -> list[bytes]:
        """The oldest lines that wait in memory, at most `bound` of them, for whoever can keep them elsewhere."""
        with self._lock:
            return list(islice(self._overflow, bound))

    def let_go(self, lines: Sequence[bytes]) -> None:
        """These lines of `waiting` are kept elsewhere now; those the disk took meanwhile are on it as well."""
        kept = {id(line) for line in lines}
        with self._lock:
            while self._overflow and id(self._overflow[0]) in kept:
                self._overflow.popleft()
                self.counts.bypassed += 1

    def release(self, segment: Segment) -> None:
        """Delete one of our segments that is acknowledged in full and no longer written to."""
        with self._lock:
            if segment is self._current:
                raise ValueError(f"{segment} is still written to")
            self._segments.remove(segment)
            self._sync.forget(segment)
        segment.delete()

    def adopt(self) -> list[Segment]:
        """Segments of processes that are no more; from now on this process holds them."""
        with self._lock:
            ours = {segment.path for segment in self._segments}
        found = (Segment.adopt(path) for path in segment_paths(self.directory) if path not in ours)
        return [segment for segment in found if segment is not None]

    def close(self) -> None:
        """Flush to the disk and let go; what is acknowledged in full is deleted, the rest stays for the next start."""
        self._sync.stop()
        with self._lock:
            self._retry()
            if self._overflow:
                _LOG.error("%d usage records could not be written to %s", len(self._overflow), self.directory)
            for segment in self._segments:
                if segment.backlog or (self._sent and segment is self._current):
                    with suppress(OSError):
                        os.fsync(segment.fd)
                    segment.close()
                else:
                    segment.delete()
            self._segments = []

    def _keep(self, line: bytes) -> None:
        with self._lock:
            if self._overflow:
                self._retry()
            if not self._overflow:
                try:
                    self._write(line, 1)
                    return
                except OSError as error:
                    self._complain(error)
            if len(self._overflow) >= self._overflow_records:
                self.counts.lost += 1
                raise JournalFull(
                    f"{len(self._overflow)} usage records already wait in memory because the journal in "
                    f"{self.directory} takes nothing; make room there"
                )
            self._overflow.append(line)
            self.counts.overflowed += 1
            self._sync.wake(self._current)

    def _write(self, lines: bytes, records: int) -> None:
        segment = self._current
        own = segment.size - self._carried
        if own and own + len(lines) > self._segment_bytes:
            segment = self._rotate()
        segment.append(lines, records)
        self.counts.appended += records
        self._sync.wake(segment)

    def _rotate(self) -> Segment:
        if len(self._segments) * self._segment_bytes >= self._max_bytes:
            raise OSError(f"the journal has reached its bound of {self._max_bytes} bytes; is the store reachable?")
        segment = Segment.create(self.directory, self._instance, self._current.number + 1)
        if self._sent:
            try:
                segment.append(b"".join(self._sent.values()), 0)
            except OSError:
                segment.delete()
                raise
        self._sent_is_on_disk = True
        self._carried = segment.size
        self._segments.append(segment)
        self._current = segment
        return segment

    def _retry(self) -> None:
        """Write what waits in memory, oldest first, until the disk refuses again."""
        waiting = len(self._overflow)
        try:
            while self._overflow:
                self._write(self._overflow[0], 1)
                self._overflow.popleft()
            if not self._sent_is_on_disk:
                if self._sent:
                    self._write(b"".join(self._sent.values()), 0)
                self._sent_is_on_disk = True
        except OSError as error:
            self._complain(error)
        else:
            if waiting:
                _LOG.info("the journal in %s takes records again; %d had waited in memory", self.directory, waiting)

    def _turn(self) -> None:
        """What the background thread does each time, besides syncing."""
        with self._lock:
            if not self.healthy:
                self._retry()
                if not self.healthy:
                    self._sync.wake(self._current)

    def _complain(self, error: OSError) -> None:
        now = self._clock()
        if now < self._next_complaint:
            return
        self._next_complaint = now + _LOG_EVERY
        _LOG.error(
            "the journal in %s takes nothing (%s); %d usage records wait in memory, and at %d new requests are refused",
            *(self.directory, error.strerror or error, len(self._overflow), self._overflow_records),
        )


class _BackgroundSync:
    """The thread that moves what was written from the page cache to the disk."""

    def __init__(self, interval: float, turn: Callable[[], None]) -> None:
        self._interval = interval
        self._turn = turn
        self._work = threading.Event()
        self._stopping = threading.Event()
        self._written: dict[int, Segment] = {}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="orchestration-journal-sync", daemon=True)
        self._thread.start()

    def wake(self, segment: Segment) -> None:
        """The segment was written to."""
        if segment.fd not in self._written:
            with self._lock:
                self._written[segment.fd] = segment
            self._work.set()

    def forget(self, segment: Segment) -> None:
        """The segment is about to be closed."""
        with self._lock:
            self._written.pop(segment.fd, None)

    def stop(self) -> None:
        self._stopping.set()
        self._work.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._work.wait()
            if self._stopping.wait(self._interval):
                return
            self._work.clear()
            self._sync()
            self._turn()

    def _sync(self) -> None:
        # Copies of the descriptors, so that a segment may be released meanwhile and nobody waits for the disk.
        copies: list[int] = []
        try:
            with self._lock:
                while self._written:
                    copies.append(os.dup(next(reversed(self._written))))
                    self._written.popitem()
            for copy in copies:
                os.fsync(copy)
        except OSError as error:
            _LOG.error("the journal could not be flushed to the disk: %s", error)
        finally:
            for copy in copies:
                os.close(copy)
