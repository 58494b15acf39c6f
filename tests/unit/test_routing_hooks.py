"""What the hooks make of a plan: the ranked list in the request, what is set in its body, and what LiteLLM may try
besides; no proxy."""

from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest

from core.errors import ModelNotAllowed, NoCapableModel
from plugins.admin.status import routing_status
from plugins.budgets.output_limit import read_output_limit
from plugins.metrics.readings import of_routing
from plugins.routing.fields import put_in_front, set_fields
from tests.support.routing import Asking, RoutingDesk, deployment, key

GROUPS = {
    "large": [deployment("large", "eu", region="eu"), deployment("large", "us", region="us")],
    "small": [deployment("small", "eu", region="eu")],
    "tiny": [deployment("tiny", "us", region="us")],
    "blind": [deployment("blind", "one", supports_vision=False)],
    "dim": [deployment("dim", "one", supports_vision=False)],
}
KEYS = [
    key("ada", tier="premium"),
    key("bob", tier="free"),
    key("dora", tier="premium", models=["granted"]),
    key("eve", tier="premium", models=["smart", "small"]),
]
ROUTING = {
    "policies": {
        "smart": {"candidates": ["large", "small"]},
        "granted": {"candidates": ["large", "small"], "grants": True},
        "european": {"candidates": ["large", "small", "tiny"], "regions": ["eu"]},
    }
}
SECTION: dict[str, Any] = {
    "keys": KEYS,
    "tiers": {"free": {"models": ["small", "smart"]}, "premium": {"models": ["*"]}},
    "routing": ROUTING,
}

Open = Callable[..., RoutingDesk]


@pytest.fixture
def opened() -> Iterator[Open]:
    desks: list[RoutingDesk] = []

    def open_(**routing: Any) -> RoutingDesk:
        desks.append(RoutingDesk(SECTION | {"routing": ROUTING | routing}, GROUPS).__enter__())
        return desks[-1]

    yield open_
    for desk in reversed(desks):
        desk.__exit__(None, None, None)


def rule(**fields: Any) -> dict[str, Any]:
    return {"id": "rule", "when": "true", **fields}


async def smart(desk: RoutingDesk, who: str = "ada", **more: Any) -> Asking:
    return await desk.ask(who, {"model": "smart", **more})


# -- the ranked list ---------------------------------------------------------------------------------------------------


async def test_the_plan_stands_in_the_request_and_takes_the_place_of_the_clients_fallbacks(opened: Open) -> None:
    asking = await smart(opened(), fallbacks=["tiny"])
    assert (asking.data["model"], asking.data["fallbacks"]) == ("large", ["small"])
    assert asking.exchange.admitted


async def test_a_model_that_is_asked_for_by_its_name_is_left_as_it_is(opened: Open) -> None:
    asking = await opened().ask("ada", {"model": "tiny"})
    assert (asking.data["model"], "fallbacks" in asking.data) == ("tiny", False)


async def test_a_request_that_names_no_model_gets_the_default_policy_of_its_tier() -> None:
    tiers = {"premium": {"default_policy": "smart"}, "free": {"models": ["small"]}}
    with RoutingDesk(SECTION | {"tiers": tiers}, GROUPS) as desk:
        assert (await desk.ask("ada", {})).ranked == ["large", "small"]
        assert (await desk.ask("eve", {})).ranked == ["small"], "each candidate is asked about"


async def test_a_refusal_says_which_models_and_why(opened: Open) -> None:
    asking = await smart(opened(rules=[rule(use=["large"])]), "bob")
    assert asking.status == 403 and isinstance(asking.exchange.refusal, ModelNotAllowed)
    assert "large: tier free does not permit it" in asking.refusal
    assert "small: rule rule uses other models" in asking.refusal


async def test_the_message_of_a_rule_that_denies_is_what_the_client_reads(opened: Open) -> None:
    asking = await smart(opened(rules=[rule(deny="Ask again tomorrow.")]))
    refusal = asking.exchange.refusal
    assert refusal is not None
    assert (asking.status, refusal.message) == (403, "Ask again tomorrow.")
    assert refusal.details == {"model": "smart", "tier": "premium", "rule": "rule"}


