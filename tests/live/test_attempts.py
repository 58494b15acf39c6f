"""Retries, fallbacks, timeouts, cut streams, clients that leave: every attempt is in the books with what it cost."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from core.usage import UsageEvent
from tests.support.eventually import eventually_sync
from tests.support.gateway import ANSWER, KEYS, MESSAGES, PROMPT, Gateway, cost_nano

pytestmark = pytest.mark.live

WHOLE = cost_nano("small", 4, 8)
"""What the provider's usual answer by `small` costs, in nano-dollars."""

LIMIT = 50
BOUND = {"messages": MESSAGES, "max_tokens": LIMIT, "num_retries": 0}


def outline(event: UsageEvent) -> list[tuple[str, int, str]]:
    """Model, status and usage state of each attempt; the numbers must count up and the costs add up."""
    assert [attempt.number for attempt in event.attempts] == list(range(1, len(event.attempts) + 1))
    assert event.cost_nano == sum(attempt.cost_nano for attempt in event.attempts)
    unknown = sum(attempt.cost_nano for attempt in event.attempts if attempt.usage == "unknown")
    assert event.unknown_nano == unknown
    for attempt in event.attempts:
        assert (attempt.error_class is None) == (attempt.status == 200 and attempt.usage == "reported"), attempt
    return [(attempt.model, attempt.status, attempt.usage) for attempt in event.attempts]


def most(body: dict[str, Any], model: str = "small") -> int:
    """The upper bound of a request: a token for each byte of its body, and all the output it allows."""
    return cost_nano(model, len(httpx.Request("POST", "http://x", json=body).content), LIMIT)


class TestRetries:
    def test_failures_before_an_answer_are_attempts_that_cost_nothing(self, gateway: Gateway):
        gateway.provider.script(model="small", statuses=(500, 500, 200))
        answer = gateway.chat("small")
        assert answer.status_code == 200
        event = gateway.event(answer)
        assert outline(event) == [("small", 500, "none"), ("small", 500, "none"), ("small", 200, "reported")]
        assert [attempt.error_class for attempt in event.attempts] == ["InternalServerError"] * 2 + [None]
        assert (event.status, event.error_class, event.fallbacks, event.cost_nano) == (200, None, 0, WHOLE)
        assert len(gateway.provider.attempts) == 3

    def test_a_stream_that_fails_before_its_first_event_is_tried_again(self, gateway: Gateway):
        gateway.provider.script(model="small", statuses=(503, 200))
        answer = gateway.chat("small", stream=True)
        assert answer.status_code == 200 and "lazy" in answer.text
        event = gateway.event(answer)
        assert outline(event) == [("small", 503, "none"), ("small", 200, "reported")]
        assert event.cost_nano == WHOLE

    def test_a_rate_limit_is_an_attempt(self, gateway: Gateway):
        gateway.provider.script(model="small", statuses=(429, 200), retry_after=0)
        event = gateway.event(gateway.chat("small"))
        assert outline(event) == [("small", 429, "none"), ("small", 200, "reported")]
        assert event.attempts[0].error_class == "RateLimitError"

    def test_when_all_fail_the_client_is_told_and_each_is_in_the_books(self, gateway: Gateway):
        gateway.provider.script(model="small", status=500)
        answer = gateway.chat("small")
        assert answer.status_code >= 500
        assert answer.json()["error"].keys() >= {"message", "type", "code"}
        event = gateway.event(answer)
        assert outline(event) == [("small", 500, "none")] * 3
        assert (event.status, event.cost_nano, event.usage) == (answer.status_code, 0, "none")
        assert event.error_class == "InternalServerError"

    def test_each_attempt_names_its_own_deployment(self, gateway: Gateway):
        gateway.provider.script(model="balanced", statuses=(500, 200))
        event = gateway.event(gateway.chat("balanced"))
        assert outline(event) == [("balanced", 500, "none"), ("balanced", 200, "reported")]
        assert {attempt.deployment for attempt in event.attempts} <= {"balanced-one", "balanced-two"}
        assert event.deployment == event.attempts[-1].deployment

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1/responses", {"input": PROMPT}),
            ("/v1/messages", {"messages": MESSAGES, "max_tokens": LIMIT}),
            ("/v1/completions", {"prompt": PROMPT}),
        ],
    )
    def test_other_endpoints_count_their_attempts_alike(self, path: str, body: dict[str, Any], gateway: Gateway):
        gateway.provider.script(model="small", statuses=(500, 200))
        answer = gateway.post(path, {"model": "small", **body})
        assert answer.status_code == 200, answer.text
        assert outline(gateway.event(answer)) == [("small", 500, "none"), ("small", 200, "reported")]


