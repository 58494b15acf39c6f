"""What a request can cost at most: every way to make an answer dearer is seen, or refused in words."""

import json
from typing import Any

import pytest

from plugins.budgets.bound import Bound, bound
from plugins.budgets.exact import exact_input_tokens
from plugins.budgets.prices import GroupPrices

PRICES = {
    "plain": {
        "input_cost_per_token": 1e-6,
        "output_cost_per_token": 2e-6,
        "max_output_tokens": 4096,
        "max_input_tokens": 100_000,
        "mode": "chat",
    },
    "gpt-chat": {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6, "output_cost_per_audio_token": 8e-6},
    "claude-x": {
        "input_cost_per_token": 1e-6,
        "output_cost_per_token": 2e-6,
        "cache_creation_input_token_cost": 4e-6,
        "cache_creation_input_token_cost_above_1hr": 8e-6,
        "provider_specific_entry": {"us": 1.1, "fast": 2.0},
    },
    "embed": {"input_cost_per_token": 1e-6, "mode": "embedding"},
    "rank": {"input_cost_per_query": 0.001, "mode": "rerank"},
    "rank-by-token": {"input_cost_per_token": 1e-6, "mode": "rerank"},
    "draw": {"output_cost_per_image": 0.04, "mode": "image_generation"},
    "hd/1024-x-1024/draw-sized": {"input_cost_per_pixel": 1e-7, "mode": "image_generation"},
    "standard/1024-x-1024/draw-sized": {"input_cost_per_pixel": 4e-8, "mode": "image_generation"},
    "draw-sized": {"input_cost_per_pixel": 4e-8, "mode": "image_generation"},
    "speak": {"input_cost_per_character": 15e-6, "mode": "audio_speech"},
    "listen": {"input_cost_per_second": 1e-4, "mode": "audio_transcription"},
    "rented": {"input_cost_per_second": 1e-4, "mode": "chat"},
    "search": {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6, "citation_cost_per_token": 1e-6},
    "both": {
        "input_cost_per_token": 1e-6,
        "output_cost_per_token": 2e-6,
        "input_cost_per_token_priority": 3e-6,
        "output_cost_per_token_priority": 6e-6,
    },
}


def group(*models: str, **params: Any) -> GroupPrices:
    return GroupPrices.of(
        [{"litellm_params": {"model": model, **params}, "model_info": {}} for model in models], PRICES
    )


PLAIN = group("openai/plain")
USD = 10**9


def of(body: dict[str, Any], prices: GroupPrices = PLAIN, endpoint: str = "chat_completions", **more: Any) -> Bound:
    return bound(endpoint, body, len(json.dumps(body)), prices, **more)


def chat(*parts: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts) or "hello"}], **fields}


def test_every_byte_of_the_body_is_a_token_of_input() -> None:
    short, long = of(chat()), of({"messages": [{"role": "user", "content": "x" * 10_000}]})
    assert long.input_tokens - short.input_tokens == 10_000 - len("hello")
    assert long.input_nano - short.input_nano == (10_000 - len("hello")) * 1000


def test_an_exact_count_takes_the_place_of_the_bytes() -> None:
    assert of(chat(max_tokens=1), input_tokens=7).cost(1) == 7 * 1000 + 2000


def test_the_cost_counts_every_copy() -> None:
    one, four = of(chat(max_tokens=10)), of(chat(max_tokens=10, n=4))
    assert four.copies == 4
    assert four.cost(10) - four.cost(0) == 4 * (one.cost(10) - one.cost(0))


@pytest.mark.parametrize(
    ("body", "copies"),
    [
        ({"prompt": ["a", "b", "c"], "n": 2}, 6),
        ({"prompt": [[1, 2], [3]], "best_of": 3, "n": 2}, 6),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": "a", "n": "3"}, 3),
        ({"prompt": "a", "n": 2.5}, 3),
        ({"prompt": "a", "n": True}, 1),
        ({"prompt": "a", "n": None}, 1),
    ],
)
def test_copies_of_completions(body: dict[str, Any], copies: int) -> None:
    assert of(body, endpoint="completions").copies == copies


def test_copies_of_gemini_and_of_the_deployment_itself() -> None:
    assert of({"contents": [], "generationConfig": {"candidateCount": 3}}, endpoint="generate_content").copies == 3
    assert of(chat(), group("openai/plain", n=5)).copies == 5


