"""`GET /orchestration/audit`: who did what, when, and what came of it."""

import time
from collections.abc import Mapping
from typing import Any

from core.errors import BadField
from core.report_query import queried_ms
from core.runtime import Runtime
from plugins.admin.paging import limit_of
from secrets_manager.audit_page import as_json

_FIELDS = ("since", "until", "subject", "action", "limit", "cursor")


async def audit(runtime: Runtime, query: Mapping[str, str]) -> dict[str, Any]:
    """A page of records, newest first: `{"records": [...], "next_cursor": str | null}`.

    `query` has `since` (7d by default) and `until` (30m, 24h, 7d, 2w or ISO 8601), `subject` (`budgets/team_ai`,
    `azure://name`) and `action` (`budget.put`), both with `*` and `?` as in globs, `limit` and `cursor`. Raises
    BadField, and StoreError where the store does not answer.
    """
    from core.store import AuditQuery

    for name in query:
        if name not in _FIELDS:
            raise BadField(f"{name[:40]!r} is no field of this query; valid: {', '.join(_FIELDS)}.")
    now = time.time()
    since = queried_ms("since", query.get("since") or "7d", now)
    until = queried_ms("until", query["until"], now) if query.get("until") else int(now * 1000) + 1000
    if since >= until:
        raise BadField("since is not before until.")
    asked = AuditQuery(
        since,
        until,
        subject=query.get("subject") or None,
        action=query.get("action") or None,
        limit=limit_of(query),
        cursor=query.get("cursor") or None,
    )
    assert runtime.store is not None
    try:
        page = await runtime.store.audit.query(asked)
    except ValueError as error:
        raise BadField(f"cursor: {error}.") from None
    records = [as_json(entry) for entry in page.entries]
    for record in records:
        record["subject"] = record.pop("reference")
    return {"records": records, "next_cursor": page.cursor}
