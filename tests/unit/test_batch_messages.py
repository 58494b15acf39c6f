"""Requests about files and batches, as they are read and written anew."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request

from core.asgi import Message
from core.errors import BodyTooLarge
from plugins.batches.messages import Held, bounded, form, read_body, replay, rewritten
from plugins.batches.service import fingerprint, id_in
from plugins.budgets.prices import GroupPrices
from plugins.routes import ROUTES, Handling

ROOT = Path(__file__).resolve().parents[2]


def receive_of(*parts: bytes) -> Any:
    messages = [
        {"type": "http.request", "body": part, "more_body": number < len(parts)} for number, part in enumerate(parts, 1)
    ]

    async def receive() -> Message:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    return receive


@pytest.mark.parametrize(
    ("method", "path", "endpoint"),
    [
        ("POST", "/v1/batches", "batches"),
        ("POST", "/files", "files"),
        ("GET", "/v1/files", "file_list"),
        ("GET", "/batches", "batch_list"),
        ("DELETE", "/v1/files/file-1", "file"),
        ("GET", "/v1/files/file-1/content", "file"),
        ("GET", "/azure/v1/files/file-1/content", "file"),
        ("GET", "/v1/batches/batch_1", "batch"),
        ("POST", "/v1/batches/batch_1/cancel", "batch"),
    ],
)
def test_files_and_batches_are_ours_by_every_name(method: str, path: str, endpoint: str):
    route = ROUTES.of(method, path)
    # Some names of providers stand for routes of their own, which are closed.
    assert (route.handling, route.endpoint) in ((Handling.LATER, endpoint), (Handling.REFUSED, ""))
    assert route.handling is Handling.LATER or path.startswith("/azure/")


@pytest.mark.parametrize("path", ["/openai/v1/files", "/vertex_ai/v1/batches", "/mine/v1/batches"])
def test_creating_them_at_a_provider_of_one_s_choice_is_refused(path: str):
    assert ROUTES.of("POST", path).handling is Handling.REFUSED


@pytest.mark.parametrize(
    ("path", "before", "after", "found"),
    [
        ("/v1/files/file-1", "/files/", "/content", "file-1"),
        ("/v1/files/file-1/content", "/files/", "/content", "file-1"),
        ("/azure/v1/batches/batch_1", "/batches/", "", "batch_1"),
        ("/batches/batch_1/cancel", "/batches/", "/cancel", "batch_1"),
        ("/batches/a/b/cancel", "/batches/", "/cancel", "a/b"),
    ],
)
def test_the_id_is_what_stands_in_the_path(path: str, before: str, after: str, found: str):
    assert id_in(path, before, after) == found


def test_what_would_send_a_request_elsewhere_is_left_out():
    scope = {
        "path": "/batches",
        "root_path": "/proxy",
        "query_string": b"model=large",
        "headers": [
            (b"authorization", b"Bearer sk-1"),
            (b"x-litellm-api-key", b"sk-1"),
            (b"x-litellm-model", b"large"),
            (b"custom-llm-provider", b"azure"),
            (b"content-length", b"3"),
            (b"content-type", b"text/plain"),
            (b"accept-encoding", b"gzip"),
            (b"x-user-id", b"ada"),
        ],
    }
    found = rewritten(scope, path="/v1/batches", headers=[(b"content-length", b"5")])
    assert (found["path"], found["raw_path"], found["query_string"]) == ("/proxy/v1/batches", b"/proxy/v1/batches", b"")
    assert [name for name, _ in found["headers"]] == [
        *(b"authorization", b"x-litellm-api-key", b"x-user-id", b"content-length"),
    ]


async def test_a_form_is_read_as_it_was_written():
    body, kind = form({"purpose": "batch", "expires_after[seconds]": "60"}, "batch.jsonl", b'{"a": 1}\n--x\r\n')
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    scope = {"type": "http", "method": "POST", "headers": headers}
    async with Request(scope, replay(body, receive_of())).form() as read:
        assert (read["purpose"], read["expires_after[seconds]"]) == ("batch", "60")
        file = read["file"]
        assert not isinstance(file, str)
        assert (file.filename, await file.read()) == ("batch.jsonl", b'{"a": 1}\n--x\r\n')


async def test_a_body_is_read_to_its_end_and_not_beyond_what_is_allowed():
    assert await read_body(bounded(receive_of(b"ab", b"cd"), 4)) == b"abcd"
    with pytest.raises(BodyTooLarge):
        await read_body(bounded(receive_of(b"ab", b"cde"), 4))
    with pytest.raises(ConnectionError):
        await read_body(receive_of())


async def test_an_answer_is_held_until_it_was_read():
    held = Held()
    assert (held.status, held.json()) == (0, {})
    await held.send({"type": "http.response.start", "status": 200, "headers": []})
    await held.send({"type": "http.response.body", "body": b'{"id":', "more_body": True})
    await held.send({"type": "http.response.body", "body": b'"x"}'})
    assert held.json() == {"id": "x"}
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await held.release(send)
    assert [message["type"] for message in sent] == ["http.response.start", *["http.response.body"] * 2]


async def test_an_error_is_not_read_as_what_was_asked_for():
    held = Held()
    await held.send({"type": "http.response.start", "status": 400, "headers": []})
    await held.send({"type": "http.response.body", "body": b'{"id": "x"}'})
    assert held.json() == {}


PRICES = {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6, "input_cost_per_query": 1e-3}
DEPLOYMENT = {"litellm_params": {"model": "openai/x"}}
ANOTHER_PROCESS = f"""
from plugins.batches.service import fingerprint
from plugins.budgets.prices import GroupPrices
print(fingerprint(GroupPrices.of([{DEPLOYMENT | {"model_info": PRICES}}], {{}})))
"""


@pytest.mark.live  # another process that imports LiteLLM takes long
def test_the_same_prices_have_the_same_name_in_every_process_and_others_another():
    def name(**prices: float) -> str:
        return fingerprint(GroupPrices.of([{**DEPLOYMENT, "model_info": PRICES | prices}], {}))

    there = subprocess.run(
        [sys.executable, "-c", ANOTHER_PROCESS],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert there.stdout.splitlines()[-1] == name() != name(output_cost_per_token=3e-6)
