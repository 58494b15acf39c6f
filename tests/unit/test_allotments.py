"""What a worker may spend while shared state is away and `on_outage` is local."""

import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from core.budgets import Account, Balance
from core.budgets.allotments import drawn_by
from core.budgets.books import Books
from core.errors import BudgetsUnavailable
from core.settings.models import OutageMode
from core.state.memory import MemoryReservations
from core.state.reservations import (
    ANY_STATE,
    Claim,
    Lease,
    LeaseState,
    ReservationState,
    Reserved,
    Settled,
    Standing,
    StateAway,
    StateLost,
    TooLittle,
    Unopened,
)
from tests.support.clock import Clock

TEAM = Account("team~a1", 0)
USER = Account("user~b2", 0, "ada")
LIMIT = 1000
SEEDS = 2000


class Shared(MemoryReservations):
    """State that several workers share, and that can be lost as Redis's can."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock=clock)
        self.losses = 0
        self.registered: set[str] = set()
        self.lose()

    def lose(self) -> None:
        self.losses += 1
        self.epoch = f"state {self.losses}"
        self._accounts.clear()
        self._leases.clear()
        self.registered.clear()
        self._whole = False

    async def register(self, instance: str, leases: Sequence[Lease]) -> bool:
        self.registered.add(instance)
        return await super().register(instance, leases)

    async def finish(self, instances: Sequence[str]) -> tuple[str, ...]:
        missing = tuple(name for name in instances if name not in self.registered)
        self._whole = self._whole or not missing
        return missing


class Link(ReservationState):
    """One worker's way to the shared state. Cut, nothing arrives; deaf, everything arrives and no answer comes back.

    `cut_after` calls it is cut.
    """

    def __init__(self, state: Shared) -> None:
        self.state = state
        self.cut = self.deaf = False
        self.cut_after: int | None = None
        self._epoch = ""

    @property
    def epoch(self) -> str:
        return self._epoch

    def _there(self) -> None:
        if self.cut_after is not None:
            self.cut_after -= 1
            self.cut = self.cut or self.cut_after < 0
        if self.cut:
            raise StateAway("nobody there")

    def _answers(self) -> None:
        if self.deaf:
            raise StateAway("no answer")

    def _same(self) -> None:
        self._there()
        if not self.state._whole or self.state.epoch != self._epoch:
            raise StateLost

    async def reserve(self, lease: str, claims: Sequence[Claim], *, slack: int = 1) -> Reserved | TooLittle | Unopened:
        self._same()
        outcome = await self.state.reserve(lease, claims, slack=slack)
        self._answers()
        return outcome

    async def sent(self, lease: str) -> bool:
        self._same()
        there = await self.state.sent(lease)
        self._answers()
        return there

    async def settle(self, lease: str, accounts: Sequence[str], cost_nano: int) -> tuple[Settled, ...]:
        self._there()
        settled = await self.state.settle(lease, accounts, cost_nano)
        self._answers()
        return settled

    async def renew(self, leases: Sequence[str]) -> None:
        self._there()
        await self.state.renew(leases)
        self._answers()

    async def reap(self) -> tuple[Lease, ...]:
        self._there()
        presumed = await self.state.reap()
        self._answers()
        return presumed

    async def put(
        self,
        balances: Sequence[Balance],
        ends_ms: Mapping[str, int | None],
        written: Sequence[str] = (),
        *,
        opens: str = ANY_STATE,
    ) -> None:
        self._there()
        await self.state.put(balances, ends_ms, written, opens=opens)
        self._answers()

    async def standings(self, keys: Sequence[str]) -> dict[str, Standing]:
        self._there()
        self._answers()
        return await self.state.standings(keys)

    async def settled(self, before: str) -> tuple[Lease, ...]:
        self._there()
        return await self.state.settled(before)

    async def recover(self) -> bool:
        self._there()
        self._answers()
        self._epoch = self.state.epoch
        return await self.state.recover()

    async def register(self, instance: str, leases: Sequence[Lease]) -> bool:
        self._there()
        if self.state.epoch != self._epoch:
            return False
        there = await self.state.register(instance, leases)
        self._answers()
        return there

    async def finish(self, instances: Sequence[str]) -> tuple[str, ...]:
        self._there()
        missing = await self.state.finish(instances)
        self._answers()
        return missing

    async def close(self) -> None:
        return


@dataclass
class Store:
    """The store, and what workers want of it."""

    balances_of: dict[str, Balance] = field(default_factory=dict)
    workers: list[str] = field(default_factory=list)
    deliver_the_dead: Callable[[], Awaitable[None]] | None = None

    async def balances(self, accounts: Sequence[Account]) -> Sequence[Balance]:
        return [self.balances_of.get(account.key, Balance(account.key)) for account in accounts]

    async def flush(self) -> bool:
        if self.deliver_the_dead is not None:
            await self.deliver_the_dead()
        return True

    async def living(self) -> Sequence[str]:
        return list(self.workers)

    def write(self, keys: Sequence[str], cost: int) -> list[Balance]:
        changed: list[Balance] = []
        for key in keys:
            old = self.balances_of.get(key, Balance(key))
            changed.append(Balance(key, old.spent_nano + cost, old.extra_nano, old.version + 1))
            self.balances_of[key] = changed[-1]
        return changed


class Worker:
    """Books whose rounds are the test's to begin."""

    def __init__(self, shared: Shared, store: Store, clock: Clock, name: str = "one", share: float = 0.05) -> None:
        self.name = name
        self.link = Link(shared)
        self.books = Books(
            self.link, store, name, on_outage=OutageMode.LOCAL, allotment=share, clock=clock, sleep=clock.sleep
        )
        store.workers.append(name)

    async def round(self) -> bool:
        """One look at the state, and everything told that there is to tell; whether it answered."""
        try:
            await self.books.look()
            while await self.books._move_some():
                pass
        except (StateAway, StateLost) as error:
            self.books._miss(error)
            return False
        return True

    async def spend(self, lease: str, *claims: Claim, cost: int) -> None:
        assert isinstance(await self.books.reserve(lease, claims), Reserved)
        assert await self.books.sent(lease)
        self.books.settle(lease, cost)


