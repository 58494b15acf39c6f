"""Prices of generated pictures: LiteLLM's map has an entry for each size and quality of some models."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from plugins.budgets.price_fields import field_of
from plugins.budgets.rates import ImageRow, price_of, scaled


def image_rows(name: str, entry: Mapping[str, Any], price_map: Mapping[str, Mapping[str, Any]]) -> list[ImageRow]:
    """The entry itself, and those of its sizes and qualities: `high/1024-x-1024/gpt-image-1`."""
    if entry.get("mode") not in ("image_generation", "image_edit", None):
        return []
    last = name.rpartition("/")[2]
    ending = f"/{last}"
    rows = [_image_row(entry, [])]
    if last and entry.get("mode") is not None:
        found = ((known, row) for known, row in price_map.items() if known.endswith(ending) and known != name)
        rows += [_image_row(row, known.split("/")[:-1]) for known, row in found]
    return [row for row in rows if row.each or row.pixel]


def _image_row(entry: Mapping[str, Any], words: list[str]) -> ImageRow:
    each = pixel = Fraction(0)
    for name, value in entry.items():
        known = field_of(name)
        price = None if known is None else price_of(value)
        if known is not None and price is not None:
            each = max(each, price) if known.kind in ("input_image", "output_image") else each
            pixel = max(pixel, price) if known.kind == "pixel" else pixel
    sizes = [size for word in words if (size := image_size(word))]
    qualities = [word for word in words if word in ("low", "medium", "high", "hd", "standard")]
    size, quality = (sizes[0] if sizes else None), (qualities[0] if qualities else None)
    return ImageRow(scaled(each, Fraction(1)), scaled(pixel, Fraction(1)), size, quality)


def image_size(text: object) -> tuple[int, int] | None:
    """`1024x1536` or `1024-x-1536` as numbers, None for anything else."""
    if not isinstance(text, str):
        return None
    width, _, height = text.replace("-x-", "x").partition("x")
    return (int(width), int(height)) if width.isdecimal() and height.isdecimal() else None
