"""Which of a group's prices a request meets."""

from collections.abc import Mapping
from typing import Any

from plugins.budgets.price_fields import STANDARD
from plugins.budgets.price_list import ANY
from plugins.budgets.prices import GroupPrices, service_class
from plugins.budgets.rates import Rate


def rate_of(body: Mapping[str, Any], prices: GroupPrices, tokens: int) -> Rate:
    """The prices of a request with `tokens` input tokens or fewer, in the service class that it asks for."""
    service = service_class(body.get("service_tier"))
    preset = prices.preset.get("service_tier")
    if preset is not None and service_class(preset) != service:
        service = service_class(preset) if service == STANDARD else ANY
    return prices.rate(service, tokens) if prices.rates else Rate()


def no_price(prices: GroupPrices, kinds: tuple[str, ...], fields: str) -> str:
    """Why a group that has not all of `kinds` priced has no bound, and which `fields` would price it."""
    models = dict.fromkeys(model for kind in kinds for model in prices.unpriced(kind)) if prices.models else {}
    return (
        f"nothing prices {', '.join(models) or 'the model'}; set {fields} in model_info, or flat_reserve on the budget"
    )
