"""Periods as people in their timezones know them."""

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.budgets import Calendar, Period
from core.settings.models import Budget, BudgetResetPeriod, Weekday

HOUR = 3_600_000
DAILY, WEEKLY, MONTHLY = BudgetResetPeriod.DAILY, BudgetResetPeriod.WEEKLY, BudgetResetPeriod.MONTHLY
QUARTERLY, TOTAL = BudgetResetPeriod.QUARTERLY, BudgetResetPeriod.TOTAL
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def ms(text: str) -> int:
    """The instant of an ISO text with offset, such as 2026-01-01T00:00Z."""
    return (datetime.fromisoformat(text) - EPOCH) // timedelta(milliseconds=1)


def local(instant: int, zone: str) -> datetime:
    return (EPOCH + timedelta(milliseconds=instant)).astimezone(ZoneInfo(zone))


def span(period: Period, zone: str = "UTC") -> tuple[str, str]:
    assert period.end_ms is not None
    return tuple(local(at, zone).strftime("%Y-%m-%d %H:%M") for at in (period.start_ms, period.end_ms))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("calendar", "instant", "expected"),
    [
        (Calendar(DAILY), "2026-11-24T23:59:59.999Z", ("2026-11-24 00:00", "2026-11-25 00:00")),
        (Calendar(DAILY), "2028-02-29T12:00Z", ("2028-02-29 00:00", "2028-03-01 00:00")),
        (Calendar(WEEKLY), "2026-11-29T12:00Z", ("2026-11-23 00:00", "2026-11-30 00:00")),
        (Calendar(WEEKLY, week_starts=Weekday.SUNDAY), "2026-11-29T12:00Z", ("2026-11-29 00:00", "2026-12-06 00:00")),
        (Calendar(WEEKLY, week_starts=Weekday.SUNDAY), "2026-11-28T12:00Z", ("2026-11-22 00:00", "2026-11-29 00:00")),
        (Calendar(MONTHLY), "2028-02-29T23:59Z", ("2028-02-01 00:00", "2028-03-01 00:00")),
        (Calendar(MONTHLY), "2026-12-31T23:59Z", ("2026-12-01 00:00", "2027-01-01 00:00")),
        (Calendar(MONTHLY, day=28), "2026-02-28T00:00Z", ("2026-02-28 00:00", "2026-03-28 00:00")),
        (Calendar(MONTHLY, day=28), "2027-01-01T00:00Z", ("2026-12-28 00:00", "2027-01-28 00:00")),
        (Calendar(QUARTERLY), "2026-11-24T00:00Z", ("2026-10-01 00:00", "2027-01-01 00:00")),
        (Calendar(QUARTERLY, month=4), "2026-03-31T23:59Z", ("2026-01-01 00:00", "2026-04-01 00:00")),
        (Calendar(QUARTERLY, month=2), "2027-01-31T00:00Z", ("2026-11-01 00:00", "2027-02-01 00:00")),
        (Calendar(QUARTERLY, month=4, day=6), "2026-04-05T12:00Z", ("2026-01-06 00:00", "2026-04-06 00:00")),
        (Calendar(QUARTERLY, month=12, day=28), "2027-02-28T12:00Z", ("2026-12-28 00:00", "2027-03-28 00:00")),
    ],
)
def test_an_instant_lies_in_its_period(calendar: Calendar, instant: str, expected: tuple[str, str]) -> None:
    assert span(calendar.at(ms(instant))) == expected


