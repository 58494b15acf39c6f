"""Many requests at once on a budget of ten and a half: through ours, and through LiteLLM's own key budgets.

Both have two instances on one Redis and one PostgreSQL, and the same provider. What was spent is read from the
provider's own bill.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx

from benchmarks.figures import Bound, Figure
from tests.support.gateway import OURS
from tests.support.litellm_database import LiteLLMDatabases
from tests.support.npm import NodeMissing
from tests.support.postgres import PostgresServer
from tests.support.provider import FakeProvider
from tests.support.proxy import HiddenKey, ProxyProcess
from tests.support.redis import RedisServer

_MODEL = "gpt-4o-mini"
_QUESTION = "Name a prime number, please."
_PROMPT_TOKENS, _ANSWER_TOKENS = 13, 200
_INPUT_NANO, _OUTPUT_NANO = 150, 600
_REQUEST_NANO = _PROMPT_TOKENS * _INPUT_NANO + _ANSWER_TOKENS * _OUTPUT_NANO
_BUDGET_NANO = _REQUEST_NANO * 21 // 2
_AFFORDABLE = 10
_WRITTEN_WITHIN = 6.0
"""Seconds after which each side has written down what was spent, and every worker of ours has learned from it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`rounds` races of each kind, each with a key of its own; `requests` at once in the first wave, `history` before
    them all."""

    rounds: int
    requests: int
    history: int
    waves: int
    """Further waves, of a fifth of the requests, until one admits nothing."""


FULL = Plan(rounds=3, requests=100, history=100, waves=6)
QUICK = Plan(rounds=1, requests=30, history=30, waves=2)


@dataclass(slots=True)
class Race:
    """What became of a budget. `first` is how many requests of the first wave were admitted."""

    first: int = 0
    admitted: int = 0
    cut: int = 0
    """Answers that ended at a limit which the client had not set."""
    strange: dict[int, int] = field(default_factory=dict[int, int])
    """Answers that were neither an answer nor a refusal for want of money, by status."""
    bill_nano: int = 0


@dataclass(frozen=True, slots=True)
class Side:
    """Two instances of a proxy, and how to get a key with a budget of its own in nano-dollars, None for any amount."""

    name: str
    proxies: Sequence[ProxyProcess]
    new_key: Callable[[int | None], HiddenKey]
    redis: RedisServer


async def measure(plan: Plan = FULL) -> list[Figure]:
    """The races of both sides; LiteLLM's are left out, with a figure that says so, where its database cannot run."""
    figures: list[Figure] = []
    with ExitStack() as stack:
        provider = stack.enter_context(FakeProvider())
        postgres = stack.enter_context(PostgresServer())
        with ExitStack() as those:
            figures += await _race(_ours(those, provider, postgres, plan), provider, plan)
        try:
            databases = LiteLLMDatabases(postgres)
        except NodeMissing:
            return [*figures, Figure("LiteLLM's own budgets: left out, its database needs Node.js", 0)]
        with ExitStack() as those:
            figures += await _race(_litellm(those, provider, databases), provider, plan)
    return figures


async def _race(side: Side, provider: FakeProvider, plan: Plan) -> Iterator[Figure]:
    provider.script(output_tokens=_ANSWER_TOKENS, prompt_tokens=_PROMPT_TOKENS)
    await _ask(side, side.new_key(None), plan.history, {})
    await asyncio.sleep(_WRITTEN_WITHIN)
    provider.script(output_tokens=_ANSWER_TOKENS, prompt_tokens=_PROMPT_TOKENS, first_byte_delay=1.0)
    figures: list[Figure] = []
    for limit, words in ((_ANSWER_TOKENS, "max_tokens given"), (None, "no max_tokens")):
        races = [await _run(side, provider, plan, limit) for _ in range(plan.rounds)]
        figures += _figures(f"{side.name}, {words}", races, ours=side.name == "ours", limited=limit is not None)
    if not side.redis.running:
        figures.append(Figure(f"{side.name}: Redis died on the way", 1))
    return iter(figures)


