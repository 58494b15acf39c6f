"""The gate of one worker: so many requests inside at once, a bounded queue before it, by priority."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from core.context import LOWEST_PRIORITY
from core.errors import Overloaded

DEFAULT_PRIORITY = 2
"""Of requests without a tier, as it is a tier's where it sets none."""

_RETRY_AFTER = "2"


class Timer(Protocol):
    def cancel(self) -> None: ...


Later = Callable[[float, Callable[[], None]], Timer]
"""Calls a function after so many seconds, as `loop.call_later` does."""


class Slot:
    """A place inside. `release` gives it back; a second time does nothing."""

    __slots__ = ("_gate",)

    def __init__(self, gate: "Gate") -> None:
        self._gate: Gate | None = gate

    def release(self) -> None:
        gate, self._gate = self._gate, None
        if gate is not None:
            gate._give_back()


class _Waiter:
    __slots__ = ("admitted", "priority")

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Gate:
    """At most `most` inside; up to `queue_size` wait for `queue_timeout` seconds each, priority 1 first, then by
    arrival. Where the queue is full, whoever has the lowest priority and came last is turned away."""

    def __init__(self, most: int, queue_size: int, queue_timeout: float, *, later: Later | None = None) -> None:
        self.inside = 0
        self.waiting = 0
        self._later = later
        # Priorities are few, so a queue for each makes every operation take constant time.
        self._queues: list[OrderedDict[_Waiter, None]] = [OrderedDict() for _ in range(LOWEST_PRIORITY + 1)]
        self.resize(most, queue_size, queue_timeout)

    def resize(self, most: int, queue_size: int, queue_timeout: float) -> None:
        """Take over other settings; nobody who is inside or waits already is put out by them."""
        self.most, self.queue_size, self.queue_timeout = most, queue_size, queue_timeout
        while self.inside < self.most and self._admit_next():
            self.inside += 1

    @asynccontextmanager
    async def enter(self, priority: int | None = None) -> AsyncIterator[None]:
        """Be inside. Raises as `acquire` does."""
        slot = await self.acquire(priority)
        try:
            yield
        finally:
            slot.release()

    async def acquire(self, priority: int | None = None, left: Callable[[], Awaitable[object]] | None = None) -> Slot:
        """Wait for a place. `left()` ends when the client has gone; it is asked only while the request waits.

        Raises `Overloaded` where there is no room to wait, the wait was too long, or the client left.
        """
        if self.inside < self.most:
            self.inside += 1
            return Slot(self)
        urgency = min(max(priority or DEFAULT_PRIORITY, 1), LOWEST_PRIORITY)
        self._make_room(urgency)
        await self._wait(_Waiter(urgency), left)
        return Slot(self)

    def _make_room(self, priority: int) -> None:
        if self.waiting < self.queue_size:
            return
        last = next((queue for queue in reversed(self._queues) if queue), None) if self.queue_size else None
        if last is None or next(reversed(last)).priority <= priority:
            raise self._full()
        self._turn_away(next(reversed(last)), self._full())

    async def _wait(self, waiter: _Waiter, left: Callable[[], Awaitable[object]] | None) -> None:
        self._queues[waiter.priority][waiter] = None
        self.waiting += 1
        later = self._later or asyncio.get_running_loop().call_later
        timer = later(self.queue_timeout, lambda: self._turn_away(waiter, self._too_long()))
        watch = asyncio.ensure_future(left()) if left is not None else None
        if watch is not None:
            watch.add_done_callback(lambda done: self._client_left(waiter, done))
        try:
            await waiter.admitted
        except asyncio.CancelledError:
            # Cancelled while it waits, or just after it was let in and before it could know.
            if waiter.admitted.done() and not waiter.admitted.cancelled() and waiter.admitted.exception() is None:
                self._give_back()
            self._remove(waiter)
            raise
        finally:
            timer.cancel()
            if watch is not None:
                watch.cancel()

    def _client_left(self, waiter: _Waiter, watch: "asyncio.Future[object]") -> None:
        if not watch.cancelled() and watch.exception() is None:
            self._turn_away(waiter, Overloaded("The client left while its request waited for a place."))

    def _turn_away(self, waiter: _Waiter, error: Overloaded) -> None:
        self._remove(waiter)
        if not waiter.admitted.done():
            waiter.admitted.set_exception(error)

    def _remove(self, waiter: _Waiter) -> None:
        queue = self._queues[waiter.priority]
        if waiter in queue:
            del queue[waiter]
            self.waiting -= 1

    def _give_back(self) -> None:
        """A place is free: it goes to the next in line without becoming free in between."""
        if self.inside > self.most or not self._admit_next():
            self.inside -= 1

    def _admit_next(self) -> bool:
        for queue in self._queues:
            while queue:
                waiter, _ = queue.popitem(last=False)
                self.waiting -= 1
                if not waiter.admitted.done():
                    waiter.admitted.set_result(None)
                    return True
        return False

    def _full(self) -> Overloaded:
        message = (
            f"The proxy is at work on {self.most} requests and {self.waiting} more wait, as many as "
            "limits.max_concurrent_requests and limits.queue_size allow; try again shortly."
        )
        return Overloaded(message, details=self._details(), headers={"retry-after": _RETRY_AFTER})

    def _too_long(self) -> Overloaded:
        message = (
            f"The request waited {self.queue_timeout:g} s (limits.queue_timeout) for one of {self.most} places "
            "(limits.max_concurrent_requests); try again shortly."
        )
        return Overloaded(message, details=self._details(), headers={"retry-after": _RETRY_AFTER})

    def _details(self) -> dict[str, object]:
        return {"limit": "max_concurrent_requests", "allowed": self.most, "waiting": self.waiting}
