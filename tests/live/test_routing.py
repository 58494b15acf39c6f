"""Routing through a proxy with two providers: who answers on every endpoint, what reaches the provider, what the
client and the books are told."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
import yaml

from core.usage import UsageEvent
from tests.support.books import Books
from tests.support.eventually import eventually_sync
from tests.support.gateway import KEYS, MESSAGES, OURS, PROMPT, dollars, key_environment, model
from tests.support.provider import Attempt, FakeProvider
from tests.support.proxy import ProxyProcess

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]

TEXT_CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": MESSAGES}),
    "chat-stream": ("/v1/chat/completions", {"messages": MESSAGES, "stream": True}),
    "completion": ("/v1/completions", {"prompt": PROMPT}),
    "completion-stream": ("/v1/completions", {"prompt": PROMPT, "stream": True}),
    "response": ("/v1/responses", {"input": PROMPT}),
    "response-stream": ("/v1/responses", {"input": PROMPT, "stream": True}),
    "message": ("/v1/messages", {"messages": MESSAGES, "max_tokens": 50}),
    "message-stream": ("/v1/messages", {"messages": MESSAGES, "max_tokens": 50, "stream": True}),
}
CALLS = TEXT_CALLS | {"embedding": ("/v1/embeddings", {"input": PROMPT})}

LONG = ["slow", "swift", "seeing", "large", "near", "brittle", "short", "small"]
"""More candidates than LiteLLM's `max_fallbacks` of 5."""

STRATEGIES = """
import asyncio


class Second:
    async def select_model(self, context, models):
        return models[1] if context["task_type"] == "second" else models[0]


class Slow:
    async def select_model(self, context, models):
        await asyncio.sleep(30)
        return models[1]


class Raising:
    async def select_model(self, context, models):
        raise ValueError("no idea")


class Unknown:
    async def select_model(self, context, models):
        return "far"
"""
"""A module of the user's own, beside the config."""


def in_region(name: str, url: str, region: str, number: int) -> dict[str, Any]:
    entry = model(name, url)
    return entry | {
        "model_info": {"id": f"{name}-{region}-{number}", "mode": "chat", "region": region, **dollars(name)}
    }


