"""Files and jobs in PostgreSQL; the cases are those of every database."""

from collections.abc import AsyncIterator, Callable, Coroutine

import pytest

from core.store import Store, open_store
from tests.unit.batch_cases import CASES

pytestmark = pytest.mark.live


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[Store]:
    store = open_store(postgres_url)
    await store.upgrade()
    yield store
    await store.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_on_postgresql(case: Callable[[Store], Coroutine[None, None, None]], store: Store) -> None:
    await case(store)
