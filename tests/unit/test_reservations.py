"""Reservations in memory."""

from collections.abc import Sequence

import pytest

from core.budgets.account import Balance
from core.state.memory import MemoryReservations
from core.state.reservations import KEPT_AFTER_END_MS, Reserved, StateLost
from tests.support.clock import Clock
from tests.support.reservation_cases import TEAM, USER, ReservationCases, claim
from tests.support.reservations import Expire, anything_in_any_order

INTERLEAVINGS = 10_000


async def whole(clock: Clock) -> MemoryReservations:
    state = MemoryReservations(clock=clock)
    await state.finish([])
    return state


def expiring(state: MemoryReservations, clock: Clock) -> Expire:
    async def expire(alive: Sequence[str]) -> None:
        clock.advance(state.lease_seconds - 1)
        await state.renew(alive)
        clock.advance(2)

    return expire


class TestMemory(ReservationCases):
    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    async def state(self, clock: Clock) -> MemoryReservations:
        return await whole(clock)

    @pytest.fixture
    def expire(self, state: MemoryReservations, clock: Clock) -> Expire:
        return expiring(state, clock)

    async def test_an_account_is_forgotten_some_time_after_its_period(
        self, state: MemoryReservations, clock: Clock
    ) -> None:
        end = int(clock() * 1000)
        await state.put([Balance(TEAM.key), Balance(USER.key)], {TEAM.key: end, USER.key: None})
        await state.reap()
        clock.advance(KEPT_AFTER_END_MS / 1000 + 61)
        await state.reap()
        assert set(await state.standings([TEAM.key, USER.key])) == {USER.key}

    async def test_but_not_while_something_is_reserved_on_it(self, state: MemoryReservations, clock: Clock) -> None:
        end = int(clock() * 1000)
        await state.put([Balance(TEAM.key)], {TEAM.key: end})
        assert isinstance(await state.reserve("r:1", [claim(TEAM, 100, 10)]), Reserved)
        for _ in range(8000):
            clock.advance(50)
            await state.renew(["r:1"])
            await state.reap()
        assert (await state.standings([TEAM.key]))[TEAM.key].reserved_nano == 10


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
async def test_an_account_never_promises_more_than_it_has(part: int) -> None:
    for seed in range(part, INTERLEAVINGS, 20):
        clock = Clock()
        state = await whole(clock)
        try:
            await anything_in_any_order(state, seed, expiring(state, clock), steps=25)
        except AssertionError as error:
            raise AssertionError(f"interleaving {seed}: {error}") from error


async def test_nothing_is_reserved_before_the_journal_of_the_process_before_is_in_the_store() -> None:
    state = MemoryReservations()
    assert not await state.recover()
    with pytest.raises(StateLost):
        await state.reserve("r:1", [claim(TEAM, 100, 10)])
    await state.finish([])
    assert await state.recover()
