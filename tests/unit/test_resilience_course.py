"""What is tried next, how often, and after how long; and which deployments breakers let a request through to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from core.alerts import Alert
from core.breakers import FAILED, IGNORED, OK, Outcome, throttled
from core.errors import AllModelsFailed
from core.retries import RetryBudget
from core.runtime import Runtime
from core.settings.models import AlertEvent
from core.settings.models.operations import CircuitBreaker, Resilience, Retries
from plugins.resilience.breakers import DeploymentBreakers, breaker_of
from plugins.resilience.degraded import Reason, all_failed, answer, reason_of
from plugins.resilience.retries import AGAIN, Course, Failed, RetryPolicy, listed
from plugins.resilience.service import Resilience as Service
from tests.support.clock import Clock

ONE = {"model_name": "a", "litellm_params": {"model": "openai/x"}, "model_info": {"id": "a-one"}}
TWO = {"model_name": "a", "litellm_params": {"model": "openai/x"}, "model_info": {"id": "a-two"}}


class Desk:
    def __init__(self, clock: Clock, **rules: Any) -> None:
        self.clock = clock
        resilience = Resilience(circuit_breaker=CircuitBreaker(failure_threshold=2, open_for=30, **rules))
        self.settings = SimpleNamespace(resilience=resilience)
        self.alerts: list[Alert] = []
        runtime = cast(Runtime, SimpleNamespace(settings=self.settings, store=None, shared_url=None))
        self.breakers = DeploymentBreakers(runtime, self.alerts.append, clock)

    def course(self, *groups: str, share: float = 1.0, **rules: Any) -> Course:
        retries = Retries(**{"base_delay": 1, "jitter": "none", **rules})
        course = Course(
            self.breakers,
            retries,
            RetryBudget(share, self.clock),
            self.clock(),
            clock=self.clock,
            sleep=self.clock.sleep,
        )
        course.groups = groups
        return course

    def fail(self, deployment: str, times: int = 2, outcome: Outcome = FAILED) -> None:
        for _ in range(times):
            self.breakers.ended(deployment, outcome, 0.1)


@pytest.fixture
def desk(clock: Clock) -> Desk:
    return Desk(clock)


async def attempt(course: Course, group: str, outcome: Outcome = FAILED, asked: float | None = None) -> None:
    """One that was let through and fails."""
    assert course.may_try(group)
    assert await course.usable([ONE])
    course.began(group, "a-one")
    course.ended("a-one", IGNORED, 0.1)
    course.note(Failed(group, "a-one", 500, "InternalServerError", outcome, asked))
    await course.decide()


class TestHowOften:
    def test_what_attempts_are_left_over_are_for_the_first_groups(self) -> None:
        def row(first: str, rest: list[str], attempts: int) -> list[str]:
            names = [one if isinstance(one, str) else one["model"] for one in listed(first, rest, attempts)]
            return [first, *names]

        assert row("a", ["b"], 3) == ["a", "a", "b"]
        assert row("a", ["b"], 5) == ["a", "a", "a", "b", "b"]
        assert row("a", ["b", "c", "d"], 3) == ["a", "b", "c", "d"], "each is tried once, however many there are"
        assert row("a", [], 3) == ["a", "a", "a"]

    async def test_what_is_left_is_the_group_once_more_and_then_those_behind_it(self, desk: Desk) -> None:
        course = desk.course("a", "b", max_attempts=3, deadline=60)
        left: list[list[str]] = []
        for group in ("a", "a", "b"):
            await attempt(course, group)
            left.append(course.left())
        assert left == [["a", "b"], ["b"], []]
        late = desk.course("a", "b", deadline=0.5)
        await attempt(late, "a")
        desk.clock.advance(1)
        assert late.left() == []

    def test_each_repeat_is_a_target_of_its_own_to_litellm(self) -> None:
        targets = listed("a", ["b"], 6)
        assert len({str(one) for one in targets}) == len(targets) == 5
        assert sum(AGAIN in one for one in targets) == 4

    async def test_a_group_is_tried_again_after_a_pause_that_doubles(self, desk: Desk) -> None:
        course = desk.course("a", max_attempts=3)
        await attempt(course, "a")
        await attempt(course, "a")
        assert course.may_try("a")
        assert desk.clock.slept == [1, 2]
        course.began("a", "a-one")
        course.note(Failed("a", "a-one", 500, "x", FAILED))
        await course.decide()
        assert not course.may_try("a"), "three attempts"

    async def test_the_last_attempts_are_kept_for_groups_that_were_not_tried(self, desk: Desk) -> None:
        course = desk.course("a", "b", max_attempts=3)
        await attempt(course, "a")
        await attempt(course, "a")
        assert not course.may_try("a")
        assert course.may_try("b")

    @pytest.mark.parametrize("outcome", [IGNORED, OK])
    async def test_what_is_not_the_providers_failure_is_not_tried_again(self, outcome: Outcome, desk: Desk) -> None:
        course = desk.course("a")
        await attempt(course, "a", outcome)
        assert not course.may_try("a") and desk.clock.slept == []

    async def test_a_provider_that_wants_time_is_given_it_or_left_for_another(self, desk: Desk) -> None:
        alone = desk.course("a")
        await attempt(alone, "a", throttled(3), asked=3)
        assert desk.clock.slept == [3] and alone.may_try("a")
        one_of_two = desk.course("a", "b")
        await attempt(one_of_two, "a", throttled(3), asked=3)
        assert desk.clock.slept == [3] and not one_of_two.may_try("a")
        too_long = desk.course("a", max_delay=2)
        await attempt(too_long, "a", throttled(3), asked=3)
        assert not too_long.may_try("a")

    async def test_nothing_is_tried_after_the_deadline(self, desk: Desk) -> None:
        course = desk.course("a", "b", deadline=10)
        await attempt(course, "a")
        desk.clock.advance(10)
        assert not course.may_try("b") and course.late

    async def test_retries_are_a_share_of_the_requests(self, desk: Desk) -> None:
        course = desk.course("a", share=0.0)
        await attempt(course, "a")
        assert not course.may_try("a")

    async def test_another_key_is_tried_at_once_whatever_the_rules_say(self, desk: Desk) -> None:
        course = desk.course("a", max_attempts=1)
        course.began("a", "a-one")
        await course.decide(another_key=True)
        assert course.may_try("a") and desk.clock.slept == []

    async def test_what_was_never_sent_is_tried_at_once_and_is_no_load(self, desk: Desk) -> None:
        course = desk.course("a", share=0.0, max_attempts=3)
        for number in (1, 2, 3):
            assert course.may_try("a")
            course.began("a", "a-one")
            course.note(Failed("a", "a-one", 500, "x", IGNORED, unsent=True))
            await course.decide()
            assert (course.granted == "a") is (number < 3)
        assert desk.clock.slept == []

    async def test_an_open_breaker_is_not_waited_for(self, desk: Desk) -> None:
        course = desk.course("a")
        assert await course.usable([ONE])
        course.began("a", "a-one")
        desk.fail("a-one")
        course.note(Failed("a", "a-one", 500, "x", FAILED))
        await course.decide()
        assert not course.may_try("a") and desk.clock.slept == []

    async def test_another_deployment_of_the_group_is_tried_at_once(self, desk: Desk) -> None:
        course = desk.course("a")
        await course.usable([ONE, TWO])
        course.began("a", "a-one")
        course.note(Failed("a", "a-one", 500, "x", FAILED))
        await course.decide()
        assert course.may_try("a") and desk.clock.slept == []
        assert await course.usable([ONE, TWO]) == [TWO]


class TestRetryPolicy:
    async def test_litellms_own_retries_are_none_where_ours_are_listed_or_breakers_are_open(self, desk: Desk) -> None:
        theirs = {"a": {"DefaultRetries": 7}}
        listed_ = desk.course("a")
        listed_.listed = True
        assert set(RetryPolicy(listed_, theirs, lambda: False)["a"].values()) == {0}
        unruled = Course(desk.breakers)
        policy = RetryPolicy(unruled, theirs, lambda: False)
        assert "a" in policy and "b" not in policy and policy["a"] == theirs["a"]
        desk.fail("a-one")
        assert await unruled.usable([ONE]) == []
        assert "b" in policy and policy["b"]["DefaultRetries"] == 0
        assert RetryPolicy(unruled, theirs, lambda: True)["a"] == theirs["a"], "another key goes first"


class TestBreakers:
    async def test_one_place_for_a_probe_goes_to_one_request_and_comes_back(self, desk: Desk) -> None:
        desk.fail("a-one")
        assert await desk.course().usable([ONE, TWO]) == [TWO]
        desk.clock.advance(31)
        first, second = desk.course(), desk.course()
        assert await first.usable([ONE, TWO]) == [ONE], "the probe goes where it finds something out"
        assert await second.usable([ONE, TWO]) == [TWO]
        first.give_back()
        assert await second.usable([ONE, TWO]) == [ONE]
        second.began("a", "a-one")
        second.ended("a-one", OK, 0.1)
        assert await first.usable([ONE, TWO]) == [ONE, TWO]

    async def test_a_stream_that_begins_is_proof_enough(self, desk: Desk) -> None:
        desk.fail("a-one")
        desk.clock.advance(31)
        course = desk.course()
        await course.usable([ONE])
        course.began("a", "a-one")
        course.speaks("a-one")
        assert not desk.breakers.is_open("a-one")
        assert await desk.course().usable([ONE]) == [ONE]

    def test_people_are_told_of_openings_and_closings(self, desk: Desk) -> None:
        desk.fail("a-one")
        [opened] = desk.alerts
        assert (opened.event, opened.subject) == (AlertEvent.BREAKER_OPEN, "a-one")
        assert desk.breakers.openings == 1
        assert desk.breakers.opens_at(["a-one", "a-two"]) == desk.clock() + 30

    async def test_deployments_of_a_region_fail_together_where_that_is_wanted(self, clock: Clock) -> None:
        desk = Desk(clock, per="region")
        here = [{**one, "model_info": {**one["model_info"], "region": "north"}} for one in (ONE, TWO)]
        there = {**ONE, "model_info": {"id": "a-three", "region": "south"}}
        rules = desk.settings.resilience.circuit_breaker
        assert {breaker_of(one, rules) for one in here} == {"openai@north"}
        assert await desk.course().usable([*here, there]) == [*here, there]
        desk.fail("a-one")
        assert await desk.course().usable([*here, there]) == [there]
        assert desk.breakers.is_open("a-two")


class TestWhatClientsAreTold:
    @pytest.mark.parametrize(
        ("status", "error", "outcome", "reason"),
        [
            (429, "RateLimitError", throttled(5), Reason.RATE_LIMITED),
            (408, "Timeout", FAILED, Reason.TIMEOUT),
            (529, "InternalServerError", FAILED, Reason.OVERLOADED),
            (500, "InternalServerError", FAILED, Reason.UNAVAILABLE),
            (401, "AuthenticationError", FAILED, Reason.UNAVAILABLE),
        ],
    )
    def test_the_reason_is_a_class(self, status: int, error: str, outcome: Outcome, reason: Reason) -> None:
        assert reason_of([Failed("a", None, status, error, outcome)]) is reason

    def test_the_error_says_what_happened_and_when_to_come_again(self) -> None:
        failed = [Failed("a", None, 503, "x", FAILED, 40.0), Failed("b", None, 0, "APIConnectionError", FAILED)]
        error = all_failed("smart", failed, 1012.3, 1000.0)
        assert isinstance(error, AllModelsFailed) and error.status == 503
        assert error.headers == {"retry-after": "13"}
        assert error.details["failed"] == {"a": "status 503", "b": "APIConnectionError"}
        assert "'smart'" in error.message and "13 s" in error.message

    def test_an_endpoint_without_text_has_no_other_words(self) -> None:
        assert answer("embeddings", False, "m", "sorry", "id") is None


class TestWhoseRetriesHold:
    """Ours where they are written down; else ours for policies, unless LiteLLM's configuration says how often."""

    @staticmethod
    def fallbacks(policy: str | None, resilience: Resilience, document: dict[str, Any]) -> Any:
        settings = SimpleNamespace(resilience=resilience, limits=SimpleNamespace(shed_after=0))
        runtime: Any = SimpleNamespace(settings=settings, document=document, disabled_deployments=frozenset())
        candidates: Any = SimpleNamespace(deployments=lambda group: (f"{group}-one",))
        breakers = DeploymentBreakers(runtime)
        exchange: Any = SimpleNamespace(
            plan=SimpleNamespace(policy=policy), started=0.0, has_another_key=False, repeated=False
        )
        data: dict[str, Any] = {"model": "a", "fallbacks": ["b"]}
        Service(runtime, breakers, candidates).begin(exchange, data)
        names = [one if isinstance(one, str) else one["model"] for one in data["fallbacks"]]
        return names, exchange.course.rules is not None

    @pytest.mark.parametrize("section", ["router_settings", "litellm_settings"])
    def test_what_litellm_was_told_holds_until_we_are_told(self, section: str) -> None:
        told = {section: {"num_retries": 2}}
        assert self.fallbacks("p", Resilience(), {}) == (["a", "b"], True)
        assert self.fallbacks("p", Resilience(), told) == (["b"], False)
        assert self.fallbacks("p", Resilience(retries=Retries(max_attempts=4)), told) == (["a", "b", "b"], True)

    def test_a_model_asked_for_by_name_is_litellms_affair_until_we_are_told(self) -> None:
        assert self.fallbacks(None, Resilience(), {}) == (["b"], False)
        assert self.fallbacks(None, Resilience(retries=Retries()), {}) == (["b"], True)
