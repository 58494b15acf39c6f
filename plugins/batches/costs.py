"""What a batch or a background response has cost, from what its provider says of it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import orjson

from core.money import nano_dollars
from plugins.receipt import chat_usage, tokens_of

Usage = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Total:
    """Tokens and nano-dollars of `answers` answers. `cost_nano` is None where something in them has no price, or no
    usage."""

    answers: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost_nano: int | None = 0


NOTHING = Total()


def of_output(content: bytes, provider_model: str, deployment: str | None) -> Total:
    """The sum over the lines of a batch's output that were answered; the others are not billed.

    At batch prices: those of the deployment, else of LiteLLM's list, else half of what single requests cost.
    """
    total = NOTHING
    for usage in _usages(content):
        total = _added(total, usage, None if usage is None else _batch_price(usage, provider_model, deployment))
    return total


def of_response(response: Any, provider_model: str, deployment: str | None) -> Total | None:
    """What a response in the background cost; None where it does not say what it used."""
    usage = getattr(response, "usage", None)
    if usage is None:
        return None
    import litellm

    try:
        dollars = litellm.completion_cost(
            completion_response=response,
            model=provider_model,
            call_type="aresponses",
            custom_pricing=deployment in litellm.model_cost,
            router_model_id=deployment,
        )
    except Exception:  # LiteLLM raises plain Exceptions for what it cannot price
        return None
    return _added(NOTHING, usage, dollars)


def _usages(content: bytes) -> Iterator[Usage | None]:
    for line in _lines(content):
        response = line.get("response")
        if not isinstance(response, dict):
            continue
        answer = cast("dict[str, Any]", response)
        if answer.get("status_code") != 200:
            continue
        body = answer.get("body")
        usage = cast("dict[str, Any]", body).get("usage") if isinstance(body, dict) else None
        yield cast("dict[str, Any]", usage) if isinstance(usage, dict) else None


def _lines(content: bytes) -> Iterable[dict[str, Any]]:
    """Raises ValueError for a line that is none."""
    for line in content.splitlines():
        if line.strip():
            given = orjson.loads(line)
            if not isinstance(given, dict):
                raise ValueError("a line of the output is no object")
            yield cast("dict[str, Any]", given)


def _added(total: Total, usage: Any, dollars: float | None) -> Total:
    if usage is None or dollars is None or total.cost_nano is None:
        return replace(total, answers=total.answers + 1, cost_nano=None)
    counted = tokens_of(usage)
    return Total(
        total.answers + 1,
        total.input_tokens + counted.input_tokens,
        total.output_tokens + counted.output_tokens,
        total.cached_tokens + counted.cached_tokens,
        total.reasoning_tokens + counted.reasoning_tokens,
        total.cost_nano + nano_dollars(dollars),
    )


def _batch_price(usage: Usage, model: str, deployment: str | None) -> float | None:
    import litellm
    from litellm.cost_calculator import batch_cost_calculator

    own: Any = litellm.model_cost.get(deployment or "")
    listed = own.get("base_model") if own else None
    try:
        prompt, completion = batch_cost_calculator(usage=chat_usage(usage), model=listed or model, model_info=own)
    except Exception:  # LiteLLM raises plain Exceptions for what it does not know
        return None
    return prompt + completion
