"""Breakers of one process."""

import asyncio

from core.breakers.breaker import Event, Probing, Ticked, after, quiet
from core.breakers.breakers import LocalBreakers
from core.pauses import in_step

_REFRESH_EVERY = 1.0


class MemoryBreakers(LocalBreakers):
    """`core.breakers.Breakers` for a worker that is alone."""

    async def refresh(self) -> None:
        now = self._now()
        for name in list(self._records):
            self._happened(name, Ticked(now))
            if quiet(self._records[name], now, self.rules):
                del self._records[name]

    async def run(self) -> None:
        while True:
            await self.refresh()
            await asyncio.sleep(in_step(_REFRESH_EVERY))

    def _happened(self, name: str, *events: Event) -> None:
        self._records[name], changes = after(name, self._view(name), events, self.rules)
        self._tell(changes)

    async def _probe(self, name: str, event: Probing) -> bool:
        self._happened(name, event)
        return event.probe in dict(self._records[name].probes)
