"""Pauses of what looks round now and then.

To wake a process that has nothing to do costs more than most of what it is woken for: some 0.2 ms on a virtual machine.
So all that can wait a little wakes up in the same moment, at most once a second.
"""

import asyncio
import random
from contextlib import suppress
from math import floor

_STEP = 1.0
_SHORTEST = 0.001
_CLOSE = 0.0005
"""Seconds by which a moment is missed when numbers are rounded."""
_PHASE = random.randrange(1000) / 1000  # noqa: S311
"""Workers do not all ask the store and the shared state at once. Whole milliseconds: uvloop's timers know no others."""


def in_step(seconds: float) -> float:
    """A pause of at most so many seconds, and less than one second shorter, that ends when the others of this worker
    do, within a millisecond; one shorter than a second stays as it is. Only within a running loop."""
    if seconds < _STEP:
        return seconds
    now = asyncio.get_running_loop().time()
    ends = _PHASE + _STEP * floor((now + seconds - _PHASE + _CLOSE) / _STEP)
    return max(ends - now, _SHORTEST)


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for the event, at most so long, `in_step`."""
    # Not wait_for: before Python 3.12 it can swallow a cancellation.
    with suppress(TimeoutError):
        async with asyncio.timeout(in_step(seconds)):
            await event.wait()
