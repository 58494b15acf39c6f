"""Circuit breakers of the deployments that LiteLLM's router has: asked before each attempt, told after it."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from core.alerts import Alert
from core.audit import AuditRecord
from core.breakers import Breakers, Change, MemoryBreakers, Outcome, Permit, State, Status
from core.settings.models import AlertEvent
from core.settings.models.operations import BreakerPer, CircuitBreaker

if TYPE_CHECKING:
    from core.runtime import Runtime
    from core.store import Store

_LOG = logging.getLogger("orchestration.breakers")
_MOST = 2000
"""Deployments whose breaker's name is remembered."""

Entry = Mapping[str, Any]
"""A deployment of LiteLLM's `model_list`; Any because it has whatever the configuration has."""


class DeploymentBreakers:
    """Those of one worker, shared with the other instances where there is a Redis.

    `raise_` takes an alert, at once and without waiting.
    """

    def __init__(
        self,
        runtime: "Runtime",
        raise_: Callable[[Alert], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._runtime = runtime
        self._raise = raise_
        self._clock = clock
        self._rules = runtime.settings.resilience.circuit_breaker
        self._breakers: Breakers = MemoryBreakers(self._rules, clock)
        self._breakers.on_change(self._changed)
        self._names: dict[str, str] = {}
        """The breaker of a deployment, by its id, where that is not called after it."""
        self._groups: dict[str, str] = {}
        """Whose deployments a breaker is about, for people to read."""
        self.heard: dict[str, float] = {}
        """When a deployment had traffic last, in Unix seconds, by its id."""
        self._notes: set[asyncio.Task[None]] = set()
        self.openings = 0
        """Since the worker has started, as this instance has brought them about or noticed them first."""

    # -- before an attempt -----------------------------------------------------------------------------------------

    def is_open(self, deployment: str) -> bool:
        """Whether the deployment of this id is not to be asked now; answered from memory."""
        return not self.now.allows(self.name(deployment))

    def quiet(self) -> bool:
        """Whether no deployment at all is to be left alone."""
        return self.now.quiet()

    async def usable(self, deployments: Sequence[Entry]) -> tuple[list[Any], Permit | None]:
        """The deployments that may be asked.

        Where one is half-open and has a place for a probe, it is that one alone, with the permit that the attempt has
        to bring to `ended`: nothing else finds out whether it is well again.
        """
        usable: list[Any] = []
        permits: dict[str, Permit | None] = {}
        breakers = self.now
        for deployment in deployments:
            name = self._meet(deployment)
            if name is None:
                usable.append(deployment)
                continue
            if name not in permits:
                permits[name] = await breakers.acquire(name)
            permit = permits[name]
            if permit is None:
                continue
            if permit.probe is not None:
                return [deployment], permit
            usable.append(deployment)
        return usable, None

    def opens_at(self, deployments: Iterable[str]) -> float | None:
        """When the first of these deployments may be asked again, in Unix seconds; None where nothing says so."""
        states = self.now.states()
        known = [states.get(self.name(one)) for one in deployments]
        times = [one.until for one in known if one is not None and one.until is not None]
        return min(times, default=None)

    # -- after it --------------------------------------------------------------------------------------------------

    def ended(self, deployment: str | None, outcome: Outcome, latency: float, permit: Permit | None = None) -> None:
        """An attempt is over that took `latency` seconds."""
        if deployment is not None:
            self.heard[deployment] = self._clock()
            self.now.record(self.name(deployment), outcome, latency, permit)
        elif permit is not None:
            self.now.record(permit.name, outcome, latency, permit)

    # -- administrators --------------------------------------------------------------------------------------------

    @property
    def now(self) -> Breakers:
        """The breakers, with the rules in force."""
        rules = self._runtime.settings.resilience.circuit_breaker
        if rules is not self._rules:
            if rules.per is not self._rules.per:
                self._names.clear()
            self._rules = self._breakers.rules = rules
        return self._breakers

    def name(self, deployment: str) -> str:
        """The breaker of the deployment of this id."""
        return self._names.get(deployment, deployment)

    def name_of(self, deployment: Entry) -> str | None:
        """The breaker of an entry of `model_list`, None where it has no id."""
        return breaker_of(deployment, self._rules)

    def states(self) -> dict[str, Status]:
        """Those that are not as good as new."""
        return self.now.states()

    # -- a worker --------------------------------------------------------------------------------------------------

    async def run(self, _: "Store") -> None:
        """Share them with the other instances and follow the time, until cancelled."""
        if self._runtime.shared_url is not None:
            from core.breakers.redis import RedisBreakers

            signals = self._runtime.signals
            self._breakers = RedisBreakers(
                self._runtime.shared_url, self._rules, tell=None if signals is None else signals.tell
            )
            self._breakers.on_change(self._changed)
        try:
            await self._breakers.run()
        finally:
            await self._breakers.close()

    async def hear(self, body: dict[str, Any]) -> None:
        """Another instance says that a breaker has changed."""
        await self._breakers.refresh()

    def _meet(self, deployment: Entry) -> str | None:
        info = deployment.get("model_info") or {}
        known = info.get("id")
        if known is None:
            return None
        name = self._names.get(known)
        if name is None:
            name = breaker_of(deployment, self._rules) or known
            if len(self._names) >= _MOST:
                self._names.clear()
                self._groups.clear()
                self.heard.clear()
            self._names[known] = name
            self._groups.setdefault(name, str(deployment.get("model_name") or ""))
        return name

    def _changed(self, change: Change) -> None:
        group = self._groups.get(change.name)
        of = f" of {group}" if group and group != change.name else ""
        if change.after is State.OPEN:
            self.openings += 1
            _LOG.warning("circuit breaker %s%s is open: %s", change.name, of, change.why)
            self._tell(AlertEvent.BREAKER_OPEN, change, f"{change.name}{of} gets no requests for a while: {change.why}")
            self._note("breaker.opened", change)
        elif change.after is State.CLOSED:
            _LOG.info("circuit breaker %s%s is closed: %s", change.name, of, change.why)
            self._tell(AlertEvent.BREAKER_CLOSED, change, f"{change.name}{of} gets requests again.")
            self._note("breaker.closed", change)
        else:
            _LOG.info("circuit breaker %s%s is half-open: it is tried again", change.name, of)

    def _tell(self, event: AlertEvent, change: Change, message: str) -> None:
        self._raise(
            Alert(
                event,
                change.name,
                message,
                details={"breaker": change.name, "why": change.why, "before": change.before.value},
                time_ms=int(change.time * 1000),
                severity="info" if event is AlertEvent.BREAKER_CLOSED else "warning",
            )
        )

    def _note(self, action: str, change: Change) -> None:
        if self._runtime.store is None:
            return
        detail = orjson.dumps({"why": change.why, "before": change.before.value}).decode()
        record = AuditRecord(
            int(change.time * 1000), "circuit breaker", action, f"breakers/{change.name}", detail=detail
        )
        try:
            task = asyncio.get_running_loop().create_task(self._runtime.note(record))
        except RuntimeError:  # told outside of a loop, by a test
            return
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)


def breaker_of(deployment: Entry, rules: CircuitBreaker) -> str | None:
    """What the breaker of a deployment is called: after its id, or after its provider and region where all of those
    fail together and it says where it is."""
    known = (deployment.get("model_info") or {}).get("id")
    if known is None or rules.per is BreakerPer.DEPLOYMENT:
        return None if known is None else str(known)
    from plugins.routing.candidates import regions_of

    params = deployment.get("litellm_params") or {}
    provider = params.get("custom_llm_provider") or str(params.get("model") or "").partition("/")[0]
    # Some are in parts of the world as well; the longest name is the narrowest place.
    region = max(sorted(regions_of(deployment)), key=len, default=None)
    return str(known) if region is None else f"{provider}@{region}"