@pytest.mark.parametrize("candidates", [["blind", "dim"], ["blind"]])
async def test_what_no_model_can_take_is_the_clients_mistake(candidates: list[str], opened: Open) -> None:
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
    messages = [{"role": "user", "content": [picture]}]
    desk = opened(policies={"sightless": {"candidates": candidates}})
    asking = await desk.ask("ada", {"model": "sightless", "messages": messages})
    assert asking.status == 400 and isinstance(asking.exchange.refusal, NoCapableModel)
    assert "blind: it does not take images" in asking.refusal


@pytest.mark.parametrize(
    ("fallbacks", "why"),
    [
        (["small", "tiny"], "rule"),
        ([{"model": "tiny"}], "rule"),
        ([{"large": ["tiny"]}], "rule"),
        (["large-us"], "is no model"),
        ([{"large": ["large-us"]}], "is no model"),
    ],
)
@pytest.mark.parametrize("field", ["fallbacks", "context_window_fallbacks", "content_policy_fallbacks"])
async def test_a_fallback_that_the_client_may_not_name_is_refused(
    field: str, fallbacks: list[Any], why: str, opened: Open
) -> None:
    """The id of a deployment would not be asked about again."""
    asking = await opened(rules=[rule(exclude=["tiny"])]).ask("ada", {"model": "large", field: fallbacks})
    assert asking.status == 403 and why in asking.refusal


async def test_a_policys_list_takes_the_place_of_every_kind_of_fallback(opened: Open) -> None:
    named: dict[str, Any] = {
        "context_window_fallbacks": [{"small": ["large-us"]}],
        "content_policy_fallbacks": [{"small": ["tiny"]}],
    }
    asking = await smart(opened(), **named)
    assert asking.status == 200 and not named.keys() & asking.data.keys()


# -- what LiteLLM tries besides ----------------------------------------------------------------------------------------


async def test_the_plans_groups_are_open_and_those_left_out_are_closed(opened: Open) -> None:
    asking = await smart(opened(rules=[rule(exclude=["small"])]))
    assert await asking.deployments("large") == ["large-eu", "large-us"]
    assert await asking.deployments("small") == []


@pytest.mark.parametrize(
    ("who", "routing", "open_"),
    [
        ("ada", {}, True),
        ("bob", {}, False),
        ("eve", {}, False),
        ("ada", {"rules": [rule(exclude=["t*"])]}, False),
        ("ada", {"rules": [rule(use=["large", "small"])]}, False),
        ("ada", {"rules": [rule(when="false", exclude=["t*"])]}, True),
    ],
    ids=["permitted", "tier", "key", "exclude", "use", "another-rule"],
)
async def test_a_fallback_of_litellms_own_has_to_be_permitted_like_any_candidate(
    who: str, routing: dict[str, Any], open_: bool, opened: Open
) -> None:
    asking = await smart(opened(**routing), who)
    assert asking.status == 200
    assert bool(await asking.deployments("tiny")) == open_


@pytest.mark.parametrize("asked", ["smart", "small"])
async def test_a_rule_holds_for_fallbacks_where_there_are_neither_keys_nor_tiers_nor_policies(asked: str) -> None:
    routing = {"rules": [rule(exclude=["tiny"])]}
    policies = {"policies": ROUTING["policies"]} if asked == "smart" else {}
    with RoutingDesk({"routing": routing | policies}, GROUPS) as desk:
        asking = await desk.ask(identity("small", "large", "tiny", "smart"), {"model": asked})
        assert await asking.deployments("tiny") == []
        assert await asking.deployments("small")


def identity(*models: str) -> Any:
    from plugins import compat

    return compat.key_identity("0a" * 32, user_id="zoe", team_id=None, models=models, alias=None)


async def test_a_variants_model_that_the_tier_forbids_is_closed_to_those_who_are_not_in_the_experiment(
    opened: Open,
) -> None:
    """The key may use it, and the experiment has asked whether it may."""
    arms = [{"id": "a", "model": "small"}, {"id": "b", "model": "tiny"}]
    experiment = {"id": "e", "policy": "smart", "variants": arms, "status": "running"}
    asking = await smart(opened(experiments=[experiment]), "bob")
    assert asking.ranked == ["small"]
    assert await asking.deployments("tiny") == []


