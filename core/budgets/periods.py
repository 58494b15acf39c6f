"""When a budget starts anew: calendar periods in the budget's own timezone."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Self
from zoneinfo import ZoneInfo

from core.settings.models import Anchor, Budget, BudgetResetPeriod, Weekday

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY = timedelta(days=1)
_MONTHS = {BudgetResetPeriod.MONTHLY: 1, BudgetResetPeriod.QUARTERLY: 3}


@dataclass(frozen=True, slots=True)
class Period:
    """From `start_ms` to before `end_ms`, Unix milliseconds; `end_ms` is None where it never ends."""

    start_ms: int
    end_ms: int | None = None

    def __contains__(self, ms: int) -> bool:
        return self.start_ms <= ms and (self.end_ms is None or ms < self.end_ms)


ALWAYS = Period(0)
"""The one period of a budget that never starts anew."""


class Calendar:
    """The periods of one budget. They follow each other without gap or overlap.

    A period begins with the first instant of a local day: midnight, the earlier one where there are two, and where
    there is none the moment at which the clocks jump over it. `week_starts` matters for WEEKLY, `day` (1-28) for
    MONTHLY, `day` and `month` for QUARTERLY, where the year that quarters are counted from starts then.
    """

    __slots__ = ("_current", "_day", "_month", "_reset", "_timezone", "_weekday", "_zone")

    def __init__(
        self,
        reset_period: BudgetResetPeriod,
        timezone: str = "UTC",
        *,
        week_starts: Weekday = Weekday.MONDAY,
        month: int = 1,
        day: int = 1,
    ) -> None:
        self._reset, self._timezone, self._zone = reset_period, timezone, ZoneInfo(timezone)
        self._weekday = list(Weekday).index(week_starts)
        self._month, self._day = month, day
        self._current = ALWAYS if reset_period is BudgetResetPeriod.TOTAL else Period(0, 0)

    @classmethod
    def of(cls, budget: Budget) -> Self:
        anchor = budget.anchor or Anchor()
        return cls(
            budget.reset_period,
            budget.timezone,
            week_starts=anchor.week_starts or Weekday.MONDAY,
            month=anchor.month or 1,
            day=anchor.day or 1,
        )

    def at(self, ms: int) -> Period:
        """The period that an instant (Unix milliseconds) lies in."""
        current = self._current
        # The request path: nearly always the period of the request before.
        if (current.end_ms is None) or current.start_ms <= ms < current.end_ms:
            return current
        self._current = period = self._find(ms)
        return period

    def before(self, period: Period) -> Period | None:
        """The period that ended when this one began; None where there is only one."""
        return None if period.end_ms is None else self._find(period.start_ms - 1)

    def described(self) -> Mapping[str, str | int]:
        """What decides where periods begin, and nothing that does not."""
        said: dict[str, str | int] = {"reset_period": self._reset.value}
        if self._reset is not BudgetResetPeriod.TOTAL:
            said["timezone"] = self._timezone
        if self._reset is BudgetResetPeriod.WEEKLY:
            said["weekday"] = self._weekday
        if self._reset in _MONTHS:
            said["day"] = self._day
        if self._reset is BudgetResetPeriod.QUARTERLY:
            # Quarters that begin in January also begin in April.
            said["month"] = self._month % 3
        return said

    def _find(self, ms: int) -> Period:
        first = self._first_day((_EPOCH + timedelta(milliseconds=ms)).astimezone(self._zone).date())
        start = self._start_of(first)
        while True:
            after = self._next_first_day(first)
            end = self._start_of(after)
            # Where clocks go back over midnight, a day has begun although the clock says the day before again.
            if ms < end:
                return Period(start, end)
            first, start = after, end

    def _first_day(self, day: date) -> date:
        if self._reset is BudgetResetPeriod.DAILY:
            return day
        if self._reset is BudgetResetPeriod.WEEKLY:
            return day - _DAY * ((day.weekday() - self._weekday) % 7)
        months = day.year * 12 + day.month - 1 - (day.day < self._day)
        return self._month_day(months - (months - self._month + 1) % _MONTHS[self._reset])

    def _next_first_day(self, first: date) -> date:
        if self._reset is BudgetResetPeriod.DAILY:
            return first + _DAY
        if self._reset is BudgetResetPeriod.WEEKLY:
            return first + 7 * _DAY
        return self._month_day(first.year * 12 + first.month - 1 + _MONTHS[self._reset])

    def _month_day(self, months: int) -> date:
        return date(months // 12, months % 12 + 1, self._day)

    def _start_of(self, day: date) -> int:
        """The first instant of a local day (of the day after it, where a timezone left the day out)."""
        midnight = datetime.combine(day, time(), self._zone)  # fold=0: the earlier one of two
        seconds = (midnight.astimezone(UTC) - _EPOCH) // timedelta(seconds=1)
        if self._local(seconds).replace(tzinfo=None) == midnight.replace(tzinfo=None):
            return seconds * 1000
        # There is no such midnight; what stands for it is the jump or later, by at most the length of the jump.
        early, late = seconds - 2 * 86_400, seconds
        while late - early > 1:
            middle = (early + late) // 2
            if self._local(middle).date() >= day:
                late = middle
            else:
                early = middle
        return late * 1000

    def _local(self, seconds: int) -> datetime:
        return (_EPOCH + timedelta(seconds=seconds)).astimezone(self._zone)
