"""A clock that moves only when a test says so."""

from __future__ import annotations

import asyncio
import heapq
from itertools import count

# A Friday noon in UTC (15 January 2027) with nothing special about it, so that no test passes by accident of the
# calendar.
DEFAULT_START = 1_800_014_400.0


class Clock:
    """Unix seconds under control: call it for the time, `advance` it, `await clock.sleep(s)` on it.

    Give it wherever the code takes a clock (`Callable[[], float]`) or a sleep (`Callable[[float], Awaitable[None]]`).
    `sleep` moves the clock itself and returns at once, so code that backs off or polls runs to its end without
    waiting. `sleep_until_advanced` instead waits for `advance`, for tests that want to look at what happens between.
    """

    def __init__(self, start: float = DEFAULT_START) -> None:
        self.now = start
        self.slept: list[float] = []
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = count()

    def __call__(self) -> float:
        return self.now

    def __repr__(self) -> str:
        return f"Clock({self.now:.3f})"

    def advance(self, seconds: float) -> float:
        """Move forward and wake whoever was due, in order; returns the new time. Going back is refused."""
        if seconds < 0:
            raise ValueError(f"time does not go back ({seconds} s)")
        self.now += seconds
        while self._sleepers and self._sleepers[0][0] <= self.now:
            _, _, sleeper = heapq.heappop(self._sleepers)
            if not sleeper.done():
                sleeper.set_result(None)
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Sleep without waiting: the clock is moved by `seconds`, and other tasks get one turn."""
        self.slept.append(seconds)
        self.advance(max(seconds, 0))
        await asyncio.sleep(0)

    async def sleep_until_advanced(self, seconds: float) -> None:
        """Sleep until `advance` has moved the clock by `seconds`."""
        self.slept.append(seconds)
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._order), sleeper))
        await sleeper
