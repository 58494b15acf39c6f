"""The fake provider speaks the APIs, misbehaves as told, and bills what was really used."""

from __future__ import annotations

import asyncio
import json

import httpx
import openai
import pytest

from tests.support.eventually import eventually
from tests.support.provider import BEHAVIOUR_HEADER, FakeProvider

PROMPT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "say three short words"}]
PROMPT_TOKENS = 6


@pytest.fixture
def client(provider: FakeProvider) -> openai.OpenAI:
    return openai.OpenAI(base_url=provider.url, api_key="sk-test", max_retries=0)


def post(provider: FakeProvider, path: str, headers: dict[str, str] | None = None, **body: object) -> httpx.Response:
    return httpx.post(f"{provider.origin}{path}", json={"model": "m", **body}, headers=headers, trust_env=False)


def events(response: httpx.Response) -> list[dict[str, object]]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


class TestAnswers:
    def test_a_chat_costs_one_token_a_word_on_both_sides(self, provider: FakeProvider, client: openai.OpenAI):
        answer = client.chat.completions.create(model="m", messages=PROMPT)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == PROMPT_TOKENS
        assert answer.usage.completion_tokens == len((answer.choices[0].message.content or "").split()) == 8
        assert provider.totals.total_tokens == answer.usage.total_tokens

    @pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
    def test_an_output_limit_shortens_the_answer_and_says_so(self, client: openai.OpenAI, limit: str):
        answer = client.chat.completions.create(model="m", messages=PROMPT, **{limit: 3})
        assert answer.choices[0].message.content == "the quick brown"
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None and answer.usage.completion_tokens == 3

    def test_every_choice_is_billed(self, provider: FakeProvider, client: openai.OpenAI):
        answer = client.chat.completions.create(model="m", messages=PROMPT, n=3)
        assert len(answer.choices) == 3
        assert answer.usage is not None and answer.usage.completion_tokens == 24 == provider.totals.completion_tokens

    def test_completions_that_are_not_shown_are_billed_too(self, provider: FakeProvider, client: openai.OpenAI):
        client.completions.create(model="m", prompt="one two", best_of=4)
        stream = client.completions.create(model="m", prompt="one two", best_of=4, stream=True)
        assert len([chunk for chunk in stream if chunk.choices[0].text]) == 8
        assert [attempt.completion_tokens for attempt in provider.attempts] == [32, 32]

    def test_a_stream_reports_usage_only_to_those_who_ask(self, provider: FakeProvider, client: openai.OpenAI):
        plain = list(client.chat.completions.create(model="m", messages=PROMPT, stream=True))
        asked = list(
            client.chat.completions.create(
                model="m", messages=PROMPT, stream=True, stream_options={"include_usage": True}
            )
        )
        assert all(chunk.usage is None for chunk in plain)
        assert asked[-1].usage is not None and asked[-1].usage.completion_tokens == 8
        assert "".join(chunk.choices[0].delta.content or "" for chunk in plain).split() == provider_words(8)
        assert [attempt.total_tokens for attempt in provider.attempts] == [PROMPT_TOKENS + 8] * 2

    def test_cached_and_reasoning_tokens_are_reported_within_the_others(
        self, provider: FakeProvider, client: openai.OpenAI
    ):
        provider.script(model="m", cached_tokens=4, reasoning_tokens=5, output_tokens=3)
        usage = client.chat.completions.create(model="m", messages=PROMPT).usage
        assert usage is not None and usage.prompt_tokens_details and usage.completion_tokens_details
        assert (usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens) == (PROMPT_TOKENS, 4)
        assert (usage.completion_tokens, usage.completion_tokens_details.reasoning_tokens) == (8, 5)

    def test_embeddings_depend_on_the_text_alone(self, provider: FakeProvider, client: openai.OpenAI):
        first = client.embeddings.create(model="m", input=["one two", "three"])
        again = client.embeddings.create(model="m", input="three", encoding_format="float")
        assert first.data[1].embedding == pytest.approx(again.data[0].embedding, abs=1e-6)
        assert first.data[0].embedding != first.data[1].embedding
        assert [attempt.prompt_tokens for attempt in provider.attempts] == [3, 1]

    def test_responses_come_whole_and_as_a_stream(self, provider: FakeProvider, client: openai.OpenAI):
        whole = client.responses.create(model="m", instructions="be brief", input="one two three")
        streamed = list(client.responses.create(model="m", input="one two", max_output_tokens=2, stream=True))
        assert whole.output_text.split() == provider_words(8)
        assert whole.usage is not None and (whole.usage.input_tokens, whole.usage.output_tokens) == (5, 8)
        assert streamed[0].type == "response.created"
        assert streamed[-1].type == "response.incomplete"
        assert streamed[-1].response.usage is not None and streamed[-1].response.usage.output_tokens == 2
        assert [event.sequence_number for event in streamed] == list(range(len(streamed)))
        assert [attempt.completion_tokens for attempt in provider.attempts] == [8, 2]

    def test_anthropic_messages_come_whole_and_as_a_stream(self, provider: FakeProvider):
        provider.script(cached_tokens=1)
        message = {"messages": [{"role": "user", "content": [{"type": "text", "text": "one two"}]}], "max_tokens": 5}
        whole = post(provider, "/v1/messages", {"x-api-key": "sk-a"}, **message).json()
        stream = events(post(provider, "/v1/messages", {"x-api-key": "sk-a"}, stream=True, **message))
        assert whole["usage"] == {
            "input_tokens": 1,
            "cache_read_input_tokens": 1,
            "cache_creation_input_tokens": 0,
            "output_tokens": 5,
        }
        kinds = [event["type"] for event in stream]
        assert kinds[:2] == ["message_start", "content_block_start"]
        assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
        assert stream[-2]["usage"] == {"output_tokens": 5}
        assert {attempt.api_key for attempt in provider.attempts} == {"sk-a"}
        assert [attempt.completion_tokens for attempt in provider.attempts] == [5, 5]

    def test_an_answer_without_usage_is_billed_all_the_same(self, provider: FakeProvider, client: openai.OpenAI):
        provider.script(usage=False)
        assert client.chat.completions.create(model="m", messages=PROMPT).usage is None
        assert provider.totals.completion_tokens == 8


