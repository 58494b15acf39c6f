"""Rates and parallel requests shared by instances, on a real Redis."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from redis.crc import key_slot

from core.errors import RateLimited
from plugins.limits import Admission, Limiter
from plugins.limits.counters import Counters
from plugins.limits.fallback import FallbackCounters
from plugins.limits.quotas import Kind, Quota, Scope
from plugins.limits.redis import RedisCounters
from tests.support.clock import Clock
from tests.support.eventually import eventually
from tests.support.redis import RedisServer
from tests.unit import limits_cases as cases
from tests.unit.limits_cases import PARALLEL, REQUESTS, TOKENS, limiter, refused, request, settings

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[2]
Instances = Callable[..., RedisCounters]


@pytest.fixture
async def instance(redis_server: RedisServer) -> AsyncIterator[Instances]:
    """Makes the counters of another instance."""
    made: list[RedisCounters] = []

    def make(**options: object) -> RedisCounters:
        made.append(RedisCounters(redis_server.url, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for counters in made:
        await counters.close()


@pytest.mark.parametrize("case", cases.CASES_WITH_A_CLOCK, ids=lambda case: case.__name__)
async def test_in_redis(case: Callable[[Counters, Clock], Awaitable[None]], instance: Instances, clock: Clock) -> None:
    await case(instance(clock=clock), clock)


async def test_two_instances_let_no_more_through_than_the_limit(instance: Instances) -> None:
    await cases.a_race_lets_no_more_through_than_the_limit(instance(), instance())


async def test_whoever_is_cancelled_while_it_asks_holds_nothing(instance: Instances) -> None:
    await cases.whoever_is_cancelled_while_it_asks_holds_nothing(instance())


async def test_instances_share_what_tokens_were_used(instance: Instances) -> None:
    sections = {"tiers": {"free": {"tokens_per_minute": 100}}}
    one, other = limiter(instance(), **sections), limiter(instance(), **sections)
    await cases.settled(await one.enter(request()), 100)
    assert (await refused(other)).details["used"] == 100


async def test_a_killed_instance_gives_its_places_back(instance: Instances, clock: Clock) -> None:
    sections = {"tiers": {"free": {"max_parallel_requests": 1}}}
    killed = instance(clock=clock, lease_seconds=30)
    await limiter(killed, **sections).enter(request())
    assert killed._renewal is not None
    killed._renewal.cancel()
    other = limiter(instance(clock=clock), **sections)
    clock.advance(29)
    await refused(other)
    clock.advance(2)
    await other.enter(request())


KILLED = """
import asyncio, sys
from plugins.limits.redis import RedisCounters
from tests.unit import limits_cases as cases

async def hold():
    limits = cases.limiter(RedisCounters(sys.argv[1], lease_seconds=2), tiers={"free": {"max_parallel_requests": 1}})
    await limits.enter(cases.request())
    print("inside", flush=True)
    await asyncio.sleep(600)

