"""When a budget will be used up, and what is an alert about a secret."""

from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as some

from core.budgets import Account
from core.settings.models import AlertEvent
from core.settings.reference import SecretReference
from plugins.alerts.forecast import forecast_alert, used_up_at
from plugins.alerts.secrets import SecretAlerts
from secrets_manager.resolver import Happened, SecretEvent

DAY = 86_400_000
MONTH = 30 * DAY


@pytest.mark.parametrize(
    ("spent", "limit", "now", "at"),
    [
        (50, 100, 10 * DAY, 20 * DAY),
        (10, 100, 3 * DAY, None),
        (11, 100, 3 * DAY, 2356363637),
        (33, 100, 10 * DAY, None),
        (34, 100, 10 * DAY, 2541176471),
        (90, 100, DAY, None),
        (90, 100, 1.5 * DAY, 144000000),
        (4, 100, 2 * DAY, None),
        (100, 100, 10 * DAY, None),
        (200, 100, 10 * DAY, None),
        (0, 100, 10 * DAY, None),
        (0, 0, 10 * DAY, None),
        (50, 100, MONTH, None),
        (50, 100, 0, None),
    ],
    ids=["half in a third", "just lasts", "just does not", "a third in a third", "a bit more", "too early",
         "early enough", "too little spent", "used up", "overspent", "unused", "no limit", "over", "not begun"],
)  # fmt: skip
def test_a_month_at_its_present_pace(spent: int, limit: int, now: float, at: int | None) -> None:
    assert used_up_at(spent, limit, 0, MONTH, int(now)) == at


def test_a_day_needs_more_than_an_hour() -> None:
    hour = DAY // 24
    assert used_up_at(90, 100, 0, DAY, hour - 1) is None
    assert used_up_at(90, 100, 0, DAY, 2 * hour) == 8_000_000


@given(
    spent=some.integers(0, 10**18),
    limit=some.integers(0, 10**18),
    start=some.integers(0, 2 * 10**12),
    length=some.integers(1, 400 * DAY),
    share=some.floats(-1, 2),
)
def test_what_is_foretold_lies_between_now_and_the_end(
    spent: int, limit: int, start: int, length: int, share: float
) -> None:
    now, end = start + int(length * share), start + length
    at = used_up_at(spent, limit, start, end, now)
    assert at is None or now < at < end


def test_a_forecast_says_the_day_in_the_budgets_timezone_and_is_the_same_all_period() -> None:
    account = Account("team~1", 0, "ada", MONTH)
    first = forecast_alert(account, 50, 100, 10 * DAY, ZoneInfo("Asia/Tokyo"), "team/ada")
    later = forecast_alert(account, 60, 100, 11 * DAY, ZoneInfo("Asia/Tokyo"), "team/ada")
    assert first is not None and later is not None
    assert first.message == "At this pace the budget is used up by Wednesday, 21 January 1970, 09:00 JST."
    assert (first.dedupe_key, first.over_ms) == ("budget_forecast|team~1|0|ada", MONTH)
    assert later.dedupe_key == first.dedupe_key
    assert first.details["spent_share"] == "50%"


def test_a_budget_without_an_end_has_no_forecast() -> None:
    assert forecast_alert(Account("team~1", 0), 50, 100, 10 * DAY, ZoneInfo("UTC"), "team") is None


def happened(what: Happened, name: str = "key") -> SecretEvent:
    return SecretEvent(1000.0, what, SecretReference("azure", name), "refresh", "v1", message="words of the vault")


def test_a_stale_secret_and_its_recovery_are_alerts() -> None:
    alerts = SecretAlerts()
    stale, recovered = alerts.alert_of(happened(Happened.STALE)), alerts.alert_of(happened(Happened.RECOVERED))
    assert stale is not None and recovered is not None
    assert (stale.event, stale.subject, stale.severity) == (AlertEvent.SECRET_STALE, "azure://key", "warning")
    assert (recovered.subject, recovered.severity) == ("azure://key", "info")
    assert stale.dedupe_key != recovered.dedupe_key
    assert alerts.alert_of(happened(Happened.RECOVERED)) is None


@pytest.mark.parametrize("what", [Happened.FETCHED, Happened.REFRESHED, Happened.FAILED, Happened.RECOVERED])
def test_what_nobody_has_to_know_is_none(what: Happened) -> None:
    assert SecretAlerts().alert_of(happened(what)) is None
