"""The fake provider's answers: pure functions from a request and a behaviour to bytes and tokens.

Tokens are deterministic: one for every whitespace-separated word. `plan` counts, the dialects below only phrase.
"""

from __future__ import annotations

import base64
import itertools
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from tests.support.provider.script import Behaviour

Body = dict[str, Any]

_SENTENCE = "the quick brown fox jumps over the lazy dog while seven wizards pack my box with liquor jugs"
_WORDS = _SENTENCE.split()
_OUTPUT_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_serial = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Answer:
    """What will be said and what it costs, before it is phrased in any dialect."""

    id: str
    model: str
    words: list[str]
    choices: int
    finished: bool
    """False: the output limit ended it."""
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    """Of one choice."""
    report_usage: bool

    @property
    def text(self) -> str:
        return " ".join(self.words)


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event, and the output tokens that were generated for it."""

    data: bytes
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one endpoint phrases an answer. `stream` is None where the API has no streams."""

    whole: Callable[[Answer, Body], Body]
    stream: Callable[[Answer, Body], Iterator[Event]] | None


def count_words(content: object) -> int:
    """Prompt tokens of whatever a request may hold: text, message lists, content parts, lists of token ids."""
    if isinstance(content, str):
        return len(content.split())
    if isinstance(content, list):
        return sum(1 if isinstance(item, int) else count_words(item) for item in content)
    if isinstance(content, dict):
        return count_words(content.get("content", content.get("text")))
    return 0


def plan(endpoint: str, body: Body, behaviour: Behaviour) -> Answer:
    """Decide the answer to one request."""
    prompt = behaviour.prompt_tokens
    if prompt is None:
        prompt = sum(count_words(body.get(name)) for name in ("messages", "prompt", "input", "system", "instructions"))
    if endpoint == "/v1/embeddings":
        words, choices, billed, reasoning, finished = [], 0, 0, 0, True
    else:
        limit = min((body[name] for name in _OUTPUT_LIMITS if isinstance(body.get(name), int)), default=1 << 31)
        reasoning = min(behaviour.reasoning_tokens, limit)
        wanted = behaviour.output_tokens if behaviour.text is None else len(behaviour.text.split())
        visible = min(wanted, limit - reasoning)
        source = _WORDS if behaviour.text is None else behaviour.text.split()
        words = [source[index % len(source)] for index in range(visible)]
        choices = body.get("n") or 1
        billed = (visible + reasoning) * max(choices, body.get("best_of") or 1)
        finished = visible == wanted and reasoning == behaviour.reasoning_tokens
    return Answer(
        id=f"fake-{next(_serial):08d}",
        model=str(body.get("model", "")),
        words=words,
        choices=choices,
        finished=finished,
        prompt_tokens=prompt,
        completion_tokens=billed,
        cached_tokens=min(behaviour.cached_tokens, prompt),
        reasoning_tokens=reasoning,
        report_usage=behaviour.usage,
    )


def _data(value: object, event: str | None = None) -> bytes:
    head = b"" if event is None else b"event: " + event.encode() + b"\n"
    return head + b"data: " + orjson.dumps(value) + b"\n\n"


def _typed(kind: str, **fields: object) -> bytes:
    return _data({"type": kind, **fields}, event=kind)


# ---- Chat completions and completions ----


def _openai_usage(answer: Answer) -> Body:
    usage: Body = {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }
    if answer.cached_tokens:
        usage["prompt_tokens_details"] = {"cached_tokens": answer.cached_tokens}
    if answer.reasoning_tokens:
        usage["completion_tokens_details"] = {"reasoning_tokens": answer.reasoning_tokens * answer.choices}
    return usage


def _completion(answer: Answer, kind: str, choice: Callable[[int], Body]) -> Body:
    body: Body = {
        "id": f"cmpl-{answer.id}",
        "object": kind,
        "created": int(time.time()),
        "model": answer.model,
        "choices": [choice(index) for index in range(answer.choices)],
    }
    if answer.report_usage:
        body["usage"] = _openai_usage(answer)
    return body


