"""How budgets stand, as administrators and callers are told."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.budgets import Account, BudgetTerms, Charge
from core.errors import BudgetsUnavailable
from core.money import format_dollars
from core.state.reservations import Standing
from plugins import payment
from plugins.alerts.forecast import used_up_at
from plugins.budgets.refusals import moment

if TYPE_CHECKING:
    from plugins.budgets.service import Budgets


def service() -> "Budgets":
    """The budgets of this worker."""
    assert payment.budgets is not None
    return payment.budgets


@dataclass(frozen=True, slots=True)
class Standings:
    """What some accounts have, and why that is not known where it is not."""

    by_key: dict[str, Standing]
    trouble: str | None = None

    @classmethod
    async def of(cls, accounts: Sequence[Account], *, opening: bool = True) -> "Standings":
        """Of these accounts, all of them, or with `opening` false those that have been used since they were lost."""
        try:
            books = await service().begun()
            return cls(await books.standings(accounts, opening=opening))
        except BudgetsUnavailable as error:
            return cls({}, error.message)


def charge_of(terms: BudgetTerms, member: str, now_ms: int) -> Charge:
    """The account of a member in the present period."""
    return Charge(terms, terms.account(member, now_ms), terms.limit_nano(member))


def shown(charge: Charge, standing: Standing | None, now_ms: int) -> dict[str, Any]:  # JSON
    """An account: whose, how much of what is spent, reserved and left, when it will be used up at this pace.

    Money is dollars with nine decimals, as text; null where it is not known.
    """
    account = charge.account
    told: dict[str, Any] = {"member": account.member or None, "total": format_dollars(charge.limit_nano)}
    if standing is None:
        return told | dict.fromkeys(("extra", "spent", "reserved", "left", "used_up_at"))
    limit = charge.limit_nano + standing.extra_nano
    spent, used_up = standing.spent_nano, None
    if account.end_ms is not None:
        used_up = used_up_at(spent, limit, account.start_ms, account.end_ms, now_ms)
    return told | {
        "extra": format_dollars(standing.extra_nano),
        "spent": format_dollars(spent),
        "reserved": format_dollars(standing.reserved_nano),
        "left": format_dollars(standing.left_of(charge.limit_nano)),
        "used_up_at": None if used_up is None else moment(used_up),
    }


def period_of(terms: BudgetTerms, now_ms: int) -> dict[str, Any]:  # JSON
    """The present period of a budget."""
    period = terms.calendar.at(now_ms)
    end = None if period.end_ms is None else moment(period.end_ms)
    start = None if period.end_ms is None else moment(period.start_ms)
    return {"period": terms.calendar.described()["reset_period"], "started_at": start, "resets_at": end}


def paused(terms: BudgetTerms, *, by: bool = True) -> dict[str, Any] | None:  # JSON
    """Since when the budget admits nothing, why, and who stopped it, which is not for everybody (`by`); None where it
    is not paused."""
    pause = service().paused.get(terms.budget_id)
    if pause is None:
        return None
    told = {"since": moment(pause.since_ms), "reason": pause.reason}
    return told | {"by": pause.actor} if by else told
