"""Money that is spoken for: leases on accounts, in memory or in Redis, with one meaning.

What an account has is known from three numbers. *Written* is what the store says was spent, with the version of that
word. *Settled* is what requests that are over have cost, until the store has written it. *Reserved* is what requests
under way may cost at most. Spent is written + settled, and at every moment

    written + settled + reserved <= limit + extra

A lease is the part one attempt has in each of its accounts. It goes from open (reserved, nothing sent yet) to sent, to
settled (with the real cost), and leaves when the store has its usage event. An open one that is not renewed in time is
released; a sent one counts as settled at what was reserved, since it may have been billed, until the truth is known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from core.budgets.account import Account, Balance


@dataclass(frozen=True, slots=True)
class Claim:
    """What a reservation wants of one account, in nano-dollars.

    `amounts` falls from the most that is wanted to the least that will do, as many for every claim of a reservation.
    """

    account: Account
    limit_nano: int
    amounts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Standing:
    """What an account has, in nano-dollars; the module says what each number is."""

    written_nano: int = 0
    settled_nano: int = 0
    reserved_nano: int = 0
    extra_nano: int = 0

    @property
    def spent_nano(self) -> int:
        return self.written_nano + self.settled_nano

    def left_of(self, limit_nano: int) -> int:
        """What can still be reserved of an account with this limit; less than nothing where a bill was higher."""
        return limit_nano + self.extra_nano - self.spent_nano - self.reserved_nano


@dataclass(frozen=True, slots=True)
class Reserved:
    """The reservation stands, with `amounts[level]` of every claim. `standings` are those after it."""

    level: int
    standings: tuple[Standing, ...]


@dataclass(frozen=True, slots=True)
class TooLittle:
    """Nothing was reserved: at least one account does not have the least amount. `standings` as they are."""

    standings: tuple[Standing, ...]


@dataclass(frozen=True, slots=True)
class Unopened:
    """Nothing was reserved: the balances of these accounts have to be put in first (`put`)."""

    accounts: tuple[Account, ...]


class LeaseState(StrEnum):
    OPEN = "o"
    SENT = "t"
    SETTLED = "s"
    PRESUMED = "p"
    """Sent, and not heard of since: settled at what was reserved."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as its owner remembers it, to be registered again where the state was lost. `amounts` by account key."""

    id: str
    state: LeaseState
    amounts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Settled:
    """An account after a lease on it was settled, and by how much its spent rose."""

    key: str
    standing: Standing
    added_nano: int


class StateLost(Exception):
    """The state is new, or was emptied: nothing may be reserved until it is known again what is spent (`recover`)."""


class StateAway(Exception):
    """Whatever keeps the state does not answer."""


ANY_STATE = "*"
OPENS_NOTHING = ""


class ReservationState(Protocol):
    """Every method raises `StateAway`; each is all or nothing, and doing it twice is like doing it once."""

    async def reserve(self, lease: str, claims: Sequence[Claim], *, slack: int = 1) -> Reserved | TooLittle | Unopened:
        """Reserve the first level that every account has.

        The first of several levels is only taken where `slack` times its amount is free: it is generous, and must not
        keep others out. Raises `StateLost`.
        """
        ...

    async def sent(self, lease: str) -> bool:
        """The attempt is about to be sent: from now on it may be billed. False for a lease that has run out, whose
        attempt must not be sent. Raises `StateLost`."""
        ...

    async def settle(self, lease: str, accounts: Sequence[str], cost_nano: int) -> tuple[Settled, ...]:
        """The attempt is over and cost this much; it also stands where the lease is not known (any more)."""
        ...

    async def renew(self, leases: Sequence[str]) -> None:
        """Keep open and sent leases for another term."""
        ...

    async def reap(self) -> tuple[Lease, ...]:
        """End leases that ran out; returns those that were sent."""
        ...

    async def put(
        self,
        balances: Sequence[Balance],
        ends_ms: Mapping[str, int | None],
        written: Sequence[str] = (),
        *,
        opens: str = ANY_STATE,
    ) -> None:
        """Take over balances of the store where they are newer, and let go of the leases whose cost is in them.

        `ends_ms` says when the period of an account ends, by its key; some time after that it is forgotten. Accounts
        are opened, so that reservations can be made on them, in the state whose epoch is `opens`. It has to be the one
        in which the balances were asked for: any other word of the store may be older than what a state has lost.
        """
        ...

    async def settled(self, before: str) -> tuple[Lease, ...]:
        """Leases called less than `before` (requests are named by time) whose cost the store has not, or has not been
        heard to have."""
        ...

    async def standings(self, keys: Sequence[str]) -> dict[str, Standing]:
        """Those of the accounts that are opened."""
        ...

    # -- after a loss: nothing may be reserved until all who live have said what they have reserved and settled

    @property
    def epoch(self) -> str:
        """The state that `recover` found; another one has to be registered for anew."""
        ...

    async def recover(self) -> bool:
        """Whether the state is whole; if not, one is being built from now on."""
        ...

    async def register(self, instance: str, leases: Sequence[Lease]) -> bool:
        """Put in what this instance has; False where another state is built by now. Those that are there stay."""
        ...

    async def finish(self, instances: Sequence[str]) -> tuple[str, ...]:
        """End the building if all these instances have registered; returns those that have not."""
        ...

    async def close(self) -> None: ...


KEPT_AFTER_END_MS = 3 * 86_400_000
"""How long an account is kept after the end of its period, for requests that span it and reports of late costs."""
