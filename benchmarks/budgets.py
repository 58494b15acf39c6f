"""Budgets: what a decision costs, in memory and in Redis, with many members, and what all of it adds to a request.

    python -m benchmarks budgets [--quick]

`benchmarks/budget_race.py` has the other half: whether they hold, beside LiteLLM's own.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from redis.asyncio import ConnectionPool, Redis

from benchmarks import budget_race, overhead
from benchmarks.figures import Bound, Figure, Result
from benchmarks.rivals import Rival, with_ours
from core.budgets import Account, Balance, Catalog
from core.budgets.books import Books
from core.budgets.opening import Opening
from core.context import Caller
from core.settings.models import Budget
from core.state.connection import Connection
from core.state.memory import MemoryReservations
from core.state.redis import RedisReservations
from core.state.reservations import Claim
from core.store import Store, open_store
from core.usage import Attempt, UsageState
from plugins.budgets.enforcement import Asked, Enforcement, Group
from plugins.budgets.expected import ExpectedOutput
from plugins.budgets.prices import group_prices
from plugins.budgets.spending import Spending
from tests.support.provider import ProviderProcess
from tests.support.redis import RedisServer

_MODEL = "gpt-4o-mini"
_HASH = "0a" * 32
_WHOLE_OUTPUT, _EXPECTED_OUTPUT = 9_830_400, 1_228_800
"""Nano-dollars of 16,384 output tokens and of 2,048, as a request without an output limit claims them."""
_IN_FLIGHT = 64
_SLACK = 256


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. `members` rises; the first is what the others are compared with."""

    rounds: int
    decisions: int
    members: Sequence[int]
    calls: int
    """Calls of Redis a round."""
    requests: overhead.Plan
    race: budget_race.Plan


FULL = Plan(
    rounds=15,
    decisions=1024,
    members=(10, 10_000, 1_000_000),
    calls=3000,
    requests=overhead.Plan(starts=3, pairs=6, more=2, requests=64, warm_up=150),
    race=budget_race.FULL,
)
QUICK = Plan(
    rounds=3,
    decisions=128,
    members=(10, 1000),
    calls=200,
    requests=overhead.Plan(starts=1, pairs=2, more=2, requests=32, warm_up=40),
    race=budget_race.QUICK,
)


async def measure(plan: Plan = FULL) -> Result:
    """Every figure; the full plan takes some ten minutes on two cores."""
    began = time.perf_counter()
    figures = [*await decisions(plan), *await members(plan)]
    figures += await asyncio.to_thread(uvloop.run, redis_figures(plan))  # the loop that a proxy runs on
    figures += await request_figures(plan.requests)
    figures += await budget_race.measure(plan.race)
    return Result("budgets", figures, time.perf_counter() - began)


def six_budgets(model: str = _MODEL) -> list[dict[str, Any]]:
    """Budgets that all apply to a request of anybody for `model`, as a configuration has them."""
    plenty = 1_000_000
    return [
        {"budget_id": "proxy", "total_budget": plenty, "reset_period": "DAILY", "timezone": "Europe/Berlin"},
        {"budget_id": "month", "total_budget": plenty},
        {"budget_id": "each_user", "total_budget": plenty, "per": "user"},
        {"budget_id": "each_key", "total_budget": plenty, "per": "key", "reset_period": "WEEKLY"},
        {"budget_id": "each_model", "total_budget": plenty, "per": "model", "reset_period": "QUARTERLY"},
        {"budget_id": "some_models", "total_budget": plenty, "models": [f"{model[:3]}*"], "reset_period": "TOTAL"},
    ]


# ---- A decision in memory ----


