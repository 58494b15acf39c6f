"""Rates and parallel requests: which limits apply, what is counted, what clients are told."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from core.context import Caller, RequestContext
from core.errors import RateLimited
from core.settings import load
from core.settings.models import Key
from plugins.limits import NO_LIMITS, Limiter
from plugins.limits.counters import Counters
from plugins.limits.fallback import FallbackCounters
from plugins.limits.headers import put
from plugins.limits.memory import MemoryCounters
from plugins.limits.quotas import QuotaBook
from tests.support.clock import Clock
from tests.unit import limits_cases as cases
from tests.unit.limits_cases import ADA, PARALLEL, REQUESTS, TOKENS, limiter, refused, request, settings


@pytest.fixture
def counters(clock: Clock) -> MemoryCounters:
    return MemoryCounters(clock)


@pytest.mark.parametrize("case", cases.CASES_WITH_A_CLOCK, ids=lambda case: case.__name__)
async def test_in_memory(
    case: Callable[[Counters, Clock], Awaitable[None]], counters: MemoryCounters, clock: Clock
) -> None:
    await case(counters, clock)


async def test_a_race_lets_no_more_through_than_the_limit(counters: MemoryCounters) -> None:
    await cases.a_race_lets_no_more_through_than_the_limit(counters, counters)


async def test_whoever_is_cancelled_while_it_asks_holds_nothing(counters: MemoryCounters) -> None:
    await cases.whoever_is_cancelled_while_it_asks_holds_nothing(counters)


# -- which limits apply --------------------------------------------------------------------------------------------


def test_without_limits_there_is_nothing_to_count() -> None:
    book = QuotaBook(settings(tiers={"free": {"models": ["*"]}}), {"k1": Key(key="os.environ/K")})
    assert book.empty


def test_a_key_that_narrows_itself_keeps_the_limits_it_was_given() -> None:
    tiers = {"free": {"requests_per_minute": 5}, "narrow": {"requests_per_minute": 500}}
    caller = Caller(key_hash="k1", user_id="ada", tier="narrow", tiers=("free", "narrow"))
    assert [quota.most for quota in QuotaBook(settings(tiers=tiers), {}).of(caller)] == [5, 500]


def test_a_key_without_a_user_is_a_member_of_its_tier_by_itself() -> None:
    book = QuotaBook(settings(tiers={"free": {"requests_per_minute": 5}}), {})
    one, other, user = (
        book.of(Caller(key_hash=key, user_id=user, tiers=("free",)))[0].counter
        for key, user in (("k1", None), ("k2", None), ("k1", "key k1"))
    )
    assert len({one, other, user}) == 3


def test_all_keys_of_a_user_share_the_users_limits() -> None:
    book = QuotaBook(settings(limits={"users": {"ada": {"tokens_per_minute": 5}}}), {})
    one, other = (book.of(Caller(key_hash=key, user_id="ada")) for key in ("k1", "k2"))
    assert one == other


def test_the_quotas_of_a_million_callers_are_not_all_kept() -> None:
    book = QuotaBook(settings(tiers={"free": {"requests_per_minute": 5}}), {})
    for number in range(10_000):
        book.of(Caller(key_hash=f"k{number}", tiers=("free",)))
    assert len(book._known) <= 4096


# -- sizes ---------------------------------------------------------------------------------------------------------


async def test_a_request_that_is_larger_than_what_is_left_goes_through(counters: MemoryCounters) -> None:
    limits = limiter(counters, tiers={"free": {"tokens_per_minute": 100}})
    (await limits.enter(request(), count_input=lambda: 60)).done(60)
    await limits.enter(request(input_bytes=90), count_input=lambda: 90)


async def test_an_input_that_no_minute_holds_is_refused_for_good(counters: MemoryCounters) -> None:
    limits = limiter(counters, tiers={"free": {"tokens_per_minute": 100}})
    with pytest.raises(RateLimited) as found:
        await limits.enter(request(input_bytes=5000), count_input=lambda: 101)
    assert found.value.headers == {"x-should-retry": "false"}
    assert found.value.details["input_tokens"] == 101
    await limits.enter(request(input_bytes=5000), count_input=lambda: 99)


async def test_small_bodies_are_not_counted_for_that(counters: MemoryCounters) -> None:
    def never() -> int:
        raise AssertionError("counted")

    limits = limiter(counters, tiers={"free": {"tokens_per_minute": 100}})
    await limits.enter(request(input_bytes=100), count_input=never)


# -- addresses -----------------------------------------------------------------------------------------------------


async def test_behind_a_trusted_proxy_the_client_is_counted(counters: MemoryCounters) -> None:
    limits = limiter(counters, limits={"per_ip_requests_per_minute": 1, "trusted_proxies": ["10.0.0.0/8"]})
    await limits.arrive(cases.arriving("10.0.0.1", x_forwarded_for="203.0.113.7"))
    await limits.arrive(cases.arriving("10.0.0.2", x_forwarded_for="203.0.113.8"))
    with pytest.raises(RateLimited):
        await limits.arrive(cases.arriving("10.0.0.2", x_forwarded_for="198.51.100.1, 203.0.113.7"))


async def test_whoever_names_other_addresses_is_counted_by_its_own(counters: MemoryCounters) -> None:
    limits = limiter(counters, limits={"per_ip_requests_per_minute": 1})
    await limits.arrive(cases.arriving("203.0.113.7", x_forwarded_for="198.51.100.1"))
    with pytest.raises(RateLimited):
        await limits.arrive(cases.arriving("203.0.113.7", x_forwarded_for="198.51.100.2"))


async def test_a_network_of_ipv6_is_one_client(counters: MemoryCounters) -> None:
    limits = limiter(counters, limits={"per_ip_requests_per_minute": 1})
    await limits.arrive(cases.arriving("2001:db8:0:1::1"))
    await limits.arrive(cases.arriving("2001:db8:0:2::1"))
    with pytest.raises(RateLimited) as found:
        await limits.arrive(cases.arriving("2001:db8:0:1:ffff::9"))
    assert found.value.details["name"] == "2001:db8:0:1::/64"


async def test_a_unix_socket_without_a_word_on_the_client_is_not_limited(counters: MemoryCounters) -> None:
    limits = limiter(counters, limits={"per_ip_requests_per_minute": 1})
    for _ in range(3):
        await limits.arrive({"type": "http", "client": None, "headers": []})


# -- settings ------------------------------------------------------------------------------------------------------


def test_networks_are_read_as_they_are_meant() -> None:
    found = settings(limits={"trusted_proxies": ["10.1.2.3/8", "192.0.2.7", "::ffff:10.0.0.0/104", "2001:db8::/32"]})
    assert found.limits.trusted_proxies == ("10.0.0.0/8", "192.0.2.7/32", "10.0.0.0/8", "2001:db8::/32")


@pytest.mark.parametrize("network", ["", "proxy.local", "10.0.0.0/33", "10.0.0.*"])
def test_what_is_no_network_is_refused(network: str) -> None:
    with pytest.raises(ValidationError, match="is not an address or a network"):
        settings(limits={"trusted_proxies": [network]})


def test_the_queue_is_twice_as_long_as_there_are_places_unless_it_is_said() -> None:
    assert settings(limits={"max_concurrent_requests": 7}).limits.places_to_wait == 14
    assert settings(limits={"max_concurrent_requests": 7, "queue_size": 0}).limits.places_to_wait == 0


def test_limits_are_built_and_nobody_says_otherwise(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "orchestration:\n"
        "  tiers: {free: {requests_per_minute: 1, tokens_per_minute: 1, max_parallel_requests: 1, priority: 3}}\n"
        "  keys: [{key: os.environ/K, user_id: ada, requests_per_minute: 1}]\n"
        "  limits: {max_concurrent_requests: 1, per_ip_requests_per_minute: 1, users: {ada: {tokens_per_minute: 9}}}\n"
    )
    assert not [finding for finding in load(file, {"K": "x"}).findings if "not built" in finding.message]


# -- headers -------------------------------------------------------------------------------------------------------


def test_ours_stand_in_place_of_what_a_provider_says() -> None:
    headers = [(b"X-RateLimit-Limit-Requests", b"9000"), (b"content-type", b"text/plain")]
    put(headers, {"x-ratelimit-limit-requests": "4"})
    assert headers == [(b"content-type", b"text/plain"), (b"x-ratelimit-limit-requests", b"4")]


async def test_the_limit_that_refuses_longest_is_named(counters: MemoryCounters, clock: Clock) -> None:
    limits = limiter(
        counters, tiers={"free": {"requests_per_minute": 1}}, limits={"users": {"ada": {"tokens_per_minute": 10}}}
    )
    admission = await limits.enter(request())
    clock.advance(20)
    admission.done(10)
    error = await refused(limits)
    assert error.message == "User ada may use 10 tokens per minute; 10 are used. Try again in 61 s."
    assert error.body()["type"] == "rate_limit_error"
    assert error.body()["code"] == "rate_limit_exceeded"


# -- while Redis is away -------------------------------------------------------------------------------------------


class Away:
    """Counters that do not answer until they are back."""

    def __init__(self, counters: MemoryCounters) -> None:
        self.back = False
        self.asked = 0
        self._counters = counters

    async def enter(self, quotas: object, lease: str) -> object:
        return await self._answer(lambda: self._counters.enter(quotas, lease))  # type: ignore[arg-type]

    async def hit(self, counter: str, most: int, amount: int) -> object:
        return await self._answer(lambda: self._counters.hit(counter, most, amount))

    async def _answer(self, ask: Callable[[], Awaitable[object]]) -> object:
        self.asked += 1
        if not self.back:
            raise ConnectionError("away")
        return await ask()


@pytest.fixture
def away(clock: Clock) -> Away:
    return Away(MemoryCounters(clock))


@pytest.fixture
def fallback(away: Away, counters: MemoryCounters, clock: Clock) -> FallbackCounters:
    return FallbackCounters(away, counters, clock=clock)  # type: ignore[arg-type]


async def test_an_instance_alone_enforces_the_same_numbers(fallback: FallbackCounters, away: Away) -> None:
    limits = limiter(fallback, tiers={"free": {"requests_per_minute": 2, "max_parallel_requests": 1}})
    (await limits.enter(request())).done()
    held = await limits.enter(request())
    assert (await refused(limits)).details["used"] == 2
    held.done()
    assert away.asked == 1


async def test_once_a_second_one_request_finds_out_whether_it_is_back(
    fallback: FallbackCounters, away: Away, clock: Clock
) -> None:
    for _ in range(20):
        await fallback.enter([REQUESTS], "a")
    clock.advance(1)
    for _ in range(20):
        await fallback.enter([REQUESTS], "a")
    assert away.asked == 2
    away.back = True
    clock.advance(1)
    assert (await fallback.enter([REQUESTS], "a")).levels[0].used == 1
    assert not fallback.away


async def test_an_outage_is_told_once_a_minute(
    fallback: FallbackCounters, away: Away, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(180):
        await fallback.enter([REQUESTS], "a")
        clock.advance(1)
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 3
    away.back = True
    await fallback.enter([REQUESTS], "a")
    assert "Redis is back" in caplog.records[-1].message


async def test_what_was_let_in_alone_is_given_back_alone(
    fallback: FallbackCounters, away: Away, counters: MemoryCounters, clock: Clock
) -> None:
    limits = limiter(fallback, tiers={"free": {"max_parallel_requests": 1}})
    held = await limits.enter(request())
    away.back = True
    clock.advance(1)
    shared = await limits.enter(request())
    held.done()
    assert len(counters) == 0
    assert (await refused(limits)).details["used"] == 1
    shared.done()
    await limits.enter(request())


# -- room and time -------------------------------------------------------------------------------------------------


async def test_callers_who_left_take_no_room(counters: MemoryCounters, clock: Clock) -> None:
    limits = limiter(counters, tiers={"free": {"requests_per_minute": 5}})
    for number in range(1000):
        await limits.enter(request(Caller(user_id=f"user-{number}", tiers=("free",))))
    assert len(counters) == 1000
    clock.advance(61)
    for _ in range(600):
        await counters.enter([TOKENS], "lease")
    assert len(counters) == 0


async def test_a_window_takes_the_same_room_at_any_rate(counters: MemoryCounters, clock: Clock) -> None:
    quota = type(REQUESTS)(REQUESTS.kind, REQUESTS.scope, "", "many", 1 << 40)
    for _ in range(5000):
        clock.advance(0.03)
        await counters.enter([quota], "lease")
    assert len(counters._windows["many"].steps) <= 242


async def test_a_request_without_limits_costs_next_to_nothing() -> None:
    limits = Limiter.build(settings(tiers={"premium": {"requests_per_minute": 5}}), None, {})
    context = request(ADA)

    async def nothing(_: RequestContext) -> object:
        return NO_LIMITS

    async def fastest(enter: Callable[[RequestContext], Awaitable[object]]) -> float:
        async def once() -> float:
            began = time.perf_counter()
            for _ in range(2000):
                assert await enter(context) is NO_LIMITS
            return time.perf_counter() - began

        return min([await once() for _ in range(5)])

    assert await fastest(limits.enter) < 25 * await fastest(nothing)


async def test_nothing_is_held_of_requests_that_ended(counters: MemoryCounters) -> None:
    entry = await counters.enter([PARALLEL], "lease")
    assert len(counters) == 1
    entry.counters.leave([], [(PARALLEL.counter, "lease")])
    assert len(counters) == 0
