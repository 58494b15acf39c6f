"""What this project costs a LiteLLM proxy: CPU, throughput, latency, start-up and memory against the bare one.

    python -m benchmarks overhead [--quick]

Both proxies run at the same time and take short turns; every figure is a median over pairs of windows of such turns,
spread over several starts of both. So that it is known what differs by chance alone, two bare proxies are measured in
the same way. docs/benchmarks.md says what each figure means.
"""

from __future__ import annotations

import asyncio
import logging
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass

from benchmarks.client import Clients, Connection, Interrupted, Window, get, post
from benchmarks.figures import Bound, Figure, Result
from benchmarks.rivals import USER_KEY, Config, Rival, bare, plain_environment, with_ours, with_ours_and_keys
from tests.support.provider import ProviderProcess

_LOG = logging.getLogger("benchmarks.overhead")
_SETTLE = 0.3
"""Seconds after a window in which work that an answer left behind (log events, the usage ledger) comes to its end."""

_WARM_UP = 150
_TAIL = 8_000
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

    starts: int
    """How often both proxies are started."""
    pairs: int
    """Pairs of windows a start, for what has a bound."""
    more: int
    """Pairs of windows a start, for everything else."""
    requests: int
    """Requests in a window, at least one turn of each."""
    warm_up: int
    equal: int = 1
    """How often two bare ones are started, to be measured in the same way."""

    def pairs_of(self, kind: Load) -> int:
        return self.more if kind.stream or kind.connections > 16 else self.pairs


FULL = Plan(starts=6, pairs=5, more=2, requests=64, warm_up=_WARM_UP, equal=3)
QUICK = Plan(starts=1, pairs=4, more=2, requests=32, warm_up=40)


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

    Whatever else slows the machine for longer than a turn, some hundred milliseconds, slows both windows of a pair. Who
    begins is the other in the next pair: what answers leave to be done slows whoever comes next, and a window of many
    connections is a single turn.
    """
    found: list[Pair] = []
    for number in range(count):
        async with AsyncExitStack() as stack:
            rivals = [
                (rival, await stack.enter_async_context(Clients(rival.port, kind.connections)), Window(), rival.cpu)
                for rival in (before, after)
            ]
            for turn in range(requests // kind.turn or 1):
                for rival, clients, window, _ in rivals if (number + turn) % 2 == 0 else reversed(rivals):
                    await clients.send(kind.request(rival), kind.turn, window)
            await asyncio.sleep(_SETTLE)
            one, other = (Side(window, (rival.cpu - cpu) / len(window.latencies)) for rival, _, window, cpu in rivals)
            found.append((one, other))
    return found


def noise_of(equal: Sequence[Pair]) -> float:
    """By how much the throughput of two equal proxies differs in a pair of windows: two of three pairs differ less, as
    with a standard deviation, which the pairs that meet a full garbage collection of LiteLLM's would decide alone."""
    apart = sorted(abs(after.window.rate / before.window.rate - 1) for before, after in equal)
    return apart[math.ceil(len(apart) * 2 / 3) - 1]


def figures_of(kind: Load, found: Sequence[Pair], equal: Sequence[Pair]) -> Iterator[Figure]:
    """CPU and throughput ratios of a kind of traffic; with one connection the latency it adds as well."""
    cpu = [after.cpu / before.cpu for before, after in found]
    yield Figure.of(f"CPU a request, {kind}", cpu, "x", Bound("<=", 1.03) if kind == _MAIN else None)
    yield Figure.of(f"CPU a request, {kind}, bare", [before.cpu * 1e3 for before, _ in found], "ms")
    if kind == _MAIN:
        # Full garbage collections are too rare for the median window; here they are in.
        total = sum(after.cpu for _, after in found) / sum(before.cpu for before, _ in found)
        yield Figure(f"CPU in all, {kind}", total, "x")
    rates = [after.window.rate / before.window.rate for before, after in found]
    noise = noise_of(equal)
    yield Figure.of(f"throughput, {kind}", rates, "x", Bound(">=", 1.0 - noise))
    yield Figure(f"throughput, {kind}, equal proxies differ by", noise * 100, "%")
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
    """Start a proxy, which goes on running, and measure when it first answers /health/liveliness, and a chat."""
    begun = time.perf_counter()
    proxy.spawn()
    alive = await _first_200(proxy, get("/health/liveliness")) - begun
    answered = await _first_200(proxy, _MAIN.request(proxy)) - begun
    return Start(alive, answered, proxy.cpu)


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


