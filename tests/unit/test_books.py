"""What budgets have left, as one worker knows it: memory and a real SQLite store."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from core.budgets import Account, Balance
from core.budgets.books import Books
from core.errors import BudgetsUnavailable, StoreError
from core.settings.models import OutageMode
from core.state.memory import MemoryReservations
from core.state.reservations import Claim, Reserved, Standing, StateAway, TooLittle
from core.store import Store, open_store
from core.usage import Attempt, UsageEvent
from tests.support.clock import Clock
from tests.support.eventually import eventually

TEAM = Account("team~a1", 1_800_000_000_000, "", 1_800_086_400_000)
USER = Account("user~b2", 1_800_000_000_000, "ada", 1_800_086_400_000)


def claims(*amounts: int, limit: int = 100) -> list[Claim]:
    return [Claim(TEAM, limit, amounts)]


class Around:
    """A worker's surroundings: a real store whose journal is what the test writes."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.flushed = True
        self.openings = 0
        self.trouble: StoreError | None = None

    async def balances(self, accounts: Sequence[Account]) -> Sequence[Balance]:
        self.openings += 1
        if self.trouble is not None:
            raise self.trouble
        found = await self.store.budgets.balances(accounts)
        return list(found.values())

    async def flush(self) -> bool:
        return self.flushed

    async def living(self) -> Sequence[str]:
        return ["one"]


class Unreliable(MemoryReservations):
    """State that can be away."""

    away = False

    async def reserve(self, lease: str, claims: Sequence[Claim], *, slack: int = 1) -> object:
        if self.away:
            raise StateAway("nobody there")
        return await super().reserve(lease, claims, slack=slack)

    async def settle(self, lease: str, accounts: Sequence[str], cost_nano: int) -> object:
        if self.away:
            raise StateAway("nobody there")
        return await super().settle(lease, accounts, cost_nano)

    async def recover(self) -> bool:
        if self.away:
            raise StateAway("nobody there")
        return await super().recover()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = open_store(f"sqlite+aiosqlite:///{tmp_path}/store.db")
    await store.upgrade()
    yield store
    await store.close()


@pytest.fixture
def around(store: Store) -> Around:
    return Around(store)


@asynccontextmanager
async def running(books: Books) -> AsyncIterator[Books]:
    task = asyncio.create_task(books.run())
    try:
        yield books
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await books.close()


async def spend(store: Store, account: Account, cost: int, request: str) -> tuple[Balance, ...]:
    attempt = Attempt(1, "large", cost_nano=cost, accounts=(account.key,))
    event = UsageEvent(request, 1_800_000_001_000, "chat_completions", 200, cost_nano=cost, attempts=[attempt])
    return (await store.usage.write([event])).balances


async def test_an_account_is_opened_with_what_the_store_says_was_spent(store: Store, around: Around) -> None:
    await spend(store, TEAM, 70, "before")
    async with running(Books(MemoryReservations(), around, "one")) as books:
        outcome = await books.reserve("r:1", claims(31))
        assert isinstance(outcome, TooLittle)
        assert outcome.standings == (Standing(70),)
        assert isinstance(await books.reserve("r:2", claims(30)), Reserved)


async def test_many_requests_open_an_account_once(around: Around) -> None:
    async with running(Books(MemoryReservations(), around, "one")) as books:
        outcomes = await asyncio.gather(*(books.reserve(f"r{number}:1", claims(10)) for number in range(50)))
        assert sum(isinstance(outcome, Reserved) for outcome in outcomes) == 10
        assert around.openings == 1


@pytest.mark.slow
async def test_nothing_is_reserved_before_the_journal_of_the_process_before_is_in_the_store(around: Around) -> None:
    around.flushed = False
    async with running(Books(MemoryReservations(), around, "one")) as books:
        with pytest.raises(BudgetsUnavailable, match="not known"):
            await books.reserve("r:1", claims(10))
        around.flushed = True
        await eventually(lambda: books.trouble is None)
        assert isinstance(await books.reserve("r:2", claims(10)), Reserved)


async def test_what_was_settled_counts_at_once_and_the_stores_word_takes_its_place(
    store: Store, around: Around
) -> None:
    state = MemoryReservations()
    async with running(Books(state, around, "one")) as books:
        await books.reserve("r:1", claims(60))
        assert await books.sent("r:1")
        books.settle("r:1", 25)

        async def standing() -> Standing:
            return (await books.standings([TEAM]))[TEAM.key]

        await eventually(lambda: not state._leases["r:1"].expires_ms)
        assert await standing() == Standing(0, 25, 0, 0)
        books.written(["r:1"], await spend(store, TEAM, 25, "r"))
        await eventually(lambda: "r:1" not in state._leases)
        assert await standing() == Standing(25, 0, 0, 0)


