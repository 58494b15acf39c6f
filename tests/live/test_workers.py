"""Several workers on one store, as `REDIS_URL` permits, and a graceful end of each."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.books import Books
from tests.support.gateway import KEYS, MESSAGES, OURS, key_environment, model
from tests.support.provider import FakeProvider
from tests.support.proxy import ProxyProcess
from tests.support.redis import RedisServer

pytestmark = pytest.mark.live
REQUESTS = 120


def test_two_workers_keep_one_set_of_books_and_leave_nothing_behind(
    shared_provider: FakeProvider, redis_server: RedisServer, tmp_path: Path
) -> None:
    config = {
        **OURS,
        "model_list": [model("small", shared_provider.url)],
        "orchestration": {"keys": [{"key": "os.environ/KEY_ADA", "user_id": "ada"}]},
    }
    environ = {**key_environment(), "REDIS_URL": redis_server.url}
    with ProxyProcess(config, env=environ, workers=2, cwd=tmp_path) as proxy:
        books = Books(proxy)
        body = {"model": "small", "messages": MESSAGES}

        def ask(_: int) -> tuple[str, str]:
            # A connection each, so that both workers get some.
            with proxy.client(KEYS["ada"]) as client:
                answer = client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            return answer.headers["x-orchestration-request-id"], answer.headers["x-orchestration-cost"]

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(REQUESTS)))
        with proxy.client() as admin:
            # Whichever is asked knows what both have.
            lines = admin.get("/orchestration/metrics").raise_for_status().text.splitlines()
        counted = [float(line.split()[-1]) for line in lines if line.startswith("llm_orchestration_requests_total{")]
        assert len(counted) == 2
        assert sum(counted) == REQUESTS
        proxy.stop()
        events = books.all()
    assert {event.request_id for event in events} == {request_id for request_id, _ in answers}
    assert len(events) == REQUESTS
    assert len({event.instance for event in events}) == 2
    assert not list((tmp_path / ".orchestration" / "journal").glob("*.jsonl"))
