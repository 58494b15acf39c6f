"""Experiments while they run: arms that do harm are closed, a wrong split is told, units go to what does better."""

import asyncio
import logging
import pickle
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

from core import child
from core.alerts import Alert
from core.audit import AuditRecord
from core.errors import ConfigError, StatisticsMissing, StoreError
from core.settings.models import AlertEvent, Allocation, Experiment, ExperimentStatus
from custom_router.experiments.allocation import Ranges, bucket_counts, buckets_moved, buckets_of, moved, to_json
from custom_router.experiments.bandit import thompson_weights
from custom_router.experiments.guardrails import broken
from custom_router.experiments.hashing import BUCKETS
from custom_router.experiments.metrics import Period, Periods
from custom_router.experiments.split import split_of
from plugins import route
from plugins.routing.evidence import REOPENED, Closing, History, Weights, history_of, periods_of
from plugins.routing.results_process import Order
from plugins.routing.service import ROUTING

if TYPE_CHECKING:
    from core.runtime import Runtime
    from core.store import Store

_LOG = logging.getLogger("orchestration.experiments")

CLOSED = "experiment.close_arm"
"""What the audit calls it when a guardrail closes an arm."""
LOOK_EVERY = 20.0
"""Seconds between two looks at the experiments that run, unless one takes long."""
MOVE_EVERY = 300.0
"""Seconds that weights stay as they are at the least with `allocation: thompson`."""
WORTH_MOVING = BUCKETS // 50
"""Buckets that must change hands: each change begins a period, and draws differ by half a percent."""

_REST = 4.0
_LONGEST_PAUSE = 300.0
_RESULTS_WITHIN = 60.0


class Experiments:
    """The experiments of one configuration, as one worker looks after them. All workers may: what they find out is the
    same, and the store takes each change from the first alone.

    `raise_` takes an alert, at once and without waiting.
    """

    def __init__(self, runtime: "Runtime", raise_: Callable[[Alert], None]) -> None:
        self._runtime = runtime
        self._raise = raise_
        self._mismatched: set[str] = set()
        self._failing = False

    async def run(self, store: "Store") -> None:
        """Look after the experiments until cancelled. It takes a fifth of a processor at most, however many units there
        are."""
        loop = asyncio.get_running_loop()
        while True:
            begun = loop.time()
            try:
                await self.look(store)
                self._failing = False
            except (StoreError, ConfigError) as error:
                if not self._failing:
                    _LOG.warning("experiments cannot be looked after: %s", error)
                self._failing = True
            except Exception:  # a bug of ours must not end what watches over guardrails
                _LOG.exception("looking after experiments failed in a way it should not")
            await asyncio.sleep(min(_LONGEST_PAUSE, max(LOOK_EVERY, _REST * (loop.time() - begun))))

    async def look(self, store: "Store") -> None:
        """Judge each experiment that runs, once. Raises StoreError."""
        now_ms = int(self._runtime.clock() * 1000)
        for experiment in self._runtime.settings.routing.experiments:
            if _runs(experiment, now_ms):
                await self._judge(store, experiment, now_ms)

    async def _judge(self, store: "Store", experiment: Experiment, now_ms: int) -> None:
        history = await history_of(store, experiment)
        if history.began_ms is None:
            return
        periods = await periods_of(store, experiment, history, now_ms)
        self._tell_mismatch(experiment, periods.all, now_ms)
        if experiment.metrics.stop_arms and experiment.metrics.guardrails:
            await self._guard(store, experiment, history, periods, now_ms)
        due = now_ms - history.moved_ms >= MOVE_EVERY * 1000
        if experiment.allocation is Allocation.THOMPSON and due:
            await self._move(store, experiment, history, periods)

    # -- guardrails ------------------------------------------------------------------------------------------------

    async def _guard(
        self, store: "Store", experiment: Experiment, history: History, periods: Periods, now_ms: int
    ) -> None:
        """Close the arms that surely break a guardrail; of one that was reopened only what came since counts."""
        found = {arm: why for arm, why in broken(experiment, periods.all).items() if arm not in history.reopened}
        for arm, closure in history.reopened.items():
            assert closure.reopened_ms is not None
            since = await periods_of(store, experiment, history, now_ms, closure.reopened_ms)
            if (why := broken(experiment, since.all).get(arm)) is not None:
                found[arm] = why
        for arm, why in found.items():
            # The control is what the others are measured by.
            if arm not in history.closed and await store.allocations.close(experiment.id, arm, why):
                await self._closed(experiment, arm, why, now_ms)

    async def _closed(self, experiment: Experiment, arm: str, why: str, now_ms: int) -> None:
        _LOG.warning("arm %s of experiment %s gets no more requests: %s", arm, experiment.id, why)
        details = {"experiment": experiment.id, "variant": arm, "reason": why}
        self._raise(
            Alert(
                AlertEvent.EXPERIMENT_ARM_STOPPED,
                experiment.id,
                f"The arm {arm!r} of the experiment {experiment.id!r} gets no more requests: {why}.",
                details=details,
                dedupe_key=f"{AlertEvent.EXPERIMENT_ARM_STOPPED.value}|{experiment.id}|{arm}|{now_ms}",
                time_ms=now_ms,
                severity="critical",
            )
        )
        await tell(self._runtime)
        detail = orjson.dumps({"variant": arm, "reason": why}).decode()
        await self._runtime.note(
            AuditRecord(now_ms, "guardrail", CLOSED, f"experiments/{experiment.id}", detail=detail)
        )

    # -- the split -------------------------------------------------------------------------------------------------

    def _tell_mismatch(self, experiment: Experiment, periods: Sequence[Period], now_ms: int) -> None:
        """Say once that units are surely not divided as was meant."""
        key = f"{AlertEvent.EXPERIMENT_MISMATCH.value}|{experiment.id}|{experiment.drawn_from}"
        if key in self._mismatched or not (split := split_of(periods)).sure:
            return
        self._mismatched.add(key)
        units = {variant.id: _units(periods, variant.id) for variant in experiment.variants}
        counts = " : ".join(f"{variant} {count}" for variant, count in units.items())
        self._raise(
            Alert(
                AlertEvent.EXPERIMENT_MISMATCH,
                experiment.id,
                f"The units of the experiment {experiment.id!r} are not divided as its weights say ({counts}); "
                "its results do not hold.",
                details={"experiment": experiment.id, "units": units, "p_value": split.always_valid},
                dedupe_key=key,
                time_ms=now_ms,
            )
        )

    # -- the bandit ------------------------------------------------------------------------------------------------

    async def _move(self, store: "Store", experiment: Experiment, history: History, periods: Periods) -> None:
        """Give units to what does better. Of two workers that do, the second finds the version taken."""
        shares = thompson_weights(experiment, periods.all, seed=history.version)
        if shares.keys() != {variant for variant, _ in history.ranges}:
            return  # of other variants than the ranges: those are to be moved by the change of the configuration
        wanted = moved(history.ranges, weights_of(history.ranges, shares, history.closed))
        count = buckets_moved(history.ranges, wanted)
        if count < WORTH_MOVING:
            return
        if await store.allocations.put(experiment.id, experiment.drawn_from, to_json(wanted), history.version):
            share = count / BUCKETS
            _LOG.info("experiment %s: %.0f %% of the units move to what does better", experiment.id, 100 * share)
            await tell(self._runtime)


