"""Usage events a second through the journal and the ledger writer, into SQLite and into PostgreSQL, from one process.

python -m benchmarks.ledger [--events 200000] [--ordered] [--json]
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
import uuid
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import psutil

from core.journal import Journal
from core.ledger import Ledger
from core.store import open_store
from core.usage import Attempt, UsageEvent, UsageState
from tests.support.postgres import PostgresServer

_BURST = 200
_TRICKLE = 50
_TRICKLE_BATCHES = 200


@dataclass(slots=True)
class Result:
    """One run; memory in MiB of resident set, CPU (all threads) of this process alone, not of PostgreSQL's.

    `total_cpu_us` and `trickle_cpu_us` are microseconds an event from `append` to the store: under full load, and in
    batches of 50, as a proxy with 50 requests a second writes them.
    """

    store: str
    events: int
    events_per_second: float
    append_cpu_us: float
    total_cpu_us: float
    trickle_cpu_us: float
    rss_before: float
    rss_peak: float
    rss_after: float


def _id(ordered: bool) -> str:
    if not ordered:
        return str(uuid.uuid4())
    return str(uuid.UUID(int=time.time_ns() << 64 | int.from_bytes(os.urandom(8))))


def example(number: int, ordered: bool = False) -> UsageEvent:
    """An event with everything that an ordinary request fills in: some 930 bytes of JSON."""
    call = _id(ordered)
    now = int(time.time() * 1000)
    attempt = Attempt(
        1, "large", "large-1", "demo", "demo/large", now, 340, 200, None, UsageState.REPORTED, 100, 200, 9
    )
    return UsageEvent(
        request_id=call,
        time_ms=now,
        endpoint="/v1/chat/completions",
        status=200,
        instance="host-1",
        litellm_call_id=call,
        key_hash=f"{number % 97:064x}",
        key_alias="demo",
        user_id=f"user-{number % 1000}",
        team_id=f"team-{number % 20}",
        groups=("ai_team",),
        tier="premium",
        task_type="chat",
        asked_model="smart",
        used_model="large",
        deployment="large-1",
        provider="demo",
        provider_model="demo/large",
        input_tokens=100,
        output_tokens=200,
        usage=UsageState.REPORTED,
        cost_nano=9,
        price_version="2026-11",
        latency_ms=345,
        first_token_ms=50,
        streamed=True,
        attempts=[attempt],
    )


async def measure(url: str, events: int, directory: Path, ordered: bool = False) -> Result:
    """Append as fast as the loop allows while the writer runs beside it, until everything is in the store.

    Request ids are in no order, as in UUID version 4, or `ordered` by time, as in version 7.
    """
    process = psutil.Process()
    store = open_store(url)
    await store.upgrade()
    journal = Journal(directory, f"bench-{os.getpid()}")
    ledger = Ledger(journal, store.usage)
    ledger.start()
    for number in range(events, events + 5000):
        journal.append(example(number))
    await ledger.flush(60)
    made = [example(number) for number in range(2000)]
    before = peak = process.memory_info().rss
    append_cpu, started_cpu, started = 0.0, time.process_time(), time.perf_counter()
    making_cpu = 0.0
    for first in range(0, events, _BURST):
        point = time.thread_time()
        for number in range(first, min(first + _BURST, events)):
            event = made[number % len(made)]
            event.request_id = event.litellm_call_id = _id(ordered)
            made[number % len(made)] = event
        making_cpu += time.thread_time() - point
        point = time.thread_time()
        for number in range(first, min(first + _BURST, events)):
            journal.append(made[number % len(made)])
        append_cpu += time.thread_time() - point
        await asyncio.sleep(0)
        if first % 10_000 == 0:
            peak = max(peak, process.memory_info().rss)
    if not await ledger.flush(600):
        raise SystemExit(f"the store does not keep up: {ledger.status()}")
    elapsed, cpu = time.perf_counter() - started, time.process_time() - started_cpu - making_cpu
    after = process.memory_info().rss
    trickle = await _trickle(journal, ledger, ordered)
    async with store.reading() as connection:
        stored = (await connection.exec_driver_sql(f"SELECT count(*) FROM {_table(url)}")).scalar()
    expected = events + 5000 + _TRICKLE_BATCHES * _TRICKLE
    if stored != expected:
        raise SystemExit(f"{stored} events are stored, not {expected}")
    await ledger.stop()
    journal.close()
    await store.close()
    mib = 1 << 20
    return Result(
        url.partition(":")[0],
        events,
        events / elapsed,
        append_cpu / events * 1e6,
        cpu / events * 1e6,
        trickle,
        *(rss / mib for rss in (before, max(peak, after), after)),
    )


async def _trickle(journal: Journal, ledger: Ledger, ordered: bool) -> float:
    """CPU microseconds an event where 50 events make a batch."""
    cpu = 0.0
    for batch in range(_TRICKLE_BATCHES):
        made = [example(batch * _TRICKLE + number, ordered) for number in range(_TRICKLE)]
        started = time.process_time()
        for event in made:
            journal.append(event)
        await ledger.flush(60)
        cpu += time.process_time() - started
    return cpu / (_TRICKLE_BATCHES * _TRICKLE) * 1e6


def _table(url: str) -> str:
    return "usage_events" if url.startswith("sqlite") else "orchestration.usage_events"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--events", type=int, default=200_000)
    arguments.add_argument("--ordered", action="store_true", help="request ids in the order of time")
    arguments.add_argument("--json", action="store_true")
    given = arguments.parse_args()
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as name:
        results.append(
            asyncio.run(measure(f"sqlite:///{name}/bench.db", given.events, Path(name) / "sqlite", given.ordered))
        )
        with PostgresServer(durable=True) as server:
            results.append(asyncio.run(measure(server.url(), given.events, Path(name) / "postgresql", given.ordered)))
    load = f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}"
    if given.json:
        print(json.dumps({"machine": load, "results": [asdict(result) for result in results]}))
        return
    heads = ("events/s", "append us", "total us", "trickle us", "RSS before", "peak", "after")
    print(f"{'store':<12}", *(f"{head:>11}" for head in heads))
    for result in results:
        name, _events, *figures = astuple(result)
        print(f"{name:<12}", *(f"{figure:>11,.1f}" for figure in figures))
    print(load)


if __name__ == "__main__":
    main()
