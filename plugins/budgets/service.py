"""The budgets of one worker: everything they need, begun when the worker is, renewed with its settings."""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from core import pauses
from core.budgets import Account, Balance
from core.budgets.books import Books
from core.budgets.opening import Opening
from core.context import RequestContext
from core.errors import BudgetsUnavailable, StoreError
from core.ids import first_request_id
from core.state.memory import MemoryReservations
from core.state.redis import RedisReservations
from core.state.reservations import OPENS_NOTHING, ReservationState, StateAway
from core.store.outputs import outputs
from core.usage import UsageEvent, UsageState
from plugins import compat
from plugins.budgets.enforcement import Enforcement, Group
from plugins.budgets.expected import ExpectedOutput
from plugins.budgets.notices import BudgetNotices
from plugins.budgets.output_limit import limit_names
from plugins.budgets.prices import group_prices
from plugins.budgets.spending import Spending, leases_of

if TYPE_CHECKING:
    from core.runtime import Runtime, Snapshot
    from core.store import Store
    from core.store.budgets import Pause

_LOG = logging.getLogger("orchestration.budgets")
_LOOK_EVERY = 5.0
_PRICES_FOR = 30.0
_GONE_SECONDS = 30.0
_SEEN_AGAIN_AFTER = 10.0
"""Seconds after the store is back by which every worker has beaten: twice what lies between two beats."""
_FLUSH_WITHIN = 10.0
_BEGINS_WITHIN = 5.0
_RECONCILE_EVERY = 60.0
_RECONCILE_AFTER_MS = 120_000
_LEARN_FROM = 2000
_LEARN_BACK_MS = 7 * 86_400_000