def config_of(here: FakeProvider, there: FakeProvider) -> dict[str, Any]:
    """`here` serves everything; `there` what lies in another region."""
    url = here.url
    blind = model("blind", url)
    blind["model_info"] |= {"supports_vision": False, "supports_function_calling": False}
    seeing = model("seeing", url)
    seeing["model_info"] |= {"supports_vision": True, "supports_function_calling": True}
    short = model("short", url)
    short["model_info"]["max_input_tokens"] = 100
    tinted = [model("tinted", url, tags=[colour]) for colour in ("red", "blue")]
    for entry in tinted:
        entry["model_info"]["id"] = f"tinted-{entry['litellm_params']['tags'][0]}"
    both = {"candidates": ["large", "small"]}
    arms = [
        {"id": "plain", "weight": 0, "model": "large"},
        {"id": "brief", "weight": 1, "model": "small", "system_prefix": "Be brief."},
    ]
    arms[1]["set"] = {"temperature": 0.5}
    return {
        **OURS,
        "model_list": [
            *(model(name, url) for name in ("large", "small", "swift", "slow", "brittle", "fragile")),
            *(model(name, url, mode="embedding") for name in ("large-vectors", "small-vectors")),
            *(blind, seeing, short, *tinted),
            *(in_region("mixed", url, "eu", 1), in_region("mixed", there.url, "us", 2)),
            *(in_region("far", there.url, "us", 1), in_region("near", url, "eu", 1)),
        ],
        "router_settings": {
            "num_retries": 0,
            "disable_cooldowns": True,
            "enable_tag_filtering": True,
            "fallbacks": [
                *({"small": ["large"]}, {"brittle": ["large", "small"]}, {"mixed": ["far"]}, {"near": ["far"]}),
                {"fragile": ["large-id"]},
            ],
            "context_window_fallbacks": [{"small": ["large"]}, {"near": ["far"]}],
        },
        "orchestration": {
            "resilience": {
                "circuit_breaker": {"failure_threshold": 1_000_000, "failure_ratio": None},
                "retries": {"max_attempts": 1},
            },
            "keys": [
                {"key": "os.environ/KEY_ADA", "user_id": "ada", "team_id": "research", "tier": "premium"},
                {"key": "os.environ/KEY_BOB", "user_id": "bob", "tier": "free"},
                {"key": "os.environ/KEY_CARL", "user_id": "carl", "tier": "premium", "models": ["smart", "small"]},
            ],
            "tiers": {
                "free": {"models": ["small", "small-vectors", "brittle", "fragile"], "default_policy": "smart"},
                "premium": {"models": ["*"], "default_policy": "frugal"},
            },
            "routing": {
                "headers": ["x-app"],
                "policies": {
                    "smart": both,
                    "vectors": {"candidates": ["large-vectors", "small-vectors"]},
                    "frugal": both | {"objective": "cost"},
                    "shared": both | {"objective": "weighted", "weights": {"large": 1, "small": 3}},
                    "loyal": both | {"objective": "weighted", "sticky": "session"},
                    "quick": {"candidates": ["slow", "swift"], "objective": "latency"},
                    "european": {"candidates": ["far", "mixed", "near"], "regions": ["eu"]},
                    "able": {"candidates": ["blind", "seeing"]},
                    "roomy": {"candidates": ["short", "large"]},
                    "tried": both,
                    "alone": {"candidates": ["small"]},
                    "colourful": {"candidates": ["tinted"]},
                    "long": {"candidates": LONG},
                    **{name: both | {"objective": name} for name in ("second", "lazy", "raising", "unknown")},
                },
                "strategies": {
                    "second": "house_strategies.Second",
                    "lazy": "house_strategies.Slow",
                    "raising": "house_strategies.Raising",
                    "unknown": "house_strategies.Unknown",
                },
                "strategy_timeout": 0.1,
                "rules": [
                    {"id": "denied", "when": {"task_type": "deny"}, "deny": "Not with us."},
                    {"id": "only", "when": {"task_type": "use"}, "use": ["small*"]},
                    {"id": "rather", "when": {"task_type": "prefer"}, "prefer": ["small", "small-vectors"]},
                    {"id": "without", "when": "task_type == 'exclude'", "exclude": ["large*"]},
                    {
                        "id": "calm",
                        "when": {"task_type": "set"},
                        "set": {"temperature": 0.25, "max_tokens": 17},
                    },
                    {"id": "plain", "when": {"task_type": "plain"}, "exclude": ["tinted"]},
                    {"id": "hasty", "when": {"task_type": "hasty"}, "set": {"timeout": 0.5}},
                    {"id": "blue", "when": "headers['x-app'] == 'paint'", "set": {"tags": ["blue"]}},
                ],
                "experiments": [
                    {"id": "brevity", "policy": "tried", "status": "running", "variants": arms},
                ],
            },
        },
    }


class Site:
    """The proxy with its two providers."""

    def __init__(self, proxy: ProxyProcess, here: FakeProvider, there: FakeProvider) -> None:
        self.proxy, self.here, self.there = proxy, here, there
        self.books = Books(proxy)

    def ask(
        self, call: str, name: str | None, task: str | None = None, who: str = "ada", **more: Any
    ) -> httpx.Response:
        """One of `CALLS` for a model or policy; the task decides which rule it meets. Streams are read to their end."""
        path, body = CALLS[call]
        headers = {**({"x-task-type": task} if task else {}), **more.pop("headers", {})}
        named = {} if name is None else {"model": name}
        with self.proxy.client(KEYS[who]) as client:
            return client.post(path, json={**body, **named, **more}, headers=headers)

    def chat(self, name: str | None, task: str | None = None, who: str = "ada", **more: Any) -> httpx.Response:
        return self.ask("chat", name, task, who, **more)

    def event(self, answer: httpx.Response) -> UsageEvent:
        return self.books.event(answer.headers["x-orchestration-request-id"])

    @property
    def called(self) -> list[str]:
        """The models that the providers were asked for, in order."""
        attempts = sorted([*self.here.attempts, *self.there.attempts], key=lambda attempt: attempt.at)
        return [attempt.model for attempt in attempts]

    @property
    def tried(self) -> list[str]:
        """The same, each once: LiteLLM's client for embeddings asks three times on its own."""
        return list(dict.fromkeys(self.called))

    @property
    def sent(self) -> Attempt:
        """The last request that reached a provider."""
        return self.here.attempts[-1]


