"""`GET /v1/models/{id}`: one line of what `GET /v1/models` lists for the same caller.

LiteLLM's own route finds no aliases, as which policies are announced, and is closed to keys of a custom_auth.
"""

from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from plugins import compat

_LIST = "/v1/models"


def models_router() -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/v1/models/{model_id:path}")
    @router.get("/models/{model_id:path}")
    async def one_model(request: Request, model_id: str) -> Response:
        status, body = await _ask(request)
        if status != 200:
            return Response(body, status, media_type="application/json")
        found = next((model for model in orjson.loads(body)["data"] if model["id"] == model_id), None)
        if found is not None:
            return JSONResponse(found)
        message = f"{model_id[:200]!r} does not exist, or this key may not use it; GET {_LIST} lists what it may use."
        error = {"message": message, "type": "invalid_request_error", "param": "model", "code": "model_not_found"}
        return JSONResponse({"error": error}, 404)

    return router


async def _ask(request: Request) -> tuple[int, bytes]:
    """The caller's own request, for the list."""
    scope = {
        name: value
        for name, value in request.scope.items()
        if name not in ("route", "endpoint", "path_params", "router")
    }
    scope |= {"path": _LIST, "raw_path": _LIST.encode(), "query_string": b"", "state": {}}
    status, parts = 500, []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message.get("body", b""))

    await compat.call_app(scope, receive, send)
    return status, b"".join(parts)
