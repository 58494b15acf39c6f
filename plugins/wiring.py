"""Puts a runtime into the LiteLLM proxy of this process: edge, admin routes, background work. Happens once."""

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from core import memory, process
from core.asgi import App
from core.breakers.redis import SIGNAL as BREAKERS
from core.cache.redis import SIGNAL as CACHE
from core.errors import ConfigError, OrchestrationError
from core.runtime import Runtime
from plugins import admission, compat, payment, route
from plugins.admin.budgets import BUDGETS
from plugins.admin.metrics import metrics_router
from plugins.admin.resilience import breakers_router
from plugins.admin.routes import admin_router
from plugins.admin.secrets import REFRESH, refresh_as_told
from plugins.alerts.secrets import SecretAlerts
from plugins.alerts.service import Alerts
from plugins.batches.poller import Poller
from plugins.budgets.notices import BudgetNotices
from plugins.budgets.service import Budgets
from plugins.caching import service as caching
from plugins.draining import Draining
from plugins.edge import Edge
from plugins.hooks import Orchestration
from plugins.limits import Entrance
from plugins.log import configure_logging
from plugins.metrics import traffic
from plugins.metrics.service import Metrics
from plugins.models import models_router
from plugins.pricing import price_list_version
from plugins.resilience import outages
from plugins.resilience import service as resilience
from plugins.resilience.breakers import DeploymentBreakers
from plugins.resilience.health import Checking
from plugins.resilience.outages import Outages
from plugins.routing.candidates import Candidates
from plugins.routing.experiments import Experiments
from plugins.routing.live import Loads
from plugins.routing.service import ROUTING, Routing
from secrets_manager.audit import SecretAudit
from secrets_manager.resolver import Happened, SecretEvent

_LOG = logging.getLogger("orchestration")


