"""When deployments are asked how they are, by whom, and what it may cost."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from core.breakers import FAILED
from core.settings.models.operations import HealthChecks as Rules
from plugins.resilience.health import Answered, HealthChecks
from tests.support.clock import Clock
from tests.unit.test_resilience_course import ONE, TWO, Desk

RULES = Rules(interval=60)


class Ward:
    """Health checks of two deployments that a test can make ill."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.desk = Desk(clock)
        self.heard: dict[str, float] = {}
        self.asked: list[str] = []
        self.answers: dict[str, Answered] = {}
        self.taken: set[str] = set()
        self.cost = 0
        self.deployments: list[dict[str, Any]] = [ONE, TWO]
        self.checks = HealthChecks(
            self.desk.breakers,
            lambda: self.deployments,
            self.heard.get,
            self.ask,
            self.claim,
            lambda one, answered, ms: self.cost,
            clock,
            chance=lambda: 0.5,
        )

    async def ask(self, one: Any) -> Answered:
        name = one["model_info"]["id"]
        self.asked.append(name)
        return self.answers.get(name, Answered(200))

    async def claim(self, name: str, seconds: float) -> bool:
        return name not in self.taken

    async def after(self, seconds: float, rules: Rules = RULES) -> list[str]:
        """Who is asked when so much time has passed."""
        self.clock.advance(seconds)
        self.asked.clear()
        await self.checks.look(rules)
        return self.asked


@pytest.fixture
def ward(clock: Clock) -> Ward:
    return Ward(clock)


async def test_those_without_traffic_are_asked_once_an_interval(ward: Ward) -> None:
    assert await ward.after(0) == [], "not all at once when a worker starts"
    assert await ward.after(31) == ["a-one", "a-two"]
    assert await ward.after(59) == []
    ward.heard["a-one"] = ward.clock()
    assert await ward.after(2) == ["a-two"]


async def test_interval_0_asks_nobody(ward: Ward) -> None:
    await ward.after(0, Rules(interval=0))
    assert await ward.after(10_000, Rules(interval=0)) == []


async def test_one_instance_asks_for_all(ward: Ward) -> None:
    ward.taken = {"a-one"}
    await ward.after(0)
    assert await ward.after(31) == ["a-two"]


async def test_a_deployment_that_fails_checks_is_left_alone_and_one_that_passes_is_used_again(ward: Ward) -> None:
    ward.answers["a-one"] = Answered(503, "ServiceUnavailableError")
    await ward.after(0)
    await ward.after(31)
    assert await ward.after(16) == ["a-one"], "sooner than after an interval"
    assert ward.desk.breakers.is_open("a-one") and not ward.checks.last["a-one"].ok
    ward.answers.clear()
    assert "a-one" not in await ward.after(20), "an open one is not asked"
    assert "a-one" in await ward.after(11), "as soon as there is a place for a probe it is the check that takes it"
    assert not ward.desk.breakers.is_open("a-one") and ward.checks.last["a-one"].ok


async def test_a_model_that_finds_fault_with_the_question_is_well(ward: Ward) -> None:
    ward.answers["a-one"] = Answered(400, "BadRequestError")
    await ward.after(0)
    for _ in range(3):
        await ward.after(61)
    assert not ward.desk.breakers.is_open("a-one")


async def test_a_check_that_is_cancelled_gives_its_place_back(ward: Ward) -> None:
    async def cancelled(one: Any) -> Answered:
        raise KeyboardInterrupt

    ward.desk.fail("a-one", outcome=FAILED)
    ward.clock.advance(31)
    ward.checks._ask = cancelled
    with pytest.raises(KeyboardInterrupt):
        await ward.checks.check(ONE, RULES)
    assert await ward.desk.course().usable([ONE]) == [ONE], "the probe's place is free"


async def test_the_days_money_is_the_end_of_it(ward: Ward) -> None:
    ward.cost = 60_000_000
    rules = Rules(interval=60, daily_budget=Decimal("0.10"))
    await ward.after(0, rules)
    assert len(await ward.after(31, rules)) == 2
    assert await ward.after(61, rules) == []
    assert len(await ward.after(86_400, rules)) == 2


async def test_pictures_speech_and_wildcards_are_not_asked(ward: Ward) -> None:
    ward.deployments = [
        {**ONE, "model_info": {"id": "a-one", "mode": "image_generation"}},
        {**TWO, "litellm_params": {"model": "openai/*"}},
    ]
    await ward.after(0)
    assert await ward.after(61) == []