class TestFallbacks:
    def test_a_policys_next_candidate_answers(self, gateway: Gateway):
        gateway.provider.script(model="large", status=500)
        answer = gateway.chat("smart")
        assert answer.headers["x-orchestration-model"] == "small"
        event = gateway.event(answer)
        assert outline(event) == [("large", 500, "none")] * 3 + [("small", 200, "reported")]
        assert (event.asked_model, event.used_model, event.fallbacks) == ("smart", "small", 1)
        assert (event.deployment, event.cost_nano) == ("small-id", WHOLE)

    def test_a_policys_stream_falls_back_too(self, gateway: Gateway):
        gateway.provider.script(model="large", status=500)
        answer = gateway.chat("smart", stream=True)
        assert answer.headers["x-orchestration-model"] == "small"
        assert outline(gateway.event(answer))[-1] == ("small", 200, "reported")

    def test_the_routers_own_fallbacks_are_recorded(self, gateway: Gateway):
        gateway.provider.script(model="brittle", status=500)
        answer = gateway.chat("brittle")
        assert answer.headers["x-orchestration-model"] == "small"
        event = gateway.event(answer)
        assert outline(event) == [("brittle", 500, "none")] * 3 + [("small", 200, "reported")]
        assert (event.asked_model, event.used_model, event.fallbacks) == ("brittle", "small", 1)

    def test_the_clients_own_fallbacks_are_recorded(self, gateway: Gateway):
        gateway.provider.script(model="large", status=500)
        answer = gateway.chat("large", fallbacks=["small"], num_retries=0)
        assert answer.status_code == 200, answer.text
        event = gateway.event(answer)
        assert outline(event) == [("large", 500, "none"), ("small", 200, "reported")]

    def test_a_policy_all_of_whose_candidates_fail_is_an_error_with_every_attempt(self, gateway: Gateway):
        gateway.provider.script(model="brittle", status=500)
        gateway.provider.script(model="small", status=500)
        answer = gateway.chat("doomed")
        assert answer.status_code >= 500
        event = gateway.event(answer)
        assert {attempt.model for attempt in event.attempts} >= {"nowhere", "brittle"}
        assert all(attempt.usage == "none" for attempt in event.attempts)
        assert (event.cost_nano, event.status) == (0, answer.status_code)
        assert outline(event)


class TestUnknownUsage:
    """An attempt that was sent and never answered may be billed: it is charged the most it can have cost."""

    def test_a_timeout_is_charged_its_upper_bound(self, gateway: Gateway):
        gateway.provider.script(model="hasty", hang=True)
        body = {"model": "hasty", **BOUND}
        answer = gateway.post("/v1/chat/completions", body)
        gateway.provider.release()
        assert answer.status_code in (408, 504)
        event = gateway.event(answer)
        assert [attempt.usage for attempt in event.attempts] == ["unknown"]
        assert event.attempts[0].error_class == "Timeout"
        assert (event.usage, event.cost_nano, event.unknown_nano) == ("unknown", most(body), most(body))
        bill = gateway.provider.totals
        assert event.cost_nano >= cost_nano("hasty", bill.prompt_tokens, bill.completion_tokens)

    def test_a_timeout_before_a_fallback_is_charged_beside_the_answer(self, gateway: Gateway):
        gateway.provider.script(model="hasty", hang=True)
        body = {"model": "hasty", **BOUND, "fallbacks": ["small"]}
        answer = gateway.post("/v1/chat/completions", body)
        gateway.provider.release()
        assert answer.status_code == 200, answer.text
        event = gateway.event(answer)
        assert [(attempt.model, attempt.usage) for attempt in event.attempts] == [
            ("hasty", "unknown"),
            ("small", "reported"),
        ]
        assert event.unknown_nano == most(body) and event.cost_nano == most(body) + WHOLE
        assert (event.usage, event.input_tokens, event.output_tokens) == ("unknown", 4, 8)
        assert float(answer.headers["x-orchestration-cost"]) == pytest.approx((most(body) + WHOLE) / 1e9, abs=1e-12)

    def test_a_connection_that_breaks_after_the_request_was_sent_is_unknown(self, gateway: Gateway):
        gateway.provider.script(model="small", reset_connection=True)
        body = {"model": "small", **BOUND}
        answer = gateway.post("/v1/chat/completions", body)
        assert answer.status_code >= 500
        event = gateway.event(answer)
        # The provider's client may have tried again by itself, which LiteLLM does not tell.
        assert {attempt.usage for attempt in event.attempts} == {"unknown"}
        bill = gateway.provider.totals
        assert event.unknown_nano == event.cost_nano >= cost_nano("small", bill.prompt_tokens, bill.completion_tokens)

    def test_a_connection_that_is_refused_cost_nothing(self, gateway: Gateway):
        answer = gateway.post("/v1/chat/completions", {"model": "nowhere", **BOUND})
        assert answer.status_code >= 500
        event = gateway.event(answer)
        assert [(attempt.model, attempt.usage) for attempt in event.attempts] == [("nowhere", "none")]
        assert (event.cost_nano, event.unknown_nano, event.usage) == (0, 0, "none")
        assert event.error_class

    def test_an_answer_that_cannot_be_read_is_not_free(self, gateway: Gateway):
        gateway.provider.script(model="small", malformed=True)
        body = {"model": "small", **BOUND}
        answer = gateway.post("/v1/chat/completions", body)
        assert answer.status_code >= 400
        event = gateway.event(answer)
        assert event.usage == "unknown"
        bill = gateway.provider.totals
        assert event.cost_nano >= cost_nano("small", bill.prompt_tokens, bill.completion_tokens) > 0


