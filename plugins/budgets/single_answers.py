"""The bounds of requests whose answer has no limit to set: embeddings, rerank, moderations, images, audio."""

from collections.abc import Mapping
from fractions import Fraction
from math import ceil
from typing import Any, cast

from plugins.budgets import media
from plugins.budgets.content import read_content
from plugins.budgets.image_prices import image_size
from plugins.budgets.output_limit import copies, count
from plugins.budgets.prices import GroupPrices
from plugins.budgets.rates import ImageRow
from plugins.budgets.tariff import no_price, rate_of
from plugins.budgets.upper_bound import Bound


def embeddings(
    endpoint: str, body: Mapping[str, Any], body_bytes: int, prices: GroupPrices, exact: int | None
) -> Bound:
    reasons = [] if prices.by(*_EMBEDDING) else [no_price(prices, _EMBEDDING[:1], "input_cost_per_token")]
    given = body.get("input")
    inputs = cast("list[Any]", given) if isinstance(given, list) else [given]
    # LiteLLM decodes token ids for models with another tokenizer; the longest token of cl100k is 128 bytes.
    ids = sum(len(cast("list[Any]", row)) if isinstance(row, list) else isinstance(row, int) for row in inputs)
    hidden = pictures = 0
    for item in inputs:
        if isinstance(item, str) and item.startswith(("data:", "http://", "https://", "gs://", "s3://")):
            pictures += 1
            hidden += len(item) if item.startswith("data:image/") else 0
            if not item.startswith("data:image/") and (
                "video_second" in prices.units or "audio_second" in prices.units
            ):
                reasons.append("the length of audio or video cannot be told; set flat_reserve on the budget")
        elif isinstance(item, dict):
            pictures += 1
    own = media.framing_tokens(prices.models) < media.framing_tokens(("",))
    text = ids * (1 if own else 128) if ids and ids == _items(inputs) else max(body_bytes - hidden, ids * 128)
    text = exact if exact is not None else text
    picture_tokens = pictures * media.IMAGE_TOKENS
    rate = rate_of(body, prices, text + picture_tokens)
    units = prices.units
    due = text * rate.input + picture_tokens * rate.image_input + pictures * units.get("input_image", 0)
    due += body_bytes * units.get("input_character", 0) + len(inputs) * units.get("query", 0) + units.get("request", 0)
    return Bound(ceil(due * prices.regions) + prices.fee, 0, 1, None, None, text + picture_tokens, tuple(reasons))


_EMBEDDING = ("input", "input_character", "query", "input_image")


def _items(inputs: list[Any]) -> int:
    return sum(len(cast("list[Any]", item)) if isinstance(item, list) else 1 for item in inputs)


