"""The price fields of LiteLLM's price map: which kind of unit each one prices, and when it applies."""

import re
from functools import lru_cache
from typing import NamedTuple

STANDARD = ""
"""The service class of a request that asks for none."""

SERVICE_CLASSES = ("priority", "flex", "balanced", "ultrafast")
"""Suffixes of prices that a request's `service_tier` selects (`fast` selects those of `priority`)."""


class Field(NamedTuple):
    """`kind` is what a unit is. The price applies to requests of `service` with at least `above` input tokens."""

    kind: str
    service: str = STANDARD
    above: int = 0


_KINDS = {
    "input_cost_per_token": "input",
    "cache_read_input_token_cost": "input",
    "input_cost_per_token_cache_hit": "input",
    "explicit_cache_read_input_token_cost": "input",
    "cache_creation_input_token_cost": "written",
    "cache_creation_input_token_cost_above_1hr": "written_hour",
    "input_cost_per_audio_token": "audio_input",
    "cache_read_input_audio_token_cost": "audio_input",
    "cache_creation_input_audio_token_cost": "audio_input",
    "input_cost_per_image_token": "image_input",
    "cache_read_input_image_token_cost": "image_input",
    "input_cost_per_video_token": "video_input",
    "output_cost_per_token": "output",
    "output_cost_per_reasoning_token": "output",
    "output_cost_per_image_token": "image_output",
    "output_cost_per_video_token": "image_output",
    "output_cost_per_audio_token": "audio_output",
    "input_cost_per_character": "input_character",
    "output_cost_per_character": "output_character",
    "input_cost_per_image": "input_image",
    "output_cost_per_image": "output_image",
    "input_cost_per_pixel": "pixel",
    "output_cost_per_pixel": "pixel",
    "cost_per_second": "second",
    "input_cost_per_second": "second",
    "output_cost_per_second": "second",
    "output_cost_per_audio_per_second": "second",
    "input_cost_per_audio_per_second": "audio_second",
    "input_cost_per_video_per_second": "video_second",
    "input_cost_per_query": "query",
    "input_cost_per_request": "request",
    "search_context_cost_per_query": "search",
    "search_queries_cost_per_query": "search",
    "google_maps_grounding_cost_per_query": "search",
    "citation_cost_per_token": "citation",
}

_RESOLUTION = r"(?:_(?:[\d.]+[kKpP]?))?"
_NAME = re.compile(
    rf"(?P<base>{'|'.join(sorted(_KINDS, key=len, reverse=True))})"
    rf"(?:_(?P<early>{'|'.join(SERVICE_CLASSES)}))?"
    r"(?:_above_(?P<above>\d+)(?P<thousands>k?)_tokens)?"
    r"(?:_above_\d+s_interval)?"
    rf"(?:_(?P<late>{'|'.join(SERVICE_CLASSES)}))?"
    rf"{_RESOLUTION}"
)

# Vertex AI's calculator looks at characters times four and at output tokens before it applies this tier, so the number
# of input tokens does not tell whether it applies.
_ALWAYS = 128_000

NOT_APPLICABLE = {
    r".*_batches": "a discount for batch jobs; a request is bounded at the full price",
    r".*_decisions": "the decisions route is refused while budgets block",
    r"(ocr|annotation)_cost_per_.*": "the OCR route is refused while budgets block",
    r"guardrail_cost_per_unit": "guardrails are not part of a model's answer",
    r"input_cost_per_text_message": "only realtime sessions have it; the realtime route is refused while budgets block",
    r"output_cost_per_video_per_second": "the video route is refused while budgets block",
    r"(input|output)_dbu_cost_per_token": "the same price as the one in dollars, in another unit",
    r"code_interpreter_cost_per_session": "a request with this tool counts as unbounded",
    r"file_search_cost_per_.*": "a request with this tool counts as unbounded",
    r"vector_store_cost_per_.*": "a request with this tool counts as unbounded",
    r"computer_use_.*_cost_per_.*": "a request with this tool counts as unbounded",
    r"web_search_billing_unit": "the unit of a price, not a price",
}
_NOT_APPLICABLE = re.compile("|".join(NOT_APPLICABLE))

NESTED = ("tiered_pricing", "off_peak_pricing")
"""Fields that hold prices of other fields: by ranges of input tokens, and by the hour of the day."""

MULTIPLIERS = re.compile(r"regional_(endpoint|processing)_uplift_multiplier(_\w+)?|provider_specific_entry")
"""Fields that multiply every token price."""


@lru_cache(maxsize=4096)
def field_of(name: str) -> Field | None:
    """What the price field `name` prices; None for a field that does not apply to a request or is no price."""
    found = None if _NOT_APPLICABLE.fullmatch(name) else _NAME.fullmatch(name)
    if found is None:
        return None
    above = int(found["above"] or 0) * (1000 if found["thousands"] else 1)
    service = found["early"] or found["late"] or STANDARD
    return Field(_KINDS[found["base"]], service, 0 if above == _ALWAYS else above)


def is_unknown(name: str) -> bool:
    """True for a field that looks like a price and that nothing here accounts for."""
    if "cost" not in name and "price" not in name and "pricing" not in name and "multiplier" not in name:
        return False
    known = name in NESTED or field_of(name) is not None
    return not known and not _NOT_APPLICABLE.fullmatch(name) and not MULTIPLIERS.fullmatch(name)
