"""Routing of one worker: the router of the settings in force, and what it has to know of models and experiments."""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from core import pauses
from core.context import RequestContext
from core.errors import ConfigError, StoreError
from core.facts import facts_of
from core.settings.models import ExperimentStatus
from custom_router.decision import Plan
from custom_router.experiments.agreed import Agreed
from custom_router.experiments.assignment import Assigner
from custom_router.router import MayUse, Router
from custom_router.strategies import Strategies
from plugins.routing.agreement import Agreement
from plugins.routing.candidates import Candidates
from plugins.routing.live import Loads
from plugins.routing.versions import described

if TYPE_CHECKING:
    from core.runtime import Runtime
    from core.snapshot import Snapshot
    from core.store import Store

_LOG = logging.getLogger("orchestration.routing")
_LOOK_EVERY = 5.0
_BEGINS_WITHIN = 5.0


class Routing:
    """Made before the worker starts.

    While it is not known what the instances have agreed on about the ranges of experiments, nobody is assigned: they
    may have been moved since the configuration was written.
    """

    def __init__(self, runtime: "Runtime", loads: Loads, candidates: Candidates) -> None:
        self._runtime = runtime
        self.loads = loads
        self.candidates = candidates
        loads.deployments_of = candidates.deployments
        loads.disabled = lambda: runtime.disabled_deployments
        self.agreed: Agreed | None = None
        self._agreement = Agreement()
        self.strategies: Strategies | None = None
        self._router: Router | None = None
        self._made_of: tuple[Snapshot, Agreed | None] | None = None
        self._described: str | None = None
        self._begun = asyncio.Event()
        self._news = asyncio.Event()

    # -- a request -------------------------------------------------------------------------------------------------

    async def router(self, snapshot: "Snapshot") -> Router:
        """The router of these settings; waits for a moment where the worker has just started and it has experiments."""
        if self.agreed is None and _running(snapshot):
            with suppress(TimeoutError):
                async with asyncio.timeout(_BEGINS_WITHIN):
                    await self._begun.wait()
        router, made_of = self._router, self._made_of
        if router is None or made_of is None or made_of[0] is not snapshot or made_of[1] is not self.agreed:
            router = self._make(snapshot)
        return router

    @property
    def in_force(self) -> Router | None:
        """The router of the newest settings that a request came to, None before the first."""
        return self._router

    async def plan(self, router: Router, context: RequestContext, may_use: MayUse) -> Plan:
        """What is decided about a request; where a custom strategy has a say, it has been asked."""
        plan = router.decide(context, may_use)
        if plan.strategy is None or self.strategies is None:
            return plan
        chosen = await self.strategies.choose(plan.strategy, facts_of(context), list(plan.tied))
        if chosen.model is None:
            return plan._replace(reason=f"{plan.reason} ({chosen.reason})")
        rest = tuple(name for name in plan.candidates if name != chosen.model)
        return plan._replace(candidates=(chosen.model, *rest))

    def _make(self, snapshot: "Snapshot") -> Router:
        routing, agreed, before = snapshot.settings.routing, self.agreed, self._made_of
        known = agreed or _NOTHING
        if self._router is not None and before is not None and before[0] is snapshot and before[1] is not None:
            # Only what the instances have agreed on is another: nothing has to be compiled for that.
            assigner = self._router.assigner.with_state(known.stored, known.closed)
            router = self._router.with_assigner(assigner)
        else:
            experiments = routing.experiments if agreed is not None else ()
            assigner = Assigner(experiments, routing.holdout, known.stored, known.closed)
            if before is None or before[0].settings.routing.strategies != routing.strategies:
                self.strategies = Strategies(routing.strategies, routing.strategy_timeout)
            self.candidates.forget()
            router = Router(snapshot.settings, snapshot.access, self.candidates.of, self.loads, assigner)
            self._news.set()
        self._router, self._made_of = router, (snapshot, agreed)
        return router

    # -- a worker --------------------------------------------------------------------------------------------------

    async def run(self, store: "Store") -> None:
        """Agree with the other instances on the ranges of experiments, and have the store know the settings in force,
        until cancelled."""
        while True:
            try:
                await self._look(store)
            except (StoreError, ConfigError) as error:
                _LOG.warning("experiments cannot be looked up: %s", error)
            self._begun.set()
            await pauses.wait(self._news, _LOOK_EVERY)
            self._news.clear()

    async def hear(self, _: Mapping[str, Any]) -> None:
        """Another instance has changed something about experiments."""
        self._news.set()

    async def _look(self, store: "Store") -> None:
        snapshot = self._runtime.snapshot
        if _running(snapshot):
            found = await self._agreement.reach(store, snapshot.settings.routing.experiments)
            if found != self.agreed:
                self.agreed = found
        elif self.agreed is None:
            self.agreed = _NOTHING
        if self._described != snapshot.digest and snapshot.enforces_access:
            await store.routing_versions.put(snapshot.digest, described(self._runtime.document))
            self._described = snapshot.digest


_NOTHING = Agreed()

ROUTING = "routing"
"""The signal that something about experiments has changed."""


def _running(snapshot: "Snapshot") -> bool:
    return any(one.status is ExperimentStatus.RUNNING for one in snapshot.settings.routing.experiments)
