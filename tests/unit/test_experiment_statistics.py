"""What is said about experiments: from sums over units to verdicts, guardrails and shares."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterable, Mapping
from statistics import NormalDist

import numpy as np
import pytest
from gbstats.frequentist.tests import SequentialConfig, SequentialTwoSidedTTest
from gbstats.models.statistics import RatioStatistic, SampleMeanStatistic
from gbstats.utils import check_srm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from benchmarks import experiments as simulation
from benchmarks.experiments import ALPHA, NOW, World
from core.errors import StatisticsMissing
from core.settings.models.experiments import Correction, Experiment
from core.store.assignments import UnitTotals
from custom_router.experiments.bandit import thompson_weights
from custom_router.experiments.estimates import Estimate, compare, ratio
from custom_router.experiments.guardrails import broken
from custom_router.experiments.inference import corrected, lift_interval
from custom_router.experiments.metrics import BUILT_IN, ArmMoments, Moments, Period, Periods, metric
from custom_router.experiments.sample_size import units_needed
from custom_router.experiments.sequential import boundary
from custom_router.experiments.split import split_of
from custom_router.experiments.statistics import Comparison, Results, Verdict, results


def experiment(variants: int = 2, **metrics: object) -> Experiment:
    ids = ["control", "treatment", "other"][:variants]
    described = {"guardrails": [], **metrics}
    return Experiment.model_validate(
        {"id": "e", "policy": "smart", "variants": [{"id": one} for one in ids], "metrics": described}
    )


def unit(variant: str, first_ms: int = 0, **sums: object) -> UnitTotals:
    return UnitTotals(variant, "someone", first_ms, **{"requests": 1, **sums})  # pyright: ignore[reportArgumentType]


def rated(variant: str, value: float, count: int = 1, first_ms: int = 0) -> UnitTotals:
    return unit(variant, first_ms, requests=count, feedback={"rating": (count, value * count)})


def gathered(units: Iterable[UnitTotals], weights: Mapping[str, float] | None = None) -> tuple[Period, ...]:
    periods = Periods([(0, weights or {"control": 50, "treatment": 50})])
    for one in units:
        periods.add(one)
    return periods.all


def rated_arms(means: Mapping[str, float], units: int, seed: int = 1) -> list[UnitTotals]:
    draw = random.Random(seed)
    return [rated(variant, draw.gauss(mean, 1)) for variant, mean in means.items() for _ in range(units)]


def only(found: Results, name: str = "rating", variant: str = "treatment") -> Comparison:
    [one] = [one for one in found.comparisons if (one.metric, one.variant) == (name, variant)]
    return one


class TestSums:
    @given(
        st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9), st.integers(1, 90_000)), max_size=30),
        st.integers(0, 30),
    )
    @settings(max_examples=40, deadline=None)
    def test_units_counted_in_two_places_and_merged_are_units_counted_in_one(
        self, drawn: list[tuple[int, int, int]], cut: int
    ):
        units = [
            unit("control", requests=n, errors=min(n, e), cost_nano=ms, latencies={ms: n, ms // 2 + 1: e})
            for n, e, ms in drawn
        ]
        whole, left, right = ArmMoments(), ArmMoments(), ArmMoments()
        for at, one in enumerate(units):
            whole.add(one)
            (left if at < cut else right).add(one)
        left.merge(right)
        for name, moments in whole.moments.items():
            other = left.moments[name]
            assert (moments.x, moments.xx, moments.xy, moments.measured) == (
                *(other.x, other.xx, other.xy),
                other.measured,
            )
        buckets = sorted(whole.latencies.buckets)
        assert [one.xx for one in whole.latencies.up_to(buckets)] == [one.xx for one in left.latencies.up_to(buckets)]
        assert (whole.units, whole.requests) == (left.units, left.requests)

    @given(st.lists(st.tuples(st.integers(0, 10**15), st.integers(1, 1000)), min_size=2, max_size=30))
    @settings(max_examples=60, deadline=None)
    def test_the_variance_of_a_quotient_is_that_of_gbstats(self, drawn: list[tuple[int, int]]):
        moments = Moments()
        for x, y in drawn:
            moments.add(x, y)
        n, x, y = len(drawn), [x / 1e9 for x, _ in drawn], [y for _, y in drawn]
        top = SampleMeanStatistic(n=n, sum=sum(x), sum_squares=sum(v * v for v in x))
        bottom = SampleMeanStatistic(n=n, sum=sum(y), sum_squares=sum(v * v for v in y))
        products = sum(a * b for a, b in zip(x, y, strict=True))
        theirs = RatioStatistic(n=n, m_statistic=top, d_statistic=bottom, m_d_sum_of_products=products)
        ours = ratio([(1.0, n, moments)])
        assert ours is not None
        assert ours[0] / 1e9 == pytest.approx(theirs.mean)
        assert ours[1] / 1e18 == pytest.approx(theirs.variance / n, rel=1e-6, abs=1e-9 * theirs.mean**2)

    def test_an_error_of_a_unit_with_many_requests_is_not_many_errors(self):
        draw = random.Random(1)
        rates = [draw.choice((0, 0, 0, 1)) for _ in range(200)]
        units = [unit(arm, requests=50, errors=50 * rate) for arm in ("control", "treatment") for rate in rates]
        pair = compare(metric("error_rate"), gathered(units), "control", "treatment")
        assert pair.control is not None
        by_request = pair.control.value * (1 - pair.control.value) / (200 * 50)
        assert pair.control.error_squared == pytest.approx(50 * by_request, rel=0.05)

    def test_the_error_of_a_quantile_is_that_of_drawing_units_anew(self):
        draw = np.random.default_rng(3)
        speeds, counts = draw.lognormal(6.5, 0.5, 400), draw.integers(1, 40, 400)
        answers = [np.ceil(s * draw.lognormal(0, 0.2, n)).astype(int) for s, n in zip(speeds, counts, strict=True)]
        units = [
            unit(arm, latencies={int(ms): int((spent == ms).sum()) for ms in set(spent)})
            for arm in ("control", "treatment")
            for spent in answers
        ]
        estimate = compare(metric("latency_p95"), gathered(units), "control", "treatment").control
        assert estimate is not None
        assert estimate.value == pytest.approx(np.quantile(np.concatenate(answers), 0.95), rel=0.01)
        drawn = [
            np.quantile(np.concatenate([answers[at] for at in draw.integers(0, 400, 400)]), 0.95) for _ in range(400)
        ]
        assert estimate.error_squared**0.5 == pytest.approx(np.std(drawn), rel=0.2)
        alone = np.quantile(draw.choice(np.concatenate(answers), (400, counts.sum())), 0.95, axis=1)
        assert estimate.error_squared**0.5 > 2 * np.std(alone)

    def test_cost_is_in_dollars_and_of_requests_that_no_cache_served(self):
        units = [unit(arm, requests=4, cached=2, cost_nano=3_000_000) for arm in ("control", "treatment")]
        estimate = compare(metric("cost"), gathered(units * 2), "control", "treatment").control
        assert estimate is not None and estimate.value == pytest.approx(0.0015)

    def test_feedback_may_be_better_when_lower_and_never_passes_for_a_built_in_metric(self):
        assert metric("complaints", ["complaints"]).lower_is_better and not metric("rating").lower_is_better
        arm = ArmMoments()
        arm.add(unit("control", requests=2, feedback={"error_rate": (2, 2.0)}))
        assert arm.moments["error_rate"].x == 0


class TestVerdicts:
    def test_the_arm_with_the_higher_rating_is_better_and_its_lift_is_near_the_truth(self):
        found = results(experiment(), gathered(rated_arms({"control": 3.0, "treatment": 3.6}, 400)), NOW)
        one = only(found)
        assert one.verdict is Verdict.BETTER
        assert one.lift_interval is not None and one.lift_interval[0] < 0.2 < one.lift_interval[1]
        assert found.split.p_value == 1 and found.messages == ()

    def test_a_higher_cost_is_worse(self):
        draw = random.Random(1)
        costs = {"control": 1_000_000, "treatment": 1_500_000}
        units = [
            unit(arm, cost_nano=int(cost * draw.uniform(0.5, 1.5))) for arm, cost in costs.items() for _ in range(300)
        ]
        assert only(results(experiment(primary="cost"), gathered(units), NOW), "cost").verdict is Verdict.WORSE

    def test_a_control_that_never_fails_can_be_compared_with(self):
        units = [
            unit(arm, errors=int(arm == "treatment" and k % 5 == 0))
            for arm in ("control", "treatment")
            for k in range(300)
        ]
        one = only(results(experiment(primary="error_rate"), gathered(units), NOW), "error_rate")
        assert (one.verdict, one.lift, one.lift_interval) == (Verdict.WORSE, None, None)
        assert one.difference == pytest.approx(0.2)

    def test_equal_arms_are_not_told_apart(self):
        one = only(results(experiment(), gathered(rated_arms({"control": 3.0, "treatment": 3.0}, 400)), NOW))
        assert one.verdict is Verdict.NO_DIFFERENCE_SEEN
        assert one.still_needed is not None and min(one.still_needed) > 0

    @pytest.mark.parametrize(
        ("units", "why"),
        [
            (rated_arms({"control": 3.0, "treatment": 9.0}, 9), "control has 9 units; it takes 10"),
            (rated_arms({"control": 3.0}, 50), "treatment has 0 units"),
            ([rated(arm, 0.7, 1 + k % 5) for k in range(50) for arm in ("control", "treatment")], "the same value"),
            ([unit(arm) for arm in ("control", "treatment") for _ in range(50)], "too few requests with feedback"),
        ],
    )  # fmt: skip
    def test_too_little_data_is_said_plainly(self, units: list[UnitTotals], why: str):
        one = only(results(experiment(), gathered(units, {"control": 50, "treatment": 0}), NOW))
        assert one.verdict is Verdict.NOT_ENOUGH_DATA
        assert why in one.why

    def test_two_errors_are_too_few(self):
        units = [unit(arm, errors=int(k == 0)) for arm in ("control", "treatment") for k in range(500)]
        one = only(results(experiment(primary="error_rate"), gathered(units), NOW), "error_rate")
        assert one.verdict is Verdict.NOT_ENOUGH_DATA and "happened 2 times" in one.why

    def test_a_wrong_split_withholds_every_verdict_and_says_so_first(self):
        units = rated_arms({"control": 3.0}, 550) + rated_arms({"treatment": 6.0}, 450)
        found = results(experiment(guardrails=["tokens", "rating"]), gathered(units), NOW)
        assert found.srm and found.messages[0].startswith("SAMPLE RATIO MISMATCH")
        assert {one.verdict for one in found.comparisons} <= {Verdict.WITHHELD, Verdict.NOT_ENOUGH_DATA}
        assert only(found).verdict is Verdict.WITHHELD

    def test_guardrails_do_not_make_the_decision_slower_and_secondary_metrics_do(self):
        units = rated_arms({"control": 3.0, "treatment": 3.5}, 200)
        alone = only(results(experiment(), gathered(units), NOW)).corrected
        guarded = only(results(experiment(guardrails=["cost", "tokens"]), gathered(units), NOW)).corrected
        more = only(results(experiment(secondary=["cost", "tokens"]), gathered(units), NOW)).corrected
        assert alone is not None and guarded == alone and more == pytest.approx(3 * alone)

    def test_bayesian_results_are_a_chance_to_win_and_warn_against_looking(self):
        settings_ = experiment(method="bayesian")
        found = results(settings_, gathered(rated_arms({"control": 3.0, "treatment": 3.6}, 400)), NOW)
        one = only(found)
        assert one.chance_to_win is not None and one.chance_to_win > 0.99
        assert (one.verdict, one.p_value) == (Verdict.BETTER, None)
        assert "one look" in found.messages[0]

    def test_results_are_plain_json(self):
        found = results(experiment(3), gathered(rated_arms({"control": 3, "treatment": 5, "other": 5}, 50)), NOW)
        read = json.loads(json.dumps(found.to_json()))
        assert [one["verdict"] for one in read["comparisons"]] == ["better", "better"]
        assert read["units"] == {"control": 50, "treatment": 50, "other": 50}

    def test_without_gbstats_the_error_names_what_to_install(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setitem(sys.modules, "gbstats", None)
        with pytest.raises(StatisticsMissing, match=r"pip install 'litellm-orchestration\[experiments\]'"):
            results(experiment(), gathered([]), NOW)


class TestFormulas:
    @given(st.integers(2, 10**7), st.floats(0.001, 0.4))
    @settings(max_examples=60, deadline=None)
    def test_the_boundary_is_that_of_gbstats(self, units: int, alpha: float):
        arm = SampleMeanStatistic(n=units, sum=0, sum_squares=units - 1)
        config = SequentialConfig(difference_type="absolute", alpha=alpha, sequential_tuning_parameter=2_000)
        low, high = SequentialTwoSidedTTest(arm, arm, config).confidence_interval
        assert boundary(2 * units, alpha) == pytest.approx((high - low) / 2 / (2 / units) ** 0.5)

    @given(st.floats(0.01, 10), st.floats(-10, 10), st.floats(1e-4, 1), st.floats(1e-4, 1))
    @settings(max_examples=100, deadline=None)
    def test_a_lift_of_nothing_is_ruled_out_exactly_where_no_difference_is(
        self, a: float, b: float, variance_a: float, variance_b: float
    ):
        reach, wide = 3.0, variance_a + variance_b
        found = lift_interval(Estimate(1, a, variance_a), Estimate(1, b, variance_b), reach)
        if found is not None and abs(abs(b - a) - reach * wide**0.5) > 1e-6:
            assert (found[0] <= 0 <= found[1]) == (abs(b - a) < reach * wide**0.5)

    def test_p_values_are_corrected_as_in_the_textbooks(self):
        given_ = [0.01, 0.04, 0.03, 0.005]
        assert corrected(given_, Correction.HOLM) == pytest.approx([0.03, 0.06, 0.06, 0.02])
        assert corrected(given_, Correction.BENJAMINI_HOCHBERG) == pytest.approx([0.02, 0.04, 0.04, 0.02])
        assert corrected([0.01, None], Correction.HOLM) == [0.02, None]

    @pytest.mark.parametrize("counts", [(550, 450), (500, 500), (340, 330, 330), (1000, 1100, 900)])
    def test_the_test_of_the_split_is_that_of_gbstats(self, counts: tuple[int, ...]):
        arms: dict[str, ArmMoments] = {}
        for at, count in enumerate(counts):
            arms[str(at)] = ArmMoments()
            arms[str(at)].units = count
        found = split_of([Period(dict.fromkeys(arms, 1.0), arms)])
        assert found.p_value == pytest.approx(check_srm(list(counts), [1.0] * len(counts)))
        # The evidence of four periods adds up.
        statistic = chi2.isf(found.p_value, len(counts) - 1)
        several = split_of([Period(dict.fromkeys(arms, 1.0), arms)] * 4)
        assert several.p_value == pytest.approx(chi2.sf(4 * statistic, 4 * (len(counts) - 1)))

    def test_550_to_450_is_no_even_split(self):
        units = [unit(arm) for arm, count in (("control", 550), ("treatment", 450)) for _ in range(count)]
        assert split_of(gathered(units)).srm
        assert not split_of(gathered(units, {"control": 55, "treatment": 45})).srm

    def test_one_unit_where_none_was_to_be_expected_is_no_wrong_split(self):
        units = [unit("control"), *(unit("treatment") for _ in range(9))]
        assert not split_of(gathered(units, {"control": 1, "treatment": 999})).srm

    def test_sample_sizes_are_those_of_the_textbooks(self):
        # Two arms, deviation 1, difference 0.5, alpha 0.05, power 0.8: 63 each.
        assert units_needed((1, 1), 0.5, sequential=False) == 126
        # One arm with a fifth of the units.
        assert units_needed((1, 1), 0.5, share=0.2, sequential=False) == 197
        total = units_needed((1, 1), 0.5)
        z = 0.5 * (total / 4) ** 0.5 - boundary(total, 0.05)
        assert NormalDist().cdf(z) == pytest.approx(0.8, abs=0.01)
        with pytest.raises(ValueError, match="difference"):
            units_needed((1, 1), 0)


class TestWeightsThatChanged:
    def units(self) -> list[UnitTotals]:
        """Ratings rise for everybody, and the treatment gets more and more of the units."""
        draw = random.Random(5)
        shares = enumerate((0.1, 0.5, 0.9))
        return [
            rated("treatment" if draw.random() < share else "control", draw.gauss(3 + at, 0.5), first_ms=at)
            for at, share in shares
            for _ in range(600)
        ]

    def test_units_are_compared_with_those_of_their_time(self):
        periods = Periods(
            [(at, {"control": 1 - share, "treatment": share}) for at, share in enumerate((0.1, 0.5, 0.9))]
        )
        for one in self.units():
            periods.add(one)
        found = results(experiment(), periods.all, NOW)
        one = only(found)
        assert (found.srm, one.verdict) == (False, Verdict.NO_DIFFERENCE_SEEN)
        assert one.control == pytest.approx(4.0, abs=0.1) and one.estimate == pytest.approx(4.0, abs=0.1)
        assert "weights changed" in found.messages[0]

    def test_each_period_counts_with_the_units_that_it_has(self):
        periods = Periods([(0, {"control": 9, "treatment": 1}), (1, {"control": 1, "treatment": 9})])
        for at, value, size in ((0, 2.0, 100), (1, 6.0, 300)):
            for k in range(size):
                minor = k % 10 == 0
                variant = ("treatment" if minor else "control") if at == 0 else ("control" if minor else "treatment")
                periods.add(rated(variant, value, first_ms=at))
        pair = compare(metric("rating"), periods.all, "control", "treatment")
        assert pair.control is not None and pair.variant is not None
        assert (pair.control.value, pair.variant.value) == pytest.approx((5.0, 5.0))

    def test_where_they_are_not_told_apart_nothing_is_called_a_difference(self):
        share = sum(one.variant == "treatment" for one in self.units()) / 1800
        together = gathered(self.units(), {"control": 1 - share, "treatment": share})
        assert only(results(experiment(), together, NOW)).verdict is Verdict.BETTER
        found = results(experiment(), together, NOW, undivided=True)
        assert only(found).verdict is Verdict.WITHHELD and "weights changed" in found.messages[0]

    def test_units_that_moved_are_counted(self):
        periods = Periods([(0, {"control": 1, "treatment": 1})])
        periods.add(unit("control", crossed=3))
        periods.add(unit("control"))
        assert periods.crossed == 1


class TestGuardrails:
    guarded = experiment(guardrails=["error_rate", "latency_p95", "cost", "cache_share"])

    def test_an_arm_that_always_fails_is_closed_after_a_few_units(self):
        units = [
            unit(arm, requests=3, errors=3 * (arm == "treatment"))
            for arm in ("control", "treatment")
            for _ in range(20)
        ]
        found = broken(self.guarded, gathered(units))
        assert found == {
            "treatment": "error_rate is 100.00% after the control's 0.00%, surely more than 20% worse (20 and 20 units)"
        }

    @pytest.mark.parametrize(
        ("name", "sums"),
        [
            ("latency_p95", lambda draw, bad: {"latencies": {int(draw.lognormvariate(6, 0.4) * (2 if bad else 1)): 1}}),
            ("cost", lambda draw, bad: {"cost_nano": int(1e6 * draw.lognormvariate(0, 0.4) * (2 if bad else 1))}),
            ("cache_share", lambda draw, bad: {"cached": int(draw.random() < (0.2 if bad else 0.6))}),
        ],
    )  # fmt: skip
    def test_twice_as_slow_as_dear_or_seldom_cached_is_closed_and_the_better_arm_is_not(self, name: str, sums):
        draw = random.Random(2)
        units = {bad: [sums(draw, bad) for _ in range(400)] for bad in (True, False)}
        for worse in (True, False):
            arms = [
                unit(arm, **one) for arm, bad in (("control", not worse), ("treatment", worse)) for one in units[bad]
            ]
            found = broken(self.guarded, gathered(arms))
            assert (list(found) == ["treatment"] and found["treatment"].startswith(name)) if worse else not found

    def test_a_control_of_few_units_closes_nothing(self):
        costs = {"control": [1, 9] * 10, "treatment": [8, 8.1] * 1000}
        units = [unit(arm, cost_nano=int(cost * 1e6)) for arm, spent in costs.items() for cost in spent]
        assert broken(self.guarded, gathered(units)) == {}

    def test_worse_within_the_limit_is_not_closed(self):
        draw = random.Random(4)
        costs = {"control": 1e6, "treatment": 1.15e6}
        units = [
            unit(arm, cost_nano=int(cost * draw.uniform(0.9, 1.1)), cached=int(k % 20 < cached))
            for (arm, cost), cached in zip(costs.items(), (12, 11), strict=True)
            for k in range(5000)
        ]
        assert broken(self.guarded, gathered(units)) == {}

    def test_they_load_nothing_heavy(self):
        code = (
            "import sys; import custom_router.experiments.guardrails, custom_router.experiments.bandit; "
            "import custom_router.experiments.statistics; "
            "print({'numpy', 'scipy', 'gbstats', 'pandas'} & sys.modules.keys())"
        )
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


class TestBandit:
    def test_the_likelier_best_gets_more_and_everybody_keeps_a_floor(self):
        units = rated_arms({"control": 3.0, "treatment": 3.3, "other": 2.0}, 60)
        periods = gathered(units, {"control": 1, "treatment": 1, "other": 1})
        weights = thompson_weights(experiment(3), periods, seed=7)
        assert weights["treatment"] > weights["control"] > weights["other"] == 0.1
        assert sum(weights.values()) == pytest.approx(1)
        assert thompson_weights(experiment(3), periods, seed=7) == weights

    def test_of_two_arms_the_share_is_the_probability_to_be_better(self):
        periods = gathered(rated_arms({"control": 3.0, "treatment": 3.1}, 100))
        pair = compare(metric("rating"), periods, "control", "treatment")
        assert pair.control is not None and pair.variant is not None
        error = (pair.control.error_squared + pair.variant.error_squared) ** 0.5
        chance = NormalDist().cdf((pair.variant.value - pair.control.value) / error)
        found = thompson_weights(experiment(), periods, draws=50_000)["treatment"]
        assert found == pytest.approx(0.1 + 0.8 * chance, abs=0.01)

    def test_lower_costs_win(self):
        draw = random.Random(1)
        costs = {"control": 2e6, "treatment": 1e6}
        units = [
            unit(arm, cost_nano=int(cost * draw.uniform(0.5, 1.5))) for arm, cost in costs.items() for _ in range(50)
        ]
        assert thompson_weights(experiment(primary="cost"), gathered(units))["treatment"] == pytest.approx(0.9)

    def test_shares_stay_until_there_is_something_to_go_by_and_a_closed_arm_gets_none(self):
        few = gathered(rated_arms({"control": 3.0, "treatment": 5.0}, 5), {"control": 3, "treatment": 1})
        assert thompson_weights(experiment(), few) == {"control": 0.75, "treatment": 0.25}
        units = rated_arms({"control": 3.0, "treatment": 5.0, "other": 9.0}, 50)
        closed = gathered(units, {"control": 1, "treatment": 1, "other": 0})
        assert thompson_weights(experiment(3), closed) == pytest.approx({"control": 0.1, "treatment": 0.9, "other": 0})


class TestSimulation:
    def test_it_judges_as_the_results_do(self):
        judged, compared = simulation.experiment(), 0
        for chunk in simulation.simulated(World(lift=(0.05, 0.5, 0.1)), 6, 10, 120, seed=8):
            p_values = simulation.Estimates.from_looks(chunk).p_values()
            adjusted, splits = simulation.holm(p_values), simulation.split_p_values(chunk.units)
            surely = simulation.split_always_valid(chunk.units)
            for number in range(6):
                for look in range(10):
                    found = results(judged, [chunk.period(number, look)], NOW)
                    for at, name in enumerate(simulation.METRICS):
                        one = only(found, name)
                        if one.p_value is not None and one.corrected is not None and not found.srm:
                            compared += 1
                            assert one.p_value == pytest.approx(p_values[number, look, at], rel=1e-6, abs=1e-12)
                            assert one.corrected == pytest.approx(adjusted[number, look, at], rel=1e-6, abs=1e-12)
                    assert found.split.p_value == pytest.approx(splits[number, look])
                    assert found.split.always_valid == pytest.approx(surely[number, look])
        assert compared > 100

    def test_looking_fifty_times_finds_no_more_than_alpha(self):
        found = simulation.false_positives(World(), experiments=200, looks=50, every=40)
        assert found.primary.share <= ALPHA and found.any_metric.share <= ALPHA
        # The same looks with a test for one look.
        assert found.fixed.share > 0.15
        assert found.split_surely.share <= 0.02

    def test_guardrails_that_are_looked_at_all_the_time_close_hardly_any_arm_at_the_limit(self):
        at_limit, _ = simulation.closings(World(lift=(0.0, 0.2, 0.2), error_rate=0.1), 200, looks=50, every=20)
        assert at_limit.share <= ALPHA
        failing, units = simulation.closings(World(lift=(0.0, 9.0, 0.0), error_rate=0.05), 100, looks=40, every=10)
        assert failing.share == 1 and max(units) <= 200


def test_every_built_in_metric_can_be_compared():
    draw = random.Random(9)
    units = [
        unit(
            arm,
            requests=(n := draw.randint(2, 9)),
            errors=draw.randint(0, 1),
            refusals=draw.randint(0, 1),
            cached=draw.randint(0, 1),
            degraded=draw.randint(0, 1),
            displaced=draw.randint(0, 1),
            cost_nano=n * draw.randint(1, 9),
            latency_ms_sum=n * (ms := draw.randint(100, 900)),
            latency_count=n,
            latencies={ms: n},
            ttft_sum=ms,
            ttft_count=n,
            tokens=n * draw.randint(9, 99),
        )
        for arm in ("control", "treatment")
        for _ in range(200)
    ]
    found = results(
        experiment(primary="cost", secondary=[name for name in BUILT_IN if name != "cost"]), gathered(units), NOW
    )
    assert {one.metric for one in found.comparisons} == set(BUILT_IN)
    assert [
        (one.metric, one.why) for one in found.comparisons if one.corrected is None or one.still_needed is None
    ] == []
