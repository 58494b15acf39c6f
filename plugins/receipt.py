"""What an answer says it used and cost, whatever its shape: chat, completion, embedding, Responses, Messages or
generateContent."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import orjson

from core.money import nano_dollars
from core.usage import UsageState
from plugins import usage_metadata


@dataclass(frozen=True, slots=True)
class Receipt:
    """Tokens, and cost in nano-dollars (None where nothing prices the model). Input includes cached tokens."""

    usage: str
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost_nano: int | None = None
    from_cache: bool = False


def of_answer(response: Any, model: str | None, call: Any, deployment: str | None = None) -> Receipt:
    """The receipt of a complete answer of `model`; `call` is LiteLLM's logging object, which prices what the answer
    does not, except generateContent by the prices of a `deployment`'s own."""
    hidden = _hidden(response)
    if hidden.get("cache_hit") is True:
        return Receipt(UsageState.NONE, cost_nano=0, from_cache=True)
    usage = _field(response, "usage")
    if usage is None and (metadata := _field(response, usage_metadata.NAME)) is not None:
        return _of_metadata(metadata, model, call, deployment, _price(call, response))
    tokens = _tokens(usage)
    if usage is not None and not (tokens.input or tokens.output):
        # LiteLLM writes zeros where the provider reports nothing; no answer takes no tokens.
        return of_usage(_counted(response, call), model, call, UsageState.ESTIMATED)
    cost = hidden.get("response_cost")
    if cost is None:
        cost = call.model_call_details.get("response_cost") or _price(call, response)
    if usage is None and cost is None:
        return Receipt(UsageState.UNKNOWN)
    return Receipt(UsageState.REPORTED, *tokens, _nano(cost))


def _of_metadata(metadata: Any, model: str | None, call: Any, deployment: str | None, cost: float | None) -> Receipt:
    """The receipt of an answer to generateContent. `cost` is what LiteLLM makes of its form: in some versions and for
    some providers nothing, in others more than the tokens, where it was grounded in a search."""
    if not _says_something(metadata):
        return Receipt(UsageState.UNKNOWN)
    found = of_usage(metadata, model, call, deployment=deployment)
    return found if not cost else replace(found, cost_nano=max(found.cost_nano or 0, nano_dollars(cost)))


def of_chat_stream(stream: Any, call: Any, deployment: str | None = None) -> Receipt:
    """The receipt of a chat or completion stream, as far as it has come.

    A provider's own report, wherever it stood among the chunks, counts as reported; without one LiteLLM counts what
    arrived.
    """
    if getattr(stream, "custom_llm_provider", None) == "cached_response":
        return Receipt(UsageState.NONE, cost_nano=0, from_cache=True)
    chunks: list[Any] = getattr(stream, "chunks", None) or []
    reported = next((usage for chunk in reversed(chunks) if (usage := getattr(chunk, "usage", None))), None)
    if reported is not None:
        return of_usage(reported, _model_of(stream, call), call, deployment=deployment)
    if not chunks:
        return Receipt(UsageState.UNKNOWN)
    import litellm

    if not _anything_said(chunks):
        return Receipt(UsageState.UNKNOWN)
    messages = getattr(stream, "messages", None)
    whole = litellm.stream_chunk_builder(chunks, messages=messages, logging_obj=call)
    usage = getattr(whole, "usage", None)
    if usage is not None and not _says_something(usage) and messages:
        usage = _count_of(messages, _texts(whole))  # behind generateContent LiteLLM makes zeros of what it is not told
    if usage is None or not _says_something(usage):
        return Receipt(UsageState.UNKNOWN)
    return of_usage(usage, _model_of(stream, call), call, UsageState.ESTIMATED, deployment)


def _model_of(stream: Any, call: Any) -> str | None:
    """The stream's model, behind generateContent with its provider, since prices are looked for by both."""
    model, provider = getattr(stream, "model", None), getattr(stream, "custom_llm_provider", None)
    return f"{provider}/{model}" if model and provider and _is_generate_content(call) else model


def _anything_said(chunks: list[Any]) -> bool:
    """Whether any of the answer arrived. Where none did, nothing tells how much of it there was."""
    for chunk in chunks:
        for choice in getattr(chunk, "choices", None) or []:
            delta = getattr(choice, "delta", None)
            said = (getattr(delta, name, None) for name in ("content", "tool_calls", "reasoning_content"))
            if any(said) or getattr(choice, "text", None):
                return True
    return False


