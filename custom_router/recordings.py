"""A simulation over what a store has recorded: in pieces, by as many processes as there are cores."""

import asyncio
import gc
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from core.settings import Settings
from custom_router.candidates import Candidate
from custom_router.experiments.agreed import read_agreed
from custom_router.simulation import SECTIONS, Proposal, Simulator, Tally

if TYPE_CHECKING:
    from core.store import Store

_CHUNK = 10_000


@dataclass(frozen=True, slots=True)
class Span:
    """Requests from `since_ms` up to, not including, `until_ms` (Unix milliseconds); `requests` are how many."""

    since_ms: int
    until_ms: int
    requests: int


async def spans(store: "Store", since_ms: int, until_ms: int, most: int | None = None) -> list[Span]:
    """The recorded requests of a period, no more than the newest `most`, in pieces of about `_CHUNK`, the oldest first.
    Raises StoreError."""
    from sqlalchemy import text

    from core.store.tables import SCHEMA

    table = "usage_events" if store.is_sqlite else f"{SCHEMA}.usage_events"
    within = f"FROM {table} WHERE time_ms >= :since AND time_ms < :until"
    limits = {"since": since_ms, "until": until_ms}
    async with store.reading() as connection:
        if most is not None:
            beyond = text(f"SELECT time_ms {within} ORDER BY time_ms DESC LIMIT 1 OFFSET :most")
            last = (await connection.execute(beyond, {**limits, "most": most})).scalar()
            if last is not None:
                since_ms = limits["since"] = int(last) + 1
        total = int((await connection.execute(text(f"SELECT count(*) {within}"), limits)).scalar() or 0)
        numbered = f"SELECT time_ms, row_number() OVER (ORDER BY time_ms DESC) AS place {within}"
        every = text(f"SELECT time_ms, place FROM ({numbered}) AS numbered WHERE place % :chunk = 0 ORDER BY place")  # noqa: S608
        rows = (await connection.execute(every, {**limits, "chunk": _CHUNK})).all()
    found: list[Span] = []
    end, before = until_ms, 0
    for time_ms, place in rows:
        if time_ms < end:
            found.append(Span(int(time_ms), end, int(place) - before))
            end, before = int(time_ms), int(place)
    if total > before:
        found.append(Span(since_ms, end, total - before))
    return found[::-1]


async def measurements(
    store: "Store", since_ms: int, until_ms: int
) -> tuple[dict[tuple[str, bool], float], dict[tuple[str, str | None], int]]:
    """Median latencies and mean lengths of answers, as `Measured` takes them. Raises StoreError."""
    good = {"error": None}
    timed = await store.usage.usage_report(since_ms, until_ms, ("model", "streamed"), good)
    latency: dict[tuple[str, bool], float] = {}
    for row in timed.rows:
        model, streamed = row.key
        took = row.usage.first_token_p50_ms if streamed else row.usage.latency_p50_ms
        if isinstance(model, str) and took is not None:
            latency[model, bool(streamed)] = took
    answered = await store.usage.usage_report(since_ms, until_ms, ("model", "task_type"), good)
    tokens: dict[tuple[str, str | None], list[int]] = {}
    for row in answered.rows:
        model, task = row.key
        if isinstance(model, str):
            for one in {None if task is None else str(task), None}:
                sums = tokens.setdefault((model, one), [0, 0])
                sums[0] += row.usage.output_tokens
                sums[1] += row.usage.requests
    return latency, {key: round(total / count) for key, (total, count) in tokens.items() if count}


async def prepared(
    store: "Store",
    sections: Mapping[str, Any],
    candidates: Mapping[str, Candidate],
    since_ms: int,
    until_ms: int,
    most: int | None = None,
) -> tuple[Proposal, tuple[Span, ...]]:
    """A proposal with what the store knows that it takes to try it out, and the requests to try it on: those of the
    period, of more than `most` the newest. Raises StoreError, and ConfigError for stored ranges that are none."""
    wanted = tuple(await spans(store, since_ms, until_ms, most))
    newest = wanted[-_MEASURED:]
    latency, output = await measurements(store, newest[0].since_ms, until_ms) if newest else ({}, {})
    agreed = await read_agreed(store, Settings.model_validate(sections).routing.experiments)
    proposal = Proposal(
        {name: sections[name] for name in SECTIONS if name in sections},
        candidates,
        ranges=agreed.stored,
        closed=agreed.closed,
        latency_ms=latency,
        output_tokens=output,
        had_tiers=bool(wanted) and await _had_tiers(store, wanted[0].since_ms, until_ms),
    )
    return proposal, wanted


_MEASURED = 2
"""The newest spans, of which latencies and lengths of answers are taken."""


async def _had_tiers(store: "Store", since_ms: int, until_ms: int) -> bool:
    from sqlalchemy import select

    from core.store.tables import usage_events

    of = usage_events.c
    known = select(of.tier).where(of.time_ms >= since_ms, of.time_ms < until_ms, of.tier.is_not(None)).limit(1)
    async with store.reading() as connection:
        return (await connection.execute(known)).first() is not None


@dataclass(frozen=True, slots=True)
class Job:
    """What to try out, on the requests of which store. `sample` is the share of them that is looked at, 0 to 1."""

    proposal: Proposal
    store: str = field(repr=False)
    spans: tuple[Span, ...]
    sample: float = 1.0


def run(job: Job, workers: int = 1, progress: Callable[[int], None] | None = None) -> Tally:
    """The job done, by as many processes; `progress` is told how many requests each step had. Raises StoreError."""
    found = Tally()
    if workers <= 1 or len(job.spans) <= 1:
        with _Reader(job) as reader:
            for span in job.spans:
                found.add(reader.tally(span))
                if progress is not None:
                    progress(span.requests)
        return found
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    # Forked, they would have a copy of locks that threads of this process hold.
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin, (job,)) as pool:
        asked = {pool.submit(_tally, span): span for span in job.spans}
        try:
            for done in as_completed(asked):
                found.add(done.result())
                if progress is not None:
                    progress(asked[done].requests)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


class _Reader:
    """A process's part: the store open, the proposal compiled."""

    def __init__(self, job: Job) -> None:
        from core.store import open_store

        self._simulator = Simulator(job.proposal)
        self._sample = job.sample
        self._runner = asyncio.Runner()
        self._store = open_store(job.store)

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._store.close())
        self._runner.close()

    def tally(self, span: Span) -> Tally:
        return self._runner.run(self._tally(span))

    async def _tally(self, span: Span) -> Tally:
        found = Tally()
        drawn = random.Random(span.since_ms).random  # noqa: S311 - the same sample each time
        async for rows in self._store.usage.replay(span.since_ms, span.until_ms):
            chosen = rows if self._sample >= 1 else [row for row in rows if drawn() < self._sample]
            found.add(self._simulator.tally(chosen))
        return found


_reader: _Reader | None = None


def _begin(job: Job) -> None:
    """What this process does makes no cycles, and looking for them takes a tenth of its time."""
    global _reader
    gc.disable()
    _reader = _Reader(job)


def _tally(span: Span) -> Tally:
    assert _reader is not None
    return _reader.tally(span)