def test_what_is_left_buys_the_largest_limit_that_fits() -> None:
    found = of(chat(n=2))
    for left in (found.input_nano, found.input_nano + 3999, found.input_nano + 4000, found.input_nano + 123_456):
        tokens = found.tokens_for(left)
        assert found.cost(tokens) <= left < found.cost(tokens + 1)
    assert found.tokens_for(found.input_nano - 1) == 0
    assert found.tokens_for(-5) == 0


def test_the_models_own_maximum_is_told() -> None:
    assert of(chat()).maximum == 4096
    assert of(chat()).asked is None


def test_tools_cost_more_than_their_declarations() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    with_tools, without = of(chat(tools=tools)), of(chat())
    assert with_tools.input_tokens - without.input_tokens > 1024


def test_pictures_cost_tokens_of_their_own_and_not_their_base64() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}
    found = of(chat(picture))
    assert 16_384 <= found.input_tokens < 17_500
    assert not found.unbounded


def test_a_picture_for_a_small_openai_model_costs_what_it_counts() -> None:
    prices = {"gpt-4o-mini": PRICES["plain"]}
    mini = GroupPrices.of([{"litellm_params": {"model": "openai/gpt-4o-mini"}}], prices)
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    assert of(chat(picture), mini).input_tokens >= 48_169


def test_sound_is_bounded_by_its_lowest_bit_rate() -> None:
    sound = {"type": "input_audio", "input_audio": {"data": "A" * 40_000, "format": "mp3"}}
    assert 30_000 // 500 * 32 <= of(chat(sound)).input_tokens < 30_000 // 500 * 32 + 500


@pytest.mark.parametrize(
    "part",
    [
        {"type": "file", "file": {"file_data": "data:application/pdf;base64," + "A" * 4000, "filename": "a.pdf"}},
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "A" * 4000}},
        {"type": "input_file", "file_data": "A" * 4000, "filename": "a.pdf"},
        {"inlineData": {"mimeType": "video/mp4", "data": "A" * 4000}},
    ],
)
def test_a_document_is_bounded_by_what_the_model_can_read(part: dict[str, Any]) -> None:
    found = of(chat(part))
    assert not found.unbounded
    assert 100_000 <= found.input_tokens < 101_000
    assert "max_input_tokens" in of(chat(part), group("openai/gpt-chat")).unbounded[0]


