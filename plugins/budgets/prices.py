"""What the deployments of a model group can charge at most, by kind of unit."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, cast

from plugins.budgets.price_fields import SERVICE_CLASSES, STANDARD
from plugins.budgets.price_list import ANY, PriceList
from plugins.budgets.rates import ImageRow, Rate

_BY_REQUEST = {
    None: STANDARD,
    "default": STANDARD,
    "standard": STANDARD,
    "standard_only": STANDARD,
    "flex": "flex",
    "balanced": "balanced",
    "priority": "priority",
    "fast": "priority",
    "ultrafast": "ultrafast",
}


@dataclass(frozen=True, slots=True)
class GroupPrices:
    """The highest price of each kind over a group's deployments. Atto-dollars a unit.

    `kinds` says for each deployment which kinds are priced at all, a price of zero included. `units` are the kinds that
    are not tokens (`query`, `second`, `input_character`, ...). `fast` and `regions` are factors that a request can ask
    for. `output_limit` is the most output tokens that any deployment gives, `window` the most input tokens; None where
    one does not say.
    """

    models: tuple[str, ...] = ()
    kinds: tuple[frozenset[str], ...] = ()
    rates: Mapping[str, tuple[Rate, ...]] = field(default_factory=dict[str, tuple[Rate, ...]])
    units: Mapping[str, int] = field(default_factory=dict[str, int])
    images: tuple[ImageRow, ...] = ()
    fee: int = 0
    fast: Fraction = Fraction(1)
    regions: Fraction = Fraction(1)
    output_limit: int | None = None
    window: int | None = None
    preset: Mapping[str, Any] = field(default_factory=dict[str, Any])  # values as the configuration has them

    @property
    def priced(self) -> bool:
        """True when something prices every deployment."""
        return bool(self.kinds) and all(self.kinds)

    def by(self, *kinds: str) -> bool:
        """True when every deployment has a price for at least one of `kinds`."""
        return bool(self.kinds) and all(not own.isdisjoint(kinds) for own in self.kinds)

    def unpriced(self, *kinds: str) -> tuple[str, ...]:
        """The models that have a price for none of `kinds`."""
        return tuple(model for model, own in zip(self.models, self.kinds, strict=True) if own.isdisjoint(kinds))

    def rate(self, service: str, input_tokens: int) -> Rate:
        """The prices that a request of the class `service` can meet with `input_tokens` or fewer."""
        tiers = self.rates[service]
        if len(tiers) == 1:
            return tiers[0]
        return next((tier for tier in reversed(tiers) if tier.above <= input_tokens), tiers[0])

    @classmethod
    def of(
        cls,
        deployments: Sequence[Mapping[str, Any]],  # entries of a `model_list`, as LiteLLM's router keeps them
        price_map: Mapping[str, Mapping[str, Any]],  # LiteLLM's own
        *,
        margins: Mapping[str, Any] | None = None,  # `litellm.cost_margin_config`: a fraction, or a mapping
        discounts: Mapping[str, float] | None = None,
    ) -> "GroupPrices":
        """The prices of a group from its deployments: each a mapping with `litellm_params` and `model_info`."""
        lists = [PriceList.of(entry, price_map, margins or {}, discounts or {}) for entry in deployments]
        return cls(
            models=tuple(own.model for own in lists),
            kinds=tuple(frozenset(own.kinds) for own in lists),
            rates={service: _highest([own.rates(service) for own in lists]) for service in _classes()},
            units=_most([own.units() for own in lists]),
            images=tuple(row for own in lists for row in own.images),
            fee=max((own.fee for own in lists), default=0),
            fast=max((own.fast for own in lists), default=Fraction(1)),
            regions=max((own.regions for own in lists), default=Fraction(1)),
            output_limit=_all([own.output_limit for own in lists]),
            window=_all([own.window for own in lists]),
            preset=_presets(lists),
        )


def group_prices(deployments: Sequence[Mapping[str, Any]]) -> GroupPrices:  # entries of the router's `model_list`
    """`GroupPrices.of` with LiteLLM's price map, margins and discounts as they are now."""
    import litellm

    return GroupPrices.of(
        deployments,
        cast("Mapping[str, Mapping[str, Any]]", litellm.model_cost),
        margins=cast("Mapping[str, Any]", getattr(litellm, "cost_margin_config", {})),
        discounts=cast("Mapping[str, float]", getattr(litellm, "cost_discount_config", {})),
    )


def service_class(asked: object) -> str:
    """The class of prices for a request's `service_tier`. Standard prices apply where it names none."""
    if asked is None:
        return STANDARD
    return _BY_REQUEST.get(asked.lower(), ANY) if isinstance(asked, str) else ANY


def _classes() -> tuple[str, ...]:
    return (STANDARD, *SERVICE_CLASSES, ANY)


def _all(limits: Iterable[int | None]) -> int | None:
    """The highest of `limits`, None if one is not known."""
    known = list(limits)
    return max((limit or 0 for limit in known), default=None) if None not in known else None


def _most(tables: Iterable[Mapping[str, int]]) -> dict[str, int]:
    highest: dict[str, int] = {}
    for table in tables:
        for kind, price in table.items():
            highest[kind] = max(price, highest.get(kind, 0))
    return highest


def _highest(lists: list[list[Rate]]) -> tuple[Rate, ...]:
    """For each number of input tokens at which a price of any deployment changes, the highest of each kind."""
    found: list[Rate] = []
    for above in sorted({0} | {rate.above for rates in lists for rate in rates}):
        rates = [max((r for r in rates if r.above <= above), key=lambda rate: rate.above) for rates in lists]
        names = [name for name in Rate.__dataclass_fields__ if name != "above"]
        found.append(Rate(above, **{name: max((getattr(r, name) for r in rates), default=0) for name in names}))
    return tuple(found)


_PRESETS = ("n", "best_of", "service_tier", "speed", "inference_geo", "modalities")


def _presets(lists: list[PriceList]) -> dict[str, Any]:
    """What deployments set themselves and that a request can be priced by. The highest counts, or the first."""
    found: dict[str, Any] = {}
    for own in lists:
        for name in _PRESETS:
            value = own.params.get(name)
            if value is not None:
                known = found.get(name)
                found[name] = max(known, value) if isinstance(known, int) and isinstance(value, int) else known or value
    return found
