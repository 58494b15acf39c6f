"""A proposal, tried out: where recorded requests would go, what that costs, who is refused, which budgets are hit."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from core.cli.simulate import print_comparison
from core.settings import Settings
from core.store import Store, open_store
from core.usage import UsageEvent
from custom_router.candidates import Candidate
from custom_router.comparison import compared
from custom_router.recordings import Job, Span, prepared, run, spans
from custom_router.replay import Recorded
from custom_router.simulation import Proposal, Simulator, Tally

NOON = 1_767_268_800_000
"""2026-01-01T12:00Z, Unix milliseconds."""
DAY = 86_400_000
CANDIDATES = {
    "large": Candidate("large", input_nano=10_000, output_nano=30_000),
    "small": Candidate("small", input_nano=1_000, output_nano=2_000),
    "free-of-prices": Candidate("free-of-prices"),
}
SMART = {"policies": {"smart": {"candidates": ["large", "small"]}}}
TO_SMALL = {"routing": {"policies": {"smart": {"candidates": ["small", "large"]}}}}


def row(**more: Any) -> Recorded:
    """A request for `smart` that `large` answered, with 100 tokens in and 10 out."""
    said = {"endpoint": "chat_completions", "groups": "[]", "user_id": "ada", "asked_model": "smart", "status": 200}
    sums = {"used_model": "large", "input_tokens": 100, "output_tokens": 10, "cost_nano": 1_300_000}
    return Recorded(**{**dict.fromkeys(Recorded._fields), "time_ms": NOON, "streamed": 0, **said, **sums, **more})


def refused(error: str, status: int = 403, **more: Any) -> Recorded:
    nothing = {"used_model": None, "input_tokens": 0, "output_tokens": 0, "cost_nano": 0}
    return row(**nothing, status=status, error_class=error, **more)


def simulated(sections: dict[str, Any], *rows: Recorded, sample: float = 1.0, **proposal: Any) -> dict[str, Any]:
    tried = Proposal(sections, CANDIDATES, **proposal)
    tally = Simulator(tried).tally(rows)
    return compared(tally, tried.settings, [Span(NOON, NOON + DAY, len(rows))], sample)


def sides(found: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Requests of each model, before and after."""
    return {one["model"]: (one["before"]["requests"], one["after"]["requests"]) for one in found["models"]}


# -- where requests go and what they cost ------------------------------------------------------------------------------


def test_what_stays_costs_the_same_and_what_moves_its_tokens_at_the_new_price() -> None:
    staying = simulated({"routing": SMART}, row(), row())
    assert sides(staying) == {"large": (2, 2)}
    assert staying["cost"] == {
        "recorded": "0.002600000",
        "before": "0.002600000",
        "after": "0.002600000",
        "change": 0.0,
    }
    assert staying["moved"] == []

    moving = simulated(TO_SMALL, row(task_type="chat"), row(task_type="chat"))
    assert sides(moving) == {"large": (2, 0), "small": (0, 2)}
    assert (moving["cost"]["before"], moving["cost"]["after"]) == ("0.002600000", "0.000240000")
    assert moving["moved"] == [
        {
            "task_type": "chat",
            "from": "large",
            "to": "small",
            "requests": 2,
            "cost_before": "0.002600000",
            "cost_after": "0.000240000",
        }
    ]
    [large, small] = moving["models"]
    assert (large["before"]["share"], small["after"]["share"]) == (1.0, 1.0)
    assert small["after"]["mean_cost"] == "0.000120000"


def test_the_prices_are_the_proposals_and_what_was_recorded_is_told_beside_them() -> None:
    found = simulated({"routing": SMART}, row(cost_nano=5_000_000))
    assert (found["cost"]["recorded"], found["cost"]["before"]) == ("0.005000000", "0.001300000")


def test_what_has_no_price_keeps_its_recorded_cost_and_that_is_said() -> None:
    to_unpriced = {"routing": {"policies": {"smart": {"candidates": ["free-of-prices"]}}}}
    found = simulated(to_unpriced, row())
    assert found["cost"]["after"] == "0.001300000"
    assert any("prices of requests were not known" in note for note in found["notes"])


