"""How long tasks wait for their turn, on a loop that has time and on one that has none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from plugins.resilience.turns import INTERVAL, Turns
from tests.support.clock import Clock

ENOUGH = 0.005


class Told:
    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.waits: list[float] = []
        self.idle = 0
        self.turns = Turns(self.waits.append, self._rested, lambda: self.enough, lambda: self.calm, clock)
        self.enough, self.calm = ENOUGH, True

    def _rested(self, intervals: int) -> None:
        self.idle += intervals


def busy(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


async def crowd(tasks: int, seconds: float, until: float) -> None:
    """So many tasks that each take so long whenever it is their turn."""

    async def one() -> None:
        while time.perf_counter() < until:
            busy(seconds)
            await asyncio.sleep(0)

    await asyncio.gather(*(one() for _ in range(tasks)))


async def test_a_loop_that_has_time_gives_a_turn_at_once() -> None:
    told = Told()
    for _ in range(40):
        told.turns.look()
        await asyncio.sleep(0.01)
    assert told.waits and sorted(told.waits)[len(told.waits) // 2] < ENOUGH


async def test_a_loop_that_has_none_is_seen_to_be_behind_from_one_look_on() -> None:
    told = Told()
    told.turns.look()
    await crowd(20, 0.002, time.perf_counter() + 20 * INTERVAL)
    assert len(told.waits) >= 5 and min(told.waits[1:-1]) > 4 * ENOUGH and told.idle == 0


async def test_nothing_wakes_a_loop_on_which_nobody_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    told.turns.look()
    await asyncio.sleep(0.02)
    began: list[str] = []
    loop = asyncio.get_running_loop()
    with monkeypatch.context() as patched:
        for name in ("call_soon", "call_later", "call_at"):
            patched.setattr(loop, name, lambda *given, name=name, **_: began.append(name))
        time.sleep(2 * INTERVAL)
        told.turns.catch_up()
    assert began == [] and len(told.waits) == 1 and told.idle >= 1


async def test_time_in_which_nobody_came_is_idle(clock: Clock) -> None:
    told = Told(clock)
    told.turns.look()
    for _ in range(4):
        await asyncio.sleep(0)
    clock.advance(20.5 * INTERVAL)
    told.turns.look()
    assert (told.waits, told.idle) == ([0.0], 19)


async def test_it_is_looked_on_without_anybody_coming_until_all_is_well() -> None:
    told = Told()
    told.calm = False
    told.turns.look()
    await asyncio.sleep(5 * INTERVAL)
    assert len(told.waits) >= 2 and told.idle == 0
    told.calm = True
    await asyncio.sleep(2 * INTERVAL)
    had = len(told.waits)
    await asyncio.sleep(3 * INTERVAL)
    assert len(told.waits) == had, "until somebody comes again"


async def test_nothing_is_looked_at_where_nothing_is_enough() -> None:
    told = Told()
    told.turns.look()
    busy(0.02)
    await asyncio.sleep(0.005)
    told.enough = 0.0  # switched off while a timer looks
    await asyncio.sleep(2 * INTERVAL)
    told.turns.look()
    had = len(told.waits)
    await asyncio.sleep(3 * INTERVAL)
    assert len(told.waits) == had
