"""Resolves references: one call to the vault for each secret and TTL, values ready when a request wants them.

Nothing waits for a vault on the way of a request: what is in use is read again ahead of its expiry, by a few threads
in the background, since the vaults' own clients block. While a vault does not answer, the last value stays in use for a
bounded time, and loudly. A key that its provider rejects is read again at once, and where the vault has nothing newer
the one before it takes over.
"""

import asyncio
import heapq
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count
from typing import Any, cast

from core.settings.models import SecretCache
from core.settings.reference import SecretReference
from secrets_manager.provider import Fetched, Reason, SecretProvider, SecretUnavailable
from secrets_manager.value import SecretValue

_LOG = logging.getLogger("orchestration.secrets")

_TRIES = 3
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 5.0
_NEGATIVE_TTL = 5.0
"""Seconds for which "there is no such secret" is believed."""
_LONGEST_BACKOFF = 60.0
_ASK_AGAIN_AFTER = 1.0
"""Seconds between two calls to a vault for one key that its provider goes on rejecting."""
_LEASE_SHARE = 2 / 3
_REFUSED = "the provider refused it"


class Happened(StrEnum):
    """What the resolver tells its listeners."""

    FETCHED = "fetched"
    """Read for the first time."""
    REFRESHED = "refreshed"
    """Read again; it is the same."""
    ROTATED = "rotated"
    """Read again; it is another value, in use from now on."""
    RENEWED = "renewed"
    """The lease of a dynamic secret was renewed."""
    FAILED = "failed"
    """The vault did not give it."""
    STALE = "stale"
    """It is past its TTL and stays in use, because the vault does not answer."""
    RECOVERED = "recovered"
    """The vault answers again."""
    LOST = "lost"
    """It can no longer be used."""
    REJECTED = "rejected"
    """The provider that the secret is for refused it."""
    REVERTED = "reverted"
    """The newest value is bad, so the one before it is in use."""
    DENIED = "denied"
    """Somebody who may not use it asked for it."""


ALERTS = frozenset({Happened.STALE, Happened.LOST, Happened.REVERTED, Happened.DENIED})
"""What somebody should be told about at once."""


@dataclass(frozen=True, slots=True)
class SecretEvent:
    """Something that happened to a reference. Never a value, a length or a hash of one.

    `at` is Unix seconds; `version` is the vault's name of the version; `why` is who or what asked.
    """

    at: float
    what: Happened
    reference: SecretReference
    why: str
    version: str | None = None
    reason: Reason | None = None
    message: str = ""


Listener = Callable[[SecretEvent], None]


@dataclass(frozen=True, slots=True)
class Resolved:
    """A value in use. `serial` counts the different values a reference has had in this process."""

    value: SecretValue
    serial: int
    version: str


@dataclass(frozen=True, slots=True)
class SecretState:
    """What may be known about a reference by everybody who may see its name. Times are Unix seconds."""

    reference: SecretReference
    state: str
    """fresh | stale | reverted | unavailable."""
    version: str | None
    read_at: float | None
    next_refresh: float | None
    expires_at: float | None
    reads: int
    fetches: int
    last_error: str | None
    last_error_reason: Reason | None


@dataclass(slots=True)
class _Version:
    """One value a secret has had, with those of its fields that were asked for."""

    fetched: Fetched
    serial: int
    read_at: float
    fields: dict[str | None, Resolved] = field(default_factory=dict[str | None, Resolved])

    def of(self, reference: SecretReference) -> Resolved:
        """The value of a field, or of the whole. Raises SecretUnavailable where there is no such field."""
        found = self.fields.get(reference.field)
        if found is None:
            found = Resolved(_field(self.fetched.value, reference), self.serial, self.fetched.version)
            self.fields[reference.field] = found
        return found

    def wipe(self) -> None:
        self.fetched.value.wipe()
        for one in self.fields.values():
            one.value.wipe()


