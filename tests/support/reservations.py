"""A machine that does anything to reservations, in any order, and compares with books kept in the plainest way.

The books know what every attempt was reserved, was sent, cost; the state under test must never have let an
account promise more than it has, and in the end must have spent what the store has written.
"""

import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from core.budgets.account import Account, Balance
from core.state.reservations import Claim, LeaseState, ReservationState, Reserved, TooLittle, Unopened


@dataclass
class Attempt:
    """One lease, as whoever made it knows it."""

    claims: tuple[Claim, ...]
    amounts: dict[str, int]
    state: LeaseState = LeaseState.OPEN
    cost: int = 0
    written: bool = False
    abandoned: bool = False
    """Its process is gone: nobody renews it, and its event comes late or never."""


@dataclass
class Books:
    """The store and every attempt there was."""

    balances: dict[str, Balance] = field(default_factory=dict)
    attempts: dict[str, Attempt] = field(default_factory=dict)
    overbilled: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """By account: how much bills were above what was reserved. No reservation can bound that."""


Expire = Callable[[Sequence[str]], Awaitable[None]]
"""Let every open lease run out, but for these."""


class Machine:
    """Random operations on `state` over a few accounts."""

    def __init__(self, state: ReservationState, chance: random.Random, expire: Expire, *, accounts: int = 4) -> None:
        self.state = state
        self.chance = chance
        self.expire = expire
        self.books = Books()
        self.accounts = [Account(f"budget{number}~a1", 0, "") for number in range(accounts)]
        self.limits = {account.key: chance.randrange(1, 3000) for account in self.accounts}
        self.count = 0

    async def step(self) -> None:
        operations = (self.reserve, self.reserve, self.reserve, self.send, self.settle, self.settle, self.release)
        more = (self.write, self.write, self.grant, self.crash, self.late, self.settle_again, self.renew)
        await self.chance.choice((*operations, *more))()
        await self.check()

    async def reserve(self) -> None:
        self.count += 1
        name = f"request{self.count}:1"
        chosen = self.chance.sample(self.accounts, self.chance.randrange(1, len(self.accounts) + 1))
        most = self.chance.randrange(0, 400)
        levels = (most,) if self.chance.random() < 0.5 else (most, most // 2, most // 4)
        claims = tuple(Claim(a, self.limits[a.key], levels) for a in chosen)
        slack = self.chance.choice((1, 16))
        outcome = await self.state.reserve(name, claims, slack=slack)
        if isinstance(outcome, Unopened):
            await self.state.put([self.books.balances.get(a.key, Balance(a.key)) for a in outcome.accounts], {})
            outcome = await self.state.reserve(name, claims, slack=slack)
        if isinstance(outcome, Reserved):
            amounts = {claim.account.key: claim.amounts[outcome.level] for claim in claims}
            self.books.attempts[name] = Attempt(claims, amounts)
            again = await self.state.reserve(name, claims, slack=slack)
            assert isinstance(again, Reserved)
            assert again.level == outcome.level
        else:
            assert isinstance(outcome, TooLittle)
            lefts = zip(claims, outcome.standings, strict=True)
            assert any(s.left_of(c.limit_nano) < c.amounts[-1] for c, s in lefts)

    async def send(self) -> None:
        for name, attempt in self._some(LeaseState.OPEN):
            assert await self.state.sent(name)
            attempt.state = LeaseState.SENT

    async def settle(self) -> None:
        for name, attempt in self._some(LeaseState.SENT):
            most = min(attempt.amounts.values())
            attempt.cost = self.chance.randrange(0, most + 1)
            if self.chance.random() < 0.02:
                attempt.cost = most + 50
                for key, amount in attempt.amounts.items():
                    self.books.overbilled[key] += max(0, attempt.cost - amount)
            attempt.state = LeaseState.SETTLED
            await self.state.settle(name, list(attempt.amounts), attempt.cost)

    async def settle_again(self) -> None:
        for name, attempt in self._some(LeaseState.SETTLED):
            if not attempt.written:
                await self.state.settle(name, list(attempt.amounts), attempt.cost)

    async def release(self) -> None:
        for name, attempt in self._some(LeaseState.OPEN):
            attempt.state = LeaseState.SETTLED
            await self.state.settle(name, list(attempt.amounts), 0)

    async def write(self) -> None:
        """The store takes over what is settled, and says so; sometimes twice, sometimes an older word afterwards."""
        done = [(n, a) for n, a in self.books.attempts.items() if a.state is LeaseState.SETTLED and not a.written]
        batch = done[: self.chance.randrange(1, 5)]
        before = list(self.books.balances.values())
        balances = self._booked(batch)
        await self.state.put(balances, {}, [name for name, _ in batch])
        if self.chance.random() < 0.3:
            await self.state.put([*balances, *before], {}, [name for name, _ in batch])

    def _booked(self, batch: list[tuple[str, Attempt]]) -> list[Balance]:
        changed: dict[str, Balance] = {}
        for _, attempt in batch:
            attempt.written = True
            for key in attempt.amounts:
                old = self.books.balances.get(key, Balance(key))
                new = Balance(key, old.spent_nano + attempt.cost, old.extra_nano, old.version + 1)
                self.books.balances[key] = changed[key] = new
        return list(changed.values())

    async def grant(self) -> None:
        if self.chance.random() < 0.2:
            key = self.chance.choice(self.accounts).key
            old = self.books.balances.get(key, Balance(key))
            more = Balance(key, old.spent_nano, old.extra_nano + 100, old.version + 1)
            self.books.balances[key] = more
            await self.state.put([more], {})

    async def crash(self) -> None:
        """Some leases lose their process and run out; the rest is renewed in time."""
        if self.chance.random() > 0.2:
            return
        alive: list[str] = []
        lost: list[Attempt] = []
        for name, attempt in self._some(LeaseState.OPEN, LeaseState.SENT, most=100):
            if self.chance.random() < 0.5:
                attempt.abandoned = True
                lost.append(attempt)
            else:
                alive.append(name)
        await self.expire(alive)
        presumed = {lease.id: lease for lease in await self.state.reap()}
        for name, attempt in self.books.attempts.items():
            if attempt not in lost:
                assert name not in presumed
            elif attempt.state is LeaseState.SENT:
                assert presumed[name].amounts == attempt.amounts
                attempt.state = LeaseState.PRESUMED
            else:
                attempt.state, attempt.amounts = LeaseState.SETTLED, {}
                attempt.written = True

    async def late(self) -> None:
        """The truth about an attempt that was presumed: its process lived after all, or its journal was found."""
        for name, attempt in self._some(LeaseState.PRESUMED):
            attempt.cost = self.chance.randrange(0, min(attempt.amounts.values()) + 1)
            attempt.state = LeaseState.SETTLED
            if self.chance.random() < 0.5:
                await self.state.settle(name, list(attempt.amounts), attempt.cost)
            else:
                await self.state.put(self._booked([(name, attempt)]), {}, [name])

    async def renew(self) -> None:
        open_ = [n for n, a in self.books.attempts.items() if a.state in (LeaseState.OPEN, LeaseState.SENT)]
        await self.state.renew(open_)

    async def check(self) -> None:
        found = await self.state.standings([account.key for account in self.accounts])
        for account in self.accounts:
            standing = found.get(account.key)
            if standing is None:
                continue
            key = account.key
            attempts = [a for a in self.books.attempts.values() if key in a.amounts]
            under_way = (LeaseState.OPEN, LeaseState.SENT)
            reserved = sum(a.amounts[key] for a in attempts if a.state in under_way)
            settled = sum(a.cost for a in attempts if a.state is LeaseState.SETTLED and not a.written)
            presumed = sum(a.amounts[key] for a in attempts if a.state is LeaseState.PRESUMED)
            written = self.books.balances.get(key, Balance(key))
            assert standing.reserved_nano == reserved
            assert standing.settled_nano == settled + presumed
            assert (standing.written_nano, standing.extra_nano) == (written.spent_nano, written.extra_nano)
            assert standing.left_of(self.limits[key]) >= -self.books.overbilled[key]

    async def finish(self) -> None:
        """Everything comes to its end; then what is spent is what the store has."""
        for name, attempt in self.books.attempts.items():
            if attempt.state in (LeaseState.OPEN, LeaseState.SENT):
                attempt.state = LeaseState.SETTLED
                await self.state.settle(name, list(attempt.amounts), 0)
            elif attempt.state is LeaseState.PRESUMED:
                attempt.cost, attempt.state = min(attempt.amounts.values()), LeaseState.SETTLED
                await self.state.settle(name, list(attempt.amounts), attempt.cost)
        rest = [(n, a) for n, a in self.books.attempts.items() if not a.written]
        await self.state.put(self._booked(rest), {}, [name for name, _ in rest])
        await self.check()
        for key, standing in (await self.state.standings(list(self.limits))).items():
            assert (standing.reserved_nano, standing.settled_nano) == (0, 0)
            assert standing.spent_nano == self.books.balances.get(key, Balance(key)).spent_nano

    def _some(self, *states: LeaseState, most: int = 2) -> list[tuple[str, Attempt]]:
        fitting = [(n, a) for n, a in self.books.attempts.items() if a.state in states]
        return self.chance.sample(fitting, min(most, len(fitting)))


async def anything_in_any_order(state: ReservationState, seed: int, expire: Expire, steps: int = 40) -> None:
    """One interleaving, from beginning to end."""
    machine = Machine(state, random.Random(seed), expire)
    for _ in range(steps):
        await machine.step()
    await machine.finish()
