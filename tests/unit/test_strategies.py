"""Custom strategies: what they may be, and what becomes of those that do not behave."""

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from core.settings.models import Policy, Routing
from custom_router import strategies
from custom_router.strategies import Chosen, How, Strategies, strategy_findings

SOURCE = """
import asyncio, threading

made = []
released = threading.Event()

class Last:
    def __init__(self):
        made.append(self)
    async def select_model(self, context, models):
        return models[-1]

class ByTask:
    async def select_model(self, context, models):
        await asyncio.sleep(0)
        return "small" if context["task_type"] == "chat" else "large"

class Raises:
    async def select_model(self, context, models):
        raise ValueError("what the user wrote")

class Slow:
    async def select_model(self, context, models):
        await asyncio.sleep(60)

class Elsewhere:
    async def select_model(self, context, models):
        return "another-model"

class Nothing:
    async def select_model(self, context, models):
        return None

class Meddles:
    async def select_model(self, context, models):
        context.clear()
        return models.pop()

class Threaded:
    def select_model(self, context, models):
        return f"{models[0]}" if threading.current_thread() is not threading.main_thread() else "main"

class Hangs:
    def select_model(self, context, models):
        released.wait(30)
        return models[0]

class BreaksWhenMade:
    def __init__(self):
        raise RuntimeError("no weights file")

class NoMethod:
    pass

class WrongArguments:
    async def select_model(self, context):
        return "small"
"""
MODELS = ["large", "small"]


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "own_strategies.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("own_strategies", None)
    import own_strategies  # pyright: ignore[reportMissingImports]

    yield own_strategies
    own_strategies.released.set()
    sys.modules.pop("own_strategies", None)


def using(*classes: str, timeout: float = 5.0) -> Strategies:
    return Strategies({name: f"own_strategies.{name}" for name in classes}, timeout)


async def ask(name: str, *, timeout: float = 5.0, **context: Any) -> Chosen:
    return await using(name, timeout=timeout).choose(name, context, MODELS)


async def test_a_strategy_chooses_by_the_context() -> None:
    assert (await ask("ByTask", task_type="chat")).model == "small"
    assert await ask("ByTask", task_type=None) == Chosen("large", "strategy ByTask chose large")


async def test_one_instance_serves_a_configuration(module: Any) -> None:
    own = using("Last")
    for _ in range(3):
        await own.choose("Last", {}, MODELS)
    assert len(module.made) == 1
    assert own.counts["Last"] == {How.CHOSE: 3}


async def test_an_ordinary_method_runs_in_a_thread() -> None:
    assert (await ask("Threaded")).model == "large"


@pytest.mark.parametrize(
    ("name", "how", "reason"),
    [
        ("Raises", How.RAISED, "strategy Raises raised ValueError"),
        ("Slow", How.SLOW, "strategy Slow took longer than 0.05 s"),
        ("Hangs", How.SLOW, "strategy Hangs took longer than 0.05 s"),
        ("Elsewhere", How.UNKNOWN_MODEL, "chose 'another-model', which is not a candidate of this request"),
        ("Nothing", How.UNKNOWN_MODEL, "chose a NoneType, which is not a candidate of this request"),
        ("NotThere", How.MISSING, "strategy NotThere could not be loaded"),
        ("BreaksWhenMade", How.MISSING, "could not be loaded"),
    ],
)
async def test_one_that_fails_leaves_the_order_as_it_is(
    name: str, how: How, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    own = using(name, timeout=0.05)
    for _ in range(2):
        chosen = await own.choose(name, {}, MODELS)
        assert chosen.model is None
        assert reason in chosen.reason
    assert own.counts[name] == {how: 2}
    assert "what the user wrote" not in caplog.text
    assert sum("the order stays" in one.message for one in caplog.records) == 1, "said once"


async def test_calls_that_hang_do_not_pile_up(module: Any) -> None:
    own = using("Hangs", timeout=0.02)
    before = threading.active_count()
    await asyncio.gather(*(own.choose("Hangs", {}, MODELS) for _ in range(50)))
    assert threading.active_count() <= before + 8
    assert own.counts["Hangs"] == {How.SLOW: 8, How.BUSY: 42}
    module.released.set()
    until = time.monotonic() + 5
    while (await own.choose("Hangs", {}, MODELS)).model != "large" and time.monotonic() < until:
        await asyncio.sleep(0.01)
    assert own.counts["Hangs"][How.CHOSE] == 1, "and once they end, there is room again"


async def test_a_strategy_cannot_change_what_the_others_see() -> None:
    context, models = {"task_type": "chat"}, list(MODELS)
    assert (await using("Meddles").choose("Meddles", context, models)).model == "small"
    assert (context, models) == ({"task_type": "chat"}, MODELS)


async def test_a_client_that_leaves_ends_the_question() -> None:
    task = asyncio.create_task(ask("Slow", timeout=30))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_package_offers_a_strategy_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoints([EntryPoint("offered", "own_strategies:Last", strategies.ENTRY_POINTS)])
    monkeypatch.setattr(strategies, "entry_points", lambda **wanted: points.select(**wanted))
    assert (await Strategies({}, 1.0).choose("offered", {}, MODELS)).model == "small"
    assert strategy_findings(Routing(policies={"p": Policy(candidates=("large",), objective="offered")})) == []


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("own_strategies.Last", None),
        ("own_strategies.Threaded", None),
        ("own_strategies.Typo", "own_strategies has no class Typo"),
        ("not_installed.Strategy", "not_installed.Strategy cannot be used: ModuleNotFoundError: No module named"),
        ("own_strategies.BreaksWhenMade", "cannot be used: RuntimeError: no weights file"),
        ("own_strategies.NoMethod", "has no method select_model(context, models)"),
        ("own_strategies.WrongArguments", "select_model must take (context, models): too many positional arguments"),
    ],
)
def test_what_cannot_be_loaded_is_found_by_the_check(path: str, message: str | None) -> None:
    found = strategy_findings(Routing(strategies={"mine": path}))
    if message is None:
        assert found == []
        return
    assert [one.path for one in found] == ["orchestration.routing.strategies.mine"]
    assert found[0].severity == "error"
    assert message in found[0].message


def test_a_policy_whose_strategy_is_nowhere_and_a_strategy_nobody_can_name_are_found() -> None:
    routing = Routing(
        policies={"p": Policy(candidates=("large",), objective="mine")}, strategies={"cost": "own_strategies.Last"}
    )
    paths = {one.path: one.message for one in strategy_findings(routing)}
    assert "no entry point 'mine'" in paths["orchestration.routing.policies.p.objective"]
    assert "an objective of its own" in paths["orchestration.routing.strategies.cost"]


def test_a_module_beside_the_configuration_is_found(tmp_path: Path) -> None:
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "lone_strategy.py").write_text(SOURCE)
    routing = Routing(strategies={"mine": "lone_strategy.Last"})
    assert strategy_findings(routing), "not from anywhere"
    assert strategy_findings(routing, tmp_path / "beside") == []
    assert str(tmp_path / "beside") not in sys.path
    sys.modules.pop("lone_strategy")