def test_what_a_cache_answered_is_of_no_model_and_free() -> None:
    found = simulated(TO_SMALL, row(used_model=None, cost_nano=0))
    assert found["models"] == []
    assert any("answered by a cache" in note for note in found["notes"])


def test_measured_latencies_and_lengths_of_answers_decide_where_an_objective_looks_at_them() -> None:
    fastest = {"routing": {"policies": {"smart": {"candidates": ["large", "small"], "objective": "latency"}}}}
    measured = {("large", False): 900.0, ("small", False): 100.0}
    assert sides(simulated(fastest, row(), latency_ms=measured)) == {"large": (1, 0), "small": (0, 1)}


def test_experiments_share_requests_by_their_weights() -> None:
    variants = [{"id": "control", "model": "large", "weight": 80}, {"id": "treatment", "model": "small", "weight": 20}]
    experiment = {"id": "ab", "policy": "smart", "variants": variants, "status": "running"}
    rows = [row(user_id=f"user-{number}") for number in range(2000)]
    found = simulated({"routing": {**SMART, "experiments": [experiment]}}, *rows)
    shares = {one["variant"]: one["share"] for one in found["experiments"]}
    assert shares["control"] == pytest.approx(0.8, abs=0.04)


def test_units_of_a_running_experiment_stay_in_the_arm_that_the_store_says() -> None:
    variants = [{"id": "control", "model": "large"}, {"id": "treatment", "model": "small"}]
    experiment = {"id": "ab", "policy": "smart", "variants": variants, "status": "running"}
    routing = {**SMART, "experiments": [experiment]}
    rows = [row(user_id=f"user-{number}") for number in range(200)]
    swapped = {"ab": (("control", ((5_000, 10_000),)), ("treatment", ((0, 5_000),)))}
    counts = [sides(simulated({"routing": routing}, *rows, ranges=ranges))["large"][1] for ranges in ({}, swapped)]
    assert sum(counts) == 200, "whoever is in the one is in the other with swapped ranges"


# -- who is refused ----------------------------------------------------------------------------------------------------


def test_refusals_are_told_by_tier_and_model_and_whether_they_are_new() -> None:
    rule = {"id": "no-code", "when": {"task_type": "coding"}, "deny": "Not here."}
    tiers = {"free": {"models": ["small"]}, "premium": {"models": ["*"]}}
    sections = {"tiers": tiers, "default_tier": "free", "routing": {**SMART, "rules": [rule]}}
    found = simulated(
        sections,
        row(tier="free", asked_model="large"),
        refused("ModelNotAllowed", tier="free", asked_model="large"),
        row(tier="premium", task_type="coding"),
        row(tier="premium"),
        refused("ModelNotAllowed", tier="premium"),
        refused("BudgetExceeded", 429, tier="premium"),
        refused("RateLimited", 429, tier="premium"),
    )
    now = {(one["tier"], one["model"], one["why"]): one for one in found["refused"]["now"]}
    by_tier = now["free", "large", "the tier leaves no model"]
    assert (by_tier["requests"], by_tier["not_refused_then"]) == (2, 1)
    by_rule = now["premium", "smart", "rule no-code denies it"]
    assert (by_rule["requests"], by_rule["not_refused_then"]) == (1, 1)
    refusals = {name: value for name, value in found["refused"].items() if name != "now"}
    assert refusals == {
        "by_routing_then": 2,
        "by_routing_now": 3,
        "admitted_now": 1,
        "by_budgets_then": 1,
        "otherwise_then": 1,
    }
    assert found["rules"] == [{"id": "no-code", "requests": 1}]
    assert sides(found) == {"large": (3, 2)}, "what a budget or a limit refused stays refused"


def test_what_is_admitted_now_costs_what_such_requests_are_expected_to() -> None:
    once = refused("ModelNotAllowed", traits='{"t":1000,"o":50}')
    found = simulated(TO_SMALL, once, output_tokens={("small", None): 200})
    assert found["cost"]["after"] == "0.001100000", "1,000 tokens in, and no more than 50 out"


