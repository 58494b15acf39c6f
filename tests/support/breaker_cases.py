"""What circuit breakers promise, one sentence a test; run against memory and against Redis.

A class that inherits from this has fixtures `clock` and `make`, which makes breakers with these rules.
"""

from collections.abc import Callable

from core.breakers import FAILED, IGNORED, OK, SLOW, Breakers, Change, Hold, State, throttled
from core.breakers.breaker import PROBE_SECONDS
from tests.support.clock import Clock

Make = Callable[..., Breakers]
NAME = "openai-eu-1"


async def fail(breakers: Breakers, times: int) -> None:
    for _ in range(times):
        breakers.record(NAME, FAILED)
    await breakers.flush()


async def opened(breakers: Breakers) -> None:
    await fail(breakers, breakers.rules.failure_threshold)
    assert not breakers.allows(NAME)


async def probed(breakers: Breakers, *outcomes: object) -> None:
    for outcome in outcomes:
        permit = await breakers.acquire(NAME)
        assert permit is not None
        breakers.record(NAME, outcome, permit=permit)  # type: ignore[arg-type]
    await breakers.flush()


def state(breakers: Breakers) -> State:
    found = breakers.states().get(NAME)
    return State.CLOSED if found is None else found.state


def followed(breakers: Breakers) -> list[tuple[State, State]]:
    """The changes that are told from now on."""
    changes: list[tuple[State, State]] = []

    def note(change: Change) -> None:
        assert change.name == NAME
        assert change.why
        changes.append((change.before, change.after))

    breakers.on_change(note)
    return changes


