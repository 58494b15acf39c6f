"""A provider that needs no key and no network, for the quickstart and for trying things out.

Registered under `litellm_settings.custom_provider_map` as `litellm_orchestration.demo`. Answers are deterministic,
streams are real streams, token usage is counted, and two deployment parameters make it misbehave on purpose:

    litellm_params: {model: demo/small, demo_latency_ms: 250, demo_failure_rate: 0.1}
"""

import asyncio
import base64
import hashlib
import itertools
import random
import re
import struct
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import httpx
import openai
from litellm.llms.custom_llm import CustomLLM
from litellm.types.utils import Choices, EmbeddingResponse, GenericStreamingChunk, Message, ModelResponse, Usage

_TOKEN = re.compile(r"\w+|[^\w\s]")
_EMBEDDING_DIMENSIONS = 16
_DEFAULT_ANSWER_TOKENS = 256


class DemoProvider(CustomLLM):
    """Answers like a patient clerk: says which model it is and repeats what it was asked."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._chance = random.Random(seed)  # noqa: S311 - decides staged failures, not secrets

    async def acompletion(self, model: str, messages: list[Any], **call: Any) -> ModelResponse:  # type: ignore[override]
        options: Mapping[str, Any] = call["optional_params"]
        await self._behave(options)
        prompt_tokens, pieces, finish = _answer(model, messages, options)
        choices = [
            Choices(index=index, finish_reason=finish, message=Message(role="assistant", content="".join(pieces)))
            for index in range(_copies(options))
        ]
        response: ModelResponse = call["model_response"]
        response.model = model
        response.choices = choices  # type: ignore[assignment]
        response.usage = _usage(prompt_tokens, len(pieces) * len(choices))  # type: ignore[attr-defined]
        return response

    async def astreaming(self, model: str, messages: list[Any], **call: Any) -> AsyncIterator[GenericStreamingChunk]:  # type: ignore[override]
        options: Mapping[str, Any] = call["optional_params"]
        await self._behave(options)
        prompt_tokens, pieces, finish = _answer(model, messages, options)
        pause = float(options.get("demo_latency_ms", 0)) / 1000 / max(1, len(pieces))
        for piece in pieces:
            if pause:
                await asyncio.sleep(pause)
            yield _chunk(piece)
        usage = _usage(prompt_tokens, len(pieces))
        yield _chunk("", finish=finish, usage=usage.model_dump(include={*_TOTALS}))

    async def aembedding(self, model: str, input: list[Any], **call: Any) -> EmbeddingResponse:  # type: ignore[override]
        options: Mapping[str, Any] = call["optional_params"]
        await self._behave(options)
        texts = [input] if isinstance(input, str) else [str(item) for item in input]
        tokens = sum(len(_TOKEN.findall(text)) for text in texts)
        response: EmbeddingResponse = call["model_response"]
        response.model = model
        response.data = [
            {"object": "embedding", "index": index, "embedding": _encoded(_embedding(text), call.get("litellm_params"))}
            for index, text in enumerate(texts)
        ]
        response.usage = _usage(tokens, 0)
        return response

    async def _behave(self, options: Mapping[str, Any]) -> None:
        latency = float(options.get("demo_latency_ms", 0))
        if latency and not options.get("stream"):
            await asyncio.sleep(latency / 1000)
        if self._chance.random() < float(options.get("demo_failure_rate", 0)):
            raise _failure()


def _failure() -> Exception:
    """What a real provider's client raises: an answer with an error status, which bills nothing."""
    response = httpx.Response(500, request=httpx.Request("POST", "https://demo.invalid"))
    return openai.InternalServerError(
        "The demo provider failed, as demo_failure_rate asks of it.", response=response, body=None
    )


_TOTALS = ("prompt_tokens", "completion_tokens", "total_tokens")


def _answer(model: str, messages: Sequence[Any], options: Mapping[str, Any]) -> tuple[int, list[str], str]:
    """Prompt tokens, the answer cut into tokens, and the finish reason."""
    texts = [_text(message.get("content")) for message in messages]
    question = next((text for message, text in zip(messages[::-1], texts[::-1], strict=True) if _is_user(message)), "")
    answer = f"{model} heard: {question.strip() or 'nothing'}"
    pieces = _split(answer)
    limit = int(options.get("max_tokens") or options.get("max_completion_tokens") or _DEFAULT_ANSWER_TOKENS)
    finish = "stop" if len(pieces) <= limit else "length"
    return sum(len(_TOKEN.findall(text)) for text in texts), pieces[:limit], finish


def _split(text: str) -> list[str]:
    """Cut `text` into tokens that join to it again: each keeps the white space before it."""
    ends = itertools.pairwise([0, *(match.end() for match in _TOKEN.finditer(text))])
    return [text[start:end] for start, end in ends]


def _is_user(message: Mapping[str, Any]) -> bool:
    return message.get("role") == "user"


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return ""


def _copies(options: Mapping[str, Any]) -> int:
    return max(1, int(options.get("n") or 1))


def _usage(prompt: int, completion: int) -> Usage:
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def _chunk(text: str, *, finish: str = "", usage: Mapping[str, int] | None = None) -> GenericStreamingChunk:
    return GenericStreamingChunk(
        text=text,
        is_finished=bool(finish),
        finish_reason=finish,
        usage=usage,  # type: ignore[typeddict-item]
        index=0,
        tool_use=None,
    )


def _embedding(text: str) -> list[float]:
    """A unit-free vector that depends on nothing but the text."""
    digest = hashlib.sha256(text.encode()).digest()
    return [value / 255 for value in _take(digest, _EMBEDDING_DIMENSIONS)]


def _encoded(vector: list[float], call: Mapping[str, Any] | None) -> list[float] | str:
    """As OpenAI's clients ask for it by default: base64 of little-endian 32-bit floats.

    LiteLLM lets no custom provider support `encoding_format` and drops it; the client's own body still says it.
    """
    asked = ((call or {}).get("proxy_server_request") or {}).get("body") or {}
    if asked.get("encoding_format") != "base64":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _take(values: Sequence[int], count: int) -> Iterator[int]:
    return itertools.islice(values, count)
