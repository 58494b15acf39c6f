"""One circuit breaker: what is remembered of it, and how each event changes that. Values only; memory, Redis and clocks
are elsewhere.

A breaker is closed until calls fail, then open for a while, then half-open: some probes find out whether it closes or
opens again for twice as long. The passing of time alone makes an open one half-open. A 429 that names a time holds it
open for that time without a verdict. Whoever changes records with `after` is told of every change of state by exactly
one call, as long as each call starts from what the one before returned.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import orjson

from core.breakers.outcomes import Outcome, Verdict
from core.settings.models.operations import CircuitBreaker

STEPS: Final = 10
"""A window moves in so many steps."""
PROBE_SECONDS: Final = 60.0
"""A probe that has not reported by then gives its place to another."""


class State(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Hold(StrEnum):
    """What an administrator wants."""

    AUTO = "auto"
    OPEN = "open"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Change:
    """A breaker went from one state to another. `time` is Unix seconds."""

    name: str
    before: State
    after: State
    why: str
    time: float


@dataclass(frozen=True, slots=True)
class Record:
    """All there is to a breaker. Times are Unix seconds, 0 where there was none."""

    failures: int = 0
    """In a row."""
    failed_at: float = 0.0
    window: tuple[tuple[int, int, int], ...] = ()
    """Number of a step, calls, failures among them."""
    opened_at: float = 0.0
    until: float = 0.0
    openings: int = 0
    """Without a healthy time between them."""
    closed_at: float = 0.0
    probes: tuple[tuple[str, float], ...] = ()
    """Those under way, and when each loses its place."""
    passed: int = 0
    """Probes that succeeded since it was half-open."""
    throttled_until: float = 0.0
    hold: Hold = Hold.AUTO
    held_at: float = 0.0
    state: State = State.CLOSED
    """The state that was told last; time may have moved on: see `state_of`."""
    since: float = 0.0
    why: str = ""


FRESH: Final = Record()


# -- events. Each has the time `at` which it happened, in Unix seconds


@dataclass(frozen=True, slots=True)
class Passed:
    """Calls that succeeded, by step, the last of them `at`."""

    at: float
    calls: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """A call that began at `began` and was no plain success, or was the probe `probe`."""

    at: float
    began: float
    """When its place was taken, for a probe."""
    outcome: Outcome
    probe: str | None = None


@dataclass(frozen=True, slots=True)
class Probing:
    """A call that wants to be a probe."""

    at: float
    probe: str


@dataclass(frozen=True, slots=True)
class Held:
    at: float
    hold: Hold
    why: str


@dataclass(frozen=True, slots=True)
class Merged:
    """What became of the breaker where nobody else could be asked."""

    at: float
    own: Record


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time went by."""

    at: float


Event = Passed | Ended | Probing | Held | Merged | Ticked


# -- reading a record


def state_of(record: Record, now: float, rules: CircuitBreaker) -> State:
    if record.hold is not Hold.AUTO:
        return State.OPEN if record.hold is Hold.OPEN else State.CLOSED
    if now < record.throttled_until <= now + _longest(rules):
        return State.OPEN
    return _verdict(record, now, rules)


def allows(record: Record, now: float, rules: CircuitBreaker) -> bool:
    """Whether a call may be made, half-open: whether a place for a probe is free."""
    state = state_of(record, now, rules)
    return state is State.CLOSED or (state is State.HALF_OPEN and _places(record, now, rules) > 0)


def quiet(record: Record, now: float, rules: CircuitBreaker) -> bool:
    """Whether the record says no more than a fresh one would."""
    return (
        record.state is State.CLOSED
        and not record.opened_at
        and record.hold is Hold.AUTO
        and record.throttled_until <= now
        and record.failed_at + rules.window < now
        and (not record.openings or record.closed_at + _healthy(record, rules) < now)
    )


def calls_of(record: Record, now: float, rules: CircuitBreaker) -> tuple[int, int]:
    """Calls within the window, and failures among them."""
    window = _moved(record.window, step_of(now, rules))
    return sum(calls for _, calls, _ in window), sum(failures for _, _, failures in window)


