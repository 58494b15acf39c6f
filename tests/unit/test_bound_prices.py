"""Prices of model groups, and the promise they are for: no answer within its limits costs more than its bound."""

import itertools
import random
from decimal import ROUND_CEILING, Decimal
from functools import cache
from typing import Any

import litellm
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from litellm.types.utils import CustomPricingLiteLLMParams, ImageUsage, ImageUsageInputTokensDetails

from core.money import nano_dollars
from plugins.budgets.bound import bound
from plugins.budgets.price_fields import MULTIPLIERS, NESTED, NOT_APPLICABLE, field_of, is_unknown
from plugins.budgets.prices import GroupPrices, group_prices
from plugins.budgets.rates import ATTO_PER_DOLLAR

_CHAT = ("chat", "responses")
_NOT_LITELLM_PROVIDERS = ("vertex_ai-",)


def deployment(model: str, info: dict[str, Any] | None = None, **params: Any) -> dict[str, Any]:
    return {"model_name": "group", "litellm_params": {"model": model, **params}, "model_info": info or {}}


def atto(dollars: float | str) -> int:
    return int((Decimal(str(dollars)) * ATTO_PER_DOLLAR).to_integral_value(rounding=ROUND_CEILING))


# -- fields ---------------------------------------------------------------------------------------------------------


def test_every_price_field_of_the_price_map_is_handled_or_known_not_to_apply() -> None:
    fields = {name for entry in litellm.model_cost.values() for name in entry}
    fields |= set(CustomPricingLiteLLMParams.model_fields)
    assert [name for name in sorted(fields) if is_unknown(name)] == []


def test_every_price_field_inside_another_is_handled() -> None:
    nested: set[str] = set()
    for entry in litellm.model_cost.values():
        off_peak = entry.get("off_peak_pricing") or {}
        nested |= set(off_peak) - {"windows", "hours_utc", "weekday_timezone"}
        nested |= {name for tier in entry.get("tiered_pricing") or [] for name in tier}
    assert [name for name in sorted(nested - {"range", "max_results_range"}) if field_of(name) is None] == []


def test_a_price_field_of_a_newer_litellm_is_noticed() -> None:
    assert is_unknown("input_cost_per_hologram")
    assert is_unknown("output_cost_per_token_luxurious")
    assert not is_unknown("mode")


def test_what_does_not_apply_says_why() -> None:
    assert all(reason for reason in NOT_APPLICABLE.values())
    assert MULTIPLIERS.fullmatch("regional_endpoint_uplift_multiplier")
    assert set(NESTED) == {"tiered_pricing", "off_peak_pricing"}


@pytest.mark.parametrize(
    ("name", "kind", "service", "above"),
    [
        ("input_cost_per_token", "input", "", 0),
        ("cache_read_input_token_cost_above_200k_tokens_priority", "input", "priority", 200_000),
        ("input_cost_per_token_priority_above_200k_tokens", "input", "priority", 200_000),
        ("cache_creation_input_token_cost_above_1hr_above_200k_tokens", "written_hour", "", 200_000),
        ("output_cost_per_image_4K", "output_image", "", 0),
        ("output_cost_per_second_1080p", "second", "", 0),
        ("output_cost_per_reasoning_token_flex", "output", "flex", 0),
        ("output_cost_per_token_above_128k_tokens", "output", "", 0),
    ],
)
def test_a_field_says_what_it_prices_and_when(name: str, kind: str, service: str, above: int) -> None:
    assert field_of(name) == (kind, service, above)


# -- groups ---------------------------------------------------------------------------------------------------------