def rerank(endpoint: str, body: Mapping[str, Any], body_bytes: int, prices: GroupPrices, exact: int | None) -> Bound:
    reasons = () if prices.by("query", "input") else (no_price(prices, ("query",), "input_cost_per_query"),)
    documents = cast("list[Any]", body.get("documents")) if isinstance(body.get("documents"), list) else []
    query = len(str(body.get("query", "")).encode())
    # Token-priced rerankers read the query with every document: docs.voyageai.com/docs/pricing.
    tokens = body_bytes + query * len(documents)
    # A search is one query with up to 100 chunks of 500 tokens, the query among them: docs.cohere.com/docs/rerank.
    # A chunk holds 250 tokens of its document at least, a document is cut at what the request allows.
    chunks = sum(1 + len(str(document).encode()) // 250 for document in documents)
    searches = -(-max(chunks, 1) // 100)
    rate = rate_of(body, prices, tokens)
    due = tokens * rate.input + searches * (prices.units.get("query", 0) + rate.output)
    return Bound(due + prices.fee, 0, 1, None, None, tokens, reasons)


def moderations(
    endpoint: str, body: Mapping[str, Any], body_bytes: int, prices: GroupPrices, exact: int | None
) -> Bound:
    reasons = () if prices.by("input") else (no_price(prices, ("input",), "input_cost_per_token"),)
    content = read_content(body)
    pictures = (content.images + content.unsure) * media.IMAGE_TOKENS
    tokens = max(body_bytes - content.hidden_bytes, 0) + pictures
    rate = rate_of(body, prices, tokens)
    due = tokens * max(rate.input, rate.image_input if pictures else 0)
    # The answer is a table of scores, a few hundred bytes for each text.
    return Bound(due + media.LEAST_OUTPUT_TOKENS * rate.output + prices.fee, 0, 1, None, None, tokens, reasons)


def images(endpoint: str, body: Mapping[str, Any], body_bytes: int, prices: GroupPrices, exact: int | None) -> Bound:
    reasons = () if prices.by(*_PICTURES) else (no_price(prices, _PICTURES[:1], "output_cost_per_image"),)
    number = max(copies(body), count(prices.preset.get("n")))
    sent = sum(len(cast("list[Any]", v)) if isinstance(v := body.get(name), list) else v is not None for name in _SENT)
    text = 4 * len(str(body.get("prompt") or "")) + media.framing_tokens(prices.models)
    tokens = text + sent * media.IMAGE_TOKENS
    rate = rate_of(body, prices, tokens)
    partial = count(body.get("partial_images"))
    made = max(media.IMAGE_OUTPUT_TOKENS, prices.output_limit or 0) + 100 * partial
    each = made * rate.output + _picture(body, prices.images, prices.units)
    due = text * rate.input + sent * (media.IMAGE_TOKENS * rate.image_input + prices.units.get("input_image", 0))
    due += prices.units.get("search", 0) if body.get("tools") else 0
    return Bound(ceil((due + number * each) * prices.regions) + prices.fee, 0, 1, None, None, tokens, reasons)


_PICTURES = ("output_image", "input_image", "pixel", "image_output", "output")
_SENT = ("image", "image[]", "images", "mask")


def _picture(body: Mapping[str, Any], rows: tuple[ImageRow, ...], units: Mapping[str, int]) -> int:
    """The price of one generated picture. Where no row has the size and quality asked for, any may apply."""
    size, quality = image_size(body.get("size")), body.get("quality")
    own = [
        row
        for row in rows
        if (size is None or row.size in (None, size)) and (quality is None or row.quality in (None, quality, "high"))
    ]
    highest = max((row.each + row.pixel * _pixels(row.size or size) for row in own or rows), default=0)
    return highest if rows else units.get("output_image", 0) + units.get("pixel", 0) * _pixels(size)


def _pixels(size: tuple[int, int] | None) -> int:
    return size[0] * size[1] if size else media.LARGEST_PICTURE


def audio(endpoint: str, body: Mapping[str, Any], body_bytes: int, prices: GroupPrices, exact: int | None) -> Bound:
    kinds = ("input_character", "second", "input", "output", "audio_input", "output_image")
    reasons = () if prices.by(*kinds) else (no_price(prices, kinds[:1], _AUDIO_FIELDS),)
    if "file" in body or "input" not in body:
        length = media.seconds(body_bytes)
        tokens = length * media.AUDIO_TOKENS_PER_SECOND + 4 * len(str(body.get("prompt") or ""))
        rate = rate_of(body, prices, tokens)
        written = length * media.TRANSCRIPT_TOKENS_PER_SECOND + media.LEAST_OUTPUT_TOKENS
        due = length * (prices.units.get("second", 0) + prices.units.get("audio_second", 0))
        due += tokens * rate.audio_input + written * rate.output
    else:
        speed = Fraction(str(body["speed"])) if isinstance(body.get("speed"), int | float) else Fraction(1)
        text = str(body.get("input"))
        characters = len(text)
        tokens = body_bytes
        rate = rate_of(body, prices, tokens)
        slow = 1 / min(max(speed, Fraction(1, 4)), Fraction(1))
        made = ceil(characters * media.SPEECH_TOKENS_PER_CHARACTER * slow) + media.LEAST_OUTPUT_TOKENS
        length = ceil(made / Fraction(media.SPEECH_TOKENS_PER_CHARACTER * 2))
        due = tokens * rate.input + characters * prices.units.get("input_character", 0) + made * rate.spoken
        due += length * prices.units.get("second", 0)
        # Models that compose music have a price for each piece.
        due += prices.units.get("output_image", 0)
    return Bound(ceil(due * prices.regions) + prices.fee, 0, 1, None, None, tokens, reasons)


_AUDIO_FIELDS = "input_cost_per_character (speech) or input_cost_per_second (transcription)"