def claim(account: Account = TEAM, *amounts: int, limit: int = LIMIT) -> Claim:
    return Claim(account, limit, amounts)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def shared(clock: Clock) -> Shared:
    return Shared(clock)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def worker(shared: Shared, store: Store, clock: Clock) -> Worker:
    """A worker with an allotment of 50 on each of two accounts."""
    worker = Worker(shared, store, clock)
    await worker.round()
    await worker.spend("before:1", claim(TEAM, 10), claim(USER, 10), cost=10)
    await worker.round()
    return worker


async def standing(shared: Shared, account: Account = TEAM) -> Standing:
    return (await shared.standings([account.key]))[account.key]


class TestWhileTheStateAnswers:
    async def test_a_share_of_each_account_in_use_is_drawn(self, worker: Worker, shared: Shared) -> None:
        assert await standing(shared) == Standing(0, 10, 50, 0)
        assert await standing(shared, USER) == Standing(0, 10, 50, 0)

    async def test_once(self, worker: Worker, shared: Shared) -> None:
        await worker.spend("r:1", claim(TEAM, 10), cost=10)
        await worker.round()
        await worker.round()
        assert await standing(shared) == Standing(0, 20, 50, 0)

    async def test_it_counts_as_spent_of_a_worker_that_dies(self, worker: Worker, shared: Shared, clock: Clock) -> None:
        clock.advance(61)
        await shared.reap()
        assert await standing(shared) == Standing(0, 60, 0, 0)

    async def test_until_all_that_worker_spent_is_in_the_store(
        self, worker: Worker, shared: Shared, store: Store, clock: Clock
    ) -> None:
        """Of one that is only not heard of it may be in use."""

        async def nothing(requests: Iterable[str]) -> set[str]:
            assert set(requests) == {"before"}
            return set()

        other = Worker(shared, store, clock, "two")
        await other.round()
        clock.advance(61)
        await shared.reap()
        assert await other.books.reconcile("r", nothing, {"two", "three"}) == 0
        assert (await standing(shared)).spent_nano == 60
        store.write([TEAM.key, USER.key], 15)
        assert await other.books.reconcile("r", nothing, {"one"}) == 2
        assert await standing(shared) == Standing(15, 10, 0, 0)

    async def test_it_is_renewed_while_the_account_is_in_use(
        self, worker: Worker, shared: Shared, clock: Clock
    ) -> None:
        for number in range(10):
            clock.advance(20)
            await worker.spend(f"r{number}:1", claim(TEAM, 0), cost=0)
            await worker.round()
            await shared.reap()
        assert await standing(shared) == Standing(0, 10, 50, 0)

    async def test_and_given_back_a_minute_after_that(self, worker: Worker, shared: Shared, clock: Clock) -> None:
        for _ in range(4):
            clock.advance(20)
            await worker.round()
        assert await standing(shared) == Standing(0, 10, 0, 0)

    async def test_nothing_is_drawn_where_little_is_left(self, shared: Shared, store: Store, clock: Clock) -> None:
        worker = Worker(shared, store, clock)
        await worker.round()
        await worker.spend("r:1", claim(TEAM, 501), cost=501)
        await worker.round()
        assert await standing(shared) == Standing(0, 501, 0, 0)

    async def test_also_where_the_worker_has_not_heard_of_that_yet(
        self, shared: Shared, store: Store, clock: Clock
    ) -> None:
        worker, other = Worker(shared, store, clock), Worker(shared, store, clock, "two")
        await worker.round()
        await other.round()
        await worker.round()
        await worker.spend("r1:1", claim(TEAM, 10), cost=10)
        await other.books.reserve("r2:1", [claim(TEAM, 600)])
        for _ in range(2):
            await worker.round()
        assert await standing(shared) == Standing(0, 10, 600, 0)

    async def test_it_is_given_back_when_others_have_spent_most(
        self, worker: Worker, shared: Shared, store: Store, clock: Clock
    ) -> None:
        other = Worker(shared, store, clock, "two", share=0)
        await other.round()
        await other.books.reserve("r:1", [claim(TEAM, 700)])
        await worker.round()
        assert await standing(shared) == Standing(0, 10, 700, 0)
        assert (await standing(shared, USER)).reserved_nano == 50

    async def test_a_request_that_needs_it_has_it_at_once(self, worker: Worker, shared: Shared) -> None:
        assert isinstance(await worker.books.reserve("r:1", [claim(TEAM, 990)]), Reserved)
        assert isinstance(await worker.books.reserve("r:2", [claim(TEAM, 1)]), TooLittle)
        await worker.round()
        assert await standing(shared) == Standing(0, 10, 990, 0)

    async def test_it_follows_the_limit(self, worker: Worker, shared: Shared) -> None:
        await worker.spend("r:1", claim(TEAM, 0, limit=2000), cost=0)
        await worker.round()
        assert (await standing(shared)).reserved_nano == 100

    async def test_a_worker_that_stops_gives_it_back(self, worker: Worker, shared: Shared) -> None:
        await worker.books.close()
        assert await standing(shared) == Standing(0, 10, 0, 0)

    async def test_with_a_share_of_nothing_nothing_is_drawn(self, shared: Shared, store: Store, clock: Clock) -> None:
        worker = Worker(shared, store, clock, share=0)
        await worker.round()
        await worker.spend("r:1", claim(TEAM, 10), cost=10)
        await worker.round()
        assert await standing(shared) == Standing(0, 10, 0, 0)

    async def test_one_of_which_it_is_not_known_whether_it_was_drawn_is_given_back(
        self, shared: Shared, store: Store, clock: Clock
    ) -> None:
        worker = Worker(shared, store, clock)
        await worker.round()
        await worker.spend("r:1", claim(TEAM, 10), cost=10)
        while await worker.books._move_some():
            pass
        reserve = worker.link.reserve

        async def unheard(lease: str, claims: Sequence[Claim], *, slack: int = 1) -> Reserved | TooLittle | Unopened:
            await reserve(lease, claims, slack=slack)
            raise StateAway("no answer")

        worker.link.reserve = unheard
        assert not await worker.round()
        assert (await standing(shared)).reserved_nano == 50
        worker.link.reserve = reserve
        await worker.round()
        assert await standing(shared) == Standing(0, 10, 50, 0)


