"""Answers that exist already: given by the edge for nothing, to nobody whom LiteLLM has not accepted."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import httpx
import pytest

from tests.support.books import Books
from tests.support.eventually import eventually_sync
from tests.support.gateway import KEYS, OURS, Gateway, key_environment, model
from tests.support.postgres import PostgresServer
from tests.support.provider import FakeProvider
from tests.support.proxy import ProxyProcess
from tests.support.redis import RedisServer

pytestmark = pytest.mark.live

SORRY = "We are {reason} at the moment, please try again."


def config(provider: FakeProvider) -> dict[str, Any]:
    url = provider.url
    return {
        **OURS,
        "model_list": [
            model("small", url),
            model("large", url),
            model("claude", provider.origin, provider="anthropic"),
            model("embed", url, mode="embedding"),
            model("embed-too", url, mode="embedding"),
            model("fleeting", url),
            model("down", url),
        ],
        "orchestration": {
            "keys": [
                {"key": "os.environ/KEY_ADA", "user_id": "ada", "team_id": "research", "tier": "all"},
                {"key": "os.environ/KEY_DORA", "user_id": "dora", "team_id": "research", "tier": "all"},
                {"key": "os.environ/KEY_BOB", "user_id": "bob", "team_id": "sales", "tier": "all"},
                {"key": "os.environ/KEY_CARL", "user_id": "carl", "team_id": "research", "tier": "few"},
                {"key": "os.environ/KEY_SERVICE", "user_id": "service", "team_id": "research", "tier": "all"},
                {"key": "os.environ/KEY_EVE", "user_id": "eve", "team_id": "research", "tier": "short"},
            ],
            "budgets": [{"budget_id": "tight", "users": ["service"], "total_budget": 5_000 * 20 / 1e9}],
            "tiers": {
                "all": {"models": ["*"]},
                "few": {"models": ["*"], "requests_per_minute": 3, "tokens_per_minute": 1000},
                "short": {"models": ["*"], "max_tokens": 3},
            },
            "routing": {
                "policies": {
                    "smart": {"candidates": ["large", "small"]},
                    "vectors": {"candidates": ["embed", "embed-too"]},
                    "unkept": {"candidates": ["small"], "cache": False},
                    "relieved": {"candidates": ["down", "small"]},
                    "sorry": {"candidates": ["down"], "fallback_response": SORRY},
                },
                "experiments": [
                    {
                        "id": "sizes",
                        "policy": "smart",
                        "unit": "user",
                        "status": "running",
                        "variants": [
                            {"id": "a", "model": "large", "weight": 50},
                            {"id": "b", "model": "small", "weight": 50},
                        ],
                        "metrics": {"primary": "rating"},
                    }
                ],
            },
            "caching": {
                "enabled": True,
                "serve_stale": 600,
                "cache_strategies": {"model": {"fleeting": {"ttl": 0}, "down": {"ttl": 1}}},
            },
            "resilience": {"health_checks": {"interval": 0}, "retries": {"max_attempts": 1}},
        },
    }


@pytest.fixture(scope="module")
def shared(shared_provider: FakeProvider, shared_proxy: Callable[..., ProxyProcess]) -> Gateway:
    proxy = shared_proxy(config(shared_provider), env=key_environment())
    return Gateway(proxy, shared_provider, Books(proxy))


@pytest.fixture
def gateway(shared: Gateway, provider: FakeProvider) -> Gateway:
    shared.books.mark()
    return shared


def prompt() -> str:
    """One that nobody has asked yet, of four tokens."""
    return f"one two three {uuid.uuid4().hex}"


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "small", "messages": [{"role": "user", "content": prompt()}], **more}


def without_cost(response: httpx.Response) -> str:
    return re.sub(r'"cost":[0-9.e-]+', "", response.text)


def cached(response: httpx.Response) -> str | None:
    return response.headers.get("x-orchestration-cache")


CALLS: dict[str, tuple[str, Callable[[], dict[str, Any]], bool]] = {
    "chat": ("/v1/chat/completions", chat, True),
    "completions": ("/v1/completions", lambda: {"model": "small", "prompt": prompt()}, True),
    "embeddings": ("/v1/embeddings", lambda: {"model": "embed", "input": prompt()}, False),
    "responses": ("/v1/responses", lambda: {"model": "small", "input": prompt()}, True),
    "messages": (
        "/v1/messages",
        lambda: {"model": "claude", "max_tokens": 50, "messages": [{"role": "user", "content": prompt()}]},
        True,
    ),
}
CASES = [
    (name, stream) for name, (_, _, streams) in CALLS.items() for stream in ((False, True) if streams else (False,))
]


@pytest.mark.parametrize(("name", "stream"), CASES, ids=[f"{name}-{'stream' if s else 'whole'}" for name, s in CASES])
def test_the_same_question_is_paid_once(gateway: Gateway, name: str, stream: bool) -> None:
    path, make, _ = CALLS[name]
    body = make() | ({"stream": True} if stream else {})
    first, second, third = (gateway.post(path, body) for _ in range(3))
    assert [one.status_code for one in (first, second, third)] == [200] * 3, first.text
    assert [cached(one) for one in (first, second, third)] == ["miss", "hit", "hit"]
    assert without_cost(second) == without_cost(first) == without_cost(third)
    assert second.headers["content-type"] == first.headers["content-type"]
    assert gateway.provider.totals.attempts == 1
    events = {event.request_id: event for event in gateway.books.recorded(3)}
    paid, hit, again = (events[one.headers["x-orchestration-request-id"]] for one in (first, second, third))
    assert paid.cost_nano > 0
    assert (hit.cost_nano, hit.cache, hit.attempts, hit.used_model) == (0, "hit", [], paid.used_model)
    assert (again.cost_nano, again.cache, again.streamed) == (0, "hit", stream)
    assert (hit.input_tokens, hit.output_tokens) == (paid.input_tokens, paid.output_tokens)
    assert hit.error_class is None
    assert second.headers["x-orchestration-model"] == first.headers["x-orchestration-model"]
    if not stream:
        assert third.headers["x-orchestration-cost"] == "0.000000000"


def test_a_deployment_that_is_asked_for_by_its_id_has_its_answers_kept(gateway: Gateway) -> None:
    body = chat(model="small-id")
    assert [cached(gateway.post("/v1/chat/completions", body)) for _ in range(2)] == ["miss", "hit"]


def test_a_streams_hit_names_no_cost_but_its_own(gateway: Gateway) -> None:
    body = chat(stream=True, stream_options={"include_usage": True})
    costs = []
    for _ in range(3):
        lines = gateway.post("/v1/chat/completions", body).text.split("\n\n")
        usages = [json.loads(line[6:])["usage"] for line in lines if '"usage":{' in line]
        costs.append(usages[-1]["cost"])
    assert costs[0] > 0
    assert costs[1:] == [0.0, 0.0]


def test_nobody_gets_the_answer_of_another_team_or_model_or_variant(gateway: Gateway) -> None:
    body = chat()
    assert cached(gateway.post("/v1/chat/completions", body, "ada")) == "miss"
    assert cached(gateway.post("/v1/chat/completions", body, "dora")) == "hit", "of the same team"
    assert cached(gateway.post("/v1/chat/completions", body, "bob")) == "miss"
    assert cached(gateway.post("/v1/chat/completions", body | {"model": "large"}, "ada")) == "miss"
    assert cached(gateway.post("/v1/chat/completions", body | {"temperature": 0.5}, "ada")) == "miss"
    assert cached(gateway.post("/v1/chat/completions", body, "eve")) == "miss", "whose tier has another output limit"
    assert cached(gateway.post("/v1/chat/completions", body, "admin")) == "miss"


def test_a_hit_is_in_its_variant(gateway: Gateway) -> None:
    body = chat(model="smart")
    first, second, third = (gateway.post("/v1/chat/completions", body) for _ in range(3))
    assert [cached(one) for one in (first, second, third)] == ["miss", "hit", "hit"]
    assert third.headers["x-orchestration-experiment"] == first.headers["x-orchestration-experiment"]
    events = gateway.books.recorded(3)
    [variant] = {event.variant for event in events}
    assert variant in ("sizes/a", "sizes/b")
    assert {event.policy for event in events} == {"smart"}


def test_a_key_that_is_not_known_gets_nothing(gateway: Gateway) -> None:
    body = chat()
    for _ in range(3):
        gateway.post("/v1/chat/completions", body)
    with gateway.proxy.client("sk-" + uuid.uuid4().hex) as stranger:
        assert stranger.post("/v1/chat/completions", json=body).status_code == 401
    with httpx.Client(base_url=gateway.proxy.url) as nobody:
        assert nobody.post("/v1/chat/completions", json=body).status_code == 401


def test_limits_hold_for_hits(gateway: Gateway) -> None:
    body = chat()
    answers = [gateway.post("/v1/chat/completions", body, "carl") for _ in range(5)]
    assert [one.status_code for one in answers] == [200, 200, 200, 429, 429]
    assert [cached(one) for one in answers[:3]] == ["miss", "hit", "hit"]
    assert answers[2].headers["x-ratelimit-remaining-requests"] == "0"
    assert answers[4].json()["error"]["code"] == "rate_limit_exceeded"
    assert gateway.provider.totals.attempts == 1
    assert sorted(event.status for event in gateway.books.recorded(5)) == [200, 200, 200, 429, 429]


def test_what_clients_say_of_the_cache_counts(gateway: Gateway) -> None:
    def ask(body: Mapping[str, Any], **headers: str) -> str | None:
        return cached(gateway.post("/v1/chat/completions", body, headers=headers))

    body = chat()
    assert [ask(body), ask(body)] == ["miss", "hit"]
    assert ask(body | {"cache": {"no-cache": True}}) == "miss"
    assert ask(body, **{"cache-control": "no-cache"}) == "miss"
    unkept = chat(cache={"no-store": True})
    assert [ask(unkept), ask(unkept)] == ["miss", "miss"]
    assert ask(chat(model="unkept")) is None
    refused = gateway.post("/v1/chat/completions", chat(cache="yes"))
    assert refused.status_code == 400
    assert "cache must be an object" in refused.json()["error"]["message"]


def test_what_is_no_good_answer_is_not_kept(gateway: Gateway) -> None:
    failed = chat()
    gateway.provider.script(model="small", status=500)
    assert gateway.post("/v1/chat/completions", failed).status_code >= 500
    gateway.provider.reset()
    assert cached(gateway.post("/v1/chat/completions", failed)) == "miss"
    cut = chat(stream=True)
    gateway.provider.script(model="small", cut_after_chunks=3, chunk_delay=0.05)
    with suppress(httpx.HTTPError):
        gateway.post("/v1/chat/completions", cut)
    gateway.provider.reset()
    assert cached(gateway.post("/v1/chat/completions", cut)) == "miss"
    brief = chat(model="fleeting")
    assert [cached(gateway.post("/v1/chat/completions", brief)) for _ in range(2)] == [None, None], "a ttl of 0"
    limited = chat()
    assert [cached(gateway.post("/v1/chat/completions", limited, "eve")) for _ in range(2)] == ["miss", "miss"]


def test_an_answer_too_old_is_better_than_none(gateway: Gateway) -> None:
    body = chat(model="sorry")
    first = gateway.post("/v1/chat/completions", body)
    time.sleep(1.1)
    gateway.provider.script(model="down", status=500)
    stale = gateway.post("/v1/chat/completions", body)
    assert stale.status_code == 200, stale.text
    assert stale.content == first.content
    assert (cached(stale), stale.headers["x-orchestration-degraded"]) == ("stale", "true")
    other = gateway.post("/v1/chat/completions", chat(model="sorry"))
    assert "We are" in other.text
    event = gateway.books.event(stale.headers["x-orchestration-request-id"])
    assert (event.cache, event.degraded, event.cost_nano) == ("stale", True, 0)


# -- embeddings of several inputs --------------------------------------------------------------------------------------


def embed(gateway: Gateway, *inputs: Any, who: str = "ada", **more: Any) -> httpx.Response:
    answer = gateway.post("/v1/embeddings", {"model": "embed", "input": [*inputs], **more}, who)
    assert answer.status_code == 200, answer.text
    return answer


def vectors(answer: httpx.Response) -> list[Any]:
    data = answer.json()["data"]
    assert [one["index"] for one in data] == list(range(len(data)))
    return [one["embedding"] for one in data]


def sent(gateway: Gateway) -> list[Any]:
    """What the provider was asked for, request by request."""
    return [attempt.body["input"] for attempt in gateway.provider.attempts]


def test_each_of_several_inputs_is_paid_once(gateway: Gateway) -> None:
    a, b, c, d = (prompt() for _ in range(4))
    alone = embed(gateway, c)
    first = embed(gateway, a, b)
    some = embed(gateway, b, d, c, d, a)
    known, again = embed(gateway, d, a), embed(gateway, d, a)
    one = gateway.post("/v1/embeddings", {"model": "embed", "input": d})
    answers = [alone, first, some, known, again, one]
    assert [cached(answer) for answer in answers] == ["miss", "miss", "partial", "hit", "hit", "hit"]
    assert sent(gateway) == [[c], [a, b], [d]]
    vector = dict(zip([a, b, c], [*vectors(first), *vectors(alone)], strict=True)) | {d: vectors(one)[0]}
    assert vectors(some) == [vector[text] for text in (b, d, c, d, a)]
    assert vectors(known) == vectors(again) == [vector[d], vector[a]]
    assert some.json()["usage"]["total_tokens"] == 5 * 4
    assert {**some.json(), "data": [], "usage": {}} == {**first.json(), "data": [], "usage": {}}
    events = {event.request_id: event for event in gateway.books.recorded(6)}
    whole, part, hit = (events[answer.headers["x-orchestration-request-id"]] for answer in (first, some, known))
    assert (whole.input_tokens, whole.cost_nano, whole.cache) == (8, 8 * 20, None)
    assert (part.input_tokens, part.cost_nano, part.cache, len(part.attempts)) == (4, 4 * 20, "partial", 1)
    assert (hit.input_tokens, hit.cost_nano, hit.cache, hit.attempts) == (8, 0, "hit", [])
    assert some.headers["x-orchestration-cost"] == "0.000000080"


def test_inputs_are_told_apart_by_team_and_form(gateway: Gateway) -> None:
    a, b, c = (prompt() for _ in range(3))
    embed(gateway, a, b)
    for who, more in (("bob", {}), ("ada", {"encoding_format": "base64"})):
        assert cached(embed(gateway, a, b, who=who, **more)) == "miss"
        assert sent(gateway)[-1] == [a, b]
    assert cached(embed(gateway, b, a, who="dora")) == "hit", "of the same team"
    assert cached(embed(gateway, b, c, cache={"no-cache": True})) == "miss"
    assert sent(gateway)[-1] == [b, c]
    assert cached(embed(gateway, c, prompt(), cache={"no-store": True})) == "partial"
    assert all(isinstance(vector, str) for vector in vectors(embed(gateway, b, a, encoding_format="base64")))


def test_no_answer_mixes_models_and_no_error_is_kept(gateway: Gateway) -> None:
    a, b = prompt(), prompt()
    embed(gateway, a, prompt())
    gateway.provider.script(model="embed", status=500)
    instead = embed(gateway, a, b, model="vectors")
    assert (cached(instead), instead.headers["x-orchestration-model"]) == ("miss", "embed-too")
    asked = {attempt.model: attempt.body["input"] for attempt in gateway.provider.attempts[1:]}
    assert asked == {"embed": [b], "embed-too": [a, b]}
    failed = gateway.post("/v1/embeddings", {"model": "embed", "input": [a, b]})
    assert (failed.status_code >= 500, cached(failed)) == (True, "miss")
    gateway.provider.reset()
    assert cached(embed(gateway, a, b, model="vectors")) == "partial"
    assert sent(gateway) == [[b]]


def test_a_budget_pays_for_no_more_than_what_is_new(gateway: Gateway) -> None:
    long, short = f"{uuid.uuid4().hex} " * 200, prompt()
    refused = gateway.post("/v1/embeddings", {"model": "embed", "input": [long, short]}, "service")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "budget_exceeded")
    embed(gateway, long)
    some = embed(gateway, long, short, who="service")
    assert cached(some) == "partial"
    assert sent(gateway) == [[long], [short]]
    assert some.headers["x-orchestration-budget-remaining"] == "0.000099920", "of 5,000 tokens"


def test_what_a_part_saved_is_counted(gateway: Gateway) -> None:
    def count() -> dict[str, Any]:
        with gateway.client("admin") as admin:
            rows = admin.get("/orchestration/cache").json()["by"]
        return next((row for row in rows if row["task_type"] == "search"), {})

    metadata = {"task_type": "search"}
    a, b = prompt(), prompt()
    for inputs in ([a, b], [a, prompt()], [b, a]):
        embed(gateway, *inputs, metadata=metadata)
    row = count()
    assert (row["hits"], row["misses"], row["partial"]) == (1, 2, 1)
    assert row["saved"] == pytest.approx((4 + 8) * 20 / 1e9)


# -- many at once ------------------------------------------------------------------------------------------------------


async def at_once(
    gateway: Gateway, body: Mapping[str, Any], count: int, who: str = "ada", path: str = "/v1/chat/completions"
) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=count, max_keepalive_connections=count)
    headers = {"authorization": f"Bearer {KEYS[who]}"}
    async with httpx.AsyncClient(base_url=gateway.proxy.url, headers=headers, limits=limits, timeout=60) as client:
        return await asyncio.gather(*(client.post(path, json=body) for _ in range(count)))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("known", [False, True])
async def test_many_who_ask_the_same_at_once_are_paid_for_once(gateway: Gateway, stream: bool, known: bool) -> None:
    if known:
        for _ in range(2):
            gateway.post("/v1/chat/completions", chat())
        gateway.provider.reset()
    gateway.books.mark()
    gateway.provider.script(model="small", first_byte_delay=1.0, chunk_delay=0.02)
    body = chat(stream=stream, **({"stream_options": {"include_usage": True}} if stream else {}))
    answers = await at_once(gateway, body, 30)
    assert {one.status_code for one in answers} == {200}
    assert len({without_cost(one) for one in answers}) == 1
    assert gateway.provider.totals.attempts == 1
    said = [cached(one) for one in answers]
    assert said.count("miss") == 1
    assert set(said) <= {"miss", "shared", "hit"}
    assert said.count("shared") > 10
    events = gateway.books.recorded(30)
    assert sum(event.cost_nano > 0 for event in events) == 1
    assert {event.output_tokens for event in events} == {8}
    assert cached(gateway.post("/v1/chat/completions", body)) == "hit"


async def test_whoever_waits_gets_an_answer_though_the_first_leaves(gateway: Gateway) -> None:
    for _ in range(2):
        gateway.post("/v1/chat/completions", chat())
    gateway.provider.reset()
    gateway.provider.script(model="small", chunk_delay=0.15)
    body = chat(stream=True)
    headers = {"authorization": f"Bearer {KEYS['ada']}"}
    async with httpx.AsyncClient(base_url=gateway.proxy.url, headers=headers, timeout=30) as client:
        async with client.stream("POST", "/v1/chat/completions", json=body) as first:
            assert cached(first) == "miss"
            waiting = asyncio.create_task(client.post("/v1/chat/completions", json=body))
            parts = first.aiter_bytes()
            for _ in range(4):
                await anext(parts)
        answer = await waiting
    assert cached(answer) == "shared"
    assert answer.text.endswith("data: [DONE]\n\n")
    assert gateway.provider.totals.attempts == 1


async def test_of_equal_streams_of_text_completions_one_fails_over_for_all(gateway: Gateway) -> None:
    gateway.provider.script(model="down", status=500, first_byte_delay=0.5)
    path, body = "/v1/completions", {"model": "relieved", "prompt": prompt(), "stream": True}
    answers = await at_once(gateway, body, 10, path=path)
    assert {one.status_code for one in answers} == {200}
    assert len({one.text for one in answers}) == 1
    assert [billed.model for billed in gateway.provider.attempts] == ["down", "small"]
    assert sum(event.cost_nano > 0 for event in gateway.books.recorded(10)) == 1


async def test_an_error_of_the_provider_is_told_to_all_who_wait(gateway: Gateway) -> None:
    for _ in range(2):
        gateway.post("/v1/chat/completions", chat())
    gateway.provider.reset()
    gateway.provider.script(model="small", status=500, first_byte_delay=0.5)
    answers = await at_once(gateway, chat(num_retries=0), 20)
    assert all(one.status_code >= 500 for one in answers)
    assert gateway.provider.totals.attempts <= 3


async def test_a_refusal_is_for_the_one_it_is_about(gateway: Gateway) -> None:
    """Of two teams' worth of limits only one runs out: whoever is refused does not take the others with him."""
    gateway.provider.script(model="small", first_byte_delay=0.5)
    body = chat()
    first, second = await asyncio.gather(at_once(gateway, body, 6, "carl"), at_once(gateway, body, 6, "ada"))
    assert {one.status_code for one in second} == {200}
    assert {one.status_code for one in first} <= {200, 429}
    assert gateway.provider.totals.attempts == 1


