"""Whether the statistics of experiments keep what they promise: simulated experiments, looked at many times.

Simulations are vectorised over experiments, by the formulas of `custom_router.experiments`; the tests hold both against
each other. Units have between one and many requests, feedback on some, errors and costs that differ from unit to unit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray
from scipy import special

from benchmarks.figures import Bound, Figure, Result
from core.settings.models.experiments import Experiment
from core.store.assignments import UnitTotals
from custom_router.experiments import split
from custom_router.experiments.estimates import compare
from custom_router.experiments.guardrails import broken
from custom_router.experiments.metrics import ArmMoments, Moments, Period, Periods, metric
from custom_router.experiments.sample_size import units_needed
from custom_router.experiments.sequential import GUARDRAIL_TUNING, TUNING
from custom_router.experiments.statistics import results

Floats = NDArray[np.float64]
NOW = datetime(2026, 3, 1, tzinfo=UTC)
ALPHA = 0.05
METRICS = ("rating", "error_rate", "cost")
RATING, ERROR_RATE, COST = 0, 1, 2
_PROPORTIONS = np.array([False, True, False])
_CHUNK = 100


def experiment(alpha: float = ALPHA, **metrics: object) -> Experiment:
    """The experiment that is simulated: one treatment, rated by users."""
    return Experiment.model_validate(
        {
            "id": "simulated",
            "policy": "smart",
            "variants": [{"id": "control", "model": "large"}, {"id": "treatment", "model": "small"}],
            "metrics": {"alpha": alpha, "secondary": ["error_rate", "cost"], "guardrails": [], **metrics},
            "status": "running",
        }
    )


@dataclass(frozen=True, slots=True)
class World:
    """What units are like. `lift` is the treatment's, of each metric; a unit has `1 + Poisson(further)` requests.

    `share` of the units really get the treatment. With a `pool`, units come back: each request is of one of so many.
    """

    lift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    further: float = 2.0
    feedback: float = 0.5
    error_rate: float = 0.02
    share: float = 0.5
    pool: int | None = None


@dataclass(frozen=True, slots=True)
class Looks:
    """Sums over units as experiments were looked at: `units` is [experiment, look, arm], each of the other
    [experiment, look, arm, metric]; x is the numerator and y the denominator."""

    units: Floats
    measured: Floats
    x: Floats
    y: Floats
    xx: Floats
    yy: Floats
    xy: Floats

    def period(self, number: int, look: int, weights: tuple[float, float] = (50, 50)) -> Period:
        """What the real path would have been given."""
        arms: dict[str, ArmMoments] = {}
        for arm, name in enumerate(("control", "treatment")):
            arms[name] = ArmMoments()
            arms[name].units = int(self.units[number, look, arm])
            for at, metric_name in enumerate(METRICS):
                where = (number, look, arm, at)
                arms[name].moments[metric_name] = Moments(
                    *(float(sums[where]) for sums in (self.x, self.y, self.xx, self.yy, self.xy)),
                    measured=int(self.measured[where]),
                )
        return Period(dict(zip(arms, weights, strict=True)), arms)


def simulated(world: World, experiments: int, looks: int, every: int, seed: int = 1) -> Iterator[Looks]:
    """Experiments in chunks, each looked at after every `every` units (or requests, where units come back)."""
    random = np.random.default_rng(seed)
    for start in range(0, experiments, _CHUNK):
        size = min(_CHUNK, experiments - start)
        yield (_fresh if world.pool is None else _returning)(world, random, size, looks, every)


def _fresh(world: World, random: np.random.Generator, size: int, looks: int, every: int) -> Looks:
    shape = (size, looks, every)
    treated = random.random(shape) < world.share
    requests = 1.0 + random.poisson(world.further, shape)
    x, y = _totals(world, random, treated, requests, _Characters.of(random, shape))
    arms = np.stack([~treated, treated], axis=-1).astype(float)

    def sums(values: Floats) -> Floats:
        return np.cumsum(np.einsum("elum,elua->elam", values, arms), axis=1)

    units = np.cumsum(arms.sum(axis=2), axis=1)
    return Looks(units, sums((y > 0).astype(float)), sums(x), sums(y), sums(x * x), sums(y * y), sums(x * y))


def _returning(world: World, random: np.random.Generator, size: int, looks: int, every: int) -> Looks:
    assert world.pool is not None
    shape = (size, world.pool)
    treated = random.random(shape) < world.share
    arms = np.stack([~treated, treated], axis=-1).astype(float)
    characters = _Characters.of(random, shape)
    # Some come often, most do not.
    habits = random.gamma(0.5, size=shape)
    habits /= habits.sum(axis=1, keepdims=True)
    x, y = np.zeros((*shape, len(METRICS))), np.zeros((*shape, len(METRICS)))
    seen = np.zeros(shape)
    found: list[list[Floats]] = []
    for _ in range(looks):
        requests = random.multinomial(every, habits).astype(float)
        more_x, more_y = _totals(world, random, treated, requests, characters)
        x, y, seen = x + more_x, y + more_y, seen + requests
        here = [(y > 0).astype(float), x, y, x * x, y * y, x * y]
        found.append([np.einsum("eu,eua->ea", seen > 0, arms), *(np.einsum("eum,eua->eam", one, arms) for one in here)])
    return Looks(*(np.stack([look[at] for look in found], axis=1) for at in range(7)))


@dataclass(frozen=True, slots=True)
class _Characters:
    """How units differ for good: what they like, how often they fail, and what they ask for."""

    rating: Floats
    errors: Floats
    cost: Floats

    @classmethod
    def of(cls, random: np.random.Generator, shape: tuple[int, ...]) -> _Characters:
        return cls(random.normal(4.0, 0.8, shape), random.gamma(0.5, 2.0, shape), random.lognormal(-0.5, 1.0, shape))


def _totals(
    world: World, random: np.random.Generator, treated: NDArray[np.bool_], requests: Floats, units: _Characters
) -> tuple[Floats, Floats]:
    """Numerators and denominators of each unit, the metrics along the last axis."""
    factor = [np.where(treated, 1 + lift, 1.0) for lift in world.lift]
    rated = random.binomial(requests.astype(int), world.feedback).astype(float)
    rating = rated * units.rating * factor[RATING] + np.sqrt(rated) * random.normal(0, 1.0, requests.shape)
    rates = np.clip(world.error_rate * units.errors * factor[ERROR_RATE], 0, 1)
    errors = random.binomial(requests.astype(int), rates).astype(float)
    cost = requests * units.cost * factor[COST] * 1e6
    return np.stack([rating, errors, cost], axis=-1), np.stack([rated, requests, requests], axis=-1)


@dataclass(frozen=True, slots=True)
class Estimates:
    """Values and squared standard errors, [experiment, look, arm, metric]; `units` as measured, of both arms."""

    value: Floats
    error_squared: Floats
    measured: Floats
    events: Floats
    of: Floats

    @classmethod
    def from_looks(cls, looks: Looks) -> Estimates:
        n = looks.units[..., None]
        with np.errstate(divide="ignore", invalid="ignore"):
            value = looks.x / looks.y
            residual = (
                (n * looks.xx - looks.x**2)
                - 2 * value * (n * looks.xy - looks.x * looks.y)
                + value**2 * (n * looks.yy - looks.y**2)
            ) / (n * (n - 1))
            variance = np.maximum(residual, 0) / n / (looks.y / n) ** 2
        variance = variance + _PROPORTIONS / (looks.measured + 2) ** 2
        return cls(value, variance, looks.measured, looks.x, looks.y)

    @property
    def enough(self) -> NDArray[np.bool_]:
        """[experiment, look, metric]: whether anything is said at all."""
        events, of = self.events.sum(axis=2), self.of.sum(axis=2)
        rare = _PROPORTIONS & (np.minimum(events, of - events) < 5)
        return (self.measured.min(axis=2) >= 10) & ~rare & (self.error_squared.min(axis=2) > 0)

    def z(self, limit: float = 0.0) -> Floats:
        """How many standard errors the treatment is above the control times 1 + limit."""
        difference = self.value[:, :, 1] - (1 + limit) * self.value[:, :, 0]
        variance = self.error_squared[:, :, 1] + (1 + limit) ** 2 * self.error_squared[:, :, 0]
        with np.errstate(divide="ignore", invalid="ignore"):
            return difference / np.sqrt(variance)

    def p_values(self, alpha: float = ALPHA) -> Floats:
        """[experiment, look, metric], valid at any time; 1 where nothing is said."""
        units = self.measured.sum(axis=2)
        spread = units * _spread(alpha, TUNING)
        with np.errstate(invalid="ignore", divide="ignore"):
            evidence = spread * self.z() ** 2 / (2 * (spread + 1)) - np.log(spread + 1) / 2
        return np.where(self.enough, np.minimum(1, np.exp(-np.maximum(evidence, 0))), 1.0)


def _spread(alpha: float, tuning: float) -> float:
    return (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / tuning


def boundaries(units: Floats, alpha: float, tuning: float) -> Floats:
    """`sequential.boundary` of many."""
    spread = np.maximum(units, 1) * _spread(alpha, tuning)
    return np.sqrt(2 * (1 + 1 / spread) * np.log(np.sqrt(spread + 1) / alpha))


def holm(p_values: Floats) -> Floats:
    """Along the last axis."""
    order = np.argsort(p_values, axis=-1)
    count = p_values.shape[-1]
    stepped = np.take_along_axis(p_values, order, axis=-1) * (count - np.arange(count))
    stepped = np.minimum(1, np.maximum.accumulate(stepped, axis=-1))
    found = np.empty_like(stepped)
    np.put_along_axis(found, order, stepped, axis=-1)
    return found


def split_p_values(units: Floats, share: float = 0.5) -> Floats:
    """The chi-square test of the split, [experiment, look]."""
    total = units.sum(axis=-1)
    statistic = (units[..., 1] - total * share) ** 2 / (total * share * (1 - share))
    return special.erfc(np.sqrt(statistic / 2))


def split_always_valid(units: Floats, share: float = 0.5) -> Floats:
    """The sequential test of the split, [experiment, look]."""
    prior = split.PRIOR_UNITS * np.array([1 - share, share])
    evidence = special.gammaln(prior.sum()) - special.gammaln(prior.sum() + units.sum(axis=-1))
    evidence += (special.gammaln(prior + units) - special.gammaln(prior)).sum(axis=-1)
    evidence -= units[..., 0] * math.log(1 - share) + units[..., 1] * math.log(share)
    return np.minimum(1, np.exp(-evidence))


@dataclass(slots=True)
class Count:
    """How many of how many."""

    hits: int = 0
    of: int = 0

    def add(self, hits: NDArray[np.bool_]) -> None:
        """Count a row of experiments."""
        self.hits += int(hits.sum())
        self.of += hits.size

    @property
    def share(self) -> float:
        """The share of hits."""
        return self.hits / self.of

    def figure(self, name: str, must: Bound | None = None) -> Figure:
        """In percent, with Wilson's interval."""
        z, n, p = 1.96, self.of, self.share
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        reach = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return Figure(name, 100 * p, "%", 100 * max(0.0, middle - reach), 100 * min(1.0, middle + reach), must)


