"""What a body holds beside text, since only the tokens of text are bounded by its bytes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast


@dataclass(slots=True)
class Content:
    """Counts of what stands in a body. `hidden_bytes` are the base64 characters of media in it, which are no text.

    `documents` are files of any length sent inline, `unsure` are pictures by URL that may turn out to be documents.
    `references` says in words what the body only points to. `written` and `written_hour`: a cache may be filled.
    """

    hidden_bytes: int = 0
    images: int = 0
    unsure: int = 0
    audio_bytes: int = 0
    documents: int = 0
    written: bool = False
    written_hour: bool = False
    references: list[str] = field(default_factory=list[str])


_PLAIN = frozenset({"role", "content", "name"})
_TEXTS = frozenset({"text", "input_text", "output_text", "refusal", "thinking", "redacted_thinking", "summary_text"})
_PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".heic", ".heif", ".tif", ".tiff", ".avif")


def read_content(body: Mapping[str, Any]) -> Content:
    """Look through everything of `body` that a model reads as input, in any of the dialects."""
    found = Content()
    try:
        _read_all(body, found)
    except RecursionError:
        found.references.append("the content is nested too deeply to look through; send it flat")
    return found


def _read_all(body: Mapping[str, Any], found: Content) -> None:
    messages = body.get("messages")
    if isinstance(messages, list):
        for message in cast("list[Any]", messages):
            if type(message) is dict and message.keys() <= _PLAIN and type(message.get("content")) is str:
                continue
            _walk(message, found)
    for name in _INPUTS:
        value = body.get(name)
        if value is not None and type(value) is not str:
            _walk(value, found)
    if "cache_control" in body:
        _caches(body, found)
    tools = body.get("tools")
    if isinstance(tools, list):
        for tool in cast("list[Any]", tools):
            if isinstance(tool, dict) and ("cache_control" in tool or "function" in tool):
                _caches(cast("dict[str, Any]", tool), found)
                _caches(cast("dict[str, Any]", tool).get("function"), found)


_INPUTS = ("input", "contents", "system", "systemInstruction", "system_instruction", "instructions", "prediction")


def _walk(value: Any, found: Content) -> None:
    if isinstance(value, list):
        for item in cast("list[Any]", value):
            if type(item) is not str and type(item) is not int:
                _walk(item, found)
    elif isinstance(value, dict):
        _read(cast("dict[str, Any]", value), found)


def _read(part: dict[str, Any], found: Content) -> None:
    _caches(part, found)
    # A message's own `type` says nothing about its content, whatever a client writes there.
    kind = part.get("type") if "role" not in part else None
    if not isinstance(kind, str):
        kind = None
    elif kind in _TEXTS:
        return
    reader = _READERS.get(kind) if kind else None
    if reader is not None:
        reader(part, found)
        return
    for name, value in part.items():
        if name in ("inlineData", "inline_data") and isinstance(value, dict):
            _inline(cast("dict[str, Any]", value), found)
        elif name in ("fileData", "file_data") and value is not None:
            found.references.append("a file by its URI has a length that is not known; send its content")
        elif name == "audio" and isinstance(value, dict) and "id" in value:
            found.references.append("`audio.id` refers to an earlier answer of unknown length; send its transcript")
        elif isinstance(value, dict | list):
            _walk(value, found)


def _caches(part: Any, found: Content) -> None:
    control = cast("dict[str, Any]", part).get("cache_control") if isinstance(part, dict) else None
    if control is not None:
        found.written = True
        ttl = cast("dict[str, Any]", control).get("ttl") if isinstance(control, dict) else None
        # Only five minutes and one hour exist; whatever is not the former counts as the latter.
        found.written_hour = found.written_hour or ttl not in (None, "5m")


def _locator(part: dict[str, Any], name: str) -> str:
    value = part.get(name)
    url = cast("dict[str, Any]", value).get("url") if isinstance(value, dict) else value
    return url if isinstance(url, str) else ""


def _picture(part: dict[str, Any], found: Content) -> None:
    url = _locator(part, "image_url")
    stated = part.get("image_url")
    form = cast("dict[str, Any]", stated).get("format") if isinstance(stated, dict) else None
    if url[:5] == "data:":
        _data_url(url, found)
    elif isinstance(form, str) and not form.startswith("image/"):
        found.references.append("a file by URL has a length that is not known; send its content")
    elif not url or url.partition("?")[0].lower().endswith(_PICTURE_ENDINGS):
        found.images += 1
    else:
        found.unsure += 1


def _data_url(url: str, found: Content) -> None:
    media, _, data = url[5:].partition(",")
    _media(media.partition(";")[0].lower(), data, found)


def _media(form: str, data: Any, found: Content) -> None:
    size = len(data) if isinstance(data, str) else 0
    found.hidden_bytes += size
    if form.startswith("image"):
        found.images += 1
    elif form.startswith("audio"):
        found.audio_bytes += size * 3 // 4
    else:
        found.documents += 1


def _inline(value: dict[str, Any], found: Content) -> None:
    form = value.get("mimeType") or value.get("mime_type") or ""
    _media(str(form).lower(), value.get("data"), found)


def _audio(part: dict[str, Any], found: Content) -> None:
    value = part.get("input_audio") or part.get("audio")
    data = cast("dict[str, Any]", value).get("data") if isinstance(value, dict) else None
    if isinstance(data, str) and not data.startswith(("http", "gs:")):
        _media("audio", data, found)
    else:
        found.references.append("audio by URL has a length that is not known; send its content")


def _file(part: dict[str, Any], found: Content) -> None:
    value = part.get("file")
    file = cast("dict[str, Any]", value) if isinstance(value, dict) else part
    data = file.get("file_data")
    if not isinstance(data, str) or file.get("file_id") or file.get("file_url") or data.startswith(("http", "gs:")):
        found.references.append("a file by id or URL has a length that is not known; send its content")
    elif data[:5] == "data:":
        _data_url(data, found)
    else:
        _media("", data, found)


def _url(part: dict[str, Any], found: Content) -> None:
    url = _locator(part, "video_url") or _locator(part, "audio_url") or _locator(part, "document_url")
    if url[:5] == "data:":
        _data_url(url, found)
    else:
        found.references.append("audio, video or a document by URL has a length that is not known; send its content")


def _source(part: dict[str, Any], found: Content) -> None:
    """Anthropic's `image` and `document` blocks; `image` parts of others have a URL or their data in them."""
    source = part.get("source")
    if part.get("type") == "image":
        picture = cast("dict[str, Any]", source) if isinstance(source, dict) else part
        data = picture.get("data") or picture.get("image")
        _media(str(picture.get("media_type") or "image").lower(), data, found)
        return
    origin = cast("dict[str, Any]", source) if isinstance(source, dict) else {}
    if origin.get("type") == "base64":
        _media("", origin.get("data"), found)
    elif origin.get("type") == "content":
        _walk(origin.get("content"), found)
    elif origin.get("type") != "text":
        found.references.append("a document by id or URL has a length that is not known; send its content")


def _screenshot(part: dict[str, Any], found: Content) -> None:
    found.images += 1
    for value in part.values():
        _walk(value, found)


def _text(part: dict[str, Any], found: Content) -> None:
    """Arguments of a tool call: whatever they look like, the model reads their text."""


def _reference(part: dict[str, Any], found: Content) -> None:
    found.references.append(f"`{part['type']}` refers to content of unknown length; send the content itself")


_READERS = {
    "image_url": _picture,
    "input_image": _picture,
    "image": _source,
    "document": _source,
    "input_audio": _audio,
    "audio": _audio,
    "file": _file,
    "input_file": _file,
    "video_url": _url,
    "audio_url": _url,
    "document_url": _url,
    "computer_call_output": _screenshot,
    "image_generation_call": _screenshot,
    "tool_use": _text,
    "function_call": _text,
    "item_reference": _reference,
    "container_upload": _reference,
}
