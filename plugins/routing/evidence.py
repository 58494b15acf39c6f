"""What the store has on an experiment: how its units were divided at what time, and what became of them."""

import asyncio
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import orjson

from core.settings.models import Experiment
from custom_router.experiments.allocation import Ranges, buckets_of, first_ranges, from_json
from custom_router.experiments.metrics import Periods

if TYPE_CHECKING:
    from core.audit import AuditRecord
    from core.store import Store
    from core.store.allocations import Closure, StoredRanges

REOPENED = "experiment.reopen_arm"
"""What the audit calls it when an arm that was closed gets requests again. Its detail is that of `Closing.to_json`."""

_CLOCKS_MS = 60_000
"""How far the clocks of other instances may be ahead."""
_AT_A_TIME = 100
_MOST_REOPENINGS = 1000

Weights = Mapping[str, int]
"""How many buckets each variant has; 0 for an arm that is closed."""


class Closing(NamedTuple):
    """A time in which an arm got no requests. Unix milliseconds; without an end it is closed still."""

    variant: str
    closed_ms: int
    reopened_ms: int | None

    def to_json(self) -> dict[str, str | int | None]:
        return self._asdict()


@dataclass(frozen=True, slots=True)
class History:
    """How the units of an experiment were divided since it began with its present seed.

    `timeline` has each change's time (Unix milliseconds) and the weights from then on; never empty. `since_ms` is when
    the units of this seed begin, `began_ms` when buckets were first given out; None for one that never ran. `version`
    is that of the ranges in force, `moved_ms` when they came into force.
    """

    timeline: tuple[tuple[int, Weights], ...]
    ranges: Ranges
    since_ms: int = 0
    began_ms: int | None = None
    version: int = 0
    moved_ms: int = 0
    closed: Mapping[str, "Closure"] = field(default_factory=dict[str, "Closure"])
    reopened: Mapping[str, "Closure"] = field(default_factory=dict[str, "Closure"])

    @property
    def weights_changed(self) -> bool:
        return len(self.timeline) > 1


async def history_of(store: "Store", experiment: Experiment) -> History:
    """What is known of an experiment's ranges and closed arms. Raises StoreError, and ConfigError for stored ranges
    that are none."""
    every = await store.allocations.history(experiment.id)
    versions = _of_seed(every, experiment.drawn_from)
    closed = (await store.allocations.closed()).get(experiment.id, {})
    reopened = await store.allocations.reopened(experiment.id)
    last = every[-1].version if every else 0
    if not versions:
        ranges = first_ranges({variant.id: variant.weight for variant in experiment.variants})
        return History(((0, buckets_of(ranges)),), ranges, version=last, closed=closed, reopened=reopened)
    began_ms = versions[0].time_ms
    given = [(one.time_ms, from_json(one.ranges)) for one in versions]
    closings = {Closing(one.variant, one.time_ms, one.reopened_ms) for one in (*closed.values(), *reopened.values())}
    if closings:
        closings |= set(await _earlier(store, experiment.id, began_ms))
    control = experiment.variants[0].id
    return History(
        timeline=timeline_of([(at, buckets_of(ranges)) for at, ranges in given], closings, control),
        ranges=given[-1][1],
        # Requests that wait for the first ranges are older than these.
        since_ms=began_ms if len(versions) < len(every) else 0,
        began_ms=began_ms,
        version=last,
        moved_ms=versions[-1].time_ms,
        closed={name: one for name, one in closed.items() if name != control},
        reopened=reopened,
    )


async def periods_of(
    store: "Store", experiment: Experiment, history: History, now_ms: int, since_ms: int | None = None
) -> Periods:
    """The units of an experiment that came since `since_ms`, all by default, told apart by the weights of their time.

    Lets other work go on meanwhile. Raises StoreError.
    """
    from core.store.assignments import unit_totals

    periods = Periods(history.timeline)
    starts = [at for at, _ in history.timeline]
    since_ms = history.since_ms if since_ms is None else max(since_ms, history.since_ms)
    models = {variant.id: variant.model for variant in experiment.variants if variant.model is not None}
    count = 0
    async with aclosing(unit_totals(store, experiment.id, since_ms, now_ms + _CLOCKS_MS, models)) as units:
        async for unit in units:
            _, weights = history.timeline[max(0, bisect_right(starts, unit.first_ms) - 1)]
            # An instance that learns of a closing a moment later gives out units that nothing can be compared with.
            if weights.get(unit.variant, 0) > 0:
                periods.add(unit)
            count += 1
            if count % _AT_A_TIME == 0:
                await asyncio.sleep(0)
    return periods


def timeline_of(
    given: Sequence[tuple[int, Weights]], closings: Iterable[Closing], control: str
) -> tuple[tuple[int, Weights], ...]:
    """When which weights began: those `given` out, with 0 for an arm while it is closed. The control never is."""
    changes: list[tuple[int, int, Weights | Closing]] = [(at, 0, weights) for at, weights in given]
    for one in closings:
        if one.variant != control:
            changes.append((one.closed_ms, 1, one))
            if one.reopened_ms is not None:
                changes.append((one.reopened_ms, 2, one))
    began_ms = given[0][0]
    weights: Weights = given[0][1]
    closed: dict[str, int] = {}
    found: list[tuple[int, Weights]] = []
    for at, kind, change in sorted(changes, key=lambda change: change[:2]):
        if isinstance(change, Closing):
            closed[change.variant] = closed.get(change.variant, 0) + (1 if kind == 1 else -1)
        else:
            weights = change
        now = {variant: 0 if closed.get(variant) else count for variant, count in weights.items()}
        if at <= began_ms:
            found = [(began_ms, now)]
        elif now != found[-1][1]:
            found.append((at, now))
    return tuple(found)


def _of_seed(versions: Sequence["StoredRanges"], seed: str) -> list["StoredRanges"]:
    """The last of the versions that are of this seed, without one of another between them."""
    found: list[StoredRanges] = []
    for one in reversed(versions):
        if one.seed != seed:
            break
        found.insert(0, one)
    return found


async def _earlier(store: "Store", experiment: str, since_ms: int) -> Iterator[Closing]:
    """Closings that ended: of each arm the store itself keeps the last alone."""
    from core.store import AuditQuery

    asked = AuditQuery(since_ms, 1 << 62, subject=f"experiments/{experiment}", action=REOPENED, limit=_MOST_REOPENINGS)
    page = await store.audit.query(asked)
    return (closing for entry in page.entries if (closing := _closing(entry.record)) is not None)


def _closing(record: "AuditRecord") -> Closing | None:
    try:
        return Closing(**orjson.loads(record.detail))
    except (ValueError, TypeError):
        return None
