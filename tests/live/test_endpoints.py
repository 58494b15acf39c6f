"""Every endpoint, with streams and without: the right answer, and one event whose sums the provider's bill confirms."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import httpx
import pytest

from tests.support.gateway import ANSWER, KEYS, MESSAGES, PROMPT, Gateway, cost_nano

pytestmark = pytest.mark.live

ASKS_FOR_USAGE = {"stream": True, "stream_options": {"include_usage": True}}


@dataclass(frozen=True)
class Call:
    """A request and what has to come of it. The prompt has four tokens everywhere."""

    path: str
    body: dict[str, Any]
    endpoint: str
    asked_of_provider: str
    text: str = ANSWER
    output_tokens: int = 8
    shows_cost: bool = field(default=False)
    """Whether the stream's final usage carries `cost`."""

    @property
    def model(self) -> str:
        return self.body["model"]

    @property
    def streamed(self) -> bool:
        return self.body.get("stream", False)


CHAT = {"model": "small", "messages": MESSAGES}
TEXT = {"model": "large", "prompt": PROMPT}
RESPONSE = {"model": "small", "input": PROMPT}
CLAUDE = {"model": "claude", "messages": MESSAGES, "max_tokens": 5}
MESSAGE = {"model": "large", "messages": MESSAGES, "max_tokens": 50}
GOOGLE = {"model": "small", "contents": [{"role": "user", "parts": [{"text": PROMPT}]}]}
SHORT = "the quick brown fox jumps"

CALLS = {
    "chat": Call("/v1/chat/completions", CHAT, "chat_completions", "/v1/chat/completions"),
    "chat-of-claude": Call("/v1/chat/completions", CLAUDE, "chat_completions", "/v1/messages", SHORT, 5),
    "chat-stream": Call(
        "/v1/chat/completions", {**CHAT, "stream": True}, "chat_completions", "/v1/chat/completions"
    ),
    "chat-stream-with-usage": Call(
        "/v1/chat/completions", CHAT | ASKS_FOR_USAGE, "chat_completions", "/v1/chat/completions", shows_cost=True
    ),
    "chat-stream-of-claude": Call(
        "/v1/chat/completions", CLAUDE | ASKS_FOR_USAGE, "chat_completions", "/v1/messages", SHORT, 5, shows_cost=True
    ),
    "completion": Call("/v1/completions", TEXT, "completions", "/v1/completions"),
    "completion-stream": Call("/v1/completions", {**TEXT, "stream": True}, "completions", "/v1/completions"),
    "completion-stream-with-usage": Call(
        "/v1/completions", TEXT | ASKS_FOR_USAGE, "completions", "/v1/completions", shows_cost=True
    ),
    "embedding": Call("/v1/embeddings", {"model": "embed", "input": PROMPT}, "embeddings", "/v1/embeddings", "", 0),
    "response": Call("/v1/responses", RESPONSE, "responses", "/v1/responses"),
    "response-stream": Call(
        "/v1/responses", {**RESPONSE, "stream": True}, "responses", "/v1/responses", shows_cost=True
    ),
    "response-of-claude": Call(
        "/v1/responses", {"model": "claude", "input": PROMPT, "max_output_tokens": 5}, "responses", "/v1/messages",
        SHORT, 5,
    ),
    "response-stream-of-claude": Call(
        "/v1/responses", {"model": "claude", "input": PROMPT, "max_output_tokens": 5, "stream": True}, "responses",
        "/v1/messages", SHORT, 5, shows_cost=True,
    ),
    "message-of-claude": Call("/v1/messages", CLAUDE, "messages", "/v1/messages", SHORT, 5),
    "message-stream-of-claude": Call(
        "/v1/messages", {**CLAUDE, "stream": True}, "messages", "/v1/messages", SHORT, 5, shows_cost=True
    ),
    "message-of-openai": Call("/v1/messages", MESSAGE, "messages", "/v1/responses"),
    "message-stream-of-openai": Call(
        "/v1/messages", {**MESSAGE, "stream": True}, "messages", "/v1/responses", shows_cost=True
    ),
    "generate-content": Call(
        "/v1beta/models/small:generateContent", GOOGLE, "generate_content", "/v1/chat/completions"
    ),
}  # fmt: skip


