"""That `make bench` works at all; what it measures is for a quiet machine."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from benchmarks import budget_race, budgets, overhead

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]


async def test_the_overhead_benchmark_measures_both_proxies():
    result = await overhead.measure(overhead.QUICK, [overhead.Load(1), overhead.Load(2, stream=True)], more=False)
    values = {figure.name: figure.value for figure in result.figures}
    assert values["memory, bare"] > 100
    assert values["start-up until the first answer, bare"] > 0
    for kind in ("answers, 1 connection", "streams, 2 connections"):
        # A proxy that did nothing, or everything twice, would lie outside.
        assert 0.3 < values[f"CPU a request, {kind}"] < 3
        assert values[f"throughput, {kind}, bare"] > 0
    assert "p50 added, answers, 1 connection" in values


async def test_the_budgets_benchmark_sees_every_budget_and_one_round_trip():
    figures = await budgets.decisions(budgets.QUICK)
    figures += await asyncio.to_thread(uvloop.run, budgets.redis_figures(budgets.QUICK))
    values = {figure.name: figure.value for figure in figures}
    assert 0 < values["memory, 6 budgets: decision (reserved in all or in none)"] < 1000
    assert values["Redis: round trips of a reservation"] == 1
    assert 0 < values["Redis, 16 at once: reserve in 6 accounts"] < 2


async def test_members_are_compared_with_the_fewest():
    figures = {figure.name: figure for figure in await budgets.members(budgets.QUICK)}
    assert figures["memory, 1,000 members: decision"].unit == "x of 10"


async def test_a_race_is_held_against_the_providers_bill():
    plan = budget_race.Plan(rounds=1, requests=20, history=20, waves=1)
    values = {figure.name: figure.value for figure in await budget_race.measure(plan)}
    assert values["ours, max_tokens given: overspent at most"] == 0
    assert 0 < values["ours, max_tokens given: admitted at once, 10 fit"] <= 10
    assert "ours, max_tokens given: neither answered nor refused" not in values
