"""From two estimates to a p-value, a chance and intervals: gbstats, where it has what is needed."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import TYPE_CHECKING

from core.errors import StatisticsMissing
from core.settings.models.experiments import Correction
from custom_router.experiments.estimates import Estimate
from custom_router.experiments.sequential import TUNING

if TYPE_CHECKING:
    from gbstats.models.statistics import SampleMeanStatistic  # pyright: ignore[reportMissingTypeStubs]

Interval = tuple[float, float]
"""From its lower to its upper end."""

_PRIOR_DEVIATION = 0.3
"""Standard deviation of lifts, as a share of the control, before any data: GrowthBook's default."""


def require_gbstats() -> None:
    """Raise `StatisticsMissing` where gbstats is not installed."""
    try:
        import gbstats  # noqa: F401  # pyright: ignore[reportMissingTypeStubs, reportUnusedImport]
    except ModuleNotFoundError as error:
        raise StatisticsMissing(
            f"Results of experiments need {error.name}, which is not installed: "
            "pip install 'litellm-orchestration[experiments]'"
        ) from error


def _statistic(estimate: Estimate) -> SampleMeanStatistic:
    """A sample with the mean and the variance that were found, for tests that ask no more of it."""
    from gbstats.models.statistics import SampleMeanStatistic  # pyright: ignore[reportMissingTypeStubs]

    n, mean = estimate.units, estimate.value
    return SampleMeanStatistic(n=n, sum=n * mean, sum_squares=(n - 1) * estimate.variance + n * mean * mean)


def sequential(a: Estimate, b: Estimate, alpha: float) -> tuple[float, float]:
    """The p-value of the difference that holds at any time, and the half width of its interval."""
    import numpy
    from gbstats.frequentist.tests import SequentialConfig, SequentialTwoSidedTTest  # pyright: ignore[reportMissingTypeStubs]

    # Not of the lift: dividing by the control makes small values look surer than they are.
    config = SequentialConfig(difference_type="absolute", alpha=alpha, sequential_tuning_parameter=TUNING)
    test = SequentialTwoSidedTTest(_statistic(a), _statistic(b), config)
    with numpy.errstate(over="ignore"):
        p_value = float(test.p_value)
    low, high = test.confidence_interval
    return p_value, float(high - low) / 2


def bayesian(a: Estimate, b: Estimate, alpha: float, lower_is_better: bool) -> tuple[float, float, Interval]:
    """The chance that the variant is better, and the difference with its credible interval."""
    from gbstats.bayesian.tests import EffectBayesianABTest, EffectBayesianConfig, GaussianPrior  # pyright: ignore[reportMissingTypeStubs]

    prior = GaussianPrior(mean=0, variance=_PRIOR_DEVIATION**2, proper=bool(a.value))
    config = EffectBayesianConfig(
        difference_type="absolute", alpha=alpha, inverse=lower_is_better, prior_effect=prior, prior_type="relative"
    )
    found = EffectBayesianABTest(_statistic(a), _statistic(b), config).compute_result()
    low, high = found.ci
    return float(found.chance_to_win), float(found.expected), (float(low), float(high))


def lift_interval(control: Estimate, variant: Estimate, reach: float) -> Interval | None:
    """The lifts that the data do not rule out, `reach` being the standard errors that they may be off.

    A lift is ruled out where variant - (1 + lift) control is further from 0 than that: Fieller, "Some problems in
    interval estimation", JRSS B 16 (1954). It contains 0 exactly where the difference's interval does, which the usual
    linear approximation does not for rare events. None where the control may be 0 itself.
    """
    a, b, limit = control.value, variant.value, reach * reach
    lead = a * a - limit * control.error_squared
    if lead <= 0:
        return None
    rest = b * b - limit * variant.error_squared
    root = sqrt(max(0.0, a * a * b * b - lead * rest))
    low, high = (a * b - root) / lead - 1, (a * b + root) / lead - 1
    return (low, high) if a > 0 else (-high, -low)


def corrected(p_values: Sequence[float | None], correction: Correction) -> list[float | None]:
    """P-values of one family after correction: Holm, Scand. J. Statist. 6 (1979); Benjamini and Hochberg, JRSS B 57
    (1995). Comparisons that are yet without a p-value count as members."""
    count = len(p_values)
    known = sorted((value, at) for at, value in enumerate(p_values) if value is not None)
    found: list[float | None] = [None] * count
    if correction is Correction.HOLM:
        highest = 0.0
        for rank, (value, at) in enumerate(known):
            highest = max(highest, min(1.0, (count - rank) * value))
            found[at] = highest
    elif correction is Correction.BENJAMINI_HOCHBERG:
        lowest = 1.0
        for rank, (value, at) in reversed(list(enumerate(known, start=1))):
            lowest = min(lowest, count / rank * value)
            found[at] = lowest
    else:
        found = list(p_values)
    return found