def _finish(answer: Answer) -> str:
    return "stop" if answer.finished else "length"


def _chat(answer: Answer, _: Body) -> Body:
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    return _completion(
        answer,
        "chat.completion",
        lambda index: {"index": index, "message": message, "finish_reason": _finish(answer), "logprobs": None},
    )


def _text(answer: Answer, _: Body) -> Body:
    return _completion(
        answer,
        "text_completion",
        lambda index: {"index": index, "text": answer.text, "finish_reason": _finish(answer), "logprobs": None},
    )


def _chunks(answer: Answer, body: Body, kind: str, piece: Callable[[str | None], Body]) -> Iterator[Event]:
    """A stream of chunks: each choice's words one by one, its end, then usage for those who asked, then [DONE]."""
    frame = {"id": f"cmpl-{answer.id}", "object": kind, "created": int(time.time()), "model": answer.model}
    # Every choice thinks first; what is billed beyond the choices shown (best_of) is generated before the first word.
    hidden = answer.completion_tokens - len(answer.words) * answer.choices
    for index in range(answer.choices):
        for position, word in enumerate(answer.words):
            text = word if position == 0 else " " + word
            data = _data({**frame, "choices": [{"index": index, **piece(text), "finish_reason": None}]})
            yield Event(data, 1 + hidden)
            hidden = 0
    for index in range(answer.choices):
        ending = {"index": index, **piece(None), "finish_reason": _finish(answer)}
        yield Event(_data({**frame, "choices": [ending]}), hidden)
        hidden = 0
    options = body.get("stream_options") or {}
    if answer.report_usage and options.get("include_usage"):
        yield Event(_data({**frame, "choices": [], "usage": _openai_usage(answer)}))
    yield Event(b"data: [DONE]\n\n")


def _chat_stream(answer: Answer, body: Body) -> Iterator[Event]:
    def piece(text: str | None) -> Body:
        return {"delta": {} if text is None else {"role": "assistant", "content": text}}

    return _chunks(answer, body, "chat.completion.chunk", piece)


def _text_stream(answer: Answer, body: Body) -> Iterator[Event]:
    return _chunks(answer, body, "text_completion", lambda text: {"text": text or ""})


# ---- Embeddings ----


def _vector(item: object, dimensions: int) -> list[float]:
    """A vector that depends on the item alone, each component in [-1, 1]."""
    seed = orjson.dumps(item)
    return [zlib.crc32(seed, position) / 0x7FFFFFFF - 1 for position in range(dimensions)]


def _embeddings(answer: Answer, body: Body) -> Body:
    given = body.get("input")
    items = given if isinstance(given, list) and not (given and isinstance(given[0], int)) else [given]
    as_base64 = body.get("encoding_format") == "base64"
    data: list[Body] = []
    for index, item in enumerate(items):
        vector: Any = _vector(item, body.get("dimensions") or 8)
        if as_base64:
            vector = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    whole: Body = {"object": "list", "model": answer.model, "data": data}
    if answer.report_usage:
        whole["usage"] = {"prompt_tokens": answer.prompt_tokens, "total_tokens": answer.prompt_tokens}
    return whole


# ---- Responses ----


def _responses_usage(answer: Answer) -> Body:
    return {
        "input_tokens": answer.prompt_tokens,
        "input_tokens_details": {"cached_tokens": answer.cached_tokens},
        "output_tokens": answer.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": answer.reasoning_tokens},
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }


def _output_item(answer: Answer, status: str) -> Body:
    done = status == "completed"
    content = [{"type": "output_text", "text": answer.text, "annotations": []}] if done else []
    return {"id": f"msg-{answer.id}", "type": "message", "role": "assistant", "status": status, "content": content}


