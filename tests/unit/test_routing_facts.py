"""What routing has to know: of model groups, of requests, and of how the groups are doing."""

from typing import Any

import orjson
import pytest

from core.context import Need
from plugins.budgets.expected import ExpectedOutput
from plugins.routing.candidates import Candidates, candidate_of, deployments_in, regions_of
from plugins.routing.live import Loads
from plugins.routing.needs import input_tokens_of, needs_of
from tests.support.clock import Clock


def entry(model: str = "openai/unheard-of", *, info: dict[str, Any] | None = None, **params: Any) -> dict[str, Any]:
    return {"model_name": "g", "litellm_params": {"model": model, **params}, "model_info": info or {}}


# -- model groups ------------------------------------------------------------------------------------------------------


def test_a_model_of_litellms_map_has_its_window_prices_and_abilities() -> None:
    large = candidate_of("large", [entry("openai/gpt-4o", info={"id": "one"})])
    assert (large.context_window, large.max_output) == (128_000, 16_384)
    assert (large.input_nano, large.output_nano) == (2500, 10_000)
    assert large.lacks == {Need.AUDIO}
    assert large.deployments == ("one",)


def test_of_an_unknown_model_nothing_is_claimed() -> None:
    unknown = candidate_of("own", [entry()])
    assert (unknown.context_window, unknown.input_nano, unknown.output_nano) == (None, None, None)
    assert unknown.lacks == frozenset()
    assert candidate_of("nowhere", []).deployments == ()


def test_what_the_configuration_says_counts_for_what_it_says_alone() -> None:
    own = candidate_of("own", [entry(info={"supports_vision": False, "max_input_tokens": 4096})])
    assert (own.lacks, own.context_window) == ({Need.IMAGES}, 4096)
    assert candidate_of("own", [entry(info={"supports_vision": True})]).lacks == frozenset()
    taught = candidate_of("small", [entry("openai/gpt-3.5-turbo", info={"supports_vision": True})])
    assert Need.IMAGES not in taught.lacks
    assert Need.IMAGES in candidate_of("small", [entry("openai/gpt-3.5-turbo")]).lacks


def test_a_group_can_do_what_each_of_its_deployments_can() -> None:
    both = candidate_of(
        "mixed",
        [
            entry("openai/gpt-4o", info={"id": "a"}, weight=3),
            entry("openai/gpt-3.5-turbo", info={"id": "b", "priority": "high"}),
        ],
    )
    assert both.context_window == 16_385
    assert Need.IMAGES in both.lacks
    assert both.input_nano == 2500, "any of them may serve it, so the dearest counts"
    assert (both.weight, both.priority, both.deployments) == (4.0, 1, ("a", "b"))


def test_a_group_is_priced_only_where_each_deployment_is() -> None:
    assert candidate_of("half", [entry("openai/gpt-4o"), entry()]).input_nano is None
    free = candidate_of("own", [entry(input_cost_per_token=0, output_cost_per_token=0)])
    assert (free.input_nano, free.output_nano, free.cost_nano(10, 10)) == (0, 0, 0)


def test_embeddings_cost_their_input_and_have_no_window_for_all_of_it() -> None:
    found = candidate_of("embed", [entry("openai/text-embedding-3-small")])
    assert (found.cost_nano(1000, 500), found.context_window) == (20_000, None)
    assert candidate_of("embed", [entry("mistral/mistral-embed")]).cost_nano(1000, 500) == 100_000


@pytest.mark.parametrize(
    ("value", "priority"),
    [("HIGH", 1), ("medium", 2), ("low", 3), (7, 7), ("4", 4), (0, None), (11, None), (True, None), ("soon", None)],
)
def test_priorities_have_numbers_or_names(value: object, priority: int | None) -> None:
    assert candidate_of("g", [entry(info={"priority": value})]).priority == priority


