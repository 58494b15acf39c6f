"""Money that a worker has drawn ahead, to spend while nobody can be asked what is left (`on_outage: local`).

An allotment is a lease on one account that counts as sent: should the worker die or be cut off, it counts as spent.
While shared state is away, attempts are paid from the allotments of all their accounts. When it is back it is told of
these attempts first, and only then given the allotments back, so that at no moment less is counted than was spent.
"""

import asyncio
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction

from core.budgets.account import Account
from core.state.reservations import Claim, Lease, LeaseState, ReservationState, Reserved, Standing, StateLost, Unopened

PLENTY = 10
"""One is drawn where this many times as much is free,"""
LOW = 5
"""and given back where less than this many times as much is, so that the end of a budget is there for everybody."""
_PREFIX = "!allotment:"
"""How the names of their leases begin; the instance follows, and a number. It sorts before the name of any request, so
that what is asked for by age has them all."""
_IN_USE = 60.0
"""Seconds for which an account counts as in use after a reservation on it."""
_MOST = 1000
"""Accounts that allotments are drawn on, the latest used: each costs shared state a lease."""
_A_ROUND = 32
_LOOKED_AT = 200


@dataclass(slots=True)
class Allotment:
    """A lease of ours on one account. `left_nano` of `amount_nano` is not spoken for, `paid` are the attempts that some
    of it was spent on."""

    lease: str
    key: str
    amount_nano: int
    left_nano: int
    paid: set[str] = field(default_factory=set[str])


@dataclass(slots=True)
class _InUse:
    """An account that requests reserve on, with the limit and what was left of it at `seen`."""

    account: Account
    limit_nano: int
    left_nano: int
    seen: float


def drawn_by(lease: str) -> str | None:
    """The instance whose allotment a lease is, None for one of an attempt."""
    return lease.removeprefix(_PREFIX).rpartition(":")[0] if lease.startswith(_PREFIX) else None


