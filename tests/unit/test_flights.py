"""Equal requests at the same time: one call, and everybody gets its answer."""

import asyncio
import random
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest

from core.cache import Entry, FlightLost, Flights, Leader, LeftBehind, ends_of
from core.cache.flights import Call
from tests.support.eventually import eventually

WHO: ContextVar[str] = ContextVar("who")
HEADERS = [(b"content-type", b"text/event-stream"), (b"x-litellm-key-spend", b"1.5")]


class Provider:
    """Answers with `chunks`, one each time `step` is called, or all at once."""

    def __init__(self, *chunks: bytes, waits: bool = False) -> None:
        self.chunks = chunks or (b"one", b"two", b"three")
        self.calls: list[str] = []
        self.ended: list[str] = []
        self._steps = asyncio.Semaphore(0 if waits else 1_000_000)

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self._steps.release()

    async def call(self, leader: Leader) -> None:
        self.calls.append(WHO.get("?"))
        try:
            await self._steps.acquire()
            leader.start(200, HEADERS)
            for chunk in self.chunks:
                await self._steps.acquire()
                await leader.send(chunk)
            self.ended.append("whole")
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise


async def read(flights: Flights, call: Call, key: bytes = b"k", who: str = "?") -> bytes:
    WHO.set(who)
    async with flights.join(key, call) as follower:
        return b"".join([chunk async for chunk in follower.chunks()])


def reader(flights: Flights, call: Call, who: str = "?") -> "asyncio.Task[bytes]":
    return asyncio.get_running_loop().create_task(read(flights, call, who=who))


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_thousand_equal_requests_are_one_call():
    flights, provider = Flights(), Provider()
    answers = await asyncio.gather(*(read(flights, provider.call) for _ in range(1_000)))
    assert set(answers) == {b"onetwothree"}
    assert len(provider.calls) == 1
    assert len(flights) == 0


async def test_requests_with_different_keys_share_nothing():
    flights, one, other = Flights(), Provider(b"a"), Provider(b"b")
    assert await asyncio.gather(read(flights, one.call, b"1"), read(flights, other.call, b"2")) == [b"a", b"b"]


async def test_who_comes_while_it_runs_gets_all_of_it_and_who_comes_after_it_does_not():
    flights, provider = Flights(), Provider(waits=True)
    first = reader(flights, provider.call)
    await turns()
    provider.step(3)
    await turns()
    late = reader(flights, provider.call)
    provider.step()
    assert await asyncio.gather(first, late) == [b"onetwothree"] * 2
    provider.step(4)
    assert await read(flights, provider.call) == b"onetwothree"
    assert len(provider.calls) == 2


async def test_until_the_answer_is_put_away_nobody_asks_again():
    flights, provider, stored = Flights(), Provider(b"x"), asyncio.Event()

    async def call(leader: Leader) -> None:
        await provider.call(leader)
        leader.finish()
        await stored.wait()

    assert await read(flights, call) == b"x"
    assert await read(flights, call) == b"x"
    assert len(provider.calls) == 1
    stored.set()
    await eventually(lambda: len(flights) == 0)


async def test_chunks_reach_everybody_as_they_come():
    flights, provider = Flights(), Provider(waits=True)
    async with flights.join(b"k", provider.call), flights.join(b"k", provider.call) as other:
        chunks = other.chunks()
        provider.step(2)
        assert await anext(chunks) == b"one"
        provider.step()
        assert await anext(chunks) == b"two"
    await flights.close()


async def test_headers_about_the_leader_are_his_alone():
    flights, provider = Flights(), Provider()
    async with flights.join(b"k", provider.call) as leader, flights.join(b"k", provider.call) as other:
        assert (await leader.head()).headers == tuple(HEADERS)
        assert (await other.head()).headers == (HEADERS[0],)
        assert (leader.led, other.led) == (True, False)


