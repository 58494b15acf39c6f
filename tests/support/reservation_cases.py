"""What reservations promise, one sentence a test; run against memory and against Redis.

A class that inherits from this has a fixture `state` and a fixture `expire` (`tests.support.reservations.Expire`).
"""

import asyncio

import pytest

from core.budgets.account import Account, Balance
from core.state.reservations import (
    OPENS_NOTHING,
    Claim,
    LeaseState,
    ReservationState,
    Reserved,
    Settled,
    Standing,
    TooLittle,
    Unopened,
)
from tests.support.reservations import Expire

TEAM = Account("team~a1", 1_800_000_000_000, "", 1_800_086_400_000)
USER = Account("user~b2", 1_800_000_000_000, "ada|with a bar", 1_800_086_400_000)


async def opened(state: ReservationState, *accounts: Account, spent: int = 0, extra: int = 0) -> None:
    await state.put([Balance(account.key, spent, extra, 1) for account in accounts], {})


def claim(account: Account, limit: int, *amounts: int) -> Claim:
    return Claim(account, limit, amounts)


async def standing(state: ReservationState, account: Account) -> Standing:
    return (await state.standings([account.key]))[account.key]


class ReservationCases:
    async def test_nothing_is_reserved_before_the_stores_word_is_there(self, state: ReservationState) -> None:
        await opened(state, TEAM)
        outcome = await state.reserve("r:1", [claim(TEAM, 100, 10), claim(USER, 100, 10)])
        assert outcome == Unopened((USER,))
        assert (await standing(state, TEAM)).reserved_nano == 0

    async def test_a_reservation_is_made_in_every_account(self, state: ReservationState) -> None:
        await opened(state, TEAM, USER)
        outcome = await state.reserve("r:1", [claim(TEAM, 100, 60), claim(USER, 50, 50)])
        assert outcome == Reserved(0, (Standing(0, 0, 60, 0), Standing(0, 0, 50, 0)))

    async def test_or_in_none(self, state: ReservationState) -> None:
        await opened(state, TEAM, USER)
        assert isinstance(await state.reserve("r:1", [claim(TEAM, 100, 60), claim(USER, 50, 51)]), TooLittle)
        assert (await standing(state, TEAM)).reserved_nano == 0

    async def test_the_last_nano_dollar_can_be_had_and_not_one_more(self, state: ReservationState) -> None:
        await opened(state, TEAM, spent=40)
        assert isinstance(await state.reserve("r:1", [claim(TEAM, 100, 61)]), TooLittle)
        assert isinstance(await state.reserve("r:2", [claim(TEAM, 100, 60)]), Reserved)
        assert isinstance(await state.reserve("r:3", [claim(TEAM, 100, 1)]), TooLittle)
        assert isinstance(await state.reserve("r:4", [claim(TEAM, 100, 0)]), Reserved)

    async def test_sums_beyond_what_a_double_can_count_are_exact(self, state: ReservationState) -> None:
        billion = 1_000_000_000 * 1_000_000_000
        await opened(state, TEAM, spent=billion - 3)
        assert isinstance(await state.reserve("r:1", [claim(TEAM, billion, 4)]), TooLittle)
        assert isinstance(await state.reserve("r:2", [claim(TEAM, billion, 3)]), Reserved)
        assert isinstance(await state.reserve("r:3", [claim(TEAM, billion, 1)]), TooLittle)
        assert (await standing(state, TEAM)) == Standing(billion - 3, 0, 3, 0)

    async def test_what_was_granted_can_be_spent(self, state: ReservationState) -> None:
        await opened(state, TEAM, spent=100, extra=20)
        assert isinstance(await state.reserve("r:1", [claim(TEAM, 100, 20)]), Reserved)

    async def test_the_first_level_that_fits_everywhere_is_taken(self, state: ReservationState) -> None:
        await opened(state, TEAM, USER)
        outcome = await state.reserve("r:1", [claim(TEAM, 100, 90, 50, 10), claim(USER, 40, 80, 45, 15)])
        assert isinstance(outcome, Reserved)
        assert outcome.level == 2
        assert [has.reserved_nano for has in outcome.standings] == [10, 15]

    async def test_the_generous_level_is_only_taken_where_it_keeps_nobody_out(self, state: ReservationState) -> None:
        await opened(state, TEAM)
        outcome = await state.reserve("r:1", [claim(TEAM, 1000, 100, 5)], slack=10)
        assert isinstance(outcome, Reserved)
        assert outcome.level == 0
        outcome = await state.reserve("r:2", [claim(TEAM, 1000, 100, 5)], slack=10)
        assert isinstance(outcome, Reserved)
        assert outcome.level == 1
        assert isinstance(await state.reserve("r:3", [claim(TEAM, 1000, 895)], slack=10), Reserved), "a single level"

    async def test_a_reservation_that_is_made_twice_is_made_once(self, state: ReservationState) -> None:
        await opened(state, TEAM)
        first = await state.reserve("r:1", [claim(TEAM, 100, 60, 30)])
        assert await state.reserve("r:1", [claim(TEAM, 100, 60, 30)]) == first
        assert (await standing(state, TEAM)).reserved_nano == 60

    async def test_the_real_cost_takes_the_place_of_what_was_reserved(self, state: ReservationState) -> None:
        await opened(state, TEAM, USER)
        await state.reserve("r:1", [claim(TEAM, 100, 60), claim(USER, 100, 70)])
        assert await state.sent("r:1")
        settled = await state.settle("r:1", [TEAM.key, USER.key], 25)
        assert settled == (Settled(TEAM.key, Standing(0, 25, 0, 0), 25), Settled(USER.key, Standing(0, 25, 0, 0), 25))
        assert await state.settle("r:1", [TEAM.key, USER.key], 25) == (), "it is done"
        assert (await standing(state, TEAM)).settled_nano == 25

    async def test_a_higher_bill_is_recorded_as_it_is(self, state: ReservationState) -> None:
        await opened(state, TEAM)
        await state.reserve("r:1", [claim(TEAM, 100, 60)])
        await state.sent("r:1")
        await state.settle("r:1", [TEAM.key], 150)
        assert (await standing(state, TEAM)).left_of(100) == -50
        assert isinstance(await state.reserve("r:2", [claim(TEAM, 100, 0)]), TooLittle)

    async def test_an_attempt_that_cost_nothing_leaves_nothing(self, state: ReservationState) -> None:
        await opened(state, TEAM)
        await state.reserve("r:1", [claim(TEAM, 100, 60)])
        await state.settle("r:1", [TEAM.key], 0)
        assert await standing(state, TEAM) == Standing()
        assert not await state.sent("r:1")

    async def test_the_stores_word_takes_the_place_of_what_was_settled(self, state: ReservationState) -> None:
        await opened(state, TEAM)
        await state.reserve("r:1", [claim(TEAM, 100, 60)])
        await state.settle("r:1", [TEAM.key], 25)
        await state.put([Balance(TEAM.key, 25, 0, 2)], {}, ["r:1"])
        assert await standing(state, TEAM) == Standing(25, 0, 0, 0)
        await state.put([Balance(TEAM.key, 25, 0, 2)], {}, ["r:1"])
        assert await standing(state, TEAM) == Standing(25, 0, 0, 0), "twice is once"

    async def test_an_older_word_of_the_store_changes_nothing(self, state: ReservationState) -> None:
        await state.put([Balance(TEAM.key, 50, 5, 7)], {})
        await state.put([Balance(TEAM.key, 40, 0, 6)], {})
        assert await standing(state, TEAM) == Standing(50, 0, 0, 5)

    async def test_an_event_may_be_written_before_its_lease_is_settled(self, state: ReservationState) -> None:
        """Its process was killed in between, and another wrote what stood in its journal."""
        await opened(state, TEAM)
        await state.reserve("r:1", [claim(TEAM, 100, 60)])
        await state.sent("r:1")
        await state.put([Balance(TEAM.key, 25, 0, 2)], {}, ["r:1"])
        assert await standing(state, TEAM) == Standing(25, 0, 0, 0)

    async def test_a_lease_nobody_knows_is_settled_all_the_same(self, state: ReservationState) -> None:
        await opened(state, TEAM)
        await state.settle("r:1", [TEAM.key], 25)
        assert (await standing(state, TEAM)).settled_nano == 25
        await state.put([Balance(TEAM.key, 25, 0, 2)], {}, ["r:1"])
        assert await standing(state, TEAM) == Standing(25, 0, 0, 0)

    async def test_an_account_that_is_not_opened_keeps_what_is_settled_on_it(self, state: ReservationState) -> None:
        await state.settle("r:1", [TEAM.key], 25)
        assert await state.standings([TEAM.key]) == {}
        await state.put([Balance(TEAM.key, 10, 0, 0)], {})
        assert await standing(state, TEAM) == Standing(10, 25, 0, 0)

    async def test_a_lease_that_was_not_sent_is_released_when_it_runs_out(
        self, state: ReservationState, expire: Expire
    ) -> None:
        await opened(state, TEAM)
        await state.reserve("r:1", [claim(TEAM, 100, 60)])
        await expire([])
        assert await state.reap() == ()
        assert await standing(state, TEAM) == Standing()
        assert not await state.sent("r:1"), "too late: its money may be somebody else's"

    async def test_one_that_was_sent_counts_as_spent_until_the_truth_is_known(
        self, state: ReservationState, expire: Expire
    ) -> None:
        await opened(state, TEAM)
        await state.reserve("r:1", [claim(TEAM, 100, 60)])
        await state.sent("r:1")
        await expire([])
        (lease,) = await state.reap()
        assert (lease.id, lease.state, lease.amounts) == ("r:1", LeaseState.PRESUMED, {TEAM.key: 60})
        assert await standing(state, TEAM) == Standing(0, 60, 0, 0)
        assert await state.reap() == ()
        await state.settle("r:1", [TEAM.key], 20)
        assert await standing(state, TEAM) == Standing(0, 20, 0, 0)

    async def test_a_lease_that_is_renewed_does_not_run_out(self, state: ReservationState, expire: Expire) -> None:
        await opened(state, TEAM)
        await state.reserve("r:1", [claim(TEAM, 100, 60)])
        await expire(["r:1"])
        assert await state.reap() == ()
        assert (await standing(state, TEAM)).reserved_nano == 60

    async def test_renewing_what_is_over_brings_nothing_back(self, state: ReservationState, expire: Expire) -> None:
        await opened(state, TEAM)
        await state.reserve("r:1", [claim(TEAM, 100, 60)])
        await state.sent("r:1")
        await state.settle("r:1", [TEAM.key], 20)
        await state.renew(["r:1", "never:1"])
        await expire([])
        assert await state.reap() == ()

    async def test_of_many_at_once_as_many_get_in_as_fit(self, state: ReservationState) -> None:
        await opened(state, TEAM, USER)
        claims = [claim(TEAM, 105, 10), claim(USER, 1000, 10)]
        outcomes = await asyncio.gather(*(state.reserve(f"r{number}:1", claims) for number in range(100)))
        assert sum(isinstance(outcome, Reserved) for outcome in outcomes) == 10
        assert (await standing(state, USER)).reserved_nano == 100

    async def test_thousands_of_leases_are_written_at_once(self, state: ReservationState) -> None:
        names = [f"r{number}:1" for number in range(1500)]
        accounts = [Account("user~b2", 0, f"user{number}") for number in range(500)]
        await opened(state, *accounts)
        for number, name in enumerate(names):
            account = accounts[number % 500]
            await state.reserve(name, [claim(account, 100, 10)])
            await state.settle(name, [account.key], 7)
        await state.put([Balance(account.key, 21, 0, 2) for account in accounts], {}, names)
        found = await state.standings([account.key for account in accounts])
        assert set(found.values()) == {Standing(21, 0, 0, 0)}

    async def test_only_what_was_asked_for_in_this_state_opens_an_account(self, state: ReservationState) -> None:
        """Another worker's late word may be older than what the state before had, and this one has lost."""
        for opens in (OPENS_NOTHING, "another-state"):
            await state.put([Balance(TEAM.key, 40, 0, 3)], {}, opens=opens)
            assert await state.reserve("r:1", [claim(TEAM, 100, 10)]) == Unopened((TEAM,))
            assert await state.standings([TEAM.key]) == {}
        await state.put([Balance(TEAM.key, 50, 0, 2)], {}, opens=state.epoch)
        assert await standing(state, TEAM) == Standing(40, 0, 0, 0), "the newest that was ever said"

    async def test_what_is_settled_and_not_written_can_be_found_by_its_age(self, state: ReservationState) -> None:
        await opened(state, TEAM, USER)
        for name in ("a1:1", "a2:1", "b1:1", "c1:1"):
            await state.reserve(name, [claim(TEAM, 100, 10), claim(USER, 100, 10)])
        for name in ("a1:1", "b1:1", "c1:1"):
            await state.settle(name, [TEAM.key, USER.key], 7)
        found = await state.settled("b1:9")
        assert {lease.id: dict(lease.amounts) for lease in found} == {
            name: {TEAM.key: 7, USER.key: 7} for name in ("a1:1", "b1:1")
        }

    @pytest.mark.parametrize("field", ["written", "settled"])
    async def test_what_a_member_is_called_does_not_matter(self, state: ReservationState, field: str) -> None:
        odd = Account("user~b2", 0, 'a"b\\c|d\u00e9\U0001f4b8 {x}')
        await opened(state, odd)
        await state.reserve("r:1", [claim(odd, 100, 10)])
        if field == "settled":
            await state.settle("r:1", [odd.key], 10)
        else:
            await state.put([Balance(odd.key, 10, 0, 2)], {}, ["r:1"])
        assert (await standing(state, odd)).spent_nano == 10
