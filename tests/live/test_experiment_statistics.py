"""What the statistics of experiments promise, held against thousands of simulated experiments."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import experiments as simulation
from benchmarks.experiments import ALPHA, NOW, Count, World
from core.store.assignments import UnitTotals
from custom_router.experiments.bandit import thompson_weights
from custom_router.experiments.guardrails import broken
from custom_router.experiments.metrics import Periods
from custom_router.experiments.statistics import Verdict, results

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

CALLED = {Verdict.BETTER, Verdict.WORSE}


def test_all_that_the_benchmark_promises_holds_for_2000_experiments():
    found = simulation.measure(experiments=2_000, units=100_000)
    assert [figure.name for figure in found.figures if figure.met is False] == []


@pytest.mark.parametrize(
    ("pool", "every"), [(60, 100), (2_000, 400)], ids=["few units, many requests", "each unit ten times"]
)
def test_units_that_come_back_again_and_again_do_not_make_differences(pool: int, every: int):
    found = simulation.false_positives(World(pool=pool, further=0), 500, looks=50, every=every, seed=21)
    assert found.any_metric.share <= ALPHA


def test_a_few_units_looked_at_after_every_five_do_not_make_differences():
    found = simulation.false_positives(World(error_rate=0.2), 2_000, looks=40, every=5, seed=22)
    assert found.primary.share <= ALPHA and found.any_metric.share <= ALPHA


def test_rare_errors_do_not_make_differences():
    found = simulation.false_positives(World(error_rate=0.001), 1_000, looks=50, every=100, seed=23)
    assert found.any_metric.share <= ALPHA


def test_slow_quantiles_do_not_make_differences_nor_close_arms():
    random = np.random.default_rng(24)
    judged = simulation.experiment(
        primary="latency_p95", secondary=[], guardrails=["latency_p95"], guardrail_limit=0.05
    )
    called, closed = Count(), Count()
    for _ in range(200):
        read, seen, shut = Periods([(0, {"control": 1, "treatment": 1})]), False, False
        for _ in range(20):
            for speed, count, treated in zip(
                random.lognormal(6.5, 0.5, 50), 1 + random.poisson(4, 50), random.random(50) < 0.5, strict=True
            ):
                spent = np.ceil(speed * random.lognormal(0, 0.3, count)).astype(int).tolist()
                latencies = {ms: spent.count(ms) for ms in spent}
                variant = "treatment" if treated else "control"
                read.add(UnitTotals(variant, "", 0, requests=int(count), latencies=latencies))
            found = results(judged, read.all, NOW)
            seen |= found.comparisons[0].verdict in CALLED
            shut |= bool(broken(judged, read.all))
        called.add(np.array([seen]))
        closed.add(np.array([shut]))
    assert called.share <= ALPHA and closed.share <= ALPHA


def test_a_bandit_finds_the_better_arm_and_results_still_hold():
    random = np.random.default_rng(25)
    judged = simulation.experiment(secondary=[])

    def run(lift: float) -> tuple[float, bool]:
        """The share that the treatment ends with, and whether a difference was ever called, while ratings rise."""
        weights: dict[str, float] = {"control": 0.5, "treatment": 0.5}
        changes, units, ever = [(0, weights)], list[UnitTotals](), False
        for period in range(10):
            for _ in range(100):
                variant = "treatment" if random.random() < weights["treatment"] else "control"
                rating = random.normal(3 + 0.1 * period + lift * (variant == "treatment"), 1)
                units.append(UnitTotals(variant, "", period, requests=1, feedback={"rating": (1, rating)}))
            read = Periods(changes)
            for one in units:
                read.add(one)
            ever |= results(judged, read.all, NOW).comparisons[0].verdict in CALLED
            weights = thompson_weights(judged, read.all, draws=1_000, seed=period)
            changes.append((period + 1, weights))
        return weights["treatment"], ever

    equal, better = [run(0.0) for _ in range(60)], [run(0.5) for _ in range(10)]
    assert sum(ever for _, ever in equal) <= 0.1 * len(equal)
    assert all(ever for _, ever in better) and min(share for share, _ in better) > 0.85