PRICES = {
    "cheap": {"input_cost_per_token": 1e-7, "output_cost_per_token": 4e-7, "mode": "chat", "max_output_tokens": 100},
    "dear": {"input_cost_per_token": 3e-7, "output_cost_per_token": 2e-7, "mode": "chat", "max_output_tokens": 50},
    "tiered": {
        "input_cost_per_token": 1e-7,
        "input_cost_per_token_above_200k_tokens": 2e-7,
        "output_cost_per_token": 4e-7,
        "output_cost_per_token_above_200k_tokens": 5e-7,
    },
    "fast": {
        "input_cost_per_token": 1e-7,
        "input_cost_per_token_priority": 2e-7,
        "output_cost_per_token": 1e-7,
        "output_cost_per_reasoning_token": 7e-7,
    },
    "claude-x": {
        "input_cost_per_token": 1e-6,
        "cache_creation_input_token_cost": 1.25e-6,
        "cache_creation_input_token_cost_above_1hr": 2e-6,
        "output_cost_per_token": 5e-6,
    },
    "odd": {"input_cost_per_token": 3.0001999999999996e-07, "output_cost_per_token": "2e-06"},
}


def prices(*models: str, **settings: Any) -> GroupPrices:
    return GroupPrices.of([deployment(model) for model in models], PRICES, **settings)


def test_a_group_costs_the_highest_price_of_each_kind() -> None:
    group = prices("openai/cheap", "openai/dear")
    rate = group.rate("", 1000)
    assert (rate.input, rate.output) == (atto(3e-7), atto(4e-7))
    assert group.priced and group.output_limit == 100


def test_a_group_with_one_unpriced_deployment_is_not_priced() -> None:
    group = prices("openai/cheap", "openai/nobody-knows")
    assert not group.priced
    assert group.unpriced("input") == ("openai/nobody-knows",)
    assert group.output_limit is None


def test_prices_are_exact_to_the_last_digit_of_the_map() -> None:
    rate = prices("openai/odd").rate("", 1)
    assert rate.input == 300_019_999_999_960_000 // 1_000_000 or rate.input == atto(3.0001999999999996e-07)
    assert rate.output == 2 * 10**12


def test_a_long_context_price_counts_only_from_its_threshold_on() -> None:
    group = prices("openai/tiered")
    assert (group.rate("", 199_999).input, group.rate("", 199_999).output) == (atto(1e-7), atto(4e-7))
    assert (group.rate("", 200_001).input, group.rate("", 200_001).output) == (atto(2e-7), atto(5e-7))


def test_a_service_class_costs_its_own_price_but_never_less_than_the_standard_one() -> None:
    group = prices("openai/fast")
    assert group.rate("", 1).input == atto(1e-7)
    assert group.rate("priority", 1).input == atto(2e-7)
    assert group.rate("flex", 1).input == atto(1e-7)
    assert group.rate("any", 1).input == atto(2e-7)


def test_reasoning_tokens_are_priced_as_output() -> None:
    assert prices("openai/fast").rate("", 1).output == atto(7e-7)


def test_writing_to_the_cache_costs_more_only_where_it_is_asked_for() -> None:
    rate = prices("anthropic/claude-x").rate("", 1)
    assert (rate.input, rate.written, rate.written_hour) == (atto(1e-6), atto(1.25e-6), atto(2e-6))


def test_a_deployment_that_injects_cache_control_always_writes() -> None:
    group = GroupPrices.of([deployment("anthropic/claude-x", cache_control_injection_points=[{}])], PRICES)
    assert group.rate("", 1).input == atto(2e-6)


def test_prices_of_the_configuration_go_before_those_of_the_map() -> None:
    for entry in (
        deployment("openai/cheap", {"input_cost_per_token": "5e-8", "output_cost_per_token": 9e-7}),
        deployment("openai/cheap", input_cost_per_token=5e-8, output_cost_per_token=9e-7),
    ):
        rate = GroupPrices.of([entry], PRICES).rate("", 1)
        assert (rate.input, rate.output) == (atto(5e-8), atto(9e-7))