STREAMS = {
    "chat": ("/v1/chat/completions", {"messages": MESSAGES}),
    "completion": ("/v1/completions", {"prompt": PROMPT}),
    "response": ("/v1/responses", {"input": PROMPT}),
    "message": ("/v1/messages", {"messages": MESSAGES, "max_tokens": LIMIT}),
}
streams = pytest.mark.parametrize(("path", "body"), STREAMS.values(), ids=STREAMS.keys())


class TestBrokenStreams:
    def test_a_stream_that_is_cut_ends_in_an_error_event_and_is_estimated(self, gateway: Gateway):
        gateway.provider.script(model="small", cut_after_chunks=3, chunk_delay=0.05)
        answer = gateway.chat("small", stream=True)
        assert answer.status_code == 200
        errors = [line for line in answer.text.splitlines() if line.startswith('data: {"error"')]
        assert len(errors) == 1, answer.text
        assert json.loads(errors[0].removeprefix("data: "))["error"]["message"]
        event = gateway.event(answer)
        assert event.usage == "estimated"
        assert event.error_class
        assert (event.input_tokens >= 4, event.output_tokens) == (True, 3)
        assert event.cost_nano == cost_nano("small", event.input_tokens, 3)
        assert not event.disconnected

    def test_a_stream_that_ends_early_in_good_order_is_estimated(self, gateway: Gateway):
        gateway.provider.script(model="small", end_after_chunks=3)
        event = gateway.event(gateway.chat("small", stream=True))
        assert (event.usage, event.output_tokens) == ("estimated", 3)
        assert event.cost_nano == cost_nano("small", event.input_tokens, 3)

    @pytest.mark.parametrize(("path", "body"), list(STREAMS.values())[2:], ids=list(STREAMS)[2:])
    def test_in_other_dialects_a_cut_stream_is_charged_no_less_than_the_bill(
        self, path: str, body: dict[str, Any], gateway: Gateway
    ):
        gateway.provider.script(model="small", cut_after_chunks=6, chunk_delay=0.05)
        with (
            gateway.client() as client,
            client.stream("POST", path, json={"model": "small", "stream": True, **body}) as answer,
            contextlib.suppress(httpx.RemoteProtocolError),
        ):
            answer.read()
        event = gateway.event()
        bill = gateway.provider.totals
        assert event.usage in ("estimated", "unknown")
        assert event.cost_nano >= cost_nano("small", bill.prompt_tokens, bill.completion_tokens) > 0


