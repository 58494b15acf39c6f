"""Breakers that instances share, in Redis or in Redis Cluster.

Each instance has its own view: the record that Redis is known to have, and over it what happened here and Redis has yet
to take. A change is computed here and written where the record in Redis is still the one it was computed from;
otherwise it is computed again from what is there by now. So the states mean the same as in memory, and whoever gets a
change written is the one to tell of it.

Failures are sent at once, together if others are under way. Successes are only sent while a breaker is in trouble, with
the next failure or the next look. While Redis is away every instance follows its own view, and puts in what became of
it when Redis is back.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from core.breakers.breaker import (
    FRESH,
    Change,
    Ended,
    Event,
    Held,
    Merged,
    Passed,
    Probing,
    Record,
    Ticked,
    after,
    decoded,
    encoded,
    quiet,
)
from core.breakers.breakers import LocalBreakers
from core.breakers.outcomes import IGNORED
from core.settings.models.operations import CircuitBreaker
from core.state.reservations import StateAway
from core.state.scripts import Scripts

_LOG = logging.getLogger("orchestration.breakers")
_KEY: Final = "{orchestration}:breakers"
SIGNAL: Final = "breakers"
"""Kind of the signal that a breaker has changed."""
_REFRESH_EVERY = 1.0
_UNCONTENDED_ROUNDS = 3

Tell = Callable[[str, dict[str, Any]], Awaitable[bool]]
"""`core.state.signals.Signals.tell`."""


@dataclass(slots=True)
class _Shared:
    """A breaker as Redis is known to have it (`stored`, read: `base`), and what it has yet to take."""

    stored: bytes = b""
    base: Record = FRESH
    pending: list[Event] = field(default_factory=list[Event])
    under_way: int = 0
    """How many of them are being sent."""
    apart: bool = False
    """Whether `base` went its own way while Redis was away."""

    def add(self, event: Event) -> None:
        last = self.pending[-1] if len(self.pending) > self.under_way else None
        if isinstance(event, Passed) and isinstance(last, Passed):
            self.pending[-1] = _together(last, event)
        else:
            self.pending.append(event)


class RedisBreakers(LocalBreakers):
    """`core.breakers.Breakers`. `hear` wants to be the handler of `SIGNAL`.

    `patience` is how many seconds Redis may take before it counts as away. `clock` gives Unix seconds in place of
    Redis's own time.
    """

    def __init__(
        self,
        url: str,
        rules: CircuitBreaker,
        *,
        tell: Tell | None = None,
        patience: float = 2.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        super().__init__(rules, clock or self._redis_time)
        self._scripts = Scripts(url, patience)
        self._signal = tell
        self._offset = 0.0
        """Redis's time less ours, in seconds."""
        self._shared: dict[str, _Shared] = {}
        self._stamp = "none"
        self._begun: str = ""
        """When the hash in Redis was begun; at another time, what it held was lost."""
        self._talking = asyncio.Lock()
        self._delivery: asyncio.Task[None] | None = None
        self._signals: set[asyncio.Task[bool]] = set()
        self._probing: dict[str, asyncio.Future[bool]] = {}
        self.away = False

    async def hear(self, body: dict[str, Any]) -> None:
        """Another instance says that a breaker has changed."""
        await self.refresh()

    async def refresh(self) -> None:
        async with self._talking:
            before = time.time()
            try:
                answer = await self._scripts.run("breaker_read", [_KEY], [self._stamp])
            except Exception as error:
                self._lose(error)
            else:
                self._look_at_the_clock(before, time.time(), int(answer[0]) / 1e6)
                self._take_over(answer[1].decode(), answer[2] if len(answer) > 2 else None)
        self._tick()
        self._deliver_soon()
        await self.flush()

    async def flush(self) -> None:
        while self._delivery is not None and not self._delivery.done():
            await asyncio.wait({self._delivery})

    async def run(self) -> None:
        while True:
            await self.refresh()
            await asyncio.sleep(random.uniform(0.8, 1.2) * _REFRESH_EVERY)  # noqa: S311

    async def close(self) -> None:
        self._deliver_soon()
        await self.flush()
        for task in self._signals:
            task.cancel()
        await self._scripts.close()

    # -- what happens here

    def _happened(self, name: str, *events: Event) -> None:
        shared = self._shared.get(name)
        if shared is None:
            shared = self._shared[name] = _Shared()
        if self.away:
            self._go_apart(name, shared, events)
            return
        view = self._view(name)
        self._records[name], _ = after(name, view, events, self.rules)
        if self._records[name] is view and view is not FRESH:
            return  # a breaker that is open has nothing to learn from calls that began before
        for event in events:
            shared.add(event)
        if view.failures or not all(isinstance(event, Passed | Ticked) for event in events):
            self._deliver_soon()

    async def _probe(self, name: str, event: Probing) -> bool:
        answer = self._probing[event.probe] = asyncio.get_running_loop().create_future()
        self._happened(name, event)
        if event.probe not in dict(self._view(name).probes):
            self._probing.pop(event.probe, None)
            return False
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            # The place may be taken, and nobody will report.
            ended = Ended(event.at, event.at, IGNORED, event.probe)
            answer.add_done_callback(lambda _: self._happened(name, ended))
            raise

    def _tick(self) -> None:
        now = self._now()
        for name, shared in list(self._shared.items()):
            view = self._view(name)
            moved = after(name, view, [Ticked(now)], self.rules)[0] is not view
            if self.away and moved:
                self._go_apart(name, shared, [Ticked(now)])
            elif not self.away and (moved or quiet(view, now, self.rules)):
                shared.add(Ticked(now))

    # -- what Redis takes

    def _deliver_soon(self) -> None:
        if self.away or (self._delivery is not None and not self._delivery.done()):
            return
        if any(shared.pending for shared in self._shared.values()):
            self._delivery = asyncio.get_running_loop().create_task(self._deliver())

    async def _deliver(self) -> None:
        rounds = 0
        while not self.away:
            async with self._talking:
                waiting = {name: shared for name, shared in self._shared.items() if shared.pending}
                if not waiting or self.away:
                    return
                try:
                    await self._swap([self._proposal(name, shared) for name, shared in waiting.items()])
                except Exception as error:  # whoever waits for an answer gets one, whatever happened
                    self._lose(error)
            rounds += 1
            if rounds > _UNCONTENDED_ROUNDS:
                await asyncio.sleep(random.uniform(0, 0.005))  # noqa: S311

    def _proposal(self, name: str, shared: _Shared) -> "_Proposal":
        shared.under_way = len(shared.pending)
        record, changes = after(name, shared.base, shared.pending, self.rules)
        stored = b"" if quiet(record, self._now(), self.rules) else encoded(record)
        return _Proposal(name, shared, tuple(shared.pending), record, stored, changes)

    async def _swap(self, proposals: Sequence["_Proposal"]) -> None:
        news = [one for one in proposals if one.stored != one.shared.stored]
        refused: dict[str, bytes] = {}
        if news:
            arguments = [word for one in news for word in (one.name, one.shared.stored, one.stored)]
            answer: list[Any] = await self._scripts.run("breaker_swap", [_KEY], arguments)
            written = zip(news, answer[::2], answer[1::2], strict=True)
            refused = {one.name: there for one, done, there in written if not done}
        for one in proposals:
            shared = one.shared
            shared.under_way = 0
            if one.name in refused:
                shared.stored = refused[one.name]
                shared.base = _read(one.name, shared.stored)
            else:
                del shared.pending[: len(one.events)]
                shared.base, shared.stored = one.record, one.stored
                self._answer(one.events, one.record)
                self._tell(one.changes)
                if one.changes or any(isinstance(event, Held) for event in one.events):
                    self._tell_instances()
            self._look_again(one.name, shared)

    def _look_again(self, name: str, shared: _Shared) -> None:
        """Our view, from what is in Redis and what is not there yet."""
        if shared.pending:
            self._records[name], _ = after(name, shared.base, shared.pending, self.rules)
        elif not shared.stored and not shared.apart:
            del self._shared[name]
            self._records.pop(name, None)
        else:
            self._records[name] = shared.base

    def _answer(self, events: Sequence[Event], record: Record) -> None:
        for event in events:
            if isinstance(event, Probing) and (answer := self._probing.pop(event.probe, None)) is not None:
                answer.set_result(event.probe in dict(record.probes))

    def _tell_instances(self) -> None:
        if self._signal is not None:
            task = asyncio.ensure_future(self._signal(SIGNAL, {}))
            self._signals.add(task)
            task.add_done_callback(self._signals.discard)

    # -- what Redis has

    def _take_over(self, stamp: str, rows: Sequence[bytes] | None) -> None:
        """Redis answers; `rows` are names and records in turn, None where they are those that we know."""
        if self.away:
            self.away = False
            _LOG.warning("Redis is back: circuit breakers are shared by all instances again")
        begun = stamp.partition(" ")[0]
        lost = bool(self._begun) and begun != self._begun
        self._stamp, self._begun = stamp, begun
        found = None if rows is None else dict(zip(rows[::2], rows[1::2], strict=True))
        now = self._now()
        for name, shared in list(self._shared.items()):
            there = shared.stored if found is None else found.pop(name.encode(), b"")
            if shared.apart or (lost and shared.stored and not there):
                shared.pending.insert(0, Merged(now, shared.base))
                shared.apart = False
            elif there == shared.stored:
                continue
            shared.base, shared.stored = _read(name, there), there
            self._look_again(name, shared)
        for key, there in (found or {}).items():
            if key:
                name = key.decode()
                shared = self._shared[name] = _Shared(there, _read(name, there), [*self._counted(name)])
                self._look_again(name, shared)

    def _lose(self, error: Exception) -> None:
        if not self.away:
            self.away = True
            _LOG.warning(
                "circuit breakers of this instance are on their own until Redis is back: %s",
                error,
                exc_info=None if isinstance(error, StateAway) else error,
            )
        for name, shared in self._shared.items():
            events, shared.pending, shared.under_way = shared.pending, [], 0
            if events:
                self._go_apart(name, shared, events)

    def _go_apart(self, name: str, shared: _Shared, events: Sequence[Event]) -> None:
        shared.base, changes = after(name, shared.base, events, self.rules)
        shared.apart = True
        self._records[name] = shared.base
        self._answer(events, shared.base)
        self._tell(changes)

    # -- time

    def _redis_time(self) -> float:
        return time.time() + self._offset

    def _look_at_the_clock(self, before: float, after: float, redis: float) -> None:
        offset = redis - (before + after) / 2
        # Within what the way there and back may take, the old guess is as good as the new.
        if abs(offset - self._offset) > max(0.1, after - before):
            self._offset = offset


@dataclass(frozen=True, slots=True)
class _Proposal:
    """What a breaker's record should be after these events."""

    name: str
    shared: _Shared
    events: tuple[Event, ...]
    record: Record
    stored: bytes
    changes: list[Change]


def _together(first: Passed, second: Passed) -> Passed:
    calls = dict(first.calls)
    for step, count in second.calls:
        calls[step] = calls.get(step, 0) + count
    return Passed(max(first.at, second.at), tuple(calls.items()))


def _read(name: str, stored: bytes) -> Record:
    if not stored:
        return FRESH
    try:
        return decoded(stored)
    except (ValueError, TypeError):
        _LOG.warning("breaker %s begins anew: its record in Redis is none of this version", name)
        return FRESH
