"""What came of an experiment: who is better than the control, by how much, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from math import sqrt
from typing import Any

from core.settings.models.experiments import Correction, Experiment, Method
from custom_router.experiments.estimates import Pair, compare
from custom_router.experiments.inference import (
    Interval,
    bayesian,
    corrected,
    lift_interval,
    require_gbstats,
    sequential,
)
from custom_router.experiments.metrics import Metric, Period, metric, units_of
from custom_router.experiments.sample_size import POWER, units_needed
from custom_router.experiments.split import Split, split_of


class Verdict(StrEnum):
    """What can be said about a variant, by one metric."""

    BETTER = "better"
    WORSE = "worse"
    NO_DIFFERENCE_SEEN = "no difference seen"
    NOT_ENOUGH_DATA = "not enough data"
    WITHHELD = "withheld"
    """The experiment does not hold as one: its units were not divided as was meant."""


class Role(StrEnum):
    """What a metric is there for."""

    PRIMARY = "primary"
    SECONDARY = "secondary"
    GUARDRAIL = "guardrail"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A variant against the control, by one metric.

    `units` are the control's and the variant's that were measured. `lift` is the difference as a share of the control
    and None where that is 0; an interval is None where the data bound it on neither side. Intervals hold each for
    itself, at 1 - alpha; `corrected` is the p-value after the correction for the metric's family, by which `verdict`
    goes. `still_needed` are further units of each of the two arms, at the shares they have, to find `minimum_effect`
    with a probability of 0.8.
    """

    metric: str
    role: Role
    variant: str
    verdict: Verdict
    why: str
    units: tuple[int, int]
    control: float | None = None
    estimate: float | None = None
    difference: float | None = None
    interval: Interval | None = None
    lift: float | None = None
    lift_interval: Interval | None = None
    p_value: float | None = None
    chance_to_win: float | None = None
    corrected: float | None = None
    still_needed: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Results:
    """All of an experiment at one moment; `messages` are to be read first."""

    experiment: str
    at: datetime
    control: str
    units: Mapping[str, int]
    split: Split
    periods: int
    method: Method
    alpha: float
    correction: Correction
    comparisons: tuple[Comparison, ...]
    messages: tuple[str, ...]

    @property
    def srm(self) -> bool:
        """Whether the units were not divided as was meant, so that nothing below holds."""
        return self.split.srm

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"at": self.at.isoformat(), "srm": self.srm, "units": dict(self.units)}


def results(
    experiment: Experiment, periods: Sequence[Period], now: datetime, *, undivided: bool = False, crossed: int = 0
) -> Results:
    """Compare every variant with the control, by every metric.

    One period for each time in which the weights stayed the same, so that results hold where they changed, by hand, by
    a closed arm or by a bandit. `undivided` says that they changed and that the data could not be told apart by it;
    then nothing is called a difference. `crossed` is the number of units that moved to another variant on the way.

    The primary and the secondary metrics, over all variants, are one family for the correction; the guardrails are
    another, so that looking after them does not make the decision slower; a metric of both is in the first. A false
    difference is then seen in at most alpha of the experiments in each family. Imports numpy and scipy, some 100 MB.
    Raises `StatisticsMissing` without gbstats.
    """
    require_gbstats()
    metrics, control = experiment.metrics, experiment.variants[0].id
    split = split_of(periods)
    withheld = _reason_to_withhold(split, undivided)
    families = (
        ((metrics.primary, Role.PRIMARY), *((name, Role.SECONDARY) for name in metrics.secondary)),
        tuple((name, Role.GUARDRAIL) for name in metrics.guardrails),
    )
    seen: set[str] = set()
    comparisons: list[Comparison] = []
    for family in families:
        named = [(name, role) for name, role in family if name not in seen and not seen.add(name)]
        drafts = [
            _Draft.of(experiment, periods, metric(name, metrics.lower_is_better), role, variant.id)
            for name, role in named
            for variant in experiment.variants[1:]
        ]
        adjusted = corrected([draft.p_value for draft in drafts], metrics.correction)
        strictest = metrics.alpha if metrics.correction is Correction.NONE else metrics.alpha / max(len(drafts), 1)
        for draft, p_value in zip(drafts, adjusted, strict=True):
            comparisons.append(draft.judged(p_value, withheld, _still_needed(experiment, periods, draft, strictest)))
    return Results(
        experiment=experiment.id,
        at=now,
        control=control,
        units={variant.id: units_of(periods, variant.id) for variant in experiment.variants},
        split=split,
        periods=len(periods),
        method=metrics.method,
        alpha=metrics.alpha,
        correction=metrics.correction,
        comparisons=tuple(comparisons),
        messages=tuple(_messages(experiment, periods, split, withheld, crossed)),
    )


