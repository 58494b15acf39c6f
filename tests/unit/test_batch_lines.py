"""The lines of a batch's input: read, bounded, and written as the provider gets them."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from core.errors import BadField
from plugins.batches.lines import Beginning, Lines, Terms, begin, read
from plugins.budgets.bound import bound
from plugins.budgets.prices import GroupPrices

PRICED = GroupPrices.of(
    [
        {
            "litellm_params": {"model": "openai/made-up"},
            "model_info": {
                "input_cost_per_token": 1e-6,
                "output_cost_per_token": 2e-6,
                "max_output_tokens": 1000,
                "max_input_tokens": 8000,
            },
        }
    ],
    {},
)
UNPRICED = GroupPrices.of([{"litellm_params": {"model": "openai/made-up"}, "model_info": {}}], {})
MESSAGES = [{"role": "user", "content": "one two three four"}]


def line(custom_id: str = "a", url: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "group", **body}}


def chat(custom_id: str = "a", **body: Any) -> dict[str, Any]:
    return line(custom_id, messages=MESSAGES, **body)


def read_all(*requests: dict[str, Any], prices: GroupPrices = PRICED, most_tokens: int | None = None) -> Lines:
    data = b"\n".join(orjson.dumps(one) for one in requests)
    return read(data, begin(data), Terms(prices, "provider-name", most_tokens))


def bodies(found: Lines) -> list[dict[str, Any]]:
    return [orjson.loads(one)["body"] for one in found.body.splitlines()]


def test_the_bound_of_a_file_is_the_sum_of_those_of_its_lines():
    requests = [chat("a", max_tokens=10), chat("b", max_tokens=20, n=2)]
    expected = 0
    for request in requests:
        one = bound("chat_completions", request["body"], len(orjson.dumps(request["body"])), PRICED)
        expected += one.cost(request["body"]["max_tokens"])
    found = read_all(*requests)
    assert (found.count, found.bound_nano, found.unbounded) == (2, expected, None)


def test_the_provider_gets_its_own_name_for_the_model_and_nothing_else_changes():
    [body] = bodies(read_all(chat(max_tokens=10, temperature=0.5)))
    assert body == {"model": "provider-name", "messages": MESSAGES, "max_tokens": 10, "temperature": 0.5}


def test_where_a_line_gives_no_limit_the_model_s_own_is_reserved_and_sent():
    found = read_all(chat())
    assert bodies(found)[0]["max_completion_tokens"] == 1000
    assert found.bound_nano == found.input_tokens * 1000 + 1000 * 2000


@pytest.mark.parametrize("given", [{}, {"max_tokens": 100}, {"max_completion_tokens": 100}])
def test_a_tier_s_limit_takes_the_place_of_a_higher_one(given: dict[str, int]):
    [body] = bodies(read_all(chat(**given), most_tokens=7))
    assert (body["max_completion_tokens"], "max_tokens" in body) == (7, False)


def test_a_lower_limit_than_the_tier_s_stays():
    assert bodies(read_all(chat(max_tokens=5), most_tokens=7))[0]["max_tokens"] == 5


def test_of_embeddings_only_the_input_is_bounded():
    found = read_all(line(url="/v1/embeddings", input="one two three"))
    assert found.bound_nano > 0
    assert bodies(found) == [{"model": "provider-name", "input": "one two three"}]


@pytest.mark.parametrize(
    ("request_", "prices"),
    [
        (chat("b"), UNPRICED),
        (line("b", "/v1/responses", input="x", previous_response_id="resp_1", max_output_tokens=5), PRICED),
    ],
)
def test_a_line_that_nothing_bounds_is_named(request_: dict[str, Any], prices: GroupPrices):
    found = read_all(request_, prices=prices)
    assert found.unbounded is not None
    assert found.unbounded.startswith("line 1: ")


def test_empty_lines_a_byte_order_mark_and_windows_ends_are_read_over():
    data = b"\xef\xbb\xbf" + orjson.dumps(chat("a")) + b"\r\n\r\n" + orjson.dumps(chat("b")) + b"\r\n"
    assert begin(data) == Beginning("/v1/chat/completions", "group")
    assert read(data, begin(data), Terms(PRICED, "x")).count == 2


def test_of_a_name_that_is_given_twice_the_one_counts_that_is_sent():
    text = orjson.dumps(chat()).replace(b'"model":"group"', b'"model":"group","max_tokens":1,"max_tokens":900')
    found = read(text, begin(text), Terms(PRICED, "x"))
    assert bodies(found)[0]["max_tokens"] == 900
    assert found.body.count(b"max_tokens") == 1


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (b"{", "Line 2 is not JSON"),
        (b"[]", "Line 2 is not an object"),
        (orjson.dumps(chat("a")), "Line 2: custom_id 'a' is that of an earlier line"),
        (orjson.dumps({**chat("b"), "custom_id": ""}), "Line 2 has no custom_id"),
        (orjson.dumps({**chat("b"), "method": "GET"}), "Line 2: method must be POST"),
        (orjson.dumps({**chat("b"), "url": "/v1/files"}), "Line 2: url must be one of"),
        (orjson.dumps({**chat("b"), "api_base": "x"}), "Line 2 has a field 'api_base'"),
        (orjson.dumps({**chat("b"), "body": []}), "Line 2: body must be an object"),
        (orjson.dumps({**chat("b"), "body": {"model": 1}}), "Line 2: body must be an object with a model"),
        (orjson.dumps(chat("b", stream=True)), "Line 2: stream cannot be used"),
        (orjson.dumps(chat("b", extra_body={"n": 9})), "Line 2: extra_body cannot be used"),
        (orjson.dumps(chat("b", input_cost_per_token=0)), "Line 2: input_cost_per_token is set by"),
        (orjson.dumps({**chat("b"), "body": {"model": "other"}}), "Line 2 asks 'other'"),
        (orjson.dumps(line("b", "/v1/embeddings", input="x")), "Line 2 asks 'group' at /v1/embeddings"),
    ],
)
def test_a_line_that_cannot_be_read_is_refused_by_its_number(second: bytes, message: str):
    data = orjson.dumps(chat("a")) + b"\n" + second
    with pytest.raises(BadField, match=message):
        read(data, begin(data), Terms(PRICED, "x"))


def test_a_file_without_lines_and_one_with_too_many_are_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(BadField, match="no lines"):
        begin(b"\n \n")
    monkeypatch.setattr("plugins.batches.lines.MOST_LINES", 2)
    with pytest.raises(BadField, match="more than 2 lines"):
        read_all(chat("a"), chat("b"), chat("c"))
