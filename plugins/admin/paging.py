"""Numbers in the queries of lists."""

from collections.abc import Mapping

from core.errors import BadField

_MOST = 1000
_DEFAULT = "100"


def limit_of(query: Mapping[str, str]) -> int:
    """How many a page may hold: 100 unless the query says, at most 1000. Raises BadField."""
    text = query.get("limit") or _DEFAULT
    if not 1 <= (number_of("limit", text)) <= _MOST:
        raise BadField(f"limit must be a number from 1 to {_MOST}, not {text[:40]!r}.")
    return int(text)


def number_of(name: str, text: str) -> int:
    """A number of the query. Raises BadField."""
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise BadField(f"{name} must be a number, not {text[:40]!r}.")
    return int(text)
