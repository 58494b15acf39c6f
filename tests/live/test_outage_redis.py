"""A real Redis that goes away for a while, and what two workers let through meanwhile, by the provider's bill."""

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from core.budgets import Account, Balance
from core.budgets.books import Books
from core.errors import BudgetsUnavailable
from core.journal import Journal
from core.ledger import Ledger
from core.settings.models import OutageMode
from core.state.redis import RedisReservations
from core.state.reservations import Claim, Reserved, Standing
from core.store import Store, open_store
from core.usage import Attempt, UsageEvent
from tests.support.eventually import eventually
from tests.support.redis import RedisServer

if TYPE_CHECKING:
    from multiprocessing.connection import Connection as PipeConnection

pytestmark = pytest.mark.live

TEAM = Account("team~a1", 1_800_000_000_000, "", 1_800_086_400_000)
LIMIT = 100_000
SHARE = 0.05
ALLOTMENT = 5_000
MOST, COST = 400, 300
"""What a request may cost and what it does."""
AT_ONCE = 8


class Wire:
    """Between a worker and Redis. Cut, it takes what comes and passes nothing on, as a broken network does."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._cut = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"

    def cut(self) -> None:
        self._cut = True

    def mend(self) -> None:
        """Connections that lost something end."""
        self._cut = False
        for writer in self._writers:
            writer.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers |= {writer, back}
        try:
            await asyncio.gather(self._pass_on(reader, back), self._pass_on(there, writer))
        finally:
            self._writers -= {writer, back}
            writer.close()
            back.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while words := await reader.read(1 << 16):
                if not self._cut:
                    writer.write(words)
                    await writer.drain()
        writer.close()

    async def __aenter__(self) -> "Wire":
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.mend()


@dataclass
class Around:
    """The real store, and two workers that live."""

    store: Store
    workers: list[str] = field(default_factory=list)

    async def balances(self, accounts: Sequence[Account]) -> Sequence[Balance]:
        return list((await self.store.budgets.balances(accounts)).values())

    async def flush(self) -> bool:
        return True

    async def living(self) -> Sequence[str]:
        return list(self.workers)


@dataclass
class Bill:
    """What the provider saw, whatever the books say."""

    leases: dict[str, int] = field(default_factory=dict)
    refused: int = 0
    unavailable: int = 0

    @property
    def total(self) -> int:
        return sum(self.leases.values())

    def events(self) -> list[UsageEvent]:
        return [
            UsageEvent(
                lease.removesuffix(":1"),
                1_800_000_001_000,
                "chat_completions",
                200,
                cost_nano=cost,
                attempts=[Attempt(1, "large", cost_nano=cost, accounts=(TEAM.key,))],
            )
            for lease, cost in self.leases.items()
        ]


class Worker:
    def __init__(self, name: str, books: Books, around: Around) -> None:
        self.name = name
        self.books = books
        self._around = around
        self._count = 0
        self._task = asyncio.create_task(books.run())

    async def request(self, bill: Bill) -> None:
        """Two levels, as where a client sets no limit."""
        self._count += 1
        lease = f"{self.name}-{self._count}:1"
        try:
            outcome = await self.books.reserve(lease, [Claim(TEAM, LIMIT, (20 * MOST, MOST))], slack=256)
        except BudgetsUnavailable:
            bill.unavailable += 1
            return
        if not isinstance(outcome, Reserved) or not await self.books.sent(lease):
            bill.refused += 1
            return
        bill.leases[lease] = COST
        await asyncio.sleep(0)
        self.books.settle(lease, COST)

    async def requests(self, count: int) -> Bill:
        """This many, some at once."""
        bill = Bill()
        for _ in range(count // AT_ONCE):
            await asyncio.gather(*(self.request(bill) for _ in range(AT_ONCE)))
        return bill

    async def write(self, *bills: Bill) -> None:
        """The usage events get into the store."""
        for bill in bills:
            if events := bill.events():
                balances = (await self._around.store.usage.write(events)).balances
                self.books.written(list(bill.leases), balances)

    async def die(self) -> None:
        """As a killed process: nothing is given back."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        if self.name in self._around.workers:
            self._around.workers.remove(self.name)

    async def stop(self) -> None:
        await self.die()
        await self.books.close()

    async def standing(self) -> Standing:
        return (await self.books.standings([TEAM]))[TEAM.key]


Hire = Callable[..., Awaitable[Worker]]


@pytest.fixture
async def around(tmp_path: Path) -> AsyncIterator[Around]:
    store = open_store(f"sqlite+aiosqlite:///{tmp_path}/store.db")
    await store.upgrade()
    yield Around(store)
    await store.close()


