"""Redis is away under load for a while: what two whole proxies let through meanwhile, by the provider's bill."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from core.settings.models import OutageMode
from core.store import open_store
from tests.support.budgeted import bill_nano
from tests.support.eventually import eventually, eventually_sync
from tests.support.gateway import OURS, cost_nano, model
from tests.support.json_server import JsonServer, Request
from tests.support.postgres import PostgresServer
from tests.support.provider import FakeProvider
from tests.support.proxy import HiddenKey, ProxyProcess
from tests.support.redis import RedisServer

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

TOKENS = 500
"""Many: what is reserved for the input, of which only the bytes are known, is little beside them."""
BODY = {
    "model": "small",
    "messages": [{"role": "user", "content": "one two three four"}],
    "max_tokens": TOKENS,
}
REQUEST_NANO = cost_nano("small", 4, TOKENS)
TOTAL_NANO = 200 * REQUEST_NANO
SHARE = 0.05
ALLOTMENT_NANO = TOTAL_NANO // 20
"""Of each proxy: ten requests."""
BEFORE, RATE, AWAY_SECONDS = 40, 15.0, 60.0
KEY = HiddenKey(f"sk-load-{secrets.token_urlsafe(24)}")


@dataclass
class Load:
    """The answers to requests that come at a steady rate, whatever becomes of them."""

    answers: list[httpx.Response] = field(default_factory=list)

    @property
    def admitted(self) -> int:
        return sum(one.status_code == 200 for one in self.answers)

    @property
    def codes(self) -> Counter[str]:
        return Counter(one.json()["error"]["code"] for one in self.answers if one.status_code != 200)

    def odd(self, code: str) -> list[str]:
        """Answers that are no success and have another code."""
        return [one.text for one in self.answers if one.status_code != 200 and one.json()["error"]["code"] != code]


class Pair:
    """Two proxies on one Redis and one PostgreSQL, and who is told of what they find."""

    def __init__(self, mode: OutageMode, provider: FakeProvider, redis: RedisServer, store_url: str) -> None:
        self.provider = provider
        self.redis = redis
        self.store_url = store_url
        self.alerts: list[str] = []
        self.receiver = JsonServer(0, self._told)
        config = {
            **OURS,
            "model_list": [model("small", provider.url)],
            "router_settings": {"num_retries": 0, "disable_cooldowns": True},
            "orchestration": {
                "keys": [{"key": "os.environ/KEY_LOAD", "user_id": "load"}],
                "shared_state": {"on_outage": mode.value},
                "budgets": [
                    {"budget_id": "all", "per": "user", "total_budget": TOTAL_NANO / 1e9, "reset_period": "TOTAL"}
                ],
                "reservations": {"lease_seconds": 5, "allotment": SHARE},
                "alerts": {
                    "channels": {"ops": "os.environ/ALERTS"},
                    "rules": [{"on": ["shared_state_down"], "to": ["ops"]}],
                    "allow_private_addresses": True,
                },
            },
        }
        environ = {
            "KEY_LOAD": str(KEY),
            "REDIS_URL": redis.url,
            "LLM_GATEWAY_DB_URL": store_url,
            "ALERTS": f"json://127.0.0.1:{self.receiver.port}/alerts",
        }
        self.proxies = [ProxyProcess(config, env=environ) for _ in range(2)]

    def _told(self, request: Request) -> tuple[int, dict[str, str], object]:
        self.alerts.append(json.dumps(json.loads(request.body)))
        return 200, {}, {}

    @property
    def billed(self) -> int:
        return bill_nano(self.provider.attempts)

    async def ask(self, client: httpx.AsyncClient, number: int, load: Load) -> None:
        url = f"{self.proxies[number % 2].url}/v1/chat/completions"
        load.answers.append(await client.post(url, json=BODY, headers={"authorization": f"Bearer {KEY}"}))

    async def load(self, requests: int) -> Load:
        """So many requests, `RATE` a second, alternating between the proxies."""
        load = Load()
        begun = time.monotonic()
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client, asyncio.TaskGroup() as tasks:
            for number in range(requests):
                tasks.create_task(self.ask(client, number, load))
                await asyncio.sleep(max(0.0, begun + (number + 1) / RATE - time.monotonic()))
        return load

    async def both_admit(self) -> Load:
        """Ask until each of them has said yes."""
        load = Load()
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
            for number in range(2):

                async def admits(number: int = number) -> bool:
                    await self.ask(client, number, load)
                    return load.answers[-1].status_code == 200

                await eventually(admits, within=60, what=f"proxy {number} admitting requests")
        return load

    async def spent(self) -> int:
        """Nano-dollars, by the store."""
        from sqlalchemy import text

        store = open_store(self.store_url)
        try:
            async with store.reading() as connection:
                found = "SELECT coalesce(sum(spent_nano + base_nano), 0) FROM orchestration.budget_spend"
                return int((await connection.execute(text(found))).scalar_one())
        finally:
            await store.close()

    async def reserved_or_settled(self) -> int:
        """What shared state has of the account beside what the store says."""
        with self.redis.client() as client:
            fields = [
                client.hmget(key, "reserved", "settled") for key in client.scan_iter("{orchestration}:account:*|load")
            ]
        return sum(int(number or 0) for pair in fields for number in pair)  # type: ignore[union-attr]


@pytest.fixture(params=list(OutageMode), ids=str)
def pair(
    request: pytest.FixtureRequest, provider: FakeProvider, shared_postgres: PostgresServer
) -> Iterator[tuple[OutageMode, Pair]]:
    provider.script(output_tokens=TOKENS, first_byte_delay=0.2)
    shared_postgres.start()
    with ExitStack() as stack:
        url = stack.enter_context(shared_postgres.database())
        redis = stack.enter_context(RedisServer())
        pair = Pair(request.param, provider, redis, url)
        stack.callback(pair.receiver.stop)
        for proxy in pair.proxies:
            proxy.spawn()
            stack.callback(proxy.close)
        for proxy in pair.proxies:
            proxy.wait_until_ready()
        yield request.param, pair


async def test_redis_is_away_for_a_minute_under_load(pair: tuple[OutageMode, Pair]) -> None:
    mode, fleet = pair
    first = await fleet.both_admit()
    before = await fleet.load(BEFORE)
    assert before.admitted == BEFORE, before.codes
    if mode is OutageMode.LOCAL:
        await eventually(lambda: _is(fleet, 2 * ALLOTMENT_NANO), within=30, what="both having drawn an allotment")
    had = fleet.billed
    assert had == (first.admitted + BEFORE) * REQUEST_NANO

    load = asyncio.create_task(fleet.load(int(RATE * (AWAY_SECONDS + 4))))
    await asyncio.sleep(2)
    at_stop = len(fleet.provider.attempts)
    await asyncio.to_thread(fleet.redis.kill)
    await asyncio.sleep(1)
    soon = len(fleet.provider.attempts)
    await asyncio.sleep(AWAY_SECONDS - 2)
    at_end = len(fleet.provider.attempts)
    if mode is not OutageMode.ALLOW:
        assert fleet.billed <= TOTAL_NANO
    await asyncio.to_thread(fleet.redis.start)
    during = await load
    if mode is OutageMode.DENY:
        assert at_end == soon
        assert set(during.codes) == {"budgets_unavailable"}, during.odd("budgets_unavailable")
    elif mode is OutageMode.LOCAL:
        spent = (at_end - at_stop) * REQUEST_NANO  # with what was on its way to the provider when Redis died
        assert 1.6 * ALLOTMENT_NANO <= spent <= 2 * ALLOTMENT_NANO + 4 * REQUEST_NANO, "what was drawn ahead"
        assert set(during.codes) == {"budgets_unavailable"}, during.odd("budgets_unavailable")
    else:
        assert during.codes.keys() <= {"budget_exceeded"}, "everything is admitted, until it is known what is spent"
        assert at_end - soon >= 0.9 * RATE * (AWAY_SECONDS - 2)
    await eventually(lambda: any("Budgets cannot be looked up" in alert for alert in fleet.alerts), within=30)

    # It is back: what went on without it is counted, and the rest of the budget is there for both.
    if mode is not OutageMode.ALLOW:
        await fleet.both_admit()
    await eventually(lambda: _refuses(fleet), within=60, what="the budget being used up")
    billed = fleet.billed
    if mode is OutageMode.ALLOW:
        assert billed > TOTAL_NANO, "or nothing was let through that a budget would have refused"
    else:
        assert 0.95 * TOTAL_NANO <= billed <= TOTAL_NANO
    await eventually(lambda: _spent(fleet, billed), within=60, what="the books having the bill")
    await eventually(lambda: _is(fleet, 0), within=60, what="nothing being reserved any more")
    assert fleet.billed == billed


async def _is(fleet: Pair, nano: int) -> bool:
    return await fleet.reserved_or_settled() == nano


async def _spent(fleet: Pair, nano: int) -> bool:
    return await fleet.spent() == nano


async def _refuses(fleet: Pair) -> bool:
    """Whether both proxies say that nothing is left."""
    load = await fleet.load(int(RATE))
    return load.admitted == 0 and set(load.codes) == {"budget_exceeded"}


SLOW = """
import asyncio