def test_candidates_are_remembered_for_a_while() -> None:
    clock, asked = Clock(), list[str]()

    def deployments_of(name: str) -> list[dict[str, Any]]:
        asked.append(name)
        return [entry(info={"id": f"{name}-{len(asked)}"})] if name == "g" else []

    candidates = Candidates(deployments_of, clock)
    assert candidates.of("g") is candidates.of("g")
    assert candidates.deployments("g") == ("g-1",)
    clock.advance(46)
    assert candidates.deployments("g") == ("g-2",)
    candidates.forget()
    assert candidates.deployments("g") == ("g-3",)
    for number in range(3000):
        candidates.of(f"wildcard/{number}")
    assert len(candidates._known) <= 1000


# -- regions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deployment", "regions"),
    [
        (entry(), set()),
        (entry(info={"region": "Frankfurt"}), {"Frankfurt", "frankfurt"}),
        (entry(info={"region": ["eu", "on-premises"]}), {"eu", "on-premises"}),
        (entry(aws_region_name="eu-central-1"), {"eu-central-1", "eu"}),
        (entry(aws_region_name="us-east-1"), {"us-east-1", "us"}),
        (entry(vertex_location="europe-west4"), {"europe-west4", "eu"}),
        (entry(region_name="westeurope"), {"westeurope", "eu"}),
        (entry(region_name="eu"), {"eu"}),
        # Neither is in the European Union, whatever its name begins with.
        (entry(aws_region_name="eu-west-2"), {"eu-west-2"}),
        (entry(vertex_location="europe-west6"), {"europe-west6"}),
        (entry(region_name="switzerlandnorth"), {"switzerlandnorth"}),
        (entry(vertex_location="global"), {"global"}),
        # What somebody has written down himself is not interpreted.
        (entry(info={"region": "on-premises"}, aws_region_name="us-east-1"), {"on-premises"}),
    ],
)
def test_a_deployment_is_where_it_says(deployment: dict[str, Any], regions: set[str]) -> None:
    assert regions_of(deployment) == regions


def test_only_deployments_in_the_regions_are_left() -> None:
    here, there, nowhere = entry(info={"region": "eu"}), entry(aws_region_name="us-east-1"), entry()
    assert deployments_in(["EU"], [here, there, nowhere]) == [here]
    assert deployments_in(["eu", "us-east-1"], [here, there, nowhere]) == [here, there]
    assert candidate_of("g", [here, there]).regions == {"eu", "us", "us-east-1"}


# -- requests ----------------------------------------------------------------------------------------------------------

PIXEL = "data:image/png;base64,iVBORw0KGgo="


def said(content: Any, **more: Any) -> dict[str, Any]:
    return {"model": "smart", "messages": [{"role": "user", "content": content}], **more}


