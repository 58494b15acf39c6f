"""Tools that providers run themselves: what they cost cannot be told from the request."""

from collections.abc import Mapping
from typing import Any, cast

_OWN = frozenset({None, "function", "custom", "apply_patch", "local_shell", "namespace"})
"""Types of tools that the client runs; they cost the tokens of their declarations."""

_OWN_BEGINNINGS = ("bash_", "text_editor_", "computer_2", "memory_")
"""Anthropic's client tools, with the date of their version: `computer_20250124`."""

_DECLARATIONS = frozenset({"function", "functionDeclarations", "function_declarations", "name", "toolSpec"})

TOOL_TOKENS = 1024
"""What a provider writes into the prompt where there are tools, beyond their declarations. Anthropic adds up to 675 for
`tool_choice` any, and 735 for the computer tool, see docs.anthropic.com/en/docs/build-with-claude/tool-use/overview."""

_ASK = "leave it out, or set flat_reserve on the budget"


def tool_tokens(body: Mapping[str, Any]) -> int:
    """The tokens that tools add to the prompt and that do not stand in the body."""
    count = 1 if body.get("tools") or body.get("functions") else 0
    for tool in _tools(body):
        kind = tool.get("type") if isinstance(tool, dict) else None
        count += isinstance(kind, str) and kind.startswith(_OWN_BEGINNINGS)
    return count * TOOL_TOKENS


def unbounded_tools(body: Mapping[str, Any]) -> list[str]:
    """Why the tools of `body` cannot be bounded, in words; empty where they can."""
    reasons: list[str] = []
    for tool in _tools(body):
        name = _paid(tool)
        if name is not None:
            reasons.append(f"the tool `{name}` runs at the provider as often as the model likes; {_ASK}")
    for name in ("web_search_options", "vector_store_ids", "mcp_servers", "search_parameters"):
        if body.get(name):
            reasons.append(f"`{name}` makes the provider read or run what is not in the request; {_ASK}")
    return reasons


def _tools(body: Mapping[str, Any]) -> list[Any]:
    tools = body.get("tools")
    return cast("list[Any]", tools) if isinstance(tools, list) else []


def _paid(tool: Any) -> str | None:
    if not isinstance(tool, dict):
        return str(tool)[:40]
    known = cast("dict[str, Any]", tool)
    kind = known.get("type")
    if kind is None:
        extra = known.keys() - _DECLARATIONS if not known.keys() & {"name"} else ()
        return next(iter(extra), None)
    if kind in _OWN or (isinstance(kind, str) and kind.startswith(_OWN_BEGINNINGS)):
        return None
    return str(kind)[:40]