class TestClientsThatLeave:
    @streams
    def test_mid_stream_it_is_recorded_once_with_what_was_used(self, path: str, body: dict[str, Any], gateway: Gateway):
        gateway.provider.script(model="small", hang_after_chunks=7)
        with gateway.proxy.client(KEYS["ada"], timeout=10) as client:
            with client.stream("POST", path, json={"model": "small", "stream": True, **body}) as answer:
                lines = answer.iter_lines()  # to be kept: the connection is closed with it
                assert any("quick" in line for line in lines)
                eventually_sync(lambda: gateway.provider.held == 1, what="the provider waiting")
            request_id = answer.headers["x-orchestration-request-id"]
        eventually_sync(lambda: gateway.provider.attempts[0].outcome == "abandoned", what="the provider left alone")
        [event] = gateway.books.recorded()
        assert event.request_id == request_id
        assert event.disconnected and event.streamed
        [attempt] = event.attempts
        [billed] = gateway.provider.attempts
        assert attempt.usage == event.usage == "estimated"
        assert event.input_tokens >= billed.prompt_tokens
        assert event.output_tokens == billed.completion_tokens > 0
        assert event.cost_nano == cost_nano("small", event.input_tokens, event.output_tokens)

    def test_while_waiting_for_a_whole_answer_it_is_recorded_once_and_not_as_free(self, gateway: Gateway):
        gateway.provider.script(model="small", hang=True)
        body = {"model": "small", **BOUND}
        with gateway.client() as client, pytest.raises(httpx.ReadTimeout):
            client.post("/v1/chat/completions", json=body, timeout=httpx.Timeout(10, read=0.5))
        eventually_sync(lambda: gateway.provider.attempts, what="the provider asked")
        gateway.provider.release()
        [event] = gateway.books.recorded()
        bill = gateway.provider.totals
        assert event.cost_nano >= cost_nano("small", bill.prompt_tokens, bill.completion_tokens) == WHOLE
        assert event.cost_nano in (WHOLE, most(body)), "what it cost, or the most it can have cost"

    def test_before_the_first_event_of_a_stream_it_is_recorded_once(self, gateway: Gateway):
        gateway.provider.script(model="small", hang=True)
        body = {"model": "small", **BOUND, "stream": True}
        with gateway.client() as client, pytest.raises(httpx.ReadTimeout):
            client.post("/v1/chat/completions", json=body, timeout=httpx.Timeout(10, read=0.5))
        eventually_sync(lambda: gateway.provider.attempts, what="the provider asked")
        gateway.provider.release()
        [event] = gateway.books.recorded()
        assert event.disconnected
        # When the provider answers, LiteLLM may or may not have noticed yet that nobody listens any more.
        if event.usage == "unknown":
            bill = gateway.provider.totals
            assert event.cost_nano >= cost_nano("small", bill.prompt_tokens, bill.completion_tokens)
        else:
            assert (event.usage, event.output_tokens > 0) == ("estimated", True)


def test_under_load_no_attempt_is_lost_or_counted_for_another_request(gateway: Gateway):
    """Failures, fallbacks and answers at once: each request's attempts are its own, and the sums are the bill."""
    gateway.provider.script(model="large", failure_rate=0.5)
    gateway.provider.script(model="small", failure_rate=0.2)
    answers = at_once(lambda: gateway.chat("smart", num_retries=1), times=60, threads=12)
    recorded = {event.request_id: event for event in gateway.books.recorded(60)}
    assert sum(len(event.attempts) for event in recorded.values()) == len(gateway.provider.attempts)
    for answer in answers:
        event = recorded[answer.headers["x-orchestration-request-id"]]
        assert event.status == answer.status_code
        if answer.status_code == 200:
            assert answer.json()["choices"][0]["message"]["content"] == ANSWER
            assert event.used_model == answer.headers["x-orchestration-model"] == event.attempts[-1].model
            assert [attempt.status for attempt in event.attempts[:-1]] == [500] * (len(event.attempts) - 1)
            assert event.cost_nano == cost_nano(event.used_model, 4, 8)
    billed = sum(cost_nano(a.model, a.prompt_tokens, a.completion_tokens) for a in gateway.provider.attempts)
    assert sum(event.cost_nano for event in recorded.values()) == billed


def at_once(ask: Callable[[], httpx.Response], times: int, threads: int) -> list[httpx.Response]:
    start = threading.Barrier(threads)

    def wait_and_ask(number: int) -> httpx.Response:
        if number < threads:
            start.wait(10)
        return ask()

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(wait_and_ask, range(times)))
