"""Who is in which experiment, with which variant, and what keeps it so."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.context import Caller, RequestContext
from core.errors import ConfigError
from core.facts import Facts
from core.settings.models.experiments import Experiment, Holdout
from custom_router.experiments.allocation import (
    Ranges,
    bucket_counts,
    buckets_moved,
    first_ranges,
    from_json,
    moved,
    ranges_in_force,
    to_json,
    variants_in,
)
from custom_router.experiments.assignment import Assigned, Assigner, CompiledExperiment
from custom_router.experiments.hashing import BUCKETS, DRAWS, unit_draw

NOW = int(datetime(2026, 3, 10, 12, tzinfo=UTC).timestamp() * 1000)
USERS = [f"user-{number:05}" for number in range(2000)]


def experiment(name: str = "models", **fields: Any) -> Experiment:
    fields = {
        "policy": "smart",
        "status": "running",
        "variants": [{"id": "control", "model": "large"}, {"id": "treatment", "model": "small"}],
        **fields,
    }
    return Experiment.model_validate({"id": name, **fields})


def prompts(name: str, field: str = "temperature", **fields: Any) -> Experiment:
    """One that leaves the model alone."""
    return experiment(name, variants=[{"id": "control"}, {"id": "treatment", "set": {field: 1}}], **fields)


def assigner(*experiments: Experiment, held_out: float = 0.0, **state: Any) -> Assigner:
    return Assigner(experiments, Holdout(share=held_out), state.get("stored", {}), state.get("closed"))


def anything(_: CompiledExperiment) -> str | None:
    return None


def request(user: str | None = "ada", **fields: Any) -> RequestContext:
    caller = Caller(user_id=user, team_id=fields.pop("team", None), key_hash=fields.pop("key", None))
    return RequestContext("r", "chat_completions", caller, "smart", time_ms=NOW, **fields)


def assigned(to: Assigner, context: RequestContext, now_ms: int = NOW, ineligible: Any = anything) -> list[Assigned]:
    return list(to.assign("smart", context, Facts(context), now_ms, ineligible))


def explained(to: Assigner, context: RequestContext, now_ms: int = NOW, ineligible: Any = anything) -> list[str]:
    return to.explain("smart", context, Facts(context), now_ms, ineligible)


def variants(to: Assigner, name: str = "models", now_ms: int = NOW) -> dict[str, str]:
    """The variants of those users that are in an experiment and counted."""
    return {
        user: one[0].variant.id
        for user in USERS
        for one in assigned(to, request(user), now_ms)
        if one[0].experiment == name and one[0].counted
    }


# -- the same for good ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_unit_has_the_same_variant_in_another_process_and_beside_other_experiments() -> None:
    script = (
        "import json; from tests.unit.test_experiment_assignment import *;"
        "print(json.dumps(variants(assigner(prompts('other'), experiment(), prompts('third', 'top_p')))))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(run.stdout) == variants(assigner(experiment()))


def test_a_new_seed_assigns_everybody_anew() -> None:
    before, after = variants(assigner(experiment())), variants(assigner(experiment(seed="second-try")))
    assert 0.45 < sum(before[user] != after[user] for user in USERS) / len(USERS) < 0.55


# -- shares and independence, over a million units -----------------------------------------------------------------

MILLION = 1_000_000


def draws(seed: str) -> "np.ndarray[Any, np.dtype[np.uint64]]":
    """`unit_draw` of the users user-0000000 to user-0999999."""

    def step(state: Any, codes: Any) -> Any:
        return ((state ^ codes) * np.uint64(0x01000193)) & np.uint64(0xFFFFFFFF)

    def digits(numbers: Any, place: int) -> Any:
        return numbers // np.uint64(10**place) % np.uint64(10) + np.uint64(48)

    users = np.arange(MILLION, dtype=np.uint64)
    states = np.full(MILLION, 0x811C9DC5, dtype=np.uint64)
    for code in f"{seed}user-".encode():
        states = step(states, np.uint64(code))
    for place in reversed(range(7)):
        states = step(states, digits(users, place))
    found = np.full(MILLION, 0x811C9DC5, dtype=np.uint64)
    for place in reversed(range(10)):
        found = np.where(states >= 10**place if place else True, step(found, digits(states, place)), found)
    return found


def within_binomial(count: int, of: int, share: float) -> bool:
    return abs(count - of * share) <= 3.2905 * (of * share * (1 - share)) ** 0.5


def chi_square(table: Any) -> float:
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True) / table.sum()
    return float(((table - expected) ** 2 / expected).sum())


@pytest.fixture(scope="module")
def drawn() -> "dict[str, np.ndarray[Any, np.dtype[np.uint64]]]":
    found = {seed: draws(seed) for seed in ("large-vs-small", "prompt-v2", "holdout:holdout")}
    for seed, numbers in found.items():
        sample = range(0, MILLION, 1999)
        assert [int(numbers[at]) for at in sample] == [unit_draw(seed, f"user-{at:07}") for at in sample]
    return found


def test_shares_of_a_million_units_are_within_the_binomial_999_per_mille_interval(drawn: Any) -> None:
    for weights in ({"a": 50, "b": 50}, {"a": 90, "b": 9, "c": 1}, {"a": 1, "b": 1, "c": 1}):
        for seed in ("large-vs-small", "prompt-v2"):
            buckets = np.bincount((drawn[seed] % BUCKETS).astype(np.int64), minlength=BUCKETS)
            for variant, ((start, end),) in first_ranges(weights):
                got = int(buckets[start:end].sum())
                assert within_binomial(got, MILLION, (end - start) / BUCKETS), (seed, variant, got)


def test_the_traffic_of_a_million_units_has_its_share_and_splits_like_the_whole(drawn: Any) -> None:
    for traffic in (0.05, 0.25, 0.5):
        inside = drawn["large-vs-small"] < int(traffic * DRAWS)
        assert within_binomial(int(inside.sum()), MILLION, traffic)
        control = int((drawn["large-vs-small"][inside] % BUCKETS < 5000).sum())
        assert within_binomial(control, int(inside.sum()), 0.5)


def test_experiments_and_the_holdout_do_not_correlate(drawn: Any) -> None:
    half = drawn["large-vs-small"] % BUCKETS // (BUCKETS // 2)
    thirds = drawn["prompt-v2"] % BUCKETS * 3 // BUCKETS
    traffic = (drawn["prompt-v2"] < DRAWS // 4).astype(np.uint64)
    held_out = (drawn["holdout:holdout"] < DRAWS // 10).astype(np.uint64)
    # Critical values of chi-square at 0.001 for 1 and 2 degrees of freedom.
    for other, columns, critical in ((thirds, 3, 13.816), (traffic, 2, 10.828), (held_out, 2, 10.828)):
        table = np.bincount((half * columns + other).astype(np.int64), minlength=2 * columns).reshape(2, columns)
        assert chi_square(table) < critical


# -- weights -------------------------------------------------------------------------------------------------------

names = st.sampled_from([f"v{number}" for number in range(7)])
weightings = st.dictionaries(names, st.one_of(st.integers(0, 100), st.floats(0, 100)), min_size=1, max_size=7).filter(
    lambda weights: sum(weights.values()) > 0
)


@given(st.lists(weightings, min_size=2, max_size=6))
@settings(max_examples=80, deadline=None)
def test_a_change_of_weights_moves_exactly_the_growths(history: list[dict[str, float]]) -> None:
    ranges = first_ranges(history[0])
    for weights in history[1:]:
        before = dict.fromkeys(weights, 0) | {variant: sum(b - a for a, b in owned) for variant, owned in ranges}
        changed = moved(ranges, weights)
        held = {variant: sum(b - a for a, b in owned) for variant, owned in changed}
        assert held == bucket_counts(weights)
        growth = sum(max(0, count - before[variant]) for variant, count in held.items())
        assert buckets_moved(ranges, changed) == growth
        assert moved(changed, weights) == changed
        assert from_json(json.loads(json.dumps(to_json(changed)))) == changed
        ranges = changed


def test_ranges_stay_few_however_often_weights_change() -> None:
    random = np.random.default_rng(5)
    ranges = first_ranges(dict.fromkeys("abcde", 1.0))
    most = 0
    for _ in range(500):
        ranges = moved(ranges, dict(zip("abcde", random.dirichlet(np.full(5, 2.0)).tolist(), strict=True)))
        most = max(most, sum(len(owned) for _, owned in ranges))
    assert most <= 25


def test_a_weight_however_small_has_somebody() -> None:
    assert bucket_counts({"a": 1e9, "b": 1, "c": 0}) == {"a": BUCKETS - 1, "b": 1, "c": 0}


def test_adding_a_variant_takes_from_the_others_only_what_it_gets() -> None:
    before = assigner(experiment())
    three = [
        {"id": "control", "model": "large"},
        {"id": "treatment", "model": "small"},
        {"id": "third", "model": "new"},
    ]
    after = assigner(experiment(variants=three), stored=before.ranges)
    old, new = variants(before), variants(after)
    assert {new[user] for user in USERS if old[user] != new[user]} == {"third"}
    assert 0.30 < sum(variant == "third" for variant in new.values()) / len(USERS) < 0.37


def test_stored_ranges_stand_where_the_bandit_has_moved_them() -> None:
    learned: Ranges = (("control", ((0, 1000),)), ("treatment", ((1000, BUCKETS),)))
    assert ranges_in_force(experiment(allocation="thompson"), learned) == learned
    assert bucket_counts({"control": 1, "treatment": 1}) == {
        variant: sum(end - start for start, end in owned)
        for variant, owned in ranges_in_force(experiment(allocation="fixed"), learned)
    }


@pytest.mark.parametrize(
    ("stored", "problem"),
    [
        ([["a", [[0, 5000]]], ["b", [[6000, 10000]]]], "buckets 5000 to 6000 belong to nobody"),
        ([["a", [[0, 5000]]], ["b", [[4000, 10000]]]], "buckets 4000 to 5000 belong to two variants"),
        ([["a", [[0, 5000]]]], "end at 5000"),
        ([["a", [[0, 20000]]]], "a has"),
        ([["a", [[0, 10000]]], ["a", []]], "no variant of its own"),
        ({"a": [[0, 10000]]}, "no list"),
    ],
)
def test_ranges_that_do_not_give_each_bucket_to_one_variant_are_refused(stored: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        from_json(stored)


# -- who takes part ------------------------------------------------------------------------------------------------


def test_a_ramp_only_adds_units_and_none_changes_its_variant() -> None:
    ramp = {"2026-03-01": 0.05, "2026-03-08": 0.25, "2026-03-15": 0.5}
    steps = [{"at": f"{day}T00:00:00Z", "traffic": traffic} for day, traffic in ramp.items()]
    to = assigner(experiment(traffic=0.0, ramp=steps))
    reached: dict[str, str] = {}
    for day, traffic in ({"2026-02-28": 0.0} | ramp).items():
        stage = variants(to, now_ms=int(datetime.fromisoformat(f"{day}T00:00:00Z").timestamp() * 1000))
        assert reached.items() <= stage.items()
        assert within_binomial(len(stage), len(USERS), traffic)
        reached = stage


def test_weights_that_change_in_the_middle_of_a_ramp_change_nobodys_part() -> None:
    before = assigner(experiment(traffic=0.25))
    lopsided = [{"id": "control", "model": "large", "weight": 90}, {"id": "treatment", "model": "small", "weight": 10}]
    after = assigner(experiment(traffic=0.25, variants=lopsided), stored=before.ranges)
    before_change, after_change = variants(before), variants(after)
    assert before_change.keys() == after_change.keys()
    assert {after_change[user] for user, variant in before_change.items() if variant == "control"} == {"control"}


def test_parts_of_a_namespace_have_no_unit_in_common() -> None:
    first = prompts("first", "temperature", namespace={"id": "shared", "range": [0, 0.4]})
    second = prompts("second", "top_p", namespace={"id": "shared", "range": [0.4, 1]})
    to = assigner(first, second)
    in_first, in_second = variants(to, "first").keys(), variants(to, "second").keys()
    assert not in_first & in_second
    assert len(in_first | in_second) == len(USERS)
    assert 0.36 < len(in_first) / len(USERS) < 0.44


def test_who_is_held_out_is_in_no_experiment() -> None:
    whole = assigner(prompts("first"), prompts("second", "top_p"))
    some = assigner(prompts("first"), prompts("second", "top_p"), held_out=0.1)
    staying = variants(some, "first")
    assert staying.keys() == variants(some, "second").keys()
    assert staying.items() < variants(whole, "first").items()
    assert 0.08 < 1 - len(staying) / len(USERS) < 0.12


def test_the_holdout_is_drawn_apart_from_an_experiment_of_its_name() -> None:
    inside = variants(assigner(experiment("holdout", traffic=0.5), held_out=0.5), "holdout")
    assert within_binomial(len(inside), len(USERS), 0.25)


def test_experiments_that_change_different_things_have_a_unit_together() -> None:
    both = assigned(assigner(experiment(), prompts("prompt")), request())
    assert [one[0].experiment for one in both] == ["models", "prompt"]


def test_of_experiments_that_change_the_same_the_first_has_the_unit() -> None:
    to = assigner(experiment("first", traffic=0.5), experiment("second"))
    in_first, in_second = variants(to, "first").keys(), variants(to, "second").keys()
    assert in_first and in_first | in_second == set(USERS) and not in_first & in_second


def test_each_kind_of_unit_is_what_keeps_its_variant() -> None:
    to = assigner(
        *(
            prompts(unit, field, unit=unit)
            for unit, field in zip(
                ("user", "team", "key", "session"), ("temperature", "top_p", "seed", "max_tokens"), strict=True
            )
        )
    )
    context = request("ada", team="research", key="k1", session_id="s1")
    assert [one[1] for one in assigned(to, context)] == ["ada", "research", "k1", "s1"]


def test_forced_units_get_their_variant_and_are_not_counted() -> None:
    for status in ("draft", "running"):
        to = assigner(experiment(traffic=0.0, forced={"ada": "treatment"}, status=status), held_out=1.0)
        (one,) = assigned(to, request("ada"))
        assert (one[0].variant.id, one[0].counted) == ("treatment", False)
    assert assigned(assigner(experiment(forced={"ada": "treatment"}, status="paused")), request("ada")) == []


def test_forced_units_are_not_drawn_where_they_may_not_have_the_variant() -> None:
    to = assigner(experiment(forced={"ada": "treatment"}))
    assert assigned(to, request("ada"), ineligible=lambda _: "tier free may not use large") == []


def test_a_promoted_variant_goes_to_the_audience_and_needs_no_unit() -> None:
    to = assigner(experiment(status="stopped", promote="treatment", audience={"task_type": ["chat"]}))
    (one,) = assigned(to, request(None, task_type="chat"))
    assert (one[0].variant.id, one[1], one[0].counted) == ("treatment", "", False)
    assert assigned(to, request(None, task_type="coding")) == []


def test_a_promoted_variant_asks_for_its_own_model_alone() -> None:
    seen: list[tuple[str, ...]] = []
    assigned(
        assigner(experiment(status="stopped", promote="treatment")),
        request(),
        ineligible=lambda one: seen.append(one.models),
    )
    assert seen == [("small",)]


def test_a_promoted_variant_gives_way_to_an_experiment_that_runs() -> None:
    to = assigner(experiment("old", status="stopped", promote="treatment"), experiment("new"))
    assert [one[0].experiment for one in assigned(to, request())] == ["new"]


def test_a_closed_arm_gets_the_control_uncounted_and_the_others_stay() -> None:
    three = [{"id": "control", "model": "large"}, {"id": "bad", "model": "small"}, {"id": "good", "model": "new"}]
    before = assigner(experiment(variants=three))
    after = before.with_state({}, {"models": frozenset({"bad", "control"})})
    old = variants(before)
    for user in USERS[:200]:
        (one,) = assigned(after, request(user))
        assert one[0].of == old[user]
        assert (one[0].variant.id, one[0].counted) == (("control", False) if one[0].of == "bad" else (one[0].of, True))


def test_an_audience_that_fails_keeps_the_request_out_and_is_counted() -> None:
    to = assigner(experiment(audience="metadata.size > 3"))
    assert len(assigned(to, request(metadata={"size": 4}))) == 1
    assert assigned(to, request(metadata={"size": "large"})) == []
    assert to.failures == {"models": 1}
    explained(to, request(metadata={"size": "large"}))
    assert to.failures == {"models": 1}


def no_large(one: CompiledExperiment) -> str | None:
    return "tier free may not use large" if "large" in one.models else None


@pytest.mark.parametrize(
    ("fields", "context", "reason"),
    [
        ({"status": "draft"}, request(), "it is a draft"),
        ({"status": "paused"}, request(), "it is paused"),
        ({"status": "stopped"}, request(), "it is stopped"),
        ({"start": "2026-04-01T00:00:00Z"}, request(), "it starts at 2026-04-01T00:00:00+00:00"),
        ({"end": "2026-03-10T12:00:00Z"}, request(), "it ended at 2026-03-10T12:00:00+00:00"),
        ({"unit": "session"}, request(), "the request has no session"),
        ({"traffic": 0.0}, request(), "the user is not in the 0 of the traffic that takes part"),
        ({"audience": {"task_type": ["chat"]}}, request(task_type="coding"), "the request is not of its audience"),
        ({"namespace": {"id": "n", "range": [0, 0.001]}}, request(), "the user is in another part of the namespace n"),
        ({}, request(), "tier free may not use large"),
    ],
)
def test_what_keeps_a_request_out_is_said(fields: Any, context: RequestContext, reason: str) -> None:
    to = assigner(experiment(**fields))
    assert explained(to, context, ineligible=no_large) == [f"models: not in it, since {reason}"]
    assert assigned(to, context, ineligible=no_large) == []


def test_what_another_experiment_and_the_holdout_keep_is_said() -> None:
    to = assigner(experiment("first", forced={"ada": "control"}), experiment("second"))
    assert explained(to, request("ada")) == [
        "first: control, since the user is forced into it",
        "second: not in it, since first changes the same and has the request",
    ]
    held_out = explained(assigner(experiment(), held_out=1.0), request())
    assert held_out == ["models: not in it, since the user is held out of all experiments"]


def test_a_policy_without_experiments_that_are_live_assigns_nothing() -> None:
    to = assigner(experiment(status="paused"), experiment("elsewhere", policy="other"))
    assert not to.assigns_to("smart") and not to.assigns_to("nowhere") and to.assigns_to("other")
    assert variants_in(to.ranges["models"]).owner(0) == "control"