# -- administrators ----------------------------------------------------------------------------------------------------


def test_administrators_take_answers_out(gateway: Gateway) -> None:
    body, other = chat(metadata={"tags": ["docs"]}), chat(model="large")
    for one in (body, other):
        assert [cached(gateway.post("/v1/chat/completions", one)) for _ in range(2)] == ["miss", "hit"]
    with gateway.client("admin") as admin:
        done = admin.post("/orchestration/cache/invalidate", json={"tag": "docs"})
        assert (done.status_code, done.json()["entries_here"]) == (200, 1), done.text
        assert cached(gateway.post("/v1/chat/completions", body)) == "miss"
        assert cached(gateway.post("/v1/chat/completions", other)) == "hit"
        assert admin.post("/orchestration/cache/invalidate", json={"user": "ada"}).json()["entries_here"] >= 2
        assert cached(gateway.post("/v1/chat/completions", other)) == "miss"
        assert admin.post("/orchestration/cache/invalidate", json={"all": True}).status_code == 200
        assert cached(gateway.post("/v1/chat/completions", other)) == "miss"
        assert admin.get("/orchestration/cache").json()["entries"] == 1
        for wrong in ({}, {"model": 1}, {"all": False}, {"modell": "small"}):
            assert admin.post("/orchestration/cache/invalidate", json=wrong).status_code == 400
        records = admin.get("/orchestration/audit", params={"action": "cache.invalidate"}).json()
    assert '"tag":"docs"' in json.dumps(records).replace("\\", "").replace(" ", "")
    with gateway.client("ada") as ada:
        assert ada.post("/orchestration/cache/invalidate", json={"all": True}).status_code == 403
        assert ada.get("/orchestration/cache").status_code == 403


