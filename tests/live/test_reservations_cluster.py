"""Reservations in a Redis Cluster, entered by a node that does not have the keys."""

from collections.abc import AsyncIterator, Sequence

import pytest
from redis.crc import key_slot

from core.state.redis import RedisReservations
from core.state.reservations import Reserved
from tests.support.redis_cluster import RedisCluster
from tests.support.reservation_cases import TEAM, USER, ReservationCases, claim, opened, standing
from tests.support.reservations import Expire

pytestmark = pytest.mark.live

SLOT = key_slot(b"{orchestration}")


async def whole(url: str) -> RedisReservations:
    state = RedisReservations(url)
    if not await state.recover():
        assert await state.register("test", [])
        assert await state.finish(["test"]) == ()
    return state


class TestCluster(ReservationCases):
    @pytest.fixture(params=range(3))
    async def state(self, cluster: RedisCluster, request: pytest.FixtureRequest) -> AsyncIterator[RedisReservations]:
        cluster.flushall()
        state = await whole(cluster.urls[request.param])
        yield state
        await state.close()

    @pytest.fixture
    def expire(self, cluster: RedisCluster) -> Expire:
        async def expire(alive: Sequence[str]) -> None:
            for port in cluster.ports:
                client = cluster.client(port)
                if client.execute_command("CLUSTER COUNTKEYSINSLOT", SLOT):
                    for name in client.zrange("{orchestration}:expiry", 0, -1):
                        if name.decode() not in alive:
                            client.zadd("{orchestration}:expiry", {name: 1})

        return expire


async def test_every_entrance_leads_to_the_same_accounts(cluster: RedisCluster) -> None:
    cluster.flushall()
    states = [await whole(url) for url in cluster.urls]
    await opened(states[0], TEAM, USER)
    for number, state in enumerate(states):
        outcome = await state.reserve(f"r{number}:1", [claim(TEAM, 100, 10), claim(USER, 100, 10)])
        assert isinstance(outcome, Reserved)
    for state in states:
        assert (await standing(state, TEAM)).reserved_nano == 30
        await state.close()