def events(stream: httpx.Response) -> Iterator[dict[str, Any]]:
    """The JSON of a stream's server-sent events."""
    for line in stream.text.splitlines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def text_of(endpoint: str, answer: dict[str, Any]) -> str:
    """What a whole answer says, in any dialect."""
    if endpoint == "chat_completions":
        return answer["choices"][0]["message"]["content"]
    if endpoint == "completions":
        return answer["choices"][0]["text"]
    if endpoint == "responses":
        return "".join(part["text"] for item in answer["output"] for part in item.get("content", ()))
    if endpoint == "messages":
        return "".join(part["text"] for part in answer["content"])
    if endpoint == "generate_content":
        return text_of_event(answer)
    return ""


def text_of_event(event: dict[str, Any]) -> str:
    """What one event of a stream adds, in any dialect."""
    if event.get("type") == "response.output_text.delta":
        return event["delta"]
    if event.get("type") == "content_block_delta":
        return event["delta"]["text"]
    if "candidates" in event:
        return "".join(part["text"] for one in event["candidates"] for part in one["content"]["parts"])
    return "".join(
        choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in event.get("choices", ())
    )


def usages(event: dict[str, Any]) -> list[dict[str, Any]]:
    holders = (event, event.get("response") or {}, event.get("message") or {})
    return [holder["usage"] for holder in holders if holder.get("usage")]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_an_answer_is_right_and_recorded_once_as_the_provider_bills_it(call: Call, gateway: Gateway):
    answer = gateway.post(call.path, call.body)
    assert answer.status_code == 200, answer.text
    expected = cost_nano(call.model, 4, call.output_tokens)

    headers = answer.headers
    assert (headers["x-orchestration-model"], headers["x-orchestration-tier"]) == (call.model, "premium")
    if call.streamed:
        assert "x-orchestration-cost" not in headers, "it leaves before the cost is known"
        assert "".join(map(text_of_event, events(answer))) == call.text
        costs = [usage["cost"] for event in events(answer) for usage in usages(event) if usage.get("cost") is not None]
        assert costs == ([expected / 1e9] if call.shows_cost else [])
    else:
        assert text_of(call.endpoint, answer.json()) == call.text
        assert Decimal(headers["x-orchestration-cost"]) == Decimal(expected) / 10**9

    event = gateway.event(answer)
    assert (event.endpoint, event.status, event.error_class) == (call.endpoint, 200, None)
    assert (event.input_tokens, event.output_tokens, event.usage) == (4, call.output_tokens, "reported")
    assert (event.cost_nano, event.unknown_nano) == (expected, 0)
    assert (event.asked_model, event.used_model, event.deployment) == (call.model, call.model, f"{call.model}-id")
    assert event.provider == ("anthropic" if call.model == "claude" else "openai")
    assert (event.streamed, event.disconnected, event.degraded, event.cache) == (call.streamed, False, False, None)
    assert (event.first_token_ms is not None) == call.streamed
    assert event.price_version
    [attempt] = event.attempts
    assert (attempt.number, attempt.status, attempt.usage, attempt.cost_nano) == (1, 200, "reported", expected)

    [billed] = gateway.provider.attempts
    assert billed.endpoint == call.asked_of_provider
    assert (billed.prompt_tokens, billed.completion_tokens) == (event.input_tokens, event.output_tokens)


