"""Whether the books survive: a proxy under load is killed, or told to stop, in the middle, and comes back.

    python -m benchmarks durability [--requests 20000]

Clients keep what they received, the proxy's store what it recorded; in the end the two are laid side by side.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.client import Answer, Connection, Interrupted, post
from benchmarks.figures import Bound, Figure, Result
from benchmarks.rivals import Rival, with_ours
from core.money import nano_dollars
from tests.support.eventually import eventually
from tests.support.provider import ProviderProcess

CONNECTIONS = 64
REQUESTS = 20_000

Blow = Literal["SIGKILL", "SIGTERM"]

_STREAM_EVERY = 4
_FINAL_COST = re.compile(rb'"cost":\s?([0-9.eE+-]+)')


@dataclass(slots=True)
class Received:
    """What the clients know in the end."""

    costs: dict[str, int] = field(default_factory=dict[str, int])
    """Nano-dollars of every answer that arrived in full, by its request id."""
    repeated: int = 0
    """Answers that bore the request id of another."""
    interrupted: int = 0
    """Requests that were sent and never answered in full."""
    refused: int = 0
    """Answers other than 200: the proxy was on its way down."""

    def note(self, answer: Answer) -> None:
        if answer.status != 200:
            self.refused += 1
            return
        request_id = answer.headers[b"x-orchestration-request-id"].decode()
        self.repeated += request_id in self.costs
        self.costs[request_id] = _cost(answer)


def _cost(answer: Answer) -> int:
    """Nano-dollars, from the header, or from the last usage of a stream."""
    header = answer.headers.get(b"x-orchestration-cost")
    if header is None:
        *_, last = _FINAL_COST.findall(answer.body)
        header = last
    return nano_dollars(header.decode())


@dataclass(frozen=True, slots=True)
class Books:
    """What the store holds in the end."""

    costs: dict[str, int]
    """Nano-dollars of every usage event, by its request id."""
    attempts_cost: int
    calls_twice: int
    """Events beyond the first for one and the same call of LiteLLM's."""

    @classmethod
    def read(cls, folder: Path) -> Books:
        with closing(sqlite3.connect(folder / "orchestration.db", timeout=30)) as database:
            costs = dict(database.execute("SELECT request_id, cost_nano FROM usage_events"))
            ask = "SELECT count(*) - count(DISTINCT litellm_call_id) FROM usage_events"
            [twice] = database.execute(ask).fetchone()
            [attempts] = database.execute("SELECT coalesce(sum(cost_nano), 0) FROM usage_attempts").fetchone()
        return cls(costs, attempts, twice)


@dataclass(frozen=True, slots=True)
class Reckoning:
    """Both sides' books, laid side by side."""

    blow: Blow
    received: Received
    books: Books
    in_flight: int
    """Requests without an answer when the blow fell."""
    left_in_journal: int
    """Events that were in the journal's files, not yet known to be in the store, while no process was there."""
    attempts: int
    """Requests that reached the provider."""
    down: float
    """Seconds from SIGKILL until an answer was received again, or from SIGTERM until the process had ended."""
    rate: float
    """Answers a second, that time left out."""

    @property
    def missing(self) -> set[str]:
        """Answers received that the store knows nothing of."""
        return self.received.costs.keys() - self.books.costs.keys()

    @property
    def unheard(self) -> set[str]:
        """Events of answers that no client received in full."""
        return self.books.costs.keys() - self.received.costs.keys()

    @property
    def cost_difference(self) -> int:
        """Nano-dollars between what the answers said they cost and what their events say."""
        heard = sum(cost for name, cost in self.books.costs.items() if name in self.received.costs)
        return sum(self.received.costs.values()) - heard