@dataclass(slots=True)
class _Entry:
    """What is known about one secret of a vault."""

    document: SecretReference
    current: _Version | None = None
    previous: _Version | None = None
    active: _Version | None = None
    """The one of them that is in use."""
    usable_until: float = 0.0
    fresh_until: float = 0.0
    due: float = 0.0
    kept: bool = False
    """Whether it is refreshed although nobody asks for it."""
    reads: int = 0
    reads_at_refresh: int = 0
    fetches: int = 0
    failures: int = 0
    error: SecretUnavailable | None = None
    stale: bool = False
    lost: bool = False
    rejected: set[int] = field(default_factory=set[int])
    asked_after_rejection: float = 0.0
    in_flight: "Future[None] | None" = None


class Resolver:
    """Values behind references. All methods may be called from any thread; none but those that say so block.

    `providers` gives the provider of a scheme and may raise SecretUnavailable. Without `background` nothing is
    refreshed until `tick` is called, and everything runs on the thread that asks.
    """

    def __init__(
        self,
        providers: Callable[[str], SecretProvider],
        cache: SecretCache,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        background: bool = True,
        threads: int = 32,
    ) -> None:
        self._providers = providers
        self._cache = cache
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.RLock()
        self._entries: dict[SecretReference, _Entry] = {}
        self._by_reference: dict[SecretReference, _Entry] = {}
        self._agenda: list[tuple[float, int, _Entry]] = []
        self._order = count()
        self._serials = count(1)
        self._listeners: list[Listener] = []
        self._closed = False
        self._pool = ThreadPoolExecutor(threads, "secrets") if background else None
        self._woken = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None

    # -- reading -------------------------------------------------------------------------------------------------

    def current(self, reference: SecretReference) -> Resolved:
        """The value in use, without asking the vault. Raises SecretUnavailable where there is none."""
        entry = self._by_reference.get(reference)
        if entry is None:
            entry = self._entry(reference)
        active = entry.active
        if active is None or self._clock() >= entry.usable_until:
            raise entry.error or _not_read(reference)
        entry.reads += 1
        return active.fields.get(reference.field) or active.of(reference)

    def resolve(self, reference: SecretReference, why: str) -> Resolved:
        """The value in use; blocks for the vault where there is none. Raises SecretUnavailable."""
        entry = self._entry(reference)
        if not self._usable(entry) and not self._known_missing(entry):
            self._read(entry, why).result()
        return self.current(reference)

    async def resolve_soon(self, reference: SecretReference, why: str) -> Resolved:
        """As `resolve`, for coroutines."""
        entry = self._entry(reference)
        if not self._usable(entry) and not self._known_missing(entry):
            await _done(self._read(entry, why))
        return self.current(reference)

    def keep(self, references: Iterable[SecretReference], why: str) -> dict[SecretReference, SecretUnavailable]:
        """Read what is not here yet, in parallel, and from now on refresh exactly these ahead of time. Blocks; returns
        those that have no value, with the reason."""
        wanted = list(dict.fromkeys(references))
        entries = [self._entry(reference) for reference in wanted]
        with self._lock:
            for entry in self._entries.values():
                entry.kept = False
            for entry in entries:
                entry.kept = True
        missing = {id(entry): entry for entry in entries if not self._usable(entry)}
        wait([self._read(entry, why) for entry in missing.values()])
        failed: dict[SecretReference, SecretUnavailable] = {}
        for reference in wanted:
            try:
                self.current(reference)
            except SecretUnavailable as error:
                failed[reference] = error
        self._start()
        return failed

    # -- reading again -------------------------------------------------------------------------------------------

    def refresh(
        self, references: Sequence[SecretReference] | None, why: str
    ) -> dict[SecretReference, SecretUnavailable | None]:
        """Read these again now (None: all that are known). Blocks; returns each with what went wrong, if anything."""
        with self._lock:
            entries = list(self._entries.values()) if references is None else [self._entry(one) for one in references]
        unique = {id(entry): entry for entry in entries}
        steps = [self._anew(entry, why) for entry in unique.values()]
        while steps:
            under_way = [(step, next(step, None)) for step in steps]
            wait([future for _, future in under_way if future is not None])
            steps = [step for step, future in under_way if future is not None]
        return {entry.document: entry.error for entry in unique.values()}

    def rejected(self, reference: SecretReference, serial: int) -> bool:
        """The provider that the value with this serial is for has refused it: whether there is another one to try.

        Blocks while the vault is asked. Called by many requests at once it makes one call.
        """
        entry = self._entry(reference)
        another = self._another_than(entry, serial)
        if another is None:
            for step in self._anew(entry, _REFUSED):
                step.result()
            another = self._another_after_reading(entry, serial)
        return another

    async def rejected_soon(self, reference: SecretReference, serial: int) -> bool:
        """As `rejected`, for coroutines."""
        entry = self._entry(reference)
        another = self._another_than(entry, serial)
        if another is None:
            for step in self._anew(entry, _REFUSED):
                await _done(step)
            another = self._another_after_reading(entry, serial)
        return another

    def tick(self) -> float:
        """Start what is due; returns the time at which the next is. The background thread calls it."""
        with self._lock:
            now = self._clock()
            due: list[_Entry] = []
            while self._agenda and self._agenda[0][0] <= now:
                at, _, entry = heapq.heappop(self._agenda)
                if at == entry.due:
                    due.append(entry)
            for entry in due:
                self._fall(entry, now)
                if not entry.kept and entry.reads == entry.reads_at_refresh:
                    self._forget(entry)
            next_at = self._agenda[0][0] if self._agenda else now + _LONGEST_BACKOFF
        for entry in due:
            if entry.kept or entry.reads != entry.reads_at_refresh:
                self._read(entry, "ahead of its expiry")
        return next_at

    # -- watching ------------------------------------------------------------------------------------------------

    def listen(self, listener: Listener) -> None:
        """Call `listener` with everything that happens, on the thread on which it does."""
        self._listeners.append(listener)

    def tell_denied(self, reference: SecretReference, why: str, message: str) -> None:
        """Somebody who may not use a reference asked for it."""
        self._announce(SecretEvent(self._clock(), Happened.DENIED, reference, why, message=message))

    def texts(self) -> list[str]:
        """Every value that was given out and is still held, for whoever has to keep them out of a log."""
        with self._lock:
            versions = [version for entry in self._entries.values() for version in (entry.current, entry.previous)]
            given = [one.value for version in versions if version is not None for one in tuple(version.fields.values())]
            return [value.reveal() for value in given if not value.empty]

    def states(self) -> list[SecretState]:
        """Every reference that is known, by name."""
        with self._lock:
            now = self._clock()
            pairs = sorted(self._by_reference.items())
            return [self._state(reference, entry, now) for reference, entry in pairs]

    def close(self) -> None:
        """Stop, and overwrite every value."""
        with self._lock:
            self._closed = True
            self._woken.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=5)
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for entry in self._entries.values():
                for version in (entry.current, entry.previous):
                    if version is not None:
                        version.wipe()
                entry.current = entry.previous = entry.active = None
            self._entries.clear()
            self._by_reference.clear()
            self._agenda.clear()

    # -- inside --------------------------------------------------------------------------------------------------

    def _entry(self, reference: SecretReference) -> _Entry:
        with self._lock:
            entry = self._by_reference.get(reference)
            if entry is None:
                document = reference.document
                entry = self._entries.get(document)
                if entry is None:
                    entry = self._entries[document] = _Entry(document)
                self._by_reference[reference] = entry
            return entry

    def _forget(self, entry: _Entry) -> None:
        for version in (entry.current, entry.previous):
            if version is not None:
                version.wipe()
        self._entries.pop(entry.document, None)
        for reference in [one for one, other in self._by_reference.items() if other is entry]:
            del self._by_reference[reference]

    def _usable(self, entry: _Entry) -> bool:
        return entry.active is not None and self._clock() < entry.usable_until

    def _known_missing(self, entry: _Entry) -> bool:
        """Whether the vault said a moment ago that there is nothing."""
        return entry.error is not None and not entry.error.retryable and self._clock() < entry.due

    def _read(self, entry: _Entry, why: str) -> "Future[None]":
        """Ask the vault, or join whoever is asking."""
        with self._lock:
            if entry.in_flight is not None:
                return entry.in_flight
            future: Future[None]
            if self._pool is None or self._closed:
                future = Future()
                entry.in_flight = future
            else:
                future = entry.in_flight = self._pool.submit(self._work, entry, why)
                return future
        self._work(entry, why)
        future.set_result(None)
        return future

    def _anew(self, entry: _Entry, why: str) -> "Iterator[Future[None]]":
        """Ask the vault by a call that begins now, step by step: one under way may have been answered before whatever
        makes us ask, unless it brings another value."""
        under_way, before = entry.in_flight, entry.current
        if under_way is not None:
            yield under_way
            if entry.current is not before:
                return
        yield self._read(entry, why)

    def _another_than(self, entry: _Entry, serial: int) -> bool | None:
        """Whether another value than the refused one is in use; None where the vault has to be asked."""
        with self._lock:
            if entry.active is None:
                return False
            if entry.active.serial != serial:
                return True
            if serial not in entry.rejected:
                entry.rejected.add(serial)
                self._tell(Happened.REJECTED, entry, _REFUSED, entry.active.fetched.version)
            elif self._clock() < entry.asked_after_rejection + _ASK_AGAIN_AFTER and entry.in_flight is None:
                return False
            return None

    def _another_after_reading(self, entry: _Entry, serial: int) -> bool:
        with self._lock:
            entry.asked_after_rejection = self._clock()
            active = entry.active
            if active is None:
                return False
            if active.serial != serial:
                return True
            for other in (entry.current, entry.previous):
                if other is not None and other.serial not in entry.rejected:
                    entry.active = other
                    why = "the newest value is refused and the vault has no newer one"
                    self._tell(Happened.REVERTED, entry, why, other.fetched.version)
                    return True
            # Both are refused, so neither can be blamed: it may not be about the key at all.
            entry.active = entry.current
            return False

    def _work(self, entry: _Entry, why: str) -> None:
        try:
            self._ask(entry, why)
        except BaseException:
            _LOG.exception("reading %s failed in a way that nobody thought of", entry.document)
            raise
        finally:
            with self._lock:
                entry.in_flight = None

    def _ask(self, entry: _Entry, why: str) -> None:
        renewed = self._renewed(entry)
        if renewed is not None:
            self._take(entry, renewed, why, Happened.RENEWED)
            return
        try:
            fetched = self._fetched(entry)
        except SecretUnavailable as error:
            self._miss(entry, error, why)
        else:
            self._take(entry, fetched, why)

    def _renewed(self, entry: _Entry) -> Fetched | None:
        """The secret with its lease renewed, None where it has none or a new one has to be read."""
        current = entry.current
        lease = current.fetched.lease if current is not None else None
        if current is None or lease is None or not lease.renewable:
            return None
        try:
            renewed = self._providers(entry.document.provider).renew(lease)
        except SecretUnavailable:
            return None
        if renewed.seconds < lease.seconds * _LEASE_SHARE:
            return None  # it has come to its maximum; a new secret gets a whole lease again
        old = current.fetched
        return Fetched(old.value, old.version, old.expires_at, old.not_before, renewed)

    def _fetched(self, entry: _Entry) -> Fetched:
        """What the vault gives, with retries. Raises SecretUnavailable."""
        document = entry.document
        provider = self._providers(document.provider)
        pause = _FIRST_PAUSE
        for number in range(1, _TRIES + 1):
            entry.fetches += 1
            try:
                fetched = provider.fetch(document.secret_identifier, document.version)
            except SecretUnavailable as error:
                asked = error.retry_after or 0.0
                if not error.retryable or number == _TRIES or asked > _LONGEST_PAUSE or self._closed:
                    raise
                # Full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
                self._sleep(max(asked, random.uniform(0, pause)))  # noqa: S311
                pause *= 2
            else:
                _check_dates(document, fetched, self._clock())
                return fetched
        raise AssertionError("the last try returns or raises")

    def _take(self, entry: _Entry, fetched: Fetched, why: str, what: Happened | None = None) -> None:
        with self._lock:
            if self._closed:
                fetched.value.wipe()
                return
            now = self._clock()
            before = entry.current
            if before is None:
                what = what or Happened.FETCHED
                entry.current = entry.active = _Version(fetched, next(self._serials), now)
            elif what is Happened.RENEWED or before.fetched.value.same_as(fetched.value):
                what = what or Happened.REFRESHED
                if what is Happened.REFRESHED:
                    fetched.value.wipe()
                before.fetched = Fetched(
                    before.fetched.value, fetched.version, fetched.expires_at, fetched.not_before, fetched.lease
                )
                before.fields = {
                    name: Resolved(one.value, one.serial, fetched.version) for name, one in before.fields.items()
                }
                before.read_at = now
            else:
                what = Happened.ROTATED
                if entry.previous is not None:
                    entry.previous.wipe()
                entry.previous = before
                entry.current = entry.active = _Version(fetched, next(self._serials), now)
                entry.rejected &= {before.serial}
            recovered = entry.error is not None and before is not None
            entry.error, entry.failures, entry.stale, entry.lost = None, 0, False, False
            self._schedule(entry, fetched, now)
            self._tell(what, entry, why, fetched.version)
            if recovered:
                self._tell(Happened.RECOVERED, entry, why, fetched.version)

    def _schedule(self, entry: _Entry, fetched: Fetched, now: float) -> None:
        ttl = float(self._cache.ttl)
        ahead = ttl * self._cache.refresh_ahead
        ends = fetched.expires_at
        if fetched.lease is not None:
            ahead = min(ahead, fetched.lease.seconds * _LEASE_SHARE)
            ends = now + fetched.lease.seconds
        entry.fresh_until = now + ttl if ends is None else min(now + ttl, ends)
        entry.usable_until = entry.fresh_until + self._cache.stale_while_error
        if ends is not None:
            entry.usable_until = min(entry.usable_until, ends)
            ahead = min(ahead, (ends - now) * _LEASE_SHARE)
        # Earlier by up to a tenth, so that what was read together is not refreshed together for ever.
        self._plan(entry, now + ahead * random.uniform(0.9, 1.0))  # noqa: S311

    def _miss(self, entry: _Entry, error: SecretUnavailable, why: str) -> None:
        with self._lock:
            now = self._clock()
            entry.error = error
            entry.failures += 1
            self._tell(Happened.FAILED, entry, why, reason=error.reason, message=str(error))
            if entry.active is not None and not error.keeps_stale:
                entry.usable_until = now
            self._fall(entry, now)
            backoff = min(_LONGEST_BACKOFF, 2.0 ** min(entry.failures - 1, 10)) * random.uniform(0.5, 1.0)  # noqa: S311
            pause = max(backoff, error.retry_after or 0.0, 0.0 if error.retryable else _NEGATIVE_TTL)
            # The moments at which it becomes stale, and lost, are told when they come.
            marks = [at for at in (entry.fresh_until, entry.usable_until) if at > now]
            self._plan(entry, min([now + pause, *marks]) if entry.active is not None else now + pause)

    def _fall(self, entry: _Entry, now: float) -> None:
        """Say when a value has become stale, and when it can no longer be used."""
        if entry.active is None or entry.error is None:
            return
        version = entry.active.fetched.version
        if now >= entry.usable_until:
            if not entry.lost:
                entry.lost = True
                self._tell(Happened.LOST, entry, "", version, entry.error.reason, str(entry.error))
        elif now >= entry.fresh_until and not entry.stale:
            entry.stale = True
            self._tell(Happened.STALE, entry, "", version, entry.error.reason, str(entry.error))

    def _plan(self, entry: _Entry, at: float) -> None:
        entry.due = at
        entry.reads_at_refresh = entry.reads
        heapq.heappush(self._agenda, (at, next(self._order), entry))
        self._woken.notify_all()

    def _start(self) -> None:
        with self._lock:
            if self._pool is None or self._thread is not None or self._closed:
                return
            self._thread = threading.Thread(target=self._run, name="secrets-refresh", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._closed:
            next_at = self.tick()
            with self._lock:
                # The clock may be set: nothing is due later than a second from when it should be.
                pause = min(max(next_at - self._clock(), 0.01), 1.0) if self._agenda else None
                if not self._closed:
                    self._woken.wait(pause)

    def _tell(
        self,
        what: Happened,
        entry: _Entry,
        why: str,
        version: str | None = None,
        reason: Reason | None = None,
        message: str = "",
    ) -> None:
        self._announce(SecretEvent(self._clock(), what, entry.document, why, version, reason, message))

    def _announce(self, event: SecretEvent) -> None:
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:  # whoever listens must not stop a secret from being read
                _LOG.exception("a listener to secret events failed")

    def _state(self, reference: SecretReference, entry: _Entry, now: float) -> SecretState:
        active = entry.active
        if active is None or now >= entry.usable_until:
            state = "unavailable"
        elif active is not entry.current:
            state = "reverted"
        else:
            state = "stale" if entry.error is not None and now >= entry.fresh_until else "fresh"
        return SecretState(
            reference=reference,
            state=state,
            version=active.fetched.version if active else None,
            read_at=active.read_at if active else None,
            next_refresh=entry.due or None,
            expires_at=active.fetched.expires_at if active else None,
            reads=entry.reads,
            fetches=entry.fetches,
            last_error=str(entry.error) if entry.error else None,
            last_error_reason=entry.error.reason if entry.error else None,
        )


async def _done(future: "Future[None]") -> None:
    """Wait for it; whoever stops waiting does not stop the others."""
    await asyncio.shield(asyncio.wrap_future(future))


def _not_read(reference: SecretReference) -> SecretUnavailable:
    return SecretUnavailable(f"{reference} has not been read yet.", Reason.UNREACHABLE)


def _check_dates(document: SecretReference, fetched: Fetched, now: float) -> None:
    if fetched.expires_at is not None and fetched.expires_at <= now:
        raise SecretUnavailable(f"{document} has expired; put a new version into the vault.", Reason.EXPIRED)
    if fetched.not_before is not None and fetched.not_before > now:
        raise SecretUnavailable(f"{document} is not valid yet (its not-before date).", Reason.NOT_YET_VALID)


def _field(whole: SecretValue, reference: SecretReference) -> SecretValue:
    """The value a reference means: the secret without line ends behind it, or one field of a JSON secret."""
    text = whole.reveal() if not whole.empty else ""
    value: object = text if reference.field is None else _json_fields(text, reference).get(reference.field)
    if value is None:
        raise SecretUnavailable(f"{reference}: the secret has no field of this name.", Reason.NOT_FOUND)
    value = (value if isinstance(value, str) else json.dumps(value)).rstrip("\r\n")  # what `echo` puts behind it
    if not value:
        raise SecretUnavailable(f"{reference} is empty.", Reason.NOT_FOUND)
    return SecretValue(value)


_LONE_FIELD = "value"
"""HashiCorp's secrets always have fields; one with this field alone is its text, and may be asked for either way."""


def _json_fields(text: str, reference: SecretReference) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        # Not `from` the error: a JSONDecodeError carries the whole text.
        found = None
    if not isinstance(found, dict) and reference.field == _LONE_FIELD:
        return {_LONE_FIELD: text}
    if not isinstance(found, dict):
        message = f"{reference} asks for a field, but the secret is no JSON object."
        raise SecretUnavailable(message, Reason.NOT_FOUND) from None
    return cast("dict[str, Any]", found)