def test_administrators_see_what_the_cache_saves(gateway: Gateway) -> None:
    def seen() -> dict[str, Any]:
        with gateway.client("admin") as admin:
            return admin.get("/orchestration/status").json()["cache"]

    before, body = seen(), chat(metadata={"task_type": "poetry"})
    paid = float(gateway.post("/v1/chat/completions", body).headers["x-orchestration-cost"])
    for _ in range(2):
        gateway.post("/v1/chat/completions", body)
    after = seen()
    assert (after["hits"] - before["hits"], after["misses"] - before["misses"]) == (2, 1)
    [row] = [one for one in after["by"] if one["task_type"] == "poetry"]
    assert (row["model"], row["hits"], row["misses"]) == ("small", 2, 1)
    assert row["saved"] == pytest.approx(2 * paid)
    assert 0 < after["bytes"] < after["max_bytes"]


# -- several instances -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(
    shared_provider: FakeProvider, shared_redis: RedisServer, shared_postgres: PostgresServer
) -> Iterator[list[Gateway]]:
    settings = config(shared_provider)
    shared_redis.start()
    shared_postgres.start()
    stack = ExitStack()
    url = stack.enter_context(shared_postgres.database())
    env = key_environment() | {"CACHE_KEY": uuid.uuid4().hex}
    settings["orchestration"] |= {
        "store": {"url": url},
        "shared_state": {"url": shared_redis.url},
    }
    settings["orchestration"]["caching"]["encryption_key"] = "os.environ/CACHE_KEY"
    with stack:
        proxies = [ProxyProcess(settings, env=env) for _ in range(2)]
        for proxy in proxies:
            stack.enter_context(proxy)
        yield [Gateway(proxy, shared_provider, Books(proxy, url)) for proxy in proxies]


