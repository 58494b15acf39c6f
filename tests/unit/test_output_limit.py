"""The limit that is sent is the limit that is reserved, whatever names, places and detours a client finds for it."""

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import BadField
from plugins.budgets.extra_body import merge_extra_body
from plugins.budgets.output_limit import (
    COPIES,
    HOLDERS,
    LIMITS,
    copies,
    limit_names,
    read_output_limit,
    set_output_limit,
    takes_output_limit,
)

ENDPOINTS = ("chat_completions", "completions", "responses", "messages", "generate_content")


def limits_in(value: Any, path: str = "") -> dict[str, int]:
    """Every limit that stands anywhere in a body."""
    found: dict[str, int] = {}
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in LIMITS and inner is not None and "reasoning" not in path:
                found[f"{path}.{name}"] = inner
            else:
                found |= limits_in(inner, f"{path}.{name}")
    return found


# -- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        ({}, None),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 7}, 7),
        ({"max_output_tokens": 7}, 7),
        ({"max_tokens": 7, "max_completion_tokens": 9}, 9),
        ({"max_tokens": "12"}, 12),
        ({"max_tokens": 12.5}, 13),
        ({"max_tokens": None}, None),
        ({"max_tokens": True}, None),
        ({"max_tokens": 0}, None),
        ({"max_tokens": -5}, None),
        ({"max_tokens": "many"}, None),
        ({"generationConfig": {"maxOutputTokens": 5}}, 5),
        ({"options": {"num_predict": 5}}, 5),
        ({"max_tokens": 7, "extra_body": {"max_new_tokens": 70}}, 70),
        ({"max_tokens": 7, "extra_body": {"options": {"num_predict": 71}}}, 71),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, None),
        ({"max_tokens": 3000, "thinking": {"type": "enabled", "budget_tokens": 2000}}, 3000),
        ({"max_tokens": 1000, "thinking": {"type": "enabled", "budget_tokens": 2000}}, 2001),
        ({"max_tokens": 1000, "thinking": {"type": "adaptive"}}, 1000),
        ({"max_tokens": 10, "reasoning": {"max_tokens": 50}}, 51),
        ({"generationConfig": {"maxOutputTokens": 5, "thinkingConfig": {"thinkingBudget": 9}}}, 10),
    ],
)
def test_the_largest_limit_under_any_name_counts(body: dict[str, Any], limit: int | None) -> None:
    assert read_output_limit("chat_completions", body) == limit


# -- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "before", "after"),
    [
        ("chat_completions", {}, {"max_tokens": 50}),
        ("chat_completions", {"max_completion_tokens": 9}, {"max_completion_tokens": 50}),
        (
            "chat_completions",
            {"max_tokens": 9, "max_completion_tokens": 99},
            {"max_tokens": 50, "max_completion_tokens": 50},
        ),
        ("chat_completions", {"max_new_tokens": 500, "num_predict": 8}, {"max_tokens": 50}),
        ("chat_completions", {"options": {"num_predict": 500, "seed": 1}},
         {"max_tokens": 50, "options": {"num_predict": 50, "seed": 1}}),
        ("completions", {"max_tokens": None}, {"max_tokens": 50}),
        ("responses", {"max_tokens": 99}, {"max_output_tokens": 50}),
        ("messages", {"max_tokens": 99}, {"max_tokens": 50}),
        ("generate_content", {}, {"generationConfig": {"maxOutputTokens": 50}}),
        ("generate_content", {"config": {"temperature": 1}}, {"config": {"temperature": 1, "maxOutputTokens": 50}}),
        ("chat_completions", {"extra_body": {"max_tokens": 9999, "top_k": 3}},
         {"max_tokens": 50, "extra_body": {"top_k": 3}}),
    ],
)  # fmt: skip
def test_the_limit_is_written_where_the_client_had_it(
    endpoint: str, before: dict[str, Any], after: dict[str, Any]
) -> None:
    set_output_limit(endpoint, before, 50)
    assert before == after


def test_a_thinking_budget_stays_below_the_limit() -> None:
    body: dict[str, Any] = {"max_tokens": 9000, "thinking": {"type": "enabled", "budget_tokens": 8000}}
    set_output_limit("messages", body, 5000)
    assert body == {"max_tokens": 5000, "thinking": {"type": "enabled", "budget_tokens": 4999}}