class TestWhileItIsAway:
    async def test_the_allotment_can_be_spent_and_no_more(self, worker: Worker) -> None:
        worker.link.cut = True
        await worker.spend("r1:1", claim(TEAM, 30), cost=30)
        with pytest.raises(BudgetsUnavailable):
            await worker.books.reserve("r2:1", [claim(TEAM, 21)])
        await worker.spend("r3:1", claim(TEAM, 20), cost=20)

    async def test_what_was_reserved_and_not_needed_can_be_spent_again(self, worker: Worker) -> None:
        worker.link.cut = True
        await worker.spend("r1:1", claim(TEAM, 50), cost=10)
        await worker.spend("r2:1", claim(TEAM, 40), cost=0)
        await worker.books.reserve("r3:1", [claim(TEAM, 40)])
        await worker.books.release("r3:1")
        await worker.spend("r4:1", claim(TEAM, 40), cost=40)

    async def test_every_account_must_have_enough(self, worker: Worker) -> None:
        worker.link.cut = True
        await worker.spend("r1:1", claim(USER, 40), cost=40)
        with pytest.raises(BudgetsUnavailable):
            await worker.books.reserve("r2:1", [claim(TEAM, 11), claim(USER, 11)])
        with pytest.raises(BudgetsUnavailable):
            await worker.books.reserve("r3:1", [claim(TEAM, 1), claim(Account("unknown~c3", 0), 1)])
        await worker.spend("r4:1", claim(TEAM, 50), cost=50)

    async def test_the_least_that_will_do_is_taken(self, worker: Worker) -> None:
        worker.link.cut = True
        assert await worker.books.reserve("r:1", [claim(TEAM, 40, 30)]) == Reserved(1, ())
        await worker.spend("r2:1", claim(TEAM, 20), cost=20)

    async def test_a_bill_above_the_reservation_counts_too(self, worker: Worker) -> None:
        worker.link.cut = True
        await worker.spend("r1:1", claim(TEAM, 10), cost=60)
        with pytest.raises(BudgetsUnavailable):
            await worker.books.reserve("r2:1", [claim(TEAM, 1)])

    async def test_an_attempt_that_was_reserved_before_is_sent_on_the_allotment(
        self, worker: Worker, shared: Shared, clock: Clock
    ) -> None:
        """Not known to be sent, it may run out, and somebody else be given the money."""
        await worker.books.reserve("r1:1", [claim(TEAM, 30)])
        await worker.books.reserve("r2:1", [claim(TEAM, 30)])
        worker.link.cut = True
        assert await worker.books.sent("r1:1")
        assert not await worker.books.sent("r2:1")
        clock.advance(61)
        await shared.reap()
        assert await standing(shared) == Standing(0, 60, 0, 0)
        worker.link.cut = False
        assert await worker.round()
        assert await standing(shared) == Standing(0, 10, 30, 0)


