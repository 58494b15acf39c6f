"""What the store promises about experiments, feedback and what was in force, for each database."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine

from sqlalchemy import select

from core.ids import first_request_id
from core.store import REPLAY_COLUMNS, Feedback, Giver, Received, Store, UnitTotals, unit_totals
from core.store.feedback import MOST_WAITING
from core.store.tables import feedback
from core.usage import Attempt, UsageEvent
from tests.support.clock import Clock

START = 1_800_000_000_000
ADA, BOB, ADMIN = Giver("key-ada", "ada"), Giver("key-bob", "bob"), Giver("key-root", any_request=True)
RECORDED, WAITING, NOT_FOUND = Received.RECORDED, Received.WAITING, Received.NOT_FOUND


def name_of(number: int, time_ms: int = START) -> str:
    """The id of a request that arrived then."""
    return f"{first_request_id(time_ms)}-7000-8000-{number:012x}"


def event(number: int, unit: str | None = None, variant: str = "a", **fields: object) -> UsageEvent:
    """A request, in the experiment `x` where there is a unit."""
    values: dict[str, object] = {"key_hash": "key-ada", "user_id": "ada", "used_model": "large", **fields}
    if unit is not None:
        values |= {"variant": f"x/{variant}", "assignments": (("x", variant, unit),)}
    return UsageEvent(name_of(number), START + number, "chat_completions", **({"status": 200} | values))  # type: ignore[arg-type]


async def totals_of(
    store: Store, experiment: str = "x", since: int = START, until: int = START * 2
) -> list[UnitTotals]:
    return [unit async for unit in unit_totals(store, experiment, since, until)]


async def count(store: Store, table: str) -> int:
    async with store.reading() as connection:
        name = table if store.is_sqlite else f"orchestration.{table}"
        return (await connection.exec_driver_sql(f"SELECT count(*) FROM {name}")).scalar() or 0


# -- assignments -------------------------------------------------------------------------------------------------------


async def an_event_brings_its_assignments_once_and_comes_back_with_them(store: Store) -> None:
    routed = {"policy": "smart", "route": "experiment x", "traits": '{"t":7}', "settings": "abc"}
    both = event(1, attempts=[Attempt(1, "large")], **routed)
    both.variant, both.assignments = "y/on,z/forced,x/a", (("y", "on", "team-1"), ("x", "a", "ada"))
    await store.usage.write([both, event(2)])
    assert (await store.usage.write([both, event(3, "eve")])).inserted == 1
    assert await store.usage.get(both.request_id) == both
    assert await count(store, "usage_assignments") == 3


async def totals_equal_the_sums_worked_out_in_python(store: Store) -> None:
    pick = random.Random(11)
    events: list[UsageEvent] = []
    for number in range(500):
        unit = f"user-{pick.randrange(40)}"
        # Of some units the arm changes on the way, one way or the other.
        late = number > 250
        variant = "b" if unit < "user-2" or (late and unit > "user-35") or (not late and unit < "user-22") else "a"
        error = pick.choice([None] * 6 + ["Timeout", "BudgetExceeded", "ContentPolicyViolationError"])
        status = 200 if error is None else pick.choice([200, 429, 500])
        fields = {
            "cost_nano": pick.randrange(10**12),
            "input_tokens": pick.randrange(1000),
            "output_tokens": pick.randrange(1000),
            "latency_ms": pick.randrange(50),
            "first_token_ms": pick.choice([None, 3, 8]),
            "cache": pick.choice([None, None, "hit", "shared", "miss"]),
            "degraded": pick.random() < 0.2,
            "disconnected": pick.random() < 0.1,
            "used_model": pick.choice(["large", "large", None]),
        }
        events.append(event(number, unit, variant, status=status, error_class=error, **fields))
    said = [(one, "rating" if pick.random() < 0.7 else "useful", pick.random() * 5) for one in pick.sample(events, 200)]
    pick.shuffle(events)
    await store.usage.write(events)
    await store.feedback.give(ADMIN, [Feedback(one.request_id, metric, value) for one, metric, value in said])
    found = {unit.unit: unit for unit in await totals_of(store)}
    expected = expected_totals(sorted(events, key=lambda one: one.time_ms), said)
    assert found.keys() == expected.keys()
    for unit, totals in expected.items():
        got = found[unit].feedback
        assert got.keys() == totals.feedback.keys()
        assert all(
            got[name][0] == times and abs(got[name][1] - total) < 1e-9
            for name, (times, total) in totals.feedback.items()
        )
        found[unit].feedback = totals.feedback
        assert found[unit] == totals
    assert any(unit.crossed for unit in found.values())


def expected_totals(events: list[UsageEvent], said: list[tuple[UsageEvent, str, float]]) -> dict[str, UnitTotals]:
    units: dict[str, UnitTotals] = {}
    for one in events:
        [(_, variant, name)] = one.assignments
        if one.error_class == "BudgetExceeded" and one.used_model is None:
            continue
        unit = units.setdefault(name, UnitTotals(variant, name, one.time_ms))
        cached = one.cache in ("hit", "shared")
        wrong = one.status >= 400 or one.error_class is not None
        refused = one.error_class in ("BudgetExceeded", "ContentPolicyViolationError")
        unit.requests += 1
        unit.errors += wrong and not refused and not one.disconnected
        unit.refusals += refused
        unit.cached += cached
        unit.degraded += one.degraded
        unit.cost_nano += 0 if cached else one.cost_nano
        unit.tokens += one.input_tokens + one.output_tokens
        unit.crossed += variant != unit.variant
        if not wrong and not cached and not one.disconnected:
            unit.latency_ms_sum += one.latency_ms
            unit.latency_count += 1
            unit.latencies[one.latency_ms] = unit.latencies.get(one.latency_ms, 0) + 1
            unit.ttft_sum += one.first_token_ms or 0
            unit.ttft_count += one.first_token_ms is not None
    for one, metric, value in said:
        [(_, _, name)] = one.assignments
        if name in units:
            times, total = units[name].feedback.get(metric, (0, 0.0))
            units[name].feedback[metric] = (times + 1, total + value)
    return units


async def only_what_was_admitted_exposes_a_unit(store: Store) -> None:
    refused = {"status": 429, "used_model": None}
    await store.usage.write(
        [
            event(1, "ada", "b", error_class="RateLimited", **refused),
            event(2, "eve", error_class="BudgetExceeded", **refused),
            event(3, "ada", error_class="BudgetExceeded", status=429),
            event(4, "tom", error_class="RateLimitError", **refused),
        ]
    )
    found = {unit.unit: unit for unit in await totals_of(store)}
    assert {name: (unit.variant, unit.requests, unit.refusals, unit.errors) for name, unit in found.items()} == {
        "ada": ("a", 1, 1, 0),
        "tom": ("a", 1, 0, 1),
    }


async def totals_are_of_one_experiment_and_its_time(store: Store) -> None:
    other = event(5, "ada")
    other.assignments = (("other", "a", "ada"),)
    await store.usage.write([event(1, "ada"), event(2, "ada", "b"), event(9, "ada"), other])
    [unit] = await totals_of(store, since=START + 2, until=START + 9)
    assert (unit.variant, unit.requests, unit.first_ms) == ("b", 1, START + 2)
    assert await totals_of(store, "unknown") == []


# -- feedback ----------------------------------------------------------------------------------------------------------


async def feedback_is_taken_from_the_key_its_user_and_administrators(store: Store) -> None:
    store.clock = Clock(START / 1000 + 86_400)
    await store.usage.write([event(1), event(2, user_id=None), event(3, key_hash=None, user_id=None)])
    ids = [name_of(number) for number in (1, 2, 3, 4)]
    for giver, expected in (
        (ADA, [RECORDED, RECORDED, NOT_FOUND, NOT_FOUND]),
        (Giver("another-key", "ada"), [RECORDED, NOT_FOUND, NOT_FOUND, NOT_FOUND]),
        (BOB, [NOT_FOUND] * 4),
        (Giver(), [NOT_FOUND] * 4),
        (ADMIN, [RECORDED, RECORDED, RECORDED, NOT_FOUND]),
    ):
        assert await store.feedback.give(giver, [Feedback(one, "rating", 1.0) for one in ids]) == expected, giver
    assert await store.feedback.give(ADA, [Feedback("no such form", "rating", 1.0)]) == [NOT_FOUND]


async def the_last_value_counts_and_the_same_again_changes_nothing(store: Store) -> None:
    store.clock = clock = Clock(START / 1000)
    await store.usage.write([event(1, "ada")])
    for value, updated in ((4.0, 0), (4.0, 0), (2.5, 120), (2.5, 120)):
        assert await store.feedback.give(ADA, [Feedback(name_of(1), "rating", value)]) == [RECORDED]
        assert await times_of(store) == [(START, START + updated * 1000)]
        clock.advance(60)
    twice = [Feedback(name_of(1), "rating", 1.0), Feedback(name_of(1), "rating", 3.0), Feedback(name_of(1), "ok", 1.0)]
    await store.feedback.give(ADA, twice)
    assert await store.feedback.of(name_of(1)) == {"rating": 3.0, "ok": 1.0}
    [unit] = await totals_of(store)
    assert unit.feedback == {"ok": (1, 1.0), "rating": (1, 3.0)}


async def times_of(store: Store) -> list[tuple[int, int]]:
    async with store.reading() as connection:
        return [(row.time_ms, row.updated_ms) for row in await connection.execute(select(feedback))]


async def feedback_waits_for_a_request_that_is_on_its_way(store: Store) -> None:
    store.clock = clock = Clock(START / 1000)
    given = [Feedback(name_of(1), "rating", 5.0)]
    assert await store.feedback.give(ADA, given) == [WAITING]
    assert await store.feedback.give(BOB, [Feedback(name_of(1), "rating", 1.0)]) == [WAITING]
    assert await store.feedback.settle() == 0
    clock.advance(5 * 86_400)
    await store.usage.write([event(1, "ada")])
    [unit] = await totals_of(store)
    assert unit.feedback == {"rating": (1, 5.0)}
    assert await count(store, "feedback_waiting") == 0


async def nobody_learns_from_the_answer_whether_anothers_request_is_there(store: Store) -> None:
    store.clock = clock = Clock(START / 1000)
    await store.usage.write([event(1)])
    there, missing = Feedback(name_of(1), "rating", 1.0), Feedback(name_of(2), "rating", 1.0)
    for expected in (WAITING, NOT_FOUND):
        assert await store.feedback.give(BOB, [there, missing]) == [expected, expected]
        clock.advance(2 * 3600)
    assert await store.feedback.of(name_of(1)) == {}


async def what_waited_does_not_overtake_what_was_said_since(store: Store) -> None:
    store.clock = clock = Clock(START / 1000)
    await store.feedback.give(ADMIN, [Feedback(name_of(1), "rating", 1.0)])
    clock.advance(1)
    await store.usage.write([event(1)])
    await store.feedback.give(ADA, [Feedback(name_of(1), "rating", 2.0)])
    assert await store.feedback.settle() == 1
    assert await store.feedback.of(name_of(1)) == {"rating": 2.0}


async def what_waits_is_bounded_and_forgotten(store: Store) -> None:
    store.clock = clock = Clock(START / 1000)
    many = [Feedback(name_of(number), "rating", 1.0) for number in range(MOST_WAITING + 1)]
    assert (await store.feedback.give(ADA, many))[-2:] == [WAITING, Received.TOO_MANY]
    assert await store.feedback.give(ADA, many[-1:]) == [Received.TOO_MANY]
    assert await store.feedback.give(BOB, many[:1]) == [WAITING]
    clock.advance(8 * 86_400)
    await store.feedback.give(BOB, [Feedback("anything", "rating", 1.0)])
    assert await count(store, "feedback_waiting") == 0


# -- what was in force -------------------------------------------------------------------------------------------------


async def ranges_change_by_compare_and_set(store: Store) -> None:
    store.clock = Clock(START / 1000)
    allocations = store.allocations
    assert await allocations.load() == {}
    both = await asyncio.gather(
        allocations.put("x", "seed", [["a", [[0, 5000]]]], 0), allocations.put("x", "other", [["a", [[0, 1]]]], 0)
    )
    assert sorted(both) == [False, True]
    assert not await allocations.put("x", "seed", [], 0)
    assert not await allocations.put("x", "seed", [], 2)
    assert await allocations.put("x", "seed", [["a", [[0, 4000]]]], 1)
    assert await allocations.put("y", "seed", [], 0)
    found = await allocations.load()
    assert (found["x"].version, found["x"].ranges, found["x"].time_ms) == (2, [["a", [[0, 4000]]]], START)
    assert found.keys() == {"x", "y"}
    assert [one.version for one in await allocations.history("x")] == [1, 2]


async def an_arm_is_closed_once_until_it_is_opened_again(store: Store) -> None:
    store.clock = clock = Clock(START / 1000)
    allocations = store.allocations
    assert sorted(await asyncio.gather(*(allocations.close("x", "b", "errors") for _ in range(3)))) == [
        False,
        False,
        True,
    ]
    assert {name: {*arms} for name, arms in (await allocations.closed()).items()} == {"x": {"b"}}
    clock.advance(60)
    assert await allocations.reopen("x", "b")
    assert not await allocations.reopen("x", "b")
    assert await allocations.closed() == {}
    assert (await allocations.reopened("x"))["b"].reopened_ms == START + 60_000
    assert await allocations.close("x", "b", "cost")
    assert (await allocations.closed())["x"]["b"].reason == "cost"
    assert await allocations.reopened("x") == {}


async def a_configuration_is_kept_once(store: Store) -> None:
    assert await store.routing_versions.put("abc", '{"a": 1}')
    assert not await store.routing_versions.put("abc", '{"a": 2}')
    assert await store.routing_versions.of("abc") == '{"a": 1}'
    assert await store.routing_versions.of("other") is None


async def recorded_requests_are_given_again_in_order_and_in_chunks(store: Store) -> None:
    events = [event(number, groups=("a",), traits=f'{{"t":{number}}}', cost_nano=number) for number in range(25)]
    await store.usage.write(events[::-1])
    chunks = [rows async for rows in store.usage.replay(START + 1, START + 24, chunk=10)]
    assert [len(rows) for rows in chunks] == [10, 10, 3]
    rows = [dict(zip(REPLAY_COLUMNS, row, strict=True)) for rows in chunks for row in rows]
    assert [row["time_ms"] for row in rows] == [START + number for number in range(1, 24)]
    assert (rows[4]["groups"], rows[4]["traits"], rows[4]["cost_nano"]) == ('["a"]', '{"t":5}', 5)
    assert rows[4]["user_id"] == "ada" and not rows[4]["streamed"]


CASES: tuple[Callable[[Store], Coroutine[None, None, None]], ...] = (
    an_event_brings_its_assignments_once_and_comes_back_with_them,
    totals_equal_the_sums_worked_out_in_python,
    only_what_was_admitted_exposes_a_unit,
    totals_are_of_one_experiment_and_its_time,
    feedback_is_taken_from_the_key_its_user_and_administrators,
    the_last_value_counts_and_the_same_again_changes_nothing,
    feedback_waits_for_a_request_that_is_on_its_way,
    nobody_learns_from_the_answer_whether_anothers_request_is_there,
    what_waited_does_not_overtake_what_was_said_since,
    what_waits_is_bounded_and_forgotten,
    ranges_change_by_compare_and_set,
    an_arm_is_closed_once_until_it_is_opened_again,
    a_configuration_is_kept_once,
    recorded_requests_are_given_again_in_order_and_in_chunks,
)
