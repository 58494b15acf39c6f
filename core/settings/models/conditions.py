"""What rules and experiments ask of a request."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import JsonValue, StringConstraints

from core.settings.models.section import Frozen

Condition = (
    Annotated[str, StringConstraints(min_length=1, max_length=4096)] | Annotated[Mapping[str, JsonValue], *Frozen]
)
"""An expression over the request's context, or fields with the value, or the list of values, that they must have."""
