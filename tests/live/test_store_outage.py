"""The store goes away and comes back: requests do not notice, and nothing is lost or counted twice."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.books import Books
from tests.support.eventually import eventually_sync
from tests.support.gateway import KEYS, MESSAGES, OURS, Gateway, cost_nano, key_environment, model
from tests.support.postgres import PostgresServer
from tests.support.provider import FakeProvider
from tests.support.proxy import ProxyProcess

pytestmark = pytest.mark.live

REQUESTS = 60


@pytest.fixture(scope="module")
def store() -> Iterator[PostgresServer]:
    """A PostgreSQL of this module's own: its tests stop it."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def database(store: PostgresServer) -> Iterator[str]:
    store.start()
    with store.database() as url:
        yield url


@pytest.fixture(scope="module")
def module_database(store: PostgresServer) -> Iterator[str]:
    with store.database() as url:
        yield url


@pytest.fixture(scope="module")
def running(shared_provider: FakeProvider, module_database: str) -> Iterator[tuple[ProxyProcess, Books]]:
    """A proxy with its books in PostgreSQL."""
    with ProxyProcess(config(shared_provider), env=environment(module_database)) as proxy:
        books = Books(proxy, module_database)
        books.mark()
        yield proxy, books


def config(provider: FakeProvider) -> dict[str, Any]:
    return {
        **OURS,
        "model_list": [model("small", provider.url)],
        "orchestration": {"keys": [{"key": "os.environ/KEY_ADA", "user_id": "ada"}]},
    }


def environment(url: str) -> dict[str, str]:
    return {**key_environment(), "LLM_GATEWAY_DB_URL": url}


def chat(client: httpx.Client) -> tuple[str, float]:
    """The request's id and how many seconds it took."""
    began = time.perf_counter()
    answer = client.post("/v1/chat/completions", json={"model": "small", "messages": MESSAGES})
    assert answer.status_code == 200, answer.text
    return answer.headers["x-orchestration-request-id"], time.perf_counter() - began


def ids(books: Books) -> set[str]:
    return {event.request_id for event in books.all()}


def refuses_to_start(store_url: str, holder: ProxyProcess, provider: FakeProvider) -> None:
    second = ProxyProcess(config(provider), env=environment(store_url))
    try:
        second.spawn()
        eventually_sync(lambda: not second.running, within=60, what="the second proxy giving up")
        assert second.wait() != 0
        log = second.log_text()
        assert "REDIS_URL" in log and "already in use" in log
        assert f"pid {holder.pid}" in log, "it says who has the store"
    finally:
        second.close()
    assert holder.running


def test_a_second_proxy_on_the_same_postgresql_refuses_to_start_and_names_redis_url(
    running: tuple[ProxyProcess, Books], module_database: str, provider: FakeProvider
):
    refuses_to_start(module_database, running[0], provider)


def test_an_outage_slows_nothing_down_and_loses_nothing(
    running: tuple[ProxyProcess, Books], provider: FakeProvider, store: PostgresServer
):
    proxy, books = running
    with proxy.client(KEYS["ada"], timeout=15) as client:
        books.mark()
        for _ in range(20):  # warm
            chat(client)
        with_store = [chat(client) for _ in range(REQUESTS)]
        eventually_sync(lambda: books.backlog() == 0, what="all in the store")

        store.stop()
        without = [chat(client) for _ in range(REQUESTS)]
        status = books.status()
        assert status["store"]["reachable"] is False and status["store"]["error"]
        assert status["store"]["backlog_events"] == REQUESTS
        assert status["journal"]["healthy"] is True
        usual, meanwhile = (statistics.median(seconds for _, seconds in asked) for asked in (with_store, without))
        # Two runs of the same differ by a third on a busy machine; waiting for a database would be far more.
        assert meanwhile <= usual * 1.5 + 0.005, f"{usual * 1e3:.1f} ms with the store, {meanwhile * 1e3:.1f} without"

        store.start()
        eventually_sync(lambda: books.backlog() == 0, within=60, what="the journal drained")
        after = [chat(client) for _ in range(5)]
        recorded = books.recorded(20 + 2 * REQUESTS + 5)
        asked = [request_id for request_id, _ in (*with_store, *without, *after)]
        assert set(asked) <= {event.request_id for event in recorded}
        assert len({event.request_id for event in recorded}) == len(recorded)
        assert sum(event.cost_nano for event in recorded) == len(recorded) * cost_nano("small", 4, 8)
        assert books.status()["store"]["reachable"] is True


def test_a_proxy_that_starts_and_dies_while_its_store_is_away_catches_up_at_the_next_start(
    provider: FakeProvider, store: PostgresServer, database: str
):
    store.stop()
    with ProxyProcess(config(provider), env=environment(database)) as proxy:
        with proxy.client(KEYS["ada"], timeout=15) as client:
            asked = {chat(client)[0] for _ in range(10)}
        books = Books(proxy, database)
        assert books.status()["store"]["reachable"] is False
        assert books.backlog() == 10
        proxy.kill()
        proxy.start()
        store.start()
        eventually_sync(lambda: ids(books) == asked, within=60, what="all in the store")
        eventually_sync(lambda: books.status()["store"]["reachable"], within=15, what="the store being reachable")


def test_a_second_proxy_on_the_same_sqlite_file_refuses_to_start_and_names_redis_url(gateway: Gateway):
    refuses_to_start(f"sqlite:///{gateway.proxy.cwd / 'orchestration.db'}", gateway.proxy, gateway.provider)
    assert gateway.chat("small").status_code == 200
