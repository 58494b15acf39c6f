"""Counters in Redis, and in memory while Redis is away."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from plugins.limits.counters import Charge, Counters, Entry, Level, Release
from plugins.limits.memory import MemoryCounters
from plugins.limits.quotas import Quota

_LOG = logging.getLogger("orchestration.limits")
_SAY_EVERY = 60.0
_TRY_EVERY = 1.0

T = TypeVar("T")


class FallbackCounters:
    """Without Redis each instance counts for itself, up to the configured numbers: limits exist to keep load even, and
    refusing everybody would be the greater harm. What is counted meanwhile stays with the instance.

    One request a second finds out whether Redis is back; the others do not wait for that.
    """

    def __init__(
        self,
        shared: Counters,
        alone: MemoryCounters,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shared = shared
        self._alone = alone
        self._clock = clock
        self._try_at = 0.0
        self._said_at: float | None = None
        self.away = False

    async def enter(self, quotas: Sequence[Quota], lease: str) -> Entry:
        return await self._either(lambda: self._shared.enter(quotas, lease), lambda: self._alone.enter(quotas, lease))

    def leave(self, charges: Sequence[Charge], releases: Sequence[Release]) -> None:
        (self._alone if self.away else self._shared).leave(charges, releases)

    async def hit(self, counter: str, most: int, amount: int) -> bool:
        return await self._either(
            lambda: self._shared.hit(counter, most, amount), lambda: self._alone.hit(counter, most, amount)
        )

    async def look(self, quotas: Sequence[Quota]) -> tuple[Level, ...]:
        return await self._either(lambda: self._shared.look(quotas), lambda: self._alone.look(quotas))

    async def close(self) -> None:
        await self._shared.close()

    async def _either(self, shared: Callable[[], Awaitable[T]], alone: Callable[[], Awaitable[T]]) -> T:
        now = self._clock()
        if self.away:
            if now < self._try_at:
                return await alone()
            self._try_at = now + _TRY_EVERY
        try:
            answer = await shared()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # redis-py and the network raise what they like
            self._lost(error)
            return await alone()
        if self.away:
            self.away, self._said_at = False, None
            _LOG.warning("Redis is back: limits are shared by all instances again")
        return answer

    def _lost(self, error: Exception) -> None:
        now = self._clock()
        self.away, self._try_at = True, now + _TRY_EVERY
        if self._said_at is None or now - self._said_at >= _SAY_EVERY:
            self._said_at = now
            _LOG.error(
                "Redis does not answer (%s: %.200s): each instance enforces rate and parallel limits alone meanwhile",
                type(error).__name__,
                error,
            )
