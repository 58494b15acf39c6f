"""`POST /orchestration/feedback`: what callers say about the answers they got."""

import math
import re
from collections.abc import Mapping
from typing import Any, cast

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from core.context import read_claims
from core.errors import BadField, NotFound, RateLimited
from core.runtime import Runtime
from core.settings.finding import shown_name
from core.settings.validation import nearest
from core.store.feedback import MOST_WAITING, Feedback, Giver, Received
from custom_router.experiments.metrics import BUILT_IN
from plugins import compat
from plugins.admin.access import AnyKey, answered, ready
from plugins.admin.entries import body_bytes

_MOST_AT_ONCE = 1000
_LARGEST = 1e12
_LONGEST_NAME = 128
_LONGEST_SHOWN = 40
_FRESH_SECONDS = 1.0


def feedback_router(runtime: Runtime) -> APIRouter:
    router = APIRouter()

    @router.post("/feedback", summary="Say how good answers were that this key or its user got")
    async def post_feedback(auth: AnyKey, request: Request) -> Response:
        return await answered(give(runtime, auth, request))

    return router


async def give(runtime: Runtime, auth: Any, request: Request) -> Response:
    """Record the body: `{"request_id", "metric", "value"}`, or a list of such objects.

    Callers may speak of their key's requests and their user's, administrators of all; with a trusted key, of those of
    the user that the headers name. What is said of a request that is not in the store yet waits for it (202). One
    object for a request that does not exist, or is not the caller's, raises NotFound; in a list each has its `status`.
    Raises BadField, BodyTooLarge and RateLimited.
    """
    given = _parsed(await body_bytes(request))
    listed = isinstance(given, list)
    values = [_value(one, f"[{place}]." if listed else "") for place, one in enumerate(given if listed else [given])]
    await ready(runtime)
    found = await _given(runtime, _giver(runtime, auth, request), values)
    shown = [
        {"request_id": one.request_id, "metric": one.metric, "value": one.value, "status": received.value}
        for one, received in zip(values, found, strict=True)
    ]
    if listed:
        return JSONResponse({"feedback": shown})
    if found[0] is Received.NOT_FOUND:
        raise NotFound(f"There is no request {shown_name(values[0].request_id)!r} of this key or its user.")
    if found[0] is Received.TOO_MANY:
        raise RateLimited(f"{MOST_WAITING} values wait for their requests already; try again when those are over.")
    return JSONResponse(shown[0], 202 if found[0] is Received.WAITING else 200)


async def _given(runtime: Runtime, giver: Giver, values: list[Feedback]) -> list[Received]:
    """What became of each value, once what this worker has answered is in the store."""
    assert runtime.store is not None
    assert runtime.ledger is not None
    found = await runtime.store.feedback.give(giver, values)
    waiting = [place for place, received in enumerate(found) if received is Received.WAITING]
    if waiting:
        await runtime.ledger.flush(within=_FRESH_SECONDS)
        again = await runtime.store.feedback.give(giver, [values[place] for place in waiting])
        for place, received in zip(waiting, again, strict=True):
            found[place] = received
    return found


def _giver(runtime: Runtime, auth: Any, request: Request) -> Giver:
    directory = runtime.snapshot.directory
    caller = directory.claimed(directory.caller(compat.principal_of(auth)), read_claims(request.headers.raw, None))
    return Giver(caller.key_hash, caller.user_id, any_request=compat.may_change(auth))


def _parsed(content: bytes) -> dict[str, Any] | list[Any]:
    try:
        found: object = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise BadField(f"The body must be JSON, {_LIKE}: {error.msg} (character {error.pos + 1}).") from None
    if not isinstance(found, dict | list):
        raise BadField(f"The body must be {_LIKE}, or a list of such objects.")
    body = cast("dict[str, Any] | list[Any]", found)
    if isinstance(body, list) and not 0 < len(body) <= _MOST_AT_ONCE:
        raise BadField(f"The list must have 1 to {_MOST_AT_ONCE} objects, not {len(body)}.")
    return body


def _value(given: Any, where: str) -> Feedback:
    """One object of the body, which stands at `where`. Raises BadField."""
    if not isinstance(given, dict):
        raise BadField(f"{where.rstrip('.')} must be {_LIKE}.")
    fields = cast("Mapping[str, Any]", given)
    for name in fields:
        if name not in _FIELDS:
            shown = shown_name(name[:_LONGEST_NAME])
            raise BadField(f"{where}{shown} is no field of feedback{nearest(shown, _FIELDS)}; valid: {_NAMED}.")
    for name in _FIELDS:
        if name not in fields:
            raise BadField(f"{where}{name} is missing; an object is {_LIKE}.")
    request_id, metric = fields["request_id"], fields["metric"]
    if not isinstance(request_id, str) or not 0 < len(request_id) <= _LONGEST_NAME or not request_id.isprintable():
        raise BadField(f"{where}request_id must be the x-orchestration-request-id of an answer, {_not(request_id)}.")
    if not isinstance(metric, str) or not _METRIC.fullmatch(metric):
        raise BadField(
            f"{where}metric must be 1 to 64 of a-z, 0-9 and _, a letter first, such as rating, {_not(metric)}."
        )
    if metric in BUILT_IN:
        built_in = ", ".join(BUILT_IN)
        raise BadField(f"{where}metric {metric} is measured already; give feedback a name other than {built_in}.")
    return Feedback(request_id, metric, _number(fields["value"], f"{where}value"))


def _number(given: Any, where: str) -> float:
    # JSON has numbers without end; the sums over them have to stay finite.
    if not isinstance(given, int | float) or not math.isfinite(given) or abs(given) > _LARGEST:
        raise BadField(f"{where} must be a number from -1e12 to 1e12, true or false, {_not(given)}.")
    return float(given)


def _not(given: Any) -> str:
    text = orjson.dumps(given).decode()
    return f"not {shown_name(text[:_LONGEST_SHOWN])}"


_FIELDS = ("request_id", "metric", "value")
_NAMED = ", ".join(_FIELDS)
_LIKE = '{"request_id": "...", "metric": "rating", "value": 1}'
_METRIC = re.compile(r"[a-z][a-z0-9_]{0,63}")