async def test_a_policy_grants_its_candidates_and_nothing_that_a_rule_for_others_brings_in(opened: Open) -> None:
    rules = [rule(when={"task_type": "coding"}, use=["tiny", "large"])]
    desk = opened(rules=rules)
    coding = await desk.ask("dora", {"model": "granted", "metadata": {"task_type": "coding"}})
    assert coding.ranked == ["large", "tiny"]
    assert await coding.deployments("tiny")
    other = await desk.ask("dora", {"model": "granted"})
    assert other.ranked == ["large", "small"]
    assert await other.deployments("tiny") == []


async def test_only_deployments_of_the_policys_regions_are_open_whatever_group_they_are_of(opened: Open) -> None:
    asking = await opened().ask("ada", {"model": "european"})
    assert asking.ranked == ["large", "small"]
    assert await asking.deployments("large") == ["large-eu"]
    assert await asking.deployments("tiny") == []
    assert await asking.deployments("blind") == [], "it says no region"


async def test_a_disabled_deployment_is_closed(opened: Open) -> None:
    desk = opened()
    desk.runtime.disabled_deployments = frozenset({"large-eu"})
    assert await (await smart(desk)).deployments("large") == ["large-us"]


async def test_a_request_under_way_keeps_to_the_rules_it_began_with(opened: Open) -> None:
    desk = opened(rules=[rule(exclude=["tiny"])])
    asking = await smart(desk)
    desk.runtime.snapshot = desk.snapshot_of(SECTION, 2)
    assert await asking.deployments("tiny") == []
    assert await (await smart(desk)).deployments("tiny")


# -- custom strategies -------------------------------------------------------------------------------------------------


class Last:
    """Takes the last of the models."""

    async def select_model(self, context: dict[str, Any], models: list[str]) -> str:
        return models[-1]


class Unruly:
    """Names a model that it was not asked about."""

    async def select_model(self, context: dict[str, Any], models: list[str]) -> str:
        return "tiny"


@pytest.mark.parametrize(("name", "ranked"), [("Last", ["small", "large"]), ("Unruly", ["large", "small"])])
async def test_a_strategy_chooses_among_the_candidates_and_no_other(name: str, ranked: list[str]) -> None:
    policy = {"smart": {"candidates": ["large", "small"], "objective": "mine"}}
    routing = {"policies": policy, "strategies": {"mine": f"{__name__}.{name}"}}
    with RoutingDesk(SECTION | {"routing": routing}, GROUPS) as desk:
        assert (await smart(desk)).ranked == ranked


# -- what operators see ------------------------------------------------------------------------------------------------


async def test_status_and_metrics_say_how_rules_audiences_and_strategies_did() -> None:
    routing = {
        "policies": {"smart": {"candidates": ["large", "small"], "objective": "mine"}},
        "strategies": {"mine": f"{__name__}.Unruly"},
        "rules": [rule(prefer=["small"], when="metadata.app > 5") | {"id": "broken"}, rule(use=["large", "small"])],
        "experiments": [
            {
                "id": "e",
                "policy": "smart",
                "status": "running",
                "audience": "metadata.app > 5",
                "variants": [{"id": "a", "model": "large"}, {"id": "b", "model": "small"}],
            }
        ],
    }
    with RoutingDesk(SECTION | {"routing": routing}, GROUPS) as desk:
        assert routing_status() == {"rules": [], "audience_failures": {}, "strategies": {}}
        await smart(desk)
        await smart(desk, metadata={"app": "six"})
        told, read = routing_status(), {(name, *labels): value for name, labels, value in of_routing()}
    why = "it compares or combines values of different kinds"
    assert told["rules"] == [
        {"id": "broken", "hits": 0, "failures": 1, "last_failure": why},
        {"id": "rule", "hits": 2, "failures": 0, "last_failure": None},
    ]
    assert (told["audience_failures"], told["strategies"]) == ({"e": 1}, {"mine": {"unknown_model": 2}})
    assert read == {
        ("rule_hits_total", "rule"): 2,
        ("rule_failures_total", "rule"): 0,
        ("rule_hits_total", "broken"): 0,
        ("rule_failures_total", "broken"): 1,
        ("audience_failures_total", "e"): 1,
        ("strategy_calls_total", "mine", "unknown_model"): 2,
    }


# -- fields and prefixes -----------------------------------------------------------------------------------------------