from litellm.integrations.custom_logger import CustomLogger


class Slow(CustomLogger):
    async def async_pre_call_hook(self, user_api_key_dict, cache, data, call_type):
        await asyncio.sleep(1)
        return data


slow = Slow()
"""
ENDPOINTS: dict[str, tuple[str, dict[str, object]]] = {
    "chat": ("/v1/chat/completions", {"messages": BODY["messages"]}),
    "stream": ("/v1/chat/completions", {"messages": BODY["messages"], "stream": True}),
    "completions": ("/v1/completions", {"prompt": "one two"}),
    "embeddings": ("/v1/embeddings", {"input": "one two"}),
    "responses": ("/v1/responses", {"input": "one two"}),
    "messages": ("/v1/messages", {"messages": BODY["messages"], "max_tokens": 20}),
}


def test_redis_goes_away_between_a_reservation_and_its_attempt(provider: FakeProvider, tmp_path: Path) -> None:
    """Another callback takes its time, and Redis is gone by then: nothing is sent, and the client is told why."""
    (tmp_path / "theirs.py").write_text(SLOW)
    config = {
        **OURS,
        "litellm_settings": OURS["litellm_settings"] | {"callbacks": ["litellm_orchestration.callback", "theirs.slow"]},
        "model_list": [model("small", provider.url), model("embed", provider.url, mode="embedding")],
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        "orchestration": {
            "keys": [{"key": "os.environ/KEY_LOAD", "user_id": "load"}],
            "budgets": [{"budget_id": "all", "total_budget": 10, "reset_period": "TOTAL"}],
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config))
    with RedisServer() as redis:
        environ = {"KEY_LOAD": str(KEY), "REDIS_URL": redis.url}
        with ProxyProcess(path, env=environ, cwd=tmp_path) as proxy, proxy.client(KEY) as client:
            for name, (where, body) in ENDPOINTS.items():
                asked = {"model": "embed" if name == "embeddings" else "small", **body}

                def answers(where: str = where, asked: dict[str, object] = asked) -> bool:
                    return client.post(where, json=asked).status_code == 200

                eventually_sync(answers, within=60, what=f"{name} being answered")
                before = len(provider.attempts)
                dying = threading.Timer(0.5, redis.kill)
                dying.start()
                answer = client.post(where, json=asked)
                dying.join()
                redis.start()
                assert answer.status_code == 503, (name, answer.text)
                assert answer.json()["error"]["code"] == "budgets_unavailable", (name, answer.text)
                assert len(provider.attempts) == before, name