@pytest.fixture(scope="module")
def running() -> Iterator[Site]:
    with ExitStack() as stack:
        here, there = (stack.enter_context(FakeProvider()) for _ in range(2))
        proxy = ProxyProcess(config_of(here, there), env=key_environment())
        (proxy.cwd / "house_strategies.py").write_text(STRATEGIES)
        yield Site(stack.enter_context(proxy), here, there)


@pytest.fixture
def site(running: Site) -> Site:
    """Both providers work and have an empty bill."""
    running.here.reset()
    running.there.reset()
    return running


def policy_of(call: str) -> str:
    return "vectors" if call == "embedding" else "smart"


def answered(answer: httpx.Response) -> str:
    """The model that answered."""
    assert answer.status_code == 200, answer.text
    return answer.headers["x-orchestration-model"].removesuffix("-vectors")


# -- on every endpoint -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
class TestOnEveryEndpoint:
    def test_a_rule_refuses_with_its_message_before_anything_is_spent(self, call: str, site: Site):
        answer = site.ask(call, policy_of(call), "deny")
        assert answer.status_code == 403, answer.text
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("permission_error", "model_not_allowed")
        assert error["message"] == "Not with us."
        assert error["details"] == {"model": policy_of(call), "tier": "premium", "rule": "denied"}
        assert site.called == []
        event = site.event(answer)
        assert (event.status, event.error_class, event.attempts) == (403, "ModelNotAllowed", [])
        assert (event.policy, event.route) == (policy_of(call), "rule=denied denied")

    @pytest.mark.parametrize(
        ("task", "first"), [(None, "large"), ("use", "small"), ("prefer", "small"), ("exclude", "small")]
    )
    def test_rules_say_who_answers(self, task: str | None, first: str, call: str, site: Site):
        assert answered(site.ask(call, policy_of(call), task)) == first
        assert len(site.called) == 1

    @pytest.mark.parametrize(("task", "permitted"), [("prefer", True), ("use", False), ("exclude", False)])
    def test_what_a_rule_leaves_out_is_not_failed_over_to(self, task: str, permitted: bool, call: str, site: Site):
        """LiteLLM's own fallbacks lead from small to large."""
        large, small = ("large-vectors", "small-vectors") if call == "embedding" else ("large", "small")
        site.here.script(model=small, status=500)
        answer = site.ask(call, policy_of(call), task)
        assert site.tried == ([small, large] if permitted else [small])
        assert permitted or answer.status_code >= 500 or "error" in answer.text, answer.text

    def test_a_failing_model_is_followed_by_the_next_of_the_list(self, call: str, site: Site):
        large, small = ("large-vectors", "small-vectors") if call == "embedding" else ("large", "small")
        site.here.script(model=large, status=503)
        answer = site.ask(call, policy_of(call))
        assert answered(answer) == "small"
        assert site.tried == [large, small]
        event = site.event(answer)
        assert (event.used_model, event.fallbacks, len(event.attempts)) == (small, 1, 2)
        assert (event.policy, event.asked_model) == (policy_of(call), policy_of(call))

    def test_a_tier_keeps_to_its_models_whoever_fails(self, call: str, site: Site):
        site.here.script(model="small-vectors" if call == "embedding" else "small", status=500)
        site.ask(call, policy_of(call), who="bob")
        assert {name.removesuffix("-vectors") for name in site.called} == {"small"}

    def test_fields_that_a_rule_sets_reach_the_provider(self, call: str, site: Site):
        site.here.script(output_tokens=40)
        answer = site.ask(call, policy_of(call), "set", temperature=1.5)
        assert answer.status_code == 200, answer.text
        body = site.sent.body
        if call == "embedding":
            assert "max_tokens" not in body
            return
        assert body["temperature"] == 0.25
        limits = [body[name] for name in ("max_tokens", "max_completion_tokens", "max_output_tokens") if name in body]
        assert limits == [17]
        assert site.sent.completion_tokens == 17
        assert "metadata" not in body or "tags" not in (body["metadata"] or {})

    def test_a_timeout_that_a_rule_sets_holds(self, call: str, site: Site):
        site.here.script(first_byte_delay=12)
        answer = site.ask(call, policy_of(call), "hasty")
        assert answer.status_code != 200 or "error" in answer.text, answer.text
        assert answer.elapsed.total_seconds() < 10


