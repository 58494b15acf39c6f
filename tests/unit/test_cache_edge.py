"""The cache at the edge, round an app in place of LiteLLM's; the whole way is tested in tests/live."""

import asyncio
import gc
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from plugins.caching import service
from plugins.identities import fingerprint, may_change, who
from tests.support.cached import Proxy, fuzz
from tests.support.clock import Clock


@pytest.fixture
def proxy(tmp_path: Path, clock: Clock) -> Iterator[Proxy]:
    made = Proxy(tmp_path, clock)
    yield made
    service.caching = None
    made.journal.close()


async def ask(
    client: httpx.AsyncClient, user: str = "ada", path: str = "/v1/chat/completions", **body: Any
) -> httpx.Response:
    headers = {"authorization": f"Bearer {user}"}
    return await client.post(path, json={"model": "small", "messages": [], **body}, headers=headers)


async def had(client: httpx.AsyncClient, user: str = "ada", **body: Any) -> str | None:
    return (await ask(client, user, **body)).headers.get("x-orchestration-cache")


async def test_the_edge_answers_whom_litellm_has_accepted_and_nobody_else(proxy: Proxy, clock: Clock) -> None:
    async with proxy.client() as client:
        assert [await had(client) for _ in range(3)] == ["miss", "hit", "hit"]
        proxy.revoked.add("ada")
        assert await had(client) == "hit", "nothing of it was seen"
        clock.advance(31)
        assert (await ask(client)).status_code == 401
        assert (await ask(client, "stranger")).status_code == 401
    assert proxy.calls == ["ada"]


@pytest.mark.parametrize("path", ["/key/block", "/key/delete", "/team/block", "/user/update", "/orchestration/x"])
async def test_a_change_of_keys_that_passes_here_counts_at_once(proxy: Proxy, path: str) -> None:
    async with proxy.client() as client:
        for _ in range(2):
            await ask(client)
        proxy.revoked.add("ada")
        await ask(client, path=path)
        assert (await ask(client)).status_code == 401


async def test_whoever_was_accepted_before_a_change_is_not_remembered_after_it(proxy: Proxy) -> None:
    proxy.gate = asyncio.Event()
    async with proxy.client() as client:
        first = asyncio.create_task(ask(client))
        while not proxy.calls:
            await asyncio.sleep(0)
        proxy.cache.forget()
        proxy.gate.set()
        await first
        proxy.revoked.add("ada")
        assert (await ask(client)).status_code == 401


async def out_after_5_seconds(proxy: Proxy, clock: Clock) -> None:
    """A key that is revoked without anybody seeing it is answered for that long, and no longer."""
    async with proxy.client() as client:
        assert [await had(client) for _ in range(2)] == ["miss", "hit"]
        proxy.revoked.add("ada")
        clock.advance(4.9)
        assert await had(client) == "hit"
        clock.advance(0.2)
        assert (await ask(client)).status_code == 401


async def test_a_key_is_out_when_it_expires(proxy: Proxy, clock: Clock) -> None:
    proxy.cache.identities._wall = clock
    proxy.expires = datetime.fromtimestamp(clock() + 5, UTC)
    await out_after_5_seconds(proxy, clock)


async def test_for_how_long_a_caller_is_remembered_is_a_setting(tmp_path: Path, clock: Clock) -> None:
    proxy = Proxy(tmp_path, clock, identity_ttl=5)
    try:
        await out_after_5_seconds(proxy, clock)
    finally:
        service.caching = None
        proxy.journal.close()


async def test_with_an_identity_ttl_of_0_litellm_is_asked_each_time(tmp_path: Path, clock: Clock) -> None:
    proxy = Proxy(tmp_path, clock, identity_ttl=0)
    try:
        async with proxy.client() as client:
            assert [await had(client) for _ in range(2)] == ["miss", "hit"], "found in the pipeline"
            proxy.revoked.add("ada")
            assert (await ask(client)).status_code == 401
    finally:
        service.caching = None
        proxy.journal.close()


