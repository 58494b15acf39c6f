"""Bare LiteLLM in the test bed: real clients get their answers through it, and the provider's bill agrees."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import openai
import pytest

from tests.support.eventually import eventually_sync
from tests.support.in_process import in_a_fresh_process, proxy_in_process
from tests.support.node_client import NodeClient
from tests.support.provider import FakeProvider
from tests.support.proxy import MASTER_KEY, ProxyProcess, openai_models
from tests.support.warm import WARM

pytestmark = pytest.mark.live

PROMPT = "one two three four"
MESSAGES = [{"role": "user", "content": PROMPT}]
ANSWER = "the quick brown fox jumps over the lazy"


@pytest.fixture(scope="module")
def proxy(shared_provider: FakeProvider, shared_proxy: Callable[..., ProxyProcess]) -> ProxyProcess:
    """Plain LiteLLM, without anything of ours."""
    models = openai_models(shared_provider.url, "small", "text-embedding-3-small")
    models += openai_models(shared_provider.url, "claude", model="anthropic/claude", api_base=shared_provider.origin)
    config = {"model_list": models, "router_settings": {"num_retries": 2}, "litellm_settings": {"num_retries": 2}}
    return shared_proxy(config)


@pytest.fixture
def client(proxy: ProxyProcess, provider: FakeProvider) -> openai.OpenAI:
    return openai.OpenAI(base_url=proxy.url, api_key=proxy.key, max_retries=0)


class TestStart:
    """A proxy that is forked is one that was started, only sooner."""

    def test_what_litellm_reads_while_it_is_imported_makes_it_start_by_its_command(self, proxy: ProxyProcess):
        with (proxy.cwd / "never.log").open("ab") as output:
            other = proxy.env | {"DEFAULT_MAX_RETRIES": "7"}
            assert WARM.fork([sys.executable], other, proxy.cwd, output, usual=proxy.env) is None

    @pytest.mark.parametrize("forks", [True, False])
    def test_it_ends_as_told_and_says_so(self, forks: bool, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(ProxyProcess, "forks", forks)
        proxy = ProxyProcess({"model_list": openai_models("http://127.0.0.1:9", "small")}, env={"KEY": "value"})
        with proxy:
            assert f"{proxy.pid}" in proxy.log_text()
            environ = Path(f"/proc/{proxy.pid}/cwd").resolve(), os.getpgid(proxy.pid)
            assert environ == (proxy.cwd.resolve(), proxy.pid)
            proxy.kill()
            assert proxy.wait() == -signal.SIGKILL
            proxy.start()
            assert proxy.stop() == -signal.SIGTERM

    @pytest.mark.parametrize("forks", [True, False])
    def test_one_that_cannot_start_says_why(self, forks: bool, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(ProxyProcess, "forks", forks)
        with pytest.raises(RuntimeError, match=r"ended with status [1-9]"), ProxyProcess({"model_list": 7}):
            pass


class TestPythonClient:
    def test_a_chat_is_answered_and_billed_once(self, client: openai.OpenAI, provider: FakeProvider):
        answer = client.chat.completions.create(model="small", messages=MESSAGES)
        assert answer.choices[0].message.content == ANSWER
        assert answer.usage is not None
        [attempt] = provider.attempts
        assert (attempt.prompt_tokens, attempt.completion_tokens) == (4, 8)
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 8)
        assert attempt.api_key == "sk-provider"

    async def test_the_async_client_streams_with_usage(self, proxy: ProxyProcess, provider: FakeProvider):
        async with openai.AsyncOpenAI(base_url=proxy.url, api_key=proxy.key, max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="small", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
        content = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        [usage] = [chunk.usage for chunk in chunks if chunk.usage is not None]
        assert content == ANSWER
        assert usage.total_tokens == 12 == provider.totals.total_tokens

    def test_embeddings_responses_and_completions_pass(self, client: openai.OpenAI, provider: FakeProvider):
        client.embeddings.create(model="text-embedding-3-small", input=PROMPT)
        response = client.responses.create(model="small", input=PROMPT)
        *_, last = client.responses.create(model="small", input=PROMPT, stream=True)
        completion = client.completions.create(model="small", prompt=PROMPT)
        assert response.output_text == completion.choices[0].text == ANSWER
        assert last.type == "response.completed"
        assert last.response.usage is not None and last.response.usage.total_tokens == 12
        assert {attempt.endpoint for attempt in provider.attempts} >= {"/v1/embeddings", "/v1/responses"}
        assert provider.totals.total_tokens == 4 + 3 * 12

    def test_anthropic_messages_pass(self, proxy: ProxyProcess, provider: FakeProvider):
        body = {"model": "claude", "messages": MESSAGES, "max_tokens": 5}
        with proxy.client() as http:
            whole = http.post("/v1/messages", json=body).json()
            stream = http.post("/v1/messages", json={**body, "stream": True}).text
        assert whole["usage"]["output_tokens"] == 5
        assert "event: message_stop" in stream
        assert {attempt.endpoint for attempt in provider.attempts} == {"/v1/messages"}
        assert provider.totals.completion_tokens == 10

    def test_a_retried_failure_stands_on_the_bill(self, client: openai.OpenAI, provider: FakeProvider):
        provider.script(model="small", statuses=(500, 500, 200), bill_failures=True)
        answer = client.chat.completions.create(model="small", messages=MESSAGES)
        assert answer.usage is not None and answer.usage.total_tokens == 12
        assert [attempt.status for attempt in provider.attempts] == [500, 500, 200]
        assert provider.totals.total_tokens == 36

    def test_a_cut_stream_is_cut(self, client: openai.OpenAI, provider: FakeProvider):
        provider.script(model="small", cut_after_chunks=3, chunk_delay=0.05)
        received: list[str] = []
        with pytest.raises((openai.APIError, httpx.RemoteProtocolError)):
            for chunk in client.chat.completions.create(model="small", messages=MESSAGES, stream=True):
                received.extend(choice.delta.content or "" for choice in chunk.choices)
        assert "".join(received) == "the quick brown"
        assert (provider.attempts[0].outcome, provider.attempts[0].completion_tokens) == ("cut", 3)

    def test_a_client_that_leaves_reaches_the_provider(self, client: openai.OpenAI, provider: FakeProvider):
        provider.script(model="small", hang_after_chunks=2)
        stream = client.chat.completions.create(model="small", messages=MESSAGES, stream=True)
        next(iter(stream))
        eventually_sync(lambda: provider.held == 1)
        stream.close()
        eventually_sync(lambda: provider.attempts[0].outcome == "abandoned")
        assert provider.attempts[0].completion_tokens == 2


class TestOtherClients:
    def test_node_chats_and_streams(self, proxy: ProxyProcess, provider: FakeProvider, node_client: NodeClient):
        chat = node_client("chat", url=proxy.url, key=proxy.key, model="small", prompt=PROMPT)
        stream = node_client("stream", url=proxy.url, key=proxy.key, model="small", prompt=PROMPT)
        assert chat["content"] == stream["content"] == ANSWER
        assert chat["usage"]["total_tokens"] == stream["usage"]["total_tokens"] == 12
        assert provider.totals.total_tokens == 24

    def test_node_embeds_and_lists(self, proxy: ProxyProcess, provider: FakeProvider, node_client: NodeClient):
        vector = node_client("embeddings", url=proxy.url, key=proxy.key, model="text-embedding-3-small", prompt=PROMPT)
        models = node_client("models", url=proxy.url, key=proxy.key)
        assert len(vector["embedding"]) == 8
        assert "small" in models["models"]

    def test_node_sees_an_error_as_an_error(self, proxy: ProxyProcess, node_client: NodeClient):
        refused = node_client("chat", url=proxy.url, key=proxy.key, model="no-such-model", prompt=PROMPT)
        assert refused["error"]["status"] == 400
        assert refused["error"]["name"] == "BadRequestError"

    def test_curl_chats(self, proxy: ProxyProcess, provider: FakeProvider):
        answer = curl(proxy, "/v1/chat/completions", json.dumps({"model": "small", "messages": MESSAGES}))
        assert json.loads(answer)["choices"][0]["message"]["content"] == ANSWER
        assert provider.totals.attempts == 1


def curl(proxy: ProxyProcess, path: str, body: str) -> str:
    # The key comes by standard input: arguments can be read by every user of the machine.
    command = ["curl", "--silent", "--fail-with-body", "--config", "-", "--json", body, f"{proxy.url}{path}"]
    header = f'header = "Authorization: Bearer {proxy.key}"\n'
    return subprocess.run(command, input=header, capture_output=True, text=True, check=True, timeout=30).stdout


class TestProcess:
    def test_its_cpu_seconds_and_memory_are_measured(
        self, proxy: ProxyProcess, client: openai.OpenAI, provider: FakeProvider
    ):
        before = proxy.cpu_seconds
        for _ in range(5):
            client.chat.completions.create(model="small", messages=MESSAGES)
        assert before > 1, "the start alone costs seconds"
        assert 0 < proxy.cpu_seconds - before < 10
        assert proxy.rss > 100_000_000

    def test_nothing_of_the_callers_environment_gets_in(self, monkeypatch: pytest.MonkeyPatch):
        for name in ("DATABASE_URL", "REDIS_URL", "OPENAI_API_KEY", "PYTHONDONTWRITEBYTECODE"):
            monkeypatch.setenv(name, "leak")
        proxy = ProxyProcess({"model_list": []})
        try:
            assert "leak" not in proxy.env.values()
            assert proxy.env["LITELLM_MASTER_KEY"] == MASTER_KEY
            assert MASTER_KEY not in repr(MASTER_KEY)
        finally:
            proxy.close()

    def test_a_start_that_fails_shows_the_end_of_the_log(self):
        proxy = ProxyProcess({"model_list": []}, arguments=["--no-such-option"])
        with pytest.raises(RuntimeError, match=r"ended with status 2; its log ends:(.|\n)*No such option"), proxy:
            pass
        assert not proxy.log.exists(), "its folder is gone"


async def chat_in_this_process(provider_url: str) -> None:
    """Runs in a process of its own: one proxy, one chat, and no second proxy."""
    config = {"model_list": openai_models(provider_url, "small")}
    async with proxy_in_process(config) as client:
        answer = await client.post("/v1/chat/completions", json={"model": "small", "messages": MESSAGES})
        assert answer.status_code == 200, answer.text
        print(answer.json()["choices"][0]["message"]["content"])
        refused = await client.get("/v1/models", headers={"Authorization": "Bearer sk-wrong"})
        assert refused.status_code in (400, 401), refused.text
    with pytest.raises(RuntimeError, match="already run a LiteLLM proxy"):
        async with proxy_in_process(config):
            pass


def test_the_proxy_also_runs_in_process_once(provider: FakeProvider):
    output = in_a_fresh_process(chat_in_this_process, provider.url)
    assert output.splitlines()[-1] == ANSWER
    assert provider.totals.total_tokens == 12
