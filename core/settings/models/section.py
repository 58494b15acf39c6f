"""What every part of the settings is made of: a frozen model and the types its fields share."""

from collections.abc import Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
)

from core.settings.reference import checked_reference


class Section(BaseModel):
    """A mapping of config.yaml: unknown fields are refused, and once read it does not change."""

    # Errors hide their input because it may be a secret; `core.settings.validation` decides what may be shown.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=True)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of the fields that may stand here."""
        return tuple(cls.model_fields)


def no_bool(value: object) -> object:
    """To stand before a number: raises ValueError for true and false."""
    # YAML 1.1 reads yes, no, on and off as booleans, and Python counts with those.
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


def _frozen(value: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(value))


_LARGEST = 2**53
"""Whole numbers up to here survive JSON and Redis's Lua exactly."""

Count = Annotated[int, BeforeValidator(no_bool), Field(ge=1, le=_LARGEST)]
Fraction = Annotated[float, BeforeValidator(no_bool), Field(ge=0, le=1, allow_inf_nan=False)]
Seconds = Annotated[float, BeforeValidator(no_bool), Field(ge=0, le=1e10, allow_inf_nan=False)]
Weight = Annotated[float, BeforeValidator(no_bool), Field(ge=0, le=1e9, allow_inf_nan=False)]
Dollars = Annotated[Decimal, BeforeValidator(no_bool), Field(ge=0, le=1_000_000_000, decimal_places=9)]
Priority = Annotated[int, BeforeValidator(no_bool), Field(ge=1, le=10)]

Text = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
# Names travel in response headers, so they are visible ASCII.
Name = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[\x21-\x7e]+$")]
Identifier = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
SecretRef = Annotated[str, AfterValidator(checked_reference)]
Frozen = (AfterValidator(_frozen), PlainSerializer(dict))
"""Metadata that makes a mapping read-only: `Annotated[Mapping[str, X], *Frozen]`."""


def empty() -> Mapping[str, Any]:
    """The default of a mapping field."""
    return MappingProxyType({})
