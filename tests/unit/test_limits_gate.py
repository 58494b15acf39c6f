"""The gate: never more inside than there are places, by priority and then by arrival, and nobody is forgotten."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import Overloaded
from plugins.limits import Gate, Slot
from tests.support.clock import Clock


async def settle() -> None:
    """Let every task that can go on do so."""
    for _ in range(5):
        await asyncio.sleep(0)


class Timers:
    """`loop.call_later` on a clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.waiting: list[Timers.Timer] = []

    class Timer:
        def __init__(self, timers: Timers, at: float, call: Callable[[], None]) -> None:
            self.timers, self.at, self.call = timers, at, call

        def cancel(self) -> None:
            if self in self.timers.waiting:
                self.timers.waiting.remove(self)

    def later(self, seconds: float, call: Callable[[], None]) -> Timer:
        timer = Timers.Timer(self, self.clock() + seconds, call)
        self.waiting.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        for timer in [timer for timer in self.waiting if timer.at <= self.clock()]:
            timer.call()


class Visit:
    """A request at the gate, as a task; its name tells the order of arrival."""

    def __init__(self, gate: Gate, priority: int, **options: object) -> None:
        self.priority = priority
        self.task = asyncio.ensure_future(gate.acquire(priority, **options))  # type: ignore[arg-type]

    @property
    def inside(self) -> bool:
        return self.task.done() and not self.task.cancelled() and self.task.exception() is None

    @property
    def error(self) -> BaseException | None:
        return self.task.exception() if self.task.done() and not self.task.cancelled() else None

    def leave(self) -> None:
        self.task.result().release()


async def visits(gate: Gate, *priorities: int) -> list[Visit]:
    found = []
    for priority in priorities:
        found.append(Visit(gate, priority))
        await settle()
    return found


async def test_the_first_priority_goes_first_and_then_who_came_first() -> None:
    gate = Gate(1, 10, 60)
    first, *others = await visits(gate, 2, 3, 1, 2, 1, 3)
    order: list[int] = []
    inside = first
    for _ in others:
        inside.leave()
        await settle()
        (inside,) = [visit for visit in others if visit.inside and others.index(visit) not in order]
        order.append(others.index(inside))
    assert order == [1, 3, 2, 0, 4]
    inside.leave()
    assert gate.inside == gate.waiting == 0


async def test_a_full_queue_turns_away_the_lowest_priority_that_came_last() -> None:
    gate = Gate(1, 3, 60)
    _, a, b, c = await visits(gate, 1, 2, 3, 3)
    (d,) = await visits(gate, 1)
    assert isinstance(c.error, Overloaded)
    (e,) = await visits(gate, 2)
    assert isinstance(b.error, Overloaded)
    (f,) = await visits(gate, 2)
    assert isinstance(f.error, Overloaded)
    assert f.error.status == 503
    assert f.error.body()["code"] == "overloaded"
    assert f.error.headers["retry-after"]
    assert not any(visit.task.done() for visit in (a, d, e))
    for visit in (a, d, e):
        visit.task.cancel()


async def test_without_a_queue_whoever_finds_no_place_is_turned_away() -> None:
    gate = Gate(1, 0, 60)
    _, second = await visits(gate, 3, 1)
    assert isinstance(second.error, Overloaded)


async def test_nobody_waits_longer_than_the_timeout(clock: Clock) -> None:
    timers = Timers(clock)
    gate = Gate(1, 10, 5, later=timers.later)
    first, second = await visits(gate, 1, 1)
    timers.advance(4)
    (third,) = await visits(gate, 1)
    timers.advance(1)
    await settle()
    assert isinstance(second.error, Overloaded)
    assert "5 s" in str(second.error)
    assert not third.task.done()
    first.leave()
    await settle()
    assert third.inside
    assert timers.waiting == []


async def test_a_client_that_leaves_makes_room() -> None:
    gate = Gate(1, 10, 60)
    gone = asyncio.Event()
    (first,) = await visits(gate, 1)
    waiting = Visit(gate, 1, left=gone.wait)
    await settle()
    assert gate.waiting == 1
    gone.set()
    await settle()
    assert isinstance(waiting.error, Overloaded)
    assert gate.waiting == 0
    first.leave()
    assert gate.inside == 0


async def test_a_watch_that_fails_says_nothing_about_the_client() -> None:
    async def broken() -> None:
        raise RuntimeError("no such stream")

    gate = Gate(1, 10, 60)
    (first,) = await visits(gate, 1)
    waiting = Visit(gate, 1, left=broken)
    await settle()
    assert not waiting.task.done()
    first.leave()
    await settle()
    assert waiting.inside


async def test_a_slot_is_given_back_once() -> None:
    gate = Gate(2, 0, 60)
    slots: list[Slot] = [await gate.acquire(), await gate.acquire()]
    slots[0].release()
    slots[0].release()
    assert gate.inside == 1


async def test_whoever_fails_inside_gives_the_place_back() -> None:
    gate = Gate(1, 0, 60)
    with pytest.raises(ValueError, match="inside"):
        async with gate.enter(1):
            raise ValueError("inside")
    assert gate.inside == 0


