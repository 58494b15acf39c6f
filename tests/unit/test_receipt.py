"""What Google's form of an answer says it used; the other forms are read in tests/live/test_endpoints.py."""

from types import SimpleNamespace
from typing import Any

import litellm
import orjson
import pytest

from core.usage import UsageState
from plugins import receipt

PRICES = {"prompt": 1, "cached": 0.25, "completion": 10, "audio": 40}
"""Dollars for a million tokens."""


class Call:
    """LiteLLM's logging object, which prices usage with its own calculator. Any: that takes whatever an answer is."""

    def __init__(self, of_the_answer: float | None = None) -> None:
        self.of_the_answer = of_the_answer
        self.model_call_details: dict[str, Any] = {}

    def response_cost_calculator(self, result: Any) -> float | None:
        if not isinstance(result, litellm.ModelResponse):
            return self.of_the_answer
        return litellm.completion_cost(result, model="openai/priced", custom_llm_provider="openai")


@pytest.fixture(autouse=True)
def priced(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {
        "litellm_provider": "openai",
        "mode": "chat",
        "input_cost_per_token": PRICES["prompt"] / 1e6,
        "cache_read_input_token_cost": PRICES["cached"] / 1e6,
        "output_cost_per_token": PRICES["completion"] / 1e6,
        "output_cost_per_audio_token": PRICES["audio"] / 1e6,
    }
    monkeypatch.setitem(litellm.model_cost, "openai/priced", entry)


def metadata(**counts: Any) -> dict[str, Any]:
    return {"promptTokenCount": 100, "candidatesTokenCount": 20, "totalTokenCount": 120, **counts}


def read(usage: dict[str, Any], call: Call | None = None) -> receipt.Receipt:
    return receipt.of_answer({"candidates": [], "usageMetadata": usage}, "openai/priced", call or Call())


def test_tokens_are_recorded_and_priced() -> None:
    found = read(metadata())
    assert (found.usage, found.input_tokens, found.output_tokens) == (UsageState.REPORTED, 100, 20)
    assert found.cost_nano == 100 * 1000 + 20 * 10_000


def test_an_answer_that_is_an_object_is_read_alike() -> None:
    answer = SimpleNamespace(usageMetadata=metadata())
    assert receipt.of_answer(answer, "openai/priced", Call()) == read(metadata())


def test_thoughts_are_output_beside_the_candidates() -> None:
    found = read(metadata(thoughtsTokenCount=30, totalTokenCount=150))
    assert (found.output_tokens, found.reasoning_tokens) == (50, 30)
    assert found.cost_nano == 100 * 1000 + 50 * 10_000


def test_thoughts_within_the_candidates_are_not_counted_twice() -> None:
    found = read(metadata(thoughtsTokenCount=15))
    assert (found.output_tokens, found.reasoning_tokens) == (20, 15)
    assert found.cost_nano == 100 * 1000 + 20 * 10_000


def test_cached_input_is_part_of_the_input_and_cheaper() -> None:
    found = read(metadata(cachedContentTokenCount=40))
    assert (found.input_tokens, found.cached_tokens) == (100, 40)
    assert found.cost_nano == 60 * 1000 + 40 * 250 + 20 * 10_000


def test_what_tools_were_told_is_input() -> None:
    assert read(metadata(toolUsePromptTokenCount=50, totalTokenCount=170)).input_tokens == 150


def test_spoken_output_has_its_own_price() -> None:
    found = read(metadata(candidatesTokensDetails=[{"modality": "AUDIO", "tokenCount": 20}]))
    assert found.cost_nano == 100 * 1000 + 20 * 40_000


def test_what_litellm_knows_to_cost_more_than_its_tokens_costs_more() -> None:
    assert read(metadata(), Call(of_the_answer=0.035)).cost_nano == 35_000_000
    assert read(metadata(), Call(of_the_answer=0.0)).cost_nano == 300_000


def test_counts_of_nothing_are_no_report() -> None:
    silent = {"promptTokenCount": 0, "candidatesTokenCount": 0, "totalTokenCount": 0}
    assert read(silent).usage == UsageState.UNKNOWN


def test_an_event_of_a_stream_reports_what_was_used_so_far() -> None:
    event = b"data: " + orjson.dumps({"candidates": [], "usageMetadata": metadata()})
    assert receipt.may_hold_usage(event)
    assert receipt.usage_in_event(event) == metadata()
    found = receipt.of_usage(metadata(), "openai/priced", Call())
    assert (found.input_tokens, found.output_tokens, found.cost_nano) == (100, 20, 300_000)


def test_an_event_without_counts_reports_nothing() -> None:
    assert receipt.usage_in_event(b'data: {"candidates": [], "usageMetadata": {"totalTokenCount": 0}}') is None
