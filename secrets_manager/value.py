"""A secret's value, wrapped so that nothing shows it that was not asked to."""

import hmac
from typing import Any, NoReturn, SupportsIndex

from pydantic_core import core_schema

MASK = "**********"


class SecretValue:
    """Text that only `reveal` gives out. repr, str, format, logging and pydantic show a mask; it cannot be pickled.

    `wipe` overwrites the bytes kept here. What `reveal` has handed out are ordinary texts, which Python cannot erase.
    """

    __slots__ = ("_bytes",)

    def __init__(self, text: str) -> None:
        self._bytes = bytearray(text, "utf-8", "surrogatepass")

    def reveal(self) -> str:
        """The text itself. Raises ValueError after `wipe`."""
        if not self._bytes:
            raise ValueError("the secret was wiped, or is empty")
        return self._bytes.decode("utf-8", "surrogatepass")

    @property
    def empty(self) -> bool:
        return not self._bytes

    def wipe(self) -> None:
        """Overwrite the value with zeros and forget it."""
        self._bytes[:] = bytes(len(self._bytes))
        self._bytes = bytearray()

    def same_as(self, other: "SecretValue") -> bool:
        """Whether both hold the same text, in a time that does not tell where they differ."""
        return hmac.compare_digest(self._bytes, other._bytes)

    def __repr__(self) -> str:
        return f"SecretValue({MASK!r})"

    def __str__(self) -> str:
        return MASK

    def __format__(self, spec: str) -> str:
        return MASK

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("a secret value is not pickled or copied")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.is_instance_schema(cls, serialization=core_schema.plain_serializer_function_ser_schema(str))


class MaskedText(str):
    """A secret's text as it has to be handed to a client library: an ordinary string to all that uses it, a mask in
    the repr of whatever holds it, which is how call arguments get into debug logs and tracebacks.

    Pickling it gives the mask; copying it gives itself, since clients copy their arguments.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(MASK)

    def __copy__(self) -> "MaskedText":
        return self

    def __deepcopy__(self, memo: Any) -> "MaskedText":
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[type[str], tuple[str]]:
        return str, (MASK,)
