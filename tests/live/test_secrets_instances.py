"""Two instances on one Redis: a refresh on one is a refresh on both, and the store's URL comes from the vault."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.support.eventually import eventually_sync
from tests.support.provider import FakeProvider
from tests.support.redis import RedisServer
from tests.support.secret_proxy import CHAT, FileVault, proxy_with

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]


def test_a_refresh_on_one_instance_reaches_the_other_within_a_second(
    provider: FakeProvider, redis_server: RedisServer, postgres_url: str, tmp_path: Path
) -> None:
    vault = FileVault(tmp_path)
    vault.put(OPENAI="sk-1", ANTHROPIC="sk-a", STORE=postgres_url, REDIS=redis_server.url)
    shared = {
        "store": {"url": "os.environ/env://STORE"},
        "shared_state": {"url": "os.environ/env://REDIS"},
    }

    def connected(client: httpx.Client) -> bool:
        return client.get("/orchestration/status").json()["shared_state"]["connected"]

    def served_with(client: httpx.Client, key: str) -> bool:
        answer = client.post("/v1/chat/completions", json={"model": "small", **CHAT})
        assert answer.status_code == 200
        return provider.attempts[-1].api_key == key

    with ExitStack() as stack:
        one, other = (proxy_with(provider, vault, **shared) for _ in range(2))
        for proxy in (one, other):
            proxy.spawn()
            stack.callback(proxy.close)
        for proxy in (one, other):
            proxy.wait_until_ready()
        with one.client() as asker, other.client() as watcher:
            status = asker.get("/orchestration/status").json()
            assert status["store"]["reachable"]
            eventually_sync(
                lambda: len(asker.get("/orchestration/status").json()["workers"]) == 2, within=15, what="both workers"
            )
            eventually_sync(lambda: connected(watcher))
            vault.put(OPENAI="sk-2")
            assert asker.post("/orchestration/secrets/refresh").json()["told_other_instances"] is True
            eventually_sync(lambda: served_with(watcher, "sk-2"), within=1)

            redis_server.stop()
            vault.put(OPENAI="sk-3")
            answer = asker.post("/orchestration/secrets/refresh").json()
            assert (answer["refreshed"]["env://OPENAI"], answer["told_other_instances"]) == (None, False)
            redis_server.start()
            for client in (asker, watcher):
                eventually_sync(lambda client=client: connected(client), within=40)
            assert asker.post("/orchestration/secrets/refresh").json()["told_other_instances"] is True
            eventually_sync(lambda: served_with(watcher, "sk-3"), within=1)
        assert postgres_url not in one.log_text()
