"""A policy all of whose models are left alone, answered at the edge; the whole way is tested in tests/live."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from core.breakers import FAILED, OK
from core.settings import Settings
from custom_router.decision import Plan
from plugins.caching import service as caching
from plugins.exchange import Exchange
from plugins.resilience import outages
from plugins.resilience import service as resilience
from plugins.resilience.breakers import DeploymentBreakers
from tests.support.cached import Proxy
from tests.support.clock import Clock

SORRY = "The assistant is {reason}."
OPEN_FOR = 30.0
SETTINGS = {
    "tiers": {"all": {"models": ["*"]}},
    "default_tier": "all",
    "routing": {
        "policies": {
            "smart": {"candidates": ["large", "small"], "fallback_response": SORRY},
            "plain": {"candidates": ["large", "small"]},
            "tiny": {"candidates": ["tiny"], "fallback_response": SORRY},
        }
    },
    "resilience": {"circuit_breaker": {"failure_threshold": 2, "open_for": OPEN_FOR, "max_open_for": OPEN_FOR}},
}


class Broken(Proxy):
    """A proxy whose policies have a large and a small model; bob may use the small one alone."""

    def __init__(self, folder: Path, clock: Clock, **more: Any) -> None:
        super().__init__(folder, clock, enabled=False)
        runtime = self.runtime
        runtime.settings = settings = Settings.model_validate({**SETTINGS, **more})
        runtime.snapshot.settings, runtime.snapshot.policies = settings, settings.routing.policies
        runtime.disabled_deployments, runtime.document, runtime.store = frozenset(), {}, None
        self.breakers = DeploymentBreakers(runtime, clock=clock)
        groups: Any = SimpleNamespace(deployments=lambda group: (group,))
        service = resilience.resilience = resilience.Resilience(runtime, self.breakers, groups)
        outages.outages = outages.Outages(runtime, service, self.cache.identities, self.foresee, clock)

    def _plan(self, exchange: Exchange, auth: Any, body: Any) -> None:
        super()._plan(exchange, auth, body)
        policy = self.runtime.snapshot.policies[body["model"]]
        exchange.plan = Plan(body["model"], ("small",) if auth.user_id == "bob" else policy.candidates)

    def fail(self, *models: str) -> None:
        for model in models * 2:
            self.breakers.ended(model, FAILED, 0.1)


@contextmanager
def broken(folder: Path, clock: Clock, **settings: Any) -> Iterator[Broken]:
    proxy = Broken(folder, clock, **settings)
    yield proxy
    caching.caching = outages.outages = resilience.resilience = None
    resilience.stale_answer = resilience.nothing_stale
    proxy.journal.close()


@pytest.fixture
def proxy(tmp_path: Path, clock: Clock) -> Iterator[Broken]:
    with broken(tmp_path, clock) as proxy:
        yield proxy


async def ask(client: httpx.AsyncClient, user: str = "ada", model: str = "smart", **body: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {user}"}
    return await client.post(
        "/v1/chat/completions", json={"model": model, "messages": [], **body}, headers=headers, timeout=5
    )


async def test_whom_litellm_has_accepted_gets_the_policys_words_before_its_pipeline(proxy: Broken) -> None:
    proxy.fail("large", "small")
    async with proxy.client() as client:
        await ask(client)
        assert proxy.calls == ["ada"], "nobody knew her"
        answers = [await ask(client), await ask(client, stream=True)]
        await ask(client, "dora")
    assert proxy.calls == ["ada", "dora"]
    said = "The assistant is unavailable."
    assert answers[0].json()["choices"][0]["message"]["content"] == said
    assert said in answers[1].text and answers[1].text.endswith("data: [DONE]\n\n")
    assert {answer.headers["x-orchestration-degraded"] for answer in answers} == {"true"}
    events = [event for event in proxy.books() if event.degraded]
    assert [(e.user_id, e.status, e.error_class, e.cost_nano, e.streamed) for e in events] == [
        ("ada", 200, "AllModelsFailed", 0, False),
        ("ada", 200, "AllModelsFailed", 0, True),
    ]


async def test_while_one_of_its_models_may_be_asked_it_is_asked(proxy: Broken) -> None:
    proxy.fail("small")
    async with proxy.client() as client:
        for _ in range(3):
            await ask(client)
        for _ in range(3):
            await ask(client, "bob")
    assert proxy.calls == ["ada"] * 3 + ["bob"], "he has no other"


async def test_a_probe_is_not_kept_from_its_model(proxy: Broken, clock: Clock) -> None:
    proxy.fail("large", "small")
    async with proxy.client() as client:
        for _ in range(3):
            await ask(client)
        clock.advance(OPEN_FOR - 1)
        await ask(client)  # is remembered once more
        assert proxy.calls == ["ada"]
        clock.advance(1.1)
        _, permit = await proxy.breakers.usable([{"model_info": {"id": "small"}}])
        await ask(client)
        assert len(proxy.calls) == 2, "the other one is half-open"
        proxy.breakers.ended("small", OK, 0.1, permit)
        await ask(client)
    assert len(proxy.calls) == 3


async def test_without_words_of_its_own_a_policy_has_litellms_pipeline_say_so(proxy: Broken) -> None:
    proxy.fail("large", "small")
    async with proxy.client() as client:
        for _ in range(3):
            await ask(client, model="plain")
    assert proxy.calls == ["ada"] * 3


async def test_a_change_of_keys_or_settings_has_litellm_asked_again(proxy: Broken) -> None:
    proxy.fail("large", "small")
    async with proxy.client() as client:
        for _ in range(2):
            await ask(client)
        proxy.revoked.add("ada")
        assert (await ask(client)).status_code == 200
        await client.post("/key/block", json={})
        assert (await ask(client)).status_code == 401
        proxy.revoked.clear()
        for _ in range(2):
            await ask(client)
        proxy.revoked.add("ada")
        proxy.runtime.snapshot = SimpleNamespace(**vars(proxy.runtime.snapshot))
        assert (await ask(client)).status_code == 401


async def test_what_is_said_at_the_edge_counts_to_the_limits(tmp_path: Path, clock: Clock) -> None:
    tier = {"models": ["*"], "requests_per_minute": 3}
    with broken(tmp_path, clock, tiers={"all": tier}) as proxy:
        proxy.fail("large", "small")
        async with proxy.client() as client:
            answers = [await ask(client) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 429], "the first passes no real hook"
    assert answers[3].headers["x-ratelimit-remaining-requests"] == "0"


async def test_models_that_a_used_up_budget_degrades_to_may_answer_yet(tmp_path: Path, clock: Clock) -> None:
    budget = {"budget_id": "b", "total_budget": 1, "at_limit": "degrade", "degrade_to": ["tiny"]}
    with broken(tmp_path, clock, budgets=[budget]) as proxy:
        proxy.fail("large", "small")
        async with proxy.client() as client:
            for _ in range(2):
                await ask(client)
            assert len(proxy.calls) == 2
            proxy.fail("tiny")
            clock.advance(1)
            await ask(client)
    assert len(proxy.calls) == 2


async def test_a_stale_answer_is_better_than_words(tmp_path: Path, clock: Clock) -> None:
    with broken(tmp_path, clock, caching={"enabled": True, "default_ttl": 5, "serve_stale": 60}) as proxy:
        resilience.stale_answer = proxy.cache.stale_answer
        async with proxy.client() as client:
            for _ in range(2):
                await ask(client, model="tiny")
            clock.advance(6)
            proxy.fail("tiny")
            answer = await ask(client, model="tiny")
            other = await ask(client, model="tiny", n=2)
    assert answer.headers["x-orchestration-cache"] == "stale" and answer.json()["call"] == 1
    assert answer.headers["x-orchestration-degraded"] == other.headers["x-orchestration-degraded"] == "true"
    assert proxy.calls == ["ada"]
