"""Memory: what a proxy takes with this project in it, and without.

    python -m benchmarks memory [--quick]

Proxies are started one after the other, asked some requests each, and left alone for a moment.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

from benchmarks.client import Clients, Window
from benchmarks.figures import Bound, Figure, Result
from benchmarks.overhead import Load
from benchmarks.rivals import Rival, bare, with_ours
from tests.support.provider import ProviderProcess
from tests.support.redis import RedisServer

_LOAD = Load(4)
_SETTLE = 3.0
_MIB = 1 << 20
_BUDGETS = [
    {"budget_id": "proxy", "total_budget": 1000, "reset_period": "DAILY"},
    {"budget_id": "each", "total_budget": 1000, "per": "user"},
]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    starts: int
    """How often each proxy is started."""
    requests: int


FULL = Plan(starts=5, requests=50)
QUICK = Plan(starts=1, requests=20)


async def measure(plan: Plan = FULL) -> Result:
    """Every figure; the full plan takes some five minutes."""
    began = time.perf_counter()
    sizes: dict[str, list[int]] = {}
    with ExitStack() as stack:
        provider = stack.enter_context(ProviderProcess(itemised=False))
        redis = stack.enter_context(RedisServer())
        for _ in range(plan.starts):
            for name, config in _configurations(provider.url, redis.url).items():
                with closing(Rival(config)) as proxy:
                    if name != "bare":  # the first start makes the store's tables
                        sizes.setdefault(f"{name}, first start", []).append(await _size(proxy, plan.requests))
                        proxy.stop()
                    sizes.setdefault(name, []).append(await _size(proxy, plan.requests))
    return Result("memory", figures_of(sizes), time.perf_counter() - began)


def _configurations(provider: str, redis: str) -> dict[str, dict[str, object]]:
    budgeted = with_ours(provider)
    budgeted["orchestration"] |= {"budgets": _BUDGETS, "shared_state": {"url": redis}}
    return {"bare": bare(provider), "ours": with_ours(provider), "ours with budgets and Redis": budgeted}


async def _size(proxy: Rival, requests: int) -> int:
    """Bytes that the proxy has in memory after some requests."""
    await asyncio.to_thread(proxy.start)
    async with Clients(proxy.port, _LOAD.connections) as clients:
        await clients.send(_LOAD.request(proxy), requests, Window())
    await asyncio.sleep(_SETTLE)
    return proxy.rss


def figures_of(sizes: Mapping[str, Sequence[int]]) -> list[Figure]:
    """What each adds to the bare one of its round, in MiB."""
    alone = sizes["bare"]
    figures = [Figure.of("memory, bare", [size / _MIB for size in alone], "MiB")]
    for name, found in sizes.items():
        if name != "bare":
            added = [(size - before) / _MIB for size, before in zip(found, alone, strict=True)]
            figures.append(Figure.of(f"memory added, {name}", added, "MiB", Bound("<=", 40)))
    return figures
