"""The edge round a small ASGI app in place of LiteLLM's; the whole way is tested in tests/live."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import httpx
import pytest

from core.asgi_transport import StreamingASGITransport
from core.context import Caller, RequestContext
from core.journal import Journal, decode_lines
from core.settings import Settings
from core.usage import UsageEvent
from plugins.edge import Edge
from plugins.exchange import Exchange, current

Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]


class Runtime(SimpleNamespace):
    """As much of the runtime as the edge looks at, with a real journal."""

    def __init__(self, journal: Journal, **settings: Any) -> None:
        ready = asyncio.Event()
        ready.set()
        super().__init__(
            ready=ready,
            failure=None,
            settings=Settings.model_validate(settings),
            snapshot=SimpleNamespace(directory=SimpleNamespace(entries={})),
            shared_url=None,
            journal=journal,
            counts_spending=False,
            instance="here",
            price_version="p1",
        )


@pytest.fixture
def journal(tmp_path: Path) -> Any:
    journal = Journal(tmp_path, "test")
    yield journal
    journal.close()


def books(journal: Journal) -> list[UsageEvent]:
    return [event for segment in journal.segments for event in decode_lines(segment.path.read_bytes(), 0).events]


def identified(exchange: Exchange) -> None:
    exchange.context = RequestContext(
        exchange.request_id, exchange.endpoint, Caller(user_id="ada", tier="free"), "small"
    )


async def answer(send: Send, status: int, *parts: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    for index, part in enumerate(parts):
        await send({"type": "http.response.body", "body": part, "more_body": index < len(parts) - 1})


def client(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=StreamingASGITransport(app), base_url="http://proxy")


async def test_an_answer_carries_our_headers_and_is_in_the_journal_before_its_last_byte(journal: Journal) -> None:
    written_at_the_end: list[int] = []

    async def app(scope: Any, receive: Any, send: Send) -> None:
        exchange = current.get()
        assert exchange is not None
        identified(exchange)
        await answer(send, 200, b"first", b"last")

    async def last_byte_seen(message: dict[str, Any], send: Send) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body"):
            written_at_the_end.append(len(books(journal)))
        await send(message)

    async def watched(scope: Any, receive: Any, send: Send) -> None:
        await Edge(app, Runtime(journal))(scope, receive, lambda message: last_byte_seen(message, send))

    async with client(watched) as http:
        got = await http.post("/v1/chat/completions", json={})
    assert got.text == "firstlast"
    assert got.headers["x-orchestration-tier"] == "free"
    assert got.headers["x-orchestration-cost"] == "0.000000000"
    assert written_at_the_end == [1]
    (event,) = books(journal)
    assert event.request_id == got.headers["x-orchestration-request-id"]
    assert (event.user_id, event.asked_model, event.status, event.endpoint) == ("ada", "small", 200, "chat_completions")


async def test_a_free_route_passes_untouched(journal: Journal) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        assert current.get() is None
        await answer(send, 200, b"models")

    async with client(Edge(app, Runtime(journal))) as http:
        got = await http.get("/v1/models")
    assert "x-orchestration-request-id" not in got.headers
    assert books(journal) == []


async def test_a_request_nobody_was_identified_for_is_answered_but_not_in_the_books(journal: Journal) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        await answer(send, 401, b"who are you")

    async with client(Edge(app, Runtime(journal))) as http:
        got = await http.post("/v1/chat/completions", json={})
    assert got.status_code == 401
    assert "x-orchestration-request-id" in got.headers
    assert books(journal) == []


async def test_a_route_without_bounds_is_closed_only_while_spending_is_counted(journal: Journal) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        await answer(send, 200, b"passed")

    runtime = Runtime(journal)
    async with client(Edge(app, runtime)) as http:
        assert (await http.post("/openai/chat/completions", json={})).text == "passed"
        runtime.counts_spending = True
        refused = await http.post("/openai/chat/completions", json={})
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "route_refused"


async def test_a_body_that_says_it_is_too_large_is_refused_unread(journal: Journal) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        pytest.fail("the app was called")

    async with client(Edge(app, Runtime(journal, limits={"max_body_bytes": 100}))) as http:
        got = await http.post("/v1/embeddings", content=b"x" * 101)
    assert got.status_code == 413
    assert "100 bytes" in got.json()["error"]["message"]


async def test_a_body_of_undeclared_length_is_cut_off_where_it_becomes_too_large(journal: Journal) -> None:
    received = 0

    async def app(scope: Any, receive: Any, send: Send) -> None:
        nonlocal received
        while (message := await receive())["type"] == "http.request":
            received += len(message["body"])
        await answer(send, 400, b"the app noticed a disconnect")

    async def endless(scope: Any, receive: Any, send: Send) -> None:
        async def drip() -> dict[str, Any]:
            return {"type": "http.request", "body": b"x" * 40, "more_body": True}

        scope["headers"] = []
        await Edge(app, Runtime(journal, limits={"max_body_bytes": 100}))(scope, drip, send)

    async with client(endless) as http:
        got = await http.post("/v1/chat/completions", content=b"")
    assert got.status_code == 413
    assert received == 80


async def test_a_client_that_leaves_is_recorded_once_as_gone(journal: Journal) -> None:
    going = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        exchange = current.get()
        assert exchange is not None
        identified(exchange)
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        await receive()
        going.set()
        await receive()

    async with client(Edge(app, Runtime(journal))) as http, http.stream("POST", "/v1/chat/completions") as got:
        parts: AsyncIterator[bytes] = got.aiter_bytes()
        assert await anext(parts) == b"data: 1\n\n"
        await going.wait()
    (event,) = books(journal)
    assert event.disconnected
    assert event.streamed
    assert event.first_token_ms is not None


async def test_nothing_may_be_spent_that_cannot_be_written_down(journal: Journal) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        pytest.fail("the app was called")

    full = SimpleNamespace(accepting=False)
    runtime = Runtime(journal)
    runtime.journal = full
    async with client(Edge(app, runtime)) as http:
        got = await http.post("/v1/chat/completions", json={})
    assert got.status_code == 503
    assert got.json()["error"]["code"] == "usage_not_recordable"
    assert got.headers["retry-after"] == "5"


async def test_a_worker_that_failed_to_start_says_so(journal: Journal) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        pytest.fail("the app was called")

    runtime = Runtime(journal)
    runtime.failure = RuntimeError("the store is locked")
    async with client(Edge(app, runtime)) as http:
        got = await http.post("/v1/chat/completions", json={})
    assert got.status_code == 503


async def test_an_answer_whose_usage_cannot_be_read_is_delivered_and_recorded_as_unknown(journal: Journal) -> None:
    class Strange:
        @property
        def usage(self) -> Any:
            raise RuntimeError("a shape nobody knows")

    async def app(scope: Any, receive: Any, send: Send) -> None:
        exchange = current.get()
        assert exchange is not None
        identified(exchange)
        exchange.begin_attempt({"model": "provider/odd", "metadata": {"model_group": "odd"}}, "acompletion")
        exchange.answer = Strange()
        await answer(send, 200, b"delivered")

    async with client(Edge(app, Runtime(journal))) as http:
        got = await http.post("/v1/chat/completions", json={})
    assert got.text == "delivered"
    (event,) = books(journal)
    assert event.usage == "unknown"
    assert event.attempts[0].model == "odd"
