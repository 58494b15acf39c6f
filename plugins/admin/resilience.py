"""`/orchestration/breakers` and how each deployment is doing, for `GET /orchestration/status`."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from core.audit import AuditRecord
from core.breakers import Hold, State, Status
from core.errors import BadField, NotFound
from core.runtime import Runtime
from core.settings.finding import shown_name
from core.settings.validation import nearest
from plugins import compat
from plugins.admin.access import Changer, actor_of, answered, ready
from plugins.resilience import service
from plugins.routing.live import Load, Loads

_LONGEST_WHY = 200


def breakers_router(runtime: Runtime) -> APIRouter:
    router = APIRouter(prefix="/orchestration", tags=["orchestration"])

    @router.post("/breakers/{name:path}/open", summary="Keep requests from a deployment until told otherwise")
    async def post_open(auth: Changer, name: str, request: Request) -> Response:
        return await answered(hold(runtime, name, Hold.OPEN, await request.body(), actor_of(auth)))

    @router.post("/breakers/{name:path}/close", summary="Let requests through to a deployment whatever becomes of them")
    async def post_close(auth: Changer, name: str, request: Request) -> Response:
        return await answered(hold(runtime, name, Hold.CLOSED, await request.body(), actor_of(auth)))

    @router.post("/breakers/{name:path}/auto", summary="Have a breaker open and close by itself again, from anew")
    async def post_auto(auth: Changer, name: str, request: Request) -> Response:
        return await answered(hold(runtime, name, Hold.AUTO, await request.body(), actor_of(auth)))

    return router


async def hold(runtime: Runtime, name: str, wanted: Hold, body: bytes, actor: str) -> dict[str, Any]:
    """Keep a breaker as it is wanted, on all instances. Raises NotFound for one that no deployment has, and BadField
    for a body that is not `{"why": "..."}`."""
    await ready(runtime)
    resilience = service.resilience
    assert resilience is not None
    breakers = resilience.breakers
    known = [*_breakers_of_deployments(), *breakers.states()]
    if name not in known:
        hint = nearest(name, tuple(known))
        raise NotFound(f"No deployment has a breaker {shown_name(name[:200])!r}{hint}; GET /orchestration/status.")
    why = _why(body) or f"an administrator wants it {wanted.value}"
    await breakers.now.hold(name, wanted, why)
    detail = orjson.dumps({"why": why}).decode()
    at = int(runtime.clock() * 1000)
    await runtime.note(AuditRecord(at, actor, f"breaker.{wanted.value}", f"breakers/{name}", detail=detail))
    state = breakers.states().get(name)
    return {"name": name, **(shown(state) if state is not None else _CLOSED)}


def _why(body: bytes) -> str | None:
    if not body.strip():
        return None
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError:
        given = None
    why = given.get("why") if isinstance(given, dict) and given.keys() <= {"why"} else None
    if not isinstance(why, str) or not 0 < len(why) <= _LONGEST_WHY:
        raise BadField(f'The body must be {{"why": "<up to {_LONGEST_WHY} characters>"}} or empty.')
    return why


def _breakers_of_deployments() -> list[str]:
    resilience = service.resilience
    assert resilience is not None
    names = [
        resilience.breakers.name_of(one) for group in compat.model_groups() for one in compat.deployments_of(group)
    ]
    return [name for name in dict.fromkeys(names) if name is not None]


# -- status ------------------------------------------------------------------------------------------------------------


def resilience_status(runtime: Runtime, loads: Loads | None) -> dict[str, Any]:
    """How this worker's deployments are doing, its breakers that are not as good as new, and what was counted since it
    has started."""
    resilience = service.resilience
    if resilience is None:
        return {}
    states = resilience.breakers.states()
    known = loads.deployments() if loads is not None else {}
    return {
        "deployments": [
            _deployment(runtime, one, known, states)
            for group in compat.model_groups()
            for one in compat.deployments_of(group)
        ],
        "breakers": {name: shown(state) for name, state in states.items()},
        "resilience": {
            "openings": resilience.breakers.openings,
            "retries": resilience.retried,
            "requests_all_failed": resilience.failed,
            "degraded_answers": resilience.degraded,
            "shed": resilience.shedder.refused,
            "shedding": round(resilience.shedding, 3),
        },
    }


def _deployment(
    runtime: Runtime, one: Mapping[str, Any], known: Mapping[str, Load], states: Mapping[str, Status]
) -> dict[str, Any]:
    resilience = service.resilience
    assert resilience is not None
    found = (one.get("model_info") or {}).get("id")
    name = resilience.breakers.name_of(one)
    state = states.get(name) if name is not None else None
    load = known.get(found) if found is not None else None
    shows: dict[str, Any] = {
        "id": found,
        "group": one.get("model_name"),
        "model": (one.get("litellm_params") or {}).get("model"),
        "enabled": found not in runtime.disabled_deployments,
        "breaker": {"name": name, **(shown(state) if state is not None else _CLOSED)},
        "checked": resilience.checked(found) if found is not None else None,
    }
    return shows | (_IDLE if load is None else _doing(load))


def _doing(load: Load) -> dict[str, Any]:
    return {
        "in_flight": load.in_flight,
        "share": round(load.share, 4),
        "failing": round(load.failing, 4),
        "p50_ms": load.p50_ms,
        "p95_ms": load.p95_ms,
        "first_token_p50_ms": load.first_token_p50_ms,
        "first_token_p95_ms": load.first_token_p95_ms,
        "last_errors": [{"error": one.error, "status": one.status, "at": _time(one.at)} for one in load.failures],
    }


def shown(state: Status) -> dict[str, Any]:
    """A breaker as administrators see it; times are ISO 8601 in UTC."""
    return {
        "state": state.state.value,
        "since": _time(state.since) if state.since else None,
        "until": None if state.until is None else _time(state.until),
        "why": state.why,
        "hold": state.hold.value,
        "throttled": state.throttled,
        "failures_in_a_row": state.failures_in_a_row,
        "calls": state.calls,
        "failures": state.failures,
        "openings": state.openings,
    }


_CLOSED = {
    "state": State.CLOSED.value,
    "since": None,
    "until": None,
    "why": "",
    "hold": Hold.AUTO.value,
    "throttled": False,
    "failures_in_a_row": 0,
    "calls": 0,
    "failures": 0,
    "openings": 0,
}
_IDLE: dict[str, Any] = {
    "in_flight": 0,
    "share": 0.0,
    "failing": 0.0,
    "p50_ms": None,
    "p95_ms": None,
    "first_token_p50_ms": None,
    "first_token_p95_ms": None,
    "last_errors": [],
}


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
