"""What is kept of a configuration, so that its decisions can be explained later."""

from collections.abc import Mapping
from typing import Any, cast

import orjson

_PARAMETERS = (
    *("model", "custom_llm_provider", "base_model", "weight"),
    *("region_name", "aws_region_name", "vertex_location", "watsonx_region_name"),
)
_SECTIONS = ("routing", "tiers", "default_tier", "groups", "budgets")


def described(document: Mapping[str, Any]) -> str:
    """JSON of what decides about a request: our sections about it, and of each model its name, `model_info`
    and what says which model it is and where. Nothing else of `litellm_params`, which may hold secrets."""
    section: object = document.get("orchestration")
    ours = cast("Mapping[str, Any]", section) if isinstance(section, Mapping) else {}
    kept = {name: ours[name] for name in _SECTIONS if name in ours}
    entries: object = document.get("model_list")
    models = [_model(entry) for entry in cast("list[Any]", entries)] if isinstance(entries, list) else []
    found = {"model_list": models, "orchestration": kept}
    return orjson.dumps(found, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def _model(entry: Any) -> dict[str, Any]:
    known = cast("Mapping[str, Any]", entry) if isinstance(entry, Mapping) else {}
    given: object = known.get("litellm_params")
    params = cast("Mapping[str, Any]", given) if isinstance(given, Mapping) else {}
    told = {name: params[name] for name in _PARAMETERS if name in params}
    found: dict[str, Any] = {"model_name": known.get("model_name"), "litellm_params": told}
    if isinstance(info := known.get("model_info"), Mapping):
        found["model_info"] = info
    return found
