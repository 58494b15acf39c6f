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


@given(
    st.floats(min_value=-1e15, max_value=1e15)
    | st.integers(min_value=-(10**15), max_value=10**15).map(lambda half: (half + 0.5) / 1e9)
)
def test_a_float_is_read_through_its_shortest_decimal_form_however_near_a_half_it_is(dollars: float) -> None:
    assert nano_dollars(dollars) == nano_dollars(repr(dollars))
