"""What an experiment is judged by, and the sums over units that all of it is computed from.

The unit that an experiment assigns is the unit of analysis: what belongs to one unit is summed first, and only units
are independent of each other. A metric is a quotient of two such sums, so that a unit with many requests counts with
all of them without being taken for many units. All sums are of one pass and can be merged; a million units need no
list.
"""

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from math import ceil, log
from types import MappingProxyType
from typing import Protocol, Self

LATENCY_GROWTH = 1.02
"""Each bucket of latencies ends this much higher than the one before it."""


class Kind(StrEnum):
    """What a metric is of its rows."""

    PROPORTION = "proportion"
    """The share of requests of which something is true."""
    MEAN = "mean"
    QUANTILE = "quantile"


@dataclass(frozen=True, slots=True)
class Metric:
    """`rows` says what it is counted over. `scale` makes `measured_in` of the unit that its sums are in."""

    name: str
    kind: Kind
    rows: str
    lower_is_better: bool
    measured_in: str = ""
    scale: float = 1.0
    level: float = 0.5
    """Of a quantile: the share of the answers that are not above it."""


_ANSWERED = "answered requests that no cache served"

BUILT_IN: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            Metric("error_rate", Kind.PROPORTION, "requests", True),
            Metric("refusals", Kind.PROPORTION, "requests", True),
            Metric("cache_share", Kind.PROPORTION, "requests", False),
            Metric("degraded", Kind.PROPORTION, "requests", True),
            Metric("displaced", Kind.PROPORTION, "requests", True),
            Metric("latency", Kind.MEAN, _ANSWERED, True, "ms"),
            Metric("latency_p95", Kind.QUANTILE, _ANSWERED, True, "ms", level=0.95),
            Metric("ttft", Kind.MEAN, "streams that no cache served", True, "ms"),
            Metric("cost", Kind.MEAN, "requests that no cache served", True, "dollars", scale=1e-9),
            Metric("tokens", Kind.MEAN, "requests", True, "tokens"),
        )
    }
)
"""The metrics that need no feedback. Errors, costs and refusals count for the variant that was assigned, whatever
was delivered in the end."""


def metric(name: str, lower_is_better: Collection[str] = ()) -> Metric:
    """The built-in metric of a name, else the mean of the feedback of that name, one value a request."""
    known = BUILT_IN.get(name)
    return known or Metric(name, Kind.MEAN, "requests with feedback", name in lower_is_better)