async def test_more_places_let_those_in_who_wait_and_fewer_put_nobody_out() -> None:
    gate = Gate(1, 10, 60)
    all_of_them = await visits(gate, 1, 2, 3, 3)
    gate.resize(3, 10, 60)
    await settle()
    assert [visit.inside for visit in all_of_them] == [True, True, True, False]
    gate.resize(1, 10, 60)
    assert gate.inside == 3
    all_of_them[0].leave()
    all_of_them[1].leave()
    await settle()
    assert not all_of_them[3].inside
    all_of_them[2].leave()
    await settle()
    assert all_of_them[3].inside
    assert gate.inside == 1


@pytest.mark.slow
async def test_ten_thousand_in_the_queue_cost_no_more_each_than_ten() -> None:
    async def seconds(size: int) -> float:
        gate = Gate(1, size, 60)
        waiting = [Visit(gate, 1 + number % 10) for number in range(size + 1)]
        await asyncio.sleep(0)
        began = time.thread_time()
        for visit in waiting[1 : size // 2]:
            gate._turn_away(next(iter(gate._queues[visit.priority])), Overloaded("enough"))
        took = (time.thread_time() - began) / (size // 2)
        for visit in waiting:
            visit.task.cancel()
        await asyncio.wait({visit.task for visit in waiting})
        return took

    # The least of three: a collection of garbage in the middle of it says nothing about queues.
    many, few = [min([await seconds(size) for _ in range(3)]) for size in (10_000, 100)]
    assert many < 20 * max(few, 2e-6)


# -- any order of events -------------------------------------------------------------------------------------------

PRIORITIES = st.integers(1, 10)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), PRIORITIES),
        st.tuples(st.just("leave"), st.integers(0, 20)),
        st.tuples(st.just("cancel"), st.integers(0, 20)),
        # The place is given, and its new owner is cancelled before it can know.
        st.tuples(st.just("hand over and cancel"), st.integers(0, 20)),
        st.tuples(st.just("advance"), st.integers(1, 6)),
        st.tuples(st.just("resize"), st.integers(1, 5)),
    ),
    max_size=60,
)


class Model:
    """The rules, written down as simply as can be: a sorted list of who waits."""

    def __init__(self, most: int, queue: int, timeout: float) -> None:
        self.most, self.queue, self.timeout = most, queue, timeout
        self.inside: list[Visit] = []
        self.waiting: list[tuple[int, int, float, Visit]] = []
        self.refused: list[Visit] = []
        self.order = 0

    def arrive(self, visit: Visit, now: float) -> None:
        self.order += 1
        if len(self.inside) < self.most:
            self.inside.append(visit)
            return
        self.waiting.append((visit.priority, self.order, now, visit))
        self.waiting.sort(key=lambda entry: entry[:2])
        if len(self.waiting) > self.queue:
            self.refused.append(self.waiting.pop()[3])

    def remove(self, visit: Visit) -> None:
        self.inside = [other for other in self.inside if other is not visit]
        self.waiting = [entry for entry in self.waiting if entry[3] is not visit]
        self.fill()

    def fill(self) -> None:
        while self.waiting and len(self.inside) < self.most:
            self.inside.append(self.waiting.pop(0)[3])

    def expire(self, now: float) -> None:
        self.refused += [entry[3] for entry in self.waiting if entry[2] + self.timeout <= now]
        self.waiting = [entry for entry in self.waiting if entry[2] + self.timeout > now]


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.integers(1, 3), st.integers(0, 4), STEPS)
def test_whatever_happens_the_gate_keeps_its_rules(most: int, queue: int, steps: list[tuple[str, int]]) -> None:
    asyncio.run(_keeps_its_rules(most, queue, steps))


async def _keeps_its_rules(most: int, queue: int, steps: list[tuple[str, int]]) -> None:
    clock = Clock()
    timers = Timers(clock)
    gate = Gate(most, queue, 10, later=timers.later)
    model = Model(most, queue, 10)
    everyone: list[Visit] = []
    for what, number in steps:
        waiting = [entry[3] for entry in model.waiting]
        if what == "arrive":
            visit = Visit(gate, number)
            everyone.append(visit)
            model.arrive(visit, clock())
        elif what == "leave" and model.inside:
            visit = model.inside[number % len(model.inside)]
            visit.leave()
            model.remove(visit)
        elif what == "cancel" and waiting:
            visit = waiting[number % len(waiting)]
            visit.task.cancel()
            model.remove(visit)
        elif what == "hand over and cancel" and model.inside and waiting:
            leaving = model.inside[number % len(model.inside)]
            leaving.leave()
            model.remove(leaving)
            heir = model.inside[-1]
            if heir is not leaving and not heir.task.done():
                heir.task.cancel()
                model.remove(heir)
        elif what == "advance":
            timers.advance(number)
            model.expire(clock())
        elif what == "resize":
            gate.resize(number, queue, 10)
            model.most = number
            model.fill()
        await settle()
        assert gate.inside == len(model.inside)
        assert gate.waiting == len(model.waiting)
        assert {id(v) for v in everyone if v.inside} >= {id(v) for v in model.inside}
        assert all(isinstance(visit.error, Overloaded) for visit in model.refused)
        assert not any(entry[3].task.done() for entry in model.waiting)
    while model.inside:
        visit = model.inside[0]
        visit.leave()
        model.remove(visit)
        await settle()
    assert all(visit.task.done() for visit in everyone)
    assert gate.inside == gate.waiting == 0
    assert timers.waiting == []
