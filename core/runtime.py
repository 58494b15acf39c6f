"""The services of one worker: built once from the settings, rebuilt atomically when the file changes, stopped in
order."""

import asyncio
import logging
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, cast

from core import pauses
from core.audit import AuditRecord
from core.budgets import Balance
from core.errors import ConfigError, StoreError, StoreLocked
from core.journal import Journal
from core.ledger import Ledger
from core.live_overlay import OVERLAY, Change, LiveOverlay, problems_of
from core.model_list import ModelListChange, by_id, compare, group_names
from core.overlay import Overlay
from core.settings import (
    Finding,
    InvalidConfig,
    Loaded,
    Settings,
    cross_check,
    is_reference,
    load,
    shared_state_url,
    store_url,
)
from core.settings.reference import SecretReference, is_vault_reference
from core.snapshot import Snapshot, take_snapshot
from core.state.signals import Handler, Signals
from core.store import Instance, Store, StoreLock, acquire_single_writer_lock, open_store
from core.usage import UsageEvent
from litellm_orchestration._version import __version__

_LOG = logging.getLogger("orchestration")
_STOP_SECONDS = 10.0
_OURS = "orchestration"


class Proxy(Protocol):
    """What the runtime asks of the proxy it is loaded into."""

    def has_router(self) -> bool: ...
    def model_groups(self) -> tuple[str, ...]: ...
    def secret(self, reference: str) -> str | None: ...
    def read_secrets(self, loaded: Loaded) -> None: ...
    def resolve_references(self, value: Any) -> Any: ...
    def apply_deployment(self, entry: Mapping[str, Any]) -> None: ...
    def remove_deployment(self, deployment_id: str) -> None: ...
    def announce_policies(self, first_candidates: Mapping[str, str], known_before: Mapping[str, str]) -> None: ...
    def policies_announced(self, first_candidates: Mapping[str, str]) -> bool: ...