def url(address: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": address}}]


@pytest.mark.parametrize(
    ("endpoint", "data", "needs"),
    [
        ("chat_completions", said("hello"), set()),
        ("chat_completions", said([{"type": "text", "text": "an image_url"}]), set()),
        ("chat_completions", said(url("https://x/y.png")), {Need.IMAGES}),
        ("chat_completions", said([{"type": "image_url", "image_url": PIXEL}]), {Need.IMAGES}),
        ("chat_completions", said(url("data:application/pdf;base64,AAAA")), {Need.DOCUMENTS}),
        ("chat_completions", said([{"type": "input_audio", "input_audio": {"data": "AA"}}]), {Need.AUDIO}),
        ("chat_completions", said([{"type": "file", "file": {"file_id": "f"}}]), {Need.DOCUMENTS}),
        ("chat_completions", said("hello", tools=[{"type": "function"}]), {Need.TOOLS}),
        ("chat_completions", said("hello", tools=[], functions=None), set()),
        ("chat_completions", {"messages": [{"role": "tool", "content": "4", "tool_call_id": "1"}]}, {Need.TOOLS}),
        ("chat_completions", said("hello", response_format={"type": "json_object"}), {Need.JSON}),
        ("chat_completions", said("hello", response_format={"type": "text"}), set()),
        ("chat_completions", said("hello", modalities=["text", "audio"]), {Need.AUDIO}),
        ("responses", {"input": "hello"}, set()),
        (
            "responses",
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": PIXEL}]}]},
            {Need.IMAGES},
        ),
        ("responses", {"input": "hello", "text": {"format": {"type": "json_schema"}}}, {Need.JSON}),
        ("responses", {"input": [{"type": "function_call", "name": "f"}]}, {Need.TOOLS}),
        ("messages", said([{"type": "document", "source": {"type": "base64", "data": "AA"}}]), {Need.DOCUMENTS}),
        (
            "messages",
            said([{"type": "tool_result", "content": [{"type": "image", "source": {"type": "url"}}]}]),
            {Need.IMAGES},
        ),
        (
            "generate_content",
            {"contents": [{"parts": [{"inlineData": {"mimeType": "audio/wav", "data": "AA"}}]}]},
            {Need.AUDIO},
        ),
        (
            "generate_content",
            {"contents": [], "generationConfig": {"responseMimeType": "application/json"}},
            {Need.JSON},
        ),
        ("embeddings", {"input": ["a", "b"], "response_format": {"type": "json_object"}}, set()),
    ],
)
def test_a_request_needs_what_it_has_in_it(endpoint: str, data: dict[str, Any], needs: set[Need]) -> None:
    assert needs_of(endpoint, data) == needs


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"messages": "hello"},
        {"messages": [None, 3, "x", {"role": 1, "content": {"type": ["image_url"]}}]},
        {"messages": [{"role": "user", "content": [[[[[[[[[[[[[["deep"]]]]]]]]]]]]]]}], "modalities": 3},
        {"input": 7, "text": [], "response_format": "json", "generationConfig": None},
    ],
)
def test_a_body_of_any_shape_can_be_looked_at(data: dict[str, Any]) -> None:
    for endpoint in ("chat_completions", "responses", "messages", "generate_content", "completions", "embeddings"):
        needs_of(endpoint, data)
        assert input_tokens_of(endpoint, data, 100) >= 0


def tokens(endpoint: str, data: dict[str, Any]) -> int:
    return input_tokens_of(endpoint, data, len(orjson.dumps(data)))


def test_text_has_a_token_for_four_bytes() -> None:
    assert 1000 <= tokens("chat_completions", said("word" * 1000)) <= 1030
    assert 1000 <= tokens("responses", {"input": "word" * 1000}) <= 1030


def test_the_bytes_of_a_picture_are_no_text() -> None:
    picture = said(url(PIXEL + "A" * 1_000_000))
    assert 900 < tokens("chat_completions", picture) < 1200
    assert 900 < tokens("chat_completions", said(url("https://x/y"))) < 1200


def test_token_ids_are_counted() -> None:
    assert tokens("embeddings", {"input": [[1, 2, 3], [4, 5]]}) == 5
    assert tokens("completions", {"prompt": [100_000] * 7}) == 7


# -- how they are doing ------------------------------------------------------------------------------------------------


def loads() -> tuple[Loads, Clock]:
    clock = Clock()
    return Loads(lambda _group, _task: 100, clock), clock


def attempt(
    live: Loads, ms: float, *, first: float | None = None, status: int = 200, error: str | None = None, **more: Any
) -> None:
    live.began("large", "one")
    live.ended("large", "one", ms, first, status, error, **more)


def test_latency_is_the_median_of_what_was_measured() -> None:
    live, _ = loads()
    assert live.latency_ms("large", stream=False) is None
    for ms in (100, 900, 200):
        attempt(live, ms)
    assert live.latency_ms("large", stream=False) == 200
    assert live.latency_ms("large", stream=True) is None
    attempt(live, 5000, first=40)
    assert live.latency_ms("large", stream=True) == 40
    assert live.latency_ms("large", stream=False) == 200, "a stream goes on for as long as it is read"