def stream_behind(response: Any) -> Any:
    """The stream that keeps the chunks, where LiteLLM has wrapped it, else the response itself.

    A completion stream stands behind an iterator that carries headers, a translator of chunks, and generators that hold
    it in a local variable once they run: look after the first chunk.
    """
    if hasattr(response, "chunks"):
        return response
    layer = [response]
    for _ in range(_MOST_WRAPPERS):
        layer = [inner for outer in layer for inner in _wrapped(outer)]
        found = next((stream for stream in layer if isinstance(getattr(stream, "chunks", None), list)), None)
        if found is not None:
            return found
    return response


_MOST_WRAPPERS = 5


def _wrapped(outer: Any) -> list[Any]:
    frame = getattr(outer, "ag_frame", None)
    if frame is not None:
        return [value for value in frame.f_locals.values() if hasattr(value, "__aiter__")]
    return [inner for name in ("inner", "completion_stream") if (inner := getattr(outer, name, None)) is not None]


def of_usage(
    usage: Any, model: str | None, call: Any, state: str = UsageState.REPORTED, deployment: str | None = None
) -> Receipt:
    """The receipt of a usage block in any of the dialects, priced by LiteLLM as a call of `model`; generateContent by
    the `deployment`'s own prices, where it has some."""
    import litellm

    priced = litellm.ModelResponse(model=model, usage=chat_usage(usage))
    cost = _own_price(priced, model, deployment) if _is_generate_content(call) else None
    if cost is None:
        cost = _price(call, priced)
    return Receipt(state, *_tokens(usage), _nano(cost))


def usage_in_event(event: bytes) -> dict[str, Any] | None:
    """The usage block in one server-sent event of any dialect, None if it holds none."""
    start = event.find(b"{")
    if start < 0:
        return None
    try:
        data = orjson.loads(event[start:])
    except orjson.JSONDecodeError:
        return None
    for holder in (data, data.get("response"), data.get("message")):
        if isinstance(holder, dict):
            usage: Any = holder.get("usage", holder.get(usage_metadata.NAME))
            if isinstance(usage, dict):
                # LiteLLM fills the chunks of a completion stream with zeros where it has nothing to say.
                return usage if _says_something(usage) else None
    return None


def may_hold_usage(body: bytes) -> bool:
    """Whether it is worth reading a stream's events for usage."""
    return b'"usage"' in body or b'"usageMetadata"' in body


def _says_something(usage: Any) -> bool:
    counts = _counts(usage)
    return any(counts.get(name) for name in _TOKENS)


_TOKENS = ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", *usage_metadata.COUNTS)


_FINAL = (
    b'"chat.completion.chunk"',
    b'"text_completion"',
    b'"message_delta"',
    b'"response.completed"',
    b'"response.incomplete"',
    b'"response.failed"',
)


def is_final(event: bytes) -> bool:
    """True for an event with usage in which its dialect reports the whole of it.

    LiteLLM strips usage from every chunk of a chat stream but the last.
    """
    return any(mark in event for mark in _FINAL)


class _Tokens(NamedTuple):
    """As a `Receipt` has them, in its order."""

    input: int = 0
    output: int = 0
    cached: int = 0
    reasoning: int = 0


def _tokens(usage: Any) -> _Tokens:
    """What a usage block of any of the dialects says; nothing where there is none."""
    if usage is None:
        return _Tokens()
    if usage_metadata.is_metadata(usage):
        usage = usage_metadata.in_openais_words(usage)
    fields, counts = _fields(usage), _counts(usage)
    prompt = counts.get("prompt_tokens", 0)
    output = counts.get("completion_tokens", 0) or counts.get("output_tokens", 0)
    details = fields.get("prompt_tokens_details") or fields.get("input_tokens_details")
    cached = _counts(details).get("cached_tokens", 0) or counts.get("cache_read_input_tokens", 0)
    out_details = fields.get("completion_tokens_details") or fields.get("output_tokens_details")
    reasoning = _counts(out_details).get("reasoning_tokens", 0)
    if not prompt:
        prompt = counts.get("input_tokens", 0)
        if details is None:
            # The Messages dialect counts cached input beside the rest, the others count it within.
            prompt += counts.get("cache_read_input_tokens", 0) + counts.get("cache_creation_input_tokens", 0)
    return _Tokens(prompt, output, cached, reasoning)


def _counted(response: Any, call: Any) -> dict[str, int]:
    """Usage as LiteLLM's tokenizer counts it, from the request and from the text of the answer."""
    asked = call.model_call_details.get("messages") or call.model_call_details.get("input") or ""
    return _count_of(asked, _texts(response))