class Budgets:
    """Made before the worker starts; requests can be admitted once `run` has begun."""

    def __init__(self, runtime: "Runtime", notices: BudgetNotices) -> None:
        self._runtime = runtime
        self.notices = notices
        settings = runtime.settings.reservations
        self.expected = ExpectedOutput(settings.quantile, settings.initial_output_tokens)
        self.paused: Mapping[str, Pause] = {}
        self.books: Books | None = None
        self.opening: Opening | None = None
        self._enforcement: Enforcement | None = None
        self._snapshot: Snapshot | None = None
        self._groups: dict[str, tuple[float, Group]] = {}
        self._learnt_ms = 0
        self._next_reconciliation = time.monotonic() + _RECONCILE_EVERY
        self._news = asyncio.Event()
        self._begun = asyncio.Event()

    # -- a request ------------------------------------------------------------------------------------------------

    def spending(self, snapshot: "Snapshot", request_id: str, time_ms: int, context: RequestContext) -> Spending | None:
        """The budgets of a request, None where there are none at all."""
        if not len(snapshot.catalog):
            return None
        if self.books is None:
            raise BudgetsUnavailable("The budgets of this worker are not there yet.", headers={"retry-after": "5"})
        self._take_over(self._runtime.snapshot)  # of a new budget it has to be known what was spent before
        applying = snapshot.catalog.applying(context.caller, context.task_type, context.asked_model)
        return Spending(request_id, applying, self.books, time_ms, self.notices.overrun)

    async def begun(self) -> Books:
        """Wait for the books, which are there a moment after the worker is. Raises BudgetsUnavailable when they are not
        after some seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_BEGINS_WITHIN):
                await self._begun.wait()
        if self.books is None:
            raise BudgetsUnavailable("The budgets of this worker are not there yet.", headers={"retry-after": "5"})
        return self.books

    @property
    def enforcement(self) -> Enforcement:
        assert self._enforcement is not None
        return self._enforcement

    def group(self, name: str) -> Group:
        """Prices of a model group, remembered for half a minute: LiteLLM may learn new ones at any time."""
        now = time.monotonic()
        known = self._groups.get(name)
        if known is not None and known[0] > now:
            return known[1]
        deployments = compat.deployments_of(name)
        names = [_limit_names(entry.get("litellm_params", {})) for entry in deployments]
        group = Group(group_prices(deployments), frozenset.intersection(*names) if names else frozenset())
        if len(self._groups) > _MOST_GROUPS:
            self._groups.clear()
        self._groups[name] = (now + _PRICES_FOR, group)
        return group

    def written(self, events: Sequence[UsageEvent], balances: Sequence[Balance]) -> None:
        """The ledger has these events in the store."""
        if self.books is not None and (balances or any(a.accounts for event in events for a in event.attempts)):
            self.books.written([lease for event in events for lease in leases_of(event)], balances)
        if balances:
            self.notices.spent(self._runtime.snapshot.catalog, balances, self._now_ms())
        for event in events:
            self._learn(event)

    # -- a worker -------------------------------------------------------------------------------------------------

    async def run(self, store: "Store") -> None:
        """Until cancelled."""
        runtime = self._runtime
        settings = runtime.settings
        state: ReservationState
        if runtime.shared_url is None:
            state = MemoryReservations(lease_seconds=settings.reservations.lease_seconds)
        else:
            state = RedisReservations(runtime.shared_url, lease_seconds=settings.reservations.lease_seconds)
        books = Books(
            state,
            self,
            runtime.instance,
            on_outage=settings.shared_state.on_outage,
            allotment=0.0 if runtime.shared_url is None else settings.reservations.allotment,
            lease_seconds=settings.reservations.lease_seconds,
        )
        self.opening = Opening(
            store.budgets, state.standings, partial(state.put, opens=OPENS_NOTHING), runtime.clock, self.flush
        )
        self._enforcement = Enforcement(
            books,
            self.expected,
            self.group,
            paused=lambda budget_id: self.paused.get(budget_id),
            min_output_tokens=settings.reservations.min_output_tokens,
        )
        with suppress(StoreError):  # without the store nothing is admitted that has to be paid
            await self.look(store)
        self._take_over(runtime.snapshot)
        self.books = books
        self._begun.set()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(books.run())
                tasks.create_task(self._look_after(store))
                if isinstance(state, RedisReservations):
                    tasks.create_task(_check_eviction(state))
        finally:
            await asyncio.shield(self._end(books))

    async def _end(self, books: Books) -> None:
        """Everything into the store first: only then is it known what the leases of this worker have become."""
        if self._runtime.ledger is not None:
            await self._runtime.ledger.flush(_FLUSH_WITHIN)
        await books.close()

    def news(self) -> None:
        """Something about budgets was changed: look at once."""
        self._news.set()

    async def hear(self, body: dict[str, Any]) -> None:
        """Another instance says so."""
        self.news()

    async def look(self, store: "Store") -> None:
        """Take over the settings in force, and which budgets are paused. Raises StoreError."""
        self._take_over(self._runtime.snapshot)
        if self._begun.is_set() and not len(self._runtime.snapshot.catalog):
            return  # there is nothing to pause
        self.paused = await store.budgets.paused()

    async def balances(self, accounts: Sequence[Account]) -> Sequence[Balance]:
        assert self.opening is not None
        return await self.opening.balances(accounts)

    async def flush(self) -> bool:
        ledger = self._runtime.ledger
        return ledger is not None and await ledger.catch_up(_FLUSH_WITHIN)

    async def living(self) -> Sequence[str]:
        store = self._runtime.store
        assert store is not None
        back_at = self._runtime.store_back_at
        if back_at is not None and time.monotonic() < back_at + _SEEN_AGAIN_AFTER:
            # Nobody could be seen while it was away; who is there has to say so first.
            raise StoreError("the store was away until a moment ago; which workers live is not known yet")
        live = await store.instances.live(_GONE_SECONDS)
        here = socket.gethostname()
        return [one.instance for one in live if one.host != here or _runs(one.pid)]

    async def _look_after(self, store: "Store") -> None:
        while True:
            try:
                await self.look(store)
                if self.books is not None and self.books.trouble is not None:
                    self.notices.shared_state(self.books.trouble, self._now_ms())
                if len(self._runtime.snapshot.catalog):
                    assert self.opening is not None
                    await self.opening.look_after()
                    await self._learn_from(store)
                    await self._reconcile(store)
            except (StoreError, StateAway):
                pass  # both are said by the books, where they matter
            except Exception:
                _LOG.exception("budgets could not be looked after")
            await pauses.wait(self._news, _LOOK_EVERY)
            self._news.clear()

    async def _reconcile(self, store: "Store") -> None:
        """Now and then, finish what workers that are no more had begun."""
        now = time.monotonic()
        if self.books is None or now < self._next_reconciliation:
            return
        self._next_reconciliation = now + _RECONCILE_EVERY
        before = first_request_id(self._now_ms() - _RECONCILE_AFTER_MS)
        ended = self._runtime.ledger.ended if self._runtime.ledger is not None else ()
        if finished := await self.books.reconcile(before, store.usage.present, ended):
            _LOG.info("%d leases of workers that are no more were let go: the store has their costs", finished)

    def _now_ms(self) -> int:
        return int(self._runtime.clock() * 1000)

    def _take_over(self, snapshot: "Snapshot") -> None:
        if snapshot is self._snapshot:
            return
        self._snapshot = snapshot
        self._groups.clear()
        assert self.opening is not None
        self.opening.catalog = snapshot.catalog
        settings = snapshot.settings.reservations
        self.expected.share, self.expected.initial = settings.quantile, settings.initial_output_tokens

    # -- how long answers are --------------------------------------------------------------------------------------

    async def _learn_from(self, store: "Store") -> None:
        """What the other workers saw, and at the start what there was before."""
        since = self._learnt_ms or self._now_ms() - _LEARN_BACK_MS
        first = not self._learnt_ms
        for output in await outputs(store, since, _LEARN_FROM, None if first else self._runtime.instance):
            self.expected.saw(output.model, output.task_type, output.tokens, cut=output.cut)
            self._learnt_ms = max(self._learnt_ms, output.time_ms + 1)
        self._learnt_ms = self._learnt_ms or since

    def _learn(self, event: UsageEvent) -> None:
        if event.instance != self._runtime.instance or event.usage != UsageState.REPORTED or not event.used_model:
            return
        cut = event.clamped is not None and event.output_tokens >= event.clamped
        self.expected.saw(event.used_model, event.task_type, event.output_tokens, cut=cut)


_MOST_GROUPS = 1000


def _limit_names(params: Mapping[str, Any]) -> frozenset[str]:
    """The names of an output limit that a deployment takes. Any: `litellm_params`."""
    dropped = params.get("additional_drop_params") or ()
    return limit_names(str(params.get("model", ""))) - {str(name) for name in dropped}


async def _check_eviction(state: RedisReservations) -> None:
    """A Redis that evicts keys when its memory is full would forget what was spent."""
    policy = await state.eviction()
    if policy is not None and policy != "noeviction":
        _LOG.error(
            "Redis has maxmemory-policy %s: with a full memory it forgets what budgets have spent; set noeviction",
            policy,
        )


def _runs(pid: int) -> bool:
    """Whether there is such a process on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