class _Desk:
    """Books on memory, over a store, with the six budgets, as a worker has them."""

    def __init__(self, store: Store) -> None:
        self.catalog = Catalog([Budget.model_validate(budget) for budget in six_budgets()], [_MODEL])
        state = MemoryReservations()
        self.opening = Opening(store.budgets, state.standings, state.put, time.time)
        self.opening.catalog = self.catalog
        self.books = Books(state, self, "benchmark")
        deployment = {"litellm_params": {"model": f"openai/{_MODEL}"}, "model_info": {"id": "one"}}
        group = Group(group_prices([deployment]), frozenset({"max_tokens"}))
        self.enforcement = Enforcement(self.books, ExpectedOutput(0.99, 2048), lambda name: group)
        self.now_ms = int(time.time() * 1000)
        self._numbers = itertools.count()

    async def balances(self, accounts: Sequence[Account]) -> Sequence[Balance]:
        return await self.opening.balances(accounts)

    async def flush(self) -> bool:
        return True

    async def living(self) -> Sequence[str]:
        return ["benchmark"]

    def lease(self) -> str:
        return f"019aab3c-1f2e-7abc-9def-{next(self._numbers):012}"

    def claims(self, user: str) -> list[Claim]:
        charges = self.catalog.applying(_caller(user), None, _MODEL).charges(_MODEL, self.now_ms)
        return [Claim(charge.account, charge.limit_nano, (_WHOLE_OUTPUT, _EXPECTED_OUTPUT)) for charge in charges]

    async def quiet(self, leases: Sequence[str]) -> None:
        """Wait until nothing is left of these leases."""
        self.books.written([f"{lease}:1" for lease in leases], [])
        await asyncio.sleep(0)
        while await self.books._move_some():  # pyright: ignore[reportPrivateUsage]
            pass


def _caller(user: str) -> Caller:
    return Caller(key_hash=_HASH, key_alias="laptop", user_id=user, team_id="research", groups=("ai", "staff"))


@asynccontextmanager
async def _desk(store: Store) -> AsyncIterator[_Desk]:
    desk = _Desk(store)
    task = asyncio.create_task(desk.books.run())
    try:
        yield desk
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await desk.books.close()


@asynccontextmanager
async def _store() -> AsyncIterator[Store]:
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"sqlite:///{Path(folder)}/benchmark.db")
        try:
            await store.upgrade()
            yield store
        finally:
            await store.close()


async def decisions(plan: Plan) -> list[Figure]:
    """What each step of a request costs, in CPU time; 64 requests are in flight."""
    reserve: list[float] = []
    steps: dict[str, list[float]] = {"admitted": [], "sent": [], "settled": []}
    async with _store() as store, _desk(store) as desk:
        claims = desk.claims("ada")
        await desk.books.reserve("first", claims)
        for _ in range(plan.rounds):
            reserve.append(await _reserve(desk, [claims], plan.decisions))
            for name, value in (await _whole_requests(desk, plan.decisions)).items():
                steps[name].append(value)
    name = "memory, 6 budgets"
    return [
        Figure.of(f"{name}: decision (reserved in all or in none)", reserve, "us", Bound("<=", 30)),
        Figure.of(f"{name}: which apply, bound, decision, output limit", steps["admitted"], "us"),
        Figure.of(f"{name}: sent", steps["sent"], "us"),
        Figure.of(f"{name}: settled, and let go when it is in the store", steps["settled"], "us"),
    ]