async def test_a_header_that_nobody_knows_makes_another_caller() -> None:
    def scope(*headers: tuple[bytes, bytes], peer: str = "10.0.0.1", path: str = "/v1/embeddings") -> Any:
        return {"path": path, "query_string": b"", "client": (peer, 1), "headers": [(b"authorization", b"k"), *headers]}

    same = who(scope())
    assert who(scope((b"x-request-id", b"1"), (b"user-agent", b"curl"))) == same
    assert who(scope((b"x-customer", b"1"))) != same
    assert who(scope(peer="10.0.0.2")) != same
    assert who(scope(path="/v1/messages")) != same
    assert fingerprint(same, {"model": "a"}) != fingerprint(same, {"model": "b"})
    assert fingerprint(same, {"user": "a"}) != fingerprint(same, {"metadata": {"user_id": "a"}})
    assert fingerprint(same, {"model": "a"}) != fingerprint(same, {"model": "a", "tags": ["b"]})
    written, computed = "/v1/embeddings", "/".join(["", "v1", "embeddings"])
    assert written is not computed
    assert who(scope(path=computed)) == who(scope(path=written)), "by value, however a text came about"
    assert may_change("POST", "/key/generate")
    assert not may_change("GET", "/key/info")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_is_over_is_freed_at_once(proxy: Proxy, stream: bool) -> None:
    async def asked(question: str) -> None:
        await proxy.ask("ada", "/v1/chat/completions", {"model": "small", "messages": question, "stream": stream})

    proxy.forget_books()
    for warm_up in "ab":
        await asked(warm_up)
    await asyncio.sleep(0)
    gc.collect()
    gc.disable()
    try:
        for number in range(20):
            await asked(f"question {number}")
            await asked(f"question {number}")
        await asyncio.sleep(0)
        assert gc.collect() < 20, "what was asked and answered would wait for the garbage collector"
    finally:
        gc.enable()


@pytest.mark.slow
async def test_nobody_gets_an_answer_that_was_anothers(proxy: Proxy) -> None:
    found = await fuzz(proxy, 6_000, seed=7)
    assert found["hit"] > 2_000
    assert found["miss"] > 500


async def test_off_it_leaves_requests_alone(tmp_path: Path) -> None:
    proxy = Proxy(tmp_path, time.time, enabled=False)
    try:
        async with proxy.client() as client:
            assert [await had(client) for _ in range(3)] == [None] * 3
    finally:
        service.caching = None
        proxy.journal.close()
    assert proxy.calls == ["ada"] * 3
    assert proxy.cache.cache is None


async def test_without_the_edge_every_hit_has_passed_litellms_authentication(tmp_path: Path) -> None:
    proxy = Proxy(tmp_path, time.time, edge=False)
    try:
        async with proxy.client() as client:
            assert [await had(client) for _ in range(3)] == ["miss", "hit", "hit"]
            proxy.revoked.add("ada")
            assert (await ask(client)).status_code == 401
    finally:
        service.caching = None
        proxy.journal.close()


async def test_whoever_is_refused_leaves_the_call_to_the_next_who_waits(proxy: Proxy) -> None:
    async with proxy.client() as client:
        for _ in range(2):
            await ask(client, n=2)
        proxy.refused.append("ada")
        proxy.gate = asyncio.Event()
        asked = [asyncio.create_task(ask(client)) for _ in range(5)]
        await asyncio.sleep(0.05)
        proxy.gate.set()
        answers = await asyncio.gather(*asked)
    assert [answer.status_code for answer in answers] == [403, 200, 200, 200, 200]
    assert [answer.headers["x-orchestration-cache"] for answer in answers] == ["miss", "miss", *["shared"] * 3]
    assert len(proxy.calls) == 3, "with the one that made the caller known"


async def test_those_who_wait_get_one_call_and_each_an_event(proxy: Proxy) -> None:
    async with proxy.client() as client:
        for _ in range(2):
            await ask(client, n=2)
        proxy.gate = asyncio.Event()
        asked = [asyncio.create_task(ask(client, stream=stream)) for stream in (True, False) for _ in range(20)]
        while len(proxy.calls) < 3:
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        proxy.gate.set()
        answers = await asyncio.gather(*asked)
    assert len({answer.content for answer in answers}) == 2
    assert len(proxy.calls) == 3
    told = [answer.headers["x-orchestration-cache"] for answer in answers]
    assert (told.count("miss"), told.count("shared")) == (2, 38)
    events = [event for event in proxy.books() if event.cache == "shared"]
    assert len(events) == 38
    assert {(event.cost_nano, event.used_model, event.status) for event in events} == {(0, "small", 200)}
    assert proxy.cache.cache is not None
    assert proxy.cache.cache.stats().total.saved_nano >= 38_000


async def test_a_waiting_request_goes_on_when_the_call_it_waits_for_breaks(proxy: Proxy) -> None:
    async with proxy.client() as client:
        for _ in range(2):
            await ask(client, n=2)
        proxy.gate = asyncio.Event()
        first = asyncio.create_task(ask(client))
        while len(proxy.calls) < 2:
            await asyncio.sleep(0)
        second = asyncio.create_task(ask(client))
        await asyncio.sleep(0.05)
        first.cancel()
        proxy.gate.set()
        answer = await second
    assert answer.status_code == 200
    assert len(proxy.calls) <= 3
