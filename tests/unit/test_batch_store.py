"""Files and jobs in SQLite; the cases are those of every database."""

from collections.abc import Callable, Coroutine

import pytest

from core.store import Store
from tests.unit.batch_cases import CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_on_sqlite(case: Callable[[Store], Coroutine[None, None, None]], store: Store) -> None:
    await case(store)