@pytest.mark.parametrize(
    ("endpoint", "body", "word"),
    [
        ("responses", {"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
        ("responses", {"input": "x", "conversation": "conv_1"}, "conversation"),
        ("responses", {"input": "x", "prompt": {"id": "pmpt_1"}}, "prompt"),
        ("responses", {"input": "x", "background": True, "stream": True}, "background"),
        ("responses", {"input": [{"type": "item_reference", "id": "msg_1"}]}, "item_reference"),
        ("responses", {"input": "x", "tools": [{"type": "web_search"}]}, "web_search"),
        ("responses", {"input": "x", "tools": [{"type": "file_search", "vector_store_ids": []}]}, "file_search"),
        ("responses", {"input": "x", "tools": [{"type": "code_interpreter"}]}, "code_interpreter"),
        ("responses", {"input": "x", "tools": [{"type": "computer_use_preview"}]}, "computer_use_preview"),
        ("responses", {"input": "x", "tools": [{"type": "mcp", "server_url": "u"}]}, "mcp"),
        ("responses", {"input": "x", "tools": [{"type": "image_generation"}]}, "image_generation"),
        ("chat_completions", chat(web_search_options={"search_context_size": "low"}), "web_search_options"),
        ("chat_completions", chat(tools=[{"googleSearch": {}}]), "googleSearch"),
        ("chat_completions", chat({"type": "file", "file": {"file_id": "file-1"}}), "file by id"),
        ("chat_completions", chat({"type": "video_url", "video_url": {"url": "https://a/b.mp4"}}), "by URL"),
        ("chat_completions", chat(prompt_id="p"), "prompt_id"),
        ("messages", chat(tools=[{"type": "web_search_20250305", "name": "web_search"}]), "web_search_20250305"),
        ("messages", chat({"type": "document", "source": {"type": "url", "url": "https://a/b.pdf"}}), "document"),
        ("messages", chat({"type": "document", "source": {"type": "file", "file_id": "f"}}), "document"),
        ("generate_content", {"contents": [{"parts": [{"fileData": {"fileUri": "gs://a"}}]}]}, "URI"),
        ("generate_content", {"contents": [], "cachedContent": "c"}, "cachedContent"),
        ("generate_content", {"contents": [], "tools": [{"codeExecution": {}}]}, "codeExecution"),
    ],
)
def test_what_cannot_be_bounded_says_why_and_what_to_do(endpoint: str, body: dict[str, Any], word: str) -> None:
    (reason,) = of(body, endpoint=endpoint).unbounded
    assert word in reason
    assert "flat_reserve" in reason


@pytest.mark.parametrize(
    "body",
    [
        chat(tools=[{"type": "function", "function": {"name": "f"}}]),
        chat(tools=[{"name": "f", "description": "d", "input_schema": {}}]),
        chat(tools=[{"type": "computer_20250124", "name": "computer"}, {"type": "bash_20250124", "name": "bash"}]),
        chat(tools=[{"functionDeclarations": [{"name": "f"}]}]),
        chat({"type": "tool_use", "id": "t", "name": "n", "input": {"type": "file", "file_id": "not a file"}}),
        chat(background=False, previous_response_id=None),
    ],
)
def test_what_the_client_runs_itself_is_bounded(body: dict[str, Any]) -> None:
    assert of(body).unbounded == ()


def test_an_unpriced_model_has_no_bound_and_says_what_to_set() -> None:
    (reason,) = of(chat(), group("openai/plain", "openai/unknown")).unbounded
    assert reason == (
        "nothing prices openai/unknown; set input_cost_per_token and output_cost_per_token in model_info, "
        "or flat_reserve on the budget"
    )


@pytest.mark.parametrize("model", ["openai/rented", "perplexity/search"])
def test_a_model_priced_by_what_nobody_knows_before_has_no_bound(model: str) -> None:
    assert of(chat(), group(model)).unbounded


def test_writing_to_claudes_cache_costs_more_only_when_asked() -> None:
    claude = group("anthropic/claude-x")
    text: dict[str, Any] = {"type": "text", "text": "x" * 1000}
    plain, five, hour = (
        of(chat({**text, **control}), claude)
        for control in (
            {},
            {"cache_control": {"type": "ephemeral"}},
            {"cache_control": {"type": "ephemeral", "ttl": "1h"}},
        )
    )
    assert five.input_atto > 3.9 * plain.input_atto
    assert hour.input_atto > 1.9 * five.input_atto
    tool = {"name": "f", "input_schema": {}, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    assert of(chat(tools=[tool]), claude).input_atto > 7 * of(chat(tools=[{"name": "f"}]), claude).input_atto


def test_fast_mode_doubles_and_a_place_adds_its_share() -> None:
    claude = group("anthropic/claude-x")
    assert of(chat(), claude).output_atto == 2_200_000_000_000
    assert of(chat(speed="fast"), claude).output_atto == 4_400_000_000_000


@pytest.mark.parametrize(
    ("tier", "price"), [(None, 2), ("default", 2), ("flex", 2), ("priority", 6), ("auto", 6), ("gold", 6), (5, 6)]
)
def test_a_service_tier_costs_its_price(tier: object, price: int) -> None:
    body = chat(service_tier=tier) if tier is not None else chat()
    assert of(body, group("openai/both")).output_atto == price * 10**12


def test_a_service_tier_of_the_deployment_counts_too() -> None:
    assert of(chat(), group("openai/both", service_tier="priority")).output_atto == 6 * 10**12


def test_spoken_answers_cost_the_price_of_audio() -> None:
    prices = group("openai/gpt-chat")
    assert of(chat(), prices).output_atto == 2 * 10**12
    assert of(chat(modalities=["text", "audio"]), prices).output_atto == 8 * 10**12
    spoken = {"contents": [], "generationConfig": {"responseModalities": ["AUDIO"]}}
    assert of(spoken, prices, "generate_content").output_atto == 8 * 10**12


def test_embeddings_cost_their_bytes_or_their_token_ids() -> None:
    prices = group("openai/embed")
    assert of({"input": "x" * 1000}, prices, "embeddings").cost(0) >= 1000 * 1000
    ids = list(range(100_000, 100_500))
    known = GroupPrices.of(
        [{"litellm_params": {"model": "openai/text-embedding-3"}}], {"text-embedding-3": PRICES["embed"]}
    )
    assert of({"input": ids}, known, "embeddings").input_tokens == 500
    assert of({"input": [ids, ids]}, known, "embeddings").input_tokens == 1000
    assert of({"input": ids}, prices, "embeddings").input_tokens == 500 * 128
    assert of({"input": "x"}, prices, "embeddings").tokens_for(0) == 0


def test_rerank_costs_searches_of_a_hundred_chunks() -> None:
    prices = group("cohere/rank")
    few = {"query": "q", "documents": ["short"] * 50}
    many = {"query": "q", "documents": ["x" * 499] * 101}
    assert of(few, prices, "rerank").cost(0) == USD // 1000
    assert of(many, prices, "rerank").cost(0) == 3 * USD // 1000
    by_token = of({"query": "q" * 10, "documents": ["d"] * 10}, group("voyage/rank-by-token"), "rerank")
    assert by_token.input_tokens >= 10 * 10 + 10


def test_pictures_cost_their_number_size_and_quality() -> None:
    assert of({"prompt": "p", "n": 3}, group("openai/draw"), "images").cost(0) == 3 * USD * 4 // 100
    sized = group("openai/draw-sized")
    one = {"prompt": "p", "size": "1024x1024", "quality": "standard"}
    assert of(one, sized, "images").cost(0) == 1024 * 1024 * 40
    assert of({**one, "quality": "hd"}, sized, "images").cost(0) == 1024 * 1024 * 100
    assert of({"prompt": "p"}, sized, "images").cost(0) >= 1024 * 1024 * 100


def test_speech_costs_its_characters_and_a_recording_its_seconds() -> None:
    speech = of({"input": "x" * 1000, "voice": "v"}, group("openai/speak"), "audio")
    assert speech.cost(0) == 1000 * 15_000
    assert bound("audio", {"file": "f.mp3"}, 50_000, group("openai/listen")).cost(0) == 100 * 100_000


def test_moderations_need_a_price_which_may_be_zero() -> None:
    assert of({"input": "x"}, group("openai/unknown"), "moderations").unbounded
    free = GroupPrices.of([{"litellm_params": {"model": "openai/m", "input_cost_per_token": 0}}], {})
    assert of({"input": "x"}, free, "moderations") == Bound(input_tokens=14)


def test_an_endpoint_nobody_knows_has_no_bound() -> None:
    assert of({}, endpoint="telepathy").unbounded


def test_a_body_of_no_known_shape_is_bounded_all_the_same() -> None:
    for body in (
        {},
        {"messages": 5},
        {"messages": [5, None, "x"]},
        {"messages": [{"content": [None, 3]}], "tools": "x"},
    ):
        assert of(body).cost(1) > 0


def test_a_message_cannot_hide_its_content_behind_a_type() -> None:
    message = {"role": "user", "type": "tool_use", "content": [{"type": "file", "file": {"file_id": "f"}}]}
    assert of({"messages": [message]}).unbounded
    mislabelled = {"type": "image", "source": {"type": "base64", "media_type": "application/pdf", "data": "AAAA"}}
    assert of(chat(mislabelled)).input_tokens >= 100_000


def test_content_nested_without_end_is_refused_not_followed() -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = {"a": deep}
    assert "nested" in bound("chat_completions", chat(deep), 30_000, PLAIN).unbounded[0]


# -- exact counts ---------------------------------------------------------------------------------------------------


def test_openais_tokenizer_counts_below_the_bytes() -> None:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "The quick brown fox jumps over the lazy dog. " * 50}],
    }
    tokens = exact_input_tokens("chat_completions", body, ["openai/gpt-4o"])
    assert tokens is not None
    assert 500 < tokens < 550
    several = exact_input_tokens("chat_completions", body, ["openai/gpt-4o", "azure/gpt-4"])
    assert several is not None and several >= tokens


