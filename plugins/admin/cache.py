"""`/orchestration/cache`: what the cache of this worker holds and has saved, and taking answers out of it."""

from dataclasses import asdict
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from core.audit import AuditRecord
from core.errors import BadField
from core.money import to_dollars
from core.runtime import Runtime
from plugins.admin.access import Changer, Reader, actor_of, answered, ready
from plugins.caching import service

_BY = ("model", "user", "task_type", "tag")
_LONGEST = 256


def cache_router(runtime: Runtime) -> APIRouter:
    router = APIRouter()

    @router.get("/cache", summary="What this worker's cache holds, how often it answered, and what that saved")
    async def get_cache(_: Reader) -> dict[str, Any]:
        return cache_status(runtime)

    @router.post("/cache/invalidate", summary="Take answers out of the cache, on all instances")
    async def post_invalidate(auth: Changer, request: Request) -> Response:
        return await answered(invalidate(runtime, await request.body(), actor_of(auth)))

    return router


async def invalidate(runtime: Runtime, body: bytes, actor: str) -> dict[str, Any]:
    """Raises BadField for a body that does not say what is to go."""
    await ready(runtime)
    what = _what(body)
    cache = service.caching
    assert cache is not None
    count, told = await cache.invalidate(**what)
    detail = orjson.dumps(what).decode()
    at = int(runtime.clock() * 1000)
    await runtime.note(AuditRecord(at, actor, "cache.invalidate", "cache", detail=detail))
    return {"invalidated": what, "entries_here": count, "other_instances_told": told}


def _what(body: bytes) -> dict[str, Any]:
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError:
        given = None
    if isinstance(given, dict) and given and given.keys() <= {*_BY, "all"}:
        texts = [value for name, value in given.items() if name != "all"]
        if given.get("all", True) is True and all(
            isinstance(text, str) and 0 < len(text) <= _LONGEST for text in texts
        ):
            return given
    names = ", ".join(f'"{name}": "..."' for name in _BY)
    raise BadField(f'The body must name what is to go: one or more of {names}, or "all": true.')


def cache_status(runtime: Runtime) -> dict[str, Any]:
    """Counted since the worker has started; money in dollars."""
    caching = service.caching
    settings = runtime.settings.caching
    if caching is None or caching.cache is None:
        return {"enabled": settings.enabled}
    stats = caching.cache.stats()
    return {
        "enabled": settings.enabled,
        "edge": settings.edge,
        "shared_by_redis": caching.cache.redis is not None,
        "redis_away": stats.redis_away,
        "entries": stats.entries,
        "bytes": stats.bytes,
        "max_bytes": stats.max_bytes,
        "evictions": stats.evictions,
        "memory_hits": stats.memory_hits,
        "redis_hits": stats.redis_hits,
        "callers_remembered": len(caching.identities),
        "calls_shared_now": 0 if caching.flights is None else len(caching.flights),
        **_count(asdict(stats.total)),
        "by": [
            {"task_type": label.task_type or None, "model": label.model, **_count(asdict(count))}
            for label, count in stats.by_label.items()
        ],
    }


def _count(count: dict[str, Any]) -> dict[str, Any]:
    saved = count.pop("saved_nano")
    return {**count, "saved": float(to_dollars(saved))}
