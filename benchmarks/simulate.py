"""How long it takes to try a configuration out on recorded requests: from opening the store to the comparison.

python -m benchmarks.simulate [--requests 1000000]

The proposal has 8 models, 20 rules, 4 experiments, 2 policies, 3 tiers and 3 budgets, one of them for each user.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import resource
import tempfile
import time
from collections.abc import AsyncIterator
from typing import Any

from benchmarks.figures import Bound, Figure, Result
from core.store import Store, open_store
from core.usage import UsageEvent, UsageState
from custom_router.candidates import Candidate
from custom_router.comparison import compared
from custom_router.recordings import Job, prepared, run
from tests.support.postgres import PostgresServer

REQUESTS = 1_000_000
SECONDS = 60.0
_BATCH = 5_000
_DAYS = 7
_BEGIN_MS = 1_767_225_600_000
_MODELS = tuple(f"model-{number}" for number in range(8))
_TASKS = ("chat", "coding", "analysis", "summary", None)
_TIERS = ("free", "standard", "premium")

CANDIDATES = {
    name: Candidate(name, number % 3 + 1, input_nano=200.0 * (number + 1), output_nano=800.0 * (number + 1))
    for number, name in enumerate(_MODELS)
}
SECTIONS: dict[str, Any] = {
    "tiers": {
        "free": {"models": ["model-0", "model-1", "model-2"]},
        "standard": {"models": ["model-[0-5]"]},
        "premium": {"models": ["*"]},
    },
    "default_tier": "free",
    "routing": {
        "policies": {
            "smart": {"candidates": list(_MODELS), "objective": "cost"},
            "quick": {"candidates": list(_MODELS[:4]), "objective": "balanced", "sticky": "session"},
        },
        "rules": [
            *(
                {"id": f"app-{number}", "when": f"metadata.app == 'app-{number}' && input_tokens > 4000", "prefer": [m]}
                for number, m in enumerate(_MODELS)
            ),
            *({"id": f"user-{number}", "when": {"user_id": f"user-{number}"}, "use": [m]} for number, m in
              enumerate(_MODELS)),
            {"id": "code", "when": "task_type == 'coding' && input_tokens > 6000", "prefer": ["model-5"]},
            {"id": "night", "when": "hour < 6", "prefer": ["model-1"]},
            {"id": "images", "when": "has_images", "exclude": ["model-2"]},
            {"id": "no-analysis", "when": {"task_type": "analysis", "user_tier": "free"}, "deny": "Not for free."},
        ],
        "match": "all",
        "experiments": [
            {
                "id": f"experiment-{number}",
                "policy": "smart",
                "traffic": 0.5,
                "variants": [{"id": "control", "model": first}, {"id": "treatment", "model": second}],
                "status": "running",
            }
            for number, (first, second) in enumerate([_MODELS[0:2], _MODELS[1:3], _MODELS[0:3:2], _MODELS[3:5]])
        ],
    },
    "budgets": [
        {"budget_id": "each", "per": "user", "total_budget": 0.5, "reset_period": "DAILY"},
        {"budget_id": "all", "total_budget": 10_000},
        {"budget_id": "code", "task_types": ["coding"], "total_budget": 500, "reset_period": "WEEKLY"},
    ],
}  # fmt: skip


async def measure(requests: int = REQUESTS) -> Result:
    """On SQLite and on PostgreSQL, with a process for each core."""
    begun = time.perf_counter()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as name, PostgresServer() as server:
        for kind, url in (("sqlite", f"sqlite:///{name}/bench.db"), ("postgresql", server.url())):
            async for figure in _measured(kind, url, requests):
                figures.append(figure)
    return Result("simulate", figures, time.perf_counter() - begun)


async def _measured(kind: str, url: str, requests: int) -> AsyncIterator[Figure]:
    store = open_store(url)
    await store.upgrade()
    await fill(store, requests)
    await store.close()
    cpu, started = _cpu(), time.perf_counter()
    found, seconds = await asyncio.to_thread(_simulated, url)
    cpu, whole = _cpu() - cpu, time.perf_counter() - started
    if found["requests"] != requests:
        raise SystemExit(f"{found['requests']} requests were looked at, not {requests}")
    scale = REQUESTS / requests
    yield Figure(f"{kind}: {requests:,} requests", whole, "s", must=Bound("<=", SECONDS / scale))
    yield Figure(f"{kind}: preparing", seconds, "s")
    yield Figure(f"{kind}: CPU a request, all processes", cpu / requests * 1e6, "us")


def _simulated(url: str) -> tuple[dict[str, Any], float]:
    started = time.perf_counter()

    async def begin() -> Any:
        store = open_store(url)
        try:
            return await prepared(store, SECTIONS, CANDIDATES, 0, _BEGIN_MS * 2)
        finally:
            await store.close()

    proposal, spans = asyncio.run(begin())
    seconds = time.perf_counter() - started
    tally = run(Job(proposal, url, spans), os.cpu_count() or 1)
    return compared(tally, proposal.settings, spans), seconds


async def fill(store: Store, requests: int) -> None:
    """Recorded requests of a week, of 10,000 users."""
    drawn = random.Random(1)
    step = _DAYS * 86_400_000 / requests
    for first in range(0, requests, _BATCH):
        places = range(first, min(first + _BATCH, requests))
        await store.usage.write([_event(place, _BEGIN_MS + int(place * step), drawn) for place in places])


def _event(place: int, time_ms: int, drawn: random.Random) -> UsageEvent:
    user, model = drawn.randrange(10_000), drawn.choice(_MODELS[:3])
    refused = drawn.random() < 0.02
    tokens, length = drawn.randrange(20, 12_000), drawn.randrange(10, 1500)
    return UsageEvent(
        request_id=f"{drawn.getrandbits(128):032x}",
        time_ms=time_ms,
        endpoint="chat_completions",
        status=403 if refused else 200,
        key_hash=f"{user % 500:064x}",
        user_id=f"user-{user}",
        team_id=f"team-{user % 50}",
        groups=("ai_team",) if user % 3 else (),
        tier=_TIERS[user % 3],
        task_type=drawn.choice(_TASKS),
        priority=2,
        session_id=f"session-{place // 7}",
        asked_model="smart" if place % 4 else "quick",
        used_model=None if refused else model,
        error_class="ModelNotAllowed" if refused else None,
        input_tokens=0 if refused else tokens,
        output_tokens=0 if refused else length,
        usage=UsageState.NONE if refused else UsageState.REPORTED,
        cost_nano=0 if refused else tokens * 200 + length * 800,
        latency_ms=300 + drawn.randrange(2000),
        policy="smart" if place % 4 else "quick",
        route="priority",
        traits=f'{{"t":{tokens},"o":2000,"m":{{"app":"app-{user % 12}"}}}}',
        settings="0" * 64,
    )


def _cpu() -> float:
    """Seconds, of this process and of those that it waited for."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--requests", type=int, default=REQUESTS)
    given = arguments.parse_args()
    result = asyncio.run(measure(given.requests))
    for figure in result.figures:
        print(f"{figure.name:<45} {figure.value:>12,.2f} {figure.unit}  {figure.must or ''}")


if __name__ == "__main__":
    main()
