"""Puts a runtime into the LiteLLM proxy of this process: edge, admin routes, background work. Happens once."""

import asyncio
import gc
import logging
import os
import signal
import sys
from pathlib import Path

from core.asgi import App
from core.errors import ConfigError, OrchestrationError
from core.runtime import Runtime
from plugins import compat, payment
from plugins.admin.budgets import BUDGETS
from plugins.admin.routes import admin_router
from plugins.admin.secrets import REFRESH, refresh_as_told
from plugins.alerts.secrets import SecretAlerts
from plugins.alerts.service import Alerts
from plugins.batches.poller import Poller
from plugins.budgets.notices import BudgetNotices
from plugins.budgets.service import Budgets
from plugins.draining import Draining
from plugins.edge import Edge
from plugins.hooks import Orchestration
from plugins.limits import Entrance
from plugins.log import configure_logging
from plugins.models import models_router
from plugins.pricing import price_list_version
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
        compat.wrap_app(self._wrap)
        compat.mount(admin_router(self.runtime, lambda: self.alerts, self._entrance))
        compat.mount_first(models_router())
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
            if os.environ.get(IN_PROCESS) is None:
                os.kill(os.getpid(), signal.SIGTERM)
        finally:
            settled.cancel()

    async def _settle(self) -> None:
        """Spare the garbage collector what is there for good.

        LiteLLM and what it imports make over a million objects; each full collection walks them all, which stops the
        worker for most of a second and comes round every thousand requests or so. A request leaves a few hundred
        objects behind, so Python's default of a collection for each 700 is one for every three requests.
        """
        await self.runtime.ready.wait()
        if os.environ.get(IN_PROCESS) is None:
            gc.freeze()
            if "PYTHON_GC_THRESHOLD" not in os.environ:  # LiteLLM's own setting
                gc.set_threshold(*_COLLECT_EVERY)

    def _note_prices(self, task: "asyncio.Task[str]") -> None:
        if not task.cancelled() and task.exception() is None:
            self.runtime.price_version = task.result()


_COLLECT_EVERY = (10_000, 10, 10)

IN_PROCESS = "LLM_ORCHESTRATION_IN_PROCESS"
"""Set while the Python API runs the proxy inside the application, whose process is not ours to end."""

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
