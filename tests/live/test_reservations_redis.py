"""Reservations in a real Redis."""

from collections.abc import AsyncIterator, Iterator, Sequence

import pytest
from redis.asyncio import Redis

from core.budgets.account import Balance
from core.state.redis import RedisReservations
from core.state.reservations import Lease, LeaseState, Reserved, Standing, StateAway, StateLost
from tests.support.redis import RedisServer
from tests.support.reservation_cases import TEAM, USER, ReservationCases, claim, opened, standing
from tests.support.reservations import Expire, anything_in_any_order

pytestmark = pytest.mark.live

INTERLEAVINGS = 1_000


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


@pytest.fixture
async def redis(server: RedisServer) -> AsyncIterator[Redis]:
    client = Redis.from_url(server.url)
    await client.flushall()
    yield client
    await client.aclose()


async def whole(url: str) -> RedisReservations:
    state = RedisReservations(url)
    if not await state.recover():
        assert await state.register("test", [])
        assert await state.finish(["test"]) == ()
    return state


@pytest.fixture
async def state(server: RedisServer, redis: Redis) -> AsyncIterator[RedisReservations]:
    state = await whole(server.url)
    yield state
    await state.close()


def expiring(redis: Redis) -> Expire:
    async def expire(alive: Sequence[str]) -> None:
        for name in await redis.zrange("{orchestration}:expiry", 0, -1):
            if name.decode() not in alive:
                await redis.zadd("{orchestration}:expiry", {name: 1})

    return expire


@pytest.fixture
def expire(redis: Redis) -> Expire:
    return expiring(redis)


class TestRedis(ReservationCases):
    async def test_an_account_is_forgotten_some_time_after_its_period(
        self, state: RedisReservations, redis: Redis
    ) -> None:
        await state.put([Balance(TEAM.key), Balance(USER.key)], {TEAM.key: TEAM.end_ms, USER.key: None})
        assert await redis.pttl("{orchestration}:account:" + TEAM.key) > 0
        assert await redis.pttl("{orchestration}:account:" + USER.key) == -1

    async def test_another_instance_sees_the_same(self, state: RedisReservations, server: RedisServer) -> None:
        other = await whole(server.url)
        await opened(state, TEAM)
        await state.reserve("r:1", [claim(TEAM, 100, 60)])
        assert (await standing(other, TEAM)).reserved_nano == 60
        assert await other.sent("r:1")
        await other.close()

    async def test_nothing_is_kept_without_the_hash_tag(self, state: RedisReservations, redis: Redis) -> None:
        await opened(state, TEAM)
        await state.reserve("r:1", [claim(TEAM, 100, 60)])
        assert all(key.startswith(b"{orchestration}:") for key in await redis.keys())


class TestAfterALoss:
    async def test_nothing_is_reserved(self, state: RedisReservations, redis: Redis) -> None:
        await opened(state, TEAM)
        await redis.flushall()
        with pytest.raises(StateLost):
            await state.reserve("r:1", [claim(TEAM, 100, 60)])
        with pytest.raises(StateLost):
            await state.sent("r:1")

    async def test_until_every_instance_has_registered_its_leases(
        self, state: RedisReservations, redis: Redis, server: RedisServer
    ) -> None:
        other = await whole(server.url)
        await redis.flushall()
        assert not await state.recover()
        assert not await other.recover()
        assert state.epoch == other.epoch
        mine = [Lease("r1:1", LeaseState.SENT, {TEAM.key: 30}), Lease("r2:1", LeaseState.OPEN, {TEAM.key: 5})]
        assert await state.register("one", mine)
        assert await state.finish(["one", "two"]) == ("two",)
        with pytest.raises(StateLost):
            await state.reserve("r:1", [claim(TEAM, 100, 60)])
        assert await other.register("two", [Lease("r3:1", LeaseState.SETTLED, {TEAM.key: 7})])
        assert await other.finish(["one", "two"]) == ()
        await state.put([Balance(TEAM.key, 40, 0, 3)], {})
        assert await standing(state, TEAM) == Standing(40, 7, 35, 0)
        assert not isinstance(await state.reserve("r:1", [claim(TEAM, 100, 19)]), Reserved)
        assert isinstance(await other.reserve("r:1", [claim(TEAM, 100, 18)]), Reserved)
        await state.settle("r1:1", [TEAM.key], 10)
        await other.put([Balance(TEAM.key, 57, 0, 4)], {}, ["r3:1", "r1:1"])
        assert await standing(state, TEAM) == Standing(57, 0, 23, 0)
        await other.close()

    async def test_registering_twice_is_like_once(self, state: RedisReservations, redis: Redis) -> None:
        await redis.flushall()
        await state.recover()
        leases = [Lease(f"r{number}:1", LeaseState.SENT, {TEAM.key: 30}) for number in range(450)]
        assert await state.register("one", leases)
        assert await state.register("one", leases)
        assert await state.finish(["one"]) == ()
        await opened(state, TEAM)
        assert (await standing(state, TEAM)).reserved_nano == 450 * 30

    async def test_a_second_loss_begins_again(
        self, state: RedisReservations, redis: Redis, server: RedisServer
    ) -> None:
        await redis.flushall()
        await state.recover()
        await redis.flushall()
        assert not await state.register("one", [])
        assert await state.finish(["one"]) == ()
        other = RedisReservations(server.url)
        assert not await other.recover()
        with pytest.raises(StateLost):
            await state.reserve("r:1", [claim(TEAM, 100, 60)])
        await other.close()

    async def test_losing_the_epoch_alone_counts_nothing_twice(self, state: RedisReservations, redis: Redis) -> None:
        """A Redis that evicts keys may take any of them."""
        await opened(state, TEAM)
        await state.reserve("r:1", [claim(TEAM, 100, 60)])
        await redis.delete("{orchestration}:epoch")
        assert not await state.recover()
        assert await state.register("one", [Lease("r:1", LeaseState.OPEN, {TEAM.key: 60})])
        assert await state.finish(["one"]) == ()
        assert (await standing(state, TEAM)).reserved_nano == 60


async def test_a_redis_that_is_away_is_said_to_be() -> None:
    with RedisServer() as server:
        state = await whole(server.url)
        await opened(state, TEAM)
        server.stop()
        with pytest.raises(StateAway, match="Redis does not answer"):
            await state.reserve("r:1", [claim(TEAM, 100, 60)])
        server.start()
        with pytest.raises(StateLost):
            await state.reserve("r:1", [claim(TEAM, 100, 60)])
        await state.close()


async def test_the_policy_of_a_full_memory_is_known(state: RedisReservations) -> None:
    assert await state.eviction() == "noeviction"


@pytest.mark.parametrize("part", range(4))
async def test_an_account_never_promises_more_than_it_has(part: int, server: RedisServer, redis: Redis) -> None:
    for seed in range(part, INTERLEAVINGS, 4):
        await redis.flushall()
        state = await whole(server.url)
        try:
            await anything_in_any_order(state, seed, expiring(redis), steps=25)
        except AssertionError as error:
            raise AssertionError(f"interleaving {seed}: {error}") from error
        finally:
            await state.close()