class TestWhoAndWhat:
    def test_the_key_its_user_team_groups_and_tier_are_recorded(self, gateway: Gateway):
        event = gateway.event(gateway.chat("small"))
        assert (event.user_id, event.team_id, event.groups, event.tier) == (
            "ada",
            "research",
            ("scientists",),
            "premium",
        )
        assert event.key_hash is not None and KEYS["ada"] not in event.key_hash
        gateway.books.mark()
        event = gateway.event(gateway.chat("small", who="bob"))
        assert (event.user_id, event.team_id, event.groups, event.tier) == ("bob", None, ("writers",), "free")

    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
    def test_the_body_says_what_it_is_for(self, path: str, gateway: Gateway):
        metadata = {"task_type": "coding", "priority": 4, "session_id": "s-1", "project": "apollo"}
        body = {"model": "small", "messages": MESSAGES, "max_tokens": 50, "metadata": metadata}
        event = gateway.event(gateway.post(path, body))
        assert (event.task_type, event.priority, event.session_id) == ("coding", 4, "s-1")

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1/responses", RESPONSE),
            ("/v1/embeddings", {"model": "embed", "input": PROMPT}),
            ("/v1/completions", TEXT),
        ],
    )
    def test_the_body_says_so_on_the_other_endpoints_too(self, path: str, body: dict[str, Any], gateway: Gateway):
        metadata = {"task_type": "coding", "priority": "4", "session_id": "s-1"}
        event = gateway.event(gateway.post(path, body | {"metadata": metadata}))
        assert (event.task_type, event.priority, event.session_id) == ("coding", 4, "s-1")

    def test_headers_win_over_the_body(self, gateway: Gateway):
        body = CHAT | {"metadata": {"task_type": "coding", "session_id": "s-1"}}
        headers = {"x-task-type": "chat", "x-priority": "7"}
        event = gateway.event(gateway.post("/v1/chat/completions", body, headers=headers))
        assert (event.task_type, event.priority, event.session_id) == ("chat", 7, "s-1")

    def test_a_request_cannot_put_itself_ahead_of_its_tier(self, gateway: Gateway):
        event = gateway.event(gateway.post("/v1/chat/completions", CHAT, who="bob", headers={"x-priority": "1"}))
        assert event.priority == 3

    @pytest.mark.parametrize(
        ("headers", "metadata", "where"),
        [
            ({"x-priority": "first"}, {}, "x-priority"),
            ({}, {"priority": 11}, "metadata.priority"),
            ({}, {"task_type": ["coding"]}, "metadata.task_type"),
            ({}, {"session_id": "s" * 129}, "metadata.session_id"),
        ],
    )
    def test_a_bad_claim_is_refused_by_name_and_recorded_without_an_attempt(
        self, headers: dict[str, str], metadata: dict[str, Any], where: str, gateway: Gateway
    ):
        body = CHAT | {"metadata": metadata}
        answer = gateway.post("/v1/chat/completions", body, headers=headers)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_field")
        assert error["message"].startswith(where)
        event = gateway.event(answer)
        assert (event.status, event.error_class, event.attempts, event.usage) == (400, "BadField", [], "none")
        assert gateway.provider.attempts == []


class TestUsage:
    def test_cached_and_reasoning_tokens_are_recorded(self, gateway: Gateway):
        gateway.provider.script(model="small", cached_tokens=3, reasoning_tokens=5)
        event = gateway.event(gateway.chat("small"))
        assert (event.input_tokens, event.cached_tokens) == (4, 3)
        assert (event.output_tokens, event.reasoning_tokens) == (13, 5)

    def test_several_choices_are_paid_for(self, gateway: Gateway):
        event = gateway.event(gateway.chat("small", n=3))
        assert (event.output_tokens, event.cost_nano) == (24, cost_nano("small", 4, 24))

    def test_a_stream_of_googles_form_that_litellm_translates_is_estimated(self, gateway: Gateway):
        answer = gateway.post("/v1beta/models/small:streamGenerateContent", GOOGLE)
        assert "".join(map(text_of_event, events(answer))) == ANSWER
        event = gateway.event(answer)
        assert event.usage == "estimated"
        assert (event.input_tokens >= 4, event.output_tokens) == (True, 8)
        assert event.cost_nano == cost_nano("small", event.input_tokens, event.output_tokens)

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_provider_that_reports_nothing_is_estimated(self, stream: bool, gateway: Gateway):
        gateway.provider.script(model="small", usage=False)
        answer = gateway.chat("small", stream=stream)
        assert answer.status_code == 200
        event = gateway.event(answer)
        assert event.usage == "estimated"
        assert event.input_tokens >= 4
        assert 8 <= event.output_tokens <= 16
        assert event.cost_nano == cost_nano("small", event.input_tokens, event.output_tokens)

    def test_a_hundred_answers_cost_what_the_provider_bills(self, gateway: Gateway):
        gateway.provider.script(model="small", output_tokens=7)
        answers = [gateway.chat("small") for _ in range(100)]
        recorded = gateway.books.recorded(100)
        costs = sum(Decimal(answer.headers["x-orchestration-cost"]) for answer in answers)
        bill = gateway.provider.totals
        assert sum(event.cost_nano for event in recorded) == cost_nano(
            "small", bill.prompt_tokens, bill.completion_tokens
        )
        assert costs == Decimal(sum(event.cost_nano for event in recorded)) / 10**9
        ids = {answer.headers["x-orchestration-request-id"] for answer in answers}
        assert ids == {event.request_id for event in recorded}


