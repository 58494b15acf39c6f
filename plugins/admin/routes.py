"""`/orchestration/…`: what administrators see and change."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from core.runtime import Runtime
from plugins import compat
from plugins.admin.status import status


async def reader(request: Request) -> Any:
    """A proxy administrator, or one who may only look."""
    auth = await compat.identify(request)
    if not compat.may_read(auth):
        raise compat.forbidden("Only the proxy's administrators may see this.")
    return auth


def admin_router(runtime: Runtime) -> APIRouter:
    router = APIRouter(prefix="/orchestration", tags=["orchestration"])

    @router.get("/status", summary="What this worker runs on and how it is doing")
    async def get_status(_: Annotated[Any, Depends(reader)]) -> dict[str, Any]:
        return await status(runtime)

    return router
