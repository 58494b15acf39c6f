"""Takes what is raised, keeps it until the store has it, and delivers what is in the store to the channels."""

import asyncio
import logging
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from core import pauses
from core.alerts import Alert
from core.errors import StoreError
from core.settings.models.alerts import AlertEvent
from core.settings.models.alerts import Alerts as AlertSettings
from plugins.alerts.channels import Secret, open_channel
from plugins.alerts.message import Channel, Message, NotSent
from plugins.alerts.spool import Spool

if TYPE_CHECKING:
    from core.store import Store
    from core.store.alerts import Delivery, Raised

_LOG = logging.getLogger("orchestration.alerts")

ROOM = 10_000
"""Different alerts that wait for the store; more than that are lost, loudly."""
_REMEMBERED = 10_000
_AT_ONCE = 4
TRIES = 60
"""Attempts for one delivery. With the pauses between them, a receiver may be away for some six hours."""
_FIRST_PAUSE = 2.0
_LONGEST_PAUSE = 900.0
_LONGEST_ASKED = 3600.0
_LOOK_EVERY = 10.0
_LOOK_FOR_THE_DEAD_EVERY = 30.0
_FORGET_EVERY = 3600.0
_STORE_PAUSE = 30.0
_STOP_SECONDS = 5.0
STORE_PATIENCE = 30.0
"""Seconds without the store after which people are told so, by each instance itself: there is no outbox then."""


@dataclass(slots=True)
class _Waiting:
    alert: Alert
    times: int = 1


