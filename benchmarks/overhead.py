"""What this project costs a LiteLLM proxy: CPU, throughput, latency, start-up and memory against the bare one.

    python -m benchmarks overhead [--quick]

Both proxies run at the same time and take short turns; every figure is a median over pairs of windows of such turns.
docs/benchmarks.md says what each figure means.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, closing
from dataclasses import dataclass

from benchmarks.client import Clients, Connection, Interrupted, Window, get, post
from benchmarks.figures import Bound, Figure, Result
from benchmarks.rivals import USER_KEY, Rival, bare, plain_environment, with_ours, with_ours_and_keys
from tests.support.provider import ProviderProcess

_SETTLE = 0.3
"""Seconds after a window in which work that an answer left behind (log events, the usage ledger) comes to its end."""

_WARM_UP = 300
_STARTS_WITHIN = 120.0


@dataclass(frozen=True, slots=True)
class Load:
    """A kind of traffic."""

    connections: int
    stream: bool = False

    def __str__(self) -> str:
        plural = "s" if self.connections > 1 else ""
        return f"{'streams' if self.stream else 'answers'}, {self.connections} connection{plural}"

    @property
    def turn(self) -> int:
        """Requests of one proxy before it is the other's turn."""
        return max(8, self.connections)

    def request(self, proxy: Rival) -> bytes:
        body = {"model": "small", "messages": [{"role": "user", "content": "What is the answer, in a few words?"}]}
        if self.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return post("/v1/chat/completions", body, proxy.user_key)


LOADS = tuple(Load(connections, stream) for stream in (False, True) for connections in (1, 16, 64))
_MAIN = Load(16)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    pairs: int
    """Pairs of windows for what has a bound."""
    more: int
    """Pairs of windows for everything else."""
    requests: int
    """Requests in a window, at least one turn of each."""
    starts: int
    warm_up: int

    def pairs_of(self, kind: Load) -> int:
        return self.more if kind.stream or kind.connections > 16 else self.pairs


FULL = Plan(pairs=25, more=11, requests=64, starts=5, warm_up=_WARM_UP)
QUICK = Plan(pairs=4, more=2, requests=32, starts=1, warm_up=40)


@dataclass(frozen=True, slots=True)
class Side:
    """One proxy's window in a pair, and the CPU seconds a request it took, what the answers left behind included."""

    window: Window
    cpu: float

    @property
    def p50(self) -> float:
        return statistics.median(self.window.latencies)


Pair = tuple[Side, Side]
"""The bare proxy's window and ours."""