@pytest.fixture
async def hire(around: Around) -> AsyncIterator[Hire]:
    hired: list[Worker] = []

    async def begin(name: str, url: str, mode: OutageMode, lease_seconds: float = 60.0) -> Worker:
        around.workers.append(name)
        state = RedisReservations(url, lease_seconds=lease_seconds, patience=0.4)
        books = Books(state, around, name, on_outage=mode, allotment=SHARE, lease_seconds=lease_seconds)
        hired.append(Worker(name, books, around))
        return hired[-1]

    async with AsyncExitStack() as stack:
        yield begin
        for worker in hired:
            stack.push_async_callback(worker.stop)


@asynccontextmanager
async def stopped(server: RedisServer) -> AsyncIterator[None]:
    await asyncio.to_thread(server.stop)
    yield
    await asyncio.to_thread(server.start)


@asynccontextmanager
async def frozen(server: RedisServer) -> AsyncIterator[None]:
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


OUTAGES = {
    "stopped, and what it held is lost": (False, stopped),
    "stopped, and what it held is on its disk": (True, stopped),
    "frozen": (False, frozen),
}


async def drawn(worker: Worker, amount: int) -> None:
    async def there() -> bool:
        return (await worker.standing()).reserved_nano == amount

    await eventually(there, what=f"{amount} being reserved")


