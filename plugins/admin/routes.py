"""`/orchestration/…`: what administrators see and change."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from core.runtime import Runtime
from plugins.admin import reports, secrets
from plugins.admin.access import Changer, Reader, answered
from plugins.admin.alerts import alerts_router
from plugins.admin.audit import audit
from plugins.admin.budgets import Budgets, budgets_router
from plugins.admin.cache import cache_router
from plugins.admin.configuration import configuration_router
from plugins.admin.entries import entries_router
from plugins.admin.experiments import experiments_router
from plugins.admin.feedback import feedback_router
from plugins.admin.me import me_router
from plugins.admin.routing import routing_router
from plugins.admin.status import status
from plugins.alerts.service import Alerts
from plugins.limits import Entrance
from secrets_manager.audit_page import audit_page


def admin_router(runtime: Runtime, alerts: Callable[[], Alerts], entrance: Callable[[], Entrance | None]) -> APIRouter:
    """`alerts` and `entrance` give those of this worker, which need not be there yet."""
    router = APIRouter(prefix="/orchestration", tags=["orchestration"])

    @router.get("/status", summary="What this worker runs on and how it is doing")
    async def get_status(_: Reader) -> dict[str, Any]:
        return await status(runtime)

    @router.get("/reports/usage", summary="Who used what, and what it cost")
    async def get_usage(_: Reader, request: Request) -> Response:
        return await answered(reports.usage(runtime, dict(request.query_params)))

    @router.get("/secrets", summary="Which secrets are used by whom, and how they are; never a value")
    async def get_secrets(_: Reader) -> Response:
        return await answered(secrets.listed())

    @router.post("/secrets/refresh", summary="Have secrets read again, here and on every other instance")
    async def refresh_secrets(auth: Changer, request: Request) -> Response:
        return await answered(secrets.refresh(runtime, auth, await request.body()))

    @router.get("/secrets/audit", summary="What happened to which secret, when, why, and what came of it")
    async def get_secrets_audit(_: Reader, request: Request) -> Response:
        assert runtime.store is not None
        return await answered(audit_page(runtime.store, dict(request.query_params)))

    @router.get("/audit", summary="Who changed or fetched what, when, and what came of it")
    async def get_audit(_: Reader, request: Request) -> Response:
        return await answered(audit(runtime, dict(request.query_params)))

    router.include_router(me_router(runtime, entrance))
    router.include_router(alerts_router(runtime, alerts))
    router.include_router(budgets_router(runtime))
    router.include_router(routing_router(runtime))
    router.include_router(cache_router(runtime))
    router.include_router(feedback_router(runtime))
    router.include_router(experiments_router(runtime))
    router.include_router(entries_router(runtime, Budgets(runtime).standing))
    router.include_router(configuration_router(runtime))
    return router