@pytest.mark.parametrize(
    ("zone", "instant", "begins", "hours"),
    [
        ("Europe/Berlin", "2026-03-29T12:00Z", "2026-03-28T23:00Z", 23),
        ("Europe/Berlin", "2026-10-25T12:00Z", "2026-10-24T22:00Z", 25),
        # No midnight: the day begins at one o'clock.
        ("America/Sao_Paulo", "2018-11-04T12:00Z", "2018-11-04T03:00Z", 23),
        ("Africa/Cairo", "2026-04-24T12:00Z", "2026-04-23T22:00Z", 23),
        ("Asia/Beirut", "2026-03-29T12:00Z", "2026-03-28T22:00Z", 23),
        # Two midnights: it begins at the first.
        ("America/Havana", "2026-11-01T12:00Z", "2026-11-01T04:00Z", 25),
        ("Atlantic/Azores", "2026-10-25T12:00Z", "2026-10-25T00:00Z", 25),
        # The last hour of the day before comes twice.
        ("America/Sao_Paulo", "2018-02-17T12:00Z", "2018-02-17T02:00Z", 25),
        # One minute past midnight the clocks went back into the day before: the day had begun, and goes on.
        ("America/St_Johns", "2010-11-07T03:00Z", "2010-11-07T02:30Z", 25),
        # The clocks jumped over midnight from half past eleven.
        ("America/Toronto", "1919-03-31T12:00Z", "1919-03-31T04:30Z", 23.5),
        ("Pacific/Kiritimati", "2026-11-24T12:00Z", "2026-11-24T10:00Z", 24),
        ("Pacific/Pago_Pago", "2026-11-24T10:59Z", "2026-11-23T11:00Z", 24),
        ("Asia/Kathmandu", "2026-11-24T12:00Z", "2026-11-23T18:15Z", 24),
        # The 30th of December was left out.
        ("Pacific/Apia", "2011-12-30T09:59Z", "2011-12-29T10:00Z", 24),
        ("Pacific/Apia", "2011-12-30T10:00Z", "2011-12-30T10:00Z", 24),
    ],
)
def test_a_day_is_as_long_as_the_clocks_make_it(zone: str, instant: str, begins: str, hours: float) -> None:
    day = Calendar(DAILY, zone).at(ms(instant))
    assert day == Period(ms(begins), ms(begins) + int(hours * HOUR))


def test_a_month_that_began_on_a_day_left_out_begins_on_the_next() -> None:
    calendar = Calendar(MONTHLY, "Pacific/Kwajalein", day=21)
    assert span(calendar.at(ms("1993-08-30T00:00Z")), "Pacific/Kwajalein") == ("1993-08-22 00:00", "1993-09-21 00:00")


def test_the_period_before_ends_where_this_one_begins() -> None:
    calendar = Calendar(MONTHLY, "Europe/Berlin")
    march = calendar.at(ms("2026-03-15T00:00Z"))
    february = calendar.before(march)
    assert february is not None
    assert span(february, "Europe/Berlin") == ("2026-02-01 00:00", "2026-03-01 00:00")


def test_a_total_has_one_period() -> None:
    calendar = Calendar(TOTAL, "Europe/Berlin")
    assert calendar.at(ms("2026-11-24T00:00Z")) == calendar.at(-1) == Period(0, None)
    assert calendar.before(Period(0)) is None


def test_the_same_period_is_not_worked_out_again() -> None:
    calendar = Calendar(DAILY, "Europe/Berlin")
    today = calendar.at(ms("2026-11-24T00:00Z"))
    assert calendar.at(ms("2026-11-24T22:59Z")) is today
    assert calendar.at(ms("2026-11-24T23:00Z")) is not today
    assert calendar.at(ms("2026-11-24T22:59Z")) == today


def test_a_budget_has_the_calendar_that_it_describes() -> None:
    budget = Budget.model_validate(
        {"budget_id": "b", "total_budget": 1, "reset_period": "QUARTERLY", "timezone": "Asia/Tokyo"}
        | {"anchor": {"month": 4, "day": 6}}
    )
    tokyo = Calendar.of(budget).at(ms("2026-04-05T14:59Z"))
    assert span(tokyo, "Asia/Tokyo") == ("2026-01-06 00:00", "2026-04-06 00:00")


ODD_DAYS = [
    *(("America/Sao_Paulo", day) for day in (date(2018, 2, 17), date(2018, 11, 4))),
    *(("Africa/Cairo", day) for day in (date(2014, 5, 16), date(2014, 6, 27), date(2026, 4, 24), date(2026, 10, 30))),
    *(("Asia/Beirut", day) for day in (date(2026, 3, 29), date(2026, 10, 25))),
    *(("America/Havana", day) for day in (date(2026, 3, 8), date(2026, 11, 1))),
    *(("Atlantic/Azores", day) for day in (date(2026, 3, 29), date(2026, 10, 25))),
    *(
        ("America/St_Johns", day)
        for day in (date(2010, 3, 14), date(2010, 11, 7), date(1988, 4, 3), date(1988, 10, 30))
    ),
    *(("Pacific/Apia", day) for day in (date(2011, 12, 30), date(2021, 4, 4))),
    ("Pacific/Kwajalein", date(1969, 10, 1)),
    ("Pacific/Kwajalein", date(1993, 8, 21)),
    ("Pacific/Kiritimati", date(1994, 12, 31)),
    ("America/Toronto", date(1919, 3, 31)),
    ("Antarctica/Casey", date(2010, 3, 5)),
    ("Asia/Pyongyang", date(2018, 5, 5)),
    ("America/Caracas", date(2016, 5, 1)),
    ("Antarctica/Troll", date(2026, 3, 29)),
    ("Australia/Lord_Howe", date(2026, 4, 5)),
]