@pytest.fixture
def two(pair: list[Gateway], provider: FakeProvider, redis_server: RedisServer) -> list[Gateway]:
    return pair


def test_instances_share_their_answers(two: list[Gateway]) -> None:
    here, there = two
    there.post("/v1/chat/completions", chat())
    here.provider.reset()
    body = chat(stream=True)
    first = here.post("/v1/chat/completions", body)
    again = there.post("/v1/chat/completions", body)
    assert (cached(again), without_cost(again)) == ("hit", without_cost(first))
    assert here.provider.totals.attempts == 1
    with here.client("admin") as admin:
        told = admin.post("/orchestration/cache/invalidate", json={"model": "small"}).json()
    assert told["other_instances_told"] is True
    here.provider.reset()
    eventually_sync(lambda: _missed(there, body), what="the other instance having forgotten the answer")
    assert here.provider.totals.attempts == 1


def _missed(gateway: Gateway, body: Mapping[str, Any]) -> bool:
    return cached(gateway.post("/v1/chat/completions", body)) == "miss"


@pytest.mark.parametrize("stream", [False, True])
async def test_many_at_once_on_two_instances_are_paid_for_once(two: list[Gateway], stream: bool) -> None:
    for one in two:
        for _ in range(2):
            one.post("/v1/chat/completions", chat())
    two[0].provider.reset()
    two[0].provider.script(model="small", first_byte_delay=1.0)
    body = chat(stream=stream)
    both = await asyncio.gather(*(at_once(one, body, 20) for one in two))
    answers = [answer for answers in both for answer in answers]
    assert {one.status_code for one in answers} == {200}
    assert len({without_cost(one) for one in answers}) == 1
    assert two[0].provider.totals.attempts == 1
    assert [cached(one) for one in answers].count("miss") == 1


