"""What `GET /orchestration/status` says about this worker."""

from typing import Any

from core.runtime import Runtime
from litellm_orchestration._version import __version__
from plugins import route
from plugins.admin import secrets
from plugins.admin.cache import cache_status
from plugins.admin.resilience import resilience_status


async def status(runtime: Runtime) -> dict[str, Any]:
    """Everything an operator asks first; no secret and no key is in it."""
    snapshot = runtime.snapshot
    return {
        "version": __version__,
        "instance": runtime.instance,
        "started_at": runtime.started_at,
        "environment": snapshot.settings.environment,
        "config": {
            "file": str(runtime.config) if runtime.config else None,
            "version": snapshot.version,
            "digest": snapshot.digest,
            "loaded_at": snapshot.loaded_at,
            "overlay_version": runtime.overlay.version,
            "errors": [str(problem) for problem in runtime.config_problems],
            "restart_needed": list(runtime.restart_needed),
            "price_version": runtime.price_version,
        },
        "store": await runtime.store_status(),
        "shared_state": {
            "kind": "memory" if runtime.signals is None else "redis",
            "connected": runtime.signals is None or runtime.signals.connected,
        },
        "secrets": secrets.summary(),
        "workers": await runtime.workers(),
        "journal": runtime.journal_status(),
        "cache": cache_status(runtime),
        "routing": routing_status(),
        **resilience_status(runtime, route.loads()),
    }


def routing_status() -> dict[str, Any]:
    """How often each rule, audience and custom strategy was asked and how that ended, counted since the settings in
    force were first used."""
    routing = route.routing
    router = routing.in_force if routing is not None else None
    if routing is None or router is None:
        return {"rules": [], "audience_failures": {}, "strategies": {}}
    rules, strategies = router.rules, routing.strategies
    return {
        "rules": [
            {"id": rule, "hits": hits, "failures": rules.failures[rule], "last_failure": rules.last_failure.get(rule)}
            for rule, hits in rules.hits.items()
        ],
        "audience_failures": dict(router.assigner.failures),
        "strategies": {
            name: {how.value: times for how, times in counts.items()}
            for name, counts in (strategies.counts if strategies is not None else {}).items()
        },
    }
