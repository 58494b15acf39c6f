"""Two arms' values of a metric, each with its variance, from sums over units."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from statistics import NormalDist

from custom_router.experiments.metrics import ArmMoments, Kind, Metric, Moments, Period, bucket_end_ms, units_of

MINIMUM_UNITS = 10
"""Units of each arm below which nothing is said: a variance from fewer is not worth much."""

MINIMUM_EVENTS = 5
"""Of a proportion: how often it must have happened, and not have happened, in both arms together."""

_ROUNDING = 1e-12
"""A variance that is a smaller part of the squares is what floats leave of none."""

_HALF_WIDTH = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value from `units` units that were measured; `variance / units` is that of the value."""

    units: int
    value: float
    variance: float

    @property
    def error_squared(self) -> float:
        """The variance of the value."""
        return self.variance / self.units


@dataclass(frozen=True, slots=True)
class Pair:
    """The control and a variant. `lacking` says why there is too little to compare them; None where there is not."""

    control: Estimate | None
    variant: Estimate | None
    lacking: str | None


@dataclass(frozen=True, slots=True)
class _Stratum:
    """An arm's moments of one period. `weight` is the period's share of the units."""

    weight: float
    units: int
    moments: Moments


def compare(metric: Metric, periods: Sequence[Period], control: str, variant: str) -> Pair:
    """Both arms' estimates over the periods in which both had units.

    Where the weights changed, an arm has more of its units from one time than from another. So arms are compared
    within periods, each period with the share of the units it has, the same for both arms: post-stratification, with
    the combined ratio estimator of Cochran, Sampling Techniques, 3rd ed., section 6.11.
    """
    common = [period for period in periods if _has(period, control) and _has(period, variant)]
    sizes = [period.arms[control].units + period.arms[variant].units for period in common]
    shares = [size / sum(sizes) for size in sizes]
    pair = [_estimate(metric, [period.arms[arm] for period in common], shares) for arm in (control, variant)]
    return Pair(pair[0], pair[1], _lacking(metric, periods, common, (control, variant), (pair[0], pair[1])))


def ratio(strata: Sequence[tuple[float, int, Moments]]) -> tuple[float, float] | None:
    """The quotient of two means over units and its variance by the delta method, None where nothing was measured.

    Each stratum has its weight, its number of units, two at least, and its moments. For one stratum the variance is
    that of gbstats' RatioStatistic, divided by the number of units.
    """
    top = sum(weight * moments.x / units for weight, units, moments in strata)
    bottom = sum(weight * moments.y / units for weight, units, moments in strata)
    if bottom <= 0:
        return None
    quotient = top / bottom
    variance = 0.0
    for weight, n, moments in strata:
        # n (sum of squares) - (sum)^2 is exact in whole numbers, where the difference of two means would lose digits.
        xx = n * moments.xx - moments.x * moments.x
        xy = n * moments.xy - moments.x * moments.y
        yy = n * moments.yy - moments.y * moments.y
        residual = xx - 2 * quotient * xy + quotient * quotient * yy
        if residual > _ROUNDING * n * (moments.xx + quotient * quotient * moments.yy):
            variance += weight * weight * residual / (n * n * (n - 1))
    return quotient, variance / (bottom * bottom)


def _has(period: Period, arm: str) -> bool:
    # One unit has no variance. That an arm has too few says nothing about how it does.
    return arm in period.arms and period.arms[arm].units > 1


def _estimate(metric: Metric, arms: Sequence[ArmMoments], shares: Sequence[float]) -> Estimate | None:
    if metric.kind is Kind.QUANTILE:
        return _quantile(metric, arms, shares)
    strata = [
        (share, arm.units, arm.moments.get(metric.name) or Moments()) for share, arm in zip(shares, arms, strict=True)
    ]
    found = ratio(strata)
    if found is None:
        return None
    value, variance = found
    measured = sum(moments.measured for _, _, moments in strata)
    if metric.kind is Kind.PROPORTION and 0 <= value <= 1:
        # Where something never or always happened, the sample has no variance, but the arm may have. This is what
        # one more unit of the other kind would add; without effect once there are some.
        variance += 1 / (measured + 2) ** 2
    return Estimate(measured, value * metric.scale, variance * measured * metric.scale**2)


