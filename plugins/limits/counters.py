"""What counts requests, tokens and what runs: one protocol, in memory or in Redis.

A window counts what happened in the last minute, in steps of a quarter of a second: what happened within one step is
kept as one number, and counts until all of the step is a minute old. So a window takes the same room at any rate, and
never lets more through in any minute than it should.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from plugins.limits.quotas import Quota, Quotas

WINDOW_SECONDS = 60
STEPS_PER_SECOND = 4
STEPS = WINDOW_SECONDS * STEPS_PER_SECOND
PARALLEL_WAIT = 1.0
"""Seconds after which to try again where requests in parallel are the limit: nobody knows when one will end."""


@dataclass(frozen=True, slots=True)
class Level:
    """Where a counter stands: `used` of it, seconds until one more fits (0 when it does) and until it is empty."""

    used: int
    wait: float
    reset: float


@dataclass(frozen=True, slots=True)
class Entry:
    """What came of asking to be let in: the level of every quota, and those that refused. Where any did, nothing was
    counted; otherwise the levels include the request. `counters` hold what has to be given back."""

    levels: tuple[Level, ...]
    refused: tuple[int, ...]
    counters: "Counters"


Charge = tuple[str, int]
"""A counter of tokens and how many there were."""
Release = tuple[str, str]
"""A counter of what runs and the lease to end."""


class Counters(Protocol):
    async def enter(self, quotas: Sequence[Quota], lease: str) -> Entry:
        """Count one more request everywhere and take a lease of every parallel quota, or do neither; one atomic step.

        A window of tokens lets a request in while less than its limit is used.
        """
        ...

    def leave(self, charges: Sequence[Charge], releases: Sequence[Release]) -> None:
        """Count tokens and end leases, now or soon. Never waits, never raises."""
        ...

    async def hit(self, counter: str, most: int, amount: int) -> bool:
        """Count `amount` in one window if it fits; whether it did."""
        ...

    async def look(self, quotas: Sequence[Quota]) -> tuple[Level, ...]:
        """Where the quotas stand; nothing is counted."""
        ...

    async def close(self) -> None:
        """Finish what `leave` has put off."""
        ...


def releases_of(quotas: Quotas | Sequence[Quota], lease: str) -> list[Release]:
    """The leases that `enter` took."""
    return [(quota.counter, lease) for quota in quotas if quota.kind == "max_parallel_requests"]
