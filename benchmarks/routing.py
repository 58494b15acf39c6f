"""Routing: what a decision costs and leaves behind, and what it adds to the admission of a request.

    python -m benchmarks routing [--quick]

CPU time of this thread, so that a busy machine does not show. Every decision is for a user who was never seen before.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.collection import collecting_as_in_a_proxy
from benchmarks.figures import Bound, Figure, Result
from core.access import TierAccess
from core.context import Caller, Need, RequestContext
from core.settings import Settings
from custom_router.candidates import Candidate
from custom_router.router import Router
from plugins.routing.live import Loads

RULES, EXPERIMENTS, CANDIDATES = 100, 20, 30
_GROUPS = tuple(f"group-{number}" for number in range(CANDIDATES))
_TASKS = ("chat", "coding", "search", "summary", None)
_NOW_MS = 1_800_000_000_000


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    rounds: int
    decisions: int
    """Requests of a round, each decided about three times."""
    users: int
    """Who leave nothing behind."""
    admissions: int
    """Of a round."""


FULL = Plan(rounds=5, decisions=6_000, users=1_000_000, admissions=3_000)
QUICK = Plan(rounds=3, decisions=1_000, users=5_000, admissions=200)


async def measure(plan: Plan = FULL) -> Result:
    """Every figure; the full plan takes some eight minutes."""
    began = time.perf_counter()
    figures = [*decisions(plan), *left_behind(plan), *await admissions(plan)]
    return Result("routing", figures, time.perf_counter() - began)


# ---- The configuration ----


def section(objective: str = "cost", at_once: int = EXPERIMENTS, **policy: Any) -> dict[str, Any]:
    """`orchestration:` with 100 rules, of which a request matches one or none, and a policy of 30 candidates that
    `at_once` of the 20 experiments are about; the others are about another policy."""
    return {
        "tiers": {"free": {"models": ["group-?", "group-1?", "smart"]}, "premium": {"models": ["*"]}},
        "default_tier": "premium",
        "routing": {
            "match": "all",
            "policies": {"smart": {"candidates": _GROUPS, "objective": objective, **policy}, "other": _OTHER},
            "rules": [_rule(number) for number in range(RULES)],
            "experiments": [
                _experiment(number, "smart" if number < at_once else "other") for number in range(EXPERIMENTS)
            ],
        },
    }


_OTHER = {"candidates": _GROUPS[:2]}


def _rule(number: int) -> dict[str, Any]:
    """A fifth are expressions that no index answers, the others say which requests they are for."""
    whens: Sequence[Any] = (
        {"task_type": ["coding", "search"], "team_id": f"team-{number}"},
        {"user_tier": "free", "groups": [f"crew-{number}"]},
        f"task_type == 'chat' && input_tokens > {number * 1000 + 500}",
        f"model == 'other' && metadata.app == 'app-{number}'",
        f"has_images && hour >= {number % 24} && key_alias.startsWith('bot-{number}')",
    )
    actions: Sequence[dict[str, Any]] = (
        {"prefer": [_GROUPS[number % CANDIDATES]]},
        {"exclude": [_GROUPS[(number * 7) % CANDIDATES]]},
        {"set": {"temperature": 0.2}},
        {"use": ["group-*"]},
    )
    return {"id": f"rule-{number}", "when": whens[number % 5], "priority": number + 1, **actions[number % 4]}


def _experiment(number: int, policy: str) -> dict[str, Any]:
    """A quarter compare models, the others parameters; a few have an audience or a part of a namespace."""
    arms: list[dict[str, Any]] = [{"id": "control"}, {"id": "treatment"}]
    for at, arm in enumerate(arms):
        if number % 4 == 0:
            arm["model"] = _GROUPS[number % 10 + at]
        else:
            arm["set"] = {f"field_{number}": at}
    more: dict[str, Any] = {}
    if number % 5 == 1:
        more["audience"] = {"task_type": "chat"}
    if number % 5 == 2:
        more["namespace"] = {"id": "models", "range": [0, 0.5]}
    return {"id": f"experiment-{number}", "policy": policy, "variants": arms, "status": "running", **more}


def _candidate(name: str) -> Candidate:
    number = int(name.partition("-")[2]) if name.startswith("group-") else 0
    lacks = frozenset({Need.IMAGES}) if number % 6 == 5 else frozenset[Need]()
    return Candidate(
        name,
        priority=number % 3 + 1,
        context_window=128_000,
        lacks=lacks,
        input_nano=100.0 + number,
        output_nano=400.0 + number,
    )


_CANDIDATES = {name: _candidate(name) for name in (*_GROUPS, "plain")}


def router_of(orchestration: dict[str, Any]) -> Router:
    """A router over models that have all been measured."""
    settings = Settings.model_validate(orchestration)
    loads = Loads(lambda _group, _task: 300, lambda: 0.0)
    for number, name in enumerate(_CANDIDATES):
        loads.began(name, None)
        loads.ended(name, None, 200.0 + 10 * number, None, 200, None)
    return Router(settings, TierAccess(settings.tiers), _CANDIDATES.__getitem__, loads)


def contexts(count: int, chance: random.Random, asked: str = "smart") -> Iterator[RequestContext]:
    """Requests of users who all are new."""
    for _ in range(count):
        user, number = f"user-{chance.getrandbits(64):016x}", chance.randrange(100)
        tier = "free" if number < 30 else "premium"
        yield RequestContext(
            f"request-{chance.getrandbits(64):016x}",
            "chat_completions",
            Caller(
                key_hash=user,
                user_id=user,
                team_id=f"team-{number}",
                groups=(f"crew-{number}", "staff"),
                tier=tier,
                tiers=(tier,),
            ),
            asked,
            task_type=_TASKS[number % 5],
            priority=1,
            session_id=user,
            stream=number % 2 == 0,
            input_tokens=number * 50,
            needs=frozenset({Need.IMAGES}) if number % 10 == 0 else frozenset(),
            time_ms=_NOW_MS + number,
        )


_anything: Callable[[str], bool] = dict.fromkeys(_CANDIDATES, True).__getitem__
"""As a proxy answers whether LiteLLM lets a key call a group."""


# ---- Decisions ----


def decisions(plan: Plan) -> Iterator[Figure]:
    """Microseconds of a decision: the facts, the rules, the experiments, the order of the candidates.

    Of each request the middle one of three decisions, made with those about others between them. A timer interrupts one
    decision in a hundred, for some 20 us on a virtual machine: of a single decision each, that is all p99 would show.
    What looking at the clock takes is taken off.
    """
    what = f"{RULES} rules, {EXPERIMENTS} experiments, {CANDIDATES} candidates"
    few = f"{RULES} rules, 4 of {EXPERIMENTS} experiments, {CANDIDATES} candidates"
    two = {"routing": {"policies": {"smart": {"candidates": _GROUPS[:2]}}}}
    held = Bound("<=", 50)
    cases: Sequence[tuple[str, str, dict[str, Any], Bound | None]] = (
        (f"{what}, priority", "smart", section("priority"), held),
        (f"{what}, cost", "smart", section("cost"), held),
        (f"{what}, cost by session", "smart", section("cost", sticky="session"), None),
        (f"{what}, latency", "smart", section("latency"), None),
        (f"{what}, balanced", "smart", section("balanced"), None),
        (f"{what}, weighted", "smart", section("weighted"), None),
        (f"{few}, cost", "smart", section("cost", at_once=4), held),
        ("a policy of 2 candidates", "smart", two, None),
        ("nothing configured", "plain", {}, None),
    )
    with collecting_as_in_a_proxy():
        for name, asked, orchestration, must in cases:
            p50, p99 = _percentiles(router_of(orchestration), asked, plan)
            yield Figure.of(f"decision, {name}: p50", p50, "us")
            yield Figure.of(f"decision, {name}: p99", p99, "us", must)


_TOGETHER = 20
"""Requests under way at once; what many more hold would come from memory, not from the processor's caches."""


