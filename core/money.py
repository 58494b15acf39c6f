"""Money: integer nano-dollars inside, Decimal at the edges, never float in sums."""

from decimal import ROUND_HALF_UP, Decimal

NANO_PER_DOLLAR = 1_000_000_000
_NANO = Decimal(NANO_PER_DOLLAR)
_PLAIN = 1e14
_CLEAR = 0.4


def nano_dollars(dollars: float | str | Decimal) -> int:
    """Dollars to the nearest nano-dollar, halves up.

    A float is read through its shortest decimal form (``repr``), so that 0.1 is 100 000 000 and not one off.
    """
    if isinstance(dollars, float):
        # A hundred thousand dollars are 2**47 nano-dollars: what the product is off by is less than is left out here.
        near = dollars * NANO_PER_DOLLAR
        if -_PLAIN < near < _PLAIN and abs(near - round(near)) < _CLEAR:
            return round(near)
    exact = dollars if isinstance(dollars, Decimal) else Decimal(str(dollars))
    return int((exact * _NANO).to_integral_value(rounding=ROUND_HALF_UP))


def to_dollars(nano: int) -> Decimal:
    """Nano-dollars to exact dollars."""
    return Decimal(nano) / _NANO


def format_dollars(nano: int) -> str:
    """Exact dollars as plain text with nine decimals, for headers and CSV: ``0.000012345``."""
    sign = "-" if nano < 0 else ""
    whole, fraction = divmod(abs(nano), NANO_PER_DOLLAR)
    return f"{sign}{whole}.{fraction:09d}"


def short_dollars(nano: int) -> str:
    """Exact dollars with at least two decimals and no more than needed, for people: ``0.50``, ``0.0000033``."""
    whole, _, fraction = format_dollars(nano).partition(".")
    return f"{whole}.{fraction.rstrip('0').ljust(2, '0')}"
