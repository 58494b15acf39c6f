"""How much is set aside for a request before it is sent."""

from typing import Annotated

from pydantic import Field

from core.settings.models.section import Count, Fraction, Seconds, Section


class Reservations(Section):
    """What `block` and `degrade` budgets set aside for a request that has not been answered yet."""

    quantile: Annotated[Fraction, Field(gt=0)] = Field(
        default=0.99,
        description="Where a client sets no output limit and the model's own does not fit: the limit that is set lets "
        "this share of the answers that the model gave to such tasks end by themselves.",
    )
    initial_output_tokens: Count = Field(
        default=2048,
        description="The output limit that is set in that case while there are too few answers to learn from.",
    )
    min_output_tokens: Count | None = Field(
        default=None,
        description="The lowest output limit that is set where budgets allow no more; null = never below the quantile, "
        "the request is refused instead.",
    )
    lease_seconds: Annotated[Seconds, Field(ge=1, le=86_400)] = Field(
        default=60,
        description="Seconds after which the reservation of an instance that has died ends: unsent requests give their "
        "money back, sent ones are charged. Reservations of requests under way are renewed.",
    )
    allotment: Annotated[Fraction, Field(le=0.1)] = Field(
        default=0.01,
        description="With shared_state.on_outage local: the share of each budget that every instance draws ahead for "
        "itself, and may spend while Redis is away; at most 0.1, since ten times as much must be free; 0 = nothing.",
    )