@pytest.mark.parametrize("outage", OUTAGES)
@pytest.mark.parametrize("mode", OutageMode)
async def test_redis_is_away_for_a_while(mode: OutageMode, outage: str, hire: Hire) -> None:
    durable, away = OUTAGES[outage]
    with RedisServer(durable=durable) as server:
        workers = [await hire(name, server.url, mode) for name in ("one", "two")]
        before = await asyncio.gather(*(worker.requests(AT_ONCE) for worker in workers))
        assert sum(bill.total for bill in before) == 2 * AT_ONCE * COST
        if mode is OutageMode.LOCAL:
            await drawn(workers[0], 2 * ALLOTMENT)

        async with away(server):
            during = [Bill(), Bill()]
            for _ in range(4):
                bills = await asyncio.gather(*(worker.requests(2 * AT_ONCE) for worker in workers))
                for bill, more in zip(during, bills, strict=True):
                    bill.leases |= more.leases
                    bill.unavailable += more.unavailable
                    bill.refused += more.refused
                await eventually(lambda: all(worker.books.trouble for worker in workers))
        tried = 2 * 4 * 2 * AT_ONCE
        assert sum(len(bill.leases) + bill.unavailable + bill.refused for bill in during) == tried
        spent = [bill.total for bill in during]
        if mode is OutageMode.DENY:
            assert spent == [0, 0]
        elif mode is OutageMode.LOCAL:
            assert all(ALLOTMENT - MOST < one <= ALLOTMENT for one in spent)
        else:
            assert sum(spent) == tried * COST

        async def again() -> bool:
            bill = Bill()
            await asyncio.gather(*(worker.request(bill) for worker in workers))
            after.leases.update(bill.leases)
            return len(bill.leases) == 2

        after = Bill()
        await eventually(again, within=30, what="both workers reserving again")
        total = sum(bill.total for bill in (*before, *during, after))

        async def counted() -> bool:
            standing = await workers[0].standing()
            return standing.spent_nano == total

        await eventually(counted, what="what was spent being counted")
        for worker in workers:
            ours = Bill({lease: cost for lease, cost in after.leases.items() if lease.startswith(worker.name)})
            await worker.write(before[workers.index(worker)], during[workers.index(worker)], ours)
        held = 2 * ALLOTMENT if mode is OutageMode.LOCAL else 0

        async def told() -> bool:
            return await workers[0].standing() == Standing(total, 0, held, 0)

        await eventually(told, what="the store's word being there, and allotments drawn anew")
        await workers[1].stop()
        assert await workers[0].standing() == Standing(total, 0, held // 2, 0)


async def test_one_worker_is_cut_off_and_the_other_has_all_the_rest(hire: Hire) -> None:
    with RedisServer() as server:
        async with Wire(server.port) as wire:
            alone = await hire("one", wire.url, OutageMode.LOCAL, lease_seconds=1)
            other = await hire("two", server.url, OutageMode.LOCAL, lease_seconds=1)
            bills = [await alone.requests(AT_ONCE), await other.requests(AT_ONCE)]
            await drawn(other, 2 * ALLOTMENT)
            wire.cut()
            bills.append(await alone.requests(4 * AT_ONCE))
            assert ALLOTMENT - MOST < bills[-1].total <= ALLOTMENT

            async def presumed() -> bool:
                return (await other.standing()).spent_nano >= 2 * AT_ONCE * COST + ALLOTMENT

            await eventually(presumed, what="the allotment of the one that is cut off counting as spent")
            bills.append(await other.requests(LIMIT // COST))
            assert bills[-1].refused
            total = sum(bill.total for bill in bills)
            assert total <= LIMIT
            wire.mend()

            async def known() -> bool:
                return await other.standing() == Standing(0, total, 0, 0)

            await eventually(known, within=20, what="what was spent being known")
            bills.append(await alone.requests(4 * AT_ONCE))
            total = sum(bill.total for bill in bills)
            assert LIMIT - AT_ONCE * MOST < total <= LIMIT


async def test_a_worker_that_dies_while_it_is_cut_off_has_spent_its_allotment(hire: Hire) -> None:
    with RedisServer() as server:
        async with Wire(server.port) as wire:
            dead = await hire("one", wire.url, OutageMode.LOCAL, lease_seconds=1)
            other = await hire("two", server.url, OutageMode.LOCAL, lease_seconds=1)
            bills = [await dead.requests(AT_ONCE), await other.requests(AT_ONCE)]
            await drawn(other, 2 * ALLOTMENT)
            wire.cut()
            bills.append(await dead.requests(AT_ONCE))
            assert bills[-1].total == AT_ONCE * COST
            await dead.die()

            async def presumed() -> bool:
                return (await other.standing()).spent_nano == 2 * AT_ONCE * COST + ALLOTMENT

            await eventually(presumed, what="its allotment counting as spent")
            bills.append(await other.requests(LIMIT // COST))
            assert LIMIT - ALLOTMENT - MOST < sum(bill.total for bill in bills) <= LIMIT


def doomed(url: str, folder: Path, wire: "PipeConnection[str | list[int], str]") -> None:
    """The process of a worker that spends some of its allotment while Redis is away, and waits to be killed."""

    async def work() -> None:
        store = open_store(f"sqlite+aiosqlite:///{folder}/store.db")
        journal = Journal(folder / "journal", "doomed")
        state = RedisReservations(url, lease_seconds=1, patience=0.4)
        books = Books(state, Around(store), "doomed", on_outage=OutageMode.LOCAL, allotment=SHARE, lease_seconds=1)
        worker = Worker("doomed", books, Around(store))
        before = await worker.requests(AT_ONCE)
        await drawn(worker, 2 * ALLOTMENT)
        wire.send("drawn")
        assert await asyncio.to_thread(wire.recv) == "Redis is away"
        during = await worker.requests(AT_ONCE)
        for event in (*before.events(), *during.events()):
            journal.append(event)
        wire.send([before.total, during.total])
        await asyncio.Event().wait()

    asyncio.run(work())


async def test_what_a_killed_worker_did_not_spend_of_its_allotment_is_there_for_others(
    hire: Hire, around: Around, tmp_path: Path
) -> None:
    with RedisServer() as server:
        other = await hire("other", server.url, OutageMode.LOCAL, lease_seconds=1)
        ours = await other.requests(AT_ONCE)
        await drawn(other, ALLOTMENT)
        wire, its_end = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=doomed, args=(server.url, tmp_path, its_end))
        process.start()
        try:
            assert await asyncio.to_thread(wire.recv) == "drawn"
            async with frozen(server):
                wire.send("Redis is away")
                before, during = await asyncio.to_thread(wire.recv)
                assert during == AT_ONCE * COST
        finally:
            process.kill()
            process.join()
        known = ours.total + before

        async def presumed() -> bool:
            return await other.standing() == Standing(0, known + ALLOTMENT, ALLOTMENT, 0)

        await eventually(presumed, what="its allotment counting as spent")
        present = around.store.usage.present
        assert await other.books.reconcile("z", present, ()) == 0
        assert await presumed()
        journal = Journal(tmp_path / "journal", "other")
        ledger = Ledger(
            journal,
            around.store.usage,
            on_written=lambda events, balances: other.books.written(
                [f"{event.request_id}:1" for event in events], balances
            ),
        )
        ledger.start()
        assert await ledger.catch_up()
        assert await other.books.reconcile("z", present, ledger.ended) == 1

        async def known_in_full() -> bool:
            return await other.standing() == Standing(before + during, ours.total, ALLOTMENT, 0)

        await eventually(known_in_full, what="what it spent being counted, and no more")
        await ledger.stop()
        journal.close()
