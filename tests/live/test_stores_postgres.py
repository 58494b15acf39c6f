"""What the store does for batches, budgets and routing, on a real PostgreSQL; the cases are those of every database."""

from collections.abc import Callable, Coroutine

import pytest

from core.store import Store
from tests.unit import batch_cases, budget_cases, routing_store_cases

pytestmark = pytest.mark.live

CASES = (*batch_cases.CASES, *budget_cases.CASES, *routing_store_cases.CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_on_postgresql(case: Callable[[Store], Coroutine[None, None, None]], store: Store) -> None:
    await case(store)
