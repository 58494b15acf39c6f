"""LiteLLM's own cache, semantic or not: its keys carry neither whose an answer is nor the arm of an experiment."""

import sys
from collections.abc import Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import orjson

from core.cache import owner_of

if TYPE_CHECKING:
    from plugins.exchange import Exchange


def separate(exchange: "Exchange", data: dict[str, Any]) -> None:
    """Where LiteLLM has a cache, keep this request's answers to those who may share them (`caching.scope`)."""
    # A hook runs in LiteLLM's process: it is there.
    theirs: Any = getattr(sys.modules.get("litellm"), "cache", None)
    context, plan = exchange.context, exchange.plan
    if theirs is None or context is None or plan is None or exchange.endpoint not in _CACHED:
        return
    wish = data.get("cache")
    said: dict[str, Any] = dict(wish) if isinstance(wish, Mapping) else {}
    owner = owner_of(exchange.snapshot.settings.caching.scope, context.caller)
    if owner is None:
        data["cache"] = {**said, "no-cache": True, "no-store": True}
        return
    whose = orjson.dumps((owner, plan.variants, plan.regions, said.get("namespace")))
    name = blake2b(whose, digest_size=12).hexdigest()
    configured = getattr(theirs, "namespace", None)
    data["cache"] = {**said, "namespace": f"{configured}:{name}" if configured else name}


_CACHED = frozenset({"chat_completions", "completions", "embeddings", "responses", "messages", "rerank", "audio"})
"""Endpoints behind which LiteLLM keeps answers."""