async def test_instances_share_the_answers_to_each_of_several_inputs(two: list[Gateway]) -> None:
    here, there = two

    def share() -> bool:
        inputs = prompt(), prompt()
        embed(here, *inputs)
        return cached(embed(there, *inputs)) == "hit"

    eventually_sync(share, what="the instances having found the new Redis")
    here.provider.reset()
    a, b, c = (prompt() for _ in range(3))
    embed(here, a, b)
    assert cached(embed(there, b, c)) == "partial"
    assert cached(embed(here, c, a)) == "hit"
    assert sent(here) == [[a, b], [c]]
    here.provider.script(model="embed", first_byte_delay=0.5)
    d, e = prompt(), prompt()
    both = [asyncio.to_thread(embed, gateway, d, e) for gateway in two for _ in range(4)]
    answers = await asyncio.gather(*both)
    assert sent(here)[2:] == [[d, e]]
    assert len({str(vectors(answer)) for answer in answers}) == 1
    assert [cached(answer) for answer in answers].count("miss") == 1


# -- LiteLLM's own cache -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def beside(shared_provider: FakeProvider, shared_proxy: Callable[..., ProxyProcess]) -> Gateway:
    settings = config(shared_provider)
    settings["litellm_settings"] = settings["litellm_settings"] | {"cache": True, "cache_params": {"type": "local"}}
    del settings["orchestration"]["caching"]
    proxy = shared_proxy(settings, env=key_environment())
    return Gateway(proxy, shared_provider, Books(proxy))


@pytest.mark.parametrize("name", CALLS)
def test_litellms_own_cache_keeps_teams_apart(beside: Gateway, provider: FakeProvider, name: str) -> None:
    path, make, _ = CALLS[name]
    body = make()
    assert beside.post(path, body, "ada").status_code == 200
    assert beside.post(path, body, "bob").status_code == 200
    assert len(provider.attempts) == 2, "another team's answer"
    assert not any("cache" in attempt.body or "namespace" in attempt.body for attempt in provider.attempts)
    if name in ("chat", "embeddings"):
        again = [beside.post(path, body, who) for who in ("ada", "dora", "bob")]
        assert [one.status_code for one in again] == [200] * 3
        assert len(provider.attempts) == 2
        assert [cached(one) for one in again] == ["hit"] * 3