async def test_an_event_that_is_written_before_its_cost_was_told_counts_once(store: Store, around: Around) -> None:
    state = MemoryReservations()
    books = Books(state, around, "one")
    async with running(books):
        await books.reserve("r:1", claims(60))
        await books.sent("r:1")
        books.settle("r:1", 25)
        books.written(["r:1"], await spend(store, TEAM, 25, "r"))
        await eventually(lambda: not state._leases)
        assert (await books.standings([TEAM]))[TEAM.key] == Standing(25, 0, 0, 0)


async def test_what_is_given_back_can_be_reserved_at_once(around: Around) -> None:
    async with running(Books(MemoryReservations(), around, "one")) as books:
        await books.reserve("r:1", claims(100))
        await books.release("r:1")
        assert isinstance(await books.reserve("r:1", claims(100)), Reserved)


async def test_an_attempt_whose_reservation_ran_out_is_not_sent(around: Around) -> None:
    clock = Clock()
    state = MemoryReservations(clock=clock)
    async with running(Books(state, around, "one")) as books:
        await books.reserve("r:1", claims(60))
        clock.advance(100)
        await state.reap()
        assert not await books.sent("r:1")
        assert not await books.sent("never:1")


@pytest.mark.slow
async def test_leases_are_kept_alive_while_their_requests_run(around: Around) -> None:
    clock = Clock()
    state = MemoryReservations(clock=clock)
    async with running(Books(state, around, "one", lease_seconds=0.04)) as books:
        await books.reserve("r:1", claims(60))
        for _ in range(5):
            before = state._leases["r:1"].expires_ms
            clock.advance(30)
            await eventually(lambda before=before: state._leases["r:1"].expires_ms > before, within=5)
        assert await books.sent("r:1")


async def test_while_state_is_away_nothing_may_be_spent(around: Around) -> None:
    state = Unreliable()
    async with running(Books(state, around, "one")) as books:
        await books.reserve("r:1", claims(60))
        state.away = True
        with pytest.raises(BudgetsUnavailable, match="nobody there") as refusal:
            await books.reserve("r:2", claims(10))
        assert refusal.value.status == 503
        assert refusal.value.headers["retry-after"]
        state.away = False
        await eventually(lambda: books.trouble is None)
        assert isinstance(await books.reserve("r:3", claims(40)), Reserved)


async def test_unless_it_is_allowed(around: Around) -> None:
    state = Unreliable()
    async with running(Books(state, around, "one", on_outage=OutageMode.ALLOW)) as books:
        await books.reserve("r:1", claims(10))
        state.away = True
        assert await books.reserve("r:2", claims(1000, 10)) == Reserved(0, ())
        books.settle("r:2", 70)
        state.away = False
        await eventually(lambda: "r:2" in state._leases)
        assert (await books.standings([TEAM]))[TEAM.key] == Standing(0, 70, 10, 0)


async def test_a_store_that_is_away_is_an_outage_too(around: Around) -> None:
    around.trouble = StoreError("the store is away")
    async with running(Books(MemoryReservations(), around, "one")) as books:
        with pytest.raises(BudgetsUnavailable, match="the store is away"):
            await books.reserve("r:1", claims(10))


async def test_what_was_reserved_for_a_client_that_left_meanwhile_is_given_back(around: Around) -> None:
    class Slow(MemoryReservations):
        async def reserve(self, lease: str, claims: Sequence[Claim], *, slack: int = 1) -> object:
            outcome = await super().reserve(lease, claims, slack=slack)
            await asyncio.sleep(0.05)
            return outcome

    state = Slow()
    async with running(Books(state, around, "one")) as books:
        await books.reserve("first:1", claims(10))
        task = asyncio.create_task(books.reserve("r:1", claims(60)))
        await eventually(lambda: "r:1" in state._leases)
        task.cancel()
        await eventually(lambda: "r:1" not in state._leases)
        assert (await books.standings([TEAM]))[TEAM.key].reserved_nano == 10


async def test_what_a_worker_left_that_died_between_the_store_and_shared_state_is_finished(
    store: Store, around: Around
) -> None:
    state = MemoryReservations()
    async with running(Books(state, around, "one")) as books:
        await books.reserve("r:1", claims(10))
        for request in ("dead", "unwritten"):
            await state.reserve(f"{request}:1", claims(30))
            await state.settle(f"{request}:1", [TEAM.key], 25)
        await spend(store, TEAM, 25, "dead")
        assert (await books.standings([TEAM]))[TEAM.key] == Standing(0, 50, 10, 0)
        assert await books.reconcile("e", store.usage.present) == 1
        assert (await books.standings([TEAM]))[TEAM.key] == Standing(25, 25, 10, 0)
        assert await books.reconcile("e", store.usage.present) == 0


async def test_closing_gives_back_what_was_not_sent(around: Around) -> None:
    state = MemoryReservations()
    books = Books(state, around, "one")
    async with running(books):
        await books.reserve("r:1", claims(60))
        await books.reserve("r:2", claims(20))
        await books.sent("r:2")
    assert (await state.standings([TEAM.key]))[TEAM.key].reserved_nano == 20
