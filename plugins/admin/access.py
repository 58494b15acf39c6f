"""Who may use the admin API, and how it answers."""

from collections.abc import Awaitable
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import JSONResponse, Response

from core.errors import NotReady, RequestRefused, StoreError, StoreUnavailable
from core.runtime import Runtime
from plugins import compat


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


async def anybody(request: Request) -> Any:
    """Whoever has a valid key."""
    return await compat.identify(request)


AnyKey = Annotated[Any, Depends(anybody)]
Reader = Annotated[Any, Depends(reader)]
Changer = Annotated[Any, Depends(changer)]


async def answered(work: Awaitable[dict[str, Any] | Response]) -> Response:
    """The result as JSON, or our own errors as OpenAI error bodies."""
    try:
        result = await work
        return result if isinstance(result, Response) else JSONResponse(result)
    except StoreError as error:
        refusal: RequestRefused = StoreUnavailable(str(error))
    except RequestRefused as error:
        refusal = error
    return JSONResponse({"error": refusal.body()}, refusal.status, refusal.headers)


async def ready(runtime: Runtime) -> None:
    """Wait until the worker has started: only then is in force what administrators changed. Raises NotReady."""
    await runtime.ready.wait()
    if runtime.failure is not None:
        raise NotReady(f"This worker could not start: {runtime.failure}")


def actor_of(auth: Any) -> str:
    """What the audit calls an administrator."""
    return compat.principal_of(auth).user_id or compat.principal_of(auth).key_alias or "an administrator"
