"""While all models that a policy has for a request are left alone: its own words, said at the edge.

LiteLLM's pipeline would come to the same, by an error that it handles and logs on the way, which takes longer than an
answer. So a caller whom LiteLLM has accepted a moment ago is answered before it. A breaker that has a place for a probe
is not shut, and its request goes on to the pipeline.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from core.asgi import Receive, Scope
from core.errors import RequestRefused
from plugins.arrival import Arrival, Foresee, Foreseen, whole
from plugins.caching import service as caching
from plugins.resilience.degraded import DIALECTS

if TYPE_CHECKING:
    from core.runtime import Runtime
    from core.snapshot import Snapshot
    from plugins.exchange import Exchange
    from plugins.identities import Identities
    from plugins.resilience.service import Resilience

_LOG = logging.getLogger("orchestration.breakers")
_LOOK_EVERY = 0.05


class Answer(Protocol):
    """The sending side of an exchange."""

    async def refuse(self, error: RequestRefused) -> None: ...


class Outages:
    """Those that one worker knows of. `clock` gives seconds."""

    def __init__(
        self,
        runtime: "Runtime",
        resilience: "Resilience",
        identities: "Identities",
        foresee: Foresee,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runtime = runtime
        self._resilience = resilience
        self._identities = identities
        self._foresee = foresee
        self._clock = clock
        self._looked = float("-inf")
        self._lacking: frozenset[str] = frozenset()
        self._snapshot: Snapshot | None = None
        self._speaking: Mapping[str, Sequence[str]] = {}
        self._cheaper: tuple[str, ...] = ()

    async def arrive(self, exchange: "Exchange", scope: Scope, receive: Receive) -> Arrival | None:
        """The request with its body; None, and nothing is read, while nothing can come of it."""
        if exchange.endpoint not in DIALECTS or not self._any():
            return None
        if exchange.arrival is None:
            exchange.arrival = Arrival(scope, await whole(receive), receive, self._identities)
        return exchange.arrival

    async def at_the_edge(self, exchange: "Exchange", arrival: Arrival, answer: Answer) -> bool:
        """Answer where nobody else will, and LiteLLM has accepted the caller a moment ago; whether that was done."""
        try:
            groups = await self._shut(exchange, arrival)
            if groups is None:
                exchange.let_go()
                return False
            exchange.admitted = True
            await exchange.count_in()
            refusal: RequestRefused = self._resilience.failure(exchange, groups)
            await caching.seek_stale(exchange)
        except RequestRefused as limit:
            refusal = limit
        except Exception:  # whatever it is, LiteLLM can be asked
            _LOG.exception("a request could not be answered at the edge; it goes on")
            exchange.let_go()
            return False
        exchange.refused(refusal)
        await answer.refuse(refusal)
        return True

    def _any(self) -> bool:
        """Whether a policy that has words of its own lacks a model, as it was 50 ms ago at most."""
        if self._resilience.breakers.quiet():
            return False
        now = self._clock()
        if now - self._looked >= _LOOK_EVERY or self._snapshot is not self._runtime.snapshot:
            self._looked = now
            self._follow(self._runtime.snapshot)
            shut = self._resilience.shut
            self._lacking = frozenset(name for name, groups in self._speaking.items() if any(map(shut, groups)))
        return bool(self._lacking)

    def _follow(self, snapshot: "Snapshot") -> None:
        self._identities.under(snapshot)
        if snapshot is not self._snapshot:
            self._snapshot = snapshot
            policies = snapshot.policies.items()
            self._speaking = {
                name: policy.candidates for name, policy in policies if policy.fallback_response is not None
            }
            cheaper = [group for budget in snapshot.settings.budgets for group in budget.degrade_to]
            self._cheaper = tuple(dict.fromkeys(cheaper))

    async def _shut(self, exchange: "Exchange", arrival: Arrival) -> tuple[str, ...] | None:
        """The groups of the request's plan, where none of them is to be asked and its caller is known; None else."""
        body = arrival.read() if arrival.caller else None
        if body is None or not isinstance(asked := body.get("model"), str) or asked not in self._lacking:
            return None
        identity = self._identities.of(arrival.fingerprint(body))
        if identity is None or not await self._plan(exchange, arrival, identity.auth, body):
            return None
        shut, plan = self._resilience.shut, exchange.plan
        assert plan is not None
        # Budgets that are used up may have other models answer.
        return plan.candidates if all(map(shut, plan.candidates)) and all(map(shut, self._cheaper)) else None

    async def _plan(self, exchange: "Exchange", arrival: Arrival, auth: Any, body: Mapping[str, Any]) -> bool:
        ready = exchange.asking.ready if exchange.asking is not None else None
        if ready is not None and ready.snapshot is self._runtime.snapshot:
            exchange.snapshot, exchange.context, exchange.plan = ready.snapshot, arrival.context, ready.plan
            return True
        if not await self._foresee(self._runtime, exchange, auth, body):
            return False
        assert exchange.plan is not None
        arrival.context = exchange.context
        arrival.foreseen = Foreseen(exchange.snapshot, dict(exchange.permits), exchange.plan)
        return True


outages: Outages | None = None
"""Those of this worker."""


async def arrive(exchange: "Exchange", scope: Scope, receive: Receive) -> Arrival | None:
    """As `Outages.arrive`."""
    return None if outages is None else await outages.arrive(exchange, scope, receive)


async def at_the_edge(exchange: "Exchange", arrival: Arrival, answer: Answer) -> bool:
    """As `Outages.at_the_edge`."""
    return outages is not None and await outages.at_the_edge(exchange, arrival, answer)