def test_callers_of_a_tier_that_is_gone_have_the_default() -> None:
    sections = {"tiers": {"basic": {"models": ["small"]}}, "default_tier": "basic", "routing": SMART}
    found = simulated(sections, row(tier="premium"))
    assert sides(found) == {"large": (1, 0), "small": (0, 1)}
    assert "Callers of tiers that are gone (premium) have basic." in found["notes"]


# -- budgets -----------------------------------------------------------------------------------------------------------


def test_budgets_count_what_was_and_what_would_be_spent_in_each_period_and_account() -> None:
    budgets = [
        {"budget_id": "daily", "per": "user", "total_budget": 0.002, "reset_period": "DAILY"},
        {"budget_id": "of-large", "models": ["large"], "total_budget": 1},
    ]
    rows = [row(), row(), row(time_ms=NOON + DAY), row(user_id="bob")]
    [daily, of_large] = simulated({**TO_SMALL, "budgets": budgets}, *rows)["budgets"]
    assert (daily["accounts"], daily["before"]["over"], daily["after"]["over"]) == (3, 1, 0)
    [worst] = daily["worst"]
    assert (worst["member"], worst["period_start_ms"]) == ("ada", NOON - DAY // 2)
    assert (worst["total"], worst["before"], worst["after"]) == ("0.002000000", "0.002600000", "0.000240000")
    assert (of_large["before"]["spent"], of_large["after"]["spent"]) == ("0.005200000", "0.000000000")


def test_budgets_count_what_was_paid_and_by_how_much_moving_changes_it() -> None:
    """With half off for a cached prompt, say."""
    budgets = [{"budget_id": "all", "total_budget": 1}]
    found = simulated({**TO_SMALL, "budgets": budgets}, row(cost_nano=650_000))
    [all_of_it] = found["budgets"]
    assert (all_of_it["before"]["spent"], all_of_it["after"]["spent"]) == ("0.000650000", "0.000060000")
    assert "what was recorded as $0.000650000 costs $0.001300000" in found["notes"][0]
    staying = simulated({"routing": SMART, "budgets": budgets}, row(cost_nano=650_000))["budgets"][0]
    assert staying["before"] == staying["after"]


def test_of_a_sample_budgets_are_scaled_up_to_all() -> None:
    budgets = [{"budget_id": "all", "total_budget": 0.005}]
    found = simulated({"routing": SMART, "budgets": budgets}, row(), sample=0.25)
    assert found["budgets"][0]["before"] == {"spent": "0.005200000", "over": 1}
    assert found["cost"]["recorded"] == "0.001300000"


# -- what cannot be known ----------------------------------------------------------------------------------------------


def test_what_begins_later_and_strategies_that_were_not_asked_are_said() -> None:
    late = {"id": "late", "when": "true", "use": ["small"], "valid_from": "2026-02-01T00:00:00Z"}
    policies = {"smart": {"candidates": ["large", "small"], "objective": "mine"}}
    routing = {"policies": policies, "rules": [late], "strategies": {"mine": "package.Mine"}}
    found = simulated({"routing": routing}, row(), row(traits="{"))
    told = "\n".join(found["notes"])
    assert "The strategy mine was not asked about 1 requests" in told
    assert "The rule late begins at 2026-02-01T00:00:00+00:00, after all of these requests" in told
    assert "1 requests were recorded in a form that this version cannot read" in told


# -- over a store ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def store(tmp_path: Path) -> Any:
    opened = open_store(f"sqlite:///{tmp_path}/store.db")
    await opened.upgrade()
    yield opened
    await opened.close()


def event(place: int) -> UsageEvent:
    return UsageEvent(
        request_id=f"r{place}",
        time_ms=NOON + place // 3,  # several in each millisecond
        endpoint="chat_completions",
        status=200,
        user_id=f"user-{place % 7}",
        asked_model="smart",
        used_model="large" if place % 2 else "small",
        task_type="chat",
        input_tokens=100,
        output_tokens=10,
        cost_nano=1_300_000,
        latency_ms=500 if place % 2 else 100,
    )


async def test_each_request_is_in_one_span_and_the_newest_are_taken_where_there_are_too_many(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("custom_router.recordings._CHUNK", 100)
    await store.usage.write([event(place) for place in range(1050)])
    found = await spans(store, NOON, NOON + DAY)
    assert len(found) > 8
    assert [span.until_ms for span in found[:-1]] == [span.since_ms for span in found[1:]]
    counts = [[len(rows) async for rows in store.usage.replay(span.since_ms, span.until_ms)] for span in found]
    assert sum(map(sum, counts)) == 1050
    newest = await spans(store, NOON, NOON + DAY, most=300)
    assert newest[-2:] == found[-2:]
    assert 297 <= sum(span.requests for span in newest) <= 300, "those of one millisecond stay together"
    assert await spans(store, NOON + DAY, NOON + 2 * DAY) == []


async def test_a_proposal_is_prepared_from_the_store_and_run_on_it(store: Store, tmp_path: Path) -> None:
    await store.usage.write([event(place) for place in range(300)])
    fastest = {"routing": {"policies": {"smart": {"candidates": ["large", "small"], "objective": "latency"}}}}
    proposal, wanted = await prepared(store, {**fastest, "keys": []}, CANDIDATES, NOON, NOON + DAY)
    assert proposal.latency_ms == {("large", False): 500.0, ("small", False): 100.0}
    assert proposal.output_tokens["large", "chat"] == 10
    assert (proposal.had_tiers, set(proposal.sections)) == (False, {"routing"})
    told: list[int] = []
    job = Job(proposal, f"sqlite:///{tmp_path}/store.db", wanted)
    tally = await in_thread(job, told)
    assert (tally.requests, sum(told)) == (300, 300)
    assert tally.after["small"][0] == 300
    half = await in_thread(Job(proposal, job.store, wanted, 0.5), [])
    assert 100 < half.requests < 200
    assert "store.db" not in repr(job)


async def in_thread(job: Job, told: list[int]) -> Tally:
    return await asyncio.to_thread(run, job, 1, told.append)


def test_tallies_add_up_to_that_of_all() -> None:
    simulator = Simulator(Proposal(TO_SMALL, CANDIDATES))
    rows = [row(), row(used_model="small"), refused("ModelNotAllowed"), row(asked_model="large")]
    parts = Tally()
    for one in rows:
        parts.add(simulator.tally([one]))
    assert parts == simulator.tally(rows)


# -- on paper ----------------------------------------------------------------------------------------------------------


def test_tables_say_what_the_json_says(capsys: pytest.CaptureFixture[str]) -> None:
    tiers = {"free": {"models": ["small"]}, "premium": {}}
    budgets = [{"budget_id": "daily", "per": "user", "total_budget": 0.002, "reset_period": "DAILY"}]
    sections = {**TO_SMALL, "tiers": tiers, "default_tier": "free", "budgets": budgets}
    rows = [row(tier="free", task_type="chat"), row(tier="free", asked_model="large"), row(tier="premium")]
    found = simulated(sections, *rows)
    assert json.loads(json.dumps(found)) == found
    print_comparison(found)
    printed = capsys.readouterr().out
    assert "3 requests from 2026-01-01 12:00:00Z" in printed
    assert "Cost $0.0039 before, $0.00024 after (-93.8%)" in printed
    assert "By tiers and rules: 0 then, 1 now" in printed
    for cells in (
        "large       3   100.0%  $0.0039",
        "chat       large  small",
        "free  large  the tier leaves no model",
    ):
        assert cells.split()[0] in printed
    assert "the tier leaves no model" in printed


def test_without_a_store_the_command_says_when_there_will_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.delenv("LLM_GATEWAY_DB_URL", raising=False)
    monkeypatch.setattr("core.cli.simulate._candidates", lambda document: {})
    Path("new.yaml").write_text("orchestration: {}\n")
    from core.cli.simulate import command

    told = CliRunner().invoke(command, ["--config", "new.yaml"])
    assert told.exit_code == 1
    assert "There is no store at" in told.output
    assert not Path("orchestration.db").exists()
    assert CliRunner().invoke(command, ["--config", "new.yaml", "--since", "yesterday"]).exit_code == 2


def test_the_settings_of_a_proposal_are_checked() -> None:
    with pytest.raises(ValueError):
        _ = Proposal({"routing": {"policies": {"smart": {}}}}, CANDIDATES).settings
    assert isinstance(Proposal(TO_SMALL, CANDIDATES).settings, Settings)
