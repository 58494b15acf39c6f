"""What people write to ask for a report, on the command line and over HTTP. Imports no database."""

import re
from datetime import UTC, datetime

from core.errors import BadField

_AGE = re.compile(r"(\d{1,6})([mhdw])")
_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def moment_ms(text: str, now: float) -> int:
    """Unix milliseconds of `7d` (before `now`, in Unix seconds) or of an ISO date, naive ones in UTC.

    Raises ValueError for anything else.
    """
    if age := _AGE.fullmatch(text):
        return int((now - int(age[1]) * _SECONDS[age[2]]) * 1000)
    moment = datetime.fromisoformat(text)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def queried_ms(name: str, text: str, now: float) -> int:
    """`moment_ms` of the field `name` of an HTTP query. Raises BadField."""
    try:
        # A plus sign in a query that nobody escaped arrives as a space.
        return moment_ms(text.replace(" ", "+") if "T" in text else text, now)
    except (ValueError, OverflowError):
        raise BadField(
            f"{name} must be 30m, 24h, 7d, 2w or a time such as 2026-07-01T12:00Z, not {text[:40]!r}."
        ) from None


def filter_value(name: str, text: str) -> str | bool | None:
    """The value to filter a dimension by; empty asks for events that have none.

    Raises ValueError for a status that is no number.
    """
    if name == "streamed":
        return text == "true"
    if name == "status" and text and not text.isdecimal():
        raise ValueError(f"status={text}: write a number, such as 429")
    return text or None
