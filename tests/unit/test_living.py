"""Which workers are there, as the books ask before they finish without those that are not: not believed of a store that
was away until a moment ago."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.errors import StoreError
from core.runtime import Runtime
from core.settings import Settings
from core.store import Instance, Store
from plugins.budgets.notices import BudgetNotices
from plugins.budgets.service import Budgets


async def seen(store: Store, name: str) -> None:
    await store.instances.beat(Instance(name, f"host-of-{name}", 1, 0, "1", "digest", 1))


def budgets(store: Store, back_at: float | None) -> Budgets:
    runtime: Any = SimpleNamespace(settings=Settings(), store=store, store_back_at=back_at)
    return Budgets(runtime, BudgetNotices(lambda alert: None))


async def test_at_a_normal_start_those_that_beat_are_there(store: Store) -> None:
    await seen(store, "a")
    await seen(store, "b")
    assert sorted(await budgets(store, None).living()) == ["a", "b"]


async def test_just_after_an_outage_of_the_store_nobody_is_taken_for_dead(store: Store) -> None:
    await seen(store, "a")
    with pytest.raises(StoreError, match="away until a moment ago"):
        await budgets(store, time.monotonic()).living()


async def test_a_little_later_all_have_had_the_time_to_say_so(store: Store) -> None:
    await seen(store, "a")
    assert await budgets(store, time.monotonic() - 11).living() == ["a"]


class Answering:
    """A store that can be away."""

    def __init__(self) -> None:
        self.away = False
        self.instances = self

    async def upgrade(self, *, apart: bool = False) -> None:
        if self.away:
            raise StoreError("the store does not answer")

    async def beat(self, instance: Instance) -> None:
        await self.upgrade()


class NoRouter:
    """The proxy before it has a router."""

    def model_groups(self) -> tuple[str, ...]:
        return ()

    def secret(self, reference: str) -> str | None:
        return None


async def test_the_runtime_notes_when_the_store_came_back_and_not_that_it_was_there(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"orchestration: {{journal: {{dir: {tmp_path}}}, shared_state: {{url: redis://nowhere}}}}\n")
    proxy: Any = NoRouter()
    runtime = Runtime(config, proxy, environ={})
    store: Any = Answering()
    runtime.store = store
    await runtime._open_store()
    assert runtime.store_back_at is None
    store.away = True
    await runtime._beat()
    await runtime._open_store()
    assert (runtime.store_back_at, runtime.store_error) == (None, "the store does not answer")
    store.away = False
    before = time.monotonic()
    await runtime._open_store()
    assert runtime.store_back_at is not None and before <= runtime.store_back_at <= time.monotonic()
    assert runtime.store_error is None
    runtime.journal.close()
