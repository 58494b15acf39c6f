"""What many unit tests begin with."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.store import Store, open_store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """An open store of SQLite, in `store.db` of the test's folder."""
    store = open_store(f"sqlite:///{tmp_path}/store.db")
    await store.upgrade()
    yield store
    await store.close()