def step_of(time: float, rules: CircuitBreaker) -> int:
    return int(time * STEPS / max(rules.window, 1.0))


# -- changing it


def after(name: str, record: Record, events: Sequence[Event], rules: CircuitBreaker) -> tuple[Record, list[Change]]:
    """The record after these events, the very same one where nothing changed, and the changes of state on the way."""
    changes: list[Change] = []
    for event in events:
        record = _told(name, record, event.at, rules, "", changes)
        record, why = _apply(record, event, rules)
        record = _told(name, record, event.at, rules, why, changes)
    return record, changes


def _merged(shared: Record, own: Record) -> Record:
    """One record of two that went separate ways: that of which something was heard last."""
    latest = max(shared, own, key=lambda one: (one.since, one.failed_at, one.closed_at))
    holding = max(shared, own, key=lambda one: one.held_at)
    throttled = max(shared.throttled_until, own.throttled_until)
    return replace(latest, hold=holding.hold, held_at=holding.held_at, throttled_until=throttled)


def _apply(record: Record, event: Event, rules: CircuitBreaker) -> tuple[Record, str]:
    match event:
        case Passed():
            return _passed(record, event, rules), ""
        case Ended():
            return _ended(record, event, rules)
        case Probing():
            if state_of(record, event.at, rules) is State.HALF_OPEN and _places(record, event.at, rules) > 0:
                return replace(record, probes=(*_live(record, event.at), (event.probe, event.at + PROBE_SECONDS))), ""
            return record, ""
        case Held():
            # Back in automatic, it begins anew: what was counted before is an old story.
            return Record(
                hold=event.hold, held_at=event.at, closed_at=event.at, state=record.state, since=record.since
            ), event.why
        case Merged():
            return _merged(record, event.own), ""
        case Ticked():
            return record, ""


def _passed(record: Record, event: Passed, rules: CircuitBreaker) -> Record:
    if record.opened_at or record.hold is not Hold.AUTO:
        return record
    window = record.window
    for step, calls in event.calls:
        window = _counted(window, step, calls, 0)
    failures = 0 if event.at >= record.failed_at else record.failures
    return replace(record, window=_moved(window, step_of(event.at, rules)), failures=failures)


def _ended(record: Record, event: Ended, rules: CircuitBreaker) -> tuple[Record, str]:
    verdict = event.outcome.verdict
    if record.hold is not Hold.AUTO:
        return record, ""
    if event.probe is not None and any(probe == event.probe for probe, _ in record.probes):
        record = replace(record, probes=tuple(place for place in record.probes if place[0] != event.probe))
    if verdict is Verdict.IGNORED:
        return record, ""
    if verdict is Verdict.THROTTLED:
        until = event.at + min(event.outcome.retry_after, _longest(rules))
        if until <= record.throttled_until:
            return record, ""
        why = f"the provider asks to be left alone for {event.outcome.retry_after:g} s"
        return replace(record, throttled_until=until), why
    if record.opened_at:
        return _probed(record, event, rules)
    if event.began < record.closed_at:
        return record, ""  # it was called before the breaker last opened
    if verdict is Verdict.OK:
        return _passed(record, Passed(event.at, ((step_of(event.at, rules), 1),)), rules), ""
    return _failed(record, event, rules)


def _probed(record: Record, event: Ended, rules: CircuitBreaker) -> tuple[Record, str]:
    """Half-open, only probes of this time decide: others were called while it was closed."""
    at = event.at
    if event.probe is None or event.began < record.until or _verdict(record, at, rules) is not State.HALF_OPEN:
        return record, ""
    if event.outcome.verdict is not Verdict.OK:
        return _open(record, at, record.openings + 1, rules), "it was tried again and failed"
    if record.passed + 1 < rules.half_open_requests:
        return replace(record, passed=record.passed + 1), ""
    closed = replace(record, opened_at=0.0, until=0.0, closed_at=at, probes=(), passed=0, failures=0, window=())
    return closed, "it was tried again and is well"


