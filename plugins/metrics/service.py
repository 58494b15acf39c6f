"""The metrics of one worker, and through it of all workers of this machine."""

import asyncio
from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING

from core.errors import NotFound
from plugins.metrics import readings
from plugins.metrics.catalog import Reading
from plugins.metrics.exposition import exposition
from plugins.metrics.peers import Peers, worker_name
from plugins.metrics.traffic import Traffic

if TYPE_CHECKING:
    from core.runtime import Runtime
    from core.store import Store
    from plugins.alerts.service import Alerts
    from plugins.limits import Entrance


class Metrics:
    """`alerts` and `entrance` give those of this worker, which need not be there yet."""

    def __init__(
        self,
        runtime: "Runtime",
        traffic: Traffic,
        alerts: "Callable[[], Alerts]",
        entrance: "Callable[[], Entrance | None]",
    ) -> None:
        self._runtime = runtime
        self._traffic = traffic
        self._alerts = alerts
        self._entrance = entrance
        self._name = worker_name()
        self._peers = Peers(runtime.journal.directory / "metrics", self._name, self.readings)

    def readings(self) -> list[Reading]:
        """Those of this worker."""
        runtime, traffic = self._runtime, self._traffic
        return [
            *chain(
                readings.of_requests(traffic, self._entrance()),
                readings.of_cache(traffic),
                readings.of_routing(),
                readings.of_resilience(runtime),
                readings.of_books(runtime),
                readings.of_worker(runtime, self._alerts()),
            )
        ]

    async def run(self, _: "Store") -> None:
        """Be there for the other workers, where there can be any, until cancelled."""
        if self._runtime.shared_url is not None:
            await self._peers.run()

    async def text(self) -> bytes:
        """All of it in Prometheus' text format. Raises NotFound where the configuration wants none."""
        if not self._runtime.settings.analytics.metrics:
            raise NotFound("Metrics are switched off: orchestration.analytics.metrics (or ENABLE_METRICS) is false.")
        others = await self._peers.ask() if self._runtime.shared_url is not None else {}
        shared = await readings.of_budgets(self._runtime)
        workers = {**others, self._name: self.readings()}
        shared.append(("workers", (), len(workers)))
        # Importing prometheus_client and writing thousands of lines would hold requests up.
        return await asyncio.to_thread(exposition, workers, shared)