@pytest.mark.parametrize("model", ["anthropic/claude-x", "openai/gpt-9", "ollama/gpt-4o"])
def test_no_count_is_exact_without_the_models_tokenizer(model: str) -> None:
    assert exact_input_tokens("chat_completions", chat(), [model]) is None


@pytest.mark.parametrize(
    "body",
    [
        chat(tools=[{"type": "function"}]),
        chat({"type": "image_url", "image_url": {"url": "https://a/b.png"}}),
        chat(response_format={"type": "json_object"}),
        {"messages": [{"role": "assistant", "tool_calls": []}]},
        {"messages": "x", "previous_response_id": "r"},
    ],
)
def test_no_count_is_exact_of_more_than_text(body: dict[str, Any]) -> None:
    assert exact_input_tokens("chat_completions", body, ["openai/gpt-4o"]) is None


def test_counts_of_other_endpoints() -> None:
    assert exact_input_tokens("embeddings", {"input": ["hello world", "hello"]}, ["text-embedding-3-small"]) == 3
    assert exact_input_tokens("embeddings", {"input": [[1, 2]]}, ["text-embedding-3-small"]) is None
    assert exact_input_tokens("completions", {"prompt": "hello"}, ["gpt-3.5-turbo-instruct"]) == 21
    assert exact_input_tokens("responses", {"input": [{"role": "user", "content": "hi"}]}, ["gpt-4.1"]) is not None