@dataclass(frozen=True, slots=True)
class FalsePositives:
    """Experiments without a difference in which one was called so at some look."""

    primary: Count
    any_metric: Count
    fixed: Count
    """By the test that allows one look, taken at each."""
    split_ever: Count
    split_surely: Count


def false_positives(world: World, experiments: int, looks: int = 50, every: int = 100, seed: int = 1) -> FalsePositives:
    """A/A experiments, judged at every look. A wrong split withholds verdicts as it does in earnest; the primary metric
    alone is judged without."""
    found = FalsePositives(Count(), Count(), Count(), Count(), Count())
    for chunk in simulated(world, experiments, looks, every, seed):
        estimates = Estimates.from_looks(chunk)
        p_values = estimates.p_values()
        doubted = split_p_values(chunk.units) < split.SPLIT_ALPHA
        found.primary.add((p_values[..., RATING] < ALPHA).any(axis=1))
        found.any_metric.add(((holm(p_values) < ALPHA).any(axis=2) & ~doubted).any(axis=1))
        found.fixed.add(((np.abs(estimates.z()[..., RATING]) > 1.96) & estimates.enough[..., RATING]).any(axis=1))
        found.split_ever.add(doubted.any(axis=1))
        found.split_surely.add((split_always_valid(chunk.units) < split.SURE_SPLIT_ALPHA).any(axis=1))
    return found


