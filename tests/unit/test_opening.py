"""When accounts are opened: what was spent before their budget existed is in the store by the time it is counted."""

from core.budgets import Account, Catalog
from core.budgets.opening import Opening
from core.settings.models import Budget
from core.state.memory import MemoryReservations
from core.store import Store
from core.usage import Attempt, UsageEvent
from tests.support.clock import Clock


class Worker:
    """One whose ledger has an event that is not in the store yet."""

    def __init__(self, store: Store, clock: Clock, *budgets: str) -> None:
        self.store = store
        self.clock = clock
        self.flushes = 0
        attempts = [Attempt(1, "large", cost_nano=700)]
        now_ms = int(clock() * 1000)
        self.unwritten = [UsageEvent("before", now_ms, "chat_completions", 200, attempts=attempts, cost_nano=700)]
        state = MemoryReservations(clock=clock)
        self.opening = Opening(store.budgets, state.standings, state.put, clock, self.flush)
        self.configure(*budgets)

    def configure(self, *budgets: str) -> None:
        self.opening.catalog = Catalog([Budget(budget_id=name, total_budget=5) for name in budgets])

    async def flush(self) -> bool:
        self.flushes += 1
        await self.store.usage.write(self.unwritten)
        return True

    def account(self, budget: str) -> Account:
        terms = self.opening.catalog.budget(budget)
        assert terms is not None
        period = terms.calendar.at(int(self.clock() * 1000))
        return Account(terms.key, period.start_ms, end_ms=period.end_ms)


async def test_what_the_ledger_had_not_written_yet_is_counted(store: Store) -> None:
    worker = Worker(store, Clock(), "team")
    [balance] = await worker.opening.balances([worker.account("team")])
    assert balance.spent_nano == 700


async def test_budgets_that_begin_together_are_flushed_for_once(store: Store) -> None:
    clock = Clock()
    worker = Worker(store, clock, "team", "everyone", "large")
    await worker.opening.look_after()
    assert worker.flushes == 1
    clock.advance(10)
    await worker.opening.look_after()
    assert worker.flushes == 1, "nothing began"
    worker.configure("team", "new")
    await worker.opening.look_after()
    assert worker.flushes == 2