@pytest.mark.parametrize("call", TEXT_CALLS)
def test_a_variant_changes_model_prompt_and_parameters(call: str, site: Site):
    answer = site.ask(call, "tried")
    assert answered(answer) == "small"
    assert answer.headers["x-orchestration-experiment"] == "brevity/brief"
    body = site.sent.body
    assert body["temperature"] == 0.5
    told = body.get("instructions") or body.get("prompt") or json.dumps(body.get("messages"))
    assert "Be brief." in told
    if "messages" in body:
        assert (body["messages"][0]["role"], body["messages"][0]["content"]) == ("system", "Be brief.")
    event = site.event(answer)
    assert (event.policy, event.variant) == ("tried", "brevity/brief")


@pytest.mark.parametrize("call", ["chat", "completion-stream"])
def test_what_a_variant_changes_is_changed_for_the_model_that_steps_in(call: str, site: Site):
    site.here.script(model="small", status=500)
    answer = site.ask(call, "tried")
    assert answered(answer) == "large"
    assert site.sent.body["temperature"] == 0.5
    told = site.sent.body.get("prompt") or json.dumps(site.sent.body.get("messages"))
    assert told.count("Be brief.") == 1


class TestDeploymentsAskedForByTheirIds:
    """LiteLLM asks no filter about them."""

    def test_a_fallback_of_the_configuration_serves_whom_its_group_may_serve(self, site: Site):
        site.here.script(model="fragile", status=500)
        answer = site.chat("fragile")
        assert answered(answer) == "large"
        assert [attempt.deployment for attempt in site.event(answer).attempts] == ["fragile-id", "large-id"]

    @pytest.mark.parametrize(("who", "task"), [("bob", None), ("ada", "exclude")], ids=["tier", "rule"])
    def test_and_nobody_else(self, who: str, task: str | None, site: Site):
        site.here.script(model="fragile", status=500)
        answer = site.chat("fragile", task, who)
        assert answer.status_code == 500, answer.text
        assert site.called == ["fragile"]

    def test_a_client_may_not_go_round_a_rule_with_one(self, site: Site):
        answer = site.chat("tinted-red", "plain")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "model_not_allowed"), answer.text
        assert answer.json()["error"]["details"]["model"] == "tinted"
        assert site.called == []
        assert answered(site.chat("tinted-red")) == "tinted"


# -- who answers -------------------------------------------------------------------------------------------------------


class TestObjectives:
    def test_weights_are_shares(self, site: Site):
        served = Counter(answered(site.chat("shared")) for _ in range(100))
        assert 57 < served["small"] < 92, served  # the binomial 99.99 % interval of 75

    def test_the_cheapest_goes_first(self, site: Site):
        assert answered(site.chat("frugal")) == "small"

    def test_the_fastest_goes_first_once_both_are_known(self, site: Site):
        site.here.script(model="slow", first_byte_delay=0.3)
        for name in ("slow", "swift"):
            for _ in range(3):
                assert site.chat(name).status_code == 200
        served = Counter(answered(site.chat("quick")) for _ in range(10))
        assert served == {"swift": 10}

    def test_a_session_stays_with_its_model_and_sessions_share_them(self, site: Site):
        served: dict[str, set[str]] = {}
        for _ in range(4):
            for session in range(12):
                answer = site.chat("loyal", headers={"x-session-id": f"s-{session}"})
                served.setdefault(f"s-{session}", set()).add(answered(answer))
        assert all(len(models) == 1 for models in served.values()), served
        assert {name for models in served.values() for name in models} == {"large", "small"}

    def test_the_list_is_walked_to_its_end(self, site: Site):
        site.here.script(status=500)
        site.here.script(model="small")
        assert answered(site.chat("long")) == "small"
        assert site.called == LONG


