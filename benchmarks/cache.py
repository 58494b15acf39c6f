"""What an answer that exists costs, beside LiteLLM's own cache and without any.

    python -m benchmarks cache [--quick]

All proxies run at the same time on one machine, in front of one fake provider, and take turns; docs/caching.md says
what each figure means.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.client import Clients, Window, post
from benchmarks.collection import collecting_as_in_a_proxy
from benchmarks.figures import Bound, Figure, Result
from benchmarks.rivals import Rival, bare, with_ours
from plugins.caching import service
from tests.support.cached import Proxy, fuzz
from tests.support.postgres import PostgresServer
from tests.support.provider import ProviderProcess
from tests.support.redis import RedisServer

_CONNECTIONS = 16
_PATH = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Plan:
    rounds: int
    hits: int
    """Hits of ours in a round; LiteLLM's cache answers a tenth of that."""
    misses: int
    together: int
    """Requests that ask the same at once."""
    megabytes: int
    fuzz: int


FULL = Plan(rounds=7, hits=4_000, misses=160, together=1_000, megabytes=64, fuzz=1_000_000)
QUICK = Plan(rounds=2, hits=1_000, misses=48, together=100, megabytes=16, fuzz=5_000)


def cached_by_litellm(provider_url: str) -> dict[str, Any]:
    return bare(provider_url) | {"litellm_settings": {"cache": True, "cache_params": {"type": "local"}}}


def cached_by_us(provider_url: str) -> dict[str, Any]:
    config = with_ours(provider_url)
    config["orchestration"]["caching"] = {"enabled": True}
    return config


def shared_by_redis(provider_url: str, redis_url: str, store_url: str) -> dict[str, Any]:
    """With room for one answer in memory, so that others come from Redis."""
    config = cached_by_us(provider_url)
    config["orchestration"]["caching"]["max_entries"] = 1
    return config | {
        "orchestration": {
            **config["orchestration"],
            "shared_state": {"url": redis_url},
            "store": {"url": store_url},
        }
    }


def question(rival: Rival, text: str, **more: Any) -> bytes:
    body = {"model": "small", "messages": [{"role": "user", "content": text}], **more}
    return post(_PATH, body, rival.user_key)


async def measure(plan: Plan = FULL) -> Result:
    """Of one start of each proxy."""
    begun = time.perf_counter()
    with ExitStack() as stack:
        provider = stack.enter_context(ProviderProcess(itemised=False))
        rivals = {
            "litellm": Rival(cached_by_litellm(provider.url)),
            "ours": Rival(cached_by_us(provider.url)),
            "off": Rival(with_ours(provider.url)),
            "ours, logged": Rival(cached_by_us(provider.url)),
            "litellm, logged": Rival(cached_by_litellm(provider.url)),
        }
        for name, rival in rivals.items():
            if not name.endswith("logged"):
                rival.env["LITELLM_DISABLE_ACCESS_LOG_PATHS"] = _PATH
        for rival in rivals.values():
            stack.enter_context(rival)
        for rival in rivals.values():
            await _ask(rival, [question(rival, f"warm up {number}") for number in range(60)], 4)
        figures = await _hits(rivals["ours"], rivals["litellm"], plan, Bound(">=", 25))
        figures += await _hits(rivals["ours, logged"], rivals["litellm, logged"], plan, None, ", access log on")
        figures += await _misses(rivals["ours"], rivals["off"], plan)
        figures += await _misses_alone(plan)
        figures += await _together([rivals["ours"]], provider, plan)
        litellm = next(figure.value for figure in figures if "LiteLLM's local" in figure.name)
        for rival in rivals.values():
            rival.stop()
        redis = stack.enter_context(RedisServer())
        store = stack.enter_context(stack.enter_context(PostgresServer()).database())
        config = shared_by_redis(provider.url, redis.url, store)
        pair = [Rival(config) for _ in range(2)]
        for rival in pair:
            rival.env["LITELLM_DISABLE_ACCESS_LOG_PATHS"] = _PATH
            stack.enter_context(rival)
            await _ask(rival, [question(rival, f"warm up {number}") for number in range(60)], 4)
        figures += await _from_redis(pair[0], litellm, plan)
        figures += await _together(pair, provider, plan)
    figures += [await asyncio.to_thread(_memory, plan.megabytes), await _foreign(plan)]
    return Result("cache", figures, time.perf_counter() - begun)


