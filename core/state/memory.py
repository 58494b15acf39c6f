"""Reservations of one process."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from core.budgets.account import Balance
from core.state.reservations import (
    ANY_STATE,
    KEPT_AFTER_END_MS,
    Claim,
    Lease,
    LeaseState,
    Reserved,
    Settled,
    Standing,
    StateLost,
    TooLittle,
    Unopened,
)

_SWEEP_EVERY_MS = 60_000
_MOST_ACCOUNTS = 100_000


@dataclass(slots=True)
class _Account:
    written: int = 0
    settled: int = 0
    reserved: int = 0
    extra: int = 0
    version: int = -1
    """That of the store's balance; below 0 while there is none."""
    opened: bool = False
    forget_ms: int | None = None

    def standing(self) -> Standing:
        return Standing(self.written, self.settled, self.reserved, self.extra)


@dataclass(slots=True)
class _Lease:
    amounts: dict[str, int]
    expires_ms: int
    level: int = 0
    state: LeaseState = LeaseState.OPEN


@dataclass(slots=True)
class MemoryReservations:
    """`core.state.reservations.ReservationState` for the one worker that holds the lock on the store.

    It begins empty, as after a loss. `clock` gives seconds.
    """

    lease_seconds: float = 60.0
    clock: Callable[[], float] = time.time
    _accounts: dict[str, _Account] = field(default_factory=dict[str, _Account])
    _leases: dict[str, _Lease] = field(default_factory=dict[str, _Lease])
    _next_sweep_ms: int = 0
    _whole: bool = False
    epoch: str = "memory"

    async def reserve(self, lease: str, claims: Sequence[Claim], *, slack: int = 1) -> Reserved | TooLittle | Unopened:
        if not self._whole:
            raise StateLost
        accounts: list[_Account] = []
        unopened: list[Claim] = []
        for claim in claims:
            account = self._accounts.get(claim.account.key)
            if account is None or not account.opened:
                unopened.append(claim)
            else:
                accounts.append(account)
        if unopened:
            return Unopened(tuple(claim.account for claim in unopened))
        known = self._leases.get(lease)
        if known is not None:
            return Reserved(known.level, tuple(account.standing() for account in accounts))
        level = _level(claims, accounts, slack)
        if level is None:
            return TooLittle(tuple(account.standing() for account in accounts))
        amounts: dict[str, int] = {}
        for claim, account in zip(claims, accounts, strict=True):
            amount = claim.amounts[level]
            amounts[claim.account.key] = amount
            account.reserved += amount
        self._leases[lease] = _Lease(amounts, self._now_ms() + int(self.lease_seconds * 1000), level)
        return Reserved(level, tuple(account.standing() for account in accounts))

    async def sent(self, lease: str) -> bool:
        known = self._leases.get(lease)
        if known is None or known.state not in (LeaseState.OPEN, LeaseState.SENT):
            return False
        known.state = LeaseState.SENT
        return True

    async def settle(self, lease: str, accounts: Sequence[str], cost_nano: int) -> tuple[Settled, ...]:
        known = self._leases.pop(lease, None)
        if known is not None and known.state is LeaseState.SETTLED:
            self._leases[lease] = known
            return ()
        settled: list[Settled] = []
        for key in accounts:
            account = self._account(key)
            before = account.settled
            self._take_out(account, known, key)
            account.settled += cost_nano
            settled.append(Settled(key, account.standing(), account.settled - before))
        for key in known.amounts if known is not None else ():
            if key not in accounts:  # reserved beyond the accounts that are charged
                self._take_out(self._account(key), known, key)
        if cost_nano:
            self._leases[lease] = _Lease(dict.fromkeys(accounts, cost_nano), 0, state=LeaseState.SETTLED)
        return tuple(settled)

    async def renew(self, leases: Sequence[str]) -> None:
        until = self._now_ms() + int(self.lease_seconds * 1000)
        for name in leases:
            known = self._leases.get(name)
            if known is not None:
                known.expires_ms = until

    async def reap(self) -> tuple[Lease, ...]:
        now = self._now_ms()
        presumed: list[Lease] = []
        over = [
            (name, lease)
            for name, lease in self._leases.items()
            if lease.state in (LeaseState.OPEN, LeaseState.SENT) and lease.expires_ms <= now
        ]
        for name, lease in over:
            for key, amount in lease.amounts.items():
                account = self._account(key)
                account.reserved -= amount
                if lease.state is LeaseState.SENT:
                    account.settled += amount
            if lease.state is LeaseState.SENT:
                lease.state = LeaseState.PRESUMED
                presumed.append(Lease(name, LeaseState.PRESUMED, dict(lease.amounts)))
            else:
                del self._leases[name]
        self._sweep(now)
        return tuple(presumed)

    async def put(
        self,
        balances: Sequence[Balance],
        ends_ms: Mapping[str, int | None],
        written: Sequence[str] = (),
        *,
        opens: str = ANY_STATE,
    ) -> None:
        for balance in balances:
            account = self._account(balance.key)
            end = ends_ms.get(balance.key)
            account.forget_ms = None if end is None else end + KEPT_AFTER_END_MS
            if balance.version > account.version:
                account.written, account.extra = balance.spent_nano, balance.extra_nano
                account.version = balance.version
            account.opened = account.opened or opens in (ANY_STATE, self.epoch)
        for name in written:
            known = self._leases.pop(name, None)
            if known is not None:
                for key in known.amounts:
                    self._take_out(self._account(key), known, key)

    async def settled(self, before: str) -> tuple[Lease, ...]:
        done = (LeaseState.SETTLED, LeaseState.PRESUMED)
        return tuple(
            Lease(name, lease.state, dict(lease.amounts))
            for name, lease in self._leases.items()
            if lease.state in done and name < before
        )

    async def standings(self, keys: Sequence[str]) -> dict[str, Standing]:
        return {
            key: account.standing()
            for key in keys
            if (account := self._accounts.get(key)) is not None and account.opened
        }

    async def recover(self) -> bool:
        return self._whole

    async def register(self, instance: str, leases: Sequence[Lease]) -> bool:
        until = self._now_ms() + int(self.lease_seconds * 1000)
        for lease in leases:
            if lease.id in self._leases:
                continue
            state = LeaseState.SETTLED if lease.state is LeaseState.PRESUMED else lease.state
            self._leases[lease.id] = _Lease(dict(lease.amounts), until, state=state)
            for key, amount in lease.amounts.items():
                account = self._account(key)
                if state is LeaseState.SETTLED:
                    account.settled += amount
                else:
                    account.reserved += amount
        return True

    async def finish(self, instances: Sequence[str]) -> tuple[str, ...]:
        self._whole = True
        return ()

    async def close(self) -> None:
        return

    def _account(self, key: str) -> _Account:
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = _Account()
        return account

    @staticmethod
    def _take_out(account: _Account, lease: _Lease | None, key: str) -> None:
        if lease is None:
            return
        amount = lease.amounts.get(key, 0)
        if lease.state in (LeaseState.OPEN, LeaseState.SENT):
            account.reserved -= amount
        else:
            account.settled -= amount

    def _sweep(self, now: int) -> None:
        if now < self._next_sweep_ms:
            return
        self._next_sweep_ms = now + _SWEEP_EVERY_MS
        crowded = len(self._accounts) > _MOST_ACCOUNTS
        gone = [
            key
            for key, account in self._accounts.items()
            if not account.reserved
            and not account.settled  # whatever else it has can be read from the store again
            and (crowded or (account.forget_ms is not None and account.forget_ms <= now))
        ]
        for key in gone:
            del self._accounts[key]

    def _now_ms(self) -> int:
        return int(self.clock() * 1000)


def _level(claims: Sequence[Claim], accounts: Sequence[_Account], slack: int) -> int | None:
    """The first level that every account has, None where even the last is too much for one."""
    level = 0
    for claim, account in zip(claims, accounts, strict=True):
        left = claim.limit_nano + account.extra - account.written - account.settled - account.reserved
        levels = len(claim.amounts)
        if level == 0 and levels > 1 and claim.amounts[0] * slack > left:
            level = 1
        while level < levels and claim.amounts[level] > left:
            level += 1
        if level == levels:
            return None
    return level