class UnitTotals(Protocol):
    """What one unit has come to since it was first exposed at `first_ms`, under the variant that it had then.

    Money in nano-dollars, times in milliseconds. `latency_*` is of answered requests without cache hits, `latencies`
    how many of them took how long; `ttft_*` of streams among them; `cost_nano` of all requests but cache hits.
    `feedback` has, for each metric, how many values there are and their sum. `crossed` is how many of the requests
    were assigned to another variant.
    """

    @property
    def variant(self) -> str: ...
    @property
    def first_ms(self) -> int: ...
    @property
    def requests(self) -> int: ...
    @property
    def errors(self) -> int: ...
    @property
    def refusals(self) -> int: ...
    @property
    def cached(self) -> int: ...
    @property
    def degraded(self) -> int: ...
    @property
    def displaced(self) -> int: ...
    @property
    def cost_nano(self) -> int: ...
    @property
    def latency_ms_sum(self) -> int: ...
    @property
    def latency_count(self) -> int: ...
    @property
    def ttft_sum(self) -> int: ...
    @property
    def ttft_count(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def latencies(self) -> Mapping[int, int]: ...
    @property
    def crossed(self) -> int: ...
    @property
    def feedback(self) -> Mapping[str, tuple[int, float]]: ...


class Moments:
    """Sums over units of a numerator x and a denominator y. `measured` counts the units with any denominator.

    They stay exact while what is added is whole numbers.
    """

    __slots__ = ("measured", "x", "xx", "xy", "y", "yy")

    def __init__(
        self, x: float = 0, y: float = 0, xx: float = 0, yy: float = 0, xy: float = 0, *, measured: int = 0
    ) -> None:
        self.x = x
        self.y = y
        self.xx = xx
        self.yy = yy
        self.xy = xy
        self.measured = measured

    def add(self, x: float, y: float) -> None:
        """Count one unit in. A unit without denominator says nothing."""
        if y:
            self.measured += 1
            self.y += y
            self.yy += y * y
            if x:
                self.x += x
                self.xx += x * x
                self.xy += x * y

    def merge(self, other: Self) -> None:
        """Count other units in."""
        self.x += other.x
        self.y += other.y
        self.xx += other.xx
        self.yy += other.yy
        self.xy += other.xy
        self.measured += other.measured


class Latencies:
    """How latencies are distributed, with what it takes to know how sure that is where units have many of them.

    For each bucket's end: sums over units of the answers up to there, their squares, and their products with all
    answers of the unit. Only the steps from bucket to bucket are kept: a unit then touches its own buckets alone.
    """

    __slots__ = ("_steps", "answers", "measured", "squares")

    def __init__(self) -> None:
        self._steps: dict[int, tuple[int, int, int]] = {}
        self.answers = 0
        self.squares = 0
        self.measured = 0

    def add(self, answers: Mapping[int, int]) -> None:
        """Count one unit in: how many answers took how many milliseconds, all of the unit's at once."""
        buckets: dict[int, int] = {}
        for latency_ms, count in answers.items():
            bucket = _bucket(latency_ms)
            buckets[bucket] = buckets.get(bucket, 0) + count
        total = sum(buckets.values())
        if not total:
            return
        self.answers += total
        self.squares += total * total
        self.measured += 1
        below = 0
        for bucket, count in sorted(buckets.items()):
            step = self._steps.get(bucket, (0, 0, 0))
            self._steps[bucket] = (
                step[0] + count,
                step[1] + count * (2 * below + count),
                step[2] + count * total,
            )
            below += count

    def merge(self, other: Self) -> None:
        """Count other units in; those of both must be different ones."""
        for bucket, theirs in other._steps.items():
            ours = self._steps.get(bucket, (0, 0, 0))
            self._steps[bucket] = (ours[0] + theirs[0], ours[1] + theirs[1], ours[2] + theirs[2])
        self.answers += other.answers
        self.squares += other.squares
        self.measured += other.measured

    @property
    def buckets(self) -> frozenset[int]:
        """The buckets that have answers."""
        return frozenset(self._steps)

    def up_to(self, buckets: Sequence[int]) -> list[Moments]:
        """For each of the buckets, in ascending order: the moments of the answers up to its end (x) of all (y).

        All buckets that have answers must be among them.
        """
        found: list[Moments] = []
        x = xx = xy = 0
        for bucket in buckets:
            step = self._steps.get(bucket, (0, 0, 0))
            x, xx, xy = x + step[0], xx + step[1], xy + step[2]
            found.append(Moments(x, self.answers, xx, self.squares, xy, measured=self.measured))
        return found


def bucket_end_ms(bucket: int) -> float:
    """The highest latency of a bucket; it starts where the one before it ends."""
    return LATENCY_GROWTH**bucket


@lru_cache(maxsize=65_536)
def _bucket(latency_ms: int) -> int:
    # A hair less, for what lies on a bucket's end.
    return max(0, ceil(log(max(latency_ms, 1)) / log(LATENCY_GROWTH) - 1e-9))


class ArmMoments:
    """All that results need of the units of one variant."""

    __slots__ = ("latencies", "moments", "requests", "units")

    def __init__(self) -> None:
        self.units = 0
        self.requests = 0
        self.latencies = Latencies()
        self.moments: dict[str, Moments] = {name: Moments() for name in BUILT_IN if name != "latency_p95"}

    def add(self, totals: UnitTotals) -> None:
        """Count one unit in."""
        requests, moments = totals.requests, self.moments
        self.units += 1
        self.requests += requests
        moments["error_rate"].add(totals.errors, requests)
        moments["refusals"].add(totals.refusals, requests)
        moments["cache_share"].add(totals.cached, requests)
        moments["degraded"].add(totals.degraded, requests)
        moments["displaced"].add(totals.displaced, requests)
        moments["tokens"].add(totals.tokens, requests)
        moments["cost"].add(totals.cost_nano, requests - totals.cached)
        moments["latency"].add(totals.latency_ms_sum, totals.latency_count)
        moments["ttft"].add(totals.ttft_sum, totals.ttft_count)
        self.latencies.add(totals.latencies)
        for name, (count, total) in totals.feedback.items():
            # Feedback that has a built-in metric's name is none of it.
            if name not in BUILT_IN:
                moments.setdefault(name, Moments()).add(total, count)

    def merge(self, other: Self) -> None:
        """Count other units in; those of both must be different ones."""
        self.units += other.units
        self.requests += other.requests
        self.latencies.merge(other.latencies)
        for name, moments in other.moments.items():
            self.moments.setdefault(name, Moments()).merge(moments)


@dataclass(frozen=True, slots=True)
class Period:
    """A time in which the weights stayed the same, with the units that were first exposed in it.

    What they did later counts here too. A variant that no unit could get has weight 0.
    """

    weights: Mapping[str, float]
    arms: Mapping[str, ArmMoments]


class Periods:
    """Units as they are read, told apart by the period in which they were first exposed."""

    def __init__(self, weights: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Each change's time in Unix milliseconds and the weights from then on, the earliest first; those of the first
        hold before it too. Raises ValueError without any."""
        if not weights:
            raise ValueError("needs the weights that the experiment began with")
        self._starts = [start for start, _ in weights]
        self._arms: list[dict[str, ArmMoments]] = [{} for _ in weights]
        self.all = tuple(Period(of, arms) for (_, of), arms in zip(weights, self._arms, strict=True))
        self.crossed = 0
        """Units that got another variant later."""

    def add(self, totals: UnitTotals) -> None:
        """Count one unit in."""
        at = max(0, bisect_right(self._starts, totals.first_ms) - 1)
        arms = self._arms[at]
        if (arm := arms.get(totals.variant)) is None:
            arm = arms[totals.variant] = ArmMoments()
        arm.add(totals)
        self.crossed += totals.crossed > 0


def units_of(periods: Sequence[Period], variant: str) -> int:
    """How many units a variant has in all."""
    return sum(period.arms[variant].units for period in periods if variant in period.arms)
