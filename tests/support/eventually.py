"""Waiting for a condition, with a deadline: the only place where tests sleep."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

T = TypeVar("T")

_FIRST_PAUSE = 0.005
_LONGEST_PAUSE = 0.25


class NeverHappened(AssertionError):
    """The condition did not hold before the deadline; the message has what it last returned or raised."""


class _Watch:
    """One wait: remembers the last outcome and how long to pause before the next look."""

    def __init__(self, within: float, what: str) -> None:
        self._what = what
        self._within = within
        self._deadline = time.monotonic() + within
        self._pause = _FIRST_PAUSE
        self._last = "nothing was tried"

    def saw(self, outcome: str) -> None:
        self._last = outcome

    def pause(self) -> float:
        """Seconds until the next look; raises NeverHappened when the time is up."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise NeverHappened(f"{self._what} did not happen within {self._within:g} s; last: {self._last}")
        pause, self._pause = self._pause, min(self._pause * 1.5, _LONGEST_PAUSE)
        return min(pause, left)


def _name(condition: object, what: str | None) -> str:
    return what or getattr(condition, "__qualname__", repr(condition))


async def eventually(condition: Callable[[], T | Awaitable[T]], within: float = 10, what: str | None = None) -> T:
    """Await until `condition()` is truthy and does not raise, then return its value.

    `condition` may be a plain or an async function. Raises NeverHappened after `within` seconds.
    """
    watch = _Watch(within, _name(condition, what))
    while True:
        try:
            found = condition()
            value = cast(T, await found if inspect.isawaitable(found) else found)
            if value:
                return value
            watch.saw(f"returned {value!r}")
        except Exception as error:
            watch.saw(f"raised {error!r}")
        await asyncio.sleep(watch.pause())


def eventually_sync(condition: Callable[[], T], within: float = 10, what: str | None = None) -> T:
    """Block until `condition()` is truthy and does not raise, then return its value: `eventually` without a loop."""
    watch = _Watch(within, _name(condition, what))
    while True:
        try:
            value = condition()
            if value:
                return value
            watch.saw(f"returned {value!r}")
        except Exception as error:
            watch.saw(f"raised {error!r}")
        time.sleep(watch.pause())
