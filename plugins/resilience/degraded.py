"""What a client gets where every model failed: the policy's own words in the dialect of the endpoint, or one form of
error."""

import math
import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import orjson

from core.breakers import Verdict
from core.errors import AllModelsFailed
from plugins.resilience.retries import Failed


class Reason(StrEnum):
    """What `{reason}` in a fallback response stands for."""

    UNAVAILABLE = "unavailable"
    TIMEOUT = "timeout"
    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"


_OVERLOADED = 529
"""Anthropic's status."""
_LONGEST = 300.0


def reason_of(failed: Sequence[Failed]) -> Reason:
    """The class of what went wrong last."""
    if not failed:
        return Reason.UNAVAILABLE
    last = failed[-1]
    if last.status == _OVERLOADED:
        return Reason.OVERLOADED
    if last.status == 429 or last.outcome.verdict is Verdict.THROTTLED:
        return Reason.RATE_LIMITED
    if last.status in (408, 504) or "Timeout" in last.error:
        return Reason.TIMEOUT
    return Reason.UNAVAILABLE


def all_failed(asked: str, failed: Sequence[Failed], opens_at: float | None, now: float) -> AllModelsFailed:
    """The error of a request whose candidates all failed. `opens_at` is when the first of them may be asked again,
    in Unix seconds, None where nothing says so."""
    reason = reason_of(failed)
    waits = [one.asked for one in failed if one.asked is not None]
    if opens_at is not None:
        waits.append(opens_at - now)
    seconds = math.ceil(min(max(min(waits, default=1.0), 1.0), _LONGEST))
    tried = {one.group: _words(one) for one in failed}
    told = "; ".join(f"{group}: {words}" for group, words in tried.items())
    message = (
        f"Every model behind {asked!r} failed ({told}); try again in {seconds} s."
        if tried
        else f"Every model behind {asked!r} failed lately and is left alone for now; try again in {seconds} s."
    )
    details = {"model": asked, "reason": reason.value, "failed": tried}
    return AllModelsFailed(message, details=details, headers={"retry-after": str(seconds)})


def _words(failed: Failed) -> str:
    """A provider's own message may hold a prompt, or a key, and is not repeated."""
    return f"status {failed.status}" if failed.status else failed.error


# -- the policy's own words --------------------------------------------------------------------------------------------

Body = tuple[bytes, list[bytes]]
"""A content type, and what is sent: one piece, or the events of a stream."""

_JSON = b"application/json"
_EVENTS = b"text/event-stream; charset=utf-8"
_FILTERED = "content_filter"
"""OpenAI's word for an answer in place of which there is something else; any other would look like the model's own."""


def answer(endpoint: str, stream: bool, model: str, text: str, request_id: str) -> Body | None:
    """`text` as an answer of this endpoint, None for one that answers with something else than text."""
    make = DIALECTS.get(endpoint)
    return None if make is None else make(stream, model, text, request_id.replace("-", ""), int(time.time()))


def _chat(stream: bool, model: str, text: str, name: str, now: int) -> Body:
    head = {"id": f"chatcmpl-{name}", "created": now, "model": model}
    message = {"role": "assistant", "content": text}
    if not stream:
        choice = {"index": 0, "message": message, "finish_reason": _FILTERED, "logprobs": None}
        return _JSON, [orjson.dumps({**head, "object": "chat.completion", "choices": [choice], "usage": _usage()})]
    head["object"] = "chat.completion.chunk"
    first = {"index": 0, "delta": message, "finish_reason": None, "logprobs": None}
    last = {"index": 0, "delta": {}, "finish_reason": _FILTERED, "logprobs": None}
    return _EVENTS, [_event({**head, "choices": [first]}), _event({**head, "choices": [last]}), _DONE]


def _completion(stream: bool, model: str, text: str, name: str, now: int) -> Body:
    head = {"id": f"cmpl-{name}", "object": "text_completion", "created": now, "model": model}
    choice = {"index": 0, "text": text, "finish_reason": _FILTERED, "logprobs": None}
    if not stream:
        return _JSON, [orjson.dumps({**head, "choices": [choice], "usage": _usage()})]
    return _EVENTS, [_event({**head, "choices": [choice]}), _DONE]


def _response(stream: bool, model: str, text: str, name: str, now: int) -> Body:
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {"type": "message", "id": f"msg_{name}", "status": "completed", "role": "assistant", "content": [part]}
    whole: dict[str, Any] = {
        "id": f"resp_{name}",
        "object": "response",
        "created_at": now,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {"degraded": "true"},
        "model": model,
        "output": [item],
        "parallel_tool_calls": True,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "usage": {
            "input_tokens": 0,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 0,
        },
    }
    if not stream:
        return _JSON, [orjson.dumps(whole)]
    at = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    empty = {**part, "text": ""}
    events: list[tuple[str, dict[str, Any]]] = [
        ("response.created", {"response": begun}),
        ("response.in_progress", {"response": begun}),
        ("response.output_item.added", {"output_index": 0, "item": {**item, "status": "in_progress", "content": []}}),
        ("response.content_part.added", {**at, "part": empty}),
        ("response.output_text.delta", {**at, "delta": text, "logprobs": []}),
        ("response.output_text.done", {**at, "text": text, "logprobs": []}),
        ("response.content_part.done", {**at, "part": part}),
        ("response.output_item.done", {"output_index": 0, "item": item}),
        ("response.completed", {"response": whole}),
    ]
    return _EVENTS, [
        _event({"type": kind, "sequence_number": number, **event}, kind) for number, (kind, event) in enumerate(events)
    ]


def _message(stream: bool, model: str, text: str, name: str, now: int) -> Body:
    part = {"type": "text", "text": text}
    end = {"stop_reason": "refusal", "stop_sequence": None}
    head = {"id": f"msg_{name}", "type": "message", "role": "assistant", "model": model}
    nothing = {"input_tokens": 0, "output_tokens": 0}
    if not stream:
        return _JSON, [orjson.dumps({**head, "content": [part], **end, "usage": nothing})]
    begun = {**head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": nothing}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": begun},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": end, "usage": nothing},
        {"type": "message_stop"},
    ]
    return _EVENTS, [_event(event, event["type"]) for event in events]


DIALECTS = {"chat_completions": _chat, "completions": _completion, "responses": _response, "messages": _message}
_DONE = b"data: [DONE]\n\n"


def _usage() -> dict[str, int]:
    return {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def _event(data: Mapping[str, Any], kind: str | None = None) -> bytes:
    name = b"" if kind is None else f"event: {kind}\n".encode()
    return name + b"data: " + orjson.dumps(data) + b"\n\n"
