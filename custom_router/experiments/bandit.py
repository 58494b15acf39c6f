"""How `allocation: thompson` divides units: the likelier a variant is the best, the more of them it gets."""

from collections.abc import Sequence
from math import sqrt
from random import Random

from core.settings.models.experiments import Experiment
from custom_router.experiments.estimates import Estimate, compare
from custom_router.experiments.metrics import Period, metric

DRAWS = 10_000
FLOOR = 0.1
"""The share that each variant keeps, or half an equal share where there are more than five of them; without it nothing
would be learned of a
variant that started badly."""


def thompson_weights(
    experiment: Experiment, periods: Sequence[Period], *, draws: int = DRAWS, seed: int = 0
) -> dict[str, float]:
    """The share of the units that each variant gets from now on; they sum to 1.

    A variant's share is the probability that it is the best by the primary metric, from `draws` draws of normal
    distributions around the estimates, above a floor: Thompson, Biometrika 25 (1933). Until every variant has enough
    units the shares stay what they are. The same data and seed give the same shares on every instance.

    What it does to inference: arms no longer have the same mix of early and late units, and the shares depend on what
    came before. Each change of shares begins a `Period`, and results compare within periods, where units were divided
    at random by shares that were fixed: so they hold. They are less precise than with equal shares.
    """
    control, *others = [variant.id for variant in experiment.variants]
    known = metric(experiment.metrics.primary, experiment.metrics.lower_is_better)
    open_arms = [arm for arm in (control, *others) if periods[-1].weights.get(arm, 0) > 0]
    estimates: dict[str, Estimate] = {}
    for other in others:
        if other not in open_arms:
            continue
        pair = compare(known, periods, control, other)
        if pair.control is None or pair.variant is None or pair.lacking is not None:
            return _shares(periods[-1], (control, *others))
        # The control's value may be of fewer periods where another variant came later; the difference is what counts.
        estimates.setdefault(control, Estimate(pair.control.units, 0.0, pair.control.variance))
        estimates[other] = Estimate(pair.variant.units, pair.variant.value - pair.control.value, pair.variant.variance)
    if not estimates:
        return _shares(periods[-1], (control, *others))
    random = Random(seed)  # noqa: S311  the same on every instance, no secret
    sign = -1 if known.lower_is_better else 1
    arms = [(arm, sign * one.value, sqrt(one.error_squared)) for arm, one in estimates.items()]
    best = dict.fromkeys(estimates, 0)
    for _ in range(draws):
        best[max(arms, key=lambda arm: random.gauss(arm[1], arm[2]))[0]] += 1
    floor = min(FLOOR, 0.5 / len(best))
    return {
        arm: floor + (1 - floor * len(best)) * best[arm] / draws if arm in best else 0.0 for arm in (control, *others)
    }


def _shares(period: Period, arms: Sequence[str]) -> dict[str, float]:
    total = sum(period.weights.values())
    return {arm: period.weights.get(arm, 0.0) / total for arm in arms}
