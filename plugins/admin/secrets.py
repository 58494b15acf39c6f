"""`/orchestration/secrets`: what is known about secrets without their values, and having them read again."""

import asyncio
import time
from dataclasses import asdict
from typing import Any, cast

import orjson

from core.errors import BadField
from core.runtime import Runtime
from core.settings.reference import MalformedReference
from plugins import compat
from secrets_manager.proxy import secrets
from secrets_manager.service import malformed

REFRESH = "secrets.refresh"
"""The signal by which one instance has the others read secrets again. Its body: `references`, a list or null."""

_MOST_AT_ONCE = 1000


async def listed() -> dict[str, Any]:
    """Every reference in use: state, version, age, next refresh, last error, and the models that use it."""
    now = time.time()
    entries: list[dict[str, Any]] = []
    for one in secrets().statuses():
        state = asdict(one.state)
        reference = one.state.reference
        age = None if one.state.read_at is None else round(now - one.state.read_at, 3)
        entry = {**state, "reference": reference.uri, "provider": reference.provider, "age_seconds": age}
        entries.append({**entry, "models": list(one.models), "places": list(one.places)})
    return {"secrets": entries}


def summary() -> dict[str, Any]:
    """How many references there are, and those that are not as they should be, with their last error."""
    states = [one.state for one in secrets().statuses()]
    trouble = {state.reference.uri: f"{state.state}: {state.last_error}" for state in states if state.state != "fresh"}
    return {"references": len(states), "trouble": trouble}


async def refresh(runtime: Runtime, auth: Any, body: bytes) -> dict[str, Any]:
    """Read the references of the body (`references`: a list, or null or no body for all) again, here at once and on the
    other instances as soon as they are told. Raises BadField."""
    references = _references(body)
    why = f"refresh by {compat.principal_of(auth).user_id or 'an administrator'}"
    try:
        found = await asyncio.to_thread(secrets().refresh, references, why)
    except MalformedReference as error:
        raise BadField(f"references: {malformed('', error)}.") from None
    except KeyError as error:
        raise BadField(
            f"references: {error.args[0]} is not in use; GET /orchestration/secrets lists what is."
        ) from None
    told = runtime.signals is not None and await runtime.signals.tell(REFRESH, {"references": references})
    return {"refreshed": found, "told_other_instances": told}


async def refresh_as_told(body: dict[str, Any]) -> None:
    """Another instance was asked to refresh; what is not in use here is no matter."""
    references: list[str] | None = body.get("references")
    for one in [None] if references is None else [[reference] for reference in references]:
        try:
            await asyncio.to_thread(secrets().refresh, one, "refresh on another instance")
        except (KeyError, MalformedReference):
            continue


def _references(body: bytes) -> list[str] | None:
    if not body.strip():
        return None
    try:
        given: object = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise BadField('The body must be JSON: {"references": ["azure://name"]}, or null for all.') from None
    wanted = cast("dict[str, object]", given).get("references") if isinstance(given, dict) else given
    if wanted is None:
        return None
    if not isinstance(wanted, list) or not all(isinstance(one, str) for one in cast("list[object]", wanted)):
        raise BadField('references must be a list such as ["azure://name"], or null for all.')
    texts = cast("list[str]", wanted)
    if len(texts) > _MOST_AT_ONCE:
        raise BadField(f"references may name {_MOST_AT_ONCE} at once; leave it out for all.")
    return texts
