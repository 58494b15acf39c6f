"""The JSON Schema (2020-12) of a whole config.yaml: LiteLLM's sections open, ours exact."""

from typing import Any

from core.settings.models import Settings
from core.settings.source import SECTION

_OPEN = {
    "litellm_settings": "LiteLLM's own settings: callbacks, caching, custom providers.",
    "general_settings": "Settings of LiteLLM's server: master key, database, authentication.",
    "router_settings": "Settings of LiteLLM's router.",
    "environment_variables": "Environment variables that LiteLLM sets.",
}


def json_schema() -> dict[str, Any]:
    """The schema; Any because it is JSON."""
    ours = Settings.model_json_schema(mode="validation", ref_template="#/$defs/{model}")
    definitions: dict[str, Any] = ours.pop("$defs", {})
    # `budgets:` with nothing below it is the same as no `budgets:`.
    ours["properties"] = {name: _or_null(field) for name, field in ours["properties"].items()}
    definitions["Settings"] = ours
    properties: dict[str, Any] = {
        "model_list": {
            "description": "LiteLLM's models.",
            "type": ["array", "null"],
            "items": {
                "type": "object",
                "required": ["model_name", "litellm_params"],
                "properties": {
                    "model_name": {"type": "string"},
                    "litellm_params": {"type": "object"},
                    "model_info": {"type": "object"},
                },
            },
        },
        **{name: {"description": text, "type": ["object", "null"]} for name, text in _OPEN.items()},
        "include": {
            "description": "More configuration files: lists are extended, everything else is replaced.",
            "type": "array",
            "items": {"type": "string"},
        },
        SECTION: {
            "description": "What litellm-orchestration adds to the proxy.",
            "anyOf": [{"$ref": "#/$defs/Settings"}, {"type": "null"}],
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "config.yaml of a LiteLLM proxy with litellm-orchestration",
        "type": "object",
        "properties": properties,
        "additionalProperties": True,
        "$defs": definitions,
    }


def _or_null(field: dict[str, Any]) -> dict[str, Any]:
    outer = {name: field.pop(name) for name in ("description", "default", "title") if name in field}
    return {**outer, "anyOf": [*field.pop("anyOf", [field]), {"type": "null"}]} if field else outer
