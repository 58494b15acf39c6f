"""The way in: rates first, then a place, and everything is given back."""

from __future__ import annotations

import asyncio

import pytest

from core.errors import Overloaded, RateLimited
from plugins.limits import Entrance
from tests.unit.limits_cases import ADA, BOB, arriving, request, settings

TIERS = {"free": {"requests_per_minute": 9, "tokens_per_minute": 100, "max_parallel_requests": 2, "priority": 3}}


def entrance(**limits: object) -> Entrance:
    return Entrance.build(settings(tiers=TIERS, limits=limits), {}, None)


async def in_use(way: Entrance) -> dict[str, int]:
    return {quota.kind.value: level.used for quota, level in await way.limiter.standing(ADA)} | {
        "gate": way.gate.inside
    }


async def test_a_request_gives_back_its_place_and_pays_its_tokens() -> None:
    way = entrance()
    await way.arrive(arriving("203.0.113.7"))
    visit = await way.enter(request())
    used = {"requests_per_minute": 1, "tokens_per_minute": 0, "max_parallel_requests": 1, "gate": 1}
    assert await in_use(way) == used
    assert visit.headers()["x-ratelimit-remaining-requests"] == "8"
    visit.done(30)
    visit.done(30)
    assert await in_use(way) == used | {"tokens_per_minute": 30, "max_parallel_requests": 0, "gate": 0}


async def test_whoever_finds_no_place_holds_none_of_its_limits() -> None:
    way = entrance(max_concurrent_requests=1, queue_size=0)
    visit = await way.enter(request(BOB))
    with pytest.raises(Overloaded):
        await way.enter(request())
    assert (await in_use(way))["max_parallel_requests"] == 0
    visit.done()
    assert (await in_use(way))["gate"] == 0


async def test_whoever_is_cancelled_in_the_queue_holds_nothing() -> None:
    way = entrance(max_concurrent_requests=1)
    visit = await way.enter(request(BOB))
    waiting = asyncio.ensure_future(way.enter(request()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert way.gate.waiting == 1
    waiting.cancel()
    await asyncio.wait({waiting})
    visit.done()
    assert way.gate.waiting == way.gate.inside == 0
    assert (await in_use(way))["max_parallel_requests"] == 0


async def test_whoever_is_over_its_rate_does_not_wait_in_the_queue() -> None:
    way = entrance(max_concurrent_requests=1)
    others = [await way.enter(request(BOB))]
    waiting = [asyncio.ensure_future(way.enter(request())) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(RateLimited):
        await way.enter(request())
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    others[0].done()


async def test_other_settings_are_taken_over_and_who_waits_goes_in() -> None:
    way = entrance(max_concurrent_requests=1)
    first = await way.enter(request(BOB))
    waiting = asyncio.ensure_future(way.enter(request()))
    await asyncio.sleep(0)
    changed = settings(limits={"max_concurrent_requests": 2})
    way.follow(changed, {})
    second = await waiting
    assert way.gate.inside == 2
    first.done()
    second.done()
    await way.close()