@dataclass(frozen=True, slots=True)
class _Draft:
    """A comparison before the others of its family are known."""

    metric: Metric
    role: Role
    variant: str
    pair: Pair
    p_value: float | None = None
    chance_to_win: float | None = None
    difference: float | None = None
    interval: Interval | None = None
    lift: float | None = None
    lift_interval: Interval | None = None
    alpha: float = 0.05

    @classmethod
    def of(cls, experiment: Experiment, periods: Sequence[Period], by: Metric, role: Role, variant: str) -> _Draft:
        settings = experiment.metrics
        pair = compare(by, periods, experiment.variants[0].id, variant)
        a, b = pair.control, pair.variant
        if a is None or b is None or pair.lacking is not None:
            return cls(by, role, variant, pair, alpha=settings.alpha)
        if settings.method is Method.BAYESIAN:
            chance, difference, interval = bayesian(a, b, settings.alpha, by.lower_is_better)
            lift = difference / abs(a.value) if a.value else None
            lifts = (interval[0] / abs(a.value), interval[1] / abs(a.value)) if a.value else None
            # Both tails, so that correction and alpha mean what they mean for a two-sided p-value.
            tails = 2 * min(chance, 1 - chance)
            return cls(by, role, variant, pair, tails, chance, difference, interval, lift, lifts, settings.alpha)
        p_value, reach = sequential(a, b, settings.alpha)
        difference = b.value - a.value
        interval = (difference - reach, difference + reach)
        lift = difference / abs(a.value) if a.value else None
        lifts = lift_interval(a, b, reach / sqrt(a.error_squared + b.error_squared))
        return cls(by, role, variant, pair, p_value, None, difference, interval, lift, lifts, settings.alpha)

    def judged(self, corrected: float | None, withheld: str | None, needed: tuple[int, int] | None) -> Comparison:
        a, b = self.pair.control, self.pair.variant
        verdict, why = self._verdict(corrected, withheld)
        return Comparison(
            metric=self.metric.name,
            role=self.role,
            variant=self.variant,
            verdict=verdict,
            why=why,
            units=(a.units if a else 0, b.units if b else 0),
            control=a.value if a else None,
            estimate=b.value if b else None,
            difference=self.difference,
            interval=self.interval,
            lift=self.lift,
            lift_interval=self.lift_interval,
            p_value=self.p_value if self.chance_to_win is None else None,
            chance_to_win=self.chance_to_win,
            corrected=corrected,
            still_needed=needed,
        )

    def _verdict(self, corrected: float | None, withheld: str | None) -> tuple[Verdict, str]:
        if self.pair.lacking is not None or corrected is None or self.difference is None:
            return Verdict.NOT_ENOUGH_DATA, self.pair.lacking or ""
        if withheld is not None:
            return Verdict.WITHHELD, withheld
        sure = f"p = {corrected:.2g} after correction"
        if self.chance_to_win is not None:
            sure = f"{self.chance_to_win:.1%} chance to be better"
        if corrected >= self.alpha:
            return Verdict.NO_DIFFERENCE_SEEN, f"a difference like this comes by chance too: {sure}"
        lower, wanted = self.difference < 0, self.metric.lower_is_better
        why = f"{'lower' if lower else 'higher'}, where {'lower' if wanted else 'higher'} is better: {sure}"
        return (Verdict.BETTER if lower is wanted else Verdict.WORSE), why


def _still_needed(
    experiment: Experiment, periods: Sequence[Period], draft: _Draft, alpha: float
) -> tuple[int, int] | None:
    a, b = draft.pair.control, draft.pair.variant
    control = experiment.variants[0].id
    if a is None or b is None or not a.value or min(a.units, b.units) < 2 or a.variance + b.variance <= 0:
        return None
    weights = periods[-1].weights
    both = weights.get(control, 0.0) + weights.get(draft.variant, 0.0)
    share = weights.get(draft.variant, 0.0) / both if both else 0.0
    if not 0 < share < 1:
        return None
    total = units_needed(
        (a.variance, b.variance),
        experiment.metrics.minimum_effect * a.value,
        share=share,
        alpha=alpha,
        power=POWER,
        sequential=experiment.metrics.method is Method.SEQUENTIAL,
    )
    # Only some units are measured by a metric; the others are needed with them.
    have = (units_of(periods, control), units_of(periods, draft.variant))
    total = total * sum(have) / (a.units + b.units)
    return max(0, round(total * (1 - share)) - have[0]), max(0, round(total * share) - have[1])


def _reason_to_withhold(split: Split, undivided: bool) -> str | None:
    if split.srm:
        return "the units were not divided as the weights say, so the arms may differ in who is in them"
    if undivided:
        return "the weights changed and the units cannot be told apart by the time they came"
    return None


def _messages(
    experiment: Experiment, periods: Sequence[Period], split: Split, withheld: str | None, crossed: int
) -> list[str]:
    found: list[str] = []
    if split.srm:
        counts = " : ".join(f"{variant.id} {units_of(periods, variant.id)}" for variant in experiment.variants)
        sure = "surely " if split.sure else ""
        found.append(
            f"SAMPLE RATIO MISMATCH: the units are {sure}not divided as the weights say ({counts}; p = "
            f"{split.p_value:.2g}). No difference below holds. Look for requests that only one variant loses, such as "
            "failures before they are counted, retries or bots, and start again with a new seed."
        )
    elif withheld is not None:
        found.append(f"No difference below holds: {withheld}.")
    if len(periods) > 1:
        found.append(
            f"The weights changed: variants are compared within each of {len(periods)} periods, so that the times at "
            "which units came do not make a difference. Units that moved on a change count for their first variant."
        )
    if crossed:
        found.append(f"{crossed} units got another variant later; they make differences look smaller than they are.")
    if experiment.metrics.method is Method.BAYESIAN:
        found.append(
            "Chances to win hold for one look at a time that was chosen before; who looks until there is a winner "
            "finds one. `method: sequential` allows that."
        )
    return found
