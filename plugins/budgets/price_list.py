"""What one deployment charges, from its own prices and LiteLLM's map."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any, cast

from plugins.budgets.image_prices import image_rows
from plugins.budgets.price_fields import NESTED, SERVICE_CLASSES, STANDARD, field_of
from plugins.budgets.rates import ATTO_PER_DOLLAR, ImageRow, Rate, exact, price_of, scaled

ANY = "any"
"""The service class of requests that leave the choice to the provider (`auto`) or name a class we do not know."""

_TOKEN_KINDS = (
    *("input", "written", "written_hour", "audio_input", "image_input", "video_input"),
    *("output", "image_output", "audio_output"),
)
_WINDOW = "max_input_tokens"


@dataclass(frozen=True, slots=True)
class PriceList:
    """One deployment's prices: `tables` by service class and number of input tokens above which they apply."""

    model: str
    provider: str
    params: Mapping[str, Any]
    tables: dict[tuple[str, int], dict[str, Fraction]]
    kinds: set[str]
    images: tuple[ImageRow, ...]
    output_limit: int | None
    window: int | None
    uplift: Fraction
    fee: int
    fast: Fraction
    regions: Fraction

    @classmethod
    def of(
        cls,
        deployment: Mapping[str, Any],
        price_map: Mapping[str, Mapping[str, Any]],
        margins: Mapping[str, Any],
        discounts: Mapping[str, float],
    ) -> "PriceList":
        params = cast("Mapping[str, Any]", deployment.get("litellm_params") or {})
        info = cast("Mapping[str, Any]", deployment.get("model_info") or {})
        model = str(params.get("model") or "")
        listed, named = published(model, params, info, price_map)
        own = [price_map.get(str(info.get("id"))) or {}, info, params]
        entry = {name: value for source in (listed, *own) for name, value in source.items() if value is not None}
        provider = str(params.get("custom_llm_provider") or entry.get("litellm_provider") or model.partition("/")[0])
        factor, fee = _margin(provider.split("-")[0], margins, discounts)
        tables, kinds = _tables(entry)
        rows = image_rows(named, entry, price_map)
        if any(row.each or row.pixel for row in rows):
            kinds.add("output_image")
        if "model-router" in model or "model_router" in model:
            # Any model may answer; the map knows what the routing costs, not the answer.
            kinds = _tables({**info, **params})[1]
        special = cast("Mapping[str, Any]", entry.get("provider_specific_entry") or {})
        return cls(
            model=model,
            provider=provider,
            params=params,
            tables=tables,
            kinds=kinds,
            images=tuple(ImageRow(scaled(r.each, factor), scaled(r.pixel, factor), r.size, r.quality) for r in rows),
            output_limit=_tokens(entry, "max_output_tokens", "max_tokens", _WINDOW),
            window=_tokens(entry, _WINDOW),
            uplift=factor * _regional(entry, params),
            fee=fee,
            fast=max(Fraction(1), exact(special.get("fast")) or Fraction(1)),
            regions=max([Fraction(1), *(exact(special.get(place)) or Fraction(1) for place in ("us", "eu"))]),
        )

    def rates(self, service: str) -> list[Rate]:
        """One rate for each number of input tokens at which a price of `service` changes; later ones never fall."""
        services = (STANDARD, *SERVICE_CLASSES) if service == ANY else (STANDARD, service)
        found: list[Rate] = []
        highest: dict[str, Fraction] = {}
        for above in sorted({0} | {above for of, above in self.tables if of in services}):
            for of in services:
                for kind, price in self.tables.get((of, above), {}).items():
                    highest[kind] = max(price, highest.get(kind, price))
            found.append(self._rate(above, highest))
        return found

    def _rate(self, above: int, price: Mapping[str, Fraction]) -> Rate:
        plain, written, hour, audio, image, video, output, drawn, spoken = (
            scaled(price.get(kind, Fraction(0)), self.uplift) for kind in _TOKEN_KINDS
        )
        written = max(plain, written)
        hour = max(written, hour)
        if self.params.get("cache_control_injection_points"):
            plain = written = hour
        elif "claude" not in self.model.lower():
            # Others write to their caches without being asked; Claude only where `cache_control` stands.
            plain = written
        output = max(output, drawn)
        return Rate(above, plain, written, hour, max(hour, audio), max(hour, image), max(hour, video), output,
                    max(output, spoken))  # fmt: skip

    def units(self) -> dict[str, int]:
        """Prices that are not of tokens, whatever the service class."""
        found: dict[str, int] = {}
        for table in self.tables.values():
            for kind, price in table.items():
                if kind not in _TOKEN_KINDS:
                    found[kind] = max(found.get(kind, 0), scaled(price, self.uplift))
        return found


