"""What a client is told whose request a budget does not pay for."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from core.budgets import Charge
from core.errors import BudgetExceeded, CostUnbounded
from core.money import format_dollars, short_dollars
from core.state.reservations import Standing

if TYPE_CHECKING:
    from core.store.budgets import Pause

_SOON = 5
"""Seconds after which requests that are under way may have given back what they do not need."""


def exceeded(charge: Charge, standing: Standing, needed_nano: int, now_ms: int) -> BudgetExceeded:
    """429: which budget, what is spent of what, and when it begins anew."""
    limit = charge.limit_nano + standing.extra_nano
    end = charge.account.end_ms
    resets = None if end is None else moment(end)
    taken = standing.spent_nano + needed_nano > limit
    left = max(0, standing.left_of(charge.limit_nano))
    whose = "The budget" if charge.budget.per is None else "Your part of the budget"
    parts = [
        f"{whose} {charge.budget.name!r} has ${short_dollars(left)} of ${short_dollars(limit)} left",
        f" until {resets}" if resets and taken else "",
        "" if taken else " besides what requests under way have reserved",
        f", and this request may cost up to ${short_dollars(needed_nano)}.",
    ]
    details = {
        "budget_id": charge.budget.budget_id,
        "member": charge.account.member or None,
        "spent": format_dollars(standing.spent_nano),
        "reserved": format_dollars(standing.reserved_nano),
        "total": format_dollars(limit),
        "needed": format_dollars(needed_nano),
        "resets_at": resets,
    }
    headers: dict[str, str] = {}
    if not taken:
        headers["retry-after"] = str(_SOON)
    else:
        headers["x-should-retry"] = "false"
        if end is not None:
            headers["retry-after"] = str(max(1, -(-(end - now_ms) // 1000)))
    refusal = BudgetExceeded("".join(parts), details=details, headers=headers)
    refusal.needed_nano = needed_nano
    return refusal


def unbounded(charge: Charge, group: str, reasons: Sequence[str]) -> CostUnbounded:
    """400: why nothing bounds the cost, and what to configure."""
    message = (
        f"What this request to {group!r} can cost at most is not known, and the budget {charge.budget.name!r} has to "
        f"hold: {'; '.join(reasons)}."
    )
    return CostUnbounded(message, details={"budget_id": charge.budget.budget_id, "reasons": list(reasons)})


def paused(charge: Charge, pause: "Pause") -> BudgetExceeded:
    """429: an administrator stopped it."""
    reason = f": {pause.reason}" if pause.reason else ""
    details = {"budget_id": charge.budget.budget_id, "paused_since": moment(pause.since_ms)}
    headers = {"x-should-retry": "false"}
    return BudgetExceeded(f"The budget {charge.budget.name!r} is paused{reason}.", details=details, headers=headers)


def moment(ms: int) -> str:
    """Unix milliseconds as clients read a moment."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
