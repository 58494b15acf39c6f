"""The bound of a request whose answer is written token by token, in any of the dialects."""

from collections.abc import Mapping
from math import ceil
from typing import Any, cast

from plugins.budgets import media
from plugins.budgets.content import Content, read_content
from plugins.budgets.output_limit import copies, count, read_output_limit
from plugins.budgets.prices import GroupPrices
from plugins.budgets.tariff import no_price, rate_of
from plugins.budgets.tools import tool_tokens, unbounded_tools
from plugins.budgets.upper_bound import Bound


def conversation(
    endpoint: str, body: Mapping[str, Any], body_bytes: int, prices: GroupPrices, exact: int | None
) -> Bound:
    content = read_content(body)
    reasons = [*_unpriced(prices), *_references(endpoint, body, content), *unbounded_tools(body)]
    text = exact if exact is not None else max(body_bytes - content.hidden_bytes, 0)
    pictures = content.images + content.unsure
    picture_tokens = pictures * media.image_tokens(prices.models) if pictures else 0
    spoken = media.seconds(content.audio_bytes) if content.audio_bytes else 0
    text += media.framing_tokens(prices.models) if exact is None else 0
    if "tools" in body or "functions" in body:
        text += tool_tokens(body)
    documents = content.documents
    if content.unsure and not media.only_pictures(prices.models):
        documents += content.unsure
    document_tokens = _documents(prices, documents, reasons) if documents else 0
    tokens = text + picture_tokens + document_tokens + spoken * media.AUDIO_TOKENS_PER_SECOND
    rate = rate_of(body, prices, tokens)
    price = rate.written_hour if content.written_hour else rate.written if content.written else rate.input
    due = text * price + picture_tokens * rate.image_input
    due += spoken * media.AUDIO_TOKENS_PER_SECOND * rate.audio_input
    # A document can be a film, which has all of these.
    due += document_tokens * max(price, rate.image_input, rate.audio_input, rate.video_input)
    if prices.units:
        due += _units(prices, body_bytes, pictures, spoken, documents, reasons)
    output = rate.output
    if rate.spoken != output and _speaks(body, prices):
        output = rate.spoken
    number = copies(body)
    if endpoint == "completions":
        number = max(number, count(prices.preset.get("n"))) * _prompts(body.get("prompt"))
    elif prices.preset:
        number = max(number, count(prices.preset.get("n")))
    factor = prices.regions * prices.fast if _hurries(body, prices) else prices.regions
    if factor != 1:
        due, output = ceil(due * factor), ceil(output * factor)
    asked = read_output_limit(endpoint, body)
    return Bound(due + prices.fee, output, number, asked, prices.output_limit, tokens, tuple(reasons))


def _hurries(body: Mapping[str, Any], prices: GroupPrices) -> bool:
    return any(speed not in (None, "standard") for speed in (body.get("speed"), prices.preset.get("speed")))


def _speaks(body: Mapping[str, Any], prices: GroupPrices) -> bool:
    """Whether the answer may be audio: it is asked for, or the model does nothing else."""
    asked = [body.get("modalities"), prices.preset.get("modalities"), body.get("generationConfig"), body.get("config")]
    words = str([value for value in asked if value]).lower()
    return (
        "audio" in words
        or "speech" in words
        or body.get("audio") is not None
        or any("tts" in model or "audio" in model or "live" in model for model in prices.models)
    )


def _prompts(prompt: object) -> int:
    if not isinstance(prompt, list) or not prompt:
        return 1
    several = cast("list[Any]", prompt)
    return len(several) if not isinstance(several[0], int) else 1


def _documents(prices: GroupPrices, documents: int, reasons: list[str]) -> int:
    """A compressed document can hold any number of pages: only what the model can read at all bounds it."""
    if prices.window is None:
        reasons.append("a document's length cannot be told from its size; set max_input_tokens in model_info")
        return 0
    return prices.window * documents


def _units(prices: GroupPrices, body_bytes: int, pictures: int, spoken: int, documents: int, reasons: list[str]) -> int:
    """What a conversation costs by units that are no tokens."""
    units = prices.units
    due = units.get("request", 0) + pictures * units.get("input_image", 0) + spoken * units.get("audio_second", 0)
    # LiteLLM takes either the price of a character or that of a token; who pays both pays more than either.
    due += body_bytes * units.get("input_character", 0)
    if units.get("output_character"):
        reasons.append("answers are priced by the character, and a token has any number of them; set flat_reserve")
    if documents and units.get("video_second"):
        reasons.append("the length of a video cannot be told from its size; set flat_reserve on the budget")
    if units.get("citation") or (units.get("search") and any("sonar" in model for model in prices.models)):
        reasons.append("the model searches the web as often as it likes; set flat_reserve on the budget")
    elif any("deep-research" in model for model in prices.models):
        reasons.append("the model runs paid tools as often as it likes; set flat_reserve on the budget")
    elif any("search-preview" in model or "search-api" in model for model in prices.models):
        # These search once for every answer: platform.openai.com/docs/guides/tools-web-search.
        due += units.get("search", 0)
    return due


def _unpriced(prices: GroupPrices) -> list[str]:
    if prices.by("input") and prices.by("output"):
        return []
    return [no_price(prices, ("input", "output"), "input_cost_per_token and output_cost_per_token")]


_REFERENCES = {
    "previous_response_id": "refers to a conversation whose length is not known; send the whole input",
    "conversation": "refers to a conversation whose length is not known; send the whole input",
    "cachedContent": "refers to content whose length is not known; send the content itself",
    "cached_content": "refers to content whose length is not known; send the content itself",
    "prompt_id": "refers to a stored prompt whose length is not known; send the prompt itself",
}


def _references(endpoint: str, body: Mapping[str, Any], content: Content) -> list[str]:
    found = [
        f"`{name}` {reason}, or set flat_reserve on the budget"
        for name, reason in _REFERENCES.items()
        if body.get(name) not in (None, False, "")
    ]
    if body.get("background") and (endpoint != "responses" or body.get("stream")):
        found.append(
            "`background` lets the answer go on unheard here; ask /v1/responses for it without a stream, "
            "or set flat_reserve on the budget"
        )
    if endpoint == "responses" and body.get("prompt"):
        found.append("`prompt` refers to a stored prompt; send its text, or set flat_reserve on the budget")
    found.extend(f"{reason}, or set flat_reserve on the budget" for reason in dict.fromkeys(content.references))
    return found
