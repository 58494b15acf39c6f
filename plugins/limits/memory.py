"""Counters of one worker, in memory."""

import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Sequence

from plugins.limits.counters import PARALLEL_WAIT, STEPS, STEPS_PER_SECOND, Charge, Entry, Level, Release
from plugins.limits.quotas import Kind, Quota


class _Window:
    """Amounts by step, the oldest first."""

    __slots__ = ("steps", "total")

    def __init__(self) -> None:
        self.steps: deque[tuple[int, int]] = deque()
        self.total = 0

    def forget(self, now: int) -> None:
        """Drop what no longer counts in step `now`."""
        while self.steps and self.steps[0][0] < now - STEPS:
            self.total -= self.steps.popleft()[1]

    def add(self, now: int, amount: int) -> None:
        self.total += amount
        if self.steps and self.steps[-1][0] >= now:
            step, counted = self.steps.pop()
            self.steps.append((step, counted + amount))
        else:
            self.steps.append((now, amount))

    def free_at(self, excess: int) -> float:
        """When so much will have gone, in steps."""
        for step, amount in self.steps:
            excess -= amount
            if excess <= 0:
                return step + 1 + STEPS
        return self.empty_at()

    def empty_at(self) -> float:
        return self.steps[-1][0] + 1 + STEPS if self.steps else 0


class MemoryCounters:
    """Windows by counter, the one that was idle longest first, and how many run. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._windows: OrderedDict[str, _Window] = OrderedDict()
        self._running: defaultdict[str, int] = defaultdict(int)

    def __len__(self) -> int:
        return len(self._windows) + len(self._running)

    async def enter(self, quotas: Sequence[Quota], lease: str) -> Entry:
        at = self._clock() * STEPS_PER_SECOND
        self._drop_idle(int(at))
        levels = [self._level(quota, at) for quota in quotas]
        refused = tuple(index for index, quota in enumerate(quotas) if levels[index].used >= quota.most)
        if not refused:
            for index, quota in enumerate(quotas):
                levels[index] = self._taken(quota, levels[index], at)
        return Entry(tuple(levels), refused, self)

    def leave(self, charges: Sequence[Charge], releases: Sequence[Release]) -> None:
        now = int(self._clock() * STEPS_PER_SECOND)
        for counter, tokens in charges:
            self._add(counter, now, tokens)
        for counter, _ in releases:
            self._running[counter] -= 1
            if self._running[counter] <= 0:
                del self._running[counter]

    async def hit(self, counter: str, most: int, amount: int) -> bool:
        now = int(self._clock() * STEPS_PER_SECOND)
        self._drop_idle(now)
        if self._used(counter, now) + amount > most:
            return False
        self._add(counter, now, amount)
        return True

    async def look(self, quotas: Sequence[Quota]) -> tuple[Level, ...]:
        at = self._clock() * STEPS_PER_SECOND
        return tuple(self._level(quota, at) for quota in quotas)

    async def close(self) -> None:
        pass

    def _level(self, quota: Quota, at: float) -> Level:
        if quota.kind is Kind.PARALLEL:
            used = self._running.get(quota.counter, 0)
            return Level(used, 0.0 if used < quota.most else PARALLEL_WAIT, 0.0)
        used = self._used(quota.counter, int(at))
        if not used:
            return Level(0, 0.0, 0.0)
        window = self._windows[quota.counter]
        free = window.free_at(used - quota.most + 1) if used >= quota.most else at
        return Level(used, (free - at) / STEPS_PER_SECOND, (window.empty_at() - at) / STEPS_PER_SECOND)

    def _taken(self, quota: Quota, before: Level, at: float) -> Level:
        if quota.kind is Kind.PARALLEL:
            self._running[quota.counter] += 1
            return Level(before.used + 1, 0.0, 0.0)
        if quota.kind is Kind.TOKENS:
            return before
        self._add(quota.counter, int(at), 1)
        return Level(before.used + 1, 0.0, (self._windows[quota.counter].empty_at() - at) / STEPS_PER_SECOND)

    def _used(self, counter: str, now: int) -> int:
        window = self._windows.get(counter)
        if window is None:
            return 0
        window.forget(now)
        return window.total

    def _add(self, counter: str, now: int, amount: int) -> None:
        window = self._windows.get(counter)
        if window is None:
            window = self._windows[counter] = _Window()
        else:
            self._windows.move_to_end(counter)
            window.forget(now)
        window.add(now, amount)

    def _drop_idle(self, now: int) -> None:
        """Whoever comes throws out two that nobody has asked for, so that callers who left take no room."""
        for _ in range(2):
            if not self._windows:
                return
            counter = next(iter(self._windows))
            if self._windows[counter].empty_at() > now:
                return
            del self._windows[counter]
