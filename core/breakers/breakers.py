"""All breakers of an instance, by name: what they promise, and what memory and Redis have in common."""

import logging
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from core.breakers.breaker import (
    FRESH,
    STEPS,
    Change,
    Ended,
    Event,
    Held,
    Hold,
    Passed,
    Probing,
    Record,
    State,
    allows,
    calls_of,
    state_of,
    step_of,
)
from core.breakers.outcomes import Outcome, Verdict
from core.settings.models.operations import CircuitBreaker

_LOG = logging.getLogger("orchestration.breakers")

Listener = Callable[[Change], None]


@dataclass(frozen=True, slots=True)
class Permit:
    """A call may be made. `probe` names the place it has where its breaker is half-open, taken `at`."""

    name: str
    probe: str | None = None
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Status:
    """A breaker as it is now. Times are Unix seconds, `until` None where nothing says when the state ends."""

    name: str
    state: State
    since: float
    why: str
    until: float | None
    failures_in_a_row: int
    calls: int
    """Within the window."""
    failures: int
    openings: int
    throttled: bool
    hold: Hold


class Breakers(Protocol):
    """Names are those of deployments, or of whatever else fails as one. A name that was never heard of is closed."""

    rules: CircuitBreaker
    """May be replaced while it runs."""

    def allows(self, name: str) -> bool:
        """Whether a call may be made, as far as this instance knows; answered from memory."""
        ...

    def quiet(self) -> bool:
        """Whether every breaker is as good as fresh, so that all calls may be made."""
        ...

    async def acquire(self, name: str) -> Permit | None:
        """Leave to make a call now, None where there is none. Half-open it takes one of the places for probes that all
        instances share, else it waits for nothing. The permit goes into `record`, with IGNORED if no call was made."""
        ...

    def record(self, name: str, outcome: Outcome, latency: float = 0.0, permit: Permit | None = None) -> None:
        """A call is over that took `latency` seconds. Half-open, only calls with a permit count."""
        ...

    async def hold(self, name: str, hold: Hold, why: str) -> None:
        """Keep it open or closed whatever happens, until it is put back to automatic, which begins anew."""
        ...

    def states(self) -> dict[str, Status]:
        """Those that are not closed, or had failures lately; all others are closed and well."""
        ...

    def on_change(self, listener: Listener) -> None:
        """Each change is told to the listeners of one instance, that which brought it about or noticed it first."""
        ...

    async def refresh(self) -> None:
        """Look at the time, and at what other instances have done."""
        ...

    async def flush(self) -> None:
        """Wait until other instances can know what was recorded here."""
        ...

    async def run(self) -> None:
        """Refresh each second, until cancelled."""
        ...

    async def close(self) -> None: ...


@dataclass(slots=True)
class _Tally:
    """Successes of a breaker of which nothing else is kept, by step, the last of them `at`."""

    at: float = 0.0
    steps: dict[int, int] = field(default_factory=dict[int, int])


class LocalBreakers(ABC):
    """The view that one instance has. What becomes of events is for the heirs to say (`_happened`).

    `clock` gives Unix seconds.
    """

    def __init__(self, rules: CircuitBreaker, clock: Callable[[], float] = time.time) -> None:
        self.rules = rules
        self._now = clock
        self._records: dict[str, Record] = {}
        """Every breaker that is not as good as fresh."""
        self._tallies: dict[str, _Tally] = {}
        self._listeners: list[Listener] = []

    def allows(self, name: str) -> bool:
        record = self._records.get(name)
        return record is None or allows(record, self._now(), self.rules)

    def quiet(self) -> bool:
        return not self._records

    async def acquire(self, name: str) -> Permit | None:
        record = self._records.get(name)
        if record is None:
            return Permit(name)
        now = self._now()
        if not allows(record, now, self.rules):
            return None
        if state_of(record, now, self.rules) is State.CLOSED:
            return Permit(name)
        event = Probing(now, uuid.uuid4().hex)
        return Permit(name, event.probe, now) if await self._probe(name, event) else None

    def record(self, name: str, outcome: Outcome, latency: float = 0.0, permit: Permit | None = None) -> None:
        now = self._now()
        probe = None if permit is None else permit.probe
        known = name in self._records
        if probe is None:
            if outcome.verdict is Verdict.OK:
                if known:
                    self._happened(name, Passed(now, ((step_of(now, self.rules), 1),)))
                else:
                    self._count(name, now)
                return
            if outcome.verdict is Verdict.IGNORED:
                return
        began = permit.at if permit is not None and probe is not None else now - latency
        ended = Ended(now, began, outcome, probe)
        self._happened(name, *([] if known else self._counted(name)), ended)

    async def hold(self, name: str, hold: Hold, why: str) -> None:
        self._happened(name, Held(self._now(), hold, why))
        await self.flush()

    def states(self) -> dict[str, Status]:
        now = self._now()
        return {name: self._status(name, record, now) for name, record in self._records.items()}

    def on_change(self, listener: Listener) -> None:
        self._listeners.append(listener)

    async def refresh(self) -> None:
        return

    async def flush(self) -> None:
        return

    async def close(self) -> None:
        return

    @abstractmethod
    def _happened(self, name: str, *events: Event) -> None: ...

    @abstractmethod
    async def _probe(self, name: str, event: Probing) -> bool:
        """Whether there was a place for it."""
        ...

    def _tell(self, changes: list[Change]) -> None:
        for change in changes:
            for listener in self._listeners:
                try:
                    listener(change)
                except Exception:  # a listener that fails must not keep the others, nor the request, from going on
                    _LOG.exception("a change of breaker %s could not be told", change.name)

    def _view(self, name: str) -> Record:
        return self._records.get(name, FRESH)

    def _count(self, name: str, now: float) -> None:
        tally = self._tallies.get(name)
        if tally is None:
            tally = self._tallies[name] = _Tally()
        step = step_of(now, self.rules)
        steps = tally.steps
        steps[step] = steps.get(step, 0) + 1
        tally.at = now
        if len(steps) > STEPS:
            del steps[next(iter(steps))]

    def _counted(self, name: str) -> list[Passed]:
        """What was counted so far, as an event."""
        tally = self._tallies.pop(name, None)
        return [] if tally is None else [Passed(tally.at, tuple(tally.steps.items()))]

    def _status(self, name: str, record: Record, now: float) -> Status:
        state = state_of(record, now, self.rules)
        throttled = record.hold is Hold.AUTO and now < record.throttled_until
        ends = max(record.throttled_until if throttled else 0.0, record.until)
        calls, failures = calls_of(record, now, self.rules)
        return Status(
            name=name,
            state=state,
            since=record.since,
            why=record.why,
            until=ends if state is State.OPEN and record.hold is Hold.AUTO else None,
            failures_in_a_row=record.failures,
            calls=calls,
            failures=failures,
            openings=record.openings,
            throttled=throttled,
            hold=record.hold,
        )
