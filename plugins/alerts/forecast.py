"""When a budget will be used up if spending goes on as it did."""

from datetime import datetime, tzinfo

from core.alerts import Alert
from core.budgets import Account
from core.settings.models.alerts import AlertEvent

_HOUR_MS = 3_600_000
MIN_SHARE_OF_PERIOD = 0.05
MIN_SHARE_OF_LIMIT = 0.05


def used_up_at(spent_nano: int, limit_nano: int, start_ms: int, end_ms: int, now_ms: int) -> int | None:
    """The Unix millisecond at which `limit_nano` is reached at the average pace since `start_ms`; None where that is
    not before `end_ms`, or there is too little to say.

    Too little is less than a twentieth of the period, an hour at least, or less than a twentieth of the limit: one
    large request in the first minutes of a month would else foretell the end of its budget. What is used up already is
    used up now: that is for the alerts of thresholds and limits.
    """
    if limit_nano <= 0 or spent_nano >= limit_nano or not start_ms < now_ms < end_ms:
        return None
    elapsed = now_ms - start_ms
    # A day has an hour of 23 to 25 to wait for, a month one and a half days.
    if elapsed < max(_HOUR_MS, MIN_SHARE_OF_PERIOD * (end_ms - start_ms)):
        return None
    if spent_nano < MIN_SHARE_OF_LIMIT * limit_nano:
        return None
    at = start_ms + -(-elapsed * limit_nano // spent_nano)
    return at if at < end_ms else None


def forecast_alert(
    account: Account, spent_nano: int, limit_nano: int, now_ms: int, timezone: tzinfo, subject: str
) -> Alert | None:
    """The alert that an account's money will not last; None where it will, or where that cannot be said.

    It has the same `dedupe_key` for as long as the account's period lasts, so it is told once. `timezone` is the
    budget's, in which people read its dates.
    """
    if account.end_ms is None:
        return None
    at = used_up_at(spent_nano, limit_nano, account.start_ms, account.end_ms, now_ms)
    if at is None:
        return None
    when = datetime.fromtimestamp(at / 1000, timezone)
    return Alert(
        event=AlertEvent.BUDGET_FORECAST,
        subject=subject,
        message=f"At this pace the budget is used up by {when:%A, %d %B %Y, %H:%M %Z}.",
        details={
            "budget": account.budget_id,
            "member": account.member,
            "spent_share": f"{spent_nano / limit_nano:.0%}",
            "used_up_at_ms": at,
            "resets_at_ms": account.end_ms,
        },
        dedupe_key=f"{AlertEvent.BUDGET_FORECAST.value}|{account.key}",
        time_ms=now_ms,
        over_ms=account.end_ms,
    )
