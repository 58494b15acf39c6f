"""Circuit breakers that instances share, in a real Redis and a real Redis Cluster."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from core.breakers import FAILED, IGNORED, OK, Breakers, Change, Hold, State, Status, throttled
from core.breakers.redis import SIGNAL, RedisBreakers
from core.settings.models import CircuitBreaker
from core.state.signals import Signals
from tests.support.breaker_cases import NAME, BreakerCases, Make, fail, followed, opened, probed, state
from tests.support.clock import Clock
from tests.support.eventually import eventually
from tests.support.redis import RedisServer
from tests.support.redis_cluster import RedisCluster

pytestmark = pytest.mark.live

Instance = Callable[..., RedisBreakers]


@pytest.fixture
async def instance(redis_server: RedisServer, clock: Clock) -> AsyncIterator[Instance]:
    """Makes the breakers of another instance."""
    async with Instances(redis_server.url, clock) as make:
        yield make


class Instances:
    """`async with Instances(url, clock) as make:`"""

    def __init__(self, url: str, clock: Clock) -> None:
        self._url, self._clock = url, clock
        self._made: list[RedisBreakers] = []

    async def __aenter__(self) -> Instance:
        def make(*, tell: Any = None, patience: float = 2.0, own_clock: bool = True, **rules: object) -> RedisBreakers:
            clock = self._clock if own_clock else None
            given = CircuitBreaker.model_validate(rules)
            self._made.append(RedisBreakers(self._url, given, tell=tell, patience=patience, clock=clock))
            return self._made[-1]

        return make

    async def __aexit__(self, *_: object) -> None:
        for breakers in self._made:
            await breakers.close()


def scripts_run(server: RedisServer) -> int:
    with server.client() as client:
        found: Any = client.info("commandstats")
    return sum(found[name]["calls"] for name in ("cmdstat_evalsha", "cmdstat_eval") if name in found)


class TestRedis(BreakerCases):
    @pytest.fixture
    def make(self, instance: Instance) -> Make:
        return instance


class TestCluster(BreakerCases):
    @pytest.fixture
    async def make(self, cluster: RedisCluster, clock: Clock) -> AsyncIterator[Make]:
        cluster.flushall()
        async with Instances(random.choice(cluster.urls), clock) as make:
            yield make


class TestInstances:
    async def test_failures_of_all_add_up(self, instance: Instance, clock: Clock) -> None:
        one, other = instance(), instance()
        await fail(one, 3)
        clock.advance(1)
        await fail(other, 2)
        assert not other.allows(NAME)
        await one.refresh()
        assert not one.allows(NAME)

    async def test_successes_of_before_do_not_come_between_them(self, instance: Instance, clock: Clock) -> None:
        one, other = instance(), instance()
        other.record(NAME, OK)
        clock.advance(1)
        await fail(one, 3)
        await other.refresh()
        await fail(other, 2)
        assert not other.allows(NAME)

    async def test_so_do_calls(self, instance: Instance, clock: Clock) -> None:
        """A tenth of all calls fails, though all of those that one instance makes."""
        one, other = (instance(failure_threshold=1000, failure_ratio=0.5, minimum_calls=20) for _ in range(2))
        for _ in range(900):
            other.record(NAME, OK)
        clock.advance(1)
        await fail(one, 10)
        await other.refresh()
        await one.refresh()
        clock.advance(1)
        await fail(one, 90)
        assert one.allows(NAME)
        assert one.states()[NAME].calls == 1000

    async def test_a_broken_provider_gets_few_calls_and_is_back_with_one_probe(
        self, instance: Instance, clock: Clock
    ) -> None:
        """Two instances, the provider down for 100 s: no call is wasted beyond the threshold and the probes."""
        one, other = instance(open_for=30), instance(open_for=30)
        began = clock()
        wasted, probes, back = 0, 0, None
        while clock() < began + 300:
            for breakers in (one, other):
                permit = await breakers.acquire(NAME)
                if permit is None:
                    continue
                if clock() < began + 100:
                    wasted += 1
                    probes += permit.probe is not None
                    breakers.record(NAME, FAILED, 0.1, permit)
                else:
                    back = back or clock()
                    breakers.record(NAME, OK, 0.1, permit)
                await breakers.flush()
                await (other if breakers is one else one).refresh()
            clock.advance(0.5)
        assert wasted == 5 + probes
        assert probes == 2  # after 30 s, and 60 s later; the third is well
        assert back is not None
        assert back <= began + 30 + 60 + 120 + 1
        assert one.allows(NAME)
        assert other.allows(NAME)

    async def test_the_provider_that_is_well_again_is_back_within_open_for_and_a_probe(
        self, instance: Instance, clock: Clock
    ) -> None:
        one, other = instance(open_for=30), instance(open_for=30)
        await opened(one)
        await other.refresh()
        clock.advance(30)
        await probed(other, OK)
        await one.refresh()
        assert (state(one), state(other)) == (State.CLOSED, State.CLOSED)

    async def test_many_at_once_waste_no_more_than_were_under_way(self, instance: Instance, clock: Clock) -> None:
        both = instance(), instance()
        wasted = 0

        async def calls(breakers: Breakers) -> None:
            nonlocal wasted
            for _ in range(50):
                if (permit := await breakers.acquire(NAME)) is not None:
                    wasted += 1
                    await asyncio.sleep(0)
                    breakers.record(NAME, FAILED, permit=permit)
                    await breakers.flush()

        await asyncio.gather(*(calls(breakers) for breakers in both for _ in range(4)))
        assert 5 <= wasted <= 5 + 7

    async def test_the_places_of_probes_are_those_of_all(self, instance: Instance, clock: Clock) -> None:
        all_of_them = [instance(half_open_requests=3) for _ in range(4)]
        await opened(all_of_them[0])
        for breakers in all_of_them:
            await breakers.refresh()
        clock.advance(30)
        asked = await asyncio.gather(*(breakers.acquire(NAME) for breakers in all_of_them for _ in range(20)))
        assert sum(permit is not None for permit in asked) == 3

    async def test_who_leaves_while_asking_takes_no_place(self, instance: Instance, clock: Clock) -> None:
        breakers = instance()
        await opened(breakers)
        clock.advance(30)
        task = asyncio.create_task(breakers.acquire(NAME))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await eventually(lambda: breakers.allows(NAME))
        assert await breakers.acquire(NAME) is not None

    async def test_a_change_is_told_once(self, instance: Instance, clock: Clock) -> None:
        both = instance(), instance()
        changes = [followed(breakers) for breakers in both]
        for wait in (30, 60, 120):
            await asyncio.gather(*(fail(breakers, 5) for breakers in both))
            await asyncio.gather(*(breakers.refresh() for breakers in both))
            clock.advance(wait)
            await asyncio.gather(*(breakers.refresh() for breakers in both))
            await probed(both[0], OK)
            await both[1].refresh()
            clock.advance(1)
        told = [change for found in changes for change in found]
        for step in ((State.CLOSED, State.OPEN), (State.OPEN, State.HALF_OPEN), (State.HALF_OPEN, State.CLOSED)):
            assert told.count(step) == 3

    async def test_what_an_administrator_says_reaches_all(self, instance: Instance) -> None:
        one, other = instance(), instance()
        await one.hold(NAME, Hold.OPEN, "maintenance")
        await other.refresh()
        assert not other.allows(NAME)
        assert other.states()[NAME].why == "maintenance"
        await other.hold(NAME, Hold.AUTO, "as usual")
        await one.refresh()
        assert one.allows(NAME)

    async def test_successes_of_a_breaker_that_is_well_send_nothing(
        self, instance: Instance, redis_server: RedisServer
    ) -> None:
        breakers = instance()
        breakers.record("another", FAILED)
        await breakers.flush()
        before = scripts_run(redis_server)
        for _ in range(1000):
            permit = await breakers.acquire(NAME)
            breakers.record(NAME, OK, 0.1, permit)
        await breakers.flush()
        assert scripts_run(redis_server) == before

    async def test_a_storm_of_failures_sends_little(self, instance: Instance, redis_server: RedisServer) -> None:
        breakers = instance(failure_threshold=10_000, failure_ratio=None)
        before = scripts_run(redis_server)
        for _ in range(1000):
            breakers.record(NAME, FAILED)
        await breakers.flush()
        assert breakers.states()[NAME].failures == 1000
        assert scripts_run(redis_server) - before <= 3

    async def test_nor_do_successes_of_one_in_trouble(self, instance: Instance) -> None:
        breakers = instance()
        breakers.record(NAME, FAILED)
        breakers.record(NAME, OK)
        await asyncio.sleep(0)  # by now they are on their way
        for _ in range(1000):
            breakers.record(NAME, OK)
        assert len(breakers._shared[NAME].pending) <= 3
        await breakers.refresh()
        assert breakers.states()[NAME].calls == 1002

    async def test_signals_bring_a_change_at_once(self, instance: Instance, redis_server: RedisServer) -> None:
        signals = [Signals(redis_server.url, str(number)) for number in range(2)]
        one, other = (instance(tell=each.tell) for each in signals)
        signals[1].on(SIGNAL, other.hear)
        listening = asyncio.create_task(signals[1].run())
        try:
            await eventually(lambda: signals[1].connected)
            await opened(one)
            await eventually(lambda: not other.allows(NAME), within=2)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def test_times_are_those_of_redis(self, instance: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
        """An instance whose clock is an hour behind opens for as long as another one."""
        right, wrong = instance(own_clock=False), instance(own_clock=False)
        await right.refresh()
        with monkeypatch.context() as patched:
            patched.setattr("core.breakers.redis.time", SimpleNamespace(time=lambda: time.time() - 3600))
            await wrong.refresh()
            await opened(wrong)
        await right.refresh()
        until = right.states()[NAME].until
        assert until is not None
        assert 28 < until - right._now() < 30.5


class TestOutage:
    async def test_each_goes_on_by_itself(self, instance: Instance, redis_server: RedisServer, clock: Clock) -> None:
        breakers = instance()
        changes = followed(breakers)
        await fail(breakers, 3)
        redis_server.kill()
        await fail(breakers, 2)
        assert not breakers.allows(NAME)
        clock.advance(30)
        permit = await breakers.acquire(NAME)
        assert permit is not None
        assert await breakers.acquire(NAME) is None
        breakers.record(NAME, OK, permit=permit)
        assert state(breakers) is State.CLOSED
        assert [after for _, after in changes] == [State.OPEN, State.HALF_OPEN, State.CLOSED]

    async def test_nobody_waits_for_a_redis_that_hangs_but_once(
        self, instance: Instance, redis_server: RedisServer, clock: Clock
    ) -> None:
        breakers = instance(patience=0.2)
        await opened(breakers)
        clock.advance(30)
        redis_server.freeze()
        loop = asyncio.get_running_loop()
        begun = loop.time()
        permit = await breakers.acquire(NAME)
        assert permit is not None
        assert loop.time() - begun < 2
        breakers.record(NAME, IGNORED, permit=permit)
        begun = loop.time()
        assert await breakers.acquire(NAME) is not None
        assert loop.time() - begun < 0.05

    async def test_afterwards_what_was_heard_last_holds(
        self, instance: Instance, redis_server: RedisServer, clock: Clock
    ) -> None:
        one, other = instance(), instance()
        told = [followed(breakers) for breakers in (one, other)]
        await opened(one)
        await other.refresh()
        redis_server.kill()
        clock.advance(30)
        await one.refresh()
        await probed(one, OK)
        await other.refresh()
        assert (state(one), state(other)) == (State.CLOSED, State.HALF_OPEN)
        redis_server.start()
        for breakers in (other, one, other):
            await breakers.refresh()
        assert (one.away, other.away) == (False, False)
        assert (state(one), state(other)) == (State.CLOSED, State.CLOSED)
        assert one.states() == other.states()
        assert (State.HALF_OPEN, State.CLOSED) not in told[1]

    async def test_what_an_administrator_said_meanwhile_holds(
        self, instance: Instance, redis_server: RedisServer, clock: Clock
    ) -> None:
        one, other = instance(), instance()
        redis_server.kill()
        await one.hold(NAME, Hold.OPEN, "maintenance")
        clock.advance(1)
        await opened(other)
        redis_server.start()
        for breakers in (one, other, one):
            await breakers.refresh()
        assert [breakers.states()[NAME].hold for breakers in (one, other)] == [Hold.OPEN, Hold.OPEN]
        clock.advance(1000)
        assert not other.allows(NAME)

    async def test_what_redis_lost_is_put_in_again(
        self, instance: Instance, redis_server: RedisServer, clock: Clock
    ) -> None:
        one, other = instance(), instance()
        await one.hold("held", Hold.OPEN, "maintenance")
        await opened(one)
        await one.refresh()
        redis_server.flushall()
        await one.refresh()
        await other.refresh()
        assert not one.allows(NAME)
        assert not other.allows(NAME)
        assert not other.allows("held")

    async def test_a_hold_that_ended_meanwhile_does_not_come_back(
        self, instance: Instance, redis_server: RedisServer, clock: Clock
    ) -> None:
        one, other = instance(), instance()
        await one.hold(NAME, Hold.OPEN, "maintenance")
        await other.refresh()
        await one.hold(NAME, Hold.AUTO, "as usual")
        clock.advance(1000)
        await one.refresh()
        await other.refresh()
        await one.refresh()
        assert one.allows(NAME)
        assert other.allows(NAME)

    async def test_a_record_of_another_version_is_no_obstacle(
        self, instance: Instance, redis_server: RedisServer
    ) -> None:
        with redis_server.client() as client:
            client.hset("{orchestration}:breakers", mapping={"": "1 1", NAME: "[1,2,3]"})
        breakers = instance()
        await breakers.refresh()
        assert breakers.allows(NAME)
        await opened(breakers)


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_happens_in_any_order_all_agree_in_the_end(
    instance: Instance, redis_server: RedisServer, clock: Clock, seed: int
) -> None:
    chance = random.Random(seed)
    names = ("a", "b")
    rules = {"failure_threshold": 3, "half_open_requests": 2, "minimum_calls": 8, "patience": 0.5}
    all_of_them = [instance(**rules) for _ in range(3)]
    told: dict[str, list[Change]] = {name: [] for name in names}
    for breakers in all_of_them:
        breakers.on_change(lambda change: told[change.name].append(change))
    outage = False

    async def call(breakers: Breakers) -> None:
        name = chance.choice(names)
        if (permit := await breakers.acquire(name)) is not None and chance.random() < 0.9:
            outcome = chance.choice([OK, OK, FAILED, FAILED, IGNORED, throttled(7)])
            breakers.record(name, outcome, chance.choice([0.0, 5.0]), permit)

    async def wait(breakers: Breakers) -> None:
        clock.advance(chance.choice([0.1, 1.0, 10.0, 61.0]))

    async def hold(breakers: Breakers) -> None:
        await breakers.hold(chance.choice(names), chance.choice([Hold.AUTO, Hold.AUTO, Hold.OPEN]), "by hand")

    steps: list[Callable[[Breakers], Awaitable[None]]] = [call] * 12 + [wait] * 3 + [hold]
    for number in range(300):
        if number in (100, 150):
            outage = number == 100
            redis_server.kill() if outage else redis_server.start()
        await asyncio.gather(*(chance.choice(steps)(chance.choice(all_of_them)) for _ in range(4)))
        if chance.random() < 0.3:
            await chance.choice(all_of_them).refresh()
        if number == 99:  # until now everything was shared, so every change was told once
            await settled(all_of_them)
            for name in names:
                changes = sorted(told[name], key=lambda change: change.time)
                assert chained(changes), changes
    views = await settled(all_of_them)
    assert views[0] == views[1] == views[2]


async def settled(all_of_them: list[RedisBreakers]) -> list[dict[str, Status]]:
    for _ in range(3):
        for breakers in all_of_them:
            await breakers.refresh()
    return [breakers.states() for breakers in all_of_them]


def chained(changes: list[Change]) -> bool:
    """Whether each change begins where another one ended: none was told twice, none is missing. Those of one moment
    may have been told in any order."""
    balance = dict.fromkeys(State, 0)
    for change in changes:
        balance[change.before] -= 1
        balance[change.after] += 1
    last = -balance[State.CLOSED]
    return sum(abs(count) for count in balance.values()) in (0, 2) and last in (0, 1)
