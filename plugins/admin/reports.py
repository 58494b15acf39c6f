"""`GET /orchestration/reports/usage`: the usage report over HTTP."""

import time
from typing import Any

from core.errors import BadField
from core.report_query import filter_value, queried_ms
from core.runtime import Runtime

_FRESH_SECONDS = 2.0
_RESERVED = {"start", "end", "since", "by"}


async def usage(runtime: Runtime, query: dict[str, str]) -> dict[str, Any]:
    """The report that `query` asks for: `since` (7d, 24h) or `start`, `end` (ISO 8601), `by`, and a value to filter by
    for any dimension.

    What was answered before the call is in it, unless the store is behind by more than a moment. Raises `BadField`
    for a query that cannot be understood, `StoreError` where the store does not answer.
    """
    from core.reports import DIMENSIONS, as_json, iso

    now = time.time()
    end = queried_ms("end", query["end"], now) if "end" in query else int(now * 1000) + 1000
    start = queried_ms("start", query.get("start") or query.get("since") or "7d", now)
    if start >= end:
        raise BadField(f"start {iso(start)} is not before end {iso(end)}.")
    by = [name for name in query.get("by", "user,model").split(",") if name]
    filters = {name: _filter(name, value) for name, value in query.items() if name not in _RESERVED}
    for name in (*by, *filters):
        if name not in DIMENSIONS:
            raise BadField(f"{name!r} is no dimension of usage; valid: {', '.join(DIMENSIONS)}.")
    assert runtime.store is not None
    assert runtime.ledger is not None
    await runtime.ledger.flush(within=_FRESH_SECONDS)
    return as_json(await runtime.store.usage.usage_report(start, end, by, filters))


def _filter(name: str, text: str) -> str | bool | None:
    try:
        return filter_value(name, text)
    except ValueError as error:
        raise BadField(f"{error}.") from None