def test_thinking_is_switched_off_where_no_budget_is_left() -> None:
    body: dict[str, Any] = {"max_tokens": 9000, "thinking": {"type": "enabled", "budget_tokens": 8000}}
    set_output_limit("messages", body, 1024)
    assert body == {"max_tokens": 1024, "thinking": {"type": "disabled"}}


def test_a_thinking_budget_that_fits_is_left_alone() -> None:
    thinking = {"type": "enabled", "budget_tokens": 2000}
    body: dict[str, Any] = {"max_tokens": 9000, "thinking": thinking}
    set_output_limit("messages", body, 5000)
    assert body["thinking"] is thinking


def test_a_limit_of_nothing_is_not_written() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        set_output_limit("chat_completions", {}, 0)


_values = st.one_of(st.none(), st.integers(-5, 10**7), st.sampled_from(["12", "x", 3.5, True]))
_flat = st.dictionaries(st.sampled_from(sorted(LIMITS | COPIES | {"temperature"})), _values, max_size=4)
_thinking = st.fixed_dictionaries({"type": st.just("enabled"), "budget_tokens": st.integers(1, 10**6)})
_holders = st.dictionaries(st.sampled_from(sorted(HOLDERS)), _flat, max_size=2)
_extra = st.builds(lambda flat, held: {**flat, **held}, _flat, _holders)
_bodies = st.builds(
    lambda flat, held, thinking, extra: {
        **flat,
        **held,
        **({"thinking": thinking} if thinking else {}),
        **({"extra_body": extra} if extra is not None else {}),
    },
    _flat,
    _holders,
    st.one_of(st.none(), _thinking),
    st.one_of(st.none(), _extra),
)


@pytest.mark.slow
@settings(derandomize=True, deadline=None, max_examples=600)
@given(endpoint=st.sampled_from(ENDPOINTS), body=_bodies, tokens=st.integers(1, 10**6), merge=st.booleans())
def test_no_other_limit_is_ever_sent(endpoint: str, body: dict[str, Any], tokens: int, merge: bool) -> None:
    body = json.loads(json.dumps(body))
    number = copies(body)
    if merge:
        merge_extra_body(endpoint, body)
        assert copies(body) <= number
    set_output_limit(endpoint, body, tokens)
    sent = limits_in(body)
    assert sent and set(sent.values()) == {tokens}
    assert read_output_limit(endpoint, body) == tokens


def test_a_name_that_a_provider_does_not_take_is_not_used() -> None:
    body: dict[str, Any] = {"max_completion_tokens": 90}
    set_output_limit("chat_completions", body, 50, taken={"max_tokens"})
    assert body == {"max_tokens": 50}


# -- past LiteLLM -----------------------------------------------------------------------------------------------------


def test_extra_body_wins_as_it_would_at_the_provider_and_the_rest_stays() -> None:
    body: dict[str, Any] = {
        "max_tokens": 5,
        "n": 1,
        "extra_body": {"max_tokens": 9999, "n": 8, "service_tier": "priority", "top_k": 3, "thinking": {"type": "x"}},
    }
    merge_extra_body("chat_completions", body)
    assert body == {
        "max_tokens": 9999,
        "n": 8,
        "service_tier": "priority",
        "extra_body": {"top_k": 3, "thinking": {"type": "x"}},
    }


def test_an_extra_body_of_which_nothing_is_left_goes() -> None:
    body: dict[str, Any] = {"extra_body": {"tools": [{"type": "web_search"}]}}
    merge_extra_body("responses", body)
    assert body == {"tools": [{"type": "web_search"}]}


@pytest.mark.parametrize(
    ("fallbacks", "where"),
    [
        ([{"model": "large", "max_tokens": 900}], "fallbacks[0].max_tokens"),
        (["small", {"model": "large", "n": 9}], "fallbacks[1].n"),
        ([{"small": [{"model": "large", "messages": []}]}], "fallbacks[0].small[0].messages"),
    ],
)
def test_a_fallback_brings_no_fields_of_its_own(fallbacks: list[Any], where: str) -> None:
    with pytest.raises(BadField, match=re.escape(where)):
        merge_extra_body("chat_completions", {"fallbacks": fallbacks})


