"""Opening accounts: what the store says of them, with what was spent before their budget existed and what was left of
the period before."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.budgets.account import Account, Balance
from core.budgets.catalog import BudgetTerms, Catalog
from core.budgets.periods import Period

if TYPE_CHECKING:
    from core.state.reservations import Standing
    from core.store.budgets import BudgetRepository

SETTLED_AFTER = 60.0
"""Seconds after which every worker knows a new budget, and the events of those that did not are in the store."""
_FLUSHED_FOR = 1.0
"""Seconds for which the events of this worker count as written: budgets whose periods begin together flush once."""
_FAR_MS = 1 << 62

Standings = Callable[[Sequence[str]], Awaitable[Mapping[str, "Standing"]]]
Flush = Callable[[], Awaitable[bool]]
Put = Callable[[Sequence[Balance], Mapping[str, int | None]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _SecondLook:
    terms: BudgetTerms
    period: Period
    due: float


class Opening:
    """`standings` are those of shared state by account key, `put` tells it of balances; `clock` gives Unix seconds;
    `flush` has what this worker knows written into the store, as far as that is possible.

    Every method raises StoreError while the store cannot be used, and StateAway while shared state cannot.
    """

    def __init__(
        self,
        repository: "BudgetRepository",
        standings: Standings,
        put: Put,
        clock: Callable[[], float],
        flush: Flush | None = None,
    ) -> None:
        self._repository = repository
        self._standings = standings
        self._put = put
        self._clock = clock
        self._flush = flush
        self._flushed_at = float("-inf")
        self._looked_back: set[tuple[str, int]] = set()
        self._second_looks: list[_SecondLook] = []
        self._looking = asyncio.Lock()
        self.catalog = Catalog(())

    async def balances(self, accounts: Sequence[Account]) -> list[Balance]:
        """What each account begins with."""
        terms = {account: self._terms(account) for account in accounts}
        for account, of_budget in terms.items():
            if of_budget is not None:
                await self._look_back(of_budget, Period(account.start_ms, account.end_ms))
        found = await self._repository.balances(accounts)
        for account, of_budget in terms.items():
            if of_budget is not None and of_budget.rollover_nano:
                carried = await self._carried_over(of_budget, account)
                found[account.key] = carried or found[account.key]
        return [found[account.key] for account in accounts]

    async def look_after(self) -> None:
        """One round: begin the present period of every budget, and look again at what was spent before a budget was
        known everywhere."""
        now = self._clock()
        for terms in self.catalog:
            await self._look_back(terms, terms.calendar.at(int(now * 1000)))
        due = [look for look in self._second_looks if look.due <= now]
        for look in due:
            changed = await self._backfill(look.terms, look.period)
            await self._put(changed, {balance.key: look.period.end_ms for balance in changed})
            self._second_looks.remove(look)

    def _terms(self, account: Account) -> BudgetTerms | None:
        terms = self.catalog.budget(account.budget_id)
        return terms if terms is not None and terms.key == account.budget else None

    async def _look_back(self, terms: BudgetTerms, period: Period) -> None:
        """Count what was spent in the period before the budget existed, unless somebody did."""
        key = (terms.key, period.start_ms)
        if key in self._looked_back:
            return
        async with self._looking:
            if key in self._looked_back:
                return
            if await self._repository.backfilled(*key) is None:
                await self._write_what_is_known()
                await self._backfill(terms, period)
                self._second_looks.append(_SecondLook(terms, period, self._clock() + SETTLED_AFTER))
            self._looked_back.add(key)

    async def _write_what_is_known(self) -> None:
        """What was spent without the budget counts, and may not be in the store yet."""
        if self._flush is not None and self._clock() >= self._flushed_at + _FLUSHED_FOR:
            await self._flush()
            self._flushed_at = self._clock()

    async def _backfill(self, terms: BudgetTerms, period: Period) -> list[Balance]:
        models = self.catalog.models_of(terms) if terms.coverage.models else ()
        end = _FAR_MS if period.end_ms is None else period.end_ms
        return await self._repository.backfill(terms.key, terms.coverage, period.start_ms, end, models)

    async def _carried_over(self, terms: BudgetTerms, account: Account) -> Balance | None:
        """Put what is left of the period before into the account, once; None where the budget did not exist then."""
        from core.store.budgets import Adjustment, AdjustmentKind

        before = terms.calendar.before(Period(account.start_ms, account.end_ms))
        if before is None or await self._repository.backfilled(terms.key, before.start_ms) is None:
            return None
        earlier = Account(account.budget, before.start_ms, account.member, before.end_ms)
        balance = (await self._repository.balances([earlier]))[earlier.key]
        standing = (await self._standings([earlier.key])).get(earlier.key)
        # What is under way may yet be spent there: carried over would be lent twice.
        under_way = standing.settled_nano + standing.reserved_nano if standing is not None else 0
        left = terms.limit_nano(account.member) + balance.extra_nano - balance.spent_nano - under_way
        carry = Adjustment(
            id=f"carry|{account.key}",
            account=account,
            kind=AdjustmentKind.CARRY,
            time_ms=int(self._clock() * 1000),
            actor="orchestration",
            reason="left of the period before",
            amount_nano=max(0, min(left, terms.rollover_nano or 0)),
        )
        return await self._repository.adjust(carry)
