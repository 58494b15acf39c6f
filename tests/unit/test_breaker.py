"""Circuit breakers: one of them under any events, all of them in memory, and what the end of a call says."""

from __future__ import annotations

import timeit

import pytest
from hypothesis import settings
from hypothesis import strategies as some
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from core.breakers import FAILED, IGNORED, OK, SLOW, Breakers, MemoryBreakers, Outcome, State, classify, throttled
from core.breakers.breaker import (
    FRESH,
    PROBE_SECONDS,
    Change,
    Ended,
    Event,
    Held,
    Hold,
    Passed,
    Probing,
    Record,
    Ticked,
    after,
    allows,
    decoded,
    encoded,
    state_of,
    step_of,
)
from core.settings.models import CircuitBreaker
from tests.support.breaker_cases import NAME, BreakerCases, Make
from tests.support.clock import DEFAULT_START, Clock


class TestMemory(BreakerCases):
    @pytest.fixture
    def make(self, clock: Clock) -> Make:
        def make(**rules: object) -> Breakers:
            return MemoryBreakers(CircuitBreaker.model_validate(rules), clock)

        return make

    def test_asking_costs_next_to_nothing(self) -> None:
        breakers = MemoryBreakers(CircuitBreaker())
        breakers.record("another", FAILED)
        asking = min(timeit.repeat(lambda: breakers.allows(NAME), number=10_000))
        assert asking < 25 * min(timeit.repeat(lambda: None, number=10_000))


# -- one of them under any events

RULES = CircuitBreaker(
    failure_threshold=3, failure_ratio=0.5, minimum_calls=8, open_for=10, max_open_for=35, half_open_requests=2
)
LONGEST = 35.0