class TestFailures:
    def test_statuses_follow_their_sequence_and_then_it_works(self, provider: FakeProvider):
        provider.script(model="m", statuses=(500, 429, 200), retry_after=7)
        answers = [post(provider, "/v1/chat/completions", messages=PROMPT) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [500, 429, 200, 200]
        assert answers[1].headers["retry-after"] == "7"
        assert [attempt.outcome for attempt in provider.attempts] == ["failed", "refused", "answered", "answered"]
        assert [attempt.total_tokens for attempt in provider.attempts] == [0, 0, 14, 14]

    def test_a_failure_can_be_billed_as_if_the_model_had_worked(self, provider: FakeProvider):
        provider.script(status=503, bill_failures=True)
        assert post(provider, "/v1/chat/completions", messages=PROMPT).status_code == 503
        assert provider.totals.total_tokens == PROMPT_TOKENS + 8

    @pytest.mark.parametrize(
        ("status", "error"),
        [
            (401, openai.AuthenticationError),
            (403, openai.PermissionDeniedError),
            (429, openai.RateLimitError),
            (500, openai.InternalServerError),
        ],
    )
    def test_an_error_is_what_openais_client_expects(
        self, provider: FakeProvider, client: openai.OpenAI, status: int, error: type[openai.APIStatusError]
    ):
        provider.script(status=status)
        with pytest.raises(error, match=f"told to answer {status}"):
            client.chat.completions.create(model="m", messages=PROMPT)

    def test_a_failure_rate_is_a_rate_and_repeats_itself(self, provider: FakeProvider):
        def run() -> list[int]:
            provider.script(model="m", failure_rate=0.3)
            with httpx.Client(trust_env=False) as http:
                body = {"model": "m", "prompt": "x"}
                return [http.post(f"{provider.url}/completions", json=body).status_code for _ in range(200)]

        first, second = run(), run()
        assert first == second
        assert 40 <= first.count(500) <= 80

    def test_behaviour_is_chosen_by_header_then_key_then_model(self, provider: FakeProvider):
        provider.script(model="m", status=500)
        provider.script(api_key="sk-b", status=403)
        key = {"Authorization": "Bearer sk-b"}
        own = {**key, BEHAVIOUR_HEADER: json.dumps({"status": 429})}
        answers = [post(provider, "/v1/completions", headers, prompt="x") for headers in (None, key, own)]
        assert [answer.status_code for answer in answers] == [500, 403, 429]
        assert post(provider, "/v1/completions", prompt="x", model="other").status_code == 200

    def test_a_misspelt_behaviour_is_refused(self, provider: FakeProvider):
        with pytest.raises(TypeError, match="statusses"):
            provider.script(statusses=(500,))

    def test_a_cut_stream_bills_what_was_sent(self, provider: FakeProvider):
        provider.script(cut_after_chunks=3)
        received: list[str] = []
        with (
            pytest.raises(httpx.RemoteProtocolError),
            httpx.stream(
                "POST",
                f"{provider.url}/chat/completions",
                json={"model": "m", "messages": PROMPT, "stream": True},
                trust_env=False,
            ) as response,
        ):
            received.extend(line for line in response.iter_lines() if line)
        assert len(received) == 3
        [attempt] = provider.attempts
        assert (attempt.outcome, attempt.prompt_tokens, attempt.completion_tokens) == ("cut", PROMPT_TOKENS, 3)

    def test_a_stream_can_end_early_in_good_order(self, provider: FakeProvider):
        provider.script(end_after_chunks=2)
        stream = post(provider, "/v1/chat/completions", messages=PROMPT, stream=True)
        assert len(events(stream)) == 2
        assert "[DONE]" not in stream.text

    def test_a_reset_connection_is_billed_in_full(self, provider: FakeProvider):
        provider.script(reset_connection=True)
        with pytest.raises(httpx.ReadError):
            post(provider, "/v1/chat/completions", messages=PROMPT)
        [attempt] = provider.attempts
        assert (attempt.outcome, attempt.completion_tokens) == ("reset", 8)

    @pytest.mark.parametrize("streamed", [False, True])
    def test_malformed_json_can_be_served(self, provider: FakeProvider, streamed: bool):
        provider.script(malformed=True)
        answer = post(provider, "/v1/chat/completions", messages=PROMPT, stream=streamed)
        assert answer.status_code == 200
        with pytest.raises(json.JSONDecodeError):
            json.loads(answer.text.removeprefix("data: "))

    def test_a_body_without_a_model_is_a_bad_request(self, provider: FakeProvider):
        answer = httpx.post(f"{provider.url}/chat/completions", content=b"{}", trust_env=False)
        assert answer.status_code == 400
        assert provider.attempts == []


class TestTime:
    async def test_a_hanging_request_waits_until_it_is_released(self, provider: FakeProvider):
        provider.script(hang=True)
        async with openai.AsyncOpenAI(base_url=provider.url, api_key="sk", max_retries=0) as client:
            asked = asyncio.ensure_future(client.chat.completions.create(model="m", messages=PROMPT))
            await eventually(lambda: provider.held == 1)
            assert not asked.done()
            provider.release()
            assert (await asked).usage is not None
        assert provider.held == 0

    @pytest.mark.parametrize(("streamed", "billed"), [(False, 8), (True, 0)])
    async def test_a_client_that_gives_up_before_the_answer_is_noticed(
        self, provider: FakeProvider, streamed: bool, billed: int
    ):
        provider.script(hang=True)
        async with openai.AsyncOpenAI(base_url=provider.url, api_key="sk", max_retries=0, timeout=0.2) as client:
            with pytest.raises(openai.APITimeoutError):
                await client.chat.completions.create(model="m", messages=PROMPT, stream=streamed)
        await eventually(lambda: provider.attempts[0].outcome == "abandoned")
        [attempt] = provider.attempts
        assert (attempt.prompt_tokens, attempt.completion_tokens) == (PROMPT_TOKENS, billed)

    async def test_a_client_that_leaves_a_stream_pays_for_what_was_generated(self, provider: FakeProvider):
        provider.script(hang_after_chunks=2)
        async with (
            httpx.AsyncClient(trust_env=False) as http,
            http.stream(
                "POST", f"{provider.url}/chat/completions", json={"model": "m", "messages": PROMPT, "stream": True}
            ) as response,
        ):
            # Kept, since an iterator that is let go closes the answer; and what was sent has to be read until it holds.
            lines = response.aiter_lines()
            assert await anext(lines)
            await eventually(lambda: provider.held)
        await eventually(lambda: provider.attempts[0].outcome == "abandoned")
        assert provider.attempts[0].completion_tokens == 2

    def test_delays_are_kept(self, provider: FakeProvider):
        provider.script(first_byte_delay=0.2, chunk_delay=0.02)
        answer = post(provider, "/v1/chat/completions", messages=PROMPT, stream=True)
        assert answer.elapsed.total_seconds() >= 0.2 + 9 * 0.02

    def test_a_stopped_provider_refuses_connections_and_comes_back_on_its_port(self):
        with FakeProvider() as provider:
            provider.stop()
            with pytest.raises(httpx.ConnectError):
                post(provider, "/v1/completions", prompt="x")
            provider.start()
            assert post(provider, "/v1/completions", prompt="x").status_code == 200


def provider_words(count: int) -> list[str]:
    return ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy"][:count]
