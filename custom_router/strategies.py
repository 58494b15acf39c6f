"""Custom strategies: classes of the user's own that say which of a policy's candidates comes first.

    class MyStrategy:
        async def select_model(self, context: dict, models: list[str]) -> str: ...

`context` is what conditions of rules see (`core.facts`), `models` are those that may serve the request, in the order
in which they would be tried. One instance, made without arguments, serves a configuration. A strategy that fails, is
slow or names something else leaves the order as it is.

`select_model` may also be an ordinary method: then it runs in a thread. A coroutine that never awaits, on the other
hand, holds up the whole worker and cannot be interrupted; the time limit only works where it awaits.
"""

import asyncio
import inspect
import logging
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, cast

from core.errors import ConfigError
from core.settings.finding import Finding
from core.settings.models import Objective, Routing
from core.settings.source import SECTION

_LOG = logging.getLogger("orchestration.routing")

ENTRY_POINTS = "litellm_orchestration.strategies"
"""The group of entry points under which a package offers strategies by name."""

_MOST_THREADS = 8

Select = Callable[[dict[str, Any], list[str]], Any]
"""`select_model` of an instance; Any because it may return a name or an awaitable of one, or what it should not."""


class How(StrEnum):
    """How asking a strategy ended."""

    CHOSE = "chose"
    RAISED = "raised"
    SLOW = "slow"
    UNKNOWN_MODEL = "unknown_model"
    MISSING = "missing"
    BUSY = "busy"


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a strategy said: one of the models, or None with the reason for not following it."""

    model: str | None
    reason: str


class Strategies:
    """The strategies of one configuration. `timeout` is in seconds.

    `counts` has for each strategy how often asking it ended how. A strategy that cannot be made is missing and logged:
    `strategy_findings` is what refuses a configuration for that.
    """

    def __init__(self, paths: Mapping[str, str], timeout: float) -> None:
        self._timeout = timeout
        self._paths = dict(paths)
        self._selects: dict[str, Select | None] = {}
        self.counts: dict[str, Counter[How]] = {}
        self._threads = threading.Semaphore(_MOST_THREADS)
        self._told: set[tuple[str, str]] = set()
        for name in self._paths:
            self._select(name)

    async def choose(self, name: str, context: Mapping[str, Any], models: list[str]) -> Chosen:
        """Ask a strategy. Never raises; `context` and `models` are copied, so that it cannot change ours."""
        try:
            async with asyncio.timeout(self._timeout):
                how, chosen = await self._ask(name, dict(context), list(models))
        except TimeoutError:
            how, chosen = How.SLOW, f"took longer than {self._timeout:g} s"
        except Exception as error:
            # Its message may quote the request; the type does not.
            how, chosen = How.RAISED, f"raised {type(error).__name__}"
            self._tell(name, chosen, error)
        if how is How.CHOSE and chosen not in models:
            how, chosen = How.UNKNOWN_MODEL, f"chose {_shown(chosen)}, which is not a candidate of this request"
        self.counts.setdefault(name, Counter())[how] += 1
        if how is How.CHOSE:
            return Chosen(cast("str", chosen), f"strategy {name} chose {chosen}")
        self._tell(name, str(chosen))
        return Chosen(None, f"strategy {name} {chosen}")

    async def _ask(self, name: str, context: dict[str, Any], models: list[str]) -> tuple[How, object]:
        select = self._select(name)
        if select is None:
            return How.MISSING, "could not be loaded"
        if inspect.iscoroutinefunction(select):
            return How.CHOSE, await select(context, models)
        if not self._threads.acquire(blocking=False):
            return How.BUSY, f"has {_MOST_THREADS} calls under way that do not end"
        answer: object = await _in_thread(select, context, models, self._threads.release)
        return How.CHOSE, await cast("Awaitable[object]", answer) if inspect.isawaitable(answer) else answer

    def _select(self, name: str) -> Select | None:
        if name not in self._selects:
            try:
                self._selects[name] = _made(name, self._paths.get(name))
            except ConfigError as error:
                _LOG.error("strategy %s: %s", name, error)
                self._selects[name] = None
        return self._selects[name]

    def _tell(self, name: str, what: str, error: Exception | None = None) -> None:
        """Log a complaint about a strategy once: a broken one would say it at each request."""
        if (name, what) not in self._told and len(self._told) < _MOST_TOLD:
            self._told.add((name, what))
            _LOG.warning("strategy %s %s; the order stays as it is", name, what)
            if error is not None:
                _LOG.debug("strategy %s failed", name, exc_info=error)


_MOST_TOLD = 100


def strategy_findings(routing: Routing, folder: Path | None = None) -> list[Finding]:
    """The strategies of a configuration that cannot be loaded, with why. Imports the users' modules, also those in
    `folder`: that of config.yaml, from which LiteLLM loads modules too."""
    with _importable(folder):
        return _findings(routing)


@contextmanager
def _importable(folder: Path | None) -> Generator[None, None, None]:
    place = None if folder is None else str(folder.absolute())
    if place is None or place in sys.path:
        yield
        return
    sys.path.append(place)
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(place)


def _findings(routing: Routing) -> list[Finding]:
    found = [
        Finding("error", (SECTION, "routing", "strategies", name), problem, path)
        for name, path in routing.strategies.items()
        if (problem := _problem(name, path))
    ]
    for policy_name, policy in routing.policies.items():
        name = policy.objective
        if name not in set(Objective) and name not in routing.strategies and (problem := _problem(name, None)):
            found.append(Finding("error", (SECTION, "routing", "policies", policy_name, "objective"), problem, name))
    for name in routing.strategies:
        if name in set(Objective):
            message = f"'{name}' is an objective of its own, so the strategy is never asked; give it another name"
            found.append(Finding("error", (SECTION, "routing", "strategies", name), message, name))
    return found


def _problem(name: str, path: str | None) -> str | None:
    try:
        _made(name, path)
    except ConfigError as error:
        return str(error)
    return None


def _made(name: str, path: str | None) -> Select:
    """`select_model` of a new instance. Raises ConfigError, saying what is wrong with which class."""
    where = path or f"the entry point {name} of {ENTRY_POINTS}"
    try:
        made: object = _class_of(name, path)()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{where} cannot be used: {type(error).__name__}: {error}") from error
    select: object = getattr(made, "select_model", None)
    if not callable(select):
        raise ConfigError(f"{where} has no method select_model(context, models)")
    try:
        signature = inspect.signature(select)
    except (ValueError, TypeError):
        return select
    try:
        signature.bind({}, [])
    except TypeError as error:
        raise ConfigError(f"{where}: select_model must take (context, models): {error}") from error
    return select


def _class_of(name: str, path: str | None) -> Callable[[], object]:
    if path is None:
        for point in entry_points(group=ENTRY_POINTS, name=name):
            return cast("Callable[[], object]", point.load())
        raise ConfigError(f"there is no entry point '{name}' in {ENTRY_POINTS}; install its package, or add it to "
                          "routing.strategies")  # fmt: skip
    module, _, attribute = path.rpartition(".")
    found: object = getattr(import_module(module), attribute, None)
    if not callable(found):
        raise ConfigError(f"{module} has no class {attribute}")
    return found


async def _in_thread(select: Select, context: dict[str, Any], models: list[str], ended: Callable[[], None]) -> object:
    """A thread of its own that the process does not wait for when it ends: it may never come back."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[object] = loop.create_future()

    def run() -> None:
        try:
            found: object = select(context, models)
            error: Exception | None = None
        except Exception as raised:
            found, error = None, raised
        finally:
            ended()
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(_resolve, answer, found, error)

    threading.Thread(target=run, name="strategy", daemon=True).start()
    return await answer


def _resolve(answer: asyncio.Future[object], found: object, error: Exception | None) -> None:
    if answer.done():
        return
    if error is None:
        answer.set_result(found)
    else:
        answer.set_exception(error)


def _shown(value: object) -> str:
    return repr(value[:80]) if isinstance(value, str) else f"a {type(value).__name__}"
