"""`GET /orchestration/reports/usage`: the usage report over HTTP."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

from core.errors import BadField
from core.runtime import Runtime

_AGE = re.compile(r"(\d{1,6})([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_FRESH_SECONDS = 2.0
_RESERVED = {"start", "end", "since", "by"}


async def usage(runtime: Runtime, query: dict[str, str]) -> dict[str, Any]:
    """The report that `query` asks for: `since` (7d, 24h) or `start`, `end` (ISO 8601), `by`, and a value to filter by
    for any dimension.

    What was answered before the call is in it, unless the store is behind by more than a moment. Raises `BadField`
    for a query that cannot be understood, `StoreError` where the store does not answer.
    """
    from core.reports import DIMENSIONS, as_json

    now = datetime.now(UTC)
    end = _moment("end", query["end"], now) if "end" in query else now + timedelta(seconds=1)
    start = _moment("start", query.get("start") or query.get("since") or "7d", now)
    if start >= end:
        raise BadField(f"start {start.isoformat()} is not before end {end.isoformat()}.")
    by = [name for name in query.get("by", "user,model").split(",") if name]
    filters = {name: value or None for name, value in query.items() if name not in _RESERVED}
    for name in (*by, *filters):
        if name not in DIMENSIONS:
            raise BadField(f"{name!r} is no dimension of usage; valid: {', '.join(DIMENSIONS)}.")
    assert runtime.store is not None
    assert runtime.ledger is not None
    await runtime.ledger.flush(within=_FRESH_SECONDS)
    return as_json(await runtime.store.usage.usage_report(_ms(start), _ms(end), by, filters))


def _moment(name: str, text: str, now: datetime) -> datetime:
    if age := _AGE.fullmatch(text):
        return now - timedelta(**{_UNITS[age[2]]: int(age[1])})
    try:
        # A plus sign in a query that nobody escaped arrives as a space.
        moment = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
    except ValueError:
        raise BadField(
            f"{name} must be 30m, 24h, 7d, 2w or a time such as 2026-07-01T12:00Z, not {text[:40]!r}."
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
