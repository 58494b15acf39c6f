"""Google's `usageMetadata`, which reports what an answer to generateContent used, in OpenAI's words."""

from collections.abc import Mapping
from typing import Any

NAME = "usageMetadata"
COUNTS = ("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount", "toolUsePromptTokenCount")


def is_metadata(usage: object) -> bool:
    """Whether a usage block is Google's."""
    return isinstance(usage, dict) and any(name in usage for name in (*COUNTS, "totalTokenCount"))


def in_openais_words(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a usage block of chat completions. Any: counts and tables of them, as they come from JSON."""
    prompt = _count(metadata, "promptTokenCount") + _count(metadata, "toolUsePromptTokenCount")
    output, thoughts = _count(metadata, "candidatesTokenCount"), _count(metadata, "thoughtsTokenCount")
    if prompt + output != _count(metadata, "totalTokenCount"):  # else the candidates include the thoughts
        output += thoughts
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": _dear(metadata.get("promptTokensDetails")),
        "completion_tokens_details": _dear(metadata.get("candidatesTokensDetails")),
    }
    if cached := _count(metadata, "cachedContentTokenCount"):
        usage["prompt_tokens_details"]["cached_tokens"] = usage["cache_read_input_tokens"] = cached
    if thoughts:
        usage["completion_tokens_details"]["reasoning_tokens"] = thoughts
    return usage


def _dear(details: object) -> dict[str, int]:
    """Tokens of the kinds that have prices of their own; the rest is text."""
    found: dict[str, int] = {}
    for part in details if isinstance(details, list) else ():
        if isinstance(part, dict) and part.get("modality") in ("AUDIO", "IMAGE"):
            name = f"{part['modality'].lower()}_tokens"
            found[name] = found.get(name, 0) + _count(part, "tokenCount")
    return found


def _count(holder: Mapping[str, Any], name: str) -> int:
    value = holder.get(name)
    return value if isinstance(value, int) else 0
