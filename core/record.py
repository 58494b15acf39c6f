"""Values that are made for every request."""

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(kind: type[T]) -> type[T]:
    """A dataclass with slots that compares and hashes by its fields, and that only type checkers hold to be frozen: one
    that is frozen takes three times as long to make."""
    return dataclass(slots=True, unsafe_hash=True)(kind)
