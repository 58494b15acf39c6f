"""Prices of units: of tokens in one tier, of pictures."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from math import ceil
from typing import Any, cast

ATTO_PER_DOLLAR = 10**18
"""Prices are whole atto-dollars a unit, rounded up: LiteLLM's map has prices such as 3.0001999999999996e-07."""

ATTO_PER_NANO = 10**9


@dataclass(frozen=True, slots=True)
class Rate:
    """Atto-dollars a token of a request that may have `above` input tokens or more.

    `written` is what text costs that the provider may put into its cache, `written_hour` for an hour; both are never
    below `input`. The media prices are never below `written_hour`. `spoken` is `output` where the answer may be audio.
    """

    above: int = 0
    input: int = 0
    written: int = 0
    written_hour: int = 0
    audio_input: int = 0
    image_input: int = 0
    video_input: int = 0
    output: int = 0
    spoken: int = 0


@dataclass(frozen=True, slots=True)
class ImageRow:
    """The price of one generated image; size and quality are None where the row is for any."""

    each: int = 0
    pixel: int = 0
    size: tuple[int, int] | None = None
    quality: str | None = None


def price_of(value: Any) -> Fraction | None:
    """A price in atto-dollars; of a table (a price for each size of a search context) the highest."""
    if isinstance(value, Mapping):
        prices = [
            price for inner in cast("Mapping[str, Any]", value).values() if (price := price_of(inner)) is not None
        ]
        return max(prices, default=None)
    known = exact(value)
    return None if known is None or known < 0 else known * ATTO_PER_DOLLAR


def exact(value: Any) -> Fraction | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        return None
    try:
        return Fraction(Decimal(str(value)))
    except (InvalidOperation, ValueError, OverflowError):
        return None


def scaled(price: Fraction | int, factor: Fraction) -> int:
    return ceil(price * factor)
