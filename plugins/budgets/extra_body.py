"""What a body sends to the provider past LiteLLM, where that changes what a request costs."""

from typing import Any, cast

from core.errors import BadField
from plugins.budgets.output_limit import COPIES, HOLDERS, LIMITS

_MOVED = (
    LIMITS
    | COPIES
    | HOLDERS
    | {
        *("service_tier", "speed", "inference_geo", "modalities", "audio", "size", "quality", "image_size"),
        *("tools", "functions", "web_search_options", "vector_store_ids", "mcp_servers", "search_parameters"),
        *("previous_response_id", "conversation", "background", "container", "cachedContent", "cached_content"),
        *("cache_control", "partial_images", "top_n", "resolution"),
    }
)
"""Fields of `extra_body` that are priced: they move into the body, where everything else looks for them."""

_CONTENT = frozenset({"messages", "input", "prompt", "contents", "system", "instructions", "query", "documents"})
_ROUTES = frozenset({"model", "models", "route", "fallbacks", "extra_body", "provider", "providerOptions"})
_FALLBACKS = frozenset({"fallbacks", "context_window_fallbacks", "content_policy_fallbacks"})
_NOT_FOR_CLIENTS = frozenset({"model_list", "base_model"})
_HEADERS = ("service-tier", "llm-shared-request-type", "llm-request-type")
"""Parts of names of headers by which Bedrock and Vertex AI take a service class."""


def merge_extra_body(endpoint: str, body: dict[str, Any]) -> None:
    """Move what `extra_body` would override and what is priced into `body`, where it wins as it would at the provider.

    The rest of it stays. Names of limits are taken off the list of parameters that LiteLLM shall drop. Raises
    `BadField` for what cannot be merged: content, other models, fields of fallbacks, and prices that only the
    configuration may set.
    """
    for name in body:
        if name in _NOT_FOR_CLIENTS or "cost_per_" in name:
            raise BadField(f"{name} is set by the proxy's configuration; leave it out of the request.")
    _check_headers(body)
    for name in _FALLBACKS & body.keys():
        _check_fallbacks(name, body[name])
    dropped = body.get("additional_drop_params")
    if dropped is not None:
        body["additional_drop_params"] = _keeping_limits(dropped)
    extra = body.get("extra_body")
    if extra is None:
        return
    if not isinstance(extra, dict):
        raise BadField(f"extra_body must be an object of further fields, not {type(extra).__name__}.")
    kept = dict(cast("dict[str, Any]", extra))
    for name in list(kept):
        if name in _CONTENT:
            raise BadField(f"extra_body.{name} would replace the request's own content; put {name} into the body.")
        if name in _ROUTES or name in _NOT_FOR_CLIENTS or "cost_per_" in name:
            raise BadField(f"extra_body.{name} would send the request elsewhere than it was checked for; leave it out.")
        if name in _MOVED:
            body[name] = kept.pop(name)
    if kept:
        body["extra_body"] = kept
    else:
        del body["extra_body"]


def _check_fallbacks(where: str, fallbacks: object) -> None:
    """LiteLLM calls a fallback with the fields that stand beside its name, which nothing was reserved for."""
    if isinstance(fallbacks, list):
        for position, fallback in enumerate(cast("list[Any]", fallbacks)):
            _check_fallbacks(f"{where}[{position}]", fallback)
    elif isinstance(fallbacks, dict):
        known = cast("dict[str, Any]", fallbacks)
        for name, value in known.items():
            if "model" in known and name != "model":
                raise BadField(f"{where}.{name} would change what the request costs; a fallback is a model's name.")
            _check_fallbacks(f"{where}.{name}", value)


def _keeping_limits(dropped: object) -> list[Any]:
    names = cast("list[Any]", dropped) if isinstance(dropped, list) else [dropped]
    priced = LIMITS | COPIES | {"service_tier"}
    return [name for name in names if not any(limit in str(name).replace("[", ".").split(".") for limit in priced)]


def _check_headers(body: dict[str, Any]) -> None:
    for field in ("extra_headers", "headers"):
        headers = body.get(field)
        if not isinstance(headers, dict):
            continue
        for name in cast("dict[str, Any]", headers):
            if any(part in name.lower() for part in _HEADERS):
                raise BadField(f"{field}.{name} would change what the request costs; use service_tier in the body.")