class TestRegions:
    def test_a_deployment_elsewhere_is_never_called(self, site: Site):
        for _ in range(20):
            assert answered(site.chat("european")) == "mixed"
        assert site.there.attempts == []

    def test_not_even_by_a_fallback(self, site: Site):
        site.here.script(status=500)
        for stream in (False, True):
            answer = site.chat("european", stream=stream, fallbacks=["far"])
            assert answer.status_code >= 500, answer.text
        assert site.there.attempts == []
        assert {"mixed", "near"} == set(site.called)


class TestCapabilities:
    PICTURE = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="  # noqa: E501

    @pytest.mark.parametrize(
        "body",
        [
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": PROMPT},
                            {"type": "image_url", "image_url": {"url": PICTURE}},
                        ],
                    }
                ]
            },
            {"tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]},
        ],
        ids=["image", "tools"],
    )
    def test_what_a_model_cannot_take_goes_to_one_that_can(self, body: dict[str, Any], site: Site):
        assert answered(site.chat("able")) == "blind"
        assert answered(site.chat("able", **body)) == "seeing"
        site.here.script(model="seeing", status=500)
        assert site.chat("able", **body).status_code >= 500
        assert site.called.count("blind") == 1

    def test_what_is_too_long_for_a_model_goes_to_one_with_room(self, site: Site):
        assert answered(site.chat("roomy")) == "short"
        assert answered(site.chat("roomy", messages=[{"role": "user", "content": "word " * 500}])) == "large"


class TestDefaultPolicies:
    @pytest.mark.parametrize(("who", "name"), [("ada", "small"), ("bob", "small")])
    @pytest.mark.parametrize("call", ["chat", "chat-stream", "response", "message"])
    def test_a_request_that_names_no_model_gets_that_of_its_tier(self, call: str, who: str, name: str, site: Site):
        answer = site.ask(call, None, who=who)
        assert answered(answer) == name
        assert site.event(answer).policy == {"ada": "frugal", "bob": "smart"}[who]


class TestFallbacks:
    def test_a_rule_holds_for_the_fallbacks_of_a_model_that_is_asked_for_by_its_name(self, site: Site):
        site.here.script(model="brittle", status=500)
        assert answered(site.chat("brittle")) == "large"
        site.here.reset()
        site.here.script(model="brittle", status=500)
        assert answered(site.chat("brittle", "exclude")) == "small"
        assert site.called == ["brittle", "small"]

    def test_the_id_of_a_deployment_does_not_get_round_a_rule(self, site: Site):
        """Its id is in LiteLLM's headers of every answer."""
        assert site.chat("large-id", "exclude").status_code in (400, 403)
        assert site.called == []

    @pytest.mark.parametrize(
        "fallbacks",
        [["large"], [{"model": "large"}], ["large-id"], [{"model": "large-id"}], [{"small": ["large-id"]}], ["smart"]],
    )
    @pytest.mark.parametrize(("who", "task"), [("bob", None), ("carl", None), ("ada", "exclude")])
    def test_those_that_a_client_names_lead_nowhere_else(
        self, fallbacks: Sequence[Any], who: str, task: str | None, site: Site
    ):
        site.here.script(model="small", status=500)
        for name in ("small", "alone", "smart"):
            site.chat(name, task, who=who, fallbacks=fallbacks)
        assert "large" not in site.called

    def test_a_context_window_error_does_not_lead_there_either(self, site: Site):
        """LiteLLM falls back on its own list where a policy's has ended."""
        site.here.script(status=400)
        site.chat("alone", "exclude")
        assert site.called == ["small"]

    def test_each_candidate_has_to_be_on_the_list_of_a_key(self, site: Site):
        assert answered(site.chat("smart", who="carl")) == "small"
        assert site.chat("frugal", who="carl").status_code in (401, 403)
        site.here.script(model="small", status=500)
        site.chat("smart", who="carl")
        assert set(site.called) == {"small"}