class Allotments:
    """Those of one worker. `share` is how much of an account's limit one is; with 0 there are none.

    `instance` names this process and no other, ever. Methods that ask the state raise `StateAway`.
    """

    def __init__(
        self, state: ReservationState, instance: str, share: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._state = state
        self._instance = instance
        self._share = Fraction(str(share))
        self._clock = clock
        self._count = 0
        self._in_use: dict[str, _InUse] = {}
        self._open: dict[str, Allotment] = {}
        self._paid_by: dict[str, tuple[tuple[Allotment, int], ...]] = {}
        """By attempt: what it took of which."""
        self._returning: dict[str, str] = {}
        """Leases that the state may still have and that nothing is spent of, with the keys of their accounts."""
        self._still = False

    # -- requests, while the state answers -------------------------------------------------------------------------

    def saw(self, claims: Sequence[Claim], standings: Sequence[Standing]) -> None:
        """A request has reserved on these accounts, or wanted to."""
        if not self._share:
            return
        now = self._clock()
        for claim, standing in zip(claims, standings, strict=True):
            key, left = claim.account.key, standing.left_of(claim.limit_nano)
            self._in_use.pop(key, None)  # so that the latest used stand last
            self._in_use[key] = _InUse(claim.account, claim.limit_nano, left, now)

    async def make_room(self, claims: Sequence[Claim]) -> bool:
        """Give back what stands in the way of these claims; whether there was anything."""
        ours: list[Allotment] = []
        for claim in claims:
            use, allotment = self._in_use.get(claim.account.key), self._open.get(claim.account.key)
            if use is None or allotment is None or allotment.paid or use.left_nano >= claim.amounts[-1]:
                continue
            ours.append(allotment)
        for allotment in ours:
            self._end(allotment)
        await self._give_back()
        return bool(ours)

    # -- requests, while it does not -------------------------------------------------------------------------------

    def spend(self, attempt: str, amounts: Mapping[str, int]) -> bool:
        """Pay an attempt (the name of its lease) from the allotments of all these accounts, or of none."""
        if attempt in self._paid_by:
            return True
        if self._still:
            return False
        parts: list[tuple[Allotment, int]] = []
        for key, amount in amounts.items():
            allotment = self._open.get(key)
            if allotment is None or allotment.left_nano < amount:
                return False
            parts.append((allotment, amount))
        for allotment, amount in parts:
            allotment.left_nano -= amount
            allotment.paid.add(attempt)
        self._paid_by[attempt] = tuple(parts)
        return True

    def settle(self, attempt: str, cost_nano: int) -> None:
        """An attempt is over that may have been paid from here: the rest can be spent again."""
        for allotment, amount in self._paid_by.pop(attempt, ()):
            allotment.left_nano += amount - cost_nano
            if not cost_nano:
                allotment.paid.discard(attempt)

    # -- beside the requests ---------------------------------------------------------------------------------------

    def leases(self) -> list[Lease]:
        """To be kept alive, and to be registered where the state was lost."""
        return [Lease(one.lease, LeaseState.SENT, {one.key: one.amount_nano}) for one in self._open.values()]

    @contextmanager
    def standing_still(self) -> Generator[set[str]]:
        """Nothing is spent meanwhile; yields all the attempts that something was spent on."""
        self._still = True
        try:
            yield {attempt for allotment in self._open.values() for attempt in allotment.paid}
        finally:
            self._still = False

    async def give_back_spent(self) -> None:
        """The state knows of every attempt that something was spent on: end those allotments."""
        for allotment in [one for one in self._open.values() if one.paid]:
            for attempt in allotment.paid:
                self._paid_by.pop(attempt, None)
            self._end(allotment)
        await self._give_back()

    async def give_back_unspent(self) -> None:
        """The worker stops."""
        for allotment in [one for one in self._open.values() if not one.paid]:
            self._end(allotment)
        await self._give_back()

    async def tend(self) -> None:
        """Draw on accounts in use that have plenty, give back what is not used or is needed by others."""
        if not self._share:
            return
        await self._give_back()
        self._forget()
        await self._look()
        for key, allotment in list(self._open.items()):
            use = self._in_use.get(key)
            if not allotment.paid and (
                use is None
                or use.left_nano < LOW * allotment.amount_nano
                or allotment.amount_nano != self._amount(use.limit_nano)
            ):
                self._end(allotment)
        await self._give_back()
        wanted = [
            use
            for key, use in self._in_use.items()
            if key not in self._open and use.left_nano >= PLENTY * self._amount(use.limit_nano) > 0
        ]
        failures = await asyncio.gather(*(self._draw(use) for use in wanted[-_A_ROUND:]), return_exceptions=True)
        for failure in failures:
            if failure is not None and not isinstance(failure, StateLost):
                raise failure

    async def _draw(self, use: _InUse) -> None:
        self._count += 1
        key, lease, amount = use.account.key, f"{_PREFIX}{self._instance}:{self._count}", self._amount(use.limit_nano)
        # Nothing at all is the level below: taken where there is less than plenty.
        claim = Claim(use.account, use.limit_nano, (amount, 0))
        ours = False
        try:
            outcome = await self._state.reserve(lease, [claim], slack=PLENTY)
            if isinstance(outcome, Unopened):
                return
            use.left_nano = outcome.standings[0].left_of(use.limit_nano)
            ours = isinstance(outcome, Reserved) and outcome.level == 0 and await self._state.sent(lease)
        finally:
            if ours:
                self._open[key] = Allotment(lease, key, amount, amount)
            else:
                self._returning[lease] = key  # also where it is not known whether it was drawn

    async def _look(self) -> None:
        """See what others have left of the accounts, a part of them at a time."""
        keys = list(self._open)[:_LOOKED_AT]
        standings = await self._state.standings(keys) if keys else {}
        for key in keys:
            self._open[key] = self._open.pop(key)
            use = self._in_use.get(key)
            if use is not None and (standing := standings.get(key)) is not None:
                use.left_nano = standing.left_of(use.limit_nano)

    async def _give_back(self) -> None:
        for lease, key in list(self._returning.items()):
            await self._state.settle(lease, [key], 0)
            self._returning.pop(lease, None)

    def _end(self, allotment: Allotment) -> None:
        """Nothing more is spent of it."""
        if self._open.get(allotment.key) is allotment:
            del self._open[allotment.key]
        self._returning[allotment.lease] = allotment.key

    def _forget(self) -> None:
        since = self._clock() - _IN_USE
        for key, use in list(self._in_use.items()):
            if use.seen >= since and len(self._in_use) <= _MOST:
                break
            del self._in_use[key]

    def _amount(self, limit_nano: int) -> int:
        return limit_nano * self._share.numerator // self._share.denominator