class TestLeaving:
    async def test_a_leader_whose_client_leaves_goes_on_for_the_others(self):
        flights, provider = Flights(), Provider(waits=True)
        leader, other = reader(flights, provider.call, "ada"), reader(flights, provider.call, "bob")
        provider.step(2)
        await turns()
        leader.cancel()
        await turns()
        provider.step(2)
        assert await other == b"onetwothree"
        assert provider.calls == ["ada"]

    async def test_when_all_have_left_the_call_learns_of_it_and_is_cancelled_in_the_end(self):
        flights, provider, told = Flights(grace=0.02), Provider(waits=True), asyncio.Event()

        async def call(leader: Leader) -> None:
            async def listen() -> None:
                await leader.wait_deserted()
                told.set()

            listening = asyncio.create_task(listen())
            await provider.call(leader)
            await listening

        readers = [reader(flights, call) for _ in range(3)]
        await turns()
        for one in readers:
            one.cancel()
        await asyncio.wait_for(told.wait(), 1)
        assert provider.ended == []
        await eventually(lambda: provider.ended == ["cancelled"])
        assert len(flights) == 0

    async def test_who_comes_after_all_have_left_asks_anew(self):
        flights, provider = Flights(), Provider(waits=True)
        gone = reader(flights, provider.call)
        await turns()
        gone.cancel()
        await turns()
        new = reader(flights, provider.call)
        provider.step(8)
        assert await new == b"onetwothree"
        assert len(provider.calls) == 2


class TestFailing:
    async def test_a_leader_that_fails_before_it_says_anything_hands_over(self):
        flights, provider = Flights(), Provider()

        async def fails(leader: Leader) -> None:
            await turns()
            raise ConnectionError("no provider")

        first, second, third = reader(flights, fails), reader(flights, provider.call, "bob"), reader(flights, fails)
        with pytest.raises(ConnectionError):
            await first
        assert await asyncio.gather(second, third) == [b"onetwothree"] * 2
        assert provider.calls == ["bob"]

    async def test_but_not_for_ever(self):
        flights, calls = Flights(handovers=2), 0

        async def fails(leader: Leader) -> None:
            nonlocal calls
            calls += 1
            await turns()
            raise ConnectionError("no provider")

        ends = await asyncio.gather(*(read(flights, fails) for _ in range(50)), return_exceptions=True)
        assert calls == 3
        assert [type(end) for end in ends] == [ConnectionError] * 3 + [FlightLost] * 47
        assert len(flights) == 0

    async def test_a_refusal_is_for_him_alone_who_was_refused(self):
        flights, provider = Flights(), Provider()

        async def refused(leader: Leader) -> None:
            await turns()
            leader.part()
            leader.start(429, ())
            await leader.send(b"no budget")

        poor = [reader(flights, refused) for _ in range(20)]
        rich = [reader(flights, provider.call) for _ in range(20)]
        assert await asyncio.gather(*poor, *rich) == [b"no budget"] * 20 + [b"onetwothree"] * 20
        assert len(provider.calls) == 1

    async def test_he_gets_it_at_once_whatever_the_others_wait_for(self):
        flights, provider = Flights(), Provider(waits=True)

        async def refused(leader: Leader) -> None:
            await turns()
            leader.part()
            leader.start(429, ())
            await leader.send(b"no budget")

        poor, rich = reader(flights, refused), reader(flights, provider.call)
        assert await asyncio.wait_for(poor, 1) == b"no budget"
        provider.step(4)
        assert await rich == b"onetwothree"

    async def test_the_others_go_on_though_he_has_left_before_he_was_refused(self):
        flights, provider = Flights(), Provider()

        async def refused(leader: Leader) -> None:
            await turns(10)
            leader.part()

        poor, rich = reader(flights, refused), reader(flights, provider.call)
        await turns()
        poor.cancel()
        assert await rich == b"onetwothree"

    async def test_an_error_that_is_an_answer_is_shared(self):
        flights, calls = Flights(), 0

        async def overloaded(leader: Leader) -> None:
            nonlocal calls
            calls += 1
            await turns()
            leader.start(503, ())
            await leader.send(b"busy")

        assert set(await asyncio.gather(*(read(flights, overloaded) for _ in range(50)))) == {b"busy"}
        assert calls == 1

    async def test_a_stream_that_is_cut_ends_so_for_all(self):
        flights = Flights()

        async def cut(leader: Leader) -> None:
            leader.start(200, ())
            await leader.send(b"half")
            await turns()
            raise ConnectionError("cut")

        async def parts() -> list[bytes]:
            got: list[bytes] = []
            async with flights.join(b"k", cut) as follower:
                with pytest.raises((ConnectionError, FlightLost)):
                    async for chunk in follower.chunks():
                        got.append(chunk)
            return got

        assert await asyncio.gather(parts(), parts()) == [[b"half"]] * 2

    async def test_a_call_that_is_cancelled_from_outside_hands_over(self):
        flights, provider = Flights(), Provider()

        async def cancelled(leader: Leader) -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(1)

        first, second = reader(flights, cancelled), reader(flights, provider.call)
        with pytest.raises(FlightLost):
            await first
        assert await second == b"onetwothree"