asyncio.run(hold())
"""


async def test_a_process_that_is_killed_gives_its_place_back(instance: Instances, redis_server: RedisServer) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, redis_server.url, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"inside\n"
    limits = limiter(instance(), tiers={"free": {"max_parallel_requests": 1}})
    await refused(limits)
    process.kill()
    await process.wait()

    async def is_free() -> bool:
        with suppress(RateLimited):
            (await limits.enter(request())).done()
            return True
        return False

    await eventually(is_free, within=10)


async def test_a_long_request_keeps_its_place_and_a_place_lost_in_a_flush_comes_back(
    instance: Instances, redis_server: RedisServer
) -> None:
    sections = {"tiers": {"free": {"max_parallel_requests": 1}}}
    lasting = instance(lease_seconds=0.6)
    admission = await limiter(lasting, **sections).enter(request())
    other = limiter(instance(), **sections)
    redis_server.flushall()

    with redis_server.client() as client:
        key = f"{{orchestration:limits}}:{_counter(admission)}"

        def end_of_the_lease() -> float:
            ((_, milliseconds),) = client.zrange(key, 0, -1, withscores=True)
            return milliseconds

        first = await eventually(end_of_the_lease)
        await eventually(lambda: end_of_the_lease() > first + 600, what="the lease outliving its first term")
    await refused(other)
    await cases.settled(admission)
    await other.enter(request())


def _counter(admission: Admission) -> str:
    (quota,) = admission._quotas
    return quota.counter


async def test_redis_forgets_what_nobody_asks_for(instance: Instances, redis_server: RedisServer) -> None:
    counters = instance()
    entry = await counters.enter([REQUESTS, TOKENS, PARALLEL], "lease")
    entry.counters.leave([(TOKENS.counter, 10)], [(PARALLEL.counter, "lease")])
    assert counters._delivery is not None
    await counters._delivery
    with redis_server.client() as client:
        left = {key: client.ttl(key) for key in client.scan_iter()}
        assert len(left) == 2
        assert all(0 < seconds <= 61 for seconds in left.values())
        assert len({key_slot(key) for key in left}) == 1, "a cluster's nodes would have to share a request"


async def test_a_window_takes_the_same_room_at_any_rate(
    instance: Instances, redis_server: RedisServer, clock: Clock
) -> None:
    counters = instance(clock=clock)
    for _ in range(400):
        clock.advance(0.31)
        await counters.hit("many", 1 << 40, 1 << 30)
    with redis_server.client() as client:
        (key,) = client.keys()
        assert client.hlen(key) <= 245
        kept = client.hgetall(key)
        assert sum(int(v) for k, v in kept.items() if k.isdigit()) == int(kept[b"n"])


async def test_large_windows_are_exact_to_the_last_token(instance: Instances, clock: Clock) -> None:
    counters = instance(clock=clock)
    limit = 1 << 50
    assert await counters.hit("large", limit, limit - 2)
    (level,) = await counters.look([Quota(Kind.REQUESTS, Scope.USER, "", "large", limit)])
    assert level.used == limit - 2
    assert not await counters.hit("large", limit, 3)
    assert await counters.hit("large", limit, 2)


# -- outages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outage", ["stop", "freeze"])
async def test_while_redis_is_away_the_instance_goes_on_alone_and_comes_back(
    outage: str, redis_server: RedisServer, caplog: pytest.LogCaptureFixture, clock: Clock
) -> None:
    limits = Limiter.build(
        settings(tiers={"free": {"requests_per_minute": 3, "max_parallel_requests": 2}}),
        redis_server.url,
        {},
        clock=clock,
    )
    counters = limits._counters
    assert isinstance(counters, FallbackCounters)
    before = await limits.enter(request())
    with caplog.at_level(logging.WARNING, "orchestration.limits"):
        getattr(redis_server, outage)()
        alone = [await limits.enter(request()) for _ in range(2)]
        assert (await refused(limits)).details["limit"] == "max_parallel_requests"
        before.done(5)
        for admission in alone:
            admission.done(5)
        await limits.enter(request())
        assert (await refused(limits)).details["limit"] == "requests_per_minute"
        assert counters.away
        redis_server.thaw()
        redis_server.start()

        async def shared_again() -> bool:
            clock.advance(1)
            with suppress(RateLimited):
                (await limits.enter(request())).done()
            return not counters.away

        await eventually(shared_again)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    await limits.close()


async def test_tokens_that_redis_did_not_take_count_for_the_instance(redis_server: RedisServer) -> None:
    limits = Limiter.build(settings(tiers={"free": {"tokens_per_minute": 100}}), redis_server.url, {})
    admission = await limits.enter(request())
    redis_server.stop()
    admission.done(100)

    async def counted() -> bool:
        with suppress(RateLimited):
            (await limits.enter(request())).done()
            return False
        return True

    await eventually(counted)
    assert (await refused(limits)).details["used"] == 100
    await limits.close()
