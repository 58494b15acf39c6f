"""The page on budgets shows what happens: its month is lived through, its refusal is the one that clients get."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from core.alerts import Alert
from core.budgets import Account, Balance, Catalog, Charge
from core.budgets.books import Books
from core.budgets.opening import Opening
from core.money import nano_dollars
from core.settings import load
from core.settings.models.alerts import AlertEvent
from core.state.memory import MemoryReservations
from core.state.reservations import Claim, Reserved, Standing, TooLittle
from core.store import Adjustment, AdjustmentKind, Store, open_store
from core.usage import Attempt, UsageEvent
from plugins.budgets.notices import BudgetNotices
from plugins.budgets.refusals import exceeded
from tests.support.clock import Clock
from tests.support.transcript import blocks

PAGE = Path(__file__).resolve().parents[2] / "docs" / "budgets.md"
BERLIN = ZoneInfo("Europe/Berlin")
MONTH = next(block for block in blocks(PAGE, "yaml") if "rollover" in block)


def rows() -> list[list[str]]:
    """The cells of the table of the month."""
    table = PAGE.read_text().partition("| in Berlin |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def moment_of(text: str) -> float:
    return datetime.strptime(f"2026 {text}", "%Y %d %B, %H:%M").replace(tzinfo=BERLIN).timestamp()


def money(text: str) -> int:
    """The last amount in a text."""
    return nano_dollars(re.findall(r"\$([\d.]+)", text)[-1])


class Month:
    """One budget with everything that is behind it, and a clock."""

    def __init__(self, store: Store, catalog: Catalog, clock: Clock) -> None:
        self.store, self.catalog, self.clock = store, catalog, clock
        state = MemoryReservations(lease_seconds=1e9, clock=clock)
        self.opening = Opening(store.budgets, state.standings, state.put, clock)
        self.opening.catalog = catalog
        self.books = Books(state, self, "here", clock=clock)
        self.alerts: list[Alert] = []
        self.notices = BudgetNotices(self.alerts.append)
        self.numbers = itertools.count(1)
        self.open: tuple[str, Charge, int] | None = None

    # -- what the books ask for

    async def balances(self, accounts: Sequence[Account]) -> Sequence[Balance]:
        return await self.opening.balances(accounts)

    async def flush(self) -> bool:
        return True

    async def living(self) -> Sequence[str]:
        return ["here"]

    # -- what happens

    def charge(self) -> Charge:
        (terms,) = self.catalog
        account = terms.account("", int(self.clock() * 1000))
        return Charge(terms, account, terms.limit_nano(""))

    async def arrive(self, amount: int) -> Reserved | TooLittle:
        charge, lease = self.charge(), f"request-{next(self.numbers)}:1"
        outcome = await self.books.reserve(lease, [Claim(charge.account, charge.limit_nano, (amount,))])
        if isinstance(outcome, Reserved):
            assert await self.books.sent(lease)
            self.open = (lease, charge, amount)
        return outcome

    async def end(self, cost: int | None) -> None:
        """The request is over; with None, nobody says what it used."""
        assert self.open is not None
        lease, charge, reserved = self.open
        cost = reserved if cost is None else cost
        self.books.settle(lease, cost)
        attempt = Attempt(1, "large", cost_nano=cost, accounts=(charge.account.key,))
        event = UsageEvent(lease.removesuffix(":1"), int(self.clock() * 1000), "chat", 200, attempts=[attempt])
        written = await self.store.usage.write([event])
        self.notices.spent(self.catalog, written.balances, int(self.clock() * 1000))
        self.books.written([lease], written.balances)
        for _ in range(10):
            await asyncio.sleep(0)
        self.open = None

    async def grant(self, amount: int) -> None:
        account = self.charge().account
        grant = Adjustment("g", account, AdjustmentKind.GRANT, int(self.clock() * 1000), "ada", "", amount)
        await self.books.told(account, await self.store.budgets.adjust(grant))

    async def standing(self) -> Standing:
        account = self.charge().account
        return (await self.books.standings([account]))[account.key]

    def told(self) -> str:
        """The alerts since the last look, as the page writes them."""
        names = [
            f"{round(float(one.dedupe_key.rpartition('|')[2]) * 100)} %"
            if one.event is AlertEvent.BUDGET_THRESHOLD
            else one.event.value.removeprefix("budget_")
            for one in self.alerts
        ]
        self.alerts.clear()
        return ", ".join(names)


@pytest.fixture
async def month(tmp_path: Path, clock: Clock) -> AsyncIterator[Month]:
    file = tmp_path / "config.yaml"
    file.write_text(MONTH)
    clock.now = moment_of("1 March, 00:00")
    store = open_store(f"sqlite+aiosqlite:///{tmp_path}/store.db", clock)
    await store.upgrade()
    month = Month(store, Catalog(load(file, {}).settings.budgets), clock)
    task = asyncio.create_task(month.books.run())
    yield month
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await month.books.close()
    await store.close()


async def test_the_month_goes_as_the_page_says(month: Month) -> None:
    lines = rows()
    assert len(lines) == 16
    for when, what, spent, reserved, left, alerts in lines:
        month.clock.now = moment_of(when)
        await month.opening.look_after()
        if "is refused" in what:
            assert isinstance(await month.arrive(money(what)), TooLittle)
        elif "may cost" in what:
            assert isinstance(await month.arrive(money(what)), Reserved), what
        elif "is answered and cost" in what:
            await month.end(money(what))
        elif "never says" in what:
            await month.end(None)
        elif "many requests cost" in what:
            assert isinstance(await month.arrive(money(what)), Reserved)
            await month.end(money(what))
        elif "grants" in what:
            await month.grant(money(what))
        else:
            assert "begins" in what
        has = await month.standing()
        stands = (has.spent_nano, has.reserved_nano, has.left_of(month.charge().limit_nano))
        assert stands == (money(spent), money(reserved), money(left)), f"{when}: {what}"
        assert month.told() == alerts, f"{when}: {what}"


async def test_the_refusal_of_the_page_is_the_one_that_clients_get(month: Month) -> None:
    month.clock.now = moment_of("20 March, 15:01")
    await month.arrive(nano_dollars("99.5"))
    await month.end(None)
    outcome = await month.arrive(nano_dollars(1))
    assert isinstance(outcome, TooLittle)
    refusal = exceeded(month.charge(), outcome.standings[0], nano_dollars(1), int(month.clock() * 1000))
    (shown,) = blocks(PAGE, "json")
    assert {"error": refusal.body()} == json.loads(shown)
    assert refusal.headers["x-should-retry"] == "false"
