"""The services of one worker: built once from the settings, rebuilt atomically when the file changes, stopped in
order."""

import asyncio
import logging
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, cast

from core.errors import ConfigError, StoreError, StoreLocked
from core.journal import Journal
from core.ledger import Ledger
from core.model_list import ModelListChange, by_id, compare, group_names
from core.settings import Finding, InvalidConfig, Loaded, Settings, cross_check, load, shared_state_url, store_url
from core.settings.reference import SecretReference, is_vault_reference
from core.snapshot import Snapshot, take_snapshot
from core.state.signals import Handler, Signals
from core.store import Instance, Store, StoreLock, acquire_single_writer_lock, open_store
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
        self.config_problems: tuple[Finding, ...] = ()
        self.restart_needed: tuple[str, ...] = ()
        self.price_version: str | None = None
        self.store: Store | None = None
        self.store_error: str | None = None
        self.ledger: Ledger | None = None
        self.signals: Signals | None = None
        """To and from the other instances, where there is a Redis."""
        self._signal_handlers: dict[str, Handler] = {}
        self._beside: list[Callable[[Store], Coroutine[None, None, None]]] = []
        self._proxy = proxy
        self._environ = environ
        self._clock = clock
        self._lock: StoreLock | None = None
        self._loaded = load(config, environ) if config else _without_file(environ)
        self._first = self._loaded
        self.snapshot = self._take(self._loaded, 1)
        self._report_findings(self._loaded.findings)
        self.journal = Journal(Path(self.settings.journal.dir), self.instance, clock=clock)

    @property
    def settings(self) -> Settings:
        return self.snapshot.settings

    @property
    def bounds_spending(self) -> bool:
        return self.snapshot.bounds_spending

    def beside(self, work: Callable[[Store], Coroutine[None, None, None]]) -> None:
        """Have `work` done with the store for as long as this runs, until it is cancelled; to be said before `run`."""
        self._beside.append(work)

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
        shared = shared_state_url(self.settings, self._environ, self._proxy.secret)
        if shared is not None:
            self.signals = Signals(shared, self.instance)
        self.ledger = Ledger(self.journal, self.store.usage, clock=self._clock)
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

    async def _open_store(self) -> None:
        """Bring the schema up to date and take the lock; a store that is away is tried again by `_follow`."""
        assert self.store is not None
        try:
            await self.store.upgrade()
            if self.settings.shared_state.url is None and self._lock is None:
                self._lock = await acquire_single_writer_lock(self.store, self.instance)
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
            await self.store.close()

    # -- following the file --------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_promises())
            assert self.store is not None
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
            await asyncio.sleep(_LOOK_SECONDS)
            found = _stamps((config, *self._loaded.files))
            if found != seen:
                seen = found
                await self.reload()

    async def _keep_promises(self) -> None:
        """What may come undone or was not possible at the start: the store's schema and lock, the policies' names."""
        while True:
            await asyncio.sleep(_PROMISES_SECONDS)
            if self._lock is not None and not await self._lock.held():
                # PostgreSQL drops it with the connection; whoever took it meanwhile keeps it, and we have to stop.
                self._lock, self.store_error = None, "the lock on the store was lost with its connection"
            if self.store_error is not None:
                await self._open_store()
            else:
                await self._beat()
            if not self._proxy.policies_announced(self.snapshot.first_candidates):
                self._proxy.announce_policies(self.snapshot.first_candidates, {})

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
        """Read the file again and swap the settings if it is valid as a whole; whether anything was swapped.

        A file that is not changes nothing: the problems are logged in a line and kept in `config_problems`.
        """
        assert self.config is not None
        try:
            loaded = load(self.config, self._environ)
            if loaded.digest == self._loaded.digest:
                self.config_problems = ()
                return False
            if self._loaded.document and not loaded.document:
                # Editors that write in place show this for a moment.
                raise ConfigError(f"{self.config} is empty")
            await asyncio.to_thread(self._proxy.read_secrets, loaded)
            try:
                self._swap(loaded)
            except ConfigError:
                await asyncio.to_thread(self._proxy.read_secrets, self._loaded)
                raise
        except ConfigError as error:
            self.config_problems = (
                tuple(_errors(error.findings)) if isinstance(error, InvalidConfig) else (_problem(error),)
            )
            _LOG.error("%s was changed but not taken over, the old settings stay: %s", self.config.name, error)
            return False
        return True

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
        self.config_problems = ()
        self._proxy.announce_policies(snapshot.first_candidates, before.first_candidates)
        self._report_findings(loaded.findings)
        _LOG.info("settings version %d (%s) in force", snapshot.version, snapshot.digest[:12])
        if self.restart_needed:
            _LOG.warning("restart needed for changes in: %s", ", ".join(self.restart_needed))

    def _apply(self, change: ModelListChange, before: Mapping[str, Mapping[str, Any]]) -> None:
        """Change the live router, or leave it as it was and raise `ConfigError`."""
        done: list[str] = []
        try:
            resolved = [self._proxy.resolve_references(entry) for entry in change.put]
            for entry in resolved:
                done.append(entry["model_info"]["id"])
                self._proxy.apply_deployment(entry)
        except Exception as error:
            for name in done:
                if name in before:
                    self._proxy.apply_deployment(self._proxy.resolve_references(before[name]))
                else:
                    self._proxy.remove_deployment(name)
            raise ConfigError(f"model_list: the router did not take an entry: {error}") from error
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


def _problem(error: ConfigError) -> Finding:
    return Finding("error", (), str(error))


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