class TestPace:
    async def test_nobody_waits_for_a_slow_reader_and_what_is_kept_is_bounded(self):
        flights = Flights(most_bytes=1_000)
        kept: list[int] = []

        async def call(leader: Leader) -> None:
            leader.start(200, ())
            for _ in range(100):
                await leader.send(b"x" * 100)
                kept.append(sum(map(len, leader.flight.chunks)))
                await asyncio.sleep(0)

        fast = reader(flights, call)
        async with flights.join(b"k", call) as slow:
            chunks = slow.chunks()
            assert await anext(chunks) == b"x" * 100
            assert len(await fast) == 10_000
            with pytest.raises(LeftBehind):
                await anext(chunks)
        assert max(kept) <= 2_100

    async def test_one_within_the_bound_gets_all_of_it(self):
        flights, provider = Flights(most_bytes=1_000), Provider(*[b"x" * 100] * 9)
        fast = reader(flights, provider.call)
        async with flights.join(b"k", provider.call) as slow:
            assert len(await fast) == 900
            assert b"".join([chunk async for chunk in slow.chunks()]) == b"x" * 900

    async def test_when_the_fastest_leaves_the_provider_goes_at_the_pace_of_the_next(self):
        flights, provider = Flights(most_bytes=1_000), Provider(*[b"x" * 100] * 40)
        async with flights.join(b"k", provider.call) as slow:
            chunks = slow.chunks()
            await anext(chunks)
            async with flights.join(b"k", provider.call) as fast:
                ahead = fast.chunks()
                for _ in range(10):
                    await anext(ahead)
            await turns(20)
            assert len(b"".join([chunk async for chunk in chunks])) == 3_900

    async def test_an_answer_in_one_piece_may_be_larger(self):
        flights, provider = Flights(most_bytes=1_000), Provider(b"x" * 50_000)
        answers = await asyncio.gather(*(read(flights, provider.call) for _ in range(10)))
        assert set(answers) == {b"x" * 50_000}

    async def test_a_provider_is_not_read_faster_than_its_only_reader(self):
        flights, provider = Flights(most_bytes=1_000), Provider(*[b"x" * 100] * 100)
        async with flights.join(b"k", provider.call) as slow:
            chunks = slow.chunks()
            for _ in range(100):
                await turns()
                assert slow.flight.written - slow.position <= 1_100
                await anext(chunks)
            assert await anext(chunks, None) is None

    async def test_who_comes_when_the_beginning_is_gone_asks_himself(self):
        flights, provider = Flights(most_bytes=200), Provider(*[b"x" * 100] * 10, waits=True)
        first = reader(flights, provider.call)
        provider.step(7)
        await turns(20)
        late = reader(flights, provider.call)
        provider.step(30)
        assert await asyncio.gather(first, late) == [b"x" * 1_000] * 2
        assert len(provider.calls) == 2


class Other:
    """Another instance, that has the answer when `answer` is set."""

    def __init__(self, entry: Entry | None) -> None:
        self.entry = entry
        self.answer = asyncio.Event()
        self.began: list[bytes] = []
        self.ended: list[bytes] = []

    async def begin(self, key: bytes) -> Entry | None:
        self.began.append(key)
        await self.answer.wait()
        return self.entry

    async def end(self, key: bytes) -> None:
        self.ended.append(key)