def start_figures(starts: Sequence[tuple[Start, Start]]) -> Iterator[Figure]:
    """Start-up ratios. Both started at the same time, so that whatever else the machine does met both."""
    must = Bound("<=", 1.15)
    yield Figure.of("start-up until alive", [b.alive / a.alive for a, b in starts], "x", must)
    yield Figure.of("start-up until the first answer", [b.first_answer / a.first_answer for a, b in starts], "x", must)
    yield Figure.of("start-up until the first answer, bare", [a.first_answer for a, _ in starts], "s")
    yield Figure.of("start-up CPU", [b.cpu / a.cpu for a, b in starts], "x")


# ---- All of it ----


async def _warm(proxies: Sequence[Rival], plan: Plan) -> None:
    for proxy in proxies:
        async with Clients(proxy.port, 16) as clients:
            for kind in (_MAIN, Load(16, stream=True)):
                await clients.send(kind.request(proxy), plan.warm_up, Window())


@dataclass(slots=True)
class _Measured:
    """What was measured of two proxies, over all of their starts."""

    starts: list[tuple[Start, Start]]
    pairs: dict[Load, list[Pair]]
    memory: list[tuple[int, int]]


async def _compared(one: Config, other: Config, starts: int, kinds: Sequence[Load], plan: Plan) -> _Measured:
    found = _Measured([], {kind: [] for kind in kinds}, [])
    while len(found.starts) < starts:
        with closing(Rival(one)) as before, closing(Rival(other)) as after:
            started = await asyncio.gather(time_to_start(before), time_to_start(after))
            try:
                await _warm((before, after), plan)
                measured = {
                    kind: await pairs(before, after, kind, plan.pairs_of(kind), plan.requests) for kind in kinds
                }
            except ExceptionGroup:
                if before.running or not after.running:
                    _LOG.error("what the second logged last:\n%s", after.log_text()[-_TAIL:])  # it goes with the proxy
                    raise
                # docs/operations.md: on Python 3.11 streams crash LiteLLM now and then, where we are not loaded.
                _LOG.warning("the bare proxy crashed; this start is made again")
                continue
            found.starts.append(started)
            for kind in kinds:
                found.pairs[kind] += measured[kind]
            found.memory.append((before.rss, after.rss))
    return found


async def measure(plan: Plan = FULL, kinds: Sequence[Load] = LOADS, *, more: bool = True) -> Result:
    """Every figure; with `more`, those of a third proxy too. The full plan takes some ten minutes on two cores."""
    began = time.perf_counter()
    with ProviderProcess(itemised=False) as provider:
        alone, ours = bare(provider.url), with_ours(provider.url)
        if plan.starts > 1:
            with closing(Rival(ours)) as first:
                await time_to_start(first)  # compiles and caches what a first start has to
        found = await _compared(alone, ours, plan.starts, kinds, plan)
        equal = await _compared(alone, alone, plan.equal, kinds, plan)
        figures = [*start_figures(found.starts)]
        for kind in kinds:
            figures += figures_of(kind, found.pairs[kind], equal.pairs[kind])
        figures += memory_figures(found.memory)
        if more:
            figures += await third_figures(provider.url, plan)
    return Result("overhead", figures, time.perf_counter() - began)


def memory_figures(memory: Sequence[tuple[int, int]]) -> Iterator[Figure]:
    """Resident memory when all the load of a start has been."""
    mib = 1 << 20
    added = [(ours - alone) / mib for alone, ours in memory]
    yield Figure.of("memory added", added, "MiB", Bound("<=", 40))
    yield Figure.of("memory, bare", [alone / mib for alone, _ in memory], "MiB")


async def third_figures(provider: str, plan: Plan) -> Iterator[Figure]:
    """Our keys against bare, and ours against plain installations of LiteLLM, whose bytecode is there or is not."""

    async def cpu(before: Rival, after: Rival) -> list[float]:
        ratios: list[float] = []
        for _ in range(max(1, plan.starts // 2)):
            before.start()
            after.start()
            await _warm((before, after), plan)
            found = await pairs(before, after, _MAIN, plan.pairs, plan.requests)
            ratios += [two.cpu / one.cpu for one, two in found]
            before.stop()
            after.stop()
        return ratios

    figures: list[Figure] = []
    with (
        closing(Rival(bare(provider))) as alone,
        closing(Rival(with_ours_and_keys(provider), user_key=USER_KEY)) as quick,
    ):
        figures.append(Figure.of("CPU a request with our keys", await cpu(alone, quick), "x"))
    for bytecode in (True, False):
        installed = Rival(bare(provider), program=plain_environment(), bytecode=bytecode)
        with closing(installed) as plain, closing(Rival(with_ours(provider), bytecode=bytecode)) as ours:
            ratios = [1 / ratio for ratio in await cpu(plain, ours)]
        name = f"requests a CPU second against a plain installation{'' if bytecode else ', no bytecode'}"
        figures.append(Figure.of(name, ratios, "x", None if bytecode else Bound(">=", 1.4)))
    return iter(figures)