async def _run(side: Side, provider: FakeProvider, plan: Plan, limit: int | None) -> Race:
    key, race = side.new_key(_BUDGET_NANO), Race()
    more: dict[str, Any] = {"max_tokens": limit} if limit is not None else {}
    provider.bill.reset()
    for wave in range(1 + plan.waves):
        before = race.admitted
        for answer in await _ask(side, key, plan.requests if wave == 0 else plan.requests // 5, more):
            _note(race, answer, limit)
        if wave == 0:
            race.first = race.admitted
        elif race.admitted == before:
            break
        await asyncio.sleep(_WRITTEN_WITHIN if wave == 0 else 1.5)
    totals = provider.totals
    race.bill_nano = totals.prompt_tokens * _INPUT_NANO + totals.completion_tokens * _OUTPUT_NANO
    return race


def _note(race: Race, answer: httpx.Response | None, limit: int | None) -> None:
    if answer is not None and answer.status_code == 200:
        race.admitted += 1
        race.cut += limit is None and answer.json()["choices"][0]["finish_reason"] == "length"
    elif answer is None or not _is_refusal(answer):
        status = 0 if answer is None else answer.status_code
        race.strange[status] = race.strange.get(status, 0) + 1


def _is_refusal(answer: httpx.Response) -> bool:
    """Whether it says that there is no money left; LiteLLM does not always say so with 429."""
    return 400 <= answer.status_code < 500 and "budget" in answer.text.lower()


def _figures(name: str, races: Sequence[Race], *, ours: bool, limited: bool) -> Iterator[Figure]:
    over = [max(0, race.bill_nano - _BUDGET_NANO) / _BUDGET_NANO * 100 for race in races]
    used = [race.bill_nano / _BUDGET_NANO for race in races]
    strange = sum(sum(race.strange.values()) for race in races)
    first = [float(race.first) for race in races]
    most = Bound("<=", _AFFORDABLE) if limited else Bound(">=", 0.8 * _AFFORDABLE)
    yield Figure.of(f"{name}: admitted at once, {_AFFORDABLE} fit", first, "requests", most if ours else None)
    yield Figure(f"{name}: overspent at most", max(over), "% of the budget", must=Bound("==", 0) if ours else None)
    yield Figure.of(f"{name}: used in the end", used, "of the budget", Bound(">=", 0.95) if ours else None)
    if not limited:
        cut, answers = sum(race.cut for race in races), sum(race.admitted for race in races)
        share = cut / answers * 100 if answers else 0
        yield Figure(f"{name}: cut short", share, "% of answers", must=Bound("<=", 1) if ours else None)
    if strange:
        yield Figure(
            f"{name}: neither answered nor refused", strange, "requests", must=Bound("==", 0) if ours else None
        )


async def _ask(side: Side, key: HiddenKey, count: int, more: Mapping[str, Any]) -> list[httpx.Response | None]:
    """So many requests at once, over both instances; None for one that got no answer."""
    body = {"model": _MODEL, "messages": [{"role": "user", "content": _QUESTION}], **more}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=120, limits=limits, trust_env=False) as client:

        async def one(number: int) -> httpx.Response | None:
            url = f"{side.proxies[number % len(side.proxies)].url}/v1/chat/completions"
            try:
                return await client.post(url, json=body, headers={"Authorization": f"Bearer {key}"})
            except httpx.HTTPError:
                return None

        return list(await asyncio.gather(*(one(number) for number in range(count))))


# ---- The two sides ----


def _models(provider: FakeProvider) -> dict[str, Any]:
    prices = {"input_cost_per_token": _INPUT_NANO / 1e9, "output_cost_per_token": _OUTPUT_NANO / 1e9}
    parameters = {"model": f"openai/{_MODEL}", "api_base": provider.url, "api_key": "sk-provider"}
    return {
        "model_list": [{"model_name": _MODEL, "litellm_params": parameters, "model_info": {"id": "one", **prices}}],
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
    }


def _ours(stack: ExitStack, provider: FakeProvider, postgres: PostgresServer, plan: Plan) -> Side:
    rich, *limited = [HiddenKey(f"sk-{secrets.token_urlsafe(32)}") for _ in range(1 + 2 * plan.rounds)]
    budget = {
        "budget_id": "race",
        "per": "key",
        "total_budget": _BUDGET_NANO / 1e9,
        "reset_period": "TOTAL",
        "overrides": {_hash(rich): 1000},
    }
    redis = stack.enter_context(RedisServer())
    config = {
        **_models(provider),
        **OURS,
        "orchestration": {
            "keys": [{"key_hash": f"sha256:{_hash(key)}", "user_id": "ada"} for key in (rich, *limited)],
            "budgets": [budget],
            "store": {"url": stack.enter_context(postgres.database())},
            # Not by REDIS_URL, which LiteLLM would use as well.
            "shared_state": {"url": redis.url},
        },
    }
    proxies = _two(stack, config, {})
    unused = iter(limited)
    return Side("ours", proxies, lambda budget_nano: rich if budget_nano is None else next(unused), redis)


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _litellm(stack: ExitStack, provider: FakeProvider, databases: LiteLLMDatabases) -> Side:
    """LiteLLM alone, with its spend in its database and shared by Redis."""
    redis = stack.enter_context(RedisServer())
    shared = {"type": "redis", "host": "127.0.0.1", "port": redis.port, "supported_call_types": []}
    config = {
        **_models(provider),
        "litellm_settings": {"cache": True, "cache_params": shared},
        "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY", "proxy_batch_write_at": 1},
    }
    proxies = _two(stack, config, stack.enter_context(databases.database()).env)

    def new_key(budget_nano: int | None) -> HiddenKey:
        settings = {} if budget_nano is None else {"max_budget": budget_nano / 1e9}
        with proxies[0].client() as client:
            return HiddenKey(client.post("/key/generate", json=settings).raise_for_status().json()["key"])

    return Side("LiteLLM's own", proxies, new_key, redis)


def _two(stack: ExitStack, config: Mapping[str, Any], environ: Mapping[str, str]) -> list[ProxyProcess]:
    proxies = [ProxyProcess(config, env=environ) for _ in range(2)]
    for proxy in proxies:
        stack.callback(proxy.close)
        proxy.spawn()
    for proxy in proxies:
        proxy.wait_until_ready()
    return proxies
