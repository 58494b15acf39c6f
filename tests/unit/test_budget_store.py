"""The store's side of budgets on SQLite."""

from collections.abc import Callable, Coroutine

import pytest

from core.store import Store
from tests.unit.budget_cases import CASES


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_on_sqlite(case: Callable[[Store], Coroutine[None, None, None]], store: Store) -> None:
    await case(store)
