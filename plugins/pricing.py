"""What a request can cost at most, from LiteLLM's price list and the prices in the configuration."""

import hashlib
from typing import Any

from core.context import RequestContext
from core.money import nano_dollars
from core.usage import Attempt


def upper_bound(attempt: Attempt, context: RequestContext) -> int:
    """Nano-dollars `attempt` can have cost: every byte of input a token, every output token that was allowed.

    0 where nothing prices the deployment; the attempt is marked unknown either way.
    """
    prices = _prices(attempt)
    output = context.output_limit or _number(prices.get("max_output_tokens")) or _number(prices.get("max_tokens"))
    dollars = context.input_bytes * _number(prices.get("input_cost_per_token"))
    dollars += output * _number(prices.get("output_cost_per_token"))
    return nano_dollars(dollars)


def price_list_version() -> str:
    """A short digest of every price LiteLLM knows now; it changes when any of them does."""
    import litellm
    import orjson

    listing = orjson.dumps(litellm.model_cost, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS, default=str)
    return hashlib.sha256(listing).hexdigest()[:12]


def _prices(attempt: Attempt) -> dict[str, Any]:
    """LiteLLM keeps a deployment's own prices under its id, beside the published ones under the model's name."""
    import litellm

    model = attempt.provider_model or ""
    for name in (attempt.deployment, model, model.partition("/")[2]):
        if name and name in litellm.model_cost:
            return litellm.model_cost[name]
    return {}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float | str) and value != "" else 0.0
