from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.money import format_dollars, nano_dollars, to_dollars


@pytest.mark.parametrize(
    ("dollars", "nano"),
    [(0.1, 100_000_000), (1.5e-8, 15), ("0.0000000005", 1), (Decimal("5000"), 5_000_000_000_000), (0, 0), (2.4e-10, 0)],
)
def test_dollars_become_the_nearest_nano_dollar(dollars: float | str | Decimal, nano: int) -> None:
    assert nano_dollars(dollars) == nano


@given(st.integers(min_value=-(10**18), max_value=10**18))
def test_nano_dollars_survive_the_way_out_and_back(nano: int) -> None:
    assert nano_dollars(to_dollars(nano)) == nano
    assert nano_dollars(format_dollars(nano)) == nano
