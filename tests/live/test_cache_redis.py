"""Cached answers that instances share, and answers that one gets for all, in a real Redis and a real Redis Cluster."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from core.cache import Cache, Entry, Flights, Label, Leader, Memory, ends_of
from core.cache.locks import RedisLocks
from core.cache.redis import SIGNAL, Link, RedisCache
from core.state.reservations import StateAway
from core.state.signals import Signals
from tests.support.eventually import eventually
from tests.support.redis import RedisServer
from tests.support.redis_cluster import RedisCluster
from tests.unit.test_cache_key import assert_no_mix_ups

pytestmark = pytest.mark.live

CHAT = Label("chat", "large")
KEY = b"k" * 24


def entry(body: bytes = b'{"a":1}', **other: Any) -> Entry:
    given = {"ends": ends_of(()), "model": "large", "created_ms": int(time.time() * 1000), "ttl_ms": 60_000}
    return Entry(200, ((b"content-type", b"application/json"),), body, **(given | other))


@dataclass
class Instance:
    link: Link
    redis: RedisCache
    cache: Cache
    locks: RedisLocks
    flights: Flights

    async def get(self, key: bytes = KEY) -> bytes | None:
        found = await self.cache.find(key, CHAT)
        return None if found is None else found.body

    async def read(self, key: bytes, chunks: list[bytes], calls: list[str], *, store: bool = True) -> bytes:
        """As the edge answers: from the cache, or from whoever gets the answer, which is then put into the cache."""
        found = await self.cache.find(key, CHAT)
        if found is not None:
            return found.body

        async def call(leader: Leader) -> None:
            calls.append("call")
            leader.start(200, ())
            for chunk in chunks:
                await asyncio.sleep(0.01)
                await leader.send(chunk)
            leader.finish()
            if store:
                await self.cache.put(key, entry(b"".join(chunks), ends=ends_of(chunks)))

        async with self.flights.join(key, call) as follower:
            return b"".join([chunk async for chunk in follower.chunks()])


class Instances:
    def __init__(self, url: str) -> None:
        self.url = url
        self.made: list[Instance] = []

    def __call__(self, *, lease: float = 10.0, wait: float = 30.0, patience: float = 0.2, **given: Any) -> Instance:
        link = Link(self.url, patience)
        redis = RedisCache(link, **given)
        cache = Cache(Memory(1000, 1 << 24), redis)
        locks = RedisLocks(link, redis, cache.look, lease=lease, wait=wait)
        self.made.append(Instance(link, redis, cache, locks, Flights(elsewhere=locks)))
        return self.made[-1]

    async def close(self) -> None:
        for made in self.made:
            await made.flights.close()
            await made.locks.close()
            await made.redis.close()


@pytest.fixture
async def instance(redis_server: RedisServer) -> AsyncIterator[Instances]:
    redis_server.flushall()
    instances = Instances(redis_server.url)
    yield instances
    await instances.close()


class TestSharing:
    async def test_what_one_instance_has_the_other_has(self, instance: Instances) -> None:
        one, other = instance(), instance()
        chunks = [b"data: 1\n\n", b"data: [DONE]\n\n"]
        assert await one.get() is None
        await one.cache.put(KEY, entry(b"".join(chunks), ends=ends_of(chunks), stale_ms=5, tags=("t",)))
        found = await other.cache.find(KEY, CHAT)
        assert found == one.cache.get(KEY, CHAT)
        assert found is not None
        assert list(found.chunks()) == chunks
        assert other.cache.get(KEY, CHAT) is not None, "what came from Redis is in memory from then on"
        assert other.cache.stats().redis_hits == 1

    async def test_it_works_in_a_cluster(self, cluster: RedisCluster) -> None:
        cluster.flushall()
        instances = Instances(random.choice(cluster.urls))
        try:
            one, other = instances(patience=1.0), instances(patience=1.0)
            await one.get()
            await one.cache.put(KEY, entry())
            assert await other.get() == b'{"a":1}'
            await other.cache.invalidate(model="large")
            await one.redis.refresh()
            assert await one.get() is None
            calls: list[str] = []
            answers = await asyncio.gather(*(made.read(b"q" * 24, [b"a"], calls) for made in (one, other) * 5))
            assert (set(answers), len(calls)) == ({b"a"}, 1)
        finally:
            await instances.close()

    async def test_it_lies_there_no_longer_than_it_may_be_used(
        self, instance: Instances, redis_server: RedisServer
    ) -> None:
        one = instance()
        await one.get()
        await one.cache.put(KEY, entry(ttl_ms=60_000, stale_ms=40_000))
        with redis_server.client() as client:
            assert 95_000 < client.pttl(one.redis.name(KEY)) <= 100_000  # pyright: ignore[reportOperatorIssue]

    async def test_large_ones_are_compressed_and_too_large_ones_are_left_out(
        self, instance: Instances, redis_server: RedisServer
    ) -> None:
        one, other = instance(most_bytes=500_000), instance()
        await one.get()
        large = b"to be or not to be, " * 20_000
        assert await one.redis.put(KEY, entry(large))
        assert not await one.redis.put(b"x" * 24, entry(b"x" * 500_001))
        with redis_server.client() as client:
            assert client.strlen(one.redis.name(KEY)) < len(large) / 50  # pyright: ignore[reportOperatorIssue]
        assert await other.get() == large


class TestInvalidation:
    @pytest.mark.parametrize("what", [{"model": "large"}, {"user": "ada"}, {"tag": "docs"}, {"all": True}])
    async def test_it_reaches_every_instance_and_only_what_it_names(
        self, instance: Instances, what: dict[str, Any]
    ) -> None:
        one, other, third = instance(), instance(), instance()
        await one.get()
        await one.cache.put(KEY, entry(user_id="ada", tags=("docs",)))
        await one.cache.put(b"o" * 24, entry(b"other", model="small", user_id="bob"))
        await other.get()
        await other.get(b"o" * 24)
        await one.cache.invalidate(**what)
        await other.redis.refresh()
        for made in (one, other, third):
            assert await made.get() is None
            assert await made.get(b"o" * 24) == (None if "all" in what else b"other")
        await one.cache.put(KEY, entry(b"new", user_id="ada", tags=("docs",)))
        assert await third.get() == b"new"

    async def test_an_instance_learns_of_it_by_itself(self, instance: Instances) -> None:
        one, other = instance(), instance()
        await one.get()
        await one.cache.put(KEY, entry())
        await other.get()
        listening = asyncio.create_task(other.redis.run())
        await one.cache.invalidate(model="large")
        await eventually(lambda: other.cache.get(KEY, CHAT) is None, within=5)
        listening.cancel()

    async def test_it_is_told_of_it_at_once_where_instances_have_signals(
        self, instance: Instances, redis_server: RedisServer
    ) -> None:
        here, there = Signals(redis_server.url, "here"), Signals(redis_server.url, "there")
        one, other = instance(tell=here.tell), instance()
        there.on(SIGNAL, other.redis.hear)
        listening = asyncio.create_task(there.run())
        await eventually(lambda: there.connected)
        await one.get()
        await one.cache.put(KEY, entry())
        await other.get()
        await one.cache.invalidate(model="large")
        await eventually(lambda: other.cache.get(KEY, CHAT) is None, within=2)
        listening.cancel()

    async def test_an_answer_from_before_that_comes_late_is_not_served(self, instance: Instances) -> None:
        """Its instance does not know yet that it is outdated."""
        one, other = instance(), instance()
        await one.get()
        await other.cache.invalidate(model="large")
        await one.redis.put(KEY, entry(b"old"))
        assert await other.get() is None

    async def test_any_number_of_them_is_remembered(self, instance: Instances, redis_server: RedisServer) -> None:
        one, other = instance(), instance()
        await one.get()
        await one.cache.put(KEY, entry(user_id="u0"))
        await one.redis.invalidate([f"user:u{number}" for number in range(2_500)])
        assert await other.get() is None
        with redis_server.client() as client:
            assert client.hlen("{orchestration}:cache:invalidations") < 10  # pyright: ignore[reportOperatorIssue]

    async def test_when_redis_forgets_what_was_taken_out_it_forgets_the_answers_too(
        self, instance: Instances, redis_server: RedisServer
    ) -> None:
        one, other = instance(), instance()
        await one.get()
        await one.cache.put(KEY, entry())
        await one.cache.invalidate(model="large")
        with redis_server.client() as client:
            client.delete("{orchestration}:cache:invalidations")
        assert await other.get() is None
        assert await one.get() is None

    async def test_what_redis_could_not_be_told_it_is_told_later(
        self, instance: Instances, redis_server: RedisServer
    ) -> None:
        one, other = instance(), instance()
        await one.get()
        await one.cache.put(KEY, entry())
        redis_server.freeze()
        try:
            with pytest.raises(StateAway):
                await one.cache.invalidate(model="large")
        finally:
            redis_server.thaw()
        assert await one.get() is None

        async def told() -> bool:
            await one.redis.refresh()
            return True

        await eventually(told, within=5)
        assert await other.get() is None


class TestEncryption:
    SECRET = b"a key of some length"

    async def test_redis_sees_neither_answers_nor_keys(self, instance: Instances, redis_server: RedisServer) -> None:
        one, other = instance(key=self.SECRET), instance(key=self.SECRET)
        await one.get()
        await one.cache.put(KEY, entry(b"a secret answer"))
        assert await other.get() == b"a secret answer"
        with redis_server.client() as client:
            names: Any = client.keys("*")
            held = b"".join(names) + b"".join(client.get(name) or b"" for name in names if b"inval" not in name)  # pyright: ignore[reportArgumentType]
        assert b"secret" not in held
        assert b"large" not in held
        assert KEY.hex().encode() not in held

    @pytest.mark.parametrize("key", [None, b"another key of some length"])
    async def test_with_another_key_there_is_nothing_and_it_is_said_once(
        self, instance: Instances, key: bytes | None, caplog: pytest.LogCaptureFixture, redis_server: RedisServer
    ) -> None:
        one, other = instance(key=self.SECRET), instance(key=key)
        await one.get()
        with caplog.at_level(logging.WARNING), redis_server.client() as client:
            for number in range(3):
                name = b"%024d" % number
                await one.redis.put(name, entry())
                # As if the names were the same.
                client.rename(one.redis.name(name), other.redis.name(name))
                assert await other.get(name) is None
        assert len([record for record in caplog.records if "cannot be read" in record.message]) == 1

    async def test_an_answer_that_was_put_in_anothers_place_or_altered_is_none(
        self, instance: Instances, redis_server: RedisServer
    ) -> None:
        one, other = instance(key=self.SECRET), instance(key=self.SECRET)
        await one.get()
        await one.redis.put(KEY, entry(b"of one tenant"))
        with redis_server.client() as client:
            value: Any = client.get(one.redis.name(KEY))
            client.set(one.redis.name(b"o" * 24), value)
            client.set(one.redis.name(KEY), value[:-1] + bytes([value[-1] ^ 1]))
        assert await other.get(b"o" * 24) is None
        assert await other.get() is None
        assert other.redis.unreadable == 2

    async def test_rubbish_is_a_miss(self, instance: Instances, redis_server: RedisServer) -> None:
        one = instance()
        await one.get()
        await one.redis.put(KEY, entry())
        with redis_server.client() as client:
            good: Any = client.get(one.redis.name(KEY))
            for rubbish in (b"", b"\x00", b"x" * 500, good[:30], good[:-1], good + b"x"):
                client.set(one.redis.name(KEY), rubbish)
                assert await one.get() is None


class TestOutage:
    async def test_a_redis_that_does_not_answer_costs_a_moment_and_then_nothing(
        self, instance: Instances, redis_server: RedisServer
    ) -> None:
        one = instance(patience=0.05)
        await one.get()
        await one.cache.put(KEY, entry())
        one.cache.memory.clear()
        redis_server.freeze()
        try:
            times: list[float] = []
            for _ in range(30):
                began = time.perf_counter()
                assert await one.get() is None
                times.append(time.perf_counter() - began)
        finally:
            redis_server.thaw()
        assert max(times) < 1
        assert sum(time > 0.02 for time in times) <= Link.LATE + 1
        assert one.cache.stats().redis_away

        async def back() -> bool:
            return await one.get() is not None

        await eventually(back, within=5)
        assert not one.cache.stats().redis_away

    async def test_nor_does_one_that_is_gone(self, instance: Instances, redis_server: RedisServer) -> None:
        one, calls = instance(), list[str]()
        await one.get()
        redis_server.kill()
        began = time.perf_counter()
        for number in range(20):
            assert await one.read(b"%024d" % number, [b"a"], calls) == b"a"
        assert time.perf_counter() - began < 10
        assert len(calls) == 20
        redis_server.start()


class TestOneCall:
    @pytest.mark.parametrize("chunks", [[b"all of it"], [b"a", b"b", b"c", b"d"]])
    async def test_a_thousand_equal_requests_to_two_instances_are_one_call(
        self, instance: Instances, chunks: list[bytes]
    ) -> None:
        both, calls = (instance(patience=2.0), instance(patience=2.0)), list[str]()
        readers = [made.read(KEY, chunks, calls) for made in both for _ in range(500)]
        random.shuffle(readers)
        assert set(await asyncio.gather(*readers)) == {b"".join(chunks)}
        assert len(calls) == 1

    async def test_an_answer_that_was_stored_meanwhile_is_not_asked_for_again(self, instance: Instances) -> None:
        one, other, calls = instance(), instance(), list[str]()
        assert await one.cache.find(KEY, CHAT) is None
        await other.read(KEY, [b"a"], calls)
        await eventually(lambda: len(other.flights) == 0)
        entry_there = await one.locks.begin(KEY)
        assert entry_there is not None
        assert entry_there.body == b"a"

    async def test_where_nothing_is_stored_the_next_instance_asks_itself(self, instance: Instances) -> None:
        both, calls = (instance(), instance()), list[str]()
        answers = await asyncio.gather(*(made.read(KEY, [b"a"], calls, store=False) for made in both for _ in range(9)))
        assert (set(answers), len(calls)) == ({b"a"}, 2)

    async def test_an_instance_that_dies_gives_up_its_place(self, instance: Instances) -> None:
        dead, other, calls = instance(lease=0.3), instance(lease=0.3), list[str]()
        assert await dead.locks.begin(KEY) is None
        assert dead.locks._renewing is not None
        dead.locks._renewing.cancel()
        began = time.perf_counter()
        assert await other.read(KEY, [b"a"], calls) == b"a"
        assert 0.1 < time.perf_counter() - began < 2

    async def test_one_that_takes_long_keeps_it_but_nobody_waits_for_ever(self, instance: Instances) -> None:
        slow, other, calls = instance(lease=0.2), instance(lease=0.2, wait=1.0), list[str]()
        assert await slow.locks.begin(KEY) is None
        began = time.perf_counter()
        assert await other.read(KEY, [b"a"], calls) == b"a"
        assert 0.9 < time.perf_counter() - began < 2.5

    async def test_who_leaves_while_it_asks_holds_up_nobody(self, instance: Instances) -> None:
        one, other, calls = instance(), instance(wait=5), list[str]()
        for _ in range(20):
            leaving = asyncio.create_task(one.read(KEY, [b"a"], calls))
            await asyncio.sleep(random.random() * 0.002)
            leaving.cancel()
            await asyncio.wait({leaving})
        one.flights.grace = 0
        began = time.perf_counter()
        assert await other.read(KEY, [b"a"], calls) == b"a"
        assert time.perf_counter() - began < 4.5


def test_a_million_requests_bring_nobody_anothers_answer() -> None:
    assert_no_mix_ups(1_000_000, seed=random.randrange(1 << 30))
