"""What clients see of providers that fail, and of a proxy that has too much to do.

    python -m benchmarks resilience [--quick] [--parts down,overload]

docs/resilience.md says what each figure means.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from benchmarks.client import Clients, Connection, Window, post
from benchmarks.figures import Bound, Figure, Result
from tests.support.gateway import KEYS, MESSAGES, OURS, key_environment, model
from tests.support.provider import ProviderProcess
from tests.support.proxy import ProxyProcess

_THRESHOLD = 5
_OPEN_FOR = 5.0
_CONNECTIONS = 8
_PACE = 0.25


@dataclass(frozen=True, slots=True)
class Plan:
    """Requests of each part, seconds of each phase of the overload and how often the phases take turns."""

    outage: int
    flaky: int
    degraded: int
    seconds: float
    rounds: int


FULL = Plan(outage=3_000, flaky=100_000, degraded=2_000, seconds=9.0, rounds=2)
QUICK = Plan(outage=300, flaky=600, degraded=300, seconds=7.5, rounds=1)


@dataclass(slots=True)
class Heard:
    """Answers by status, and what each took."""

    statuses: dict[int, int] = field(default_factory=dict[int, int])
    latencies: list[float] = field(default_factory=list[float])
    degraded: int = 0
    models: dict[bytes, int] = field(default_factory=dict[bytes, int])

    @property
    def count(self) -> int:
        return sum(self.statuses.values())

    @property
    def success(self) -> float:
        return self.statuses.get(200, 0) / self.count if self.count else 0.0

    def add(self, other: Heard) -> None:
        """Have heard all of this as well."""
        for status, count in other.statuses.items():
            self.statuses[status] = self.statuses.get(status, 0) + count
        self.latencies += other.latencies

    def p50(self) -> float:
        """Seconds."""
        return self._quantile(0.5)

    def p99(self) -> float:
        """Seconds."""
        return self._quantile(0.99)

    def _quantile(self, share: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[math.ceil(share * len(ordered)) - 1] if ordered else 0.0


def _config(provider: ProviderProcess) -> dict[str, Any]:
    names = ("first", "second", "flaky", "steady", "down-one", "down-two", "paced", "mock")
    models = [model(name, provider.url) for name in names]
    models[-1]["litellm_params"]["mock_response"] = "The quick brown fox jumps over the lazy dog."
    return {
        **OURS,
        "model_list": models,
        "orchestration": {
            "keys": [
                {"key": "os.environ/KEY_ADA", "user_id": "ada", "tier": "first"},
                {"key": "os.environ/KEY_BOB", "user_id": "bob", "tier": "last"},
            ],
            "tiers": {"first": {"models": ["*"], "priority": 1}, "last": {"models": ["*"], "priority": 3}},
            "routing": {
                "policies": {
                    "outage": {"candidates": ["first", "second"]},
                    "mixed": {"candidates": ["flaky", "steady"]},
                    "down": {"candidates": ["down-one", "down-two"], "fallback_response": "Please try again."},
                }
            },
            "resilience": {
                "circuit_breaker": {"failure_threshold": _THRESHOLD, "open_for": _OPEN_FOR, "max_open_for": _OPEN_FOR}
            },
        },
    }


@contextmanager
def _running() -> Iterator[tuple[ProviderProcess, ProxyProcess]]:
    with ProviderProcess() as provider, ProxyProcess(_config(provider), env=key_environment()) as proxy:
        yield provider, proxy


async def measure(plan: Plan = FULL, parts: Sequence[str] = ()) -> Result:
    """These of `PARTS`, one after the other; all of them where none is named."""
    begun = time.perf_counter()
    figures: list[Figure] = []
    with _running() as (provider, proxy):
        await _ask(proxy, _request("mock", str(KEYS["ada"])), 50)
        for part in parts or PARTS:
            figures += await PARTS[part](plan, provider, proxy, str(KEYS["ada"]))
    return Result("resilience", figures, time.perf_counter() - begun)


def _request(name: str, key: str) -> bytes:
    return post("/v1/chat/completions", {"model": name, "messages": MESSAGES}, key)


async def _ask(
    proxy: ProxyProcess, request: bytes, count: int, connections: int = _CONNECTIONS, heard: Heard | None = None
) -> Heard:
    heard = Heard() if heard is None else heard
    tickets = itertools.count()

    async def keep_asking(connection: Connection) -> None:
        while next(tickets) < count:
            answer = await connection.ask(request)
            _note(heard, answer.status, answer.headers, answer.seconds)

    opened = [await Connection.open(proxy.port) for _ in range(connections)]
    try:
        async with asyncio.TaskGroup() as tasks:
            for connection in opened:
                tasks.create_task(keep_asking(connection))
    finally:
        for connection in opened:
            connection.close()
    return heard


def _note(heard: Heard, status: int, headers: dict[bytes, bytes], seconds: float) -> None:
    heard.statuses[status] = heard.statuses.get(status, 0) + 1
    heard.latencies.append(seconds)
    heard.degraded += headers.get(b"x-orchestration-degraded") == b"true"
    name = headers.get(b"x-orchestration-model", b"")
    heard.models[name] = heard.models.get(name, 0) + 1


async def _outage(plan: Plan, provider: ProviderProcess, proxy: ProxyProcess, key: str) -> list[Figure]:
    """A provider fails whatever it is asked, for a while, and is well again."""
    provider.reset()
    provider.script(model="first", status=503)
    request = _request("outage", key)
    began = time.perf_counter()
    heard = await _ask(proxy, request, plan.outage)
    lasted = time.perf_counter() - began
    wasted = sum(attempt.model == "first" for attempt in provider.attempts)
    probes = math.ceil(lasted / _OPEN_FOR)
    provider.script(model="first")
    back = await _until(lambda answer: answer.models.get(b"first", 0) > 0, proxy, request)
    return [
        Figure("outage: requests that failed", heard.count - heard.statuses.get(200, 0), must=Bound("==", 0)),
        Figure(
            "outage: calls wasted",
            wasted,
            # Those that are under way when the breaker opens were sent before anybody could know.
            must=Bound("<=", _THRESHOLD + probes + _CONNECTIONS - 1),
        ),
        Figure("outage: of these, allowed by threshold and probes", _THRESHOLD + probes),
        Figure("outage: seconds until it is used again", back, "s", must=Bound("<=", _OPEN_FOR * 1.2 + 0.5)),
    ]


async def _until(holds: Callable[[Heard], bool], proxy: ProxyProcess, request: bytes) -> float:
    began = time.perf_counter()
    while time.perf_counter() - began < 60:
        if holds(await _ask(proxy, request, 1, 1)):
            break
        await asyncio.sleep(0.02)
    return time.perf_counter() - began


async def _flaky(plan: Plan, provider: ProviderProcess, proxy: ProxyProcess, key: str) -> list[Figure]:
    """The preferred provider fails three times in ten, another is well."""
    provider.reset()
    provider.script(model="flaky", failure_rate=0.3)
    heard = await _ask(proxy, _request("mixed", key), plan.flaky)
    return [
        Figure("30 % errors: requests", heard.count),
        Figure("30 % errors: answered", 100 * heard.success, "%", must=Bound(">=", 99.99)),
        Figure("30 % errors: by the other provider", 100 * heard.models.get(b"steady", 0) / heard.count, "%"),
    ]


async def _all_down(plan: Plan, provider: ProviderProcess, proxy: ProxyProcess, key: str) -> list[Figure]:
    """Every provider is down: the policy's own words, as fast as a model that is none."""
    provider.reset()
    for name in ("down-one", "down-two"):
        provider.script(model=name, status=503)
    await _ask(proxy, _request("down", key), 4 * _THRESHOLD)
    mock, down = Heard(), Heard()
    for _ in range(10):  # in turns, so that whatever else slows the machine slows both
        await _ask(proxy, _request("mock", key), plan.degraded // 10, heard=mock)
        await _ask(proxy, _request("down", key), plan.degraded // 10, heard=down)
    return [
        Figure("all down: answered in other words", 100 * down.degraded / down.count, "%", must=Bound("==", 100)),
        Figure("all down: p50 of that of a mock model", down.p50() / mock.p50(), "x"),
        Figure("all down: p99", 1000 * down.p99(), "ms"),
        Figure("a mock model: p99", 1000 * mock.p99(), "ms"),
        Figure("all down: p99 of that of a mock model", down.p99() / mock.p99(), "x", must=Bound("<=", 1.2)),
    ]


async def _overload(plan: Plan, provider: ProviderProcess, proxy: ProxyProcess, key: str) -> list[Figure]:
    """Five times what a worker can do, a tenth of it of priority 1 and the rest of priority 3, of a model that takes a
    quarter of a second."""
    provider.reset()
    provider.script(model="paced", first_byte_delay=_PACE)
    first, last = _request("paced", key), _request("paced", str(KEYS["bob"]))
    await _ask(proxy, last, 4, 1)  # so that its priority is known
    window = Window()
    async with Clients(proxy.port, 40) as clients:
        await clients.send(first, 400, window)
    capacity = window.rate
    loads = [(first, 0.1 * capacity * 5), (last, 0.9 * capacity * 5)]
    alone, urgent, rest = Heard(), Heard(), Heard()
    for _ in range(plan.rounds):  # in turns, as above
        for total, heard in zip((alone,), await _offer(proxy, loads[:1], plan.seconds / 2), strict=True):
            total.add(heard)
        for total, heard in zip((urgent, rest), await _offer(proxy, loads, plan.seconds), strict=True):
            total.add(heard)
    slower = urgent.p99() / alone.p99() if alone.p99() else 0.0
    return [
        Figure("capacity", capacity, "requests/s"),
        Figure("overload: priority 1 answered", 100 * urgent.success, "%", must=Bound(">=", 95)),
        Figure("overload: priority 3 answered", 100 * rest.success, "%"),
        Figure("priority 1, p99 without the others", 1000 * alone.p99(), "ms"),
        Figure("overload: priority 1, p99", 1000 * urgent.p99(), "ms"),
        Figure("overload: priority 1, p99 of that without", slower, "x", must=Bound("<=", 2)),
    ]


PARTS: dict[str, Callable[[Plan, ProviderProcess, ProxyProcess, str], Coroutine[None, None, list[Figure]]]] = {
    "outage": _outage,
    "flaky": _flaky,
    "down": _all_down,
    "overload": _overload,
}


async def _offer(proxy: ProxyProcess, loads: list[tuple[bytes, float]], seconds: float) -> list[Heard]:
    """Requests at given rates a second, whether or not those before were answered. The first third is not counted:
    a worker has to see first what comes."""
    found = [Heard() for _ in loads]
    pools: list[list[Connection]] = [[] for _ in loads]
    loop = asyncio.get_running_loop()

    async def one(number: int, request: bytes, counts: bool) -> None:
        pool = pools[number]
        while pool and not pool[-1].is_open:
            pool.pop()
        connection = pool.pop() if pool else await Connection.open(proxy.port)
        asked = loop.time()
        try:
            answer = await connection.ask(request)
        except ConnectionError:
            if counts:
                _note(found[number], 0, {}, loop.time() - asked)
            return
        pool.append(connection)
        if counts:
            if answer.status == 200:
                _note(found[number], 200, answer.headers, answer.seconds)
            else:
                found[number].statuses[answer.status] = found[number].statuses.get(answer.status, 0) + 1

    async def keep(number: int, request: bytes, rate: float) -> None:
        began = loop.time()
        async with asyncio.TaskGroup() as tasks:
            for count in itertools.count():
                at = count / rate
                if at >= seconds:
                    return
                await asyncio.sleep(max(0.0, began + at - loop.time()))
                tasks.create_task(one(number, request, at >= seconds / 3))

    await asyncio.gather(*(keep(number, request, rate) for number, (request, rate) in enumerate(loads)))
    for connection in itertools.chain(*pools):
        connection.close()
    return found