@dataclass(frozen=True, slots=True)
class SplitsFound:
    """How often a wrong split is found: at the last look alone, at any, and how often it is sure by then."""

    last: Count
    any_look: Count
    surely: Count


def splits_found(experiments: int, looks: int = 10, share: float = 0.55, seed: int = 2) -> SplitsFound:
    """Experiments whose treatment gets `share` in place of half of the units, with a look after every 100."""
    treated = np.cumsum(np.random.default_rng(seed).binomial(100, share, (experiments, looks)), axis=1).astype(float)
    counts = np.stack([100.0 * np.arange(1, looks + 1) - treated, treated], axis=-1)
    doubted = split_p_values(counts) < split.SPLIT_ALPHA
    found = SplitsFound(Count(), Count(), Count())
    found.last.add(doubted[:, -1])
    found.any_look.add(doubted.any(axis=1))
    found.surely.add((split_always_valid(counts) < split.SURE_SPLIT_ALPHA).any(axis=1))
    return found


def thompson_false_positives(
    experiments: int, periods: int = 20, every: int = 200, seed: int = 3
) -> tuple[Count, Count]:
    """A/A experiments whose shares a bandit sets anew in each period, while ratings rise for everybody: compared within
    periods, and all together, which does not hold."""
    world, random = World(), np.random.default_rng(seed)
    within, together = Count(), Count()
    for start in range(0, experiments, _CHUNK):
        size = min(_CHUNK, experiments - start)
        share = np.full((size, 1, 1), 0.5)
        strata: list[Looks] = []
        called = np.zeros((2, size), dtype=bool)
        for period in range(periods):
            treated = random.random((size, 1, every)) < share
            units = _Characters.of(random, treated.shape)
            drifted = _Characters(units.rating + 0.05 * period, units.errors, units.cost)
            requests = 1.0 + random.poisson(world.further, treated.shape)
            x, y = _totals(world, random, treated, requests, drifted)
            arms = np.stack([~treated, treated], axis=-1).astype(float)
            x, y = x[..., :1], y[..., :1]
            here = [(y > 0).astype(float), x, y, x * x, y * y, x * y]
            strata.append(Looks(arms.sum(axis=2), *(np.einsum("elum,elua->elam", one, arms) for one in here)))
            value, error_squared, measured = _stratified(strata)
            z = (value[:, 1] - value[:, 0]) / np.sqrt(error_squared.sum(axis=1))
            bounds = boundaries(measured.sum(axis=1), ALPHA, TUNING)
            called[0] |= np.abs(z) > bounds
            pooled_value, pooled_error, _ = _stratified([_added(strata)])
            pooled = (pooled_value[:, 1] - pooled_value[:, 0]) / np.sqrt(pooled_error.sum(axis=1))
            called[1] |= np.abs(pooled) > bounds
            share = np.clip(special.ndtr(z), 0.1, 0.9)[:, None, None]
        within.add(called[0])
        together.add(called[1])
    return within, together