class TestWhenItIsBack:
    async def test_it_is_told_what_was_spent_and_a_new_allotment_drawn(self, worker: Worker, shared: Shared) -> None:
        worker.link.cut = True
        await worker.spend("r:1", claim(TEAM, 30), cost=20)
        worker.link.cut = False
        await worker.round()
        assert await standing(shared) == Standing(0, 30, 50, 0)
        worker.link.cut = True
        await worker.spend("r2:1", claim(TEAM, 50), cost=50)

    async def test_attempts_under_way_are_put_in_as_they_are(
        self, worker: Worker, shared: Shared, clock: Clock
    ) -> None:
        worker.link.cut = True
        await worker.books.reserve("open:1", [claim(TEAM, 10)])
        await worker.books.reserve("sent:1", [claim(TEAM, 30)])
        assert await worker.books.sent("sent:1")
        worker.link.cut = False
        await worker.round()
        assert await standing(shared) == Standing(0, 10, 90, 0)
        clock.advance(61)
        presumed = {lease.id for lease in await shared.reap()}
        assert "sent:1" in presumed
        assert "open:1" not in presumed
        worker.books.settle("sent:1", 5)
        await worker.round()
        assert (await standing(shared)).spent_nano == 15 + 0

    async def test_never_is_less_counted_than_was_spent(self, worker: Worker, shared: Shared) -> None:
        """Whichever call is the last that arrives."""
        for last in range(12):
            worker.link.cut = True
            await worker.spend(f"r{last}:1", claim(TEAM, 10), cost=10)
            worker.link.cut, worker.link.cut_after = False, last
            await worker.round()
            has = await standing(shared)
            assert has.spent_nano + has.reserved_nano >= 10 + (last + 1) * 10
            worker.link.cut, worker.link.cut_after = False, None
            await worker.round()
            assert await standing(shared) == Standing(0, 10 + (last + 1) * 10, 50, 0)

    async def test_what_the_store_has_meanwhile_counts_once(self, worker: Worker, shared: Shared, store: Store) -> None:
        worker.link.cut = True
        await worker.spend("r:1", claim(TEAM, 30), cost=20)
        worker.books.written(["r:1", "before:1"], store.write([TEAM.key], 30))
        worker.link.cut = False
        await worker.round()
        assert await standing(shared) == Standing(30, 0, 50, 0)

    async def test_a_state_that_was_lost_gets_the_allotments_too(
        self, worker: Worker, shared: Shared, store: Store
    ) -> None:
        worker.link.cut = True
        await worker.spend("r:1", claim(TEAM, 30), cost=20)
        shared.lose()
        worker.link.cut = False
        store.write([TEAM.key, USER.key], 10)
        worker.books.written(["before:1"], [])
        await worker.books._know()
        assert shared._accounts[TEAM.key].standing() == Standing(0, 20, 50, 0)
        await worker.round()
        await worker.spend("r2:1", claim(TEAM, 0), cost=0)
        await worker.round()
        assert await standing(shared) == Standing(10, 20, 50, 0)

    async def test_a_worker_that_stops_meanwhile_tells_it_all(self, worker: Worker, shared: Shared) -> None:
        worker.link.cut = True
        await worker.spend("r1:1", claim(TEAM, 30), cost=20)
        await worker.books.reserve("r2:1", [claim(TEAM, 10)])
        assert await worker.books.sent("r2:1")
        worker.link.cut = False
        await worker.books.close()
        assert await standing(shared) == Standing(0, 30, 10, 0)

    async def test_where_all_is_refused_an_attempt_is_not_sent_unknown(
        self, shared: Shared, store: Store, clock: Clock
    ) -> None:
        link = Link(shared)
        books = Books(link, store, "one", on_outage=OutageMode.DENY, clock=clock)
        store.workers.append("one")
        await books.look()
        await books.reserve("r:1", [claim(TEAM, 60)])
        link.cut = True
        assert not await books.sent("r:1")
        link.cut = False
        await books.look()
        assert await books._move_some()
        assert await standing(shared) == Standing()

    async def test_where_all_is_allowed_an_attempt_that_was_sent_is_made_known(
        self, shared: Shared, store: Store, clock: Clock
    ) -> None:
        link = Link(shared)
        books = Books(link, store, "one", on_outage=OutageMode.ALLOW, clock=clock)
        store.workers.append("one")
        await books.look()
        await books.reserve("r:1", [claim(TEAM, 60)])
        link.cut = True
        assert await books.sent("r:1")
        link.cut = False
        await books.look()
        clock.advance(61)
        assert [lease.id for lease in await shared.reap()] == ["r:1"]