def _response(answer: Answer, body: Body, status: str | None = None) -> Body:
    status = status or ("completed" if answer.finished else "incomplete")
    ended = status != "in_progress"
    return {
        "id": f"resp-{answer.id}",
        "object": "response",
        "created_at": int(time.time()),
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "metadata": body.get("metadata") or {},
        "model": answer.model,
        "output": [_output_item(answer, "completed")] if ended else [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": _responses_usage(answer) if ended and answer.report_usage else None,
    }


def _response_stream(answer: Answer, body: Body) -> Iterator[Event]:
    number = itertools.count()

    def event(kind: str, tokens: int = 0, **fields: object) -> Event:
        return Event(_typed(kind, sequence_number=next(number), **fields), tokens)

    place = {"item_id": f"msg-{answer.id}", "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": answer.text, "annotations": []}
    started = _response(answer, body, "in_progress")
    yield event("response.created", response=started)
    yield event("response.in_progress", response=started)
    item = _output_item(answer, "in_progress")
    yield event("response.output_item.added", answer.reasoning_tokens, output_index=0, item=item)
    yield event("response.content_part.added", **place, part={**part, "text": ""})
    for position, word in enumerate(answer.words):
        text = word if position == 0 else " " + word
        yield event("response.output_text.delta", 1, **place, delta=text, logprobs=[])
    yield event("response.output_text.done", **place, text=answer.text, logprobs=[])
    yield event("response.content_part.done", **place, part=part)
    yield event("response.output_item.done", output_index=0, item=_output_item(answer, "completed"))
    yield event("response.completed" if answer.finished else "response.incomplete", response=_response(answer, body))


# ---- Anthropic messages ----


def _anthropic_input(answer: Answer) -> Body:
    """Anthropic counts what it reads from the cache beside the other input, not within it."""
    return {
        "input_tokens": answer.prompt_tokens - answer.cached_tokens,
        "cache_read_input_tokens": answer.cached_tokens,
        "cache_creation_input_tokens": 0,
    }


def _message(answer: Answer, _: Body) -> Body:
    whole: Body = {
        "id": f"msg-{answer.id}",
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": [{"type": "text", "text": answer.text}],
        "stop_reason": "end_turn" if answer.finished else "max_tokens",
        "stop_sequence": None,
    }
    if answer.report_usage:
        whole["usage"] = {**_anthropic_input(answer), "output_tokens": answer.completion_tokens}
    return whole


def _message_stream(answer: Answer, body: Body) -> Iterator[Event]:
    start = {**_message(answer, body), "content": [], "stop_reason": None}
    if answer.report_usage:
        start["usage"] = {**_anthropic_input(answer), "output_tokens": 1}
    yield Event(_typed("message_start", message=start), answer.reasoning_tokens)
    yield Event(_typed("content_block_start", index=0, content_block={"type": "text", "text": ""}))
    yield Event(_typed("ping"))
    for position, word in enumerate(answer.words):
        text = word if position == 0 else " " + word
        yield Event(_typed("content_block_delta", index=0, delta={"type": "text_delta", "text": text}), 1)
    yield Event(_typed("content_block_stop", index=0))
    delta: Body = {"stop_reason": "end_turn" if answer.finished else "max_tokens", "stop_sequence": None}
    ending: Body = {"delta": delta}
    if answer.report_usage:
        ending["usage"] = {"output_tokens": answer.completion_tokens}
    yield Event(_typed("message_delta", **ending))
    yield Event(_typed("message_stop"))


DIALECTS: dict[str, Dialect] = {
    "/v1/chat/completions": Dialect(_chat, _chat_stream),
    "/v1/completions": Dialect(_text, _text_stream),
    "/v1/embeddings": Dialect(_embeddings, None),
    "/v1/responses": Dialect(_response, _response_stream),
    "/v1/messages": Dialect(_message, _message_stream),
}

_ERROR_TYPES = {
    400: ("invalid_request_error", "invalid_request"),
    401: ("authentication_error", "invalid_api_key"),
    403: ("permission_error", "model_not_allowed"),
    404: ("not_found_error", "model_not_found"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}


def error(endpoint: str, status: int) -> Body:
    """The error body of an endpoint's API for a status."""
    kind, code = _ERROR_TYPES.get(status, ("server_error", "server_error"))
    message = f"The fake provider was told to answer {status}."
    if endpoint == "/v1/messages":
        return {"type": "error", "error": {"type": kind if status < 500 else "api_error", "message": message}}
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
