"""What a decision looked at and the usage event has no column for, so that it can be made again later."""

from dataclasses import replace

import orjson

from core.context import Need, RequestContext


def traits_of(context: RequestContext) -> str | None:
    """Compact JSON; None where there is nothing of the kind. The client's metadata is in it as far as conditions may
    look at it."""
    found: dict[str, object] = {}
    if context.input_tokens:
        found["t"] = context.input_tokens
    if context.output_limit is not None:
        found["o"] = context.output_limit
    if context.needs:
        found["n"] = sorted(context.needs)
    if context.metadata:
        found["m"] = context.metadata
    if context.headers:
        found["h"] = context.headers
    return orjson.dumps(found).decode() if found else None


def with_traits(context: RequestContext, traits: str | None) -> RequestContext:
    """The inverse: `context` with what `traits` says. Raises ValueError for what is none."""
    if not traits:
        return context
    found = orjson.loads(traits)
    return replace(
        context,
        input_tokens=found.get("t", context.input_tokens),
        output_limit=found.get("o"),
        needs=frozenset(Need(need) for need in found.get("n", ())),
        metadata=found.get("m", {}),
        headers=found.get("h", {}),
    )