class TestErrors:
    """Error bodies in OpenAI's form, with a message a person can act on."""

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1/chat/completions", CHAT),
            ("/v1/completions", TEXT),
            ("/v1/responses", RESPONSE),
            ("/v1/messages", MESSAGE),
            ("/v1/embeddings", {"model": "embed", "input": PROMPT}),
        ],
    )
    def test_a_model_outside_the_tier_is_forbidden_everywhere(self, path: str, body: dict[str, Any], gateway: Gateway):
        answer = gateway.post(path, body | {"model": "claude"}, who="bob")
        assert answer.status_code == 403, answer.text
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("permission_error", "model_not_allowed")
        assert "'claude'" in error["message"] and "tier free" in error["message"]
        assert "/v1/models" in error["message"], "it says what to do next"
        event = gateway.event(answer)
        assert (event.status, event.error_class, event.attempts) == (403, "ModelNotAllowed", [])
        assert (event.asked_model, event.cost_nano) == ("claude", 0)

    def test_a_model_that_does_not_exist_is_recorded_without_an_attempt(self, gateway: Gateway):
        answer = gateway.chat("no-such-model")
        assert answer.status_code in (400, 404)
        error = answer.json()["error"]
        assert error["type"] == "invalid_request_error" and "no-such-model" in error["message"] and error["code"]
        event = gateway.event(answer)
        assert (event.asked_model, event.attempts, event.cost_nano) == ("no-such-model", [], 0)

    def test_a_failing_provider_is_an_error_in_openais_form(self, gateway: Gateway):
        gateway.provider.script(model="small", status=400)
        answer = gateway.chat("small")
        assert answer.status_code == 400
        assert answer.json()["error"].keys() >= {"message", "type", "code", "param"}
        event = gateway.event(answer)
        assert (event.status, event.cost_nano) == (400, 0)
        assert event.error_class

    def test_a_body_that_is_not_json_is_refused(self, gateway: Gateway):
        with gateway.client() as client:
            answer = client.post(
                "/v1/chat/completions", content=b"{not json", headers={"content-type": "application/json"}
            )
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]
        assert gateway.provider.attempts == []

    @pytest.mark.parametrize("chunked", [False, True])
    def test_a_body_that_is_too_large_is_refused(self, chunked: bool, gateway: Gateway):
        body = json.dumps(CHAT | {"user": "x" * 200_000}).encode()

        def pieces() -> Iterator[bytes]:
            for start in range(0, len(body), 50_000):
                yield body[start : start + 50_000]

        with gateway.client() as client:
            answer = client.post(
                "/v1/chat/completions",
                content=pieces() if chunked else body,
                headers={"content-type": "application/json"},
            )
        assert answer.status_code == 413
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "body_too_large")
        assert "200000 bytes" in error["message"] and "limits.max_body_bytes" in error["message"]
        assert gateway.provider.attempts == []