@pytest.mark.parametrize(("zone", "day"), ODD_DAYS)
def test_around_odd_days_a_day_begins_when_a_clock_first_shows_it(zone: str, day: date) -> None:
    """Against a clock that is watched for every minute of a week."""
    noon = (datetime(day.year, day.month, day.day, 12, tzinfo=UTC) - EPOCH) // timedelta(milliseconds=1)
    minutes = range(noon - 84 * HOUR, noon + 84 * HOUR, 60_000)
    shown, begins = local(minutes[0], zone).date(), []
    for minute in minutes:
        if local(minute, zone).date() > shown:
            shown = local(minute, zone).date()
            begins.append(minute)
    calendar = Calendar(DAILY, zone)
    starts = dict.fromkeys(calendar.at(minute).start_ms for minute in minutes)
    assert [start for start in starts if start > minutes[0]] == begins


calendars = st.builds(
    Calendar,
    st.sampled_from([DAILY, WEEKLY, MONTHLY, QUARTERLY]),
    st.sampled_from(sorted(available_timezones() - {"localtime", "Factory"})),
    week_starts=st.sampled_from(Weekday),
    month=st.integers(1, 12),
    day=st.integers(1, 28),
)
instants = st.integers(ms("1900-01-01T00:00Z"), ms("2199-12-31T00:00Z"))


@pytest.mark.slow
@settings(max_examples=1500, deadline=None, derandomize=True)
@given(calendar=calendars, instant=instants)
def test_periods_contain_their_instants_and_follow_each_other_without_gap_or_overlap(
    calendar: Calendar, instant: int
) -> None:
    period = calendar.at(instant)
    assert instant in period
    assert period.end_ms is not None
    following = calendar.at(period.end_ms)
    assert following.start_ms == period.end_ms
    assert calendar.at(period.end_ms - 1) == calendar.at(period.start_ms) == period
    assert calendar.before(following) == period
    before = calendar.before(period)
    assert before is not None
    assert before.end_ms == period.start_ms


@pytest.mark.slow
@settings(max_examples=1500, deadline=None, derandomize=True)
@given(
    reset=st.sampled_from([DAILY, WEEKLY, MONTHLY, QUARTERLY]),
    zone=st.sampled_from(sorted(available_timezones() - {"localtime", "Factory"})),
    weekday=st.integers(0, 6),
    month=st.integers(1, 12),
    day=st.integers(1, 28),
    instant=instants,
)
def test_a_period_begins_with_the_first_instant_of_a_day_that_one_can_begin_on(
    reset: BudgetResetPeriod, zone: str, weekday: int, month: int, day: int, instant: int
) -> None:
    period = Calendar(reset, zone, week_starts=list(Weekday)[weekday], month=month, day=day).at(instant)

    def may_begin(when: date) -> bool:
        if reset is DAILY:
            return True
        if reset is WEEKLY:
            return when.weekday() == weekday
        return when.day == day and (reset is MONTHLY or (when.month - month) % 3 == 0)

    starts, yesterday = local(period.start_ms, zone).date(), local(period.start_ms - 1, zone).date()
    assert yesterday < starts
    begun = [yesterday + timedelta(days=1 + ahead) for ahead in range((starts - yesterday).days)]
    assert any(may_begin(when) for when in begun)
    # And no such day passes unnoticed in the middle of it.
    assert period.end_ms is not None
    seen = [local(at, zone).date() for at in range(period.start_ms, period.end_ms, 12 * HOUR)]
    assert not any(may_begin(two) for one, two in pairwise(seen) if two > max(starts, one))
