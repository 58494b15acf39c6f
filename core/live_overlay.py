"""The admin overlay that is in force in this worker: taken over from the store, changed by administrators, told to
others."""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import pauses
from core.audit import AuditRecord
from core.errors import ConfigError, StoreError
from core.overlay import Overlay
from core.settings import Finding, InvalidConfig

if TYPE_CHECKING:
    from core.state.signals import Signals
    from core.store import Store

_LOG = logging.getLogger("orchestration")
OVERLAY = "overlay"
"""The signal by which an instance tells the others that there is a new version. Its body: `version`."""
_LOOK_SECONDS = 3.0
_RACES = 10
_COPY = "overlay.json"

Renew = Callable[[Overlay], Awaitable[bool]]
"""Have the configuration in force with this overlay over it; whether that was news. Raises ConfigError, and changes
nothing, where it does not fit."""


@dataclass(frozen=True, slots=True)
class Change:
    """A change as it is written down: `action` is `budget.put` or the like, `subject` the entry (`budgets/team_ai`),
    `detail` JSON without secrets. `overlay` is the next version."""

    overlay: Overlay
    action: str
    subject: str
    detail: str


class LiveOverlay:
    """`renew` puts an overlay in force; `lock` is held while it does. `folder` keeps a copy for a start without the
    store."""

    def __init__(
        self, renew: Renew, lock: asyncio.Lock, instance: str, folder: Path, clock: Callable[[], float] = time.time
    ) -> None:
        self.current = Overlay()
        self.problems: tuple[Finding, ...] = ()
        """Why the newest version is not in force here; empty when it is."""
        self._renew = renew
        self._lock = lock
        self._instance = instance
        self._copy = folder / _COPY
        self._clock = clock
        self._refused: int | None = None
        self._news = asyncio.Event()
        self._unaudited: list[AuditRecord] = []
        self._telling: asyncio.Task[bool] | None = None

    async def begin(self, store: "Store") -> None:
        """Take the store's overlay over; the last one that was seen on this machine while the store is away. Raises
        ConfigError where it does not fit config.yaml."""
        try:
            overlay = await store.overlay.latest()
        except StoreError as error:
            overlay = self._last_seen()
            _LOG.error(
                "the admin overlay cannot be read; starting with version %d, the last one seen here: %s",
                overlay.version,
                error,
            )
        try:
            async with self._lock:
                await self._take_over(overlay)
        except ConfigError as error:
            raise ConfigError(
                f"version {overlay.version} of the admin overlay does not fit config.yaml; change the file: {error}"
            ) from error

    async def follow(self, store: "Store") -> None:
        """Until cancelled, look for a new version every few seconds, and when another instance says there is one."""
        while True:
            await pauses.wait(self._news, _LOOK_SECONDS)
            self._news.clear()
            try:
                await self.audit(store)
                if await store.overlay.version() != self.current.version:
                    await self._catch_up(store)
            except StoreError:
                continue  # the runtime says so; the overlay stays as it is
            except Exception:  # a bug of ours must not end what looks for changes
                _LOG.exception("a new version of the admin overlay could not be followed")

    async def hear(self, body: dict[str, Any]) -> None:
        """Another instance says that there is a new version."""
        self._news.set()

    async def change(
        self, propose: Callable[[], Change | None], *, actor: str, store: "Store", signals: "Signals | None" = None
    ) -> Overlay:
        """Change the overlay: here at once, in the store, and on the other instances as soon as they are told.

        `propose` is asked, for None or the change to make, when `current` is the newest there is, and again should
        another instance be faster. Raises what `propose` raises, ConfigError where the change does not fit and
        StoreError where the store does not answer; then nothing is changed.
        """
        async with self._lock:
            for _ in range(_RACES):
                await self._take_over(await store.overlay.latest())
                before, change = self.current, propose()
                if change is None:
                    return before
                if await self._made(change, before, actor, store):
                    await self._note(change, actor, store)
                    if signals is not None:
                        self._telling = asyncio.create_task(signals.tell(OVERLAY, {"version": change.overlay.version}))
                    return change.overlay
        raise StoreError("other administrators change the overlay all the time; try again")

    async def audit(self, store: "Store") -> None:
        """Write down which changes were made; what the store does not take now is tried again."""
        waiting = list(self._unaudited)
        if not waiting:
            return
        try:
            await store.audit.append(self._instance, waiting)
        except StoreError as error:
            _LOG.error("%d audit records of changes wait in memory: %s", len(waiting), error)
        else:
            self._unaudited = [record for record in self._unaudited if record not in waiting]

    async def _made(self, change: Change, before: Overlay, actor: str, store: "Store") -> bool:
        """Put a change in force and into the store, or neither where another instance was faster.

        In force first: what does not fit must not get into the store, where all instances would find it.
        """
        await self._put_in_force(change.overlay)
        written = False
        said = json.dumps({"action": change.action, "subject": change.subject}, ensure_ascii=False)
        try:
            written = await store.overlay.write(change.overlay, actor=actor, change=said)
        finally:
            if not written:
                try:
                    await self._put_in_force(before)
                except ConfigError as error:  # a secret went away meanwhile
                    _LOG.error("a change that was not written stays in force here until the next: %s", error)
        return written

    async def note(self, record: AuditRecord, store: "Store") -> None:
        """Write down what an administrator did; what the store does not take now is tried again."""
        self._unaudited.append(record)
        await self.audit(store)

    async def _note(self, change: Change, actor: str, store: "Store") -> None:
        record = AuditRecord(int(self._clock() * 1000), actor, change.action, change.subject, detail=change.detail)
        await self.note(record, store)
        await asyncio.to_thread(self._keep, change.overlay)

    async def _catch_up(self, store: "Store") -> None:
        async with self._lock:
            stored = await store.overlay.latest()
            try:
                await self._take_over(stored)
            except ConfigError as error:
                if self._refused != stored.version:
                    self._refused, self.problems = stored.version, problems_of(error)
                    _LOG.error(
                        "version %d of the admin overlay does not fit here, the old settings stay: %s",
                        stored.version,
                        error,
                    )

    async def _take_over(self, stored: Overlay) -> None:
        """Raises ConfigError where it does not fit the file here."""
        if stored == self.current:
            return
        if await self._put_in_force(stored):
            _LOG.info("version %d of the admin overlay in force", stored.version)
        self._refused, self.problems = None, ()
        await asyncio.to_thread(self._keep, stored)

    async def _put_in_force(self, overlay: Overlay) -> bool:
        news = await self._renew(overlay)
        self.current = overlay
        return news

    def _keep(self, overlay: Overlay) -> None:
        fresh = self._copy.with_name(f"{_COPY}.{self._instance}")
        try:
            fresh.touch(mode=0o600)
            fresh.write_text(f"{overlay.version}\n{overlay.text}", encoding="utf-8")
            fresh.replace(self._copy)
        except OSError as error:
            _LOG.warning("no copy of the admin overlay for a start without the store: %s", error)

    def _last_seen(self) -> Overlay:
        try:
            version, _, text = self._copy.read_text(encoding="utf-8").partition("\n")
            return Overlay.parse(int(version), text)
        except FileNotFoundError:
            return Overlay()
        except (OSError, ValueError) as error:
            _LOG.error("the last admin overlay seen on this machine cannot be read: %s", error)
            return Overlay()


def problems_of(error: ConfigError) -> tuple[Finding, ...]:
    """What keeps a configuration from being in force."""
    if isinstance(error, InvalidConfig):
        return tuple(finding for finding in error.findings if finding.severity == "error")
    return (Finding("error", (), str(error)),)
