"""What happens to secrets, written down: who asked for which one, why, and what came of it. Never what it is."""

import asyncio
import json
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from core.audit import AuditRecord, Outcome
from core.errors import StoreError
from core.settings.reference import SecretReference
from secrets_manager.resolver import Happened, SecretEvent, SecretState

if TYPE_CHECKING:
    from core.store import Store

_LOG = logging.getLogger("orchestration.audit")
_ROOM = 10_000
_BATCH = 500
_LINGER = 1.0
_LONGEST_PAUSE = 30.0
_LOG_EVERY = 60.0
_STOP_SECONDS = 5.0
_SAMPLE_EVERY = 30.0
"""Seconds between two looks at how often each secret was read. The resolver forgets what nobody reads for most of a
TTL; what was read before that should have been seen."""
_SUMMARY_EVERY = 3600.0
_LONGEST_MESSAGE = 2000

_OUTCOMES: dict[Happened, Outcome] = {
    Happened.FAILED: "failed",
    Happened.STALE: "failed",
    Happened.LOST: "failed",
    Happened.REJECTED: "failed",
    Happened.DENIED: "denied",
}


class SecretAudit:
    """Listens to a resolver, on any thread, and writes what it hears into the store about once a second.

    Records wait in memory, from before there is a store and while it is away; what `room` does not hold is counted, and
    the count recorded. `instance` names the chain. `states` gives what the resolver knows now (nothing before it is
    configured): from it come the summaries `secret.used`, one per secret and hour, of reads that ask no vault.
    """

    def __init__(
        self,
        instance: str,
        states: Callable[[], Iterable[SecretState]] = tuple,
        *,
        clock: Callable[[], float] = time.time,
        room: int = _ROOM,
    ) -> None:
        self._instance = instance
        self._clock = clock
        self._room = room
        self._lock = threading.Lock()
        self._queue: deque[AuditRecord] = deque()
        self._lost = 0
        self._lost_since = 0.0
        self._writing = asyncio.Lock()
        self._reads = _Reads(states, clock)
        self._next_complaint = 0.0
        self.last_error: str | None = None
        """Why the last records did not go into the store; None after some that did."""

    @property
    def waiting(self) -> int:
        """Records that are not in the store yet."""
        return len(self._queue)

    def __call__(self, event: SecretEvent) -> None:
        """Take note of an event; the resolver calls this."""
        self._put([_record(event, self._instance)])

    async def run(self, store: "Store") -> None:
        """Write until cancelled, then once more, within 5 s, with the reads that no summary has counted yet.

        The process must not forget the secrets before that, or their reads go uncounted.
        """
        failures = 0
        try:
            while True:
                try:
                    written = await self.flush(store)
                except Exception:  # a bug of ours must not end the only task that writes the audit
                    _LOG.exception("the audit of secrets failed in a way it should not")
                    written = False
                failures = 0 if written else failures + 1
                pause = min(_LONGEST_PAUSE, _LINGER * 2 ** min(failures, 10))
                await asyncio.sleep(pause if written else pause * random.uniform(0.5, 1.0))  # noqa: S311
        finally:
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    await self.flush(store, last=True)
            except TimeoutError:
                self.last_error = f"the store did not take them within {_STOP_SECONDS:g} s"
            if self._queue:
                _LOG.error("%d audit records of secrets are lost: %s", len(self._queue), self.last_error)

    async def flush(self, store: "Store", *, last: bool = False) -> bool:
        """Write what waits; whether all of it is in the store now. With `last`, count reads up to this moment."""
        async with self._writing:
            self._put(self._reads.summaries(self._instance, last))
            while batch := self._batch():
                try:
                    refused = await self._append(store, batch)
                except StoreError as error:
                    self._failed(error)
                    return False
                self._written(len(batch), refused)
            self.last_error = None
            return True

    async def _append(self, store: "Store", batch: Sequence[AuditRecord]) -> int:
        """Write them, halving the batch round any record that the database will not hold; returns how many those are.
        Raises StoreError; then the whole batch may be written again."""
        from core.store.errors import RecordRefused

        try:
            await store.audit.append(self._instance, batch)
        except RecordRefused as error:
            if len(batch) > 1:
                middle = len(batch) // 2
                return await self._append(store, batch[:middle]) + await self._append(store, batch[middle:])
            _LOG.error("an audit record (%s of %s) cannot be stored: %s", batch[0].action, batch[0].subject, error)
            return 1
        return 0

    def _put(self, records: Iterable[AuditRecord]) -> None:
        with self._lock:
            for record in records:
                if len(self._queue) < self._room:
                    self._queue.append(record)
                else:
                    self._lose(1)

    def _batch(self) -> list[AuditRecord]:
        with self._lock:
            return [self._queue[index] for index in range(min(_BATCH, len(self._queue)))]

    def _written(self, number: int, refused: int) -> None:
        """Forget what is in the store; into the room this makes goes how much was lost, behind what came before."""
        with self._lock:
            for _ in range(number):
                self._queue.popleft()
            self._lose(refused)
            if self._lost:
                self._queue.append(_loss(self._instance, self._lost, self._lost_since, self._clock()))
                self._lost = 0

    def _lose(self, number: int) -> None:
        if number and not self._lost:
            self._lost_since = self._clock()
        self._lost += number

    def _failed(self, error: StoreError) -> None:
        self.last_error = str(error)
        now = self._clock()
        if now >= self._next_complaint:
            self._next_complaint = now + _LOG_EVERY
            _LOG.error("%d audit records of secrets wait in memory: %s", len(self._queue), error)


