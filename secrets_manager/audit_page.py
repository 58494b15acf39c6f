"""The audit of secrets as administrators read it: `GET /orchestration/secrets/audit` and `secrets audit`."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from core.audit import Entry
from core.errors import BadField
from core.report_query import queried_ms
from core.settings.reference import PREFIX

if TYPE_CHECKING:
    from core.store import Store

_FIELDS = ("since", "until", "reference", "action", "limit", "cursor")
_MOST = 1000
_ACTIONS = "secret."


async def audit_page(
    store: "Store", query: dict[str, str], clock: Callable[[], float] = time.time
) -> dict[str, Any]:  # JSON
    """A page of records, newest first: `{"records": [...], "next_cursor": str | null}`.

    `query` has `since` (7d by default) and `until` (30m, 24h, 7d, 2w or ISO 8601), `reference` and `action` (with `*`
    and `?` as in globs), `limit` (100, at most 1000) and `cursor`. Raises BadField for what cannot be understood and
    StoreError where the store does not answer.
    """
    from core.store import AuditQuery

    for name in query:
        if name not in _FIELDS:
            raise BadField(f"{name[:40]!r} is no field of this query; valid: {', '.join(_FIELDS)}.")
    now = clock()
    since = queried_ms("since", query.get("since") or "7d", now)
    until = queried_ms("until", query["until"], now) if query.get("until") else int(now * 1000) + 1000
    if since >= until:
        raise BadField("since is not before until.")
    asked = AuditQuery(
        since,
        until,
        subject=subject_pattern(query.get("reference")),
        action=action_pattern(query.get("action")),
        limit=_limit(query.get("limit") or "100"),
        cursor=query.get("cursor") or None,
    )
    try:
        page = await store.audit.query(asked)
    except ValueError as error:
        raise BadField(f"cursor: {error}.") from None
    return {"records": [as_json(entry) for entry in page.entries], "next_cursor": page.cursor}


def subject_pattern(reference: str | None) -> str | None:
    """What the subject of a record must match: a reference as people write it, or a glob of them.

    A vault gives whole secrets, so what happens to a field stands under the secret it is of.
    """
    return reference.removeprefix(PREFIX).partition("#")[0] if reference else None


def action_pattern(action: str | None) -> str:
    """What the action must match: `rotated`, or `secret.rotated`; without one, everything that is about secrets."""
    return f"{_ACTIONS}{(action or '*').removeprefix(_ACTIONS)}"


def as_json(entry: Entry) -> dict[str, Any]:
    """A record for programs. `detail` is an object; times are UTC."""
    record = entry.record
    return {
        "time": iso(record.time_ms),
        "time_ms": record.time_ms,
        "instance": entry.chain,
        "seq": entry.seq,
        "id": record.id,
        "actor": record.actor,
        "action": record.action,
        "reference": record.subject,
        "version": record.version,
        "outcome": record.outcome,
        "reason": record.reason,
        "detail": _detail(record.detail),
        "hash": entry.hash,
    }


def iso(time_ms: int) -> str:
    """A time as people read it, in UTC."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _detail(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # somebody changed it; verifying says so
        return text


def _limit(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= _MOST:
        raise BadField(f"limit must be a number from 1 to {_MOST}, not {text[:40]!r}.")
    return int(text)