async def _hits(ours: Rival, theirs: Rival, plan: Plan, bound: Bound | None, how: str = "") -> list[Figure]:
    ratios: list[float] = []
    rates: dict[str, list[float]] = {"ours": [], "stream": [], "theirs": []}
    alone: list[float] = []
    asked = {
        "ours": (ours, question(ours, "What is the answer?"), plan.hits),
        "stream": (ours, question(ours, "What is the answer?", stream=True), plan.hits // 2),
        "theirs": (theirs, question(theirs, "What is the answer?"), plan.hits // 20),
    }
    async with AsyncExitStack() as stack:
        clients = {
            rival: await stack.enter_async_context(Clients(rival.port, _CONNECTIONS)) for rival in (ours, theirs)
        }
        one = await stack.enter_async_context(Clients(ours.port, 1))
        for rival, request, _ in asked.values():
            await clients[rival].send(request, 32, Window())
        for _ in range(plan.rounds):
            for name, (rival, request, count) in asked.items():
                window = Window()
                await clients[rival].send(request, count, window)
                rates[name].append(window.rate)
            ratios.append(rates["ours"][-1] / rates["theirs"][-1])
            window = Window()
            await one.send(asked["ours"][1], plan.hits // 4, window)
            alone.append(statistics.median(window.latencies) * 1e3)
    return [
        Figure.of(f"hits a second, ours{how}", rates["ours"], "hits/s"),
        Figure.of(f"hits a second, ours, streams{how}", rates["stream"], "hits/s"),
        Figure.of(f"hits a second, LiteLLM's local cache{how}", rates["theirs"], "hits/s"),
        Figure.of(f"hits a second, ours to LiteLLM's{how}", ratios, "x", bound),
        Figure.of(f"p50 of a hit, 1 connection{how}", alone, "ms", Bound("<=", 0.5)),
    ]


async def _misses(ours: Rival, off: Rival, plan: Plan) -> list[Figure]:
    """CPU of a request that nobody has asked before, with the cache on and off."""
    more: list[float] = []
    for _ in range(plan.rounds):
        spent: list[float] = []
        for rival in (ours, off):
            requests = [question(rival, f"a new one {uuid.uuid4().hex}") for _ in range(plan.misses)]
            before = rival.cpu
            await _ask(rival, requests, 4)
            await asyncio.sleep(0.3)
            spent.append((rival.cpu - before) / plan.misses * 1e6)
        more.append(spent[0] - spent[1])
    return [Figure.of("CPU more of a miss with the cache on, whole proxies", more, "us")]


async def _misses_alone(plan: Plan) -> list[Figure]:
    """The same at our edge alone, round an app that does nothing: whole proxies differ by more than that."""
    kinds: dict[str, dict[str, Any]] = {"off": {"enabled": False}, "alone": {"deduplicate": False}, "shared": {}}
    spent: dict[str, list[float]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as folder, collecting_as_in_a_proxy():
        proxies = {kind: Proxy(Path(folder) / kind, time.time, **settings) for kind, settings in kinds.items()}
        for proxy in proxies.values():
            proxy.forget_books()
        for number in range(plan.rounds + 1):
            for kind, proxy in proxies.items():
                service.caching = proxy.cache
                began = time.thread_time()
                for _ in range(plan.misses * 5):
                    body = {"model": "small", "messages": [{"role": "user", "content": uuid.uuid4().hex * 8}]}
                    await proxy.ask("ada", _PATH, body)
                if number:  # the first is to warm up
                    spent[kind].append((time.thread_time() - began) / (plan.misses * 5) * 1e6)
        for proxy in proxies.values():
            proxy.journal.close()
        service.caching = None
    more = {
        kind: [one - off for one, off in zip(spent[kind], spent["off"], strict=True)] for kind in ("alone", "shared")
    }
    return [
        Figure.of("CPU more of a miss with the cache on, at the edge", more["shared"], "us", Bound("<=", 50)),
        Figure.of("CPU more of a miss without deduplication, at the edge", more["alone"], "us"),
    ]


async def _from_redis(ours: Rival, litellm: float, plan: Plan) -> list[Figure]:
    """Each connection asks a question of its own, and throws what the others have asked out of memory."""
    requests = [question(ours, f"number {number}") for number in range(_CONNECTIONS)]
    for request in requests * 3:
        async with Clients(ours.port, 1) as one:
            await one.send(request, 1, Window())
    rates: list[float] = []
    count = plan.hits // 4 // _CONNECTIONS
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Clients(ours.port, 1)) for _ in requests]
        for _ in range(plan.rounds):
            begun = time.perf_counter()
            windows = [Window() for _ in requests]
            each = zip(clients, requests, windows, strict=True)
            await asyncio.gather(*(one.send(request, count, window) for one, request, window in each))
            rates.append(count * _CONNECTIONS / (time.perf_counter() - begun))
    ratios = [rate / litellm for rate in rates]
    return [
        Figure.of("hits a second, ours from Redis", rates, "hits/s"),
        Figure.of("hits a second, ours from Redis to LiteLLM's local", ratios, "x", Bound(">=", 8)),
    ]


async def _together(rivals: Sequence[Rival], provider: ProviderProcess, plan: Plan) -> list[Figure]:
    figures: list[Figure] = []
    for stream in (False, True):
        provider.reset()
        provider.script(first_byte_delay=1.0)
        text = f"all at once {uuid.uuid4().hex}"
        count = plan.together // len(rivals)
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(Clients(rival.port, count)) for rival in rivals]
            each = zip(clients, rivals, strict=True)
            await asyncio.gather(
                *(one.send(question(rival, text, stream=stream), count, Window()) for one, rival in each)
            )
        where = f"{len(rivals)} instance{'s' if len(rivals) > 1 else ''}"
        name = f"provider calls for {plan.together} equal {'streams' if stream else 'requests'} at once, {where}"
        figures.append(Figure(name, provider.totals.attempts, "", must=Bound("==", 1)))
    provider.reset()
    return figures


def _memory(megabytes: int) -> Figure:
    """What a process grows by when four times as much is kept as there is room for, to `max_bytes`."""
    program = _FILL.format(most=megabytes << 20)
    grown = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    share = int(grown) / (megabytes << 20)
    return Figure("memory taken by a full cache, to max_bytes", share, "x", must=Bound("<=", 1.1))


_FILL = """
import os, random, psutil
from core.cache import Entry, Memory, ends_of
draw, memory, kept = random.Random(1), Memory(10**9, {most}), 0
before = psutil.Process().memory_info().rss
while kept < 4 * {most}:
    chunks = [draw.randbytes(draw.randrange(40, 400)) for _ in range(draw.randrange(1, 20))]
    headers = ((b"content-type", b"text/event-stream; charset=utf-8"),)
    number = draw.randrange(1000)
    entry = Entry(200, headers, b"".join(chunks), ends_of(chunks), "small", 0, 3600_000, user_id="user %d" % number)
    memory.put(draw.randbytes(24), entry)
    kept += entry.size
print(psutil.Process().memory_info().rss - before)
"""


async def _foreign(plan: Plan) -> Figure:
    """Questions of tenants, variants and parameters at random, each answer held against whoever asked."""
    with tempfile.TemporaryDirectory() as folder:
        proxy = Proxy(Path(folder), time.time)
        proxy.forget_books()
        had = await fuzz(proxy, plan.fuzz, seed=42)
        proxy.journal.close()
        service.caching = None
    return Figure(f"answers that were another's, of {had['hit']:,} hits in {plan.fuzz:,}", 0, "", must=Bound("==", 0))


async def _ask(rival: Rival, requests: list[bytes], connections: int) -> None:
    async with Clients(rival.port, connections) as clients:
        for request in requests:
            await clients.send(request, 1, Window())