ENDPOINTS = ("chat_completions", "completions", "responses", "messages", "generate_content")


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(("given", "set_", "found"), [(None, 50, 50), (100, 50, 50), (20, 50, 20)])
def test_an_output_limit_is_only_ever_lowered(endpoint: str, given: int | None, set_: int, found: int) -> None:
    body: dict[str, Any] = {}
    if given is not None:
        set_fields(endpoint, body, {"max_tokens": given})
    set_fields(endpoint, body, {"max_tokens": set_})
    assert read_output_limit(endpoint, body) == found


@pytest.mark.parametrize("endpoint", ENDPOINTS[:4])
def test_a_field_that_is_set_wins_over_the_clients_wherever_it_stands(endpoint: str) -> None:
    body: dict[str, Any] = {"temperature": 2, "extra_body": {"temperature": 2, "kept": 1}}
    set_fields(endpoint, body, {"temperature": 0, "timeout": 3})
    assert body == {"temperature": 0, "timeout": 3, "extra_body": {"kept": 1}}


def test_an_endpoint_that_generates_nothing_has_a_timeout_and_tags_but_no_temperature() -> None:
    body: dict[str, Any] = {"input": "x"}
    set_fields("embeddings", body, {"temperature": 0, "max_tokens": 5, "timeout": 3, "tags": ["a"]})
    assert body == {"input": "x", "timeout": 3, "metadata": {"tags": ["a"]}}


@pytest.mark.parametrize("place", ["metadata", "litellm_metadata"])
def test_tags_join_those_of_the_client_where_litellm_looks_for_them(place: str) -> None:
    body: dict[str, Any] = {place: {"tags": ["own"], "x": 1}}
    set_fields("chat_completions", body, {"tags": ["ours"]})
    assert body == {place: {"tags": ["own", "ours"], "x": 1}}


@pytest.mark.parametrize(
    ("endpoint", "body", "found"),
    [
        ("chat_completions", {"messages": []}, {"messages": [{"role": "system", "content": "Hi."}]}),
        (
            "chat_completions",
            {"messages": [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "x"}]},
            {"messages": [{"role": "developer", "content": "Hi.\n\nBe kind."}, {"role": "user", "content": "x"}]},
        ),
        (
            "chat_completions",
            {"messages": [{"role": "system", "content": [{"type": "text", "text": "Be kind."}]}]},
            {
                "messages": [
                    {
                        "role": "system",
                        "content": [{"type": "text", "text": "Hi."}, {"type": "text", "text": "Be kind."}],
                    }
                ]
            },
        ),
        ("completions", {"prompt": "x"}, {"prompt": "Hi.\n\nx"}),
        ("completions", {"prompt": ["x", "y"]}, {"prompt": ["Hi.\n\nx", "Hi.\n\ny"]}),
        ("responses", {"input": "x"}, {"input": "x", "instructions": "Hi."}),
        ("responses", {"instructions": "Be kind."}, {"instructions": "Hi.\n\nBe kind."}),
        ("messages", {}, {"system": "Hi."}),
        (
            "messages",
            {"system": [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}]},
            {
                "system": [
                    {"type": "text", "text": "Hi."},
                    {"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}},
                ]
            },
        ),
        ("generate_content", {}, {"systemInstruction": {"parts": [{"text": "Hi."}]}}),
        ("embeddings", {"input": "x"}, {"input": "x"}),
    ],
)
def test_a_prefix_stands_in_front_of_the_system_prompt_of_each_dialect(
    endpoint: str, body: dict[str, Any], found: dict[str, Any]
) -> None:
    before = len(orjson.dumps(body))
    grown = put_in_front(endpoint, body, "Hi.")
    assert body == found
    assert len(orjson.dumps(body)) - before <= grown, "the bytes that budgets count with"


async def test_a_prefix_is_put_in_once_though_the_request_comes_by_twice(opened: Open) -> None:
    arm = {"id": "a", "system_prefix": "Hi."}
    experiment = {"id": "e", "policy": "smart", "variants": [arm, arm | {"id": "b"}], "status": "running"}
    asking = await smart(opened(experiments=[experiment]))
    await asking.begin(asking.desk.identity("ada"))
    assert [message["role"] for message in asking.data["messages"]] == ["system", "user"]
    assert asking.data["messages"][0]["content"] == "Hi."
