"""What both databases must do alike with budgets: on SQLite in the unit tests, and on PostgreSQL in the live ones."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine

import pytest

from core.budgets import Account, Balance, Coverage
from core.budgets.coverage import Per
from core.errors import StoreError
from core.journal import Amendment
from core.store import Adjustment, AdjustmentKind, RecordRefused, Store
from core.usage import Attempt, UsageEvent

START = 1_800_000_000_000
TEAM = Account("team~1a", START, end_ms=START + 1_000_000)
ADA = Account("each~2b", START, "ada")
EVE = Account("each~2b", START, "eve|a")


def charged(number: int, *attempts: tuple[int, tuple[Account, ...]], **fields: object) -> UsageEvent:
    """An event with attempts: what each cost, and the accounts it is charged to."""
    tries = [
        Attempt(place, "large", cost_nano=cost, usage="unknown", accounts=tuple(account.key for account in accounts))
        for place, (cost, accounts) in enumerate(attempts, 1)
    ]
    total = sum(attempt.cost_nano for attempt in tries)
    return UsageEvent(  # type: ignore[arg-type]
        *(f"request-{number}", START + number, "/v1/chat/completions", 200),
        **{"cost_nano": total, "unknown_nano": total, "usage": "unknown", "attempts": tries, **fields},
    )


def old(number: int, cost: int, model: str = "large", **fields: object) -> UsageEvent:
    """An event from before the budget."""
    attempts = [Attempt(1, model, cost_nano=cost)]
    return UsageEvent(f"old-{number}", START + number, "/v1/chat/completions", 200, attempts=attempts, **fields)  # type: ignore[arg-type]


async def spent(store: Store, *accounts: Account) -> list[int]:
    balances = await store.budgets.balances(accounts)
    return [balances[account.key].spent_nano for account in accounts]


async def an_attempt_comes_back_with_its_accounts_and_its_reservation(store: Store) -> None:
    event = charged(1, (5, (TEAM, ADA)), (7, ()))
    event.attempts[0].reserved_nano = 900
    await store.usage.write([event])
    assert await store.usage.get("request-1") == event


async def every_account_of_an_attempt_is_charged_once(store: Store) -> None:
    events = [charged(1, (5, (TEAM, ADA)), (7, (TEAM,))), charged(2, (11, (TEAM, EVE))), charged(3, (13, ()))]
    written = await store.usage.write(events)
    assert set(written.balances) == {Balance(TEAM.key, 23, 0, 1), Balance(ADA.key, 5, 0, 1), Balance(EVE.key, 11, 0, 1)}
    again = await store.usage.write([*events, charged(4, (100, (TEAM,)))])
    assert (again.inserted, await spent(store, TEAM, ADA, EVE)) == (1, [123, 5, 11])
    # The balances of what was there already are told as well: whoever waits for them may have missed them.
    assert {balance.key: balance.spent_nano for balance in again.balances} == {TEAM.key: 123, ADA.key: 5, EVE.key: 11}
    assert (await store.usage.write(events)).inserted == 0
    assert await spent(store, TEAM, ADA, EVE) == [123, 5, 11]


async def a_copy_of_an_event_that_is_there_changes_nothing(store: Store) -> None:
    await store.usage.write([charged(1, (5, (TEAM,)))])
    await store.usage.write([charged(1, (50, (TEAM,)), (7, (ADA,)))])
    assert await spent(store, TEAM, ADA) == [5, 0]
    event = await store.usage.get("request-1")
    assert event is not None and len(event.attempts) == 1


async def an_attempt_that_cost_nothing_makes_no_row(store: Store) -> None:
    written = await store.usage.write([charged(1, (0, (TEAM,)))])
    assert written.balances == (Balance(TEAM.key),)
    assert (await store.budgets.spend(TEAM.budget, START)).balances == ()


async def an_amendment_moves_the_accounts_by_the_difference_in_any_order(store: Store) -> None:
    for number, order in enumerate(("together", "after", "before", "replayed", "twice")):
        account = Account(f"{order}~1", START)
        event = charged(number, (900, (account, TEAM)), (50, (account,)))
        better = Amendment(event.request_id, attempt=1, usage="reported", cost_nano=300)
        if order == "together":
            await store.usage.write([event], [better])
        elif order == "before":
            await store.usage.write([], [better])
            await store.usage.write([event])
        elif order == "replayed":
            await store.usage.write([event])
            await store.usage.write([charged(number, (900, (account, TEAM)), (50, (account,)))], [better, better])
        else:
            await store.usage.write([event])
            written = await store.usage.write([], [better])
            assert {balance.key for balance in written.balances} == {account.key, TEAM.key}
            if order == "twice":
                await store.usage.write([], [better])
        assert await spent(store, account) == [350], order
    assert await spent(store, TEAM) == [1500]


async def what_the_accounts_have_spent_is_the_sum_of_the_ledger(store: Store) -> None:
    pick = random.Random(5)
    accounts = [Account(f"b{number % 3}~1", START, f"user-{number}") for number in range(12)]
    events = [
        charged(
            number,
            *(
                (pick.randrange(1, 1000), tuple(pick.sample(accounts, pick.randint(0, 4))))
                for _ in range(pick.randint(0, 3))
            ),
        )
        for number in range(900)
    ]
    changes = [
        Amendment(each.request_id, attempt=1, usage="reported", cost_nano=pick.randrange(1000))
        for each in pick.sample(events, 300)
    ]
    for _ in range(6):
        await store.usage.write(pick.sample(events, 400), pick.sample(changes, 100))
    await store.usage.write(events, changes)
    expected = dict.fromkeys((account.key for account in accounts), 0)
    for event in events:
        stored = await store.usage.get(event.request_id)
        assert stored is not None
        for attempt in stored.attempts:
            for key in attempt.accounts:
                expected[key] += attempt.cost_nano
    assert await spent(store, *accounts) == list(expected.values())


async def many_writers_of_the_same_events_charge_each_once(store: Store) -> None:
    accounts = [Account("each~1", START, f"user-{number}") for number in range(40)]

    async def writer(seed: int) -> None:
        pick = random.Random(seed)
        events = [charged(number, (1, (accounts[number % 40], TEAM))) for number in range(200)]
        changes = [Amendment(each.request_id, usage="reported", cost_nano=3) for each in events]
        pick.shuffle(events)
        pick.shuffle(changes)
        for start in range(0, 200, 20):
            await store.usage.write(events[start : start + 20], changes[start : start + 20])

    await asyncio.gather(*(writer(seed) for seed in range(4)))
    await store.usage.write([charged(9999, (0, ()))])  # for amendments that waited for their event
    assert await spent(store, TEAM, *accounts) == [600, *([15] * 40)]


async def a_cost_that_does_not_fit_is_refused_with_its_event(store: Store) -> None:
    for event in (charged(1, (1 << 62, (TEAM,)), (1 << 62, (TEAM,)), cost_nano=0), charged(2, (5, (TEAM,)))):
        event.unknown_nano = 0
        try:
            await store.usage.write([event])
        except RecordRefused:
            assert event.request_id == "request-1"
    broken = charged(3, (5, ()))
    broken.attempts[0].accounts = ("no account",)
    with pytest.raises(RecordRefused):
        await store.usage.write([broken])
    assert await spent(store, TEAM) == [5]
    assert await store.usage.get("request-1") is await store.usage.get("request-3") is None


async def nul_characters_in_a_member_are_replaced_and_its_balance_is_found(store: Store) -> None:
    strange = Account("each~1", START, "a\0b")
    written = await store.usage.write([charged(1, (5, (strange,)))])
    assert written.balances == (Balance(strange.key, 5, 0, 1),)
    assert await spent(store, strange) == [5]


async def an_account_that_nobody_wrote_to_has_a_balance_of_zero(store: Store) -> None:
    assert await store.budgets.balances([]) == {}
    assert await store.budgets.balances([TEAM, ADA]) == {TEAM.key: Balance(TEAM.key), ADA.key: Balance(ADA.key)}


def adjustment(name: str, kind: AdjustmentKind, amount: int = 0, account: Account = TEAM) -> Adjustment:
    return Adjustment(name, account, kind, START, "root", "because", amount)


async def an_adjustment_is_made_once(store: Store) -> None:
    grant = adjustment("one", AdjustmentKind.GRANT, 100)
    assert await store.budgets.adjust(grant) == Balance(TEAM.key, 0, 100, 1)
    assert await store.budgets.adjust(grant) == Balance(TEAM.key, 0, 100, 1)
    assert await store.budgets.adjust(adjustment("two", AdjustmentKind.CARRY, 20)) == Balance(TEAM.key, 0, 120, 2)
    with pytest.raises(StoreError, match="another adjustment has the id one"):
        await store.budgets.adjust(adjustment("one", AdjustmentKind.GRANT, 100, ADA))
    assert await store.budgets.adjustments(TEAM) == [grant, adjustment("two", AdjustmentKind.CARRY, 20)]
    assert await store.budgets.adjustments(ADA) == []
    assert (await store.budgets.balances([ADA]))[ADA.key] == Balance(ADA.key)


async def a_reset_gives_the_whole_limit_again(store: Store) -> None:
    async def left(total: int) -> int:
        balance = (await store.budgets.balances([TEAM]))[TEAM.key]
        return total + balance.extra_nano - balance.spent_nano

    await store.budgets.adjust(adjustment("grant", AdjustmentKind.GRANT, 50))
    await store.usage.write([charged(1, (80, (TEAM,)))])
    assert await left(100) == 70
    await store.budgets.adjust(adjustment("first", AdjustmentKind.RESET))
    await store.budgets.adjust(adjustment("first", AdjustmentKind.RESET))
    assert await left(100) == 150
    await store.usage.write([charged(2, (30, (TEAM,)))])
    assert await left(100) == 120
    # Tried again after more was spent, the first reset still forgives only what it did.
    await store.budgets.adjust(adjustment("first", AdjustmentKind.RESET))
    assert await left(100) == 120
    await store.budgets.adjust(adjustment("second", AdjustmentKind.RESET))
    assert await left(100) == 150
    # What was forgiven turns out to have been less: nothing is taken back.
    await store.usage.write([], [Amendment("request-1", usage="reported", cost_nano=60)])
    await store.budgets.adjust(adjustment("third", AdjustmentKind.RESET))
    assert await left(100) == 170
    amounts = {each.id: each.amount_nano for each in await store.budgets.adjustments(TEAM)}
    assert amounts == {"grant": 50, "first": 80, "second": 30, "third": 0}


async def of_many_resets_at_once_one_forgives(store: Store) -> None:
    await store.usage.write([charged(1, (80, (TEAM,)))])
    resets = [adjustment(f"reset-{number}", AdjustmentKind.RESET) for number in range(8)]
    await asyncio.gather(*(store.budgets.adjust(reset) for reset in [*resets, *resets]))
    assert (await store.budgets.balances([TEAM]))[TEAM.key] == Balance(TEAM.key, 80, 80, 9)


async def members_are_listed_by_what_they_spent_page_by_page(store: Store) -> None:
    amounts = {"a": 5, "b.c": 9, "d": 5, "e": 1, "f": 5}
    accounts = [Account("each~1", START, member) for member in amounts]
    spends = [charged(n, (amounts[one.member], (one,))) for n, one in enumerate(accounts)]
    await store.usage.write([*spends, charged(99, (7, (Account("each~1", START + 1, "other"),)))])
    found: list[Balance] = []
    cursor: str | None = None
    while True:
        page = await store.budgets.spend("each~1", START, limit=2, cursor=cursor)
        found += page.balances
        cursor = page.cursor
        if cursor is None:
            break
    assert [Account.parse(each.key).member for each in found] == ["b.c", "a", "d", "f", "e"]
    assert [each.spent_nano for each in found] == [9, 5, 5, 5, 1]
    for wrong in ("", "5", "x.y"):
        with pytest.raises(ValueError, match="cursor"):
            await store.budgets.spend("each~1", START, cursor=wrong)


async def the_history_of_a_member_has_its_periods_newest_first(store: Store) -> None:
    for period in range(5):
        accounts = [Account("each~1", START + period, "eve"), Account("shared~1", START + period)]
        if period != 2:
            accounts.append(Account("each~1", START + period, "ada"))
        await store.usage.write([charged(period, (period + 1, tuple(accounts)))])
    history = await store.budgets.history("each~1", "ada", limit=3)
    assert [(Account.parse(each.key).start_ms - START, each.spent_nano) for each in history] == [(4, 5), (3, 4), (1, 2)]
    assert [each.spent_nano for each in await store.budgets.history("shared~1")] == [5, 4, 3, 2, 1]
    assert await store.budgets.history("none~1") == []


async def a_pause_lasts_until_it_is_ended(store: Store) -> None:
    assert await store.budgets.pause("team", "root", "too fast", START)
    assert not await store.budgets.pause("team", "eve", "later", START + 1)
    paused = await store.budgets.paused()
    assert {name: (each.since_ms, each.actor, each.reason) for name, each in paused.items()} == {
        "team": (START, "root", "too fast")
    }
    assert await store.budgets.resume("team")
    assert not await store.budgets.resume("team")
    assert await store.budgets.paused() == {}


async def what_was_spent_before_a_budget_counts_once(store: Store) -> None:
    await store.usage.write([old(1, 10), old(2, 20), charged(3, (5, (TEAM,))), old(500, 1000), old(-1, 1000)])
    changed = await store.budgets.backfill(TEAM.budget, Coverage(), START, START + 500)
    assert changed == [Balance(TEAM.key, 35, 0, 2)]
    assert await store.budgets.backfill(TEAM.budget, Coverage(), START, START + 500) == []
    assert await store.budgets.backfilled(TEAM.budget, START) is not None
    assert await store.budgets.backfilled(TEAM.budget, START + 1) is None
    # An event of a worker that did not know the budget yet, and one that did.
    await store.usage.write([old(4, 7), charged(5, (100, (TEAM,)))])
    assert await store.budgets.backfill(TEAM.budget, Coverage(), START, START + 500) == [Balance(TEAM.key, 142, 0, 4)]
    # Nothing matches any more: what was found before is gone, what was charged stays.
    nobody = Coverage(users=frozenset({"nobody"}))
    assert await store.budgets.backfill(TEAM.budget, nobody, START, START + 500) == [Balance(TEAM.key, 105, 0, 5)]
    assert await store.budgets.backfill(TEAM.budget, nobody, START, START + 500) == []


async def an_account_of_another_revision_does_not_count_as_charged(store: Store) -> None:
    await store.usage.write(
        [charged(1, (5, (Account("team~1", START),))), charged(2, (7, (Account("team~12", START),)))]
    )
    [found] = await store.budgets.backfill("team~1", Coverage(), START, START + 500)
    assert found.spent_nano == 12


async def each_scope_narrows_what_came_before(store: Store) -> None:
    await store.usage.write(
        [
            old(1, 1, user_id="ada", team_id="red", key_hash="k1", key_alias="demo", task_type="chat", groups=("ai",)),
            old(2, 10, user_id="eve", team_id="blue", key_hash="k2", key_alias="other", groups=("ai_team", 'a"i')),
            old(3, 100, model="small", task_type="coding", key_hash="k1"),
            old(4, 1000, user_id="ada", groups=("ai_team", "ai"), model="small"),
        ]
    )
    one = frozenset

    async def found(coverage: Coverage, models: tuple[str, ...] = ()) -> int:
        await store.budgets.backfill("b~1", coverage, START, START + 500, models)
        return (await spent(store, Account("b~1", START)))[0]

    assert await found(Coverage()) == 1111
    assert await found(Coverage(users=one({"ada"}))) == 1001
    assert await found(Coverage(teams=one({"red", "blue"}))) == 11
    assert await found(Coverage(keys=one({"k1"}))) == 101
    assert await found(Coverage(keys=one({"k2", "demo"}))) == 11
    assert await found(Coverage(task_types=one({"coding"}))) == 100
    assert await found(Coverage(groups=one({"ai"}))) == 1001
    assert await found(Coverage(groups=one({"ai_team"}))) == 1010
    assert await found(Coverage(groups=one({'a"i', "team"}))) == 10
    assert await found(Coverage(models=one({"s*"})), ("small",)) == 1100
    assert await found(Coverage(models=one({"x*"}))) == 0
    assert await found(Coverage(users=one({"ada"}), groups=one({"ai_team"}), models=one({"*"})), ("small",)) == 1000


async def what_came_before_is_split_by_member(store: Store) -> None:
    two_models = old(5, 0, user_id="ada")
    two_models.attempts = [Attempt(1, "large", cost_nano=3), Attempt(2, "small", cost_nano=4)]
    await store.usage.write(
        [
            old(1, 1, user_id="ada", team_id="red", key_hash="k1"),
            old(2, 10, user_id="eve", team_id="red"),
            old(3, 100),
            old(4, 0, user_id="bob"),
            two_models,
        ]
    )
    expected = {
        Per.USER: {"ada": 8, "eve": 10},
        Per.TEAM: {"red": 11},
        Per.KEY: {"k1": 1},
        Per.MODEL: {"large": 114, "small": 4},
    }
    for per, amounts in expected.items():
        changed = await store.budgets.backfill(f"{per}~1", Coverage(per=per), START, START + 500)
        assert {Account.parse(each.key).member: each.spent_nano for each in changed} == amounts
        assert len((await store.budgets.spend(f"{per}~1", START)).balances) == len(amounts)


async def a_backfill_beside_writers_loses_and_doubles_nothing(store: Store) -> None:
    users = [f"user-{number}" for number in range(20)]

    async def old_worker(part: int) -> None:
        for start in range(0, 200, 20):
            numbers = range(1000 * part + start, 1000 * part + start + 20)
            await store.usage.write([old(number, 1, user_id=users[number % 20]) for number in numbers])

    async def new_worker(part: int) -> None:
        for start in range(0, 200, 20):
            numbers = range(1000 * part + start, 1000 * part + start + 20)
            made = [(number, Account("each~1", START, users[number % 20])) for number in numbers]
            await store.usage.write([charged(n, (1, (one,)), user_id=one.member) for n, one in made])

    async def backfill() -> None:
        for _ in range(10):
            await store.budgets.backfill("each~1", Coverage(per=Per.USER), START, START + 10_000)

    await asyncio.gather(old_worker(1), old_worker(2), new_worker(3), new_worker(4), backfill(), backfill())
    await backfill()
    assert await spent(store, *(Account("each~1", START, user) for user in users)) == [40] * 20


CASES: tuple[Callable[[Store], Coroutine[None, None, None]], ...] = (
    an_attempt_comes_back_with_its_accounts_and_its_reservation,
    every_account_of_an_attempt_is_charged_once,
    a_copy_of_an_event_that_is_there_changes_nothing,
    an_attempt_that_cost_nothing_makes_no_row,
    an_amendment_moves_the_accounts_by_the_difference_in_any_order,
    what_the_accounts_have_spent_is_the_sum_of_the_ledger,
    many_writers_of_the_same_events_charge_each_once,
    a_cost_that_does_not_fit_is_refused_with_its_event,
    nul_characters_in_a_member_are_replaced_and_its_balance_is_found,
    an_account_that_nobody_wrote_to_has_a_balance_of_zero,
    an_adjustment_is_made_once,
    a_reset_gives_the_whole_limit_again,
    of_many_resets_at_once_one_forgives,
    members_are_listed_by_what_they_spent_page_by_page,
    the_history_of_a_member_has_its_periods_newest_first,
    a_pause_lasts_until_it_is_ended,
    what_was_spent_before_a_budget_counts_once,
    an_account_of_another_revision_does_not_count_as_charged,
    each_scope_narrows_what_came_before,
    what_came_before_is_split_by_member,
    a_backfill_beside_writers_loses_and_doubles_nothing,
)
