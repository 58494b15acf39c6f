"""Pauses of what looks round now and then: all of a worker end in the same moment."""

import asyncio
from math import isclose

import pytest

from core import pauses
from core.pauses import in_step


async def test_whatever_waits_a_second_or_more_wakes_up_with_the_others():
    loop = asyncio.get_running_loop()
    ends = list[float]()
    for seconds in (1.0, 1.7, 2.0, 3.0, 5.0, 10.0):
        await asyncio.sleep(0.003)
        pause, now = in_step(seconds), loop.time()
        assert pause > 0
        assert seconds - 1.0 <= pause <= seconds + 0.001
        ends.append(now + pause)
    apart = [end - ends[0] for end in ends]
    assert all(isclose(one, round(one), abs_tol=0.001) for one in apart), apart


async def test_a_short_pause_stays_as_it_is():
    assert [in_step(seconds) for seconds in (0.0, 0.25, 0.999)] == [0.0, 0.25, 0.999]


async def test_those_that_begin_at_different_times_end_together():
    loop = asyncio.get_running_loop()

    async def asleep(begins: float) -> float:
        await asyncio.sleep(begins)
        await asyncio.sleep(in_step(1.0))
        return loop.time()

    # Those that begin within a step end it together; what begins in the next one ends a whole step later.
    ended = await asyncio.gather(*(asleep(begins) for begins in (0.0, 0.1, 0.2)))
    assert all(isclose(one - ended[0], round(one - ended[0]), abs_tol=0.03) for one in ended), ended


async def test_waiting_ends_with_the_event_or_with_the_pause():
    event, begun = asyncio.Event(), asyncio.get_running_loop().time()
    await pauses.wait(event, 0.02)
    assert asyncio.get_running_loop().time() - begun >= 0.019
    asyncio.get_running_loop().call_later(0.02, event.set)
    await asyncio.wait_for(pauses.wait(event, 60.0), 5.0)
    assert event.is_set()


async def test_who_waits_can_be_cancelled():
    waiting = asyncio.create_task(pauses.wait(asyncio.Event(), 60.0))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