class TestElsewhere:
    async def test_what_another_instance_got_is_everybodys(self):
        chunks = [b"a" * 100, b"b"]
        other = Other(Entry(200, (), b"".join(chunks), ends_of(chunks), "m", 0, 1))
        flights, provider = Flights(most_bytes=10, elsewhere=other), Provider()
        readers = [reader(flights, provider.call) for _ in range(3)]
        await turns()
        other.answer.set()
        assert set(await asyncio.gather(*readers)) == {b"".join(chunks)}
        assert (provider.calls, other.began) == ([], [b"k"])

    async def test_what_none_has_is_got_here_and_the_others_are_told(self):
        other, provider = Other(None), Provider()
        flights = Flights(elsewhere=other)
        readers = [reader(flights, provider.call, who) for who in ("ada", "bob", "eve")]
        await turns()
        readers[0].cancel()
        await turns()
        other.answer.set()
        assert await asyncio.gather(*readers[1:]) == [b"onetwothree"] * 2
        assert provider.calls == ["bob"]
        await eventually(lambda: other.ended == [b"k"])

    async def test_nobody_is_left_waiting_for_an_instance_that_nobody_here_needs(self):
        other, provider = Other(None), Provider()
        flights = Flights(elsewhere=other)
        only = reader(flights, provider.call)
        await turns()
        only.cancel()
        await eventually(lambda: len(flights) == 0)
        assert provider.calls == []


@pytest.mark.parametrize("seed", range(40))
async def test_whatever_happens_everybody_who_stays_gets_the_answer_or_learns_that_there_is_none(seed: int):
    """Readers that come, dawdle and leave, calls that fail, refuse, are cut and cancelled, at any moment."""
    chance = random.Random(seed)
    flights = Flights(most_bytes=chance.choice([200, 10_000]), handovers=2, grace=0.0)
    at_work: dict[bytes, list[Leader]] = {b"a": [], b"b": []}
    good = b"".join(b"%04d" % number for number in range(60))

    async def pause() -> None:
        for _ in range(chance.choice([0, 0, 1, 3])):
            await asyncio.sleep(0)

    def call_of(key: bytes) -> Callable[[Leader], Any]:
        fate = chance.choice(["good"] * 5 + ["early", "cut", "refused", "silent", "cancelled"])

        async def call(leader: Leader) -> None:
            at_work[key].append(leader)
            assert sum(map(shared, at_work[key])) <= 1
            try:
                await pause()
                if fate == "early":
                    raise ConnectionError(fate)
                if fate == "silent":
                    return
                if fate == "cancelled":
                    task = asyncio.current_task()
                    assert task is not None
                    task.cancel()
                    await asyncio.sleep(0)
                if fate == "refused":
                    leader.part()
                    leader.start(429, ())
                    await leader.send(b"refused")
                    return
                leader.start(200, ())
                for number in range(60):
                    await leader.send(b"%04d" % number)
                    await pause()
                    if fate == "cut" and number == 30:
                        raise ConnectionError(fate)
            finally:
                at_work[key].remove(leader)

        return call

    async def one(ends: list[str]) -> None:
        key = chance.choice([b"a", b"b"])
        async with flights.join(key, call_of(key)) as follower:
            got = b""
            try:
                async for chunk in follower.chunks():
                    got += chunk
                    await pause()
                assert got == good or (got == b"refused" and follower.led)
                ends.append("refused" if got == b"refused" else "good")
            except (FlightLost, ConnectionError) as error:
                assert good.startswith(got)
                ends.append(type(error).__name__)

    ends: list[str] = []
    tasks: list[asyncio.Task[None]] = []
    for _ in range(60):
        tasks.append(asyncio.create_task(one(ends)))
        await pause()
        if chance.random() < 0.2:
            chance.choice(tasks).cancel()
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    assert all(isinstance(result, asyncio.CancelledError) for result in results if result is not None), results
    assert len(ends) == results.count(None)
    await eventually(lambda: len(flights) == 0 and not flights._tasks)
    assert "good" in ends


def shared(leader: Leader) -> bool:
    """Whether others who come now get this leader's answer: somebody reads it, and it is there from the beginning."""
    flight = leader.flight
    return bool(flight.followers) and not flight.alone and flight.first == 0 and not flight.ended