class TestTags:
    def test_tags_that_a_rule_sets_choose_the_deployment(self, site: Site):
        for _ in range(8):
            answer = site.chat("colourful", headers={"x-app": "paint"})
            assert answered(answer) == "tinted"
            assert site.event(answer).deployment == "tinted-blue"


class TestStrategies:
    def test_a_strategy_of_ones_own_chooses_by_the_request(self, site: Site):
        assert answered(site.chat("second")) == "large"
        assert answered(site.chat("second", "second")) == "small"

    @pytest.mark.parametrize(
        ("name", "why"),
        [("lazy", "took longer than 0.1 s"), ("raising", "raised ValueError"), ("unknown", "not a candidate")],
    )
    def test_one_that_does_not_answer_leaves_the_order_and_the_reason_says_so(self, name: str, why: str, site: Site):
        answer = site.chat(name)
        assert answered(answer) == "large"
        assert answer.elapsed.total_seconds() < 5
        assert why in (site.event(answer).route or "")


# -- what is told ------------------------------------------------------------------------------------------------------


class TestBooks:
    def test_an_event_says_how_it_was_decided_and_on_what(self, site: Site):
        site.books.mark()
        answer = site.chat("tried", "prefer", max_tokens=30, tools=[{"type": "function", "function": {"name": "f"}}])
        event = site.event(answer)
        assert (event.policy, event.variant) == ("tried", "brevity/brief")
        assert event.route == "brevity/brief rule=rather priority"
        traits: Mapping[str, Any] = json.loads(event.traits or "{}")
        assert (traits["o"], traits["n"], traits["t"] > 0) == (30, ["tools"], True)
        assert event.settings == site.books.status()["config"]["digest"]
        assert PROMPT not in (event.traits or "") + (event.route or "")

    def test_a_model_that_is_asked_for_by_its_name_has_no_policy(self, site: Site):
        event = site.event(site.chat("small", "set"))
        assert (event.policy, event.variant, event.route) == (None, None, "rule=calm asked")

    def test_what_was_left_out_is_named(self, site: Site):
        assert site.event(site.chat("smart", who="bob")).route == "priority not large"

    def test_the_client_is_told_who_answered_and_nothing_of_experiments_it_is_not_in(self, site: Site):
        answer = site.chat("smart", who="bob")
        assert answer.headers["x-orchestration-model"] == "small"
        assert answer.headers["x-orchestration-tier"] == "free"
        assert "x-orchestration-experiment" not in answer.headers
        assert "x-orchestration-experiment" not in site.chat("tried", who="bob").headers, "it may not have every model"


class TestEdits:
    def test_a_rule_and_an_experiment_that_are_written_into_the_file_take_effect(self, site: Site):
        path = site.proxy.config
        before = path.read_text()
        config = yaml.safe_load(before)
        routing = config["orchestration"]["routing"]
        routing["rules"].append({"id": "edited", "when": {"task_type": "edited"}, "prefer": ["small"]})
        routing["policies"]["alone"] = {"candidates": ["swift", "small"]}
        routing["experiments"][0]["status"] = "paused"
        try:
            path.write_text(yaml.safe_dump(config))
            eventually_sync(lambda: answered(site.chat("smart", "edited")) == "small", within=10, what="the rule")
            assert answered(site.chat("alone")) == "swift"
            answer = site.chat("tried")
            assert (answered(answer), "x-orchestration-experiment" in answer.headers) == ("large", False)
        finally:
            path.write_text(before)
        eventually_sync(lambda: answered(site.chat("smart", "edited")) == "large", within=10, what="the rule gone")
        eventually_sync(lambda: answered(site.chat("tried")) == "small", within=10, what="the experiment again")
