"""`GET /v1/models`: policies stand in the list beside the models.

To LiteLLM a policy is an alias of its first candidate, and it takes an alias off the list where it takes the target
off. A policy may be there for a caller who may use only its second candidate, so the edge puts it back.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

import orjson

PATHS = frozenset({"/v1/models", "/models"})
permitted_policies: ContextVar[list[str] | None] = ContextVar("orchestration_policies", default=None)
"""Filled by the hook that filters the list, which knows the caller; read by the edge when the list is there."""


async def serve(
    app: Any, scope: MutableMapping[str, Any], receive: Any, send: Callable[[Any], Awaitable[None]]
) -> None:
    """Answer with LiteLLM's list, completed."""
    policies: list[str] = []
    # LiteLLM compresses longer lists, which could then not be read here.
    plain = [header for header in scope["headers"] if header[0] != b"accept-encoding"]
    token = permitted_policies.set(policies)
    start: MutableMapping[str, Any] | None = None
    parts: list[bytes] = []

    async def completed(message: MutableMapping[str, Any]) -> None:
        nonlocal start
        if message["type"] == "http.response.start":
            start = message
            return
        parts.append(message.get("body", b""))
        if message.get("more_body") or start is None:
            return
        body = b"".join(parts)
        if start["status"] == 200 and policies:
            body = _with_policies(body, policies)
            kept = [header for header in start["headers"] if header[0] != b"content-length"]
            start["headers"] = [*kept, (b"content-length", str(len(body)).encode())]
        await send(start)
        await send({"type": "http.response.body", "body": body})

    try:
        await app({**scope, "headers": plain}, receive, completed)
    finally:
        permitted_policies.reset(token)


def _with_policies(body: bytes, policies: list[str]) -> bytes:
    """The list with the policies it lacks in front; another shape than OpenAI's is left as it is."""
    listing = orjson.loads(body)
    models = listing.get("data") if isinstance(listing, dict) and listing.get("object") == "list" else None
    if not isinstance(models, list):
        return body
    there = {model.get("id") for model in models}
    missing = [name for name in policies if name not in there]
    listing["data"] = [*({"id": name, **_FIELDS} for name in missing), *models]
    return orjson.dumps(listing)


_FIELDS = {"object": "model", "created": 1677610602, "owned_by": "openai"}
"""What LiteLLM says of every model."""