class _Reads:
    """How often each secret was read since the last summary."""

    def __init__(self, states: Callable[[], Iterable[SecretState]], clock: Callable[[], float]) -> None:
        self._states = states
        self._clock = clock
        self._seen: dict[SecretReference, int] = {}
        self._counts: dict[SecretReference, int] = {}
        self._versions: dict[SecretReference, str | None] = {}
        self._since = clock()
        self._looked = 0.0

    def summaries(self, instance: str, now_at_once: bool) -> list[AuditRecord]:
        """A record for each secret that was read, when the hour is over or `now_at_once`."""
        now = self._clock()
        over = now_at_once or now >= self._since + _SUMMARY_EVERY
        if over or now >= self._looked + _SAMPLE_EVERY:
            self._looked = now
            self._look()
        if not over:
            return []
        since, self._since = self._since, now
        counts, self._counts = self._counts, {}
        return [
            AuditRecord(
                time_ms=int(now * 1000),
                actor=instance,
                action="secret.used",
                subject=reference.uri,
                version=self._versions.get(reference),
                detail=json.dumps({"reads": reads, "since_ms": int(since * 1000)}),
            )
            for reference, reads in sorted(counts.items())
        ]

    def _look(self) -> None:
        # The fields of a secret share its count.
        states = {state.reference.document: state for state in self._states()}
        for document, state in states.items():
            before = self._seen.get(document, 0)
            # Fewer than before: it was forgotten in between, or a new resolver began to count.
            reads = state.reads - before if state.reads >= before else state.reads
            if reads:
                self._counts[document] = self._counts.get(document, 0) + reads
                self._versions[document] = state.version
        self._seen = {document: state.reads for document, state in states.items()}
        self._versions = {document: self._versions.get(document) for document in self._counts}


def _record(event: SecretEvent, instance: str) -> AuditRecord:
    detail: dict[str, str] = {}
    if event.message:
        detail["message"] = event.message[:_LONGEST_MESSAGE]
    if event.reference.field is not None:
        detail["field"] = event.reference.field
    return AuditRecord(
        time_ms=int(event.at * 1000),
        actor=event.why or instance,
        action=f"secret.{event.what.value}",
        subject=event.reference.document.uri,
        outcome=_OUTCOMES.get(event.what, "ok"),
        version=event.version,
        reason=None if event.reason is None else event.reason.value,
        detail=json.dumps(detail),
    )


def _loss(instance: str, number: int, since: float, until: float) -> AuditRecord:
    return AuditRecord(
        time_ms=int(until * 1000),
        actor=instance,
        action="secret.records_lost",
        subject="audit",
        outcome="failed",
        detail=json.dumps({"records": number, "since_ms": int(since * 1000)}),
    )