def test_measurements_are_forgotten_after_five_minutes() -> None:
    live, clock = loads()
    attempt(live, 9000)
    clock.advance(299)
    live.began("small", "two")
    assert live.latency_ms("large", stream=False) == 9000
    clock.advance(2)
    live.began("small", "two")
    assert live.latency_ms("large", stream=False) is None


def test_a_group_is_fast_by_what_it_answers_not_by_what_it_refuses() -> None:
    live, _ = loads()
    attempt(live, 800)
    for _ in range(3):
        attempt(live, 5, status=400, error="BadRequestError")
        attempt(live, 1, cached=True)
    assert live.latency_ms("large", stream=False) == 800
    for _ in range(2):
        attempt(live, 5, status=500, error="InternalServerError")
    assert live.latency_ms("large", stream=False) == 60_000, "most attempts fail: nobody should come here"
    assert live.groups()["large"].p95_ms == 800


def test_what_is_under_way_is_counted_until_it_ends() -> None:
    live, _ = loads()
    live.began("large", "one")
    live.began("large", None)
    assert (live.in_flight("large"), live.in_flight("small")) == (2, 0)
    live.ended("large", "one", 10, None, 200, None)
    live.ended("large", None, 10, None, 499, None)
    live.ended("large", None, 10, None, 200, None)
    assert live.in_flight("large") == 0


def test_the_status_says_what_failed_and_how_but_not_what_was_in_it() -> None:
    live, clock = loads()
    for _ in range(6):
        attempt(live, 100)
    attempt(live, 30_000, status=408, error="Timeout")
    attempt(live, 5, status=429, error="RateLimitError")
    live.began("small", "two")
    large = live.deployments()["one"]
    assert [(one.error, one.status, one.at) for one in large.failures] == [
        ("Timeout", 408, clock()),
        ("RateLimitError", 429, clock()),
    ]
    assert large.failing == pytest.approx(2 / 8)
    assert large.share == pytest.approx(8 / 9)
    assert (large.p50_ms, large.in_flight, live.groups()["small"].in_flight) == (100, 0, 1)


def test_a_group_is_available_while_one_of_its_deployments_is() -> None:
    live, clock = loads()
    shut, off = {"one"}, set[str]()
    assert live.available("large")
    live.deployments_of = lambda group: {"large": ("one", "two"), "small": ("one",)}.get(group, ())
    live.open_breaker, live.disabled = shut.__contains__, lambda: off
    assert live.available("large")
    assert not live.available("small")
    off.add("two")
    clock.advance(0.06)
    assert not live.available("large")
    assert live.available("not-known-to-us"), "LiteLLM will say"


def test_what_is_remembered_is_bounded() -> None:
    live, _ = loads()
    live.began("busy", "busy-1")
    for number in range(5000):
        live.began(f"wildcard/{number}", f"id-{number}")
        live.ended(f"wildcard/{number}", f"id-{number}", 10, None, 200, None)
        live.turn(f"policy-{number}")
    assert len(live.groups()) <= 2000
    assert len(live.deployments()) <= 2000
    assert len(live._turns) <= 2000
    assert live.in_flight("busy") == 1, "what is under way is kept"


def test_turns_are_counted_by_policy() -> None:
    live, _ = loads()
    assert [live.turn("a"), live.turn("a"), live.turn("b"), live.turn("a")] == [0, 1, 0, 2]


def test_a_typical_answer_is_the_median_of_the_task_or_of_the_model() -> None:
    expected = ExpectedOutput(0.99, 2048)
    assert expected.typical("large", "chat") == 256
    for _ in range(50):
        expected.saw("large", "coding", 1000)
        expected.saw("large", None, 50)
    expected.saw("large", None, 50)
    assert expected.typical("large", "coding") == pytest.approx(1000, rel=0.03)
    assert expected.typical("large", "chat") == pytest.approx(50, rel=0.05), "more than half are that short"
    for _ in range(200):
        expected.saw("large", "coding", 4000)
    assert expected.typical("large", "coding") == pytest.approx(4000, rel=0.03), "it follows what is seen"