def published(
    model: str, params: Mapping[str, Any], info: Mapping[str, Any], price_map: Mapping[str, Mapping[str, Any]]
) -> tuple[Mapping[str, Any], str]:
    """The map's entry for a deployment, and the name it stands under."""
    provider = params.get("custom_llm_provider")
    names = [str(info.get("base_model") or params.get("base_model") or ""), f"{provider}/{model}" if provider else ""]
    first = model.partition("/")[0] + "/"
    if model.startswith(first * 2):
        # LiteLLM takes a provider that stands twice for one: `perplexity/perplexity/sonar` is `perplexity/sonar`.
        names.append(model.removeprefix(first))
    names.append(model)
    while "/" in model:
        # Providers and regions stand before a model's name; the longest that is known is the most exact.
        model = model.partition("/")[2]
        names.append(model)
    for name in names:
        entry = price_map.get(name) if name else None
        if entry and any(field_of(known) or known in NESTED for known in entry):
            return entry, name
    return next(({}, name) for name in names if name) if any(names) else ({}, "")


def _tables(entry: Mapping[str, Any]) -> tuple[dict[tuple[str, int], dict[str, Fraction]], set[str]]:
    tables: dict[tuple[str, int], dict[str, Fraction]] = {}
    kinds: set[str] = set()

    def put(name: str, value: Any, above: int = 0) -> None:
        known = field_of(name)
        price = None if known is None else price_of(value)
        if known is None or price is None:
            return
        kinds.add(known.kind)
        table = tables.setdefault((known.service, max(known.above, above)), {})
        table[known.kind] = max(price, table.get(known.kind, price))

    for name, value in entry.items():
        if name == "off_peak_pricing" and isinstance(value, Mapping):
            for inner, price in cast("Mapping[str, Any]", value).items():
                put(inner, price)
        elif name == "tiered_pricing" and isinstance(value, list):
            for tier in cast("list[Mapping[str, Any]]", value):
                start = (tier.get("range") or [0])[0]
                for inner, price in tier.items():
                    put(inner, price, int(float(start)))
        else:
            put(name, value)
    return tables, kinds


def _regional(entry: Mapping[str, Any], params: Mapping[str, Any]) -> Fraction:
    """What the place of the endpoint adds. Where the configuration leaves it open, the higher price counts."""
    factor = Fraction(1)
    base = params.get("api_base")
    if base is None or "us.api.openai.com" in str(base) or "eu.api.openai.com" in str(base):
        names = ("regional_processing_uplift_multiplier_eu", "regional_processing_uplift_multiplier_us")
        factor = max([factor, *(exact(entry.get(name)) or factor for name in names)])
    if str(params.get("vertex_location")).lower() != "global":
        factor *= max(Fraction(1), exact(entry.get("regional_endpoint_uplift_multiplier")) or Fraction(1))
    return factor


def _margin(provider: str, margins: Mapping[str, Any], discounts: Mapping[str, float]) -> tuple[Fraction, int]:
    """The factor and the fixed atto-dollars that LiteLLM adds to a cost. It prices images without either, so that a
    discount does not count."""
    margin = margins.get(provider, margins.get("global"))
    share = cast("Mapping[str, Any]", margin).get("percentage") if isinstance(margin, Mapping) else margin
    fixed = cast("Mapping[str, Any]", margin).get("fixed_amount") if isinstance(margin, Mapping) else 0
    discount = min(Fraction(0), exact(discounts.get(provider)) or Fraction(0))
    factor = (1 - discount) * (1 + max(Fraction(0), exact(share) or Fraction(0)))
    return factor, scaled(max(Fraction(0), exact(fixed) or Fraction(0)) * ATTO_PER_DOLLAR, Fraction(1))


def _tokens(entry: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        number = exact(entry.get(name))
        if number is not None and number > 0:
            return ceil(number)
    return None