def _percentiles(router: Router, asked: str, plan: Plan) -> tuple[list[float], list[float]]:
    chance = random.Random(1)
    p50: list[float] = []
    p99: list[float] = []
    for context in contexts(min(plan.decisions, 2000), chance, asked):
        router.decide(context, _anything)
    clock, decide = time.thread_time_ns, router.decide
    looking = sorted(-clock() + clock() for _ in range(1000))[500]
    for _ in range(plan.rounds):
        taken: list[int] = []
        for _ in range(plan.decisions // _TOGETHER):
            asking = list(contexts(_TOGETHER, chance, asked))
            passes: list[list[int]] = []
            for _ in range(3):
                passes.append([])
                for context in asking:
                    began = clock()
                    decide(context, _anything)
                    passes[-1].append(clock() - began)
            taken += [sorted(three)[1] - looking for three in zip(*passes, strict=True)]
        taken.sort()
        p50.append(taken[len(taken) // 2] / 1e3)
        p99.append(taken[len(taken) * 99 // 100] / 1e3)
    return p50, p99


# ---- What users leave behind ----


def left_behind(plan: Plan) -> Iterator[Figure]:
    """Bytes that Python has more of after decisions for so many users than before, by tracemalloc."""
    router = router_of(section("weighted", sticky="user"))
    chance = random.Random(2)
    for context in contexts(2000, chance):
        router.decide(context, _anything)
    gc.collect()
    tracemalloc.start()
    try:
        for context in contexts(1000, chance):
            router.decide(context, _anything)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for context in contexts(plan.users, chance):
            router.decide(context, _anything)
        del context  # pyright: ignore[reportPossiblyUnboundVariable]
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Counters and caches of a fixed size may grow a little; a user's name alone would take some hundred bytes.
    yield Figure(f"left behind by {plan.users:,} users", (after - before) / 1024, "KiB", must=Bound("<=", 64))


# ---- Admission ----


async def admissions(plan: Plan) -> Iterator[Figure]:
    """Microseconds of the hook that admits a request, as LiteLLM calls it, beside one with nothing to decide."""
    from tests.support.routing import Deployment, RoutingDesk, deployment, key

    deployments: dict[str, list[Deployment]] = {name: [deployment(name)] for name in _CANDIDATES}
    keys = {"keys": [key("ada"), key("eve", models=["smart", "plain", *_GROUPS[:20]])]}
    whole = section("cost") | keys
    few = {"tiers": whole["tiers"], "default_tier": "premium", **keys}
    two = few | {"routing": {"policies": {"smart": {"candidates": _GROUPS[:2]}}}}
    cases: Sequence[tuple[str, dict[str, Any], str, str]] = (
        ("a model, keys and tiers alone", few, "plain", "ada"),
        ("a policy of 2 candidates", two, "smart", "ada"),
        (f"{RULES} rules, {EXPERIMENTS} experiments, {CANDIDATES} candidates", whole, "smart", "ada"),
        (f"the same, a key of {CANDIDATES - 10} models", whole, "smart", "eve"),
    )
    found: dict[str, list[float]] = {name: [] for name, *_ in cases}
    for _ in range(plan.rounds):
        for name, orchestration, asked, who in cases:
            with RoutingDesk(orchestration, deployments) as desk:
                auth = desk.identity(who)

                async def ask(desk: RoutingDesk = desk, asked: str = asked, auth: Any = auth) -> None:
                    asking = await desk.ask(auth, {"model": asked, "metadata": {"task_type": "chat"}})
                    assert asking.status == 200, asking.refusal

                await _timed(ask, 20)
                found[name].append(await _timed(ask, plan.admissions))
    return iter([Figure.of(f"admission, {name}", values, "us") for name, values in found.items()])


async def _timed(ask: Callable[[], Any], count: int) -> float:
    began = time.thread_time()
    for _ in range(count):
        await ask()
    return (time.thread_time() - began) / count * 1e6


if __name__ == "__main__":
    for figure in asyncio.run(measure(QUICK)).figures:
        print(f"{figure.name}: {figure.value:.1f} {figure.unit}")
