"""The first run with real clients: the quickstart configuration, started and asked as a newcomer would."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import openai
import pytest

from tests.support.books import Books
from tests.support.node_client import NodeClient
from tests.support.proxy import HiddenKey, ProxyProcess

pytestmark = pytest.mark.live

QUICKSTART = Path(__file__).resolve().parents[2] / "config.yaml"
PROMPT = "What is a gateway?"
MESSAGES = [{"role": "user", "content": PROMPT}]
LARGE = "large heard: What is a gateway?"
SMALL = "small heard: What is a gateway?"


class FirstRun:
    """The proxy in a folder that held nothing but config.yaml."""

    def __init__(self, proxy: ProxyProcess) -> None:
        self.proxy = proxy
        self.keys_file = proxy.cwd / ".orchestration" / "keys.env"
        lines = [line for line in self.keys_file.read_text().splitlines() if not line.startswith("#")]
        self.keys = {name: HiddenKey(value) for name, value in (line.split("=", 1) for line in lines)}
        proxy.key = self.keys["LITELLM_MASTER_KEY"]
        self.books = Books(proxy)

    @property
    def ada(self) -> HiddenKey:
        return self.keys["DEMO_KEY_ADA"]

    @property
    def bob(self) -> HiddenKey:
        return self.keys["DEMO_KEY_BOB"]

    @property
    def url(self) -> str:
        return f"{self.proxy.url}/v1"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FirstRun]:
    folder = tmp_path_factory.mktemp("newcomer")
    shutil.copy(QUICKSTART, folder)
    proxy = ProxyProcess(folder / "config.yaml", command="llm-orchestration", cwd=folder)
    # As on a machine where nothing is set: the command makes the key itself.
    del proxy.env["LITELLM_MASTER_KEY"], proxy.env["LITELLM_SALT_KEY"], proxy.env["LITELLM_LOCAL_MODEL_COST_MAP"]
    proxy.env["LITELLM_SALT_KEY"] = ""
    with proxy:
        yield FirstRun(proxy)


@pytest.fixture
def first_run(served: FirstRun) -> FirstRun:
    served.books.mark()
    return served


class TestFirstRun:
    def test_it_makes_strong_keys_that_only_their_owner_can_read(self, first_run: FirstRun):
        assert stat.S_IMODE(first_run.keys_file.stat().st_mode) == 0o600
        assert set(first_run.keys) == {"LITELLM_MASTER_KEY", "DEMO_KEY_ADA", "DEMO_KEY_BOB"}
        assert all(re.fullmatch(r"sk-[\w-]{40,}", key) for key in first_run.keys.values())
        assert len(set(first_run.keys.values())) == 3

    def test_it_prints_a_line_that_works_and_no_key(self, first_run: FirstRun):
        text = first_run.proxy.log.read_text()
        assert not any(key in text for key in first_run.keys.values())
        found = re.search(r"^  (curl .*?[^\\])$", text, re.MULTILINE | re.DOTALL)
        assert found, text
        done = subprocess.run(
            ["bash", "-c", found.group(1)], cwd=first_run.proxy.cwd, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done.stderr
        assert "heard: Hello" in done.stdout
        assert first_run.books.recorded()[0].user_id == "ada"

    def test_no_key_is_an_argument_of_a_process(self, first_run: FirstRun):
        arguments = Path(f"/proc/{first_run.proxy.pid}/cmdline").read_text()
        assert "serve" in arguments
        assert not any(key in arguments for key in first_run.keys.values())

    def test_the_books_are_in_the_folder(self, first_run: FirstRun):
        assert (first_run.proxy.cwd / "orchestration.db").exists()


class TestPythonClient:
    def test_a_chat(self, first_run: FirstRun):
        with openai.OpenAI(base_url=first_run.url, api_key=first_run.ada, max_retries=0) as client:
            raw = client.chat.completions.with_raw_response.create(model="smart", messages=MESSAGES)  # type: ignore[arg-type]
        answer = raw.parse()
        assert answer.choices[0].message.content == LARGE
        assert raw.headers["x-orchestration-model"] == "large"
        assert answer.usage is not None
        [event] = first_run.books.recorded()
        assert (event.input_tokens, event.output_tokens) == (answer.usage.prompt_tokens, answer.usage.completion_tokens)
        assert event.cost_nano == event.input_tokens * 2500 + event.output_tokens * 10000
        assert Decimal(raw.headers["x-orchestration-cost"]) == Decimal(event.cost_nano) / 10**9

    async def test_an_async_stream_with_its_cost(self, first_run: FirstRun):
        async with openai.AsyncOpenAI(base_url=first_run.url, api_key=first_run.bob, max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="smart",
                messages=MESSAGES,
                stream=True,
                stream_options={"include_usage": True},  # type: ignore[arg-type]
            )
            chunks = [chunk async for chunk in stream]
        assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == SMALL
        [usage] = [chunk.usage for chunk in chunks if chunk.usage is not None]
        [event] = first_run.books.recorded()
        assert (event.user_id, event.used_model) == ("bob", "small")
        assert (event.input_tokens, event.output_tokens) == (usage.prompt_tokens, usage.completion_tokens)
        assert event.cost_nano == event.input_tokens * 150 + event.output_tokens * 600
        assert (usage.model_extra or {})["cost"] == pytest.approx(event.cost_nano / 1e9, abs=1e-15)

    def test_an_embedding_and_a_response(self, first_run: FirstRun):
        with openai.OpenAI(base_url=first_run.url, api_key=first_run.ada, max_retries=0) as client:
            vector = client.embeddings.create(model="embed", input=PROMPT)
            response = client.responses.create(model="small", input=PROMPT)
        assert len(vector.data[0].embedding) == 16
        assert response.output_text == SMALL
        assert {event.endpoint for event in first_run.books.recorded(2)} == {"embeddings", "responses"}

    def test_a_refusal_is_the_exception_a_program_expects(self, first_run: FirstRun):
        with openai.OpenAI(base_url=first_run.url, api_key=first_run.bob, max_retries=0) as client:
            with pytest.raises((openai.PermissionDeniedError, openai.AuthenticationError)) as refused:
                client.chat.completions.create(model="large", messages=MESSAGES)  # type: ignore[arg-type]
            names = {model.id for model in client.models.list()}
        assert "large" in refused.value.message
        assert names == {"small", "smart"}

    def test_an_unknown_key_is_an_authentication_error(self, first_run: FirstRun):
        with (
            openai.OpenAI(base_url=first_run.url, api_key="sk-unknown-0123456789", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.chat.completions.create(model="small", messages=MESSAGES)  # type: ignore[arg-type]


class TestOtherClients:
    def test_node_chats_streams_embeds_and_lists(self, first_run: FirstRun, node_client: NodeClient):
        chat = node_client("chat", url=first_run.url, key=first_run.ada, model="smart", prompt=PROMPT)
        stream = node_client("stream", url=first_run.url, key=first_run.bob, model="smart", prompt=PROMPT)
        vector = node_client("embeddings", url=first_run.url, key=first_run.ada, model="embed", prompt=PROMPT)
        models = node_client("models", url=first_run.url, key=first_run.bob)
        assert (chat["content"], stream["content"]) == (LARGE, SMALL)
        assert len(vector["embedding"]) == 16
        assert set(models["models"]) == {"small", "smart"}
        events = first_run.books.recorded(3)
        assert [event.output_tokens for event in events[:2]] == [
            chat["usage"]["completion_tokens"],
            stream["usage"]["completion_tokens"],
        ]

    def test_node_sees_a_refusal_as_an_error(self, first_run: FirstRun, node_client: NodeClient):
        refused = node_client("chat", url=first_run.url, key=first_run.bob, model="large", prompt=PROMPT)
        assert refused["error"]["status"] in (401, 403)

    def test_curl_streams(self, first_run: FirstRun):
        body = '{"model": "small", "stream": true, "messages": [{"role": "user", "content": "Hello"}]}'
        command = ["curl", "--silent", "--no-buffer", "--fail-with-body", "--config", "-", "--json", body]
        header = f'header = "Authorization: Bearer {first_run.bob}"\n'
        done = subprocess.run(
            [*command, f"{first_run.url}/chat/completions"], input=header, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.rstrip().endswith("data: [DONE]")
        [event] = first_run.books.recorded()
        assert (event.streamed, event.usage, event.user_id) == (True, "reported", "bob")


def test_a_connection_may_be_idle_for_longer_than_uvicorn_waits(first_run: FirstRun):
    """Clients and load balancers keep connections for a minute; a request into one that is being closed is lost."""
    kept = http.client.HTTPConnection("127.0.0.1", first_run.proxy.port, timeout=30)
    with contextlib.closing(kept):
        kept.request("GET", "/health/liveliness")
        kept.getresponse().read()
        held = kept.sock
        time.sleep(6)
        kept.request("GET", "/health/liveliness")
        assert kept.getresponse().status == 200
        assert held is not None and kept.sock is held


def test_the_report_tells_who_used_what_and_what_it_cost(first_run: FirstRun):
    """The last of the newcomer's steps: totals are the sum of what the answers said."""
    events = first_run.books.all()
    program = Path(sys.executable).with_name("llm-orchestration")
    done = subprocess.run(
        [program, "report", "usage", "--since", "7d", "--by", "user,model", "--json"],
        cwd=first_run.proxy.cwd,
        env={"PATH": os.environ["PATH"], "HOME": str(first_run.proxy.cwd)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert str(Decimal(sum(event.cost_nano for event in events)) / 10**9).rstrip("0") in done.stdout
    assert '"ada"' in done.stdout and '"bob"' in done.stdout


def test_a_second_start_prints_no_new_keys_and_keeps_the_old_ones(served: FirstRun):
    before = served.keys_file.read_text()
    log = len(served.proxy.log.read_text())
    served.proxy.restart()
    assert served.keys_file.read_text() == before
    served.books.mark()
    with openai.OpenAI(base_url=served.url, api_key=served.ada, max_retries=0) as client:
        client.chat.completions.create(model="small", messages=MESSAGES)  # type: ignore[arg-type]
    assert served.books.recorded()
    assert not any(key in served.proxy.log.read_text()[log:] for key in served.keys.values())
