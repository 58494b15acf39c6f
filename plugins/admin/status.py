"""What `GET /orchestration/status` says about this worker."""

from typing import Any

from core.runtime import Runtime
from litellm_orchestration._version import __version__
from plugins.admin import secrets


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
    }