async def pairs(before: Rival, after: Rival, kind: Load, count: int, requests: int) -> list[Pair]:
    """Two windows a pair, each made of short turns that alternate with the other's: A B B A A B B A ...

    Whatever else slows the machine for longer than a turn, some hundred milliseconds, slows both windows of a pair.
    """
    found: list[Pair] = []
    for _ in range(count):
        async with AsyncExitStack() as stack:
            rivals = [
                (rival, await stack.enter_async_context(Clients(rival.port, kind.connections)), Window(), rival.cpu)
                for rival in (before, after)
            ]
            for turn in range(requests // kind.turn or 1):
                for rival, clients, window, _ in rivals if turn % 2 == 0 else reversed(rivals):
                    await clients.send(kind.request(rival), kind.turn, window)
            await asyncio.sleep(_SETTLE)
            one, other = (Side(window, (rival.cpu - cpu) / len(window.latencies)) for rival, _, window, cpu in rivals)
            found.append((one, other))
    return found


def figures_of(kind: Load, found: Sequence[Pair]) -> Iterator[Figure]:
    """CPU and throughput ratios of a kind of traffic; with one connection the latency it adds as well."""
    cpu = [after.cpu / before.cpu for before, after in found]
    yield Figure.of(f"CPU a request, {kind}", cpu, "x", Bound("<=", 1.03) if kind == _MAIN else None)
    yield Figure.of(f"CPU a request, {kind}, bare", [before.cpu * 1e3 for before, _ in found], "ms")
    if kind == _MAIN:
        # Full garbage collections are too rare for the median window; here they are in.
        total = sum(after.cpu for _, after in found) / sum(before.cpu for before, _ in found)
        yield Figure(f"CPU in all, {kind}", total, "x")
    rates = [after.window.rate / before.window.rate for before, after in found]
    yield Figure.of(f"throughput, {kind}", rates, "x", Bound(">=", 1.0, within_noise=True))
    yield Figure.of(f"throughput, {kind}, bare", [before.window.rate for before, _ in found], "requests/s")
    if kind.connections == 1:
        must = None if kind.stream else Bound("<=", 0.3)
        added = [(after.p50 - before.p50) * 1e3 for before, after in found]
        yield Figure.of(f"p50 added, {kind}", added, "ms", must)
        # A window is too short for a p99 of its own; over all of them the two can be compared, without an interval.
        tails = [statistics.quantiles(_latencies(found, side), n=100)[98] for side in (0, 1)]
        yield Figure(f"p99 added, {kind}", (tails[1] - tails[0]) * 1e3, "ms")


def _latencies(found: Sequence[Pair], side: int) -> list[float]:
    return [seconds for pair in found for seconds in pair[side].window.latencies]


# ---- Start-up ----


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds from the command until the proxy answers, and the CPU seconds they took."""

    alive: float
    first_answer: float
    cpu: float


async def time_to_start(proxy: Rival) -> Start:
    """Start a proxy and measure when it first answers /health/liveliness, and a chat."""
    begun = time.perf_counter()
    proxy.spawn()
    try:
        alive = await _first_200(proxy, get("/health/liveliness")) - begun
        answered = await _first_200(proxy, _MAIN.request(proxy)) - begun
        return Start(alive, answered, proxy.cpu)
    finally:
        await asyncio.to_thread(proxy.stop)


async def _first_200(proxy: Rival, request: bytes) -> float:
    """When the first 200 was there."""
    deadline = time.monotonic() + _STARTS_WITHIN
    while time.monotonic() < deadline and proxy.running:
        try:
            with closing(await Connection.open(proxy.port)) as connection:
                if (await connection.ask(request)).status == 200:
                    return time.perf_counter()
        except (OSError, Interrupted):
            pass
        await asyncio.sleep(0.01)
    raise RuntimeError(f"the proxy does not answer; its log ends:\n{proxy.log_tail()}")


async def start_figures(before: Rival, after: Rival, count: int) -> list[Figure]:
    """Start-up ratios. Both start at the same time, so that whatever else the machine does meets both."""
    if count > 1:
        await time_to_start(after)  # compiles and caches what a first start has to
    starts: list[tuple[Start, Start]] = []
    for _ in range(count):
        first, second = await asyncio.gather(time_to_start(before), time_to_start(after))
        starts.append((first, second))
    must = Bound("<=", 1.15)
    return [
        Figure.of("start-up until alive", [b.alive / a.alive for a, b in starts], "x", must),
        Figure.of("start-up until the first answer", [b.first_answer / a.first_answer for a, b in starts], "x", must),
        Figure.of("start-up until the first answer, bare", [a.first_answer for a, _ in starts], "s"),
        Figure.of("start-up CPU", [b.cpu / a.cpu for a, b in starts], "x"),
    ]


# ---- All of it ----


async def _warm(proxies: Sequence[Rival], plan: Plan) -> None:
    for proxy in proxies:
        async with Clients(proxy.port, 16) as clients:
            for kind in (_MAIN, Load(16, stream=True)):
                await clients.send(kind.request(proxy), plan.warm_up, Window())


async def measure(plan: Plan = FULL, kinds: Sequence[Load] = LOADS, *, packaging: bool = True) -> Result:
    """Every figure. The full plan takes some six minutes on two cores."""
    began = time.perf_counter()
    figures: list[Figure] = []
    with ExitStack() as stack:
        provider = stack.enter_context(ProviderProcess(itemised=False))
        alone, ours = Rival(bare(provider.url)), Rival(with_ours(provider.url))
        stack.callback(alone.close)
        stack.callback(ours.close)
        figures += await start_figures(alone, ours, plan.starts)
        await asyncio.gather(asyncio.to_thread(alone.start), asyncio.to_thread(ours.start))
        await _warm((alone, ours), plan)
        for kind in kinds:
            figures += figures_of(kind, await pairs(alone, ours, kind, plan.pairs_of(kind), plan.requests))
        mib = 1 << 20
        added = (ours.rss - alone.rss) / mib
        figures.append(Figure("memory added", added, "MiB", must=Bound("<=", 40)))
        figures.append(Figure("memory, bare", alone.rss / mib, "MiB"))
        with closing(Rival(with_ours_and_keys(provider.url), user_key=USER_KEY)) as quickstart:
            quickstart.start()
            await _warm([quickstart], plan)
            found = await pairs(alone, quickstart, _MAIN, plan.more, plan.requests)
            cpu = [after.cpu / before.cpu for before, after in found]
            figures.append(Figure.of("CPU a request with our keys", cpu, "x"))
        alone.stop()
        if packaging:
            with closing(Rival(bare(provider.url), program=plain_environment())) as plain:
                plain.start()
                await _warm([plain], plan)
                found = await pairs(plain, ours, _MAIN, plan.more, plan.requests)
                cpu = [before.cpu / after.cpu for before, after in found]
                must = Bound(">=", 1.4)
                figures.append(Figure.of("requests a CPU second against a plain installation", cpu, "x", must))
    return Result("overhead", figures, time.perf_counter() - began)