class Alerts:
    """Alerts of one worker. `raise_` may be called from any thread; the rest belongs to the event loop.

    `settings` gives the configuration in force, `secret` the value behind a reference; `folder` is where alerts wait
    until the store has them. `open_` makes a channel from its name, for tests.
    """

    def __init__(
        self,
        settings: Callable[[], AlertSettings],
        secret: Secret,
        folder: Path | None,
        instance: str,
        *,
        clock: Callable[[], float] = time.time,
        open_: Callable[[str], Channel] | None = None,
        store_patience: float = STORE_PATIENCE,
    ) -> None:
        self._settings = settings
        self._secret = secret
        self._instance = instance
        self._clock = clock
        self._open = open_ or (lambda name: open_channel(name, settings(), secret, clock))
        self._store_patience = store_patience
        self._flushing = asyncio.Lock()
        self._spool = Spool(folder, instance)
        self._lock = threading.Lock()
        self._waiting: dict[str, _Waiting] = {}
        self._told: dict[str, None] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._raised = asyncio.Event()
        self._recorded = asyncio.Event()
        self._unmarked: set[str] = set()
        self._next_look = 0.0
        self._next_forgetting = 0.0
        self._away_since: float | None = None
        self._told_away = False
        self.lost = 0
        """Alerts that found no room."""

    @property
    def waiting(self) -> int:
        """Alerts that are not in the store yet."""
        return len(self._waiting)

    # -- raising -------------------------------------------------------------------------------------------------

    def raise_(self, alert: Alert) -> None:
        """Have it told. Returns at once and never raises; an event that no rule sends anywhere is not kept."""
        try:
            self._put(alert)
        except Exception:  # whoever raises an alert has something better to do than to fail with it
            _LOG.exception("an alert (%s of %s) could not be raised", alert.event, alert.subject)

    def _put(self, alert: Alert) -> None:
        if not self._settings().channels_of(alert.event):
            return
        alert = alert.at(int(self._clock() * 1000))
        key = alert.dedupe_key
        with self._lock:
            known = self._waiting.get(key)
            if known is not None:
                if alert.comes_in_floods:
                    known.times += 1
                return
            if key in self._told:
                return
            alert = _plain(alert)
            if len(self._waiting) >= ROOM:
                self._lose()
                return
            self._spool.append(alert)
            self._waiting[key] = _Waiting(alert)
        self._wake()

    def _lose(self) -> None:
        self.lost += 1
        if self.lost == 1 or self.lost % 1000 == 0:
            _LOG.error("%d alerts are lost: %d wait for the store already", self.lost, ROOM)

    def _wake(self) -> None:
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # the loop has ended; the alert is in the spool
                loop.call_soon_threadsafe(self._raised.set)

    # -- recording -----------------------------------------------------------------------------------------------

    async def flush(self, store: "Store") -> int:
        """Put what waits, and what dead processes left, into the store; returns how many messages are new.

        Raises StoreError; everything waits then as before.
        """
        async with self._flushing:
            return await self._flush(store)

    async def _flush(self, store: "Store") -> int:
        new = await self._adopt(store)
        with self._lock:
            batch, self._waiting = self._waiting, {}
            self._spool.turn()
        if not batch:
            return new
        try:
            new += await self._record(store, batch.values())
        except BaseException:
            with self._lock:
                for key, later in self._waiting.items():
                    if key in batch:
                        batch[key].times += later.times
                    else:
                        batch[key] = later
                self._waiting = batch
            raise
        self._spool.clear()
        self._remember(key for key, one in batch.items() if not one.alert.comes_in_floods)
        self._recorded.set()
        return new

    async def _record(self, store: "Store", batch: Iterable[_Waiting]) -> int:
        from core.store.alerts import Raised

        settings = self._settings()
        raised = [Raised(one.alert, settings.channels_of(one.alert.event), one.times) for one in batch]
        return await self._raise(store, [one for one in raised if one.channels], int(settings.digest_seconds * 1000))

    async def _raise(self, store: "Store", raised: "Sequence[Raised]", digest_ms: int) -> int:
        """In one go, or, where the database cannot hold one of them, halved round it."""
        from core.store.errors import RecordRefused

        try:
            return await store.alerts.raise_(raised, digest_ms)
        except RecordRefused as error:
            if len(raised) == 1:
                _LOG.error("an alert (%s) cannot be stored: %s", raised[0].alert.event, error)
                return 0
        half = len(raised) // 2
        return await self._raise(store, raised[:half], digest_ms) + await self._raise(store, raised[half:], digest_ms)

    async def _adopt(self, store: "Store") -> int:
        now = self._clock()
        if now < self._next_look:
            return 0
        new = 0
        orphans = self._spool.orphans()
        while orphans:
            try:
                new += await self._record(store, [_Waiting(alert) for alert in orphans[0].alerts()])
            except BaseException:
                for orphan in orphans:
                    orphan.close()
                raise
            orphans.pop(0).delete()
        self._next_look = now + _LOOK_FOR_THE_DEAD_EVERY
        return new

    def _remember(self, keys: Iterable[str]) -> None:
        with self._lock:
            self._told.update(dict.fromkeys(keys))
            while len(self._told) > _REMEMBERED:
                del self._told[next(iter(self._told))]

    # -- delivering ----------------------------------------------------------------------------------------------

    async def deliver(self, store: "Store") -> int:
        """Send everything that is due and return how many were sent; what fails is tried again when it is due again.

        Raises StoreError.
        """
        sent = 0
        await self._tell_floods(store)
        while claimed := await store.alerts.claim(self._instance, _AT_ONCE):
            sent += sum(await asyncio.gather(*(self._send(store, delivery) for delivery in claimed)))
        return sent

    async def _tell_floods(self, store: "Store") -> None:
        await store.alerts.tell_floods(int(self._settings().digest_seconds * 1000))
        if self._clock() >= self._next_forgetting:
            self._next_forgetting = self._clock() + _FORGET_EVERY
            await store.alerts.forget()

    async def _send(self, store: "Store", delivery: "Delivery") -> bool:
        if delivery.id not in self._unmarked:
            try:
                await self._open(delivery.channel).send(Message.of(delivery))
            except NotSent as error:
                await self._failed(store, delivery, error)
                return False
            except Exception as error:
                # Not its text, which may hold the URL.
                _LOG.error("sending an alert to %s failed with %s", delivery.channel, type(error).__name__)
                await self._failed(store, delivery, NotSent(f"it failed with {type(error).__name__}"))
                return False
            self._unmarked.add(delivery.id)
        with suppress(StoreError):  # whoever claims it next, we too, finds it not marked
            await store.alerts.sent(delivery)
            self._unmarked.discard(delivery.id)
        return True

    async def _failed(self, store: "Store", delivery: "Delivery", error: NotSent) -> None:
        attempt = delivery.attempts + 1
        next_ms = None
        if error.retryable and attempt < TRIES:
            # Full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
            pause = random.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(attempt - 1, 16)))  # noqa: S311
            pause = max(pause, min(error.retry_after or 0.0, _LONGEST_ASKED))
            next_ms = int((self._clock() + pause) * 1000) + 1
        if next_ms is None:
            _LOG.error("an alert (%s) is not delivered to %s: %s", delivery.alert.event, delivery.channel, error)
        else:
            _LOG.warning("an alert is not delivered to %s yet: %s", delivery.channel, error)
        with suppress(StoreError):  # then it is due again when the claim has ended
            await store.alerts.failed(delivery, str(error), next_ms)

    async def test(self, channel: str) -> None:
        """Send a message to a channel at once, past the outbox. Raises NotSent with what went wrong."""
        now = int(self._clock() * 1000)
        name = f"test-{now}:{channel}"
        text = "This is a test: alerts to this channel arrive."
        await self._open(channel).send(Message(name, "test", "info", channel, text, {}, now))

    # -- running -------------------------------------------------------------------------------------------------

    async def run(self, store: "Store") -> None:
        """Record and deliver until cancelled; then record what waits, within 5 s. The rest stays in the spool."""
        self._loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep(self._record_once, store))
                tasks.create_task(self._keep(self._deliver_until_it_fails, store))
        finally:
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    await self.flush(store)
            except (StoreError, TimeoutError) as error:
                _LOG.warning("%d alerts wait for the next start: %s", self.waiting, error)
            self._loop = None
            self._spool.close()

    async def _keep(self, work: "Callable[[Store], Awaitable[None]]", store: "Store") -> None:
        failures = 0
        while True:
            try:
                await work(store)
                failures = 0
            except StoreError as error:
                failures += 1
                if failures == 1:
                    _LOG.warning("%d alerts wait: %s", self.waiting, error)
                await self._store_is_away()
            except Exception:  # a bug of ours must not end the only task that delivers alerts
                failures += 1
                _LOG.exception("alerts failed in a way they should not")
            if failures:
                longest = min(_STORE_PAUSE, 2.0 ** min(failures - 1, 10))
                await asyncio.sleep(longest * random.uniform(0.5, 1.0))  # noqa: S311

    async def _record_once(self, store: "Store") -> None:
        self._raised.clear()
        await self.flush(store)
        await pauses.wait(self._raised, _LOOK_EVERY)

    async def _deliver_until_it_fails(self, store: "Store") -> None:
        """A delivery that takes long does not keep the others waiting, except for those of its subject."""
        sending: set[asyncio.Task[bool]] = set()
        try:
            while True:
                self._recorded.clear()
                await self._tell_floods(store)
                if len(sending) < _AT_ONCE:
                    for delivery in await store.alerts.claim(self._instance, _AT_ONCE - len(sending)):
                        sending.add(asyncio.create_task(self._send(store, delivery)))
                self._store_is_there()
                if sending:
                    _, sending = await asyncio.wait(sending, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                else:
                    await pauses.wait(self._recorded, await self._pause(store))
        finally:
            if sending:
                # What has been sent should be marked as that: nobody would be told twice.
                _, late = await asyncio.wait(sending, timeout=_STOP_SECONDS)
                for task in late:
                    task.cancel()

    async def _pause(self, store: "Store") -> float:
        """Seconds until something is due, as far as is known now."""
        due = (await store.alerts.counts()).next_ms
        return _LOOK_EVERY if due is None else min(_LOOK_EVERY, max(0.05, due / 1000 - self._clock()))

    # -- without a store -----------------------------------------------------------------------------------------

    async def _store_is_away(self) -> None:
        """Say so, past the outbox, when that has lasted: each instance for itself, and once."""
        now = self._clock()
        if self._away_since is None:
            self._away_since = now
        if self._told_away or now - self._away_since < self._store_patience:
            return
        self._told_away = True
        text = f"The store has not answered for {now - self._away_since:.0f} s; usage and alerts wait in the journal."
        since_ms = int(self._away_since * 1000)
        for channel in self._settings().channels_of(AlertEvent.STORE_DOWN):
            name = f"store-down-{self._instance}-{since_ms}:{channel}"
            message = Message(name, AlertEvent.STORE_DOWN.value, "critical", self._instance, text, {}, since_ms)
            try:
                await self._open(channel).send(message)
            except NotSent as error:
                _LOG.error("nobody could be told by %s that the store is away: %s", channel, error)
            except Exception as error:
                _LOG.error("sending an alert to %s failed with %s", channel, type(error).__name__)

    def _store_is_there(self) -> None:
        if self._told_away and self._away_since is not None:
            text = f"The store answers again; it was away for {self._clock() - self._away_since:.0f} s."
            key = f"{AlertEvent.STORE_DOWN.value}|{self._instance}|back"
            self.raise_(Alert(AlertEvent.STORE_DOWN, self._instance, text, dedupe_key=key, severity="info"))
        self._away_since, self._told_away = None, False


def _plain(alert: Alert) -> Alert:
    """The alert as JSON keeps it: what its details hold may change, or be no JSON, and a text may be no UTF-8."""
    try:
        return Alert.from_json(alert.to_json())
    except TypeError:
        return replace(
            alert,
            subject=_text(alert.subject),
            message=_text(alert.message),
            dedupe_key=_text(alert.dedupe_key),
            details={_text(name): _text(value) for name, value in alert.details.items()},
        )


def _text(value: object) -> str:
    return str(value).encode("utf-8", "replace").decode()
