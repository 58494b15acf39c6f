"""What a request asks of a model, and about how long it is, in any of the dialects: for routing, which needs no
bounds."""

from collections.abc import Mapping
from typing import Any, cast

from core.context import Need
from plugins.budgets.content import read_content

_NOTHING = frozenset[Need]()
_PLAIN = frozenset({"role", "content", "name"})
_BYTES_PER_TOKEN = 4
"""Of English text and its JSON."""
_IMAGE = 1000
_DOCUMENT = 4000
_AUDIO_BYTES_PER_TOKEN = 800
"""Some 16 kilobytes and 20 tokens a second."""

_KINDS = {
    "image_url": Need.IMAGES,
    "input_image": Need.IMAGES,
    "image": Need.IMAGES,
    "input_audio": Need.AUDIO,
    "audio": Need.AUDIO,
    "audio_url": Need.AUDIO,
    "file": Need.DOCUMENTS,
    "input_file": Need.DOCUMENTS,
    "document": Need.DOCUMENTS,
    "document_url": Need.DOCUMENTS,
    "tool_use": Need.TOOLS,
    "function_call": Need.TOOLS,
    "computer_call_output": Need.IMAGES,
}
"""Parts of a message by their `type`."""
_HOLDERS = ("messages", "input", "contents", "system")
_DEEPEST = 8


def needs_of(endpoint: str, data: Mapping[str, Any]) -> frozenset[Need]:
    """What a model must be able to take; `data` is the body, as JSON."""
    if endpoint not in _GENERATING:
        return _NOTHING
    found: set[Need] | None = None
    if not _only_text(data):
        found = set()
        for name in _HOLDERS:
            value = data.get(name)
            if type(value) is list or type(value) is dict:
                _look(value, found, 0)
    if data.get("tools") or data.get("functions"):
        found = found or set()
        found.add(Need.TOOLS)
    if _asks_for_json(data):
        found = found or set()
        found.add(Need.JSON)
    if "modalities" in data and isinstance(data["modalities"], list) and "audio" in data["modalities"]:
        found = found or set()
        found.add(Need.AUDIO)
    return frozenset(found) if found else _NOTHING


def input_tokens_of(endpoint: str, data: Mapping[str, Any], body_bytes: int) -> int:
    """About how many tokens the request has; `body_bytes` is its size as JSON."""
    if _only_text(data):
        return body_bytes // _BYTES_PER_TOKEN
    ids = _token_ids(data.get("prompt") if endpoint == "completions" else data.get("input"))
    if ids:
        return ids
    found = read_content(data)
    text = max(0, body_bytes - found.hidden_bytes)
    pictures, documents = found.images + found.unsure, found.documents + len(found.references)
    media = pictures * _IMAGE + documents * _DOCUMENT + found.audio_bytes // _AUDIO_BYTES_PER_TOKEN
    return text // _BYTES_PER_TOKEN + media


_GENERATING = frozenset({"chat_completions", "responses", "messages", "generate_content", "completions"})


def _only_text(data: Mapping[str, Any]) -> bool:
    """Whether what the model reads are plain messages, or one text."""
    messages = data.get("messages")
    if type(messages) is not list:
        return type(data.get("input")) is str or type(data.get("prompt")) is str
    for message in cast("list[Any]", messages):
        if type(message) is not dict or type(message.get("content")) is not str or not message.keys() <= _PLAIN:
            return False
    system = data.get("system")
    return (system is None or type(system) is str) and not data.get("input")


def _look(value: Any, found: set[Need], depth: int) -> None:
    """Through lists, messages and parts. How deep is bounded: the rest of a body that is deeper is no content."""
    if depth > _DEEPEST:
        return
    if type(value) is list:
        for item in cast("list[Any]", value):
            if type(item) is dict or type(item) is list:
                _look(item, found, depth + 1)
    elif type(value) is dict:
        part = cast("dict[str, Any]", value)
        kind = part.get("type") if "role" not in part else None
        need = _KINDS.get(kind) if isinstance(kind, str) else None
        if need is not None:
            found.add(Need.DOCUMENTS if need is Need.IMAGES and _is_document(part) else need)
        if part.get("tool_calls") or part.get("role") == "tool" or "functionCall" in part:
            found.add(Need.TOOLS)
        for name in ("inlineData", "inline_data", "fileData", "file_data"):
            if isinstance(part.get(name), dict):
                found.add(_of_form(cast("dict[str, Any]", part[name])))
        for name in ("content", "parts", "output"):
            inner = part.get(name)
            if type(inner) is list or type(inner) is dict:
                _look(inner, found, depth + 1)


def _is_document(part: Mapping[str, Any]) -> bool:
    """LiteLLM takes a document where a picture's URL stands."""
    stated = part.get("image_url")
    url = cast("dict[str, Any]", stated).get("url") if isinstance(stated, dict) else stated
    return isinstance(url, str) and url.startswith(("data:application/", "data:text/"))


def _of_form(data: Mapping[str, Any]) -> Need:
    form = str(data.get("mimeType") or data.get("mime_type") or "")
    if form.startswith("audio/"):
        return Need.AUDIO
    return Need.IMAGES if form.startswith("image/") else Need.DOCUMENTS


def _asks_for_json(data: Mapping[str, Any]) -> bool:
    if (form := data.get("response_format")) is not None:
        return isinstance(form, dict) and cast("dict[str, Any]", form).get("type") in _JSON
    if (text := data.get("text")) is not None and isinstance(text, dict):
        form = cast("dict[str, Any]", text).get("format")
        return isinstance(form, dict) and cast("dict[str, Any]", form).get("type") in _JSON
    for name in ("generationConfig", "config", "generation_config"):
        if isinstance(holder := data.get(name), dict):
            settings = cast("dict[str, Any]", holder)
            form = settings.get("responseMimeType") or settings.get("response_mime_type")
            if form == "application/json":
                return True
    return "output_format" in data and data["output_format"] is not None


_JSON = frozenset({"json_object", "json_schema"})


def _token_ids(value: Any) -> int:
    """How many tokens stand there as numbers, in one list or several; 0 where it is text."""
    if type(value) is not list or not value:
        return 0
    first: Any = value[0]
    if type(first) is int:
        return len(cast("list[Any]", value))
    if type(first) is list and first and type(first[0]) is int:
        return sum(len(one) for one in cast("list[Any]", value) if isinstance(one, list))
    return 0
