"""Counting the input tokens of a request exactly, where the model's tokenizer is at hand."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

_ENCODINGS = (
    (re.compile(r"(ft:)?(gpt-4o|gpt-4\.1|gpt-5|chatgpt-4o|o1|o3|o4-mini)([-.:]|$)"), "o200k_base"),
    (re.compile(r"(ft:)?(gpt-4|gpt-3\.5-turbo|text-embedding-3|text-embedding-ada-002)([-:]|$)"), "cl100k_base"),
)
_URL = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"

_PER_MESSAGE = 4
"""`<|start|>`, role, `<|message|>`, `<|end|>` cost three tokens beside the role's text, four in the oldest models; see
cookbook.openai.com/examples/how_to_count_tokens_with_tiktoken."""

_PER_REQUEST = 16
"""The beginning of the answer costs three tokens; reasoning models have some of their own, never as many as this."""


def exact_input_tokens(endpoint: str, body: Mapping[str, Any], models: Sequence[str]) -> int | None:
    """The input tokens of `body` by OpenAI's own tokenizer, with the framing round messages rounded up.

    `models` are LiteLLM's strings, one for each deployment that may answer; the most tokens of any of them counts. None
    where no tokenizer of one is at hand, or where the prompt is more than text: tools, pictures, schemas of answers.
    Nothing is ever downloaded.
    """
    encodings = {_encoding_of(model) for model in models}
    if None in encodings or not encodings or not _NOT_TEXT.isdisjoint(body.keys()):
        return None
    texts = _texts(endpoint, body)
    if texts is None:
        return None
    import tiktoken

    framing = 0 if endpoint == "embeddings" else _PER_REQUEST + _PER_MESSAGE * len(texts)
    encoders = [tiktoken.get_encoding(encoding).encode_ordinary for encoding in encodings if encoding]
    return framing + max(sum(len(encode(text)) for text in texts) for encode in encoders)


_NOT_TEXT = frozenset(
    {
        *("tools", "functions", "response_format", "text", "modalities", "audio", "prediction", "web_search_options"),
        *("previous_response_id", "conversation", "prompt_id", "prompt_variables", "extra_body", "mcp_servers"),
    }
)
"""Fields that add to the prompt what a tokenizer cannot see."""


@lru_cache(maxsize=1024)
def _encoding_of(model: str) -> str | None:
    provider, _, name = model.rpartition("/")
    if provider not in ("", "openai", "azure"):
        return None
    encoding = next((encoding for pattern, encoding in _ENCODINGS if pattern.match(name)), None)
    return encoding if encoding is not None and _at_hand(encoding) else None


@lru_cache
def _at_hand(encoding: str) -> bool:
    """Whether tiktoken finds the encoding in its cache. LiteLLM brings a cache along and points tiktoken at it."""
    import litellm.litellm_core_utils.default_encoding  # noqa: F401  # sets TIKTOKEN_CACHE_DIR

    folder = os.environ.get("TIKTOKEN_CACHE_DIR")
    name = hashlib.sha1(_URL.format(encoding).encode(), usedforsecurity=False).hexdigest()
    return bool(folder) and (Path(folder) / name).is_file()


def _texts(endpoint: str, body: Mapping[str, Any]) -> list[str] | None:
    """Everything the model reads, message by message; None where something is not text."""
    given = body.get(
        {"chat_completions": "messages", "responses": "input", "completions": "prompt"}.get(endpoint, "input")
    )
    texts = [str(body[name]) for name in ("instructions", "suffix") if body.get(name)]
    if endpoint == "responses" and body.get("prompt"):
        return None
    if isinstance(given, str):
        return [*texts, given]
    if not isinstance(given, list) or endpoint not in ("chat_completions", "responses", "completions", "embeddings"):
        return None
    for item in cast("list[Any]", given):
        text = _text_of(item)
        if text is None:
            return None
        texts.append(text)
    return texts


def _text_of(item: Any) -> str | None:
    if isinstance(item, str):
        return item
    if not isinstance(item, dict):
        return None
    message = cast("dict[str, Any]", item)
    if not message.keys() <= {"role", "content", "name", "type"} or message.get("type", "message") != "message":
        return None
    content = message.get("content")
    if isinstance(content, list):
        parts = cast("list[Any]", content)
        if not all(
            isinstance(part, dict) and part.get("type") in ("text", "input_text", "output_text") for part in parts
        ):
            return None
        # Joined by a line, since a provider may put one between parts.
        content = "\n".join(str(part.get("text", "")) for part in parts)
    if not isinstance(content, str):
        return None
    # A name stands in the place of the role, or beside it.
    return " ".join([str(message.get("role", "")), str(message.get("name", "")), content])
