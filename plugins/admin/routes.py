"""`/orchestration/…`: what administrators see and change."""

from collections.abc import Awaitable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from core.errors import RequestRefused, StoreError, StoreUnavailable
from core.runtime import Runtime
from plugins import compat
from plugins.admin import reports, secrets
from plugins.admin.status import status
from secrets_manager.audit_page import audit_page


async def reader(request: Request) -> Any:
    """A proxy administrator, or one who may only look."""
    auth = await compat.identify(request)
    if not compat.may_read(auth):
        raise compat.forbidden("Only the proxy's administrators may see this.")
    return auth


async def changer(request: Request) -> Any:
    """A proxy administrator."""
    auth = await compat.identify(request)
    if not compat.may_change(auth):
        raise compat.forbidden(
            "Only the proxy's administrators may do this; an administrator who may only look cannot."
        )
    return auth


Reader = Annotated[Any, Depends(reader)]
Changer = Annotated[Any, Depends(changer)]


def admin_router(runtime: Runtime) -> APIRouter:
    router = APIRouter(prefix="/orchestration", tags=["orchestration"])

    @router.get("/status", summary="What this worker runs on and how it is doing")
    async def get_status(_: Reader) -> dict[str, Any]:
        return await status(runtime)

    @router.get("/reports/usage", summary="Who used what, and what it cost")
    async def get_usage(_: Reader, request: Request) -> JSONResponse:
        return await _answer(reports.usage(runtime, dict(request.query_params)))

    @router.get("/secrets", summary="Which secrets are used by whom, and how they are; never a value")
    async def get_secrets(_: Reader) -> JSONResponse:
        return await _answer(secrets.listed())

    @router.post("/secrets/refresh", summary="Have secrets read again, here and on every other instance")
    async def refresh_secrets(auth: Changer, request: Request) -> JSONResponse:
        return await _answer(secrets.refresh(runtime, auth, await request.body()))

    @router.get("/secrets/audit", summary="What happened to which secret, when, why, and what came of it")
    async def get_secrets_audit(_: Reader, request: Request) -> JSONResponse:
        assert runtime.store is not None
        return await _answer(audit_page(runtime.store, dict(request.query_params)))

    return router


async def _answer(work: Awaitable[dict[str, Any]]) -> JSONResponse:
    """The result as JSON, or our own errors as OpenAI error bodies."""
    try:
        return JSONResponse(await work)
    except StoreError as error:
        refusal: RequestRefused = StoreUnavailable(str(error))
    except RequestRefused as error:
        refusal = error
    return JSONResponse({"error": refusal.body()}, refusal.status)
