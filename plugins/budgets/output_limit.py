"""The output limit of a request: reading it under all its names, and writing it so that it is the one that is sent."""

from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from typing import Any, cast

_OWN = {
    "chat_completions": ("max_tokens", "max_completion_tokens"),
    "completions": ("max_tokens",),
    "responses": ("max_output_tokens",),
    "messages": ("max_tokens",),
}
"""The names an endpoint has for the limit, the one we write where the client gave none first. LiteLLM translates them
for each provider: `max_completion_tokens` for OpenAI's reasoning models, `maxOutputTokens` for Gemini, `num_predict`
for Ollama, `inferenceConfig.maxTokens` for Bedrock."""

LIMITS = frozenset(
    {
        *("max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens", "max_tokens_to_sample"),
        *("maxTokens", "maxOutputTokens", "maxTokenCount", "max_gen_len", "max_length", "num_predict", "n_predict"),
        *("max_generated_tokens", "maximum_tokens"),
    }
)
"""Every name a provider has for it; what LiteLLM does not know it passes on as it is."""

HOLDERS = frozenset(
    {
        *("generationConfig", "generation_config", "config", "options", "parameters", "inferenceConfig"),
        *("textGenerationConfig", "additionalModelRequestFields", "additional_model_request_fields"),
    }
)
"""Fields in which providers keep their own names of a limit."""

COPIES = frozenset({"n", "best_of", "candidateCount", "candidate_count", "num_generations", "numResults", "num_images"})

_THINKING = ("thinking", "thinkingConfig", "thinking_config", "reasoning")
_BUDGETS = ("budget_tokens", "thinkingBudget", "thinking_budget", "max_tokens")
LEAST_THINKING = 1024
"""The smallest thinking budget that Anthropic takes."""

_GENERATION = ("generationConfig", "generation_config", "config")


def read_output_limit(endpoint: str, body: Mapping[str, Any]) -> int | None:
    """The most output tokens of one copy that `body` allows: the largest of all limits in it. None where there is none.

    A thinking budget that is not below the limit counts as one. Alone it is none: an answer follows the thinking.
    """
    largest = _largest(body)
    extra = body.get("extra_body")
    for name in HOLDERS & body.keys():
        largest = max(largest, _largest(body[name]))
    if isinstance(extra, dict):
        largest = max(largest, read_output_limit(endpoint, cast("dict[str, Any]", extra)) or 0)
    if largest <= 0:
        return None
    return max(largest, *(budget + 1 for _, _, budget in _thinking(body)), 0) if _thinks(body) else largest


def set_output_limit(endpoint: str, body: dict[str, Any], tokens: int, *, taken: Collection[str] | None = None) -> None:
    """Write `tokens` as the limit of each copy, so that no other limit in `body` is sent.

    The names that the client used stay, all with this value; names of other endpoints are removed. `taken` are the
    names that all deployments take (`limit_names`): others are not used, since LiteLLM may drop them. Thinking budgets
    are lowered below the limit, thinking is switched off where no budget is left for it. Raises ValueError below 1.
    """
    if tokens < 1:
        raise ValueError(f"an output limit is at least one token, not {tokens}")
    own = _OWN.get(endpoint, ())
    if taken and endpoint == "chat_completions":
        own = tuple(name for name in own if name in taken) or own
    given = [name for name in own if body.get(name) is not None]
    for name in LIMITS & body.keys():
        del body[name]
    for name in HOLDERS & body.keys():
        _lower_in(body, name, tokens)
    if endpoint == "generate_content":
        holder = next((name for name in _GENERATION if isinstance(body.get(name), dict)), _GENERATION[0])
        body[holder] = {**body.get(holder, {}), "maxOutputTokens": tokens}
    else:
        body.update(dict.fromkeys(given or own[:1], tokens))
    extra = body.get("extra_body")
    if isinstance(extra, dict):
        body["extra_body"] = kept = dict(cast("dict[str, Any]", extra))
        for name in LIMITS & kept.keys():
            del kept[name]
        for name in HOLDERS & kept.keys():
            _lower_in(kept, name, tokens)
        _lower_thinking(kept, tokens)
    _lower_thinking(body, tokens)


@lru_cache(maxsize=1024)
def limit_names(model: str) -> frozenset[str]:
    """The names of an output limit in chat completions that LiteLLM sends to the provider of `model` (`provider/name`).

    Others it refuses, or with `drop_params` leaves out.
    """
    import litellm

    try:
        supported = litellm.get_supported_openai_params(model=model)
    except Exception:  # LiteLLM raises plain Exceptions for a model of no known provider
        return frozenset()
    return frozenset(_OWN["chat_completions"]) & frozenset(supported or ())


def takes_output_limit(model: str) -> bool:
    """Whether LiteLLM sends an output limit to the provider of `model` (`provider/name`).

    Where it does not, only the model's own maximum bounds an answer.
    """
    return bool(limit_names(model))


def count(value: object) -> int:
    """A number as providers read it, rounded up, from JSON or from text. 0 where it is none."""
    if type(value) is int:
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return 0
    try:
        number = float(value)
    except ValueError:
        return 0
    return int(-(-number // 1)) if abs(number) < 1e18 else 0


def copies(body: Mapping[str, Any]) -> int:
    """How many answers `body` asks for: the largest of all names of that number, in all places."""
    largest = max([count(body[name]) for name in COPIES & body.keys()], default=1)
    for name in HOLDERS & body.keys():
        if isinstance(body[name], dict):
            largest = max(largest, copies(body[name]))
    extra = body.get("extra_body")
    return max(largest, 1) if not isinstance(extra, dict) else max(largest, copies(cast("dict[str, Any]", extra)))


def _largest(holder: object) -> int:
    if not isinstance(holder, Mapping):
        return 0
    known = cast("Mapping[str, Any]", holder)
    return max([count(known[name]) for name in LIMITS & known.keys()], default=0)


def _lower_in(body: dict[str, Any], name: str, tokens: int) -> None:
    holder = body[name]
    if isinstance(holder, dict):
        known = cast("dict[str, Any]", holder)
        body[name] = {**known, **dict.fromkeys(LIMITS & known.keys(), tokens)}
        _lower_thinking(body[name], tokens)


def _thinks(body: Mapping[str, Any]) -> bool:
    return any(name in body for name in _THINKING) or not HOLDERS.isdisjoint(body.keys())


def _thinking(body: Mapping[str, Any]) -> Iterator[tuple[str, str, int]]:
    """The thinking budgets of `body`: the field, its part and the number of tokens."""
    for field in _THINKING:
        value = body.get(field)
        if isinstance(value, dict):
            for part in _BUDGETS:
                budget = count(cast("dict[str, Any]", value).get(part))
                if budget > 0:
                    yield field, part, budget
    for name in HOLDERS & body.keys():
        if isinstance(body[name], dict):
            yield from _thinking(body[name])


def _lower_thinking(body: dict[str, Any], tokens: int) -> None:
    own = {field: value for field in _THINKING if isinstance(value := body.get(field), dict)}
    for field, part, budget in list(_thinking(own)):
        if budget < tokens:
            continue
        if part == "budget_tokens" and tokens <= LEAST_THINKING:
            body[field] = {"type": "disabled"}
        else:
            body[field] = {**body[field], part: max(tokens - 1, 0)}