def _texts(response: Any) -> list[str]:
    """What a chat or a completion says, calls of tools included."""
    texts: list[str] = []
    for choice in _field(response, "choices") or []:
        message = _field(choice, "message")
        if text := _field(message, "content") or _field(choice, "text"):
            texts.append(text)
        for tool in _field(message, "tool_calls") or []:
            function = _field(tool, "function")
            texts.append(f"{_field(function, 'name')}{_field(function, 'arguments')}")
    return texts


def _count_of(asked: Any, texts: list[str]) -> dict[str, int]:
    import litellm

    messages = asked if isinstance(asked, list) and all(isinstance(item, dict) for item in asked) else None
    plain = None if messages else " ".join(map(str, asked)) if isinstance(asked, list) else str(asked)
    return {
        "prompt_tokens": litellm.token_counter(messages=messages, text=plain),
        "completion_tokens": litellm.token_counter(text="".join(texts)) if texts else 0,
    }


def tokens_of(usage: Any) -> Receipt:
    """The tokens in a usage block of any of the dialects, without a cost."""
    return Receipt(UsageState.UNKNOWN if usage is None else UsageState.REPORTED, *_tokens(usage))


def goes_on(answer: Any) -> bool:
    """Whether the answer is that of a request in the background, which is still at work."""
    return _field(answer, "object") == "response" and _field(answer, "status") in ("queued", "in_progress")


def chat_usage(usage: Any) -> Any:
    """A usage block of any of the dialects as LiteLLM's own, which is the one it prices."""
    import litellm

    if isinstance(usage, litellm.Usage):
        return usage
    if usage_metadata.is_metadata(usage):
        return litellm.Usage(**usage_metadata.in_openais_words(usage))
    tokens = _tokens(usage)
    fields: dict[str, Any] = {
        "prompt_tokens": tokens.input,
        "completion_tokens": tokens.output,
        "total_tokens": tokens.input + tokens.output,
    }
    if tokens.reasoning:
        fields["reasoning_tokens"] = tokens.reasoning
    if tokens.cached:
        fields["prompt_tokens_details"] = {"cached_tokens": tokens.cached}
        fields["cache_read_input_tokens"] = tokens.cached
    if written := _counts(usage).get("cache_creation_input_tokens"):
        fields["cache_creation_input_tokens"] = written
    return litellm.Usage(**fields)


def _price(call: Any, result: Any) -> float | None:
    # The method lost its underscore between the oldest and the newest LiteLLM we support.
    calculate = getattr(call, "response_cost_calculator", None) or call._response_cost_calculator
    try:
        return calculate(result=result)
    except Exception:  # an unpriced model must not fail its request
        return None


def _is_generate_content(call: Any) -> bool:
    return "generate_content" in str(getattr(call, "call_type", ""))


def _own_price(result: Any, model: str | None, deployment: str | None) -> float | None:
    """What the deployment's own prices make of it: LiteLLM looks for these everywhere but behind generateContent. None
    where it has none."""
    import litellm

    own = litellm.model_cost.get(deployment or "", {})
    if not any("cost_per_" in name and value for name, value in own.items()):
        return None
    try:
        return litellm.completion_cost(result, model=model, custom_pricing=True, router_model_id=deployment)
    except Exception:  # an unpriced model must not fail its request
        return None


def _nano(cost: float | None) -> int | None:
    return None if cost is None or cost == "" else nano_dollars(cost)


def _hidden(response: Any) -> Mapping[str, Any]:
    hidden = response.get("_hidden_params") if isinstance(response, dict) else getattr(response, "_hidden_params", None)
    return hidden if isinstance(hidden, dict) else {}


def _fields(model: Any) -> Mapping[str, Any]:
    """The fields of a pydantic model, or of JSON: asking a model for a field it lacks costs more than all the rest."""
    if model is None or isinstance(model, dict):
        return model or {}
    own: Mapping[str, Any] = getattr(model, "__dict__", {})
    extra = getattr(model, "__pydantic_extra__", None)
    return {**own, **extra} if extra else own


def _counts(model: Any) -> dict[str, int]:
    """Those of its fields that are whole numbers."""
    return {name: value for name, value in _fields(model).items() if isinstance(value, int)}


def _field(holder: Any, name: str) -> Any:
    if holder is None:
        return None
    return holder.get(name) if isinstance(holder, dict) else getattr(holder, name, None)