class Wiring:
    """The runtime of this process with the callback LiteLLM calls and the task that keeps it alive."""

    def __init__(self) -> None:
        compat.secrets()  # says itself why, where the proxy must not start
        try:
            self.runtime = Runtime(compat.config_path(), compat)
        except ConfigError as error:
            # LiteLLM would bury this under a traceback; whoever starts the proxy needs the lines alone.
            print(f"\n{error}\n", file=sys.stderr)  # noqa: T201
            raise
        configure_logging(self.runtime.settings.analytics.log_level)
        self.callback = Orchestration(self.runtime)
        self.edge: Edge | None = None
        compat.spare_contexts()
        compat.wrap_app(self._wrap)
        compat.mount(admin_router(self.runtime, lambda: self.alerts, self._entrance))
        compat.mount_first(models_router())
        traffic.traffic = traffic.Traffic(self._names)
        metrics = Metrics(self.runtime, traffic.traffic, lambda: self.alerts, self._entrance)
        compat.mount(metrics_router(metrics))
        self.runtime.beside(metrics.run)
        draining = Draining(self.close)
        compat.mount(draining.router())
        draining.follow_signals()
        loop = asyncio.get_running_loop()
        self.runtime.on_signal(REFRESH, refresh_as_told)
        self.audit = SecretAudit(self.runtime.instance, lambda: compat.secrets().states())
        compat.secrets().listen(self.audit, from_the_start=True)
        self.runtime.beside(self.audit.run)
        folder = Path(self.runtime.settings.journal.dir) / "alerts"
        self.alerts = Alerts(lambda: self.runtime.settings.alerts, compat.secret, folder, self.runtime.instance)
        self.runtime.beside(self.alerts.run)
        self._secret_alerts = SecretAlerts()
        compat.secrets().listen(self._alert)
        payment.budgets = Budgets(self.runtime, BudgetNotices(self.alerts.raise_))
        self.runtime.beside(payment.budgets.run)
        route.routing = Routing(self.runtime, Loads(payment.budgets.expected.typical), Candidates())
        breakers = DeploymentBreakers(self.runtime, self.alerts.raise_)
        route.routing.loads.open_breaker = breakers.is_open
        route.routing.loads.quiet = breakers.quiet
        resilience.resilience = resilience.Resilience(self.runtime, breakers, route.routing.candidates)
        self.runtime.beside(breakers.run)
        self.runtime.on_signal(BREAKERS, breakers.hear)
        compat.mount(breakers_router(self.runtime))
        checking = Checking(self.runtime, breakers, route.routing.candidates, _deployments)
        resilience.resilience.checks = checking.checks
        self.runtime.beside(checking.run)
        routing = route.routing
        cache = caching.Caching(self.runtime, admission.foresee, compat.secret, lambda: routing.agreed)
        caching.caching = cache
        resilience.stale_answer = cache.stale_answer
        outages.outages = Outages(self.runtime, resilience.resilience, cache.identities, admission.foresee)
        self.runtime.beside(cache.run)
        self.runtime.on_signal(CACHE, cache.hear_invalidated)
        self.runtime.on_signal(caching.FORGET, cache.hear_forget)
        self.runtime.beside(route.routing.run)
        self.runtime.on_signal(ROUTING, route.routing.hear)
        self.runtime.beside(Experiments(self.runtime, self.alerts.raise_).run)
        self.runtime.on_written(payment.budgets.written)
        self.runtime.beside(Poller(compat, self.runtime.journal.amend, payment.budgets.notices.overrun).run)
        self.runtime.on_signal(BUDGETS, payment.budgets.hear)
        compat.secrets().listen(lambda event: self._hear(loop, event))
        self.task = asyncio.get_running_loop().create_task(self._live(), name="orchestration")

    async def close(self) -> None:
        """End the runtime: everything in the store, connections closed."""
        self.task.cancel()
        await asyncio.wait({self.task})
        if self.edge is not None and self.edge.entrance is not None:
            await self.edge.entrance.close()
        await asyncio.to_thread(compat.secrets().close)

    def _wrap(self, app: App) -> Edge:
        self.edge = Edge(app, self.runtime)
        return self.edge

    def _entrance(self) -> Entrance | None:
        return None if self.edge is None else self.edge.entrance_now()

    def _names(self) -> tuple[str, ...]:
        """What a client may ask for by a name of the configuration."""
        return (*self.runtime.snapshot.policies, *compat.model_groups())

    def _alert(self, event: SecretEvent) -> None:
        """On a thread of the secrets."""
        alert = self._secret_alerts.alert_of(event)
        if alert is not None:
            self.alerts.raise_(alert)

    def _hear(self, loop: asyncio.AbstractEventLoop, event: SecretEvent) -> None:
        """On a thread of the secrets: whoever is known by a secret is known by its new value."""
        if (
            event.what in (Happened.FETCHED, Happened.ROTATED, Happened.REVERTED, Happened.RECOVERED)
            and not loop.is_closed()
        ):
            loop.call_soon_threadsafe(self.runtime.secret_changed, event.reference)

    async def _live(self) -> None:
        prices = asyncio.create_task(asyncio.to_thread(price_list_version))
        prices.add_done_callback(self._note_prices)
        settled = asyncio.create_task(self._settle())
        try:
            await self.runtime.run()
        except OrchestrationError as error:
            _LOG.critical("%s", error)
            print(f"\nThe proxy cannot start: {error}\n", file=sys.stderr)  # noqa: T201
            if process.is_a_proxys():
                os.kill(os.getpid(), signal.SIGTERM)
        finally:
            settled.cancel()

    async def _settle(self) -> None:
        """What is there for good once a worker is ready is put where it costs least."""
        await self.runtime.ready.wait()
        if process.is_a_proxys():
            memory.spare_collections()
            await asyncio.sleep(_SETTLED_AFTER)
            moved = await memory.use_huge_pages()
            _LOG.debug("%d MiB of memory are in huge pages", moved >> 20)

    def _note_prices(self, task: "asyncio.Task[str]") -> None:
        if not task.cancelled() and task.exception() is None:
            self.runtime.price_version = task.result()


def _deployments() -> list[dict[str, Any]]:
    """All entries of LiteLLM's `model_list`."""
    return [one for group in compat.model_groups() for one in compat.deployments_of(group)]


_SETTLED_AFTER = 5.0
"""Seconds after a start until which LiteLLM still imports and caches what its first requests need."""

_wiring: Wiring | None = None


def wiring() -> Wiring:
    """The wiring of this process, made on first use, which is when LiteLLM loads its callbacks."""
    global _wiring
    if _wiring is None:
        _wiring = Wiring()
    return _wiring


async def unwire() -> None:
    """End the background work of this process's wiring; the program that runs the proxy goes on."""
    if _wiring is not None:
        await _wiring.close()
