"""`/orchestration/…`: what administrators see and change."""

from collections.abc import Awaitable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from core.errors import RequestRefused, StoreError, StoreUnavailable
from core.runtime import Runtime
from plugins import compat
from plugins.admin import reports
from plugins.admin.status import status


async def reader(request: Request) -> Any:
    """A proxy administrator, or one who may only look."""
    auth = await compat.identify(request)
    if not compat.may_read(auth):
        raise compat.forbidden("Only the proxy's administrators may see this.")
    return auth


Reader = Annotated[Any, Depends(reader)]


def admin_router(runtime: Runtime) -> APIRouter:
    router = APIRouter(prefix="/orchestration", tags=["orchestration"])

    @router.get("/status", summary="What this worker runs on and how it is doing")
    async def get_status(_: Reader) -> dict[str, Any]:
        return await status(runtime)

    @router.get("/reports/usage", summary="Who used what, and what it cost")
    async def get_usage(_: Reader, request: Request) -> JSONResponse:
        return await _answer(reports.usage(runtime, dict(request.query_params)))

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
