"""Many clients, two instances with two workers each, one budget: held against the bill that the provider would send."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import httpx
import pytest

from core.budgets import Balance
from core.store import open_store
from tests.support.eventually import eventually, eventually_sync
from tests.support.gateway import OURS
from tests.support.postgres import PostgresServer
from tests.support.provider import Attempt, FakeProvider
from tests.support.proxy import HiddenKey, ProxyProcess
from tests.support.redis import RedisServer

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]

INPUT_NANO, OUTPUT_NANO = 1_000, 2_000
ANSWER_TOKENS = 2000
REQUEST_NANO = 4 * INPUT_NANO + ANSWER_TOKENS * OUTPUT_NANO
BUDGET_NANO = REQUEST_NANO * 21 // 2
"""Ten and a half requests."""
LEASE_SECONDS = 5
USERS = {
    name: HiddenKey(f"sk-{name}-{secrets.token_urlsafe(24)}")
    for name in ("limited", "historian", "unlimited", "killed", "flushed", "rich")
}
BODY = {"model": "gpt-4o", "messages": [{"role": "user", "content": "one two three four"}]}


@dataclass
class Fleet:
    """Two instances on one Redis and one PostgreSQL."""

    proxies: list[ProxyProcess]
    provider: FakeProvider
    redis: RedisServer
    store_url: str
    heard: int = 0
    """Answers of any kind."""

    async def ask(
        self, user: str, count: int, *, only: int | None = None, **more: object
    ) -> list[httpx.Response | None]:
        """So many requests at once, alternating between the instances; None for one that got no answer."""
        proxies = self.proxies if only is None else [self.proxies[only]]
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=120, limits=limits, trust_env=False) as client:

            async def one(number: int) -> httpx.Response | None:
                url = f"{proxies[number % len(proxies)].url}/v1/chat/completions"
                headers = {"authorization": f"Bearer {USERS[user]}", "connection": "close"}
                try:
                    answer = await client.post(url, json={**BODY, **more}, headers=headers)
                except httpx.HTTPError:
                    return None
                self.heard += 1
                return answer

            return list(await asyncio.gather(*(one(number) for number in range(count))))

    async def spent(self, user: str) -> Balance | None:
        """What the store has for the user's account."""
        store = open_store(self.store_url)
        try:
            now = int(time.time() * 1000)
            async with store.reading() as connection:
                from sqlalchemy import text

                found = "SELECT budget, start_ms FROM orchestration.budget_spend WHERE member = :user"
                row = (await connection.execute(text(found), {"user": user})).first()
            if row is None:
                return None
            page = await store.budgets.spend(row.budget, row.start_ms, limit=100)
            assert row.start_ms <= now
            return next(one for one in page.balances if one.key.endswith(f"|{user}"))
        finally:
            await store.close()


@pytest.fixture(scope="module")
def fleet(shared_provider: FakeProvider, shared_redis: RedisServer, shared_postgres: PostgresServer) -> Iterator[Fleet]:
    shared_redis.start()
    shared_redis.flushall()
    shared_postgres.start()
    plenty = 1000
    config = {
        **OURS,
        "model_list": [
            {
                "model_name": "gpt-4o",
                "litellm_params": {"model": "openai/gpt-4o", "api_base": shared_provider.url, "api_key": "sk-provider"},
                "model_info": {
                    "id": "gpt-4o-id",
                    "input_cost_per_token": INPUT_NANO / 1e9,
                    "output_cost_per_token": OUTPUT_NANO / 1e9,
                },
            }
        ],
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        "orchestration": {
            "keys": [{"key": f"os.environ/KEY_{name.upper()}", "user_id": name} for name in USERS],
            "budgets": [
                {
                    "budget_id": "race",
                    "per": "user",
                    "total_budget": BUDGET_NANO / 1e9,
                    "reset_period": "TOTAL",
                    "overrides": {"historian": plenty, "rich": plenty},
                }
            ],
            "reservations": {"lease_seconds": LEASE_SECONDS, "initial_output_tokens": 5000},
        },
    }
    with ExitStack() as stack:
        url = stack.enter_context(shared_postgres.database())
        environ = {f"KEY_{name.upper()}": str(key) for name, key in USERS.items()}
        environ |= {"REDIS_URL": shared_redis.url, "LLM_GATEWAY_DB_URL": url}
        proxies = [ProxyProcess(config, env=environ, workers=2) for _ in range(2)]
        for proxy in proxies:
            proxy.spawn()
            stack.callback(proxy.close)
        for proxy in proxies:
            proxy.wait_until_ready()
        fleet = Fleet(proxies, shared_provider, shared_redis, url)
        eventually_sync(lambda: serves(fleet), within=60)
        yield fleet


@pytest.fixture(autouse=True)
def answers(fleet: Fleet, provider: FakeProvider) -> FakeProvider:
    provider.script(output_tokens=ANSWER_TOKENS, first_byte_delay=0.3)
    return provider


def serves(fleet: Fleet) -> bool:
    """Whether every worker does, as far as eight answers tell."""
    answers = asyncio.run(fleet.ask("rich", 8, max_tokens=5))
    assert all(one is not None and one.status_code == 200 for one in answers), [one and one.text for one in answers]
    return True


def billed(attempts: list[Attempt]) -> int:
    return sum(one.prompt_tokens * INPUT_NANO + one.completion_tokens * OUTPUT_NANO for one in attempts)


