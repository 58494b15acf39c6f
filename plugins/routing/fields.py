"""What rules and variants write into a request: parameters, and text in front of the system prompt."""

from collections.abc import Mapping
from typing import Any, cast

from plugins.budgets.enforcement import GENERATING
from plugins.budgets.output_limit import read_output_limit, set_output_limit


def set_fields(dialect: str, body: dict[str, Any], fields: Mapping[str, Any]) -> None:
    """Write `fields` (`temperature`, `max_tokens`, `timeout`, `tags`, ...) into a body of an endpoint.

    They replace what the client sent, but for `max_tokens`, which only lowers its limit, and `tags`, which join its
    own. What an endpoint has no use for is left out: embeddings have no temperature.
    """
    for name, value in fields.items():
        if name == "tags":
            _add_tags(body, value)
        elif name == "timeout":
            body["timeout"] = value
        elif dialect not in GENERATING:
            continue
        elif name == "max_tokens":
            given = read_output_limit(dialect, body)
            if given is None or given > value:
                set_output_limit(dialect, body, value)
        elif name == "reasoning_effort" and dialect == "responses":
            reasoning = body.get("reasoning")
            body["reasoning"] = {**(reasoning if isinstance(reasoning, dict) else {}), "effort": value}
        elif dialect == "generate_content":
            _set_generation(body, name, value)
        else:
            body[name] = value
        extra = body.get("extra_body")
        if isinstance(extra, dict) and name in extra:
            # It would win over the body at the provider.
            body["extra_body"] = {key: one for key, one in cast("dict[str, Any]", extra).items() if key != name}


_GENERATION = {"temperature": "temperature", "top_p": "topP", "seed": "seed"}


def _set_generation(body: dict[str, Any], name: str, value: Any) -> None:
    if name in _GENERATION:
        holder = next((one for one in ("generationConfig", "config") if isinstance(body.get(one), dict)), None)
        holder = holder or "generationConfig"
        body[holder] = {**body.get(holder, {}), _GENERATION[name]: value}


def _add_tags(body: dict[str, Any], tags: Any) -> None:
    """Where LiteLLM looks for the tags of a request: in its own metadata, which it keeps in one of two fields."""
    place = "litellm_metadata" if isinstance(body.get("litellm_metadata"), dict) else "metadata"
    holder = body.get(place)
    metadata = dict(cast("dict[str, Any]", holder)) if isinstance(holder, dict) else {}
    known = metadata.get("tags")
    metadata["tags"] = [*(known if isinstance(known, list) else ()), *tags]
    body[place] = metadata


def put_in_front(dialect: str, body: dict[str, Any], text: str) -> int:
    """Put `text` in front of the system prompt, or in its place where there is none; returns how many bytes the body
    has grown by at most."""
    put = _FRONTS.get(dialect)
    if put is None:
        return 0
    put(body, text)
    return len(text.encode()) * 2 + _FRAME  # quotes and newlines take two bytes each in JSON


_FRAME = 64
"""Bytes of a message round its text."""


def _chat(body: dict[str, Any], text: str) -> None:
    messages = body.get("messages")
    known = cast("list[Any]", messages) if isinstance(messages, list) else []
    first = known[0] if known else None
    if isinstance(first, dict) and cast("dict[str, Any]", first).get("role") in ("system", "developer"):
        message = cast("dict[str, Any]", first)
        body["messages"] = [{**message, "content": _joined(text, message.get("content"), "text")}, *known[1:]]
    else:
        body["messages"] = [{"role": "system", "content": text}, *known]


def _responses(body: dict[str, Any], text: str) -> None:
    body["instructions"] = _joined(text, body.get("instructions"), "input_text")


def _messages(body: dict[str, Any], text: str) -> None:
    body["system"] = _joined(text, body.get("system"), "text")


def _completions(body: dict[str, Any], text: str) -> None:
    prompt = body.get("prompt")
    if isinstance(prompt, list):
        prompts = cast("list[Any]", prompt)
        body["prompt"] = [_joined(text, one, "text") if isinstance(one, str) else one for one in prompts]
    else:
        body["prompt"] = _joined(text, prompt, "text")


def _generate_content(body: dict[str, Any], text: str) -> None:
    name = "system_instruction" if "system_instruction" in body else "systemInstruction"
    given = body.get(name)
    parts = cast("dict[str, Any]", given).get("parts") if isinstance(given, dict) else None
    body[name] = {"parts": [{"text": text}, *(cast("list[Any]", parts) if isinstance(parts, list) else [])]}


_FRONTS = {
    "chat_completions": _chat,
    "responses": _responses,
    "messages": _messages,
    "completions": _completions,
    "generate_content": _generate_content,
}


def _joined(text: str, given: Any, kind: str) -> Any:
    if isinstance(given, list):
        return [{"type": kind, "text": text}, *cast("list[Any]", given)]
    return f"{text}\n\n{given}" if isinstance(given, str) and given else text