def weights_of(ranges: Ranges, shares: Mapping[str, float], closed: Mapping[str, object]) -> Weights:
    """How many buckets each variant is to have. Arms that are closed keep theirs, so that their units, which are not
    counted any more, do not come to other arms, which are."""
    held = buckets_of(ranges)
    kept = {variant: held[variant] for variant in held if variant in closed}
    room = BUCKETS - sum(kept.values())
    given = bucket_counts({variant: share for variant, share in shares.items() if variant not in closed})
    scaled = {variant: count * room // BUCKETS for variant, count in given.items()}
    if scaled:
        scaled[max(scaled, key=lambda variant: scaled[variant])] += room - sum(scaled.values())
    return {variant: kept.get(variant, scaled.get(variant, 0)) for variant in held}


async def reopen(runtime: "Runtime", store: "Store", experiment: str, variant: str, actor: str) -> bool:
    """Let a closed arm have requests again; False where it is not closed. Raises StoreError."""
    if not await store.allocations.reopen(experiment, variant):
        return False
    closure = (await store.allocations.reopened(experiment)).get(variant)
    if closure is not None:
        closing = Closing(variant, closure.time_ms, closure.reopened_ms)
        detail = orjson.dumps(closing.to_json()).decode()
        time_ms = int(runtime.clock() * 1000)
        await runtime.note(AuditRecord(time_ms, actor, REOPENED, f"experiments/{experiment}", detail=detail))
    await tell(runtime)
    return True


async def tell(runtime: "Runtime") -> None:
    """Have all instances look at what is agreed on about experiments, now."""
    if route.routing is not None:
        await route.routing.hear({})
    if runtime.signals is not None:
        await runtime.signals.tell(ROUTING, {})


async def results_of(experiment: Experiment, periods: Periods, now_ms: int) -> dict[str, Any]:
    """`custom_router.experiments.statistics.Results` as JSON, worked out in a process of its own.

    Raises StatisticsMissing where gbstats is not installed.
    """
    now = datetime.fromtimestamp(now_ms / 1000, UTC)
    order = Order(experiment.model_dump(mode="json"), periods.all, now, periods.crossed)
    async with _one_at_a_time:
        said = await _worked_out(await asyncio.to_thread(pickle.dumps, order))
    if "missing" in said:
        raise StatisticsMissing(said["missing"])
    found: dict[str, Any] = said["results"]
    return found


async def _worked_out(order: bytes) -> dict[str, Any]:
    answered = await child.ask(
        "plugins.routing.results_process",
        order,
        # One thread for each processor would take longer to start than all there is to compute.
        environment=child.passed_on(*_PASSED_ON) | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        within=_RESULTS_WITHIN,
        listen=True,
    )
    if answered.returncode != 0:
        complaints = answered.complaints.decode(errors="replace")[-2000:]
        raise RuntimeError(f"results could not be worked out: {complaints}")
    found: dict[str, Any] = orjson.loads(answered.printed)
    return found


_one_at_a_time = asyncio.Lock()
_PASSED_ON = ("PATH", "PYTHONPATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")


def _runs(experiment: Experiment, now_ms: int) -> bool:
    now = datetime.fromtimestamp(now_ms / 1000, UTC)
    begun = experiment.start is None or experiment.start <= now
    ended = experiment.end is not None and experiment.end < now
    return experiment.status is ExperimentStatus.RUNNING and begun and not ended


def _units(periods: Sequence[Period], variant: str) -> int:
    return sum(period.arms[variant].units for period in periods if variant in period.arms)
