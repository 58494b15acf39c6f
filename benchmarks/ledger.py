"""Usage events a second through the journal and the ledger writer, into SQLite and into PostgreSQL, from one process.

python -m benchmarks.ledger [--events 200000] [--json]
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from core.journal import Journal
from core.ledger import Ledger
from core.store import open_store
from core.usage import Attempt, UsageEvent, UsageState
from tests.support.postgres import PostgresServer

_BURST = 200


@dataclass(slots=True)
class Result:
    """One run; memory in MiB of resident set, CPU of this process alone (not of PostgreSQL's)."""

    store: str
    events: int
    events_per_second: float
    append_cpu_us: float
    total_cpu_us: float
    rss_before: float
    rss_peak: float
    rss_after: float


def example(number: int) -> UsageEvent:
    """An event with everything that an ordinary request fills in: some 930 bytes of JSON."""
    call = f"{number:012x}-7c1e-4b6f-9a53-000000000000"
    now = int(time.time() * 1000)
    attempt = Attempt(
        1, "large", "large-1", "demo", "demo/large", now, 340, 200, None, UsageState.REPORTED, 100, 200, 9
    )
    return UsageEvent(
        request_id=f"req-{call}",
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


async def measure(url: str, events: int, directory: Path) -> Result:
    """Append as fast as the loop allows while the writer runs beside it, until everything is in the store."""
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
            event.request_id = event.litellm_call_id = f"req-{number:012x}-7c1e-4b6f-9a53"
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
    async with store.reading() as connection:
        stored = (await connection.exec_driver_sql(f"SELECT count(*) FROM {_table(url)}")).scalar()
    if stored != events + 5000:
        raise SystemExit(f"{stored} events are stored, not {events + 5000}")
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
        *(rss / mib for rss in (before, max(peak, after), after)),
    )


def _table(url: str) -> str:
    return "usage_events" if url.startswith("sqlite") else "orchestration.usage_events"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--events", type=int, default=200_000)
    arguments.add_argument("--json", action="store_true")
    given = arguments.parse_args()
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as name:
        results.append(asyncio.run(measure(f"sqlite:///{name}/bench.db", given.events, Path(name) / "sqlite")))
        with PostgresServer(durable=True) as server:
            results.append(asyncio.run(measure(server.url(), given.events, Path(name) / "postgresql")))
    if given.json:
        print(json.dumps([asdict(result) for result in results]))
        return
    print(f"{'store':<12}{'events/s':>10}{'append us':>11}{'total us':>10}{'RSS before':>12}{'peak':>8}{'after':>8}")
    for result in results:
        speed = f"{result.events_per_second:>10,.0f}{result.append_cpu_us:>11.1f}{result.total_cpu_us:>10.1f}"
        memory = f"{result.rss_before:>10.0f} M{result.rss_peak:>6.0f} M{result.rss_after:>6.0f} M"
        print(f"{result.store:<12}{speed}{memory}")


if __name__ == "__main__":
    main()
