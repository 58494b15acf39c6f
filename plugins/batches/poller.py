"""Asks what became of batches and background responses, and has the books say what they cost."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from core.budgets import Account
from core.errors import JournalFull, StoreError
from core.pauses import in_step
from core.store.batches import Job, JobKind
from core.usage import UsageState
from plugins.batches import costs
from plugins.batches.costs import Total
from plugins.batches.service import outputs_of
from plugins.budgets.spending import Overrun

if TYPE_CHECKING:
    from core.journal import UsageFields
    from core.store import Store

_LOG = logging.getLogger("orchestration.batches")
_LOOK_EVERY = 2.0
_LOOK_FOR_OTHERS_EVERY = 10.0
"""Seconds, while there was nothing to ask about: a worker that is gone may have left a job."""
_CLAIM_MS = 300_000
_SOONEST_MS, _LATEST_MS = 3_000, 300_000
_PATIENCE_MS = 3_600_000
"""How long a batch may be over without an output that its own counts promise."""
_GIVE_UP_MS = 14 * 86_400_000
_FORGET_EVERY = 3_600.0
_OVER = frozenset({"completed", "failed", "expired", "cancelled"})
_RESPONSE_OVER = frozenset({"completed", "failed", "incomplete", "cancelled"})


class Asking(Protocol):
    """What the poller asks of LiteLLM; `plugins.compat` has it. All of it may raise anything."""

    async def ask_batch(self, batch_id: str, group: str, deployment: str | None) -> dict[str, Any]: ...
    async def ask_file(self, provider_id: str, group: str, deployment: str | None) -> bytes: ...
    async def ask_response(self, response_id: str) -> Any: ...
    def id_of_file(self, provider_id: str, group: str) -> str: ...


class Poller:
    """`amend` tells the journal what a request cost after all, `overrun` people of a bill that was too high.

    Every worker has one; a job belongs to whoever claims it, and being settled twice is like being settled once.
    """

    def __init__(
        self,
        asking: Asking,
        amend: "Callable[[str, UsageFields], None]",
        overrun: Overrun,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._asking = asking
        self._amend = amend
        self._overrun = overrun
        self._clock = clock
        self._forget_at = 0.0
        self._look_at = 0.0
        self._kept = 0

    async def run(self, store: "Store") -> None:
        """Until cancelled."""
        while True:
            try:
                await self.look_if_worth_it(store)
            except StoreError:
                pass  # the ledger says so
            except Exception:
                _LOG.exception("batches could not be looked after")
            await asyncio.sleep(in_step(_LOOK_EVERY))

    async def look_if_worth_it(self, store: "Store") -> None:
        """A round, unless nothing went on at the last one and nothing was begun here since."""
        if self._clock() < self._look_at and store.batches.kept == self._kept:
            return
        kept = store.batches.kept
        await self.look(store)
        going_on = await store.batches.any_open()
        self._kept, self._look_at = kept, 0.0 if going_on else self._clock() + _LOOK_FOR_OTHERS_EVERY

    async def look(self, store: "Store") -> int:
        """One round; returns how many jobs were asked about."""
        now = self._now_ms()
        jobs = await store.batches.claim(now, now + _CLAIM_MS)
        for job in jobs:
            try:
                await self._ask(store, job)
            except (StoreError, JournalFull) as error:
                _LOG.warning("%s %s is asked about again later: %s", job.kind, job.id, error)
                await store.batches.look_again(job.id, job.status, self._next_ms(job))
            except Exception as error:
                await self._unanswered(store, job, error)
        if self._clock() >= self._forget_at:
            self._forget_at = self._clock() + _FORGET_EVERY
            await store.batches.forget(now)
        return len(jobs)

    async def _ask(self, store: "Store", job: Job) -> None:
        if job.kind is JobKind.RESPONSE:
            await self._ask_response(store, job)
            return
        answer = await self._asking.ask_batch(job.id, job.model, job.deployment)
        status = str(answer.get("status", ""))
        # Whose the output is has to be known before anybody can ask for it.
        clients = {name: self._client_id(job, answer.get(name)) for name in ("output_file_id", "error_file_id")}
        await store.batches.keep_files(outputs_of(job, clients))
        if status not in _OVER:
            await store.batches.look_again(job.id, status, self._next_ms(job))
            return
        content = b""
        if answer.get("output_file_id"):
            content = await self._asking.ask_file(str(answer["output_file_id"]), job.model, job.deployment)
        total = await asyncio.to_thread(costs.of_output, content, job.provider_model, job.deployment)
        missing = _promised(answer, status) - total.answers
        if missing > 0 and self._now_ms() - _over_since_ms(answer, job) < _PATIENCE_MS:
            # A provider may count answers before their file is there.
            await store.batches.look_again(job.id, status, self._next_ms(job))
            return
        await self._settle(store, job, status, total if missing <= 0 else None)

    async def _ask_response(self, store: "Store", job: Job) -> None:
        response = await self._asking.ask_response(job.id)
        status = str(getattr(response, "status", ""))
        if status not in _RESPONSE_OVER:
            await store.batches.look_again(job.id, status, self._next_ms(job))
            return
        total = await asyncio.to_thread(costs.of_response, response, job.provider_model, job.deployment)
        await self._settle(store, job, status, total)

    async def _settle(self, store: "Store", job: Job, status: str, total: Total | None) -> None:
        """Write down what it cost. What is not known stays at what was reserved."""
        known = total is not None and total.cost_nano is not None
        if total is not None and total.cost_nano == 0 and total.input_tokens and job.reserved_nano:
            known = False  # LiteLLM's word for a model without a price
        if total is None or total.cost_nano is None or not known:
            _LOG.error(
                "%s %s is over (%s), but what it cost cannot be told; request %s stays charged what was reserved",
                *(job.kind, job.id, status, job.request_id),
            )
        else:
            self._amend(
                job.request_id,
                {
                    "usage": UsageState.REPORTED,
                    "input_tokens": total.input_tokens,
                    "output_tokens": total.output_tokens,
                    "cached_tokens": total.cached_tokens,
                    "reasoning_tokens": total.reasoning_tokens,
                    "cost_nano": total.cost_nano,
                },
            )
            if total.cost_nano > job.reserved_nano:
                await self._tell_overrun(store, job, total.cost_nano)
        await store.batches.finish(job.id, status, self._now_ms())

    async def _tell_overrun(self, store: "Store", job: Job, cost_nano: int) -> None:
        """A bill above the reservation is recorded as it is, and somebody has to know."""
        event = await store.usage.get(job.request_id)
        last = event.attempts[-1] if event is not None and event.attempts else None
        if last is None or not last.reserved_nano:
            return
        for key in last.accounts:
            budget = Account.parse(key).budget_id
            self._overrun(budget, job.request_id, last.reserved_nano, cost_nano, self._now_ms())

    async def _unanswered(self, store: "Store", job: Job, error: Exception) -> None:
        if self._now_ms() - job.created_ms > _GIVE_UP_MS:
            _LOG.error(
                "%s %s was not heard of for too long (%s); request %s stays charged what was reserved",
                *(job.kind, job.id, type(error).__name__, job.request_id),
            )
            await store.batches.finish(job.id, "lost", self._now_ms())
            return
        _LOG.warning("%s %s cannot be asked about: %s: %s", job.kind, job.id, type(error).__name__, str(error)[:300])
        await store.batches.look_again(job.id, job.status, self._next_ms(job))

    def _client_id(self, job: Job, provider_id: Any) -> str | None:
        return self._asking.id_of_file(provider_id, job.model) if isinstance(provider_id, str) and provider_id else None

    def _next_ms(self, job: Job) -> int:
        """The older it is, the less often it is asked about: it will be settled a tenth of its age late at most."""
        now = self._now_ms()
        return now + min(max(_SOONEST_MS, (now - job.created_ms) // 10), _LATEST_MS)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _promised(answer: Mapping[str, Any], status: str) -> int:
    """How many answers a batch that is over says there are; of one that was completed without saying so, at least
    one."""
    counts: Any = answer.get("request_counts")
    completed = counts.get("completed") if isinstance(counts, dict) else None
    if isinstance(completed, int):
        return completed
    return 0 if status == "failed" or answer.get("output_file_id") else 1


def _over_since_ms(answer: Mapping[str, Any], job: Job) -> int:
    for name in ("completed_at", "cancelled_at", "expired_at", "failed_at"):
        value = answer.get(name)
        if isinstance(value, int):
            return value * 1000
    return job.created_ms