def _quantile(metric: Metric, arms: Sequence[ArmMoments], shares: Sequence[float]) -> Estimate | None:
    """A quantile with Woodruff's variance: that of the share below it, which is a quotient, carried over by the slope.

    Woodruff, "Confidence intervals for medians and other position measures", JASA 47 (1952). It is linear within
    a bucket. None where the interval of the share reaches 1, that is with too few answers.
    """
    buckets = sorted(frozenset[int]().union(*(arm.latencies.buckets for arm in arms)))
    per_arm = [arm.latencies.up_to(buckets) for arm in arms]
    curve: list[tuple[float, float, float]] = []
    for at, bucket in enumerate(buckets):
        strata = [(share, arm.units, reached[at]) for share, arm, reached in zip(shares, arms, per_arm, strict=True)]
        found = ratio(strata)
        if found is None:
            return None
        if not curve or bucket - 1 != buckets[at - 1]:
            share, variance = curve[-1][1:] if curve else (0.0, 0.0)
            curve.append((bucket_end_ms(bucket - 1), share, variance))
        curve.append((bucket_end_ms(bucket), *found))
    if not curve:
        return None
    value, variance = _at(curve, metric.level)
    reach = _HALF_WIDTH * sqrt(variance)
    if metric.level + reach >= 1 or metric.level - reach <= 0:
        return None
    deviation = (_at(curve, metric.level + reach)[0] - _at(curve, metric.level - reach)[0]) / (2 * _HALF_WIDTH)
    measured = sum(arm.latencies.measured for arm in arms)
    return Estimate(measured, value * metric.scale, (deviation * metric.scale) ** 2 * measured)


def _at(curve: Sequence[tuple[float, float, float]], level: float) -> tuple[float, float]:
    """The latency that a share of the answers is not above, and the variance of the share there."""
    for (start, low, before), (end, high, after) in pairwise(curve):
        if high >= level and high > low:
            part = max(0.0, (level - low) / (high - low))
            return start + part * (end - start), before + part * (after - before)
    return curve[-1][0], curve[-1][2]


def _lacking(
    metric: Metric,
    periods: Sequence[Period],
    common: Sequence[Period],
    arms: tuple[str, str],
    pair: tuple[Estimate | None, Estimate | None],
) -> str | None:
    for arm in arms:
        if (units := units_of(periods, arm)) < MINIMUM_UNITS:
            return f"{arm} has {units} units; it takes {MINIMUM_UNITS} to say anything"
    if not common:
        return f"{arms[0]} and {arms[1]} never had units at the same time"
    for arm, estimate in zip(arms, pair, strict=True):
        if estimate is None:
            return f"{arm} has too few {metric.rows}"
        if estimate.units < MINIMUM_UNITS:
            return f"{arm} has {estimate.units} units with {metric.rows}; it takes {MINIMUM_UNITS} to say anything"
    if metric.kind is Kind.PROPORTION:
        both = [period.arms[arm].moments[metric.name] for arm in arms for period in common]
        events, of = sum(one.x for one in both), sum(one.y for one in both)
        if min(events, of - events) < MINIMUM_EVENTS:
            seen = f"happened {events:g} times" if events < MINIMUM_EVENTS else f"was absent {of - events:g} times"
            return f"it {seen} in {of:g} {metric.rows}; it takes {MINIMUM_EVENTS} to say anything"
    for arm, estimate in zip(arms, pair, strict=True):
        if estimate is not None and estimate.variance <= 0:
            return f"all units of {arm} have the same value, so nothing says how much units differ"
    return None