def test_prices_under_a_deployments_id_are_its_own() -> None:
    own = {**PRICES, "id-1": {"input_cost_per_token": 8e-7, "output_cost_per_token": 9e-7}}
    rate = GroupPrices.of([deployment("azure/my-deployment", {"id": "id-1"})], own).rate("", 1)
    assert (rate.input, rate.output) == (atto(8e-7), atto(9e-7))


def test_a_base_model_prices_a_deployment() -> None:
    group = GroupPrices.of([deployment("azure/my-deployment", {"base_model": "cheap"})], PRICES)
    assert group.rate("", 1).output == atto(4e-7)


def test_a_price_of_zero_is_a_price() -> None:
    group = GroupPrices.of([deployment("ollama/x", {"input_cost_per_token": 0, "output_cost_per_token": 0})], PRICES)
    assert group.priced and group.by("input") and group.rate("", 1).output == 0


def test_a_deployment_that_may_answer_with_any_model_has_no_price() -> None:
    assert not group_prices([deployment("azure_ai/model_router")]).priced


def test_litellms_margins_are_part_of_the_price() -> None:
    group = prices("openai/cheap", margins={"openai": {"percentage": 0.1, "fixed_amount": 0.001}})
    assert (group.rate("", 1).input, group.fee) == (atto("1.1e-7"), atto("0.001"))
    assert prices("openai/cheap", margins={"global": 0.5}).rate("", 1).input == atto("1.5e-7")


def test_a_regional_endpoint_costs_its_uplift() -> None:
    map_ = {"gem": {**PRICES["cheap"], "regional_endpoint_uplift_multiplier": 1.1}}
    here = GroupPrices.of([deployment("vertex_ai/gem", vertex_location="us-east5")], map_)
    everywhere = GroupPrices.of([deployment("vertex_ai/gem", vertex_location="global")], map_)
    assert (here.rate("", 1).input, everywhere.rate("", 1).input) == (atto("1.1e-7"), atto("1e-7"))


# -- the promise ----------------------------------------------------------------------------------------------------


def _provider(entry: dict[str, Any]) -> str:
    provider = str(entry["litellm_provider"])
    return "vertex_ai" if provider.startswith("vertex_ai-") else provider


@cache
def _models(*modes: str) -> list[str]:
    """Models of the map that LiteLLM can price by their name, in an order of no meaning."""
    found = []
    for name, entry in litellm.model_cost.items():
        if entry.get("mode") not in modes or "*" in name or name == "sample_spec":
            continue
        found.append(name)
    random.Random(5).shuffle(found)
    return found


@cache
def _group(name: str) -> GroupPrices:
    provider = _provider(litellm.model_cost[name])
    model = name if name.startswith(f"{provider}/") else f"{provider}/{name}"
    return group_prices([deployment(model)])


def _cost(name: str, usage: litellm.Usage, call_type: str, **optional: Any) -> int | None:
    """What LiteLLM makes of `usage`, None where it has no price."""
    provider = _provider(litellm.model_cost[name])
    bare = name.removeprefix(f"{provider}/")
    if call_type == "aembedding":
        answer: Any = litellm.EmbeddingResponse(model=bare, usage=usage)
    else:
        answer = litellm.ModelResponse(model=bare, usage=usage)
    try:
        cost = litellm.completion_cost(
            completion_response=answer,
            model=bare,
            custom_llm_provider=provider,
            call_type=call_type,  # pyright: ignore[reportArgumentType]
            optional_params=optional,
        )
    except Exception:
        return None
    return nano_dollars(cost)


PROFILE = settings(
    derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)

_TIERS = (None, None, "default", "flex", "priority", "auto", "fast", "ultrafast")
_lengths = st.one_of(st.integers(0, 3000), st.integers(90_000, 1_100_000))


def _up_to(most: int) -> st.SearchStrategy[int]:
    """Numbers up to `most`, which itself comes up often: a bound that is short is short there."""
    return st.one_of(st.just(most), st.integers(0, most))


