"""Experiments, feedback and what was in force, in SQLite; the cases are those of every database."""

from collections.abc import Callable, Coroutine

import pytest

from core.store import Store
from tests.unit.routing_store_cases import CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_on_sqlite(case: Callable[[Store], Coroutine[None, None, None]], store: Store) -> None:
    await case(store)
