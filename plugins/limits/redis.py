"""Counters that instances share, in Redis: one script call lets a request in.

Every key carries the same hash tag, so that in a cluster, too, one call can look at all of a request's limits.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from core.state.scripts import Scripts
from plugins.limits.counters import STEPS, STEPS_PER_SECOND, Charge, Entry, Level, Release, releases_of
from plugins.limits.quotas import Kind, Quota

_LOG = logging.getLogger("orchestration.limits")
_TAG = "{orchestration:limits}:"
_BATCH = 200
"""Counters of one script call that nobody waits for: it must not hold up the others."""

Step = tuple[str, str, str | int, int]
"""Counter, what to do, amount or lease, limit: see limits.lua."""


class RedisCounters:
    """`plugins.limits.counters.Counters`. Leases are renewed while their requests run, so a killed process gives its
    places back within `lease_seconds`.

    `patience` is how many seconds Redis may take; later answers raise TimeoutError. `clock` gives seconds in place of
    Redis's own time. `undelivered` gets the charges that Redis did not take.
    """

    def __init__(
        self,
        url: str,
        *,
        lease_seconds: float = 30.0,
        patience: float = 5.0,
        clock: Callable[[], float] | None = None,
        undelivered: Callable[[Sequence[Charge]], None] | None = None,
    ) -> None:
        self._lease_seconds = lease_seconds
        self._patience = patience
        self._clock = clock
        self._undelivered = undelivered
        self._scripts = Scripts(url, patience)
        self._constants = (STEPS, 1000 // STEPS_PER_SECOND, int(lease_seconds * 1000))
        self._pending: list[Step] = []
        self._delivery: asyncio.Task[None] | None = None
        self._open: set[Release] = set()
        self._renewal: asyncio.Task[None] | None = None

    async def enter(self, quotas: Sequence[Quota], lease: str) -> Entry:
        leases = releases_of(quotas, lease)
        try:
            fits, levels = await self._run([_step(quota, lease) for quota in quotas])
        except BaseException:
            # Nobody knows whether Redis did it.
            if leases:
                self.leave([], leases)
            raise
        refused: tuple[int, ...] = ()
        if not fits:
            refused = tuple(index for index, quota in enumerate(quotas) if levels[index].used >= quota.most)
        elif leases:
            self._open.update(leases)
            self._renewal = _running(self._renewal, self._renew)
        return Entry(tuple(levels), refused, self)

    def leave(self, charges: Sequence[Charge], releases: Sequence[Release]) -> None:
        self._open.difference_update(releases)
        self._pending += [(counter, "charge", tokens, 0) for counter, tokens in charges]
        self._pending += [(counter, "end", lease, 0) for counter, lease in releases]
        if self._pending:
            self._delivery = _running(self._delivery, self._deliver)

    async def hit(self, counter: str, most: int, amount: int) -> bool:
        fits, _ = await self._run([(counter, "window", amount, most)])
        return fits

    async def look(self, quotas: Sequence[Quota]) -> tuple[Level, ...]:
        _, levels = await self._run(
            [(quota.counter, "held" if quota.kind is Kind.PARALLEL else "look", 0, quota.most) for quota in quotas]
        )
        return tuple(levels)

    async def close(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
        if self._delivery is not None:
            await asyncio.wait({self._delivery})
        await self._scripts.close()

    async def _deliver(self) -> None:
        while self._pending:
            batch, self._pending = self._pending[:_BATCH], self._pending[_BATCH:]
            try:
                await self._run(batch)
            except Exception as error:  # redis-py and the network raise what they like
                # Leases end by themselves.
                _LOG.debug("Redis did not take %d changes of limits: %s", len(batch), type(error).__name__)
                charges = [(step[0], int(step[2])) for step in batch if step[1] == "charge"]
                if charges and self._undelivered is not None:
                    self._undelivered(charges)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._lease_seconds / 3)
            if not self._open:
                return
            steps: list[Step] = [(counter, "keep", lease, 0) for counter, lease in self._open]
            for start in range(0, len(steps), _BATCH):
                # Those that ended meanwhile must not come back.
                batch = [step for step in steps[start : start + _BATCH] if (step[0], step[2]) in self._open]
                try:
                    await self._run(batch)
                except Exception as error:
                    _LOG.debug("Redis did not renew %d leases of limits: %s", len(batch), type(error).__name__)

    async def _run(self, steps: Sequence[Step]) -> tuple[bool, list[Level]]:
        keys: list[str] = []
        arguments: list[Any] = ["" if self._clock is None else int(self._clock() * 1000), *self._constants]
        for counter, *words in steps:
            keys.append(_TAG + counter)
            arguments += words
        async with asyncio.timeout(self._patience):
            answer: list[int] = await self._scripts.run("limits", keys, arguments)
        numbers = iter(answer[1:])
        levels = [Level(used, wait / 1000, reset / 1000) for used, wait, reset in zip(*[numbers] * 3, strict=True)]
        return answer[0] == 1, levels


def _step(quota: Quota, lease: str) -> Step:
    if quota.kind is Kind.PARALLEL:
        return quota.counter, "lease", lease, quota.most
    return quota.counter, "window", 1 if quota.kind is Kind.REQUESTS else 0, quota.most


def _running(task: "asyncio.Task[None] | None", work: Callable[[], Any]) -> "asyncio.Task[None]":
    """The task if it still runs, else a new one at the work."""
    return asyncio.get_running_loop().create_task(work()) if task is None or task.done() else task