def _stratified(strata: Sequence[Looks]) -> tuple[Floats, Floats, Floats]:
    """The combined ratio estimate of the first metric: value, squared error and measured units, [experiment, arm]."""
    n = np.stack([one.units[:, 0] for one in strata])
    weight = n.sum(axis=2, keepdims=True) / n.sum(axis=(0, 2))[None, :, None]
    x, y, xx, yy, xy = (
        np.stack([getattr(one, name)[:, 0, :, 0] for one in strata]) for name in ("x", "y", "xx", "yy", "xy")
    )
    bottom = (weight * y / n).sum(axis=0)
    value = (weight * x / n).sum(axis=0) / bottom
    residual = ((n * xx - x * x) - 2 * value * (n * xy - x * y) + value**2 * (n * yy - y * y)) / (n * (n - 1))
    error_squared = (weight**2 * residual / n).sum(axis=0) / bottom**2
    return value, error_squared, np.stack([one.measured[:, 0, :, 0] for one in strata]).sum(axis=0)


def _added(strata: Sequence[Looks]) -> Looks:
    names = ("units", "measured", "x", "y", "xx", "yy", "xy")
    return Looks(*(np.sum([getattr(one, name) for one in strata], axis=0) for name in names))


def closings(world: World, experiments: int, looks: int, every: int, seed: int = 4) -> tuple[Count, list[int]]:
    """How often the guardrails on error rate and cost close the treatment at some look, and at how many units."""
    limit, alpha = 0.2, ALPHA / 3
    ever, units = Count(), list[int]()
    for chunk in simulated(world, experiments, looks, every, seed):
        estimates = Estimates.from_looks(chunk)
        measured = estimates.measured.sum(axis=2)
        with np.errstate(invalid="ignore", divide="ignore"):
            over = (estimates.z(limit) > boundaries(measured, 2 * alpha, GUARDRAIL_TUNING)) & estimates.enough
        hit = over[..., [ERROR_RATE, COST]].any(axis=2)
        ever.add(hit.any(axis=1))
        units += [(int(look) + 1) * every for look in hit.argmax(axis=1)[hit.any(axis=1)]]
    return ever, units