@st.composite
def _parts(draw: st.DrawFn, total: int, count: int) -> list[int]:
    """`count` numbers whose sum is `total` at most."""
    left, found = total, []
    for _ in range(count):
        part = draw(st.one_of(st.just(0), _up_to(left)))
        found.append(part)
        left -= part
    return found


@pytest.mark.slow
@settings(PROFILE, max_examples=1500)
@given(data=st.data())
def test_no_conversation_costs_more_than_its_bound(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(_models(*_CHAT)))
    entry = litellm.model_cost[name]
    length = data.draw(_lengths)
    images, seconds = data.draw(st.integers(0, 2)), data.draw(st.sampled_from([0, 0, 3, 900]))
    ttl = data.draw(st.sampled_from([None, "5m", "1h"]))
    limit = data.draw(st.integers(1, 70_000))
    number = data.draw(st.sampled_from([1, 1, 2, 4]))
    tier = data.draw(st.sampled_from(_TIERS))
    spoken = data.draw(st.booleans())
    speed = data.draw(st.sampled_from([None, None, "fast"]))
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 64}}
    sound = {"type": "input_audio", "input_audio": {"data": "A" * (seconds * 500 * 4 // 3 + 4), "format": "mp3"}}
    text: dict[str, Any] = {"type": "text", "text": "…"}
    if ttl:
        text["cache_control"] = {"type": "ephemeral", "ttl": ttl}
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": [text, *[picture] * images, *([sound] if seconds else [])]}],
        data.draw(st.sampled_from(["max_tokens", "max_completion_tokens"])): limit,
        "n": number,
    }
    body |= {"service_tier": tier} if tier else {}
    body |= {"modalities": ["text", "audio"]} if spoken else {}
    body |= {"speed": speed} if speed else {}
    media = images * 64 + len(sound["input_audio"]["data"]) * bool(seconds)
    own = bound("chat_completions", body, length + media, _group(name))
    if own.unbounded:
        return

    picture_tokens = data.draw(_up_to(images * 16_384))
    sound_tokens = data.draw(_up_to(seconds * 32))
    plain = data.draw(_up_to(length))
    cached, written, hour = data.draw(_parts(plain, 3))
    caches = ttl is not None or "claude" not in name.lower()
    written = written if caches else 0
    hour = hour if ttl == "1h" and "claude" in name else 0
    output = data.draw(_up_to(limit * number))
    thought, said = data.draw(_parts(output, 2))
    details: dict[str, Any] = {"reasoning_tokens": thought}
    if spoken:
        details["audio_tokens"] = said
    prompt: dict[str, Any] = {"cached_tokens": cached, "image_tokens": picture_tokens, "audio_tokens": sound_tokens}
    if written or hour:
        prompt["cache_creation_tokens"] = written + hour
        prompt["cache_creation_token_details"] = {
            "ephemeral_5m_input_tokens": written,
            "ephemeral_1h_input_tokens": hour,
        }
    total = plain + picture_tokens + sound_tokens
    usage = litellm.Usage(
        prompt_tokens=total,
        completion_tokens=output,
        total_tokens=total + output,
        prompt_tokens_details=prompt,  # pyright: ignore[reportArgumentType]
        completion_tokens_details=details,  # pyright: ignore[reportArgumentType]
    )
    if speed:
        usage.speed = speed  # pyright: ignore[reportAttributeAccessIssue]
    if data.draw(st.booleans()):
        usage.inference_geo = "us"  # pyright: ignore[reportAttributeAccessIssue]
    cost = _cost(name, usage, "acompletion", **({"service_tier": tier} if tier else {}))
    assert cost is None or cost <= own.cost(limit), (name, entry, own, usage)
    if own.output_atto:
        assert own.tokens_for(own.cost(limit)) >= limit
        assert own.cost(own.tokens_for(own.cost(limit))) <= own.cost(limit)


_NUMBERS = itertools.count()
_OWN_PRICES = (
    *(
        "input_cost_per_token",
        "output_cost_per_token",
        "cache_read_input_token_cost",
        "output_cost_per_reasoning_token",
    ),
    *("cache_creation_input_token_cost", "input_cost_per_token_above_200k_tokens"),
    *("input_cost_per_token_priority", "output_cost_per_token_above_200k_tokens", "output_cost_per_token_flex"),
)


@pytest.mark.slow
@settings(PROFILE, max_examples=250)
@given(data=st.data())
def test_no_conversation_costs_more_than_its_bound_at_a_deployments_own_prices(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(_models(*_CHAT)))
    own_prices = data.draw(st.dictionaries(st.sampled_from(_OWN_PRICES), st.floats(0, 1e-4), min_size=1))
    length, limit, tier = data.draw(_lengths), data.draw(st.integers(1, 70_000)), data.draw(st.sampled_from(_TIERS))
    provider = _provider(litellm.model_cost[name])
    bare = name.removeprefix(f"{provider}/")
    body = {"messages": [{"role": "user", "content": "…"}], "max_tokens": limit}
    body |= {"service_tier": tier} if tier else {}
    with pytest.MonkeyPatch.context() as patch:
        # A new name each time, for LiteLLM remembers what it found under one.
        own_id = f"own-{next(_NUMBERS)}"
        patch.setitem(litellm.model_cost, own_id, {**own_prices, "litellm_provider": provider, "mode": "chat"})
        own = bound("chat_completions", body, length, group_prices([deployment(f"{provider}/{bare}", {"id": own_id})]))
        if own.unbounded:
            return
        cached, thought = data.draw(_up_to(length)), data.draw(_up_to(limit))
        usage = litellm.Usage(
            prompt_tokens=length,
            completion_tokens=limit,
            total_tokens=length + limit,
            prompt_tokens_details={"cached_tokens": cached},  # pyright: ignore[reportArgumentType]
            completion_tokens_details={"reasoning_tokens": thought},  # pyright: ignore[reportArgumentType]
        )
        try:
            cost = litellm.completion_cost(
                completion_response=litellm.ModelResponse(model=bare, usage=usage),
                model=bare,
                custom_llm_provider=provider,
                call_type="acompletion",
                custom_pricing=True,
                router_model_id=own_id,
                optional_params={"service_tier": tier} if tier else {},
            )
        except Exception:
            return
    assert nano_dollars(cost) <= own.cost(limit), (name, own_prices, own)


@settings(PROFILE, max_examples=250)
@given(data=st.data())
def test_no_embedding_costs_more_than_its_bound(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(_models("embedding")))
    length = data.draw(_lengths)
    ids = data.draw(st.booleans())
    given_input: Any = list(range(1, 400)) if ids else ["…"]
    own = bound("embeddings", {"input": given_input}, length if not ids else 1600, _group(name))
    if own.unbounded:
        return
    tokens = data.draw(st.integers(0, 399 if ids else length))
    usage = litellm.Usage(prompt_tokens=tokens, completion_tokens=0, total_tokens=tokens)
    cost = _cost(name, usage, "aembedding")
    assert cost is None or cost <= own.cost(0), (name, own, usage)


@pytest.mark.slow
@settings(PROFILE, max_examples=250)
@given(data=st.data())
def test_no_picture_costs_more_than_its_bound(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(_models("image_generation", "image_edit")))
    provider = _provider(litellm.model_cost[name])
    size = data.draw(st.sampled_from([None, "1024x1024", "1024x1536", "1792x1024", "512x512"]))
    quality = data.draw(st.sampled_from([None, "low", "medium", "high", "hd", "standard"]))
    number = data.draw(st.integers(1, 4))
    body = {"prompt": "a cat", "n": number}
    body |= {"size": size} if size else {}
    body |= {"quality": quality} if quality else {}
    bare = name.rpartition("/")[2]
    own = bound("images", body, 100, group_prices([deployment(f"{provider}/{bare}")]))
    if own.unbounded:
        return
    answer = litellm.ImageResponse(data=[{"url": "x"}] * number)  # pyright: ignore[reportArgumentType]
    if data.draw(st.booleans()):
        made = data.draw(st.integers(1, 6240 * number))
        answer.usage = ImageUsage(
            input_tokens=20,
            output_tokens=made,
            total_tokens=20 + made,
            input_tokens_details=ImageUsageInputTokensDetails(text_tokens=20, image_tokens=0),
        )
    try:
        cost = litellm.completion_cost(
            completion_response=answer,
            model=bare,
            custom_llm_provider=provider,
            call_type="aimage_generation",
            size=size,
            quality=quality,
            n=number,
            optional_params=body,
        )
    except Exception:
        return
    assert nano_dollars(cost) <= own.cost(0), (name, body, own)


@settings(PROFILE, max_examples=200)
@given(data=st.data())
def test_no_transcription_costs_more_than_its_bound(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(_models("audio_transcription")))
    provider = _provider(litellm.model_cost[name])
    seconds = data.draw(st.integers(1, 20_000))
    own = bound("audio", {"file": "speech.mp3"}, seconds * 500, _group(name))
    if own.unbounded:
        return
    answer = litellm.TranscriptionResponse(text="hm")
    answer.duration = seconds  # pyright: ignore[reportAttributeAccessIssue]
    if data.draw(st.booleans()):
        heard, written = seconds * 10, seconds * 6
        answer.usage = litellm.Usage(  # pyright: ignore[reportAttributeAccessIssue]
            prompt_tokens=heard,
            completion_tokens=written,
            total_tokens=heard + written,
            prompt_tokens_details={"audio_tokens": heard},  # pyright: ignore[reportArgumentType]
        )
    try:
        cost = litellm.completion_cost(
            completion_response=answer,
            model=name.removeprefix(f"{provider}/"),
            custom_llm_provider=provider,
            call_type="atranscription",
        )
    except Exception:
        return
    assert nano_dollars(cost) <= own.cost(0), (name, own)


@pytest.mark.parametrize("name", list(_models("audio_speech")))
def test_no_speech_costs_more_than_its_bound(name: str) -> None:
    provider = _provider(litellm.model_cost[name])
    text = "Good morning, and welcome. " * 40
    own = bound("audio", {"input": text, "voice": "alloy"}, len(text) + 100, _group(name))
    if own.unbounded:
        return
    try:
        cost = litellm.completion_cost(
            model=name.removeprefix(f"{provider}/"), custom_llm_provider=provider, prompt=text, call_type="aspeech"
        )
    except Exception:
        return
    assert nano_dollars(cost) <= own.cost(0), (name, own)


@pytest.mark.parametrize("name", list(_models("rerank")))
def test_no_rerank_costs_more_than_its_bound(name: str) -> None:
    provider = _provider(litellm.model_cost[name])
    documents = ["word " * 700] * 150
    own = bound("rerank", {"query": "q", "documents": documents}, 150 * 3503 + 50, _group(name))
    if own.unbounded:
        return
    units = {"billed_units": {"search_units": 11, "total_tokens": 150 * 702}}
    answer = litellm.RerankResponse(id="x", results=[], meta=units)  # pyright: ignore
    try:
        cost = litellm.completion_cost(
            completion_response=answer,
            model=name.removeprefix(f"{provider}/"),
            custom_llm_provider=provider,
            call_type="arerank",
        )
    except Exception:
        return
    assert nano_dollars(cost) <= own.cost(0), (name, own)


def test_most_models_of_the_map_have_a_bound() -> None:
    names = _models(*_CHAT)[:800]
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    bounded = [name for name in names if not bound("chat_completions", body, 90, _group(name)).unbounded]
    assert len(bounded) > 0.9 * len(names)
