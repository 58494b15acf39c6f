"""How long tasks of this worker's loop wait for their turn.

While it keeps up that is looked at as requests arrive: a timer would wake a worker that has nothing to do, which costs
more than anything else here. Once a turn was late it is looked at by a timer, until all is well.
"""

import asyncio
import time
from collections.abc import Callable
from math import inf

INTERVAL = 0.05
"""Seconds, or longer where the loop has no turn in that time."""
_SAMPLE = 0.01


class Turns:
    """Tells `over` the shortest wait of each interval, in seconds, and `idle` how many intervals went by of which
    nothing is known, since nobody came.

    `enough` gives the wait at which an interval has nothing more to say, 0 where none is looked at; `calm` says whether
    it will do to look when somebody comes.
    """

    def __init__(
        self,
        over: Callable[[float], None],
        idle: Callable[[int], None],
        enough: Callable[[], float],
        calm: Callable[[], bool],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._over = over
        self._idle = idle
        self._enough = enough
        self._calm = calm
        self._clock = clock
        self._began = clock()
        self._asked = 0.0
        self._shortest = inf
        """Of this interval."""
        self._looking = False

    def look(self) -> None:
        """A request has arrived. Only within a running loop."""
        if self._looking:
            return
        now = self._clock()
        if now - self._began >= INTERVAL:
            self._catch_up(now)
        if self._shortest > self._enough() > 0:
            self._looking = True
            # Not at once: the rest of this turn is the request's own.
            asyncio.get_running_loop().call_soon(self._wait)

    def catch_up(self) -> None:
        """Tell of what has gone by."""
        if not self._looking:
            self._catch_up(self._clock())

    def _catch_up(self, now: float) -> None:
        gone = int((now - self._began) / INTERVAL)
        if not gone:
            return
        if self._shortest < inf:
            self._over(self._shortest)
            gone -= 1
        if gone:
            self._idle(gone)
        self._began, self._shortest = now, inf

    def _wait(self) -> None:
        self._asked = self._clock()
        loop = asyncio.get_running_loop()
        # Twice, as a task that waits for a result has to: for what sets it, and then for its own turn.
        loop.call_soon(loop.call_soon, self._turn)

    def _turn(self) -> None:
        now = self._clock()
        wait = now - self._asked
        self._shortest = min(self._shortest, wait)
        if now - self._began >= INTERVAL:
            self._over(self._shortest)
            self._began, self._shortest = now, inf
        self._looking = wait > self._enough() > 0 or not self._calm()
        if self._looking:
            asyncio.get_running_loop().call_later(_SAMPLE, self._wait)