def admitted(responses: list[httpx.Response | None]) -> list[httpx.Response]:
    found = [one for one in responses if one is not None and one.status_code == 200]
    refused = [one for one in responses if one is not None and one.status_code != 200]
    odd = [one.text for one in refused if one.json()["error"]["code"] != "budget_exceeded"]
    assert not odd, (len(odd), odd[:5])
    return found


async def test_500_clients_at_once_do_not_overspend_by_a_nano_dollar(fleet: Fleet) -> None:
    responses = await fleet.ask("limited", 500, max_tokens=ANSWER_TOKENS)
    assert len(admitted(responses)) == 10
    assert billed(fleet.provider.attempts) == 10 * REQUEST_NANO <= BUDGET_NANO
    refused = next(one for one in responses if one is not None and one.status_code == 429)
    assert refused.json()["error"]["type"] == "insufficient_quota"
    await eventually(lambda: _has(fleet, "limited", 10 * REQUEST_NANO), within=30)


async def test_without_a_limit_nearly_everything_affordable_is_admitted_and_nothing_is_cut(fleet: Fleet) -> None:
    await fleet.ask("historian", 100)
    await asyncio.sleep(8)  # every worker looks every five seconds at what the others have seen
    fleet.provider.reset()
    fleet.provider.script(output_tokens=ANSWER_TOKENS, first_byte_delay=0.3)
    first = admitted(await fleet.ask("unlimited", 500))
    assert len(first) >= 0.8 * 10
    assert billed(fleet.provider.attempts) <= BUDGET_NANO
    everyone = first
    for _ in range(5):
        more = admitted(await fleet.ask("unlimited", 20))
        everyone += more
        if not more:
            break
    used = billed(fleet.provider.attempts)
    assert 0.95 * BUDGET_NANO <= used <= BUDGET_NANO
    cut = [one for one in everyone if one.json()["choices"][0]["finish_reason"] == "length"]
    assert len(cut) <= 0.01 * len(everyone)
    assert all(one.headers["x-orchestration-clamped"] for one in everyone)


async def test_a_killed_instance_loses_no_money(fleet: Fleet) -> None:
    fleet.provider.script(output_tokens=ANSWER_TOKENS, hang=True)
    doomed, spared = (
        asyncio.create_task(fleet.ask("killed", 5, only=number, max_tokens=ANSWER_TOKENS)) for number in range(2)
    )
    await eventually(lambda: fleet.provider.held == 10, within=60)
    fleet.proxies[0].kill()
    fleet.provider.release()
    assert await doomed == [None] * 5
    assert len(admitted(await spared)) == 5
    assert len(fleet.provider.attempts) == 10
    fleet.provider.script(output_tokens=ANSWER_TOKENS)
    # What the killed one had sent counts as spent, so there is nothing left but half a request.
    await asyncio.sleep(LEASE_SECONDS * 1.5)
    assert admitted(await fleet.ask("killed", 20, only=1, max_tokens=ANSWER_TOKENS)) == []
    assert len(admitted(await fleet.ask("killed", 20, only=1, max_tokens=600))) <= 1
    assert billed(fleet.provider.attempts) <= BUDGET_NANO
    # Started again it finds in its journal what it had sent.
    fleet.proxies[0].start()
    await eventually(lambda: _has_at_least(fleet, "killed", billed(fleet.provider.attempts)), within=60)
    assert admitted(await fleet.ask("killed", 20, max_tokens=ANSWER_TOKENS)) == []
    assert billed(fleet.provider.attempts) <= BUDGET_NANO


async def test_a_redis_that_forgets_everything_in_mid_flight_costs_nothing(fleet: Fleet) -> None:
    fleet.provider.script(output_tokens=ANSWER_TOKENS, hang=True)
    before = fleet.heard
    asked = asyncio.create_task(fleet.ask("flushed", 60, max_tokens=ANSWER_TOKENS))
    # All have to be decided about: what comes while the books are incomplete is told so.
    await eventually(lambda: fleet.provider.held == 10 and fleet.heard == before + 50, within=60)
    fleet.redis.flushall()
    more = asyncio.create_task(fleet.ask("flushed", 40, max_tokens=ANSWER_TOKENS))
    await asyncio.sleep(1)
    fleet.redis.flushall()
    responses = await more
    assert [one for one in responses if one is not None and one.status_code == 200] == []
    assert len(fleet.provider.attempts) == 10
    fleet.provider.script(output_tokens=ANSWER_TOKENS)
    fleet.provider.release()
    assert len(admitted(await asked)) == 10
    await eventually(lambda: _has(fleet, "flushed", 10 * REQUEST_NANO), within=60)
    assert admitted(await fleet.ask("flushed", 20, max_tokens=ANSWER_TOKENS)) == []
    assert billed(fleet.provider.attempts) == 10 * REQUEST_NANO
    # And others go on as before.
    assert len(admitted(await fleet.ask("rich", 8, max_tokens=ANSWER_TOKENS))) == 8


async def _has(fleet: Fleet, user: str, nano: int) -> bool:
    found = await fleet.spent(user)
    return found is not None and found.spent_nano == nano


async def _has_at_least(fleet: Fleet, user: str, nano: int) -> bool:
    found = await fleet.spent(user)
    return found is not None and found.spent_nano >= nano