class Runtime:
    """Constructed while the proxy loads its callbacks; `run` is its life."""

    def __init__(
        self,
        config: Path | None,
        proxy: Proxy,
        *,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Read and check the configuration and open the journal.

        Raises `ConfigError` with every problem of the file, and `StoreError` where the journal cannot be written.
        """
        self.config = config
        self.instance = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self.ready = asyncio.Event()
        self.failure: Exception | None = None
        self.started_at = clock()
        self._file_problems: tuple[Finding, ...] = ()
        self.restart_needed: tuple[str, ...] = ()
        self.price_version: str | None = None
        self.store: Store | None = None
        self.store_error: str | None = None
        self.store_back_at: float | None = None
        """When the store answered again after an error, by the monotonic clock; None where it never was away."""
        self.ledger: Ledger | None = None
        self.shared_url: str | None = None
        """Redis, once this has started; None where state is in memory."""
        self.signals: Signals | None = None
        """To and from the other instances, where there is a Redis."""
        self._signal_handlers: dict[str, Handler] = {}
        self._written_listeners: list[Callable[[Sequence[UsageEvent], Sequence[Balance]], None]] = []
        self._beside: list[Callable[[Store], Coroutine[None, None, None]]] = []
        self._proxy = proxy
        self._environ = environ
        self._clock = clock
        self._lock: StoreLock | None = None
        self._renewing = asyncio.Lock()
        """Held while the settings change: by an edit, by an administrator, by news from the store."""
        self._file = load(config, environ) if config else _without_file(environ)
        """config.yaml in force, by itself."""
        self._loaded = self._file
        """It with the overlay over it."""
        self._first = self._loaded
        self.snapshot = self._take(self._loaded, 1)
        self._report_findings(self._loaded.findings)
        self.journal = Journal(Path(self.settings.journal.dir), self.instance, clock=clock)
        self._live = LiveOverlay(
            lambda overlay: self._renew(self._file, overlay),
            self._renewing,
            self.instance,
            self.journal.directory,
            clock,
        )
        self.on_signal(OVERLAY, self._live.hear)

    @property
    def clock(self) -> Callable[[], float]:
        """Gives Unix seconds."""
        return self._clock

    @property
    def settings(self) -> Settings:
        return self.snapshot.settings

    @property
    def config_problems(self) -> tuple[Finding, ...]:
        """What is wrong with the file as it is now, and with the overlay in the store, and keeps it from being in
        force."""
        return (*self._file_problems, *self._live.problems)

    @property
    def overlay(self) -> Overlay:
        """What administrators changed, in force over the file."""
        return self._live.current

    @property
    def document(self) -> Mapping[str, Any]:
        """The whole configuration in force, the overlay over the file, as LiteLLM sees it; Any because it is YAML."""
        return self._loaded.document

    @property
    def file_document(self) -> Mapping[str, Any]:
        """The configuration file in force, by itself."""
        return self._file.document

    @property
    def disabled_deployments(self) -> frozenset[str]:
        """The ids of the deployments that administrators have switched off."""
        return self.overlay.disabled

    @property
    def counts_spending(self) -> bool:
        """Whether there is a budget that everything has to be charged to, or a tier that limits it."""
        return self.snapshot.counts_spending

    def beside(self, work: Callable[[Store], Coroutine[None, None, None]]) -> None:
        """Have `work` done with the store for as long as this runs, until it is cancelled; to be said before `run`."""
        self._beside.append(work)

    def on_written(self, listener: Callable[[Sequence[UsageEvent], Sequence[Balance]], None]) -> None:
        """Have `listener` told of what the ledger has in the store; to be said before `run`."""
        self._written_listeners.append(listener)

    def _tell_written(self, events: Sequence[UsageEvent], balances: Sequence[Balance]) -> None:
        for listener in self._written_listeners:
            listener(events, balances)

    def on_signal(self, kind: str, handler: Handler) -> None:
        """Have `handler` follow the signals of other instances; to be said before `run`."""
        self._signal_handlers[kind] = handler

    async def run(self) -> None:
        """Start, follow the configuration file until cancelled, stop. Raises what prevents the start."""
        try:
            await self._start()
            self.ready.set()
            await self._follow()
        except (ConfigError, StoreError) as error:
            self.failure = error
            self.ready.set()
            raise
        finally:
            await self._stop()

    async def _start(self) -> None:
        self.store = open_store(store_url(self.settings, self._environ, self._proxy.secret))
        self.shared_url = shared_state_url(self.settings, self._environ, self._proxy.secret)
        if self.shared_url is not None:
            self.signals = Signals(self.shared_url, self.instance)
        self.ledger = Ledger(self.journal, self.store.usage, clock=self._clock, on_written=self._tell_written)
        await self._open_store()
        self.ledger.start()
        while not self._proxy.has_router():  # noqa: ASYNC110 - LiteLLM builds it in its own time and tells nobody
            await asyncio.sleep(0.01)
        self._check_live_router()
        self.snapshot = self._take(self._loaded, 1)
        if self.settings.environment == "production" and self.snapshot.directory.unresolved:
            names = ", ".join(self.snapshot.directory.unresolved)
            raise ConfigError(f"orchestration.keys: no value behind {names}")
        for reference in self.snapshot.directory.unresolved:
            _LOG.warning("orchestration.keys: no value behind %s; nobody can use that key", reference)
        self._proxy.announce_policies(self.snapshot.first_candidates, {})
        await self._live.begin(self.store)

    async def _open_store(self) -> None:
        """Bring the schema up to date and take the lock; a store that is away is tried again by `_follow`."""
        assert self.store is not None
        try:
            await self.store.upgrade(apart=True)
            if self.settings.shared_state.url is None and self._lock is None:
                self._lock = await acquire_single_writer_lock(self.store, self.instance)
            if self.store_error is not None:
                self.store_back_at = time.monotonic()
            self.store_error = None
            await self._beat()
        except StoreLocked:
            raise
        except StoreError as error:
            self.store_error = str(error)
            _LOG.error("%s; usage is kept in the journal until the store is back", error)

    async def _stop(self) -> None:
        self._proxy.announce_policies({}, self.snapshot.first_candidates)
        if self.ledger is not None:
            await self.ledger.stop(within=_STOP_SECONDS)
        self.journal.close()
        if self._lock is not None:
            await self._lock.release()
        if self.store is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PING_SECONDS):
                    await self._live.audit(self.store)
            await self.store.close()

    # -- following the file --------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_promises())
            assert self.store is not None
            tasks.create_task(self._live.follow(self.store))
            for work in self._beside:
                tasks.create_task(work(self.store))
            if self.signals is not None:
                for kind, handler in self._signal_handlers.items():
                    self.signals.on(kind, handler)
                tasks.create_task(self.signals.run())
            if self.config is not None:
                tasks.create_task(self._watch(self.config))

    async def _watch(self, config: Path) -> None:
        """Look at the files once a second.

        Not by inotify: it watches folders, since editors and Kubernetes replace files, and in the same folder the store
        and the log change all the time; waking up for each of their writes cost more than 3 % of a request.
        """
        seen = _stamps((config, *self._loaded.files))
        while True:
            await asyncio.sleep(pauses.in_step(_LOOK_SECONDS))
            found = _stamps((config, *self._loaded.files))
            if found != seen:
                seen = found
                await self.reload()

    async def _keep_promises(self) -> None:
        """What may come undone or was not possible at the start: the store's schema and lock, the policies' names."""
        while True:
            await asyncio.sleep(pauses.in_step(_PROMISES_SECONDS))
            if self._lock is not None and not await self._lock.held():
                # PostgreSQL drops it with the connection; whoever took it meanwhile keeps it, and we have to stop.
                self._lock, self.store_error = None, "the lock on the store was lost with its connection"
            if self.store_error is not None:
                await self._open_store()
            else:
                await self._beat()
            if not self._proxy.policies_announced(self.snapshot.first_candidates):
                self._proxy.announce_policies(self.snapshot.first_candidates, {})
            self._put_back_models()

    async def _beat(self) -> None:
        """Say in the store that this worker is there, and with which settings."""
        assert self.store is not None
        sign = Instance(
            instance=self.instance,
            host=socket.gethostname(),
            pid=os.getpid(),
            started_ms=int(self.started_at * 1000),
            version=__version__,
            config_digest=self.snapshot.digest,
            config_version=self.snapshot.version,
        )
        try:
            await self.store.instances.beat(sign)
        except StoreError as error:
            self.store_error = str(error)
            _LOG.error("%s; usage is kept in the journal until the store is back", error)

    async def reload(self) -> bool:
        """Read the file again and swap the settings if it is valid as a whole, alone and with the overlay over it;
        whether anything was swapped.

        A file that is not changes nothing: the problems are logged in a line and kept in `config_problems`.
        """
        assert self.config is not None
        async with self._renewing:
            try:
                file = load(self.config, self._environ)
                if self._file.document and not file.document:
                    # Editors that write in place show this for a moment.
                    raise ConfigError(f"{self.config} is empty")
                changed = await self._renew(file, self.overlay)
            except ConfigError as error:
                self._file_problems = problems_of(error)
                _LOG.error("%s was changed but not taken over, the old settings stay: %s", self.config.name, error)
                return False
            self._file_problems = ()
            return changed

    async def _renew(self, file: Loaded, overlay: Overlay) -> bool:
        """Have the file, with the overlay over it, in force; whether that is something new.

        The file is valid by itself, since it is what a proxy starts with. Raises ConfigError, and changes nothing,
        where it is not with the overlay.
        """
        loaded = await asyncio.to_thread(file.under, overlay, self._environ) if overlay.entries else file
        if loaded.digest == self._loaded.digest:
            return False
        await asyncio.to_thread(self._proxy.read_secrets, loaded)
        try:
            self._swap(loaded)
        except ConfigError:
            await asyncio.to_thread(self._proxy.read_secrets, self._loaded)
            raise
        self._file = file
        return True

    # -- the admin overlay ---------------------------------------------------------------------------------------

    async def change_overlay(self, propose: Callable[[], Change | None], *, actor: str) -> Overlay:
        """Change the admin overlay, as `LiveOverlay.change` does. `propose` finds the newest `overlay` and `document`
        here."""
        assert self.store is not None
        return await self._live.change(propose, actor=actor, store=self.store, signals=self.signals)

    async def note(self, record: AuditRecord) -> None:
        """Have the audit say what an administrator did; what the store does not take now is tried again."""
        assert self.store is not None
        await self._live.note(record, self.store)

    def _put_back_models(self) -> None:
        """LiteLLM with a database takes models out of its router that it does not know."""
        served = set(self._proxy.model_groups())
        for name, entry in self.overlay.entries.get("models", {}).items():
            if entry is not None and str(entry.get("model_name")) not in served:
                try:
                    self._proxy.apply_deployment(self._proxy.resolve_references(entry))
                except Exception as error:
                    _LOG.error("model %s of the admin overlay cannot be put back: %s", name, type(error).__name__)

    def secret_changed(self, document: SecretReference) -> None:
        """A secret has another value, or one at last: who is known by it changes."""
        default = self.settings.secrets.default_provider
        keys = (key.key for key in self.settings.keys if is_vault_reference(key.key))
        if any(SecretReference.parse(key, default).document == document for key in keys if key is not None):
            self.snapshot = self._take(self._loaded, self.snapshot.version, self._proxy.model_groups())

    def _swap(self, loaded: Loaded) -> None:
        change = compare(_model_list(self._loaded), _model_list(loaded))
        outside = set(self._proxy.model_groups()) - set(group_names(_model_list(self._loaded)))
        names = tuple(dict.fromkeys((*group_names(_model_list(loaded)), *sorted(outside))))
        _raise_errors(cross_check(loaded.settings, names))
        snapshot = self._take(loaded, self.snapshot.version + 1, names)
        self._apply(change, by_id(_model_list(self._loaded)))
        before, self.snapshot = self.snapshot, snapshot
        self.restart_needed = _restart_needed(self._first, loaded, change)
        self._loaded = loaded
        self._proxy.announce_policies(snapshot.first_candidates, before.first_candidates)
        self._report_findings(loaded.findings)
        _LOG.info("settings version %d (%s) in force", snapshot.version, snapshot.digest[:12])
        if self.restart_needed:
            _LOG.warning("restart needed for changes in: %s", ", ".join(self.restart_needed))

    def _apply(self, change: ModelListChange, before: Mapping[str, Mapping[str, Any]]) -> None:
        """Change the live router, or leave it as it was and raise `ConfigError`."""
        done: list[str] = []
        resolved: list[Mapping[str, Any]] = []
        try:
            resolved = [self._proxy.resolve_references(entry) for entry in change.put]
            for entry in resolved:
                done.append(entry["model_info"]["id"])
                self._proxy.apply_deployment(entry)
            served = self._proxy.model_groups()
            if dropped := [str(entry["model_name"]) for entry in resolved if entry["model_name"] not in served]:
                # LiteLLM logs what it has against a deployment, and goes on without it.
                raise ValueError(f"{dropped[0]} is not served; LiteLLM's log says why")
        except Exception as error:
            for name in done:
                if name in before:
                    self._proxy.apply_deployment(self._proxy.resolve_references(before[name]))
                else:
                    self._proxy.remove_deployment(name)
            message = _plain(error, change.put, resolved)
            raise ConfigError(f"model_list: the router did not take an entry: {message}") from None
        for name in change.drop:
            self._proxy.remove_deployment(name)

    def _take(self, loaded: Loaded, version: int, names: Sequence[str] = ()) -> Snapshot:
        known = tuple(names) or self._proxy.model_groups() or group_names(_model_list(loaded))
        return take_snapshot(loaded, self._proxy.secret, known, version, self._clock())

    def _check_live_router(self) -> None:
        names = self._proxy.model_groups()
        if names:
            _raise_errors(cross_check(self.settings, names))

    def _report_findings(self, findings: Sequence[Finding]) -> None:
        for finding in findings:
            _LOG.warning("%s", finding)

    # -- what operators see --------------------------------------------------------------------------------------

    async def store_status(self) -> dict[str, Any]:
        """Where the store is (no password), whether it answers now, and how far it is behind the journal."""
        assert self.store is not None
        assert self.ledger is not None
        reachable, error = True, self.store_error
        try:
            async with asyncio.timeout(_PING_SECONDS):
                await self.store.ping()
        except (StoreError, TimeoutError) as trouble:
            reachable, error = False, str(trouble) or f"no answer within {_PING_SECONDS:g} s"
        return {"url": str(self.store.url), "reachable": reachable, "error": error, **asdict(self.ledger.status())}

    async def workers(self) -> list[dict[str, Any]]:
        """The workers of all instances that were seen in the store lately; empty while it does not answer."""
        assert self.store is not None
        try:
            async with asyncio.timeout(_PING_SECONDS):
                return [asdict(worker) for worker in await self.store.instances.live(_GONE_SECONDS)]
        except (StoreError, TimeoutError):
            return []

    def journal_status(self) -> dict[str, Any]:
        """Whether events are safe on this machine."""
        journal = self.journal
        return {
            "dir": str(journal.directory),
            "healthy": journal.healthy,
            "accepting": journal.accepting,
            "waiting_in_memory": journal.waiting_in_memory,
            **asdict(journal.counts),
        }


_PROMISES_SECONDS = 5.0
_LOOK_SECONDS = 1.0
_PING_SECONDS = 2.0
_GONE_SECONDS = 30.0


def _stamps(files: Sequence[Path]) -> list[tuple[int, int, int] | None]:
    """What changes when a file is written, replaced or linked elsewhere; None while it is away."""
    stamps: list[tuple[int, int, int] | None] = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            stamps.append(None)
        else:
            stamps.append((status.st_mtime_ns, status.st_size, status.st_ino))
    return stamps


def _without_file(environ: Mapping[str, str]) -> Loaded:
    """The defaults with what the environment says, for a proxy whose configuration is not a file."""
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder, "config.yaml")
        empty.write_text("{}\n")
        return load(empty, environ)


def _plain(error: Exception, written: Sequence[Any], resolved: Sequence[Any]) -> str:
    """What a router has against entries, with the references in them in place of what these resolve to."""
    problems = getattr(error, "errors", None)
    if callable(problems):
        found = cast("list[dict[str, Any]]", problems(include_url=False, include_context=False, include_input=False))
        message = "; ".join(f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in found)
    else:
        message = str(error)
    for reference, value in _behind(written, resolved):
        message = message.replace(value, reference)
    return message


def _behind(written: Any, resolved: Any) -> Iterator[tuple[str, str]]:
    """The references in a configuration with what they resolve to."""
    if isinstance(written, Mapping) and isinstance(resolved, Mapping):
        for name, item in cast("Mapping[str, Any]", written).items():
            yield from _behind(item, cast("Mapping[str, Any]", resolved).get(name))
    elif isinstance(written, list | tuple) and isinstance(resolved, list | tuple):
        for one, other in zip(cast("Sequence[Any]", written), cast("Sequence[Any]", resolved), strict=False):
            yield from _behind(one, other)
    elif isinstance(written, str) and is_reference(written) and isinstance(resolved, str) and resolved:
        yield written, resolved


def _model_list(loaded: Loaded) -> Sequence[Mapping[str, Any]]:
    entries = loaded.document.get("model_list")
    return cast("list[Mapping[str, Any]]", entries) if isinstance(entries, list) else []


def _raise_errors(findings: Sequence[Finding]) -> None:
    if errors := _errors(findings):
        raise InvalidConfig(errors)


def _errors(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity == "error"]


def _restart_needed(first: Loaded, now: Loaded, change: ModelListChange) -> tuple[str, ...]:
    """What of the file in force only a restart takes over, by the name of the section or field."""
    sections = (first.document.keys() | now.document.keys()) - {"model_list", _OURS}
    names = sorted(name for name in sections if first.document.get(name) != now.document.get(name))
    before, after = first.settings, now.settings
    for name in ("store", "journal", "shared_state"):
        if getattr(before, name) != getattr(after, name):
            names.append(f"{_OURS}.{name}")
    if change.anonymous:
        names.append("model_list (entries without model_info.id)")
    return tuple(names)