@dataclass(frozen=True, slots=True)
class Power:
    """How often the primary metric's difference is seen: at the last look alone, and at any."""

    last: Count
    any_look: Count
    by_hand: Count
    """At the last look by gbstats alone, as its documentation uses it: its RatioStatistic, the lift, its defaults."""


def power(lift: float, units: int, experiments: int, seed: int = 5) -> Power:
    """Experiments with a true lift of the ratings, of so many units, with a look at every hundredth part of them."""
    from gbstats.frequentist.tests import SequentialTwoSidedTTest
    from gbstats.models.statistics import RatioStatistic, SampleMeanStatistic

    found = Power(Count(), Count(), Count())
    every = max(1, units // 50)
    for chunk in simulated(World(lift=(lift, 0.0, 0.0)), experiments, 50, every, seed):
        p_values = Estimates.from_looks(chunk).p_values()[..., RATING]
        found.last.add(p_values[:, -1] < ALPHA)
        found.any_look.add((p_values < ALPHA).any(axis=1))
        by_hand: list[bool] = []
        for number in range(p_values.shape[0]):
            arms: list[RatioStatistic] = []
            for arm in (0, 1):
                where = (number, -1, arm, RATING)
                n = int(chunk.units[number, -1, arm])
                top = SampleMeanStatistic(n=n, sum=chunk.x[where], sum_squares=chunk.xx[where])
                bottom = SampleMeanStatistic(n=n, sum=chunk.y[where], sum_squares=chunk.yy[where])
                arms.append(
                    RatioStatistic(n=n, m_statistic=top, d_statistic=bottom, m_d_sum_of_products=chunk.xy[where])
                )
            by_hand.append(bool(SequentialTwoSidedTTest(*arms).compute_result().p_value < ALPHA))
        found.by_hand.add(np.array(by_hand))
    return found


def units_for(lift: float, seed: int = 6) -> int:
    """What the sample size formula says that a lift of the ratings takes."""
    [chunk] = simulated(World(), 1, 1, 20_000, seed)
    pair = compare(metric("rating"), [chunk.period(0, 0)], "control", "treatment")
    assert pair.control is not None and pair.variant is not None
    measured = pair.control.units + pair.variant.units
    total = units_needed((pair.control.variance, pair.variant.variance), lift * pair.control.value)
    return math.ceil(total * 20_000 / measured)


def measure(experiments: int = 2_000, units: int = 1_000_000) -> Result:
    """All of it."""
    begun = time.perf_counter()
    at_most_alpha = Bound("<=", 100 * ALPHA)
    fresh = false_positives(World(), experiments)
    returning = false_positives(World(pool=400, further=0), experiments, seed=11)
    within, together = thompson_false_positives(experiments)
    wrong, longer = splits_found(experiments), splits_found(experiments, looks=20)
    needed = units_for(0.03)
    seen = power(0.03, needed, max(100, experiments // 4))
    at_limit, _ = closings(World(lift=(0.0, 0.2, 0.2), error_rate=0.05), experiments, 50, 100)
    failing, closed_at = closings(World(lift=(0.0, 9.0, 0.0), error_rate=0.05), max(100, experiments // 10), 100, 10)
    figures = [
        fresh.primary.figure("A/A, 50 looks: false positives, primary metric", at_most_alpha),
        fresh.any_metric.figure("A/A, 50 looks: false positives, three metrics", at_most_alpha),
        returning.any_metric.figure("A/A, units come back: false positives", at_most_alpha),
        fresh.fixed.figure("A/A, 50 looks: false positives of a test for one look"),
        within.figure("A/A, shares by a bandit: false positives within periods", at_most_alpha),
        together.figure("A/A, shares by a bandit: false positives not told apart"),
        Figure("units for a lift of 3 %, both arms", needed),
        seen.last.figure("power there, one look"),
        seen.any_look.figure("power there, any of 50 looks", Bound(">=", 80, within_noise=True)),
        seen.by_hand.figure("power there, one look, gbstats by hand"),
        Figure(
            "power, gbstats by hand less ours", 100 * (seen.by_hand.share - seen.last.share), "%", must=Bound("<=", 5)
        ),
        wrong.last.figure("split 55:45, not 50:50: found at 1,000 units", Bound(">=", 70, within_noise=True)),
        wrong.any_look.figure("split 55:45, not 50:50: found by 1,000 units"),
        longer.any_look.figure("split 55:45, not 50:50: found by 2,000 units", Bound(">=", 95, within_noise=True)),
        longer.surely.figure("split 55:45, not 50:50: sure by 2,000 units"),
        fresh.split_ever.figure("split 50:50, 50 looks: doubted at some look"),
        fresh.split_surely.figure("split 50:50, 50 looks: ever called surely wrong", Bound("<=", 1, within_noise=True)),
        at_limit.figure("guardrails: closed though at the limit, 50 looks", at_most_alpha),
        failing.figure("guardrails: closed with ten times the errors, 1,000 units"),
        Figure.of("guardrails: units until closed", [float(one) for one in closed_at]),
        *_costs(units),
    ]
    return Result("experiments", figures, time.perf_counter() - begun)


def _costs(units: int) -> Iterator[Figure]:
    """What it takes to read many units and to judge them."""
    arms, sample = ("control", "treatment"), list[UnitTotals]()
    for k in range(1_000):
        latencies = {300 + k % 97: 1, 280: 1, 320 + k: 1}
        sums = {"requests": 3, "errors": int(k % 11 == 0), "cost_nano": 1_000_000 + k, "tokens": 900 + k}
        times = {"latency_ms_sum": sum(latencies), "latency_count": 3, "latencies": latencies}
        sample.append(UnitTotals(arms[k % 2], str(k), k, **sums, **times, feedback={"rating": (1, float(k % 5))}))
    read = Periods([(0, dict.fromkeys(arms, 50))])
    begun = time.process_time()
    for number in range(units):
        read.add(sample[number % 1_000])
    yield Figure("CPU to count a unit", 1e6 * (time.process_time() - begun) / units, "us")
    judged = experiment(guardrails=["error_rate", "latency_p95", "cost"])
    for name, judge in (
        ("CPU of results, 6 comparisons", lambda: results(judged, read.all, NOW)),
        ("CPU of the guardrails, 3 metrics", lambda: broken(judged, read.all)),
    ):
        judge()
        begun = time.process_time()
        for _ in range(20):
            judge()
        yield Figure(name, 1e3 * (time.process_time() - begun) / 20, "ms")