# -- anything in any order ---------------------------------------------------------------------------------------------


@dataclass
class Attempt:
    """One attempt, as the provider's bill has it."""

    worker: Worker
    amounts: dict[str, int]
    state: LeaseState = LeaseState.OPEN
    cost: int = 0
    written: bool = False


class Machine:
    """Three workers on one state that comes and goes for each of them, is lost, and survives workers that do not.

    What counts is the truth, which no worker and no state knows: what attempts that are over have cost, what those that
    were sent may cost at most, and what may still be spent without asking anybody.
    """

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.clock = Clock()
        self.shared = Shared(self.clock)
        self.store = Store(deliver_the_dead=self.deliver_the_dead)
        self.accounts = [Account(f"budget{number}~a1", 0) for number in range(3)]
        self.limits = {account.key: self.chance.choice((150, 300, 1500)) for account in self.accounts}
        self.count = 0
        self.workers: list[Worker] = []
        self.attempts: dict[str, Attempt] = {}
        self.dead: list[Worker] = []
        self.paid_unseen = 0

    async def run(self, steps: int) -> None:
        for _ in range(3):
            self.hire()
        for _ in range(2):
            await self.look_all()
        often = (self.reserve, self.reserve, self.reserve, self.send, self.send, self.settle, self.settle, self.look)
        now_and_then = (self.write, self.release, self.cut, self.mend, self.mend, self.look_all, self.outage)
        seldom = (self.deafen, self.time, self.crash, self.stop, self.lose)
        operations = (*often * 4, *now_and_then * 2, *seldom)
        for _ in range(steps):
            await self.chance.choice(operations)()
            await self.check()
        await self.finish()

    def hire(self) -> None:
        self.count += 1
        share = self.chance.choice((0.05, 0.1))
        self.workers.append(Worker(self.shared, self.store, self.clock, f"worker{self.count}", share))

    async def look_all(self) -> None:
        for worker in self.workers:
            await worker.round()

    async def look(self) -> None:
        await self.chance.choice(self.workers).round()

    async def reserve(self, worker: Worker | None = None) -> None:
        self.count += 1
        name, worker = f"request{self.count}:1", worker or self.chance.choice(self.workers)
        chosen = self.chance.sample(self.accounts, self.chance.randrange(1, 3))
        most = self.chance.randrange(0, 20)
        levels = (most,) if self.chance.random() < 0.5 else (most, most // 2)
        claims = [Claim(account, self.limits[account.key], levels) for account in chosen]
        try:
            outcome = await worker.books.reserve(name, claims, slack=self.chance.choice((1, 8)))
        except BudgetsUnavailable:
            assert worker.link.cut or worker.link.deaf or not worker.books._known.is_set() or worker.books._away_since
            return
        if isinstance(outcome, Reserved):
            self.paid_unseen += not outcome.standings
            self.attempts[name] = Attempt(worker, {c.account.key: c.amounts[outcome.level] for c in claims})

    async def send(self) -> None:
        for name, attempt in self.some(LeaseState.OPEN):
            if await attempt.worker.books.sent(name):
                attempt.state = LeaseState.SENT
            else:
                del self.attempts[name]

    async def settle(self) -> None:
        for name, attempt in self.some(LeaseState.SENT):
            attempt.cost = self.chance.randrange(0, min(attempt.amounts.values()) + 1)
            attempt.state = LeaseState.SETTLED
            attempt.worker.books.settle(name, attempt.cost)

    async def release(self) -> None:
        for name, attempt in self.some(LeaseState.OPEN):
            del self.attempts[name]
            await attempt.worker.books.release(name)

    async def write(self) -> None:
        if self.shared._whole:
            for worker in self.workers:
                self.deliver(worker, worker)

    def deliver(self, of: Worker, by: Worker) -> None:
        """The journal of one worker gets into the store, by itself or by another."""
        for name, attempt in self.attempts.items():
            if attempt.worker is of and attempt.state is LeaseState.SETTLED and not attempt.written:
                attempt.written = True
                by.books.written([name], self.store.write(list(attempt.amounts), attempt.cost))

    async def told(self, *workers: Worker) -> None:
        """The state has the store's word, however the workers that wrote are cut off now."""
        for worker in workers:
            balances, written = list(worker.books._balances.values()), list(worker.books._written)
            await self.shared.put(balances, {}, written)
            worker.books._balances.clear()
            worker.books._written.clear()

    async def deliver_the_dead(self) -> None:
        for worker in self.dead:
            self.deliver(worker, self.workers[0])
        self.dead.clear()
        await self.told(*self.workers)

    async def cut(self) -> None:
        self.chance.choice(self.workers).link.cut = True

    async def outage(self) -> None:
        """Requests go on at a worker that is cut off, and then is not, for a few calls."""
        worker = self.chance.choice(self.workers)
        worker.link.cut = True
        for _ in range(4):
            await self.reserve(worker)
            await self.send()
            await self.check()
        await self.settle()
        worker.link.cut, worker.link.cut_after = False, self.chance.randrange(12)
        await worker.round()

    async def deafen(self) -> None:
        self.chance.choice(self.workers).link.deaf = True

    async def mend(self) -> None:
        """Whoever was cut off may be so again before all is made up for."""
        link = self.chance.choice(self.workers).link
        link.cut = link.deaf = False
        link.cut_after = self.chance.choice((None, self.chance.randrange(12)))

    async def time(self) -> None:
        """Some pass; who is not cut off renews in time, the leases of the others run out."""
        for _ in range(self.chance.randrange(1, 8)):
            self.clock.advance(14)
            await self.look_all()
            await self.shared.reap()

    async def crash(self) -> None:
        """What was sent is billed, and its worker's journal found by another, sooner or later."""
        worker = self.workers.pop(self.chance.randrange(3))
        self.store.workers.remove(worker.name)
        for name, attempt in list(self.attempts.items()):
            if attempt.worker is worker and attempt.state is LeaseState.SENT:
                attempt.cost, attempt.state = min(attempt.amounts.values()), LeaseState.SETTLED
            elif attempt.worker is worker and attempt.state is LeaseState.OPEN:
                del self.attempts[name]
        self.dead.append(worker)
        await self.told(worker)
        self.hire()

    async def stop(self) -> None:
        worker = self.workers.pop(self.chance.randrange(3))
        for name, attempt in list(self.attempts.items()):
            if attempt.worker is worker and attempt.state is LeaseState.SENT:
                attempt.cost, attempt.state = min(attempt.amounts.values()), LeaseState.SETTLED
                worker.books.settle(name, attempt.cost)
            elif attempt.worker is worker and attempt.state is LeaseState.OPEN:
                del self.attempts[name]
        self.deliver(worker, worker)
        await worker.books.close()
        await self.told(worker)
        self.store.workers.remove(worker.name)
        self.hire()

    async def lose(self) -> None:
        await self.deliver_the_dead()
        self.shared.lose()

    def truth(self) -> dict[str, int]:
        spent: dict[str, int] = defaultdict(int)
        for name, attempt in self.attempts.items():
            for key, amount in attempt.amounts.items():
                if attempt.state is LeaseState.SENT:
                    spent[key] += amount
                elif attempt.state is LeaseState.SETTLED:
                    spent[key] += attempt.cost
                elif name in attempt.worker.books._unsure:
                    spent[key] += amount
        for worker in self.workers:
            for key, allotment in worker.books._allotments._open.items():
                spent[key] += allotment.left_nano
        return spent

    async def check(self) -> None:
        spent = self.truth()
        for key, limit in self.limits.items():
            assert spent[key] <= limit, f"{key}: {spent[key]} of {limit} is spent"
        if self.shared._whole:
            for key, has in (await self.shared.standings(list(self.limits))).items():
                counted = has.spent_nano + has.reserved_nano
                assert counted >= spent[key], f"{key}: {counted} counted of {spent[key]}"

    async def finish(self) -> None:
        """Everybody is back, and everything comes to its end."""
        for worker in self.workers:
            worker.link.cut, worker.link.deaf, worker.link.cut_after = False, False, None
        for name, attempt in list(self.attempts.items()):
            if attempt.state is LeaseState.SENT:
                attempt.state = LeaseState.SETTLED
                attempt.worker.books.settle(name, 0)
            elif attempt.state is LeaseState.OPEN:
                del self.attempts[name]
                attempt.worker.books.settle(name, 0)
        for _ in range(3):
            await self.look_all()
            await self.check()
        await self.deliver_the_dead()
        for worker in [*self.workers]:
            self.deliver(worker, worker)
            await worker.books.close()
        self.clock.advance(61)
        await self.shared.reap()
        # The dead have left allotments, and attempts that are said to be sent and were not: both count as spent.
        for name, lease in list(self.shared._leases.items()):
            assert name not in self.attempts
            assert not any(drawn_by(name) == worker.name for worker in self.workers)
            await self.shared.settle(name, list(lease.amounts), 0)
        spent = self.truth()
        for key, has in (await self.shared.standings(list(self.limits))).items():
            assert has == Standing(spent[key], 0, 0, 0)

    def some(self, state: LeaseState) -> list[tuple[str, Attempt]]:
        fitting = [(name, attempt) for name, attempt in self.attempts.items() if attempt.state is state]
        fitting = [(name, attempt) for name, attempt in fitting if attempt.worker in self.workers]
        return self.chance.sample(fitting, min(2, len(fitting)))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
async def test_no_outage_return_or_crash_makes_workers_spend_more_than_there_is(
    part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.budgets.books._PATIENCE", 0)
    paid_unseen = 0
    for seed in range(part, SEEDS, 10):
        machine = Machine(seed)
        try:
            await machine.run(80)
        except AssertionError as error:
            raise AssertionError(f"interleaving {seed}: {error}") from error
        paid_unseen += machine.paid_unseen
    assert paid_unseen > SEEDS / 40, "hardly anything was paid during outages"