class AnyEvents(RuleBasedStateMachine):
    """Calls begin, end well or not, hang and get lost, in any order, and administrators meddle."""

    def __init__(self) -> None:
        super().__init__()
        self.now = DEFAULT_START
        self.record = FRESH
        self.changes: list[Change] = []
        self.calls: list[tuple[float, str | None]] = []
        self.in_a_row = 0

    def happens(self, event: Event) -> None:
        opened_at = self.record.opened_at
        self.record, changes = after(NAME, self.record, [event], RULES)
        self.changes += changes
        if self.record.opened_at != opened_at:
            self.in_a_row = 0

    @rule(seconds=some.sampled_from([0.0, 0.5, 4.0, 10.0, 35.0, 61.0, 200.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.now += seconds
        self.happens(Ticked(self.now))

    @rule()
    def a_call_begins(self) -> None:
        if not allows(self.record, self.now, RULES):
            return
        probe = None
        if state_of(self.record, self.now, RULES) is State.HALF_OPEN:
            probe = f"probe {len(self.calls)} {self.now}"
            self.happens(Probing(self.now, probe))
            assert probe in dict(self.record.probes)
        self.calls.append((self.now, probe))

    @rule(which=some.integers(0, 9), outcome=some.sampled_from([OK, FAILED, FAILED, SLOW, IGNORED, throttled(7)]))
    def a_call_ends(self, which: int, outcome: Outcome) -> None:
        if not self.calls:
            return
        began, probe = self.calls.pop(which % len(self.calls))
        closed = not self.record.opened_at and self.record.hold is Hold.AUTO
        if outcome is OK and probe is None:
            self.happens(Passed(self.now, ((step_of(self.now, RULES), 1),)))
            self.in_a_row = 0
        else:
            since = self.now - self.record.failed_at
            counts = closed and began >= self.record.closed_at and outcome in (FAILED, SLOW)
            self.in_a_row = (self.in_a_row + 1 if since <= RULES.window else 1) if counts else self.in_a_row
            if outcome is OK and began >= self.record.closed_at:
                self.in_a_row = 0
            self.happens(Ended(self.now, began, outcome, probe))

    @rule(which=some.integers(0, 9))
    def a_call_is_lost(self, which: int) -> None:
        if self.calls:
            self.calls.pop(which % len(self.calls))

    @rule(hold=some.sampled_from(Hold))
    def an_administrator_meddles(self, hold: Hold) -> None:
        self.happens(Held(self.now, hold, "by hand"))
        self.in_a_row = 0

    @invariant()
    def what_was_told_leads_to_the_state_it_has(self) -> None:
        states = [State.CLOSED, *(change.after for change in self.changes)]
        assert [change.before for change in self.changes] == states[:-1]
        assert all(change.before is not change.after and change.why for change in self.changes)
        assert states[-1] is state_of(self.record, self.now, RULES)

    @invariant()
    def a_closed_one_has_no_more_failures_in_a_row_than_it_may(self) -> None:
        if self.record.hold is Hold.AUTO and not self.record.opened_at:
            assert self.record.failures < RULES.failure_threshold

    @invariant()
    def the_failures_in_a_row_are_counted(self) -> None:
        if self.record.hold is Hold.AUTO and state_of(self.record, self.now, RULES) is State.CLOSED:
            assert self.record.failures == self.in_a_row

    @invariant()
    def no_more_probes_than_places_are_under_way(self) -> None:
        live = [probe for probe, ends in self.record.probes if ends > self.now]
        assert len(live) + self.record.passed <= RULES.half_open_requests

    @invariant()
    def it_is_never_stuck(self) -> None:
        if self.record.hold is Hold.AUTO:
            assert recovered(self.record, self.now + max(LONGEST, PROBE_SECONDS)) is State.CLOSED

    @invariant()
    def it_survives_being_written_down(self) -> None:
        assert decoded(encoded(self.record)) == self.record
        assert encoded(decoded(encoded(self.record))) == encoded(self.record)


def recovered(record: Record, now: float) -> State:
    """The state when all probes succeed from now on."""
    for number in range(RULES.half_open_requests):
        if allows(record, now, RULES):
            probe = f"last {number}"
            events = [Probing(now, probe), Ended(now, now, OK, probe)]
            record, _ = after(NAME, record, events, RULES)
    return state_of(record, now, RULES)


AnyEvents.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestAnyEvents = AnyEvents.TestCase


def test_a_clock_that_is_put_back_does_not_keep_it_open_for_ever() -> None:
    record, _ = after(NAME, FRESH, [Ended(DEFAULT_START, DEFAULT_START, FAILED)] * 3, RULES)
    assert state_of(record, DEFAULT_START + 1, RULES) is State.OPEN
    assert state_of(record, DEFAULT_START - 3600, RULES) is State.HALF_OPEN


# -- what the end of a call says


@pytest.mark.parametrize("status", [None, 0, 200])
def test_an_answer_is_a_success(status: int | None) -> None:
    assert classify(status, None, None, 3.0) == OK


def test_a_slow_answer_is_a_failure_where_that_is_asked_for() -> None:
    assert classify(200, None, None, 3.0, slow_call=2.0) == SLOW
    assert classify(200, None, None, 2.0, slow_call=2.0) == OK
    assert classify(200, None, None, 3.0, slow_call=None) == OK


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, "AuthenticationError"),
        (403, "PermissionDeniedError"),
        (402, "PaymentRequiredError"),
        (408, "Timeout"),
        (500, "InternalServerError"),
        (500, "APIConnectionError"),
        (502, "BadGatewayError"),
        (503, "ServiceUnavailableError"),
        (503, "MidStreamFallbackError"),
        (529, "InternalServerError"),
        (None, "ConnectError"),
        (0, "ReadTimeout"),
        (None, "RemoteProtocolError"),
        (429, "RateLimitError"),
    ],
)
def test_a_provider_that_does_not_answer_has_failed(status: int | None, error: str) -> None:
    assert classify(status, error, None, 1.0) == FAILED


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, "BadRequestError"),
        (400, "ContextWindowExceededError"),
        (404, "NotFoundError"),
        (413, "APIError"),
        (422, "UnprocessableEntityError"),
        (403, "ContentPolicyViolationError"),
        (400, "ContentPolicyViolationError"),
        (499, "APIError"),
        (501, "APIError"),
        (429, "HTTPException"),
        (429, "RouterRateLimitError"),
        (None, "CancelledError"),
        (None, "KeyError"),
    ],
)
def test_what_is_not_the_providers_fault_says_nothing(status: int | None, error: str) -> None:
    assert classify(status, error, 5.0, 1.0) == IGNORED


def test_our_own_refusals_say_nothing() -> None:
    assert classify(503, "ServiceUnavailableError", None, 0.0, ours=True) == IGNORED


def test_a_429_that_names_a_time_is_a_wish_to_be_left_alone() -> None:
    assert classify(429, "RateLimitError", 12.5, 0.1) == throttled(12.5)
    assert classify(429, "RateLimitError", 0, 0.1) == FAILED


def test_a_key_that_was_replaced_is_no_broken_deployment() -> None:
    assert classify(401, "AuthenticationError", None, 0.1, another_key=True) == IGNORED
    assert classify(500, "InternalServerError", None, 0.1, another_key=True) == FAILED


def test_a_request_that_cannot_be_sent_is_no_failed_connection() -> None:
    assert classify(500, "APIConnectionError", None, 0.1, cause="TypeError") == IGNORED
    assert classify(500, "APIConnectionError", None, 0.1, cause="ConnectError") == FAILED
