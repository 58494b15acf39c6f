"""Retries: how long one waits, how many there may be, and until when."""

import pytest
from hypothesis import given
from hypothesis import strategies as some

from core.retries import Deadline, RetryBudget, delay, retry_after_seconds
from core.settings.models import Retries
from tests.support.clock import DEFAULT_START, Clock

RULES = Retries(max_attempts=5, base_delay=0.2, max_delay=1.0)


@given(some.integers(1, 4), some.floats(0, 1), some.none() | some.floats(0, 1))
def test_waits_are_within_what_is_configured(attempt: int, chance: float, asked: float | None) -> None:
    wait = delay(RULES, attempt, asked, lambda: chance)
    assert wait is not None
    assert (asked or 0.0) <= wait <= 1.0
    assert asked is not None or wait <= 0.2 * 2 ** (attempt - 1)


def test_the_wait_doubles_up_to_the_most() -> None:
    rules = RULES.model_copy(update={"max_attempts": 10_000})
    assert [delay(rules, attempt, None, lambda: 1.0) for attempt in (1, 2, 3, 4, 9_999)] == [0.2, 0.4, 0.8, 1.0, 1.0]


def test_jitter_is_full_unless_there_is_none() -> None:
    assert delay(RULES, 2, None, lambda: 0.0) == 0.0
    assert delay(RULES, 2, None, lambda: 0.25) == 0.1
    assert delay(Retries(jitter="none"), 2, None, lambda: 0.0) == 0.4


def test_after_the_last_attempt_there_is_none() -> None:
    assert delay(Retries(max_attempts=1), 1) is None
    assert delay(RULES, 4) is not None
    assert delay(RULES, 5) is None


def test_what_the_provider_asks_for_is_waited_or_nothing_is() -> None:
    assert delay(RULES, 1, 0.7, lambda: 0.5) == 0.7
    assert delay(RULES, 1, 1.5, lambda: 0.5) is None


@pytest.mark.parametrize(("share", "most"), [(0.2, 2_010), (0.05, 510), (0.0, 0)])
def test_retries_are_no_more_than_their_share(share: float, most: int) -> None:
    budget = RetryBudget(share, Clock())
    made = 0
    for _ in range(10_000):
        budget.request()
        made += budget.retry() + budget.retry()
    assert most - 1 <= made <= most


def test_a_quiet_time_does_not_save_up_for_a_storm() -> None:
    budget = RetryBudget(0.2, Clock())
    for _ in range(100_000):
        budget.request()
    assert sum(budget.retry() for _ in range(1_000)) == 10


def test_where_there_is_little_traffic_a_request_can_still_be_retried() -> None:
    clock = Clock()
    budget = RetryBudget(0.2, clock)
    for _ in range(100):
        budget.request()
        assert budget.retry()
        assert budget.retry()
        clock.advance(60)


def test_nothing_is_tried_again_when_it_could_only_be_late() -> None:
    deadline = Deadline.begin(Retries(deadline=10), 100.0)
    assert deadline.allows(105.0)
    assert deadline.allows(105.0, 4.9)
    assert not deadline.allows(105.0, 5.0)
    assert Deadline.begin(Retries(), 100.0).allows(1e9, 1e9)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        (" 0.5 ", 0.5),
        ("Fri, 15 Jan 2027 12:01:30 GMT", 90.0),
        ("Fri, 15 Jan 2027 11:59:00 GMT", None),
        ("0", None),
        ("-3", None),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(header, DEFAULT_START) == seconds