def _failed(record: Record, event: Ended, rules: CircuitBreaker) -> tuple[Record, str]:
    at = event.at
    step = step_of(at, rules)
    failures = record.failures + 1 if at - record.failed_at <= rules.window else 1
    window = _moved(_counted(record.window, step, 1, 1), step)
    record = replace(record, failures=failures, failed_at=max(at, record.failed_at), window=window)
    kind = "slow" if event.outcome.verdict is Verdict.SLOW else "failed"
    calls, bad = calls_of(record, at, rules)
    if failures >= rules.failure_threshold:
        why = f"{failures} calls in a row failed, the last one: {kind}"
    elif rules.failure_ratio is not None and calls >= rules.minimum_calls and bad >= rules.failure_ratio * calls:
        why = f"{bad} of {calls} calls failed within {rules.window:g} s"
    else:
        return record, ""
    healthy = at - record.closed_at > _healthy(record, rules)
    return _open(record, at, 1 if healthy else record.openings + 1, rules), why


def _open(record: Record, at: float, openings: int, rules: CircuitBreaker) -> Record:
    until = at + _open_for(openings, rules)
    return replace(
        record, opened_at=at, until=until, openings=openings, probes=(), passed=0, failures=0, window=(), failed_at=at
    )


def _told(name: str, record: Record, at: float, rules: CircuitBreaker, why: str, changes: list[Change]) -> Record:
    """The record with its state as it is by now, the change added to `changes`."""
    state = state_of(record, at, rules)
    if state is record.state:
        return replace(record, why=why) if why else record
    why = why or _TIME_WENT_BY.get(state, record.why)
    changes.append(Change(name, record.state, state, why, at))
    return replace(record, state=state, since=at, why=why)


_TIME_WENT_BY: Final = {
    State.HALF_OPEN: "it was open for long enough to be tried again",
    State.CLOSED: "the time is over for which it was to be left alone",
}


# -- parts of it


def _verdict(record: Record, now: float, rules: CircuitBreaker) -> State:
    """The state without a 429 or an administrator."""
    if not record.opened_at:
        return State.CLOSED
    # Further ahead than it can be: a clock was put back, or the rules were changed.
    return State.OPEN if now < record.until <= now + _longest(rules) else State.HALF_OPEN


def _longest(rules: CircuitBreaker) -> float:
    return max(rules.open_for, rules.max_open_for)


def _open_for(openings: int, rules: CircuitBreaker) -> float:
    return min(rules.open_for * 2.0 ** min(openings - 1, 60), _longest(rules))


def _healthy(record: Record, rules: CircuitBreaker) -> float:
    """How long it has to have been closed for its openings to be forgotten."""
    return max(rules.window, _open_for(record.openings, rules)) if record.openings else 0.0


def _live(record: Record, now: float) -> tuple[tuple[str, float], ...]:
    return tuple((probe, ends) for probe, ends in record.probes if now < ends <= now + PROBE_SECONDS)


def _places(record: Record, now: float, rules: CircuitBreaker) -> int:
    return rules.half_open_requests - record.passed - len(_live(record, now))


Window = tuple[tuple[int, int, int], ...]


def _counted(window: Window, step: int, calls: int, failures: int) -> Window:
    rows = {row[0]: row for row in window}
    _, had_calls, had_failures = rows.get(step, (step, 0, 0))
    rows[step] = (step, had_calls + calls, had_failures + failures)
    return tuple(sorted(rows.values()))


def _moved(window: Window, current: int) -> Window:
    if window and window[0][0] > current - STEPS and window[-1][0] <= current:
        return window
    return tuple(row for row in window if current - STEPS < row[0] <= current)


# -- in Redis


def encoded(record: Record) -> bytes:
    """JSON, the same bytes for the same record."""
    return orjson.dumps([getattr(record, field) for field in Record.__slots__])


def decoded(data: bytes) -> Record:
    """Raises ValueError or TypeError for what is no record, as that of another version."""
    found = dict(zip(Record.__slots__, orjson.loads(data), strict=True))
    found["window"] = tuple((step, calls, failures) for step, calls, failures in found["window"])
    found["probes"] = tuple((probe, ends) for probe, ends in found["probes"])
    found["hold"], found["state"] = Hold(found["hold"]), State(found["state"])
    return Record(**found)