def test_a_fallback_may_be_named_in_any_form() -> None:
    merge_extra_body("chat_completions", {"fallbacks": ["a", {"model": "b"}, {"small": ["c", {"model": "d"}]}]})


def test_a_clients_own_dictionary_is_not_changed() -> None:
    extra = {"n": 8, "top_k": 3}
    merge_extra_body("chat_completions", {"extra_body": extra})
    assert extra == {"n": 8, "top_k": 3}


@pytest.mark.parametrize("name", ["model", "messages", "input", "fallbacks", "extra_body", "input_cost_per_token"])
def test_what_cannot_be_merged_is_refused_by_name(name: str) -> None:
    with pytest.raises(BadField, match=f"extra_body.{name}"):
        merge_extra_body("chat_completions", {"extra_body": {name: "x"}})


@pytest.mark.parametrize("extra", ["{}", [1], 5])
def test_an_extra_body_must_be_an_object(extra: object) -> None:
    with pytest.raises(BadField, match="must be an object"):
        merge_extra_body("chat_completions", {"extra_body": extra})


@pytest.mark.parametrize("name", ["input_cost_per_token", "output_cost_per_second", "base_model", "model_list"])
def test_prices_are_not_for_clients(name: str) -> None:
    with pytest.raises(BadField, match=name):
        merge_extra_body("chat_completions", {name: 0})


def test_litellm_cannot_be_told_to_drop_the_limit() -> None:
    body: dict[str, Any] = {"additional_drop_params": ["max_tokens", "logit_bias", "generationConfig.maxOutputTokens"]}
    merge_extra_body("chat_completions", body)
    assert body == {"additional_drop_params": ["logit_bias"]}


@pytest.mark.parametrize("name", ["X-Amzn-Bedrock-Service-Tier", "x-vertex-ai-llm-shared-request-type"])
def test_a_header_cannot_change_the_price(name: str) -> None:
    with pytest.raises(BadField, match="service_tier"):
        merge_extra_body("chat_completions", {"extra_headers": {name: "priority"}})
    merge_extra_body("chat_completions", {"extra_headers": {"x-trace": "1"}})


# -- providers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        *("openai/gpt-4o", "openai/o3", "anthropic/claude-sonnet-4-5", "gemini/gemini-2.5-flash", "ollama/llama3"),
        *("bedrock/anthropic.claude-3-haiku-20240307-v1:0", "azure/gpt-4o", "vertex_ai/gemini-2.5-pro", "groq/x"),
    ],
)
def test_the_large_providers_take_a_limit(model: str) -> None:
    assert takes_output_limit(model)


def test_a_model_of_no_known_provider_takes_none() -> None:
    assert not takes_output_limit("no-such-provider-at-all")


SENT = {
    "openai/gpt-4o": ("max_completion_tokens",),
    "openai/o3": ("max_completion_tokens",),
    "anthropic/claude-sonnet-4-5": ("max_tokens",),
    "gemini/gemini-2.5-flash": ("max_output_tokens",),
    "ollama/llama3": ("num_predict",),
    "bedrock/anthropic.claude-3-haiku-20240307-v1:0": ("maxTokens", "max_tokens"),
    "replicate/meta/llama": ("max_new_tokens", "max_tokens"),
    "watsonx/ibm/granite": ("max_tokens", "max_new_tokens"),
}


@pytest.mark.parametrize("model", SENT)
def test_litellm_sends_the_limit_we_write_and_no_other(model: str) -> None:
    from litellm import get_llm_provider
    from litellm.utils import get_optional_params

    body: dict[str, Any] = {"max_new_tokens": 9999, "num_predict": 9999, "max_completion_tokens": 9999}
    set_output_limit("chat_completions", body, 77, taken=limit_names(model))
    name, provider, *_ = get_llm_provider(model)
    sent = get_optional_params(model=name, custom_llm_provider=provider, **body)
    found = {key: value for key, value in sent.items() if key in LIMITS}
    assert set(found.values()) == {77}
    assert set(found) <= set(SENT[model])
    assert limits_in(sent.get("extra_body") or {}) == {}
