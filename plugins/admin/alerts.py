"""`/orchestration/alerts`: messages that did not arrive, sending them again, and trying a channel out."""

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from core.audit import AuditRecord, Outcome
from core.errors import AlertNotSent, BadField, NotFound
from core.runtime import Runtime
from core.settings.finding import shown_name
from core.settings.validation import nearest
from core.store.alerts import Delivery
from plugins.admin.access import Changer, Reader, actor_of, answered, ready
from plugins.admin.entries import json_body
from plugins.admin.paging import limit_of
from plugins.alerts.message import NotSent
from plugins.alerts.service import Alerts
from plugins.budgets.refusals import moment


def alerts_router(runtime: Runtime, alerts: Callable[[], Alerts]) -> APIRouter:
    router = APIRouter()

    @router.get("/alerts/dead", summary="Messages that were given up, newest first, with the reason")
    async def get_dead(_: Reader, request: Request) -> Response:
        return await answered(dead(runtime, dict(request.query_params)))

    @router.post("/alerts/dead/{delivery_id}/resend", summary="Send a message again that was given up")
    async def post_resend(auth: Changer, delivery_id: str) -> Response:
        return await answered(resend(runtime, delivery_id, actor_of(auth)))

    @router.post("/alerts/test", summary="Send a test message to a channel, at once")
    async def post_test(auth: Changer, request: Request) -> Response:
        return await answered(test(runtime, alerts(), request, actor_of(auth)))

    return router


async def dead(runtime: Runtime, query: Mapping[str, str]) -> dict[str, Any]:
    """What was given up. Raises BadField, and StoreError where the store does not answer."""
    limit = limit_of(query)
    await ready(runtime)
    assert runtime.store is not None
    return {"dead": [_shown(delivery) for delivery in await runtime.store.alerts.dead(limit)]}


async def resend(runtime: Runtime, delivery_id: str, actor: str) -> dict[str, Any]:
    """Have a message tried again from the beginning. Raises NotFound for one that was not given up."""
    await ready(runtime)
    assert runtime.store is not None
    if not await runtime.store.alerts.resend(delivery_id):
        raise NotFound(
            f"No message {shown_name(delivery_id[:200])!r} was given up; GET /orchestration/alerts/dead lists those."
        )
    await _note(runtime, actor, "alert.resend", f"alerts/{delivery_id}", "ok")
    return {"id": delivery_id, "resent": True}


async def test(runtime: Runtime, alerts: Alerts, request: Request, actor: str) -> dict[str, Any]:
    """Send a message to the body's `channel`. Raises NotFound for one that is not configured, and AlertNotSent
    with what went wrong."""
    body = await json_body(request)
    channel = body.get("channel")
    if not isinstance(channel, str) or not channel or body.keys() != {"channel"}:
        raise BadField('The body must be {"channel": "<name>"}.')
    await ready(runtime)
    channels = runtime.settings.alerts.channels
    if channel not in channels:
        hint = nearest(channel, tuple(channels))
        raise NotFound(f"alerts.channels has no {shown_name(channel[:200])!r}{hint}.")
    try:
        await alerts.test(channel)
    except NotSent as error:
        await _note(runtime, actor, "alert.test", f"alerts/channels/{channel}", "failed")
        raise AlertNotSent(f"{channel}: {error}.") from None
    await _note(runtime, actor, "alert.test", f"alerts/channels/{channel}", "ok")
    return {"channel": channel, "sent": True}


async def _note(runtime: Runtime, actor: str, action: str, subject: str, outcome: Outcome) -> None:
    await runtime.note(AuditRecord(int(runtime.clock() * 1000), actor, action, subject, outcome=outcome, detail="{}"))


def _shown(delivery: Delivery) -> dict[str, Any]:
    alert = delivery.alert
    return {
        "id": delivery.id,
        "channel": delivery.channel,
        "event": alert.event.value,
        "severity": alert.severity,
        "subject": alert.subject,
        "message": alert.message,
        "details": dict(alert.details),
        "time": moment(alert.time_ms),
        "times": delivery.times,
        "attempts": delivery.attempts,
        "error": delivery.last_error,
    }
