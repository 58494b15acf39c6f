"""One request's dealings with the budgets: what it is charged to, what is reserved for it, what it cost."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from core.budgets import Applying, Charge
from core.budgets.books import Books
from core.errors import RequestRefused
from core.money import format_dollars
from core.settings.models import AtLimit
from core.state.reservations import Standing
from core.usage import Attempt, UsageEvent, UsageState

if TYPE_CHECKING:
    from plugins.budgets.bound import Bound


@dataclass(slots=True)
class Reservation:
    """What is reserved for one attempt at one group, in the accounts that are enforced. `priced` is False where nothing
    prices a deployment of the group. `tokens` is the output limit that has to be sent, None where the amount
    does not depend on it; `copies` is how many answers are paid for."""

    lease: str
    group: str
    charges: tuple[Charge, ...]
    amounts: tuple[int, ...]
    standings: tuple[Standing, ...]
    priced: bool = True
    tokens: int | None = None
    copies: int | None = None
    sent: bool = False

    @property
    def amount_nano(self) -> int:
        """What an attempt whose cost never becomes known is charged."""
        return max(self.amounts, default=0)


Overrun = Callable[[str, str, int, int, int], None]
"""Budget id, request id, nano-dollars reserved, nano-dollars of the bill, Unix milliseconds."""


def _nobody(budget_id: str, request_id: str, reserved_nano: int, cost_nano: int, now_ms: int) -> None:
    return


@dataclass(slots=True)
class Spending:
    """`degraded` are the budgets that no longer refuse, because a cheaper model answers instead; `level` is that of the
    last reservation."""

    request_id: str
    applying: Applying
    books: Books
    time_ms: int
    overrun: Overrun = _nobody
    """Told of an attempt that cost more than was reserved."""
    bounds: dict[str, "Bound"] = field(default_factory=dict[str, "Bound"])
    level: int = 0
    attempts: int = 0
    """How many were made so far."""
    counted: set[str] = field(default_factory=set[str])
    """The groups for which the input was counted exactly, or it was tried."""
    degraded: frozenset[str] = frozenset()
    reservation: Reservation | None = None
    refusal: RequestRefused | None = None
    """Why the last attempt that was to be made after the first is not paid for."""
    left_nano: int | None = None
    """What the tightest account has left, as far as is known."""

    def charges(self, group: str) -> tuple[Charge, ...]:
        """The accounts of an attempt at `group`. All attempts belong to the period in which the request arrived."""
        return self.applying.charges(group, self.time_ms)

    def enforced(self, group: str) -> tuple[Charge, ...]:
        """Those of them that must have what an attempt can cost; the others are only charged."""
        charges = self.charges(group)
        if all(charge.budget.at_limit is AtLimit.BLOCK for charge in charges):
            return charges
        return tuple(
            charge
            for charge in charges
            if charge.budget.at_limit is not AtLimit.WARN and charge.budget.key not in self.degraded
        )

    def next_lease(self) -> str:
        """The name of the next attempt's lease."""
        return lease_of(self.request_id, self.attempts + 1)

    def response_headers(self) -> list[tuple[bytes, bytes]]:
        """What the budgets did, for the client: what is left of the tightest, and whether a cheaper model answers."""
        headers: list[tuple[bytes, bytes]] = []
        if self.left_nano is not None:
            headers.append((b"x-orchestration-budget-remaining", format_dollars(max(0, self.left_nano)).encode()))
        if self.degraded:
            headers.append((b"x-orchestration-degraded", b"true"))
        return headers

    def reserved(self, reservation: Reservation, level: int) -> None:
        """The next attempt is paid for."""
        self.reservation, self.level = reservation, level
        self.left_nano = min(
            (
                standing.left_of(charge.limit_nano)
                for charge, standing in zip(reservation.charges, reservation.standings, strict=False)
            ),
            default=None,
        )

    def settle(self, attempt: Attempt | None, cost_known: bool = True) -> None:
        """The attempt that was reserved for is over; None where it never was one, or was answered from a cache."""
        reservation, self.reservation = self.reservation, None
        if attempt is not None:
            self.attempts = attempt.number
        if reservation is None:
            return
        cost_nano = 0 if attempt is None else self._cost(reservation, attempt, cost_known)
        self.books.settle(reservation.lease, cost_nano)
        for charge, amount in zip(reservation.charges, reservation.amounts, strict=True):
            if cost_nano > amount:
                self.overrun(charge.budget.budget_id, self.request_id, amount, cost_nano, self.time_ms)
        if self.left_nano is not None:
            least = zip(reservation.charges, reservation.standings, reservation.amounts, strict=True)
            self.left_nano = min(s.left_of(c.limit_nano) + amount - cost_nano for c, s, amount in least)

    @staticmethod
    def _cost(reservation: Reservation, attempt: Attempt, known: bool) -> int:
        """What the attempt is charged: where that is not known, and it may have been billed, all that was reserved."""
        # LiteLLM says that what nothing prices costs nothing.
        known = known and (reservation.priced or attempt.cost_nano > 0)
        if attempt.usage == UsageState.UNKNOWN or (not known and attempt.usage != UsageState.NONE):
            attempt.usage = UsageState.UNKNOWN
            attempt.cost_nano = reservation.amount_nano
        return attempt.cost_nano


def lease_of(request_id: str, attempt: int) -> str:
    """The name of an attempt's lease, from its number."""
    return f"{request_id}:{attempt}"


def leases_of(event: UsageEvent) -> list[str]:
    """The leases whose costs an event carries."""
    return [lease_of(event.request_id, attempt.number) for attempt in event.attempts if attempt.accounts]