async def reckon(requests: int = REQUESTS, connections: int = CONNECTIONS, blow: Blow = "SIGKILL") -> Reckoning:
    """Run it: the blow falls when half of `requests` answers are received.

    After SIGKILL the proxy is started again and the clients go on until they have them all; SIGTERM is the end.
    """
    with ExitStack() as stack:
        provider = stack.enter_context(ProviderProcess(itemised=False))
        proxy = Rival(with_ours(provider.url))
        stack.callback(proxy.close)
        proxy.start()
        crowd = _Crowd(proxy, requests)
        begun = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for number in range(connections):
                tasks.create_task(crowd.keep_asking(number))
            fallen = tasks.create_task(_strike(crowd, blow, requests // 2))
        in_flight, left, down = fallen.result()
        elapsed = time.perf_counter() - begun
        # In order, so that what is still in the journal gets into the store.
        await asyncio.to_thread(proxy.stop)
        books, attempts = Books.read(proxy.cwd), provider.totals.attempts
        rate = len(crowd.received.costs) / (elapsed - down)
        return Reckoning(blow, crowd.received, books, in_flight, left, attempts, down, rate)


class _Crowd:
    """The clients, who go on as soon as there is somebody to ask."""

    def __init__(self, proxy: Rival, wanted: int) -> None:
        self.proxy = proxy
        self.wanted = wanted
        self.received = Received()
        self.in_flight = 0
        self.back: float | None = None
        bodies = [{"model": "small", "messages": [{"role": "user", "content": f"Question {n}"}]} for n in range(100)]
        for body in bodies[::_STREAM_EVERY]:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        self._requests = [post("/v1/chat/completions", body, proxy.user_key) for body in bodies]

    @property
    def done(self) -> bool:
        return len(self.received.costs) + self.in_flight >= self.wanted

    async def keep_asking(self, number: int) -> None:
        connection: Connection | None = None
        while len(self.received.costs) < self.wanted:
            if self.done:
                await asyncio.sleep(0.01)  # somebody else's answer may still fail to come
                continue
            if connection is None:
                try:
                    connection = await Connection.open(self.proxy.port)
                except OSError:
                    await asyncio.sleep(0.05)
                    continue
            number += 1
            connection = await self._ask(connection, self._requests[number % len(self._requests)])
        if connection is not None:
            connection.close()

    async def _ask(self, connection: Connection, request: bytes) -> Connection | None:
        self.in_flight += 1
        try:
            self.received.note(await connection.ask(request))
            self.back = self.back or time.perf_counter()
            return connection
        except Interrupted:
            self.received.interrupted += 1
            return None
        finally:
            self.in_flight -= 1


async def _strike(crowd: _Crowd, blow: Blow, after: int) -> tuple[int, int, float]:
    """Let the blow fall; requests in flight, events left in the journal, and seconds as in `Reckoning.down`."""
    await eventually(lambda: len(crowd.received.costs) >= after, within=3600, what="half of the answers")
    in_flight, at = crowd.in_flight, time.perf_counter()
    proxy, journal = crowd.proxy, crowd.proxy.cwd / ".orchestration" / "journal"
    if blow == "SIGTERM":
        await asyncio.to_thread(proxy.stop)
        crowd.wanted = 0
        return in_flight, _journal_lines(journal), time.perf_counter() - at
    await asyncio.to_thread(proxy.kill)
    left, crowd.back = _journal_lines(journal), None
    await asyncio.to_thread(proxy.start)
    back = await eventually(lambda: crowd.back, within=30, what="an answer after the restart")
    return in_flight, left, back - at


def _journal_lines(directory: Path) -> int:
    """Events in the files that the store has not acknowledged."""
    lines = 0
    for path in directory.glob("*.jsonl"):
        mark = path.with_suffix(".ack")
        acknowledged = int(mark.read_text() or 0) if mark.exists() else 0
        lines += path.read_bytes()[acknowledged:].count(b"\n")
    return lines


# ---- As a benchmark ----


def figures_of(found: Reckoning) -> Iterator[Figure]:
    """What must hold, and what it took."""
    nothing = Bound("==", 0)

    def name(text: str) -> str:
        return f"{found.blow}: {text}"

    yield Figure(name("answers received"), len(found.received.costs))
    yield Figure(name("of these not in the store"), len(found.missing), must=nothing)
    yield Figure(name("recorded twice"), found.books.calls_twice + found.received.repeated, must=nothing)
    yield Figure(name("events without a received answer"), len(found.unheard), must=Bound("<=", found.in_flight))
    yield Figure(name("cost difference"), found.cost_difference, "nano-dollars", must=nothing)
    difference = sum(found.books.costs.values()) - found.books.attempts_cost
    yield Figure(name("cost of events less that of attempts"), difference, "nano-dollars", must=nothing)
    yield Figure(name("reached the provider, not recorded"), found.attempts - len(found.books.costs))
    must = nothing if found.blow == "SIGTERM" else None
    yield Figure(name("events left in the journal meanwhile"), found.left_in_journal, must=must)
    yield Figure(name("seconds away" if found.blow == "SIGKILL" else "seconds to stop"), found.down, "s")
    yield Figure(name("rate"), found.rate, "requests/s")


async def measure(requests: int = REQUESTS, connections: int = CONNECTIONS) -> Result:
    """Once with SIGKILL, and once, with a tenth of the requests, with SIGTERM."""
    begun = time.perf_counter()
    figures = [*figures_of(await reckon(requests, connections, "SIGKILL"))]
    figures += figures_of(await reckon(max(requests // 10, 2 * connections), connections, "SIGTERM"))
    return Result("durability", figures, time.perf_counter() - begun)
