"""What counters in memory and in Redis must do alike: run on memory by the unit tests, on Redis by the live ones."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping

import pytest
from limits import RateLimitItemPerMinute
from limits.aio.strategies import MovingWindowRateLimiter

from core.context import Caller, RequestContext
from core.errors import RateLimited
from core.settings import Settings
from core.settings.models import Key
from plugins.limits import Admission, Limiter
from plugins.limits.counters import Counters
from plugins.limits.quotas import Kind, Quota, Scope
from plugins.limits.storage import MovingWindows
from tests.support.clock import Clock
from tests.support.eventually import eventually

ADA = Caller(key_hash="k1", user_id="ada", tier="free", tiers=("free",))
BOB = Caller(key_hash="k2", user_id="bob", tier="free", tiers=("free",))
REQUESTS = Quota(Kind.REQUESTS, Scope.USER, "ada", "requests_per_minute user ada", 5)
TOKENS = Quota(Kind.TOKENS, Scope.USER, "ada", "tokens_per_minute user ada", 100)
PARALLEL = Quota(Kind.PARALLEL, Scope.USER, "ada", "max_parallel_requests user ada", 2)

_numbers = iter(range(1, 1 << 30))


def settings(**sections: object) -> Settings:
    return Settings.model_validate(sections)


def limiter(counters: Counters, keys: Mapping[str, Key] | None = None, /, **sections: object) -> Limiter:
    return Limiter(counters, settings(**sections), keys or {})


def request(caller: Caller = ADA, input_bytes: int = 10) -> RequestContext:
    return RequestContext(f"r{next(_numbers)}", "chat", caller, "smart", input_bytes=input_bytes)


async def refused(limiter: Limiter, caller: Caller = ADA) -> RateLimited:
    with pytest.raises(RateLimited) as found:
        await limiter.enter(request(caller))
    return found.value


async def settled(admission: Admission, tokens: int = 0) -> None:
    """Done, and what `done` put off has had time to arrive."""
    counters = admission._counters
    admission.done(tokens)
    delivery = getattr(counters, "_delivery", None)
    if delivery is not None:
        await delivery


async def each_user_of_a_tier_has_its_own_requests(counters: Counters, clock: Clock) -> None:
    limits = limiter(counters, tiers={"free": {"requests_per_minute": 3}})
    for _ in range(3):
        await limits.enter(request())
    error = await refused(limits)
    assert error.details == {
        "limit": "requests_per_minute",
        "scope": "tier",
        "name": "free",
        "allowed": 3,
        "used": 3,
        "retry_after_seconds": 61,
    }
    await limits.enter(request(BOB))


async def a_minute_later_what_was_counted_is_gone(counters: Counters, clock: Clock) -> None:
    limits = limiter(counters, tiers={"free": {"requests_per_minute": 2}})
    await limits.enter(request())
    clock.advance(30)
    await limits.enter(request())
    error = await refused(limits)
    assert error.headers["retry-after"] == "31"
    clock.advance(int(error.headers["retry-after"]))
    await limits.enter(request())
    await refused(limits)


async def a_refused_request_is_counted_nowhere(counters: Counters, clock: Clock) -> None:
    limits = limiter(
        counters,
        {"k1": Key(key="os.environ/K", requests_per_minute=1)},
        limits={"users": {"ada": {"requests_per_minute": 3}}},
    )
    await limits.enter(request())
    for _ in range(10):
        assert (await refused(limits)).details["scope"] == "key"
    elsewhere = Caller(key_hash="k9", user_id="ada")
    await limits.enter(request(elsewhere))
    await limits.enter(request(elsewhere))
    assert (await refused(limits, elsewhere)).details == {
        "limit": "requests_per_minute",
        "scope": "user",
        "name": "ada",
        "allowed": 3,
        "used": 3,
        "retry_after_seconds": 61,
    }


async def tokens_are_counted_when_they_are_known(counters: Counters, clock: Clock) -> None:
    limits = limiter(counters, tiers={"free": {"tokens_per_minute": 100}})
    first = await limits.enter(request())
    second = await limits.enter(request())
    await settled(first, 70)
    clock.advance(10)
    third = await limits.enter(request())
    assert third.headers()["x-ratelimit-remaining-tokens"] == "30"
    await settled(second, 5000)
    error = await refused(limits)
    assert error.details["limit"] == "tokens_per_minute"
    assert error.details["used"] == 5070
    assert error.headers["x-ratelimit-remaining-tokens"] == "0"
    assert error.headers["retry-after"] == "61"
    clock.advance(51)
    assert (await refused(limits)).details["used"] == 5000
    clock.advance(10)
    await limits.enter(request())


async def so_many_run_at_once_and_no_more(counters: Counters, clock: Clock) -> None:
    limits = limiter(counters, tiers={"free": {"max_parallel_requests": 2}})
    first, _ = await limits.enter(request()), await limits.enter(request())
    error = await refused(limits)
    assert error.details["limit"] == "max_parallel_requests"
    assert error.headers["retry-after"] == "1"
    await settled(first)
    await settled(first)
    await limits.enter(request())
    await refused(limits)


async def the_tightest_limit_is_in_the_headers(counters: Counters, clock: Clock) -> None:
    limits = limiter(
        counters,
        {"k1": Key(key="os.environ/K", requests_per_minute=10, tokens_per_minute=5000)},
        tiers={"free": {"requests_per_minute": 4, "tokens_per_minute": 9000}},
    )
    admission = await limits.enter(request())
    assert admission.headers() == {
        "x-ratelimit-limit-requests": "4",
        "x-ratelimit-remaining-requests": "3",
        "x-ratelimit-reset-requests": "60.25s",
        "x-ratelimit-limit-tokens": "5000",
        "x-ratelimit-remaining-tokens": "5000",
        "x-ratelimit-reset-tokens": "0.00s",
    }


async def other_settings_leave_what_is_counted(counters: Counters, clock: Clock) -> None:
    limits = limiter(counters, tiers={"free": {"requests_per_minute": 3, "max_parallel_requests": 3}})
    held = [await limits.enter(request()) for _ in range(3)]
    limits.configure(settings(tiers={"free": {"requests_per_minute": 4, "max_parallel_requests": 3}}), {})
    assert (await refused(limits)).details["limit"] == "max_parallel_requests"
    await settled(held[0])
    await limits.enter(request())
    assert (await refused(limits)).details["used"] in (3, 4)
    limits.configure(settings(), {})
    await limits.enter(request())


async def a_race_lets_no_more_through_than_the_limit(counters: Counters, other: Counters) -> None:
    sections = {"tiers": {"free": {"requests_per_minute": 50, "max_parallel_requests": 40}}}
    instances = [limiter(counters, **sections), limiter(other, **sections)]
    admitted: list[Admission] = []

    async def ask(number: int) -> None:
        try:
            admitted.append(await instances[number % 2].enter(request()))
        except RateLimited as error:
            assert error.headers["retry-after"]

    await asyncio.gather(*map(ask, range(200)))
    assert len(admitted) == 40
    for admission in admitted:
        await settled(admission)
    await asyncio.gather(*map(ask, range(200, 400)))
    assert len(admitted) == 50


async def an_address_has_its_own_requests(counters: Counters, clock: Clock) -> None:
    limits = limiter(counters, limits={"per_ip_requests_per_minute": 2})
    assert limits.counts_addresses
    for _ in range(2):
        await limits.arrive(arriving("203.0.113.7"))
    with pytest.raises(RateLimited) as found:
        await limits.arrive(arriving("203.0.113.7"))
    assert found.value.details["name"] == "203.0.113.7"
    assert found.value.headers["retry-after"] == "61"
    await limits.arrive(arriving("203.0.113.8"))
    clock.advance(61)
    await limits.arrive(arriving("203.0.113.7"))


async def whoever_asks_sees_where_it_stands(counters: Counters, clock: Clock) -> None:
    tier = {"requests_per_minute": 3, "tokens_per_minute": 50, "max_parallel_requests": 1}
    limits = limiter(counters, tiers={"free": tier})
    admission = await limits.enter(request())
    seen = {quota.kind.value: (level.used, quota.most) for quota, level in await limits.standing(ADA)}
    assert seen == {
        "requests_per_minute": (1, 3),
        "tokens_per_minute": (0, 50),
        "max_parallel_requests": (1, 1),
    }
    await settled(admission, 20)
    assert [level.used for _, level in await limits.standing(ADA)] == [1, 20, 0]
    await limits.enter(request())
    assert await limits.standing(Caller(user_id="eve")) == []


def arriving(peer: str, **headers: str) -> dict[str, object]:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "client": (peer, 4711), "headers": pairs}


async def never_more_in_any_minute_than_the_limit(counters: Counters, clock: Clock) -> None:
    """And no less than a window that is a quarter of a second longer would let through."""
    chance = random.Random(7)
    times: list[float] = []
    for _ in range(150):
        clock.advance(chance.choice([0, 0.1, 1.7, 4, 9, 25]))
        fits = len([at for at in times if at > clock() - 60.25 - 1e-6]) < REQUESTS.most
        entry = await counters.enter([REQUESTS], "lease")
        recent = len([at for at in times if at > clock() - 60])
        if entry.refused:
            assert not fits
            assert entry.levels[0].wait > 0
        else:
            assert recent < REQUESTS.most
            times.append(clock())
    assert len(times) > 30


async def a_wait_is_as_long_as_it_says(counters: Counters, clock: Clock) -> None:
    chance = random.Random(3)
    for _ in range(5):
        clock.advance(chance.uniform(0.1, 9))
        assert not (await counters.enter([REQUESTS], "lease")).refused
    wait = (await counters.enter([REQUESTS], "lease")).levels[0].wait
    clock.advance(wait - 0.01)
    assert (await counters.enter([REQUESTS], "lease")).refused
    clock.advance(0.02)
    assert not (await counters.enter([REQUESTS], "lease")).refused


async def the_library_decides_on_our_windows(counters: Counters, clock: Clock) -> None:
    strategy = MovingWindowRateLimiter(MovingWindows(counters))
    item = RateLimitItemPerMinute(10)
    assert await strategy.hit(item, "ada", cost=7)
    assert not await strategy.hit(item, "ada", cost=4)
    assert await strategy.test(item, "ada", cost=3)
    assert await strategy.hit(item, "ada", cost=3)
    assert (await strategy.get_window_stats(item, "ada")).remaining == 0
    clock.advance(61)
    assert (await strategy.get_window_stats(item, "ada")).remaining == 10


async def whoever_is_cancelled_while_it_asks_holds_nothing(counters: Counters) -> None:
    limits = limiter(counters, tiers={"free": {"max_parallel_requests": 2}})
    for turns in range(6):
        asking = asyncio.ensure_future(limits.enter(request()))
        for _ in range(turns):
            await asyncio.sleep(0)
        if asking.cancel():
            await asyncio.wait({asking})
        if not asking.cancelled():
            asking.result().done()

    async def both_places_are_free() -> bool:
        held: list[Admission] = []
        try:
            for _ in range(2):
                held.append(await limits.enter(request()))
        except RateLimited:
            return False
        finally:
            for admission in held:
                await settled(admission)
        return True

    await eventually(both_places_are_free, within=5)


CASES_WITH_A_CLOCK = [
    each_user_of_a_tier_has_its_own_requests,
    a_minute_later_what_was_counted_is_gone,
    a_refused_request_is_counted_nowhere,
    tokens_are_counted_when_they_are_known,
    so_many_run_at_once_and_no_more,
    the_tightest_limit_is_in_the_headers,
    other_settings_leave_what_is_counted,
    an_address_has_its_own_requests,
    never_more_in_any_minute_than_the_limit,
    a_wait_is_as_long_as_it_says,
    the_library_decides_on_our_windows,
    whoever_asks_sees_where_it_stands,
]