class BreakerCases:
    async def test_nothing_is_known_of_a_deployment_that_never_failed(self, make: Make) -> None:
        breakers = make()
        for _ in range(100):
            breakers.record(NAME, OK)
        assert breakers.allows(NAME)
        assert await breakers.acquire(NAME) is not None
        assert breakers.states() == {}

    async def test_failures_in_a_row_open_it(self, make: Make) -> None:
        breakers = make(failure_threshold=3)
        await fail(breakers, 2)
        assert breakers.allows(NAME)
        breakers.record(NAME, SLOW)
        assert not breakers.allows(NAME)
        assert await breakers.acquire(NAME) is None

    async def test_a_success_between_them_does_not_let_them_add_up(self, make: Make) -> None:
        breakers = make(failure_threshold=3)
        for _ in range(6):
            await fail(breakers, 2)
            breakers.record(NAME, OK)
        assert breakers.allows(NAME)

    async def test_nor_does_a_window_without_failures(self, make: Make, clock: Clock) -> None:
        breakers = make(failure_threshold=3, window=60)
        await fail(breakers, 2)
        clock.advance(61)
        await fail(breakers, 2)
        assert breakers.allows(NAME)

    async def test_a_share_of_failures_opens_it(self, make: Make, clock: Clock) -> None:
        breakers = make(failure_threshold=100, failure_ratio=0.3, minimum_calls=20)
        for _ in range(14):
            breakers.record(NAME, OK)
        clock.advance(1)
        await fail(breakers, 5)
        assert breakers.allows(NAME)
        await fail(breakers, 1)
        assert not breakers.allows(NAME)
        assert "6 of 20" in breakers.states()[NAME].why

    async def test_but_not_of_few_calls(self, make: Make) -> None:
        breakers = make(failure_threshold=100, failure_ratio=0.3, minimum_calls=20)
        await fail(breakers, 19)
        assert breakers.allows(NAME)

    async def test_calls_that_left_the_window_do_not_count(self, make: Make, clock: Clock) -> None:
        breakers = make(failure_threshold=100, failure_ratio=0.5, minimum_calls=20, window=60)
        await fail(breakers, 15)
        clock.advance(61)
        await fail(breakers, 15)
        assert breakers.allows(NAME)

    async def test_failures_of_the_client_or_ours_never_count(self, make: Make) -> None:
        breakers = make(failure_threshold=1)
        for _ in range(100):
            breakers.record(NAME, IGNORED)
        assert breakers.allows(NAME)

    async def test_after_its_time_one_probe_finds_out_and_closes_it(self, make: Make, clock: Clock) -> None:
        breakers = make(open_for=30)
        await opened(breakers)
        clock.advance(29)
        assert await breakers.acquire(NAME) is None
        clock.advance(1)
        assert state(breakers) is State.HALF_OPEN
        permit = await breakers.acquire(NAME)
        assert permit is not None
        assert not breakers.allows(NAME)
        assert await breakers.acquire(NAME) is None
        breakers.record(NAME, OK, permit=permit)
        await breakers.flush()
        assert state(breakers) is State.CLOSED
        assert breakers.allows(NAME)

    async def test_as_many_probes_as_are_wanted_have_to_succeed(self, make: Make, clock: Clock) -> None:
        breakers = make(half_open_requests=3)
        await opened(breakers)
        clock.advance(30)
        permits = [await breakers.acquire(NAME) for _ in range(4)]
        assert [permit is not None for permit in permits] == [True, True, True, False]
        for permit in permits[:2]:
            breakers.record(NAME, OK, permit=permit)
        assert not breakers.allows(NAME)
        breakers.record(NAME, OK, permit=permits[2])
        assert state(breakers) is State.CLOSED

    async def test_each_failed_try_doubles_the_wait_up_to_the_most(self, make: Make, clock: Clock) -> None:
        breakers = make(open_for=30, max_open_for=100)
        await opened(breakers)
        for wait in (30, 60, 100, 100):
            clock.advance(wait - 1)
            assert await breakers.acquire(NAME) is None
            clock.advance(1)
            await probed(breakers, FAILED)

    async def test_it_is_forgotten_after_a_healthy_time(self, make: Make, clock: Clock) -> None:
        breakers = make(open_for=30, window=60)
        for healthy, wait in ((0, 30), (59, 60), (121, 30)):
            clock.advance(healthy)
            await opened(breakers)
            clock.advance(wait - 1)
            assert await breakers.acquire(NAME) is None
            clock.advance(1)
            await probed(breakers, OK)

    async def test_a_probe_that_never_reports_frees_its_place(self, make: Make, clock: Clock) -> None:
        breakers = make()
        await opened(breakers)
        clock.advance(30)
        assert await breakers.acquire(NAME) is not None
        clock.advance(PROBE_SECONDS - 1)
        assert await breakers.acquire(NAME) is None
        clock.advance(1)
        assert await breakers.acquire(NAME) is not None

    async def test_a_probe_that_was_not_sent_gives_its_place_back(self, make: Make, clock: Clock) -> None:
        breakers = make()
        await opened(breakers)
        clock.advance(30)
        await probed(breakers, IGNORED)
        assert state(breakers) is State.HALF_OPEN
        await probed(breakers, OK)
        assert state(breakers) is State.CLOSED

    async def test_calls_that_began_before_say_nothing_about_now(self, make: Make, clock: Clock) -> None:
        breakers = make(failure_threshold=2)
        await opened(breakers)
        breakers.record(NAME, OK, latency=1)
        clock.advance(30)
        breakers.record(NAME, OK, latency=31)
        assert state(breakers) is State.HALF_OPEN
        await probed(breakers, OK)
        clock.advance(1)
        for _ in range(5):
            breakers.record(NAME, FAILED, latency=60)
        assert state(breakers) is State.CLOSED

    async def test_a_probe_of_an_earlier_try_says_nothing_about_this_one(self, make: Make, clock: Clock) -> None:
        breakers = make(half_open_requests=2)
        await opened(breakers)
        clock.advance(30)
        late = await breakers.acquire(NAME)
        await probed(breakers, FAILED)
        clock.advance(60)
        breakers.record(NAME, OK, permit=late)
        await probed(breakers, OK)
        assert state(breakers) is State.HALF_OPEN

    async def test_a_throttled_one_is_left_alone_for_as_long_as_it_asks(self, make: Make, clock: Clock) -> None:
        breakers = make(failure_threshold=1)
        breakers.record(NAME, throttled(7))
        found = breakers.states()[NAME]
        assert (found.state, found.throttled, found.openings) == (State.OPEN, True, 0)
        clock.advance(6)
        assert not breakers.allows(NAME)
        clock.advance(1)
        assert breakers.allows(NAME)
        permit = await breakers.acquire(NAME)
        assert permit is not None
        assert permit.probe is None

    async def test_but_no_longer_than_the_most(self, make: Make, clock: Clock) -> None:
        breakers = make(max_open_for=300)
        breakers.record(NAME, throttled(86_400))
        clock.advance(299)
        assert not breakers.allows(NAME)
        clock.advance(1)
        assert breakers.allows(NAME)

    async def test_a_throttled_probe_is_no_verdict(self, make: Make, clock: Clock) -> None:
        breakers = make()
        await opened(breakers)
        clock.advance(30)
        await probed(breakers, throttled(5))
        assert state(breakers) is State.OPEN
        clock.advance(5)
        assert state(breakers) is State.HALF_OPEN
        await probed(breakers, OK)
        assert state(breakers) is State.CLOSED

    async def test_what_an_administrator_wants_goes_before_what_happens(self, make: Make, clock: Clock) -> None:
        breakers = make(failure_threshold=1)
        await breakers.hold(NAME, Hold.OPEN, "maintenance")
        clock.advance(100_000)
        await breakers.refresh()
        assert await breakers.acquire(NAME) is None
        await breakers.hold(NAME, Hold.CLOSED, "it is well")
        await fail(breakers, 100)
        breakers.record(NAME, throttled(5))
        assert breakers.allows(NAME)
        await breakers.hold(NAME, Hold.AUTO, "as usual")
        assert breakers.allows(NAME)
        await fail(breakers, 1)
        assert not breakers.allows(NAME)

    async def test_every_change_is_told(self, make: Make, clock: Clock) -> None:
        breakers = make()
        changes = followed(breakers)
        await opened(breakers)
        await fail(breakers, 10)
        clock.advance(30)
        await breakers.refresh()
        await probed(breakers, FAILED)
        clock.advance(60)
        await probed(breakers, OK)
        breakers.record(NAME, throttled(5))
        await breakers.flush()
        clock.advance(5)
        await breakers.refresh()
        assert changes == [
            (State.CLOSED, State.OPEN),
            (State.OPEN, State.HALF_OPEN),
            (State.HALF_OPEN, State.OPEN),
            (State.OPEN, State.HALF_OPEN),
            (State.HALF_OPEN, State.CLOSED),
            (State.CLOSED, State.OPEN),
            (State.OPEN, State.CLOSED),
        ]

    async def test_a_listener_that_fails_keeps_nobody_from_listening(self, make: Make) -> None:
        breakers = make()

        def broken(change: Change) -> None:
            raise RuntimeError(change.name)

        breakers.on_change(broken)
        changes = followed(breakers)
        await opened(breakers)
        assert changes == [(State.CLOSED, State.OPEN)]

    async def test_in_the_end_it_is_as_if_nothing_had_been(self, make: Make, clock: Clock) -> None:
        breakers = make()
        await opened(breakers)
        clock.advance(30)
        await probed(breakers, OK)
        assert breakers.states()
        clock.advance(120)
        await breakers.refresh()
        assert breakers.states() == {}
        assert breakers.allows(NAME)