async def _reserve(desk: _Desk, claims: Sequence[Sequence[Claim]], count: int) -> float:
    """Microseconds of CPU a decision."""
    spent = 0.0
    for _ in range(count // _IN_FLIGHT):
        names = [desk.lease() for _ in range(_IN_FLIGHT)]
        point = time.thread_time()
        for number, name in enumerate(names):
            await desk.books.reserve(f"{name}:1", claims[number % len(claims)], slack=_SLACK)
        spent += time.thread_time() - point
        for name in names:
            desk.books.settle(f"{name}:1", 0)
        await desk.quiet(names)
    return spent / (count // _IN_FLIGHT * _IN_FLIGHT) * 1e6


async def _whole_requests(desk: _Desk, count: int) -> dict[str, float]:
    """Microseconds of CPU a request, of each step."""

    async def permitted(groups: Any) -> list[str]:
        return list(groups)

    caller, enforcement = _caller("ada"), desk.enforcement
    admitted = sent = settled = 0.0
    for _ in range(count // _IN_FLIGHT):
        names = [desk.lease() for _ in range(_IN_FLIGHT)]
        bodies = [{"model": _MODEL, "messages": [{"role": "user", "content": "A few words, please."}]} for _ in names]
        under_way: list[tuple[Spending, Asked, Attempt]] = []
        point = time.thread_time()
        for name, body in zip(names, bodies, strict=True):
            applying = desk.catalog.applying(caller, None, _MODEL)
            spending, asked = (
                Spending(name, applying, desk.books, desk.now_ms),
                Asked("chat_completions", body, 95, None),
            )
            await enforcement.first_attempt(spending, asked, [_MODEL], permitted)
            under_way.append((spending, asked, Attempt(1, _MODEL)))
        admitted += time.thread_time() - point
        point = time.thread_time()
        for spending, asked, attempt in under_way:
            await enforcement.send(spending, asked, attempt)
        sent += time.thread_time() - point
        point = time.thread_time()
        for spending, _, attempt in under_way:
            attempt.usage, attempt.cost_nano = UsageState.REPORTED, 5000
            spending.settle(attempt)
        await desk.quiet(names)
        settled += time.thread_time() - point
    each = 1e6 / (count // _IN_FLIGHT * _IN_FLIGHT)
    return {"admitted": admitted * each, "sent": sent * each, "settled": settled * each}


# ---- Many members ----


async def members(plan: Plan) -> Iterator[Figure]:
    """Decisions for members whose accounts are open, and the first one of a member, by how many the store has."""
    fewest, *more = plan.members
    decided: dict[int, list[float]] = {count: [] for count in plan.members}
    opened: dict[int, list[float]] = {count: [] for count in plan.members}
    for count in more:
        async with _store() as few, _store() as many:
            stores = ((fewest, few), (count, many))
            for size, store in stores:
                await _fill(store, size)
            for turn in range(plan.rounds):
                for size, store in stores if turn % 2 == 0 else reversed(stores):
                    async with _desk(store) as desk:
                        claims = [desk.claims(f"user-{n * size // 10}") for n in range(10)]
                        await desk.books.reserve("shared", claims[0])
                        opened[size].append(await _first(desk, claims[1:]))
                        decided[size].append(await _reserve(desk, claims, plan.decisions))
    figures = [Figure.of(f"memory, {fewest} members: decision", decided[fewest], "us")]
    figures.append(Figure.of(f"memory, {fewest} members: first decision of one", opened[fewest], "us"))
    for at, count in enumerate(more):
        few = slice(at * plan.rounds, (at + 1) * plan.rounds)
        ratios = [b / a for a, b in zip(decided[fewest][few], decided[count], strict=True)]
        must = Bound("<=", 1.1, within_noise=True)
        figures.append(Figure.of(f"memory, {count:,} members: decision", ratios, f"x of {fewest}", must))
        ratios = [b / a for a, b in zip(opened[fewest][few], opened[count], strict=True)]
        figures.append(Figure.of(f"memory, {count:,} members: first decision of one", ratios, f"x of {fewest}"))
    return iter(figures)


async def _fill(store: Store, count: int) -> None:
    """So many members have spent something."""
    terms = Catalog([Budget.model_validate(budget) for budget in six_budgets()]).budget("each_user")
    assert terms is not None
    start_ms = terms.account("", int(time.time() * 1000)).start_ms
    fill = (
        f"WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {count - 1}) "
        "INSERT INTO budget_spend (budget, start_ms, member, spent_nano, base_nano, extra_nano, version) "
        f"SELECT '{terms.key}', {start_ms}, 'user-' || i, 5000, 0, 0, 1 FROM n"
    )
    await store.write(lambda connection: connection.exec_driver_sql(fill).close())


async def _first(desk: _Desk, claims: Sequence[Sequence[Claim]]) -> float:
    """Microseconds of a decision that has to open an account, the store's time included: the median."""
    found: list[float] = []
    for of_member in claims:
        begun = time.perf_counter()
        await desk.books.reserve(f"{desk.lease()}:1", of_member, slack=_SLACK)
        found.append((time.perf_counter() - begun) * 1e6)
    return statistics.median(found)


# ---- Redis ----


@dataclass(frozen=True, slots=True)
class _Calls:
    """Calls a second, and microseconds a call of this process and of Redis's."""

    rate: float
    cpu: float
    redis_cpu: float


async def redis_figures(plan: Plan) -> list[Figure]:
    """The calls a request needs against an EVALSHA of a script that does nothing, as redis-py makes them."""
    with RedisServer() as server:
        state = await _whole_state(server.url)
        claims = [
            Claim(Account(f"budget_{n}~3f9a1c42", 1_800_000_000_000, "ada"), 10**15, (_WHOLE_OUTPUT, _EXPECTED_OUTPUT))
            for n in range(6)
        ]
        await state.put([Balance(claim.account.key, 5 * 10**9, 0, 1) for claim in claims], {})
        keys = [claim.account.key for claim in claims]
        client = Redis.from_url(server.url)
        nothing = client.register_script("return 1")
        await nothing()
        bare = Connection(ConnectionPool.from_url(server.url, socket_timeout=None).make_connection(), 10.0)
        await bare.open()
        works: dict[str, Callable[[str], Awaitable[Any]]] = {
            "EVALSHA": lambda lease: nothing(),
            "EVALSHA by our connection": lambda lease: bare.call((b"EVALSHA", nothing.sha, b"0")),
            "reserve": lambda lease: state.reserve(lease, claims, slack=_SLACK),
            "sent": lambda lease: state.sent(lease),
            "settle": lambda lease: state.settle(lease, keys, 5000),
        }
        found: dict[tuple[int, str], list[_Calls]] = {}
        for turn in range(plan.rounds):
            for connections in (1, 16):
                leases = [f"{turn:02}9aab3c-1f2e-7abc-{connections:04}-{n:012}:1" for n in range(plan.calls)]
                for name, work in works.items():
                    found.setdefault((connections, name), []).append(await _call(server, work, leases, connections))
                await state.put([], {}, leases)
        round_trips = await _round_trips(server, lambda: state.reserve("seen:1", claims, slack=_SLACK))
        await state.close()
        await bare.close()
        await client.aclose()
    figures: list[Figure] = []
    for connections in (1, 16):
        plain = found[connections, "EVALSHA"]
        at = f"Redis, {connections} at once"
        figures.append(Figure.of(f"{at}: plain EVALSHA", [one.rate for one in plain], "calls/s"))
        for name in ("EVALSHA by our connection", "reserve", "sent", "settle"):
            ratios = [one.rate / other.rate for one, other in zip(found[connections, name], plain, strict=True)]
            must = Bound(">=", 0.7, within_noise=True) if name == "reserve" else None
            what = f"{name} in 6 accounts" if name in ("reserve", "settle") else name
            figures.append(Figure.of(f"{at}: {what}", ratios, "x EVALSHA", must))
    for name in works:
        figures.append(Figure.of(f"Redis: CPU of Redis, {name}", [o.redis_cpu for o in found[16, name]], "us"))
        figures.append(Figure.of(f"Redis: CPU of the caller, {name}", [o.cpu for o in found[16, name]], "us"))
    figures.append(Figure("Redis: round trips of a reservation", round_trips, must=Bound("==", 1)))
    return figures


async def _whole_state(url: str) -> RedisReservations:
    state = RedisReservations(url)
    while not await state.recover():
        await state.register("benchmark", [])
        await state.finish(["benchmark"])
    return state


async def _call(
    server: RedisServer, work: Callable[[str], Awaitable[Any]], leases: Sequence[str], connections: int
) -> _Calls:
    waiting = iter(leases)

    async def one_after_another() -> None:
        for lease in waiting:
            await work(lease)

    redis_cpu, cpu, begun = _redis_cpu(server), time.thread_time(), time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(connections):
            tasks.create_task(one_after_another())
    elapsed, each = time.perf_counter() - begun, 1e6 / len(leases)
    cpu, redis_cpu = time.thread_time() - cpu, _redis_cpu(server) - redis_cpu
    return _Calls(len(leases) / elapsed, cpu * each, redis_cpu * each)


def _redis_cpu(server: RedisServer) -> float:
    with server.client() as client:
        used: dict[str, float] = client.info("cpu")  # type: ignore[assignment]
    return used["used_cpu_user"] + used["used_cpu_sys"]


async def _round_trips(server: RedisServer, work: Callable[[], Awaitable[Any]]) -> int:
    """Commands that a client sent, those that its scripts ran left out."""
    with server.client() as observer, server.client() as marker, observer.monitor() as monitor:
        marker.ping()  # what a new connection says first is over then
        await work()
        marker.echo("end")
        sent = 0
        for command in monitor.listen():
            assert command is not None
            if command["command"] == "ECHO end":
                return sent
            if command["command"] == "PING":
                sent = 0
            else:
                sent += command["client_type"] != "lua"
    raise AssertionError("a monitor never ends by itself")


# ---- A whole request ----


def with_budgets(provider_url: str, shared_state: str | None = None) -> dict[str, Any]:
    """`with_ours`, and the six budgets; in memory or in Redis."""
    config = with_ours(provider_url)
    config["orchestration"]["budgets"] = six_budgets("small")
    if shared_state is not None:
        config["orchestration"]["shared_state"] = {"url": shared_state}
    return config


async def request_figures(plan: overhead.Plan) -> list[Figure]:
    """The same proxy with six budgets, in memory and in Redis, against the one without, in pairs of windows."""
    one, many = overhead.Load(1), overhead.Load(16)
    found: dict[tuple[str, overhead.Load], list[overhead.Pair]] = {}
    with ExitStack() as stack:
        provider = stack.enter_context(ProviderProcess(itemised=False))
        redis = stack.enter_context(RedisServer())
        for _ in range(plan.starts):
            with (
                closing(Rival(with_ours(provider.url))) as without,
                closing(Rival(with_budgets(provider.url))) as memory,
                closing(Rival(with_budgets(provider.url, redis.url))) as shared,
            ):
                proxies = (without, memory, shared)
                await asyncio.gather(*(overhead.time_to_start(proxy) for proxy in proxies))
                await overhead._warm(proxies, plan)
                for name, proxy in (("memory", memory), ("Redis", shared)):
                    for load, count in ((one, plan.more), (many, plan.pairs)):
                        pairs = await overhead.pairs(without, proxy, load, count, plan.requests)
                        found.setdefault((name, load), []).extend(pairs)
    figures: list[Figure] = []
    for (name, load), pairs in found.items():
        ratios = [after.cpu / before.cpu for before, after in pairs]
        figures.append(Figure.of(f"CPU a request with 6 budgets in {name}, {load}", ratios, "x"))
        added = [(after.cpu - before.cpu) * 1e3 for before, after in pairs]
        figures.append(Figure.of(f"CPU added by 6 budgets in {name}, {load}", added, "ms"))
        if load == one:
            added = [(after.p50 - before.p50) * 1e3 for before, after in pairs]
            figures.append(Figure.of(f"p50 added by 6 budgets in {name}, {load}", added, "ms"))
    return figures
