"""What both databases must do alike: run on SQLite by the unit tests, and on PostgreSQL by the live ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from core.budgets import Account, Balance
from core.journal import Amendment, Journal, Segment, SentAttempt, decode_lines
from core.ledger import Ledger
from core.reports import DIMENSIONS, Usage
from core.store import Instance, Store
from core.usage import Attempt, UsageEvent, UsageState
from tests.support.clock import Clock
from tests.support.eventually import eventually

START = 1_800_000_000_000


def event(number: int, **fields: object) -> UsageEvent:
    return UsageEvent(f"request-{number}", START + number, "/v1/chat/completions", 200, **fields)  # type: ignore[arg-type]


def unknown(number: int) -> UsageEvent:
    attempt = Attempt(1, "large", usage=UsageState.UNKNOWN, cost_nano=900)
    return event(number, usage="unknown", cost_nano=900, unknown_nano=900, attempts=[attempt])


BETTER = Amendment("request-1", usage="reported", cost_nano=300, input_tokens=4, provider_model="demo/large")


async def stored_ids(store: Store) -> list[str]:
    name = "usage_events" if store.is_sqlite else "orchestration.usage_events"
    async with store.reading() as connection:
        return list((await connection.exec_driver_sql(f"SELECT request_id FROM {name}")).scalars())


async def an_event_comes_back_whole_and_a_second_write_changes_nothing(store: Store) -> None:
    whole = event(1, groups=("a", "b"), user_id="ada", first_token_ms=3, streamed=True, cost_nano=(1 << 63) - 1)
    whole.attempts = [Attempt(1, "large", "large-1", error_class="Timeout"), Attempt(2, "small", cost_nano=5)]
    assert (await store.usage.write([whole])).inserted == 1
    assert (await store.usage.write([event(1, user_id="eve"), event(2)])).inserted == 1
    assert await store.usage.get("request-1") == whole
    assert await store.usage.get("request-3") is None


async def amendments_apply_in_any_order(store: Store) -> None:
    expected = unknown(1)
    BETTER.improve(expected)
    for number, order in enumerate(("together", "after", "before", "replayed")):
        name = f"request-{order}"
        first = unknown(number)
        first.request_id = name
        better = Amendment(name, usage="reported", cost_nano=300, input_tokens=4, provider_model="demo/large")
        if order == "together":
            await store.usage.write([first], [better])
        elif order == "after":
            await store.usage.write([first])
            await store.usage.write([], [better])
        elif order == "before":
            await store.usage.write([], [better])
            await store.usage.write([first])
        else:
            await store.usage.write([first])
            await store.usage.write([first], [better, better])
        got = await store.usage.get(name)
        assert got is not None
        assert (got.cost_nano, got.unknown_nano, got.usage, got.input_tokens, got.provider_model) == (
            *(300, 0, "reported"),
            *(4, "demo/large"),
        ), order
        assert got.attempts[0].cost_nano == 300, order


async def an_amendment_waits_seven_days_for_its_event(store: Store) -> None:
    store.clock = clock = Clock()
    day = 86_400
    for name in ("request-0", "request-1"):
        await store.usage.write([], [Amendment(name, provider="demo")])
    clock.advance(6 * day)
    await store.usage.write([event(0)])
    clock.advance(2 * day)
    await store.usage.write([event(2)])
    await store.usage.write([event(1)])
    in_time, too_late = await store.usage.get("request-0"), await store.usage.get("request-1")
    assert in_time is not None and too_late is not None
    assert (in_time.provider, too_late.provider) == ("demo", None)


async def a_worker_is_live_while_it_beats_and_forgotten_after_a_day(store: Store) -> None:
    store.clock = clock = Clock()
    started = int(clock() * 1000)
    one = Instance("host-1-a", "host", 1, started, "1.0", "digest", 1)
    two = Instance("host-2-b", "host", 2, started + 1, "1.0", "digest", 1)
    await store.instances.beat(two)
    await store.instances.beat(one)
    clock.advance(20)
    newer = replace(one, config_digest="other", config_version=2)
    await store.instances.beat(newer)
    assert await store.instances.live(10) == [replace(newer, seen_ms=started + 20_000)]
    assert await store.instances.live(30) == [replace(newer, seen_ms=started + 20_000), replace(two, seen_ms=started)]
    clock.advance(86_390)
    await store.instances.beat(newer)
    assert [each.instance for each in await store.instances.live(1e6)] == ["host-1-a"]


async def nul_characters_are_replaced(store: Store) -> None:
    await store.usage.write([event(1, user_id="a\0b", groups=("x\0y",)), event(2)])
    await store.usage.write([], [Amendment("request-2", provider_model="p\0q")])
    first, second = await store.usage.get("request-1"), await store.usage.get("request-2")
    assert first is not None and second is not None
    assert (first.user_id, first.groups) == ("a\ufffdb", ("x\ufffdy",))
    assert second.provider_model == "p\ufffdq"
    report = await store.usage.usage_report(START, START + 10, ["group"])
    assert {row.key for row in report.rows} == {("x\ufffdy",), (None,)}


async def a_record_that_does_not_fit_is_set_aside_and_the_rest_goes_on(store: Store, directory: Path) -> None:
    journal = Journal(directory, "one")
    ledger = Ledger(journal, store.usage, linger=0.01)
    for number in range(40):
        journal.append(event(number, cost_nano=1 << 70 if number == 17 else number))
    journal.amend("request-17", {"provider": "demo"})
    ledger.start()
    assert await ledger.flush(30)
    assert ledger.status().rejected == 1
    assert sorted(await stored_ids(store)) == sorted(f"request-{each}" for each in range(40) if each != 17)
    assert "request-17" in (directory / "rejected.jsonl").read_text()
    await ledger.stop()
    journal.close()


async def two_writers_share_a_directory_and_a_killed_ones_records_are_adopted(store: Store, directory: Path) -> None:
    dead = Journal(directory, "dead")
    for number in range(300):
        dead.append(event(number))
    dead.close()
    journals = [Journal(directory, f"worker-{each}") for each in range(2)]
    ledgers = [Ledger(journal, store.usage, linger=0.01) for journal in journals]
    for ledger in ledgers:
        ledger.start()
    for number in range(300, 900):
        journals[number % 2].append(event(number))
        # The same request once more, from the other worker: counted once.
        journals[(number + 1) % 2].append(event(number))
    await eventually(lambda: not list(directory.glob("dead-*")), within=30)
    for ledger in ledgers:
        assert await ledger.flush(30)
    ids = await stored_ids(store)
    assert len(ids) == len(set(ids)) == 900
    for ledger, journal in zip(ledgers, journals, strict=True):
        await ledger.stop()
        journal.close()
    assert list(directory.iterdir()) == []


TEAM = Account("team~1", START)


def sent(number: int, reserved: int = 900) -> SentAttempt:
    attempt = Attempt(1, "large", accounts=(TEAM.key,), reserved_nano=reserved)
    return SentAttempt(event(number, attempts=[attempt]))


def answered(number: int, cost: int) -> UsageEvent:
    attempt = Attempt(1, "large", usage="reported", cost_nano=cost, accounts=(TEAM.key,), reserved_nano=900)
    return event(number, usage="reported", cost_nano=cost, attempts=[attempt])


async def _inherit(store: Store, directory: Path) -> list[tuple[list[str], dict[str, int]]]:
    """Run the ledger of an heir until the dead are gone; what it told."""
    told: list[tuple[list[str], dict[str, int]]] = []

    def note(events: Sequence[UsageEvent], balances: Sequence[Balance]) -> None:
        told.append(([each.request_id for each in events], {each.key: each.spent_nano for each in balances}))

    heir = Journal(directory, "heir")
    ledger = Ledger(heir, store.usage, linger=0.01, on_written=note)
    ledger.start()
    await eventually(lambda: not list(directory.glob("dead-*")), within=30)
    assert ledger.ended == {"dead"}
    await ledger.stop()
    heir.close()
    assert list(directory.iterdir()) == []
    return told


async def _spent(store: Store) -> int:
    return (await store.budgets.balances([TEAM]))[TEAM.key].spent_nano


async def what_a_killed_process_had_sent_is_charged_what_was_reserved(store: Store, directory: Path) -> None:
    dead = Journal(directory, "dead", segment_bytes=2000)
    never_answered = {0, 3, 39}
    for number in range(40):
        dead.sent(sent(number))
        if number not in never_answered:
            dead.append(answered(number, 100))
    # The store has got past what was sent first.
    first = dead.segments[0]
    batch = decode_lines(first.read(), 0)
    await store.usage.write(batch.events)
    first.acknowledge(batch.end, batch.records)
    dead.close()

    told = await _inherit(store, directory)
    for number in range(40):
        stored = await store.usage.get(f"request-{number}")
        assert stored is not None
        if number in never_answered:
            assert (stored.status, stored.error_class, stored.usage) == (0, "ProcessKilled", "unknown")
            assert (stored.cost_nano, stored.unknown_nano, stored.attempts[0].accounts) == (900, 900, (TEAM.key,))
        else:
            assert (stored.status, stored.cost_nano) == (200, 100)
    assert await _spent(store) == 37 * 100 + 3 * 900
    assert {name for names, _ in told for name in names} >= {f"request-{number}" for number in never_answered}
    assert told[-1][1] == {TEAM.key: await _spent(store)}


async def what_the_store_has_already_is_not_charged_again(store: Store, directory: Path) -> None:
    dead = Journal(directory, "dead")
    dead.sent(sent(1))
    await store.usage.write([answered(1, 100)])  # by way of the memory, while the disk was full
    dead.close()
    told = await _inherit(store, directory)
    stored = await store.usage.get("request-1")
    assert stored is not None and (stored.cost_nano, stored.usage) == (100, "reported")
    assert told == [(["request-1"], {TEAM.key: 100})]


async def an_answer_in_a_segment_that_another_heir_holds_is_waited_for(store: Store, directory: Path) -> None:
    dead = Journal(directory, "dead", segment_bytes=1000)
    dead.sent(sent(1))
    for number in range(10, 16):
        dead.append(event(number))
    dead.append(answered(1, 100))
    paths = [segment.path for segment in dead.segments]
    dead.close()
    assert len(paths) > 1
    others = [each for each in (Segment.adopt(path) for path in paths[1:]) if each is not None]
    heir = Journal(directory, "heir")
    ledger = Ledger(heir, store.usage, linger=0.01)
    ledger.start()
    await eventually(lambda: _stored(store, "request-10"), within=30)
    for _ in range(5):
        assert await ledger.flush(30)
    assert not await ledger.catch_up(0.1)
    assert await store.usage.get("request-1") is None
    assert paths[0].exists()
    for other in others:
        batch = decode_lines(other.read(), 0)
        await store.usage.write(batch.events)
        other.delete()
    assert await ledger.catch_up(30)
    assert not paths[0].exists()
    stored = await store.usage.get("request-1")
    assert stored is not None and stored.cost_nano == 100
    await ledger.stop()
    heir.close()


async def _stored(store: Store, request_id: str) -> bool:
    return await store.usage.get(request_id) is not None


async def whoever_follows_the_ledger_is_told_of_every_batch_and_cannot_stop_it(store: Store, directory: Path) -> None:
    told: list[tuple[list[str], list[Balance]]] = []

    def note(events: Sequence[UsageEvent], balances: Sequence[Balance]) -> None:
        told.append(([each.request_id for each in events], list(balances)))
        raise RuntimeError("whoever follows has a bug")

    await store.usage.write([answered(1, 100)])
    journal = Journal(directory, "one")
    ledger = Ledger(journal, store.usage, linger=0.01, on_written=note)
    ledger.start()
    journal.append(answered(1, 100))
    assert await ledger.flush(30)
    journal.append(answered(2, 50))
    assert await ledger.flush(30)
    journal.append(event(3))
    assert await ledger.flush(30)
    assert told == [
        (["request-1"], [Balance(TEAM.key, 100, 0, 1)]),
        (["request-2"], [Balance(TEAM.key, 150, 0, 2)]),
        (["request-3"], []),
    ]
    assert ledger.status().last_error is None
    await ledger.stop()
    journal.close()


def random_events(count: int, seed: int) -> list[UsageEvent]:
    pick = random.Random(seed)
    return [
        event(
            number,
            user_id=pick.choice(["ada", "eve", None]),
            used_model=pick.choice(["large", "small", None]),
            groups=tuple(pick.sample(["a", "b", "c"], pick.randint(0, 2))),
            cost_nano=pick.randrange(10**15),
            unknown_nano=pick.randrange(100),
            input_tokens=pick.randrange(10_000),
            output_tokens=pick.randrange(10_000),
            cached_tokens=pick.randrange(100),
            reasoning_tokens=pick.randrange(100),
            cache=pick.choice(["hit", "miss", "shared", None]),
            error_class=pick.choice([None, None, "Timeout"]),
            latency_ms=pick.randrange(50),
            first_token_ms=pick.choice([None, pick.randrange(50)]),
            streamed=pick.random() < 0.5,
        )
        for number in range(count)
    ]


def _percentile(values: list[int], percent: int) -> float | None:
    """Linear interpolation, written out as NumPy and PostgreSQL define it."""
    if not values:
        return None
    place = (len(values) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(values) - 1)
    ordered = sorted(values)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def expected_usage(events: list[UsageEvent]) -> Usage:
    latency = [each.latency_ms for each in events]
    first = [each.first_token_ms for each in events if each.first_token_ms is not None]
    return Usage(
        requests=len(events),
        errors=sum(each.status >= 400 or each.error_class is not None for each in events),
        input_tokens=sum(each.input_tokens for each in events),
        output_tokens=sum(each.output_tokens for each in events),
        cached_tokens=sum(each.cached_tokens for each in events),
        reasoning_tokens=sum(each.reasoning_tokens for each in events),
        cost_nano=sum(each.cost_nano for each in events),
        unknown_nano=sum(each.unknown_nano for each in events),
        cache_hits=sum(each.cache in ("hit", "shared") for each in events),
        latency_p50_ms=_percentile(latency, 50),
        latency_p95_ms=_percentile(latency, 95),
        first_token_p50_ms=_percentile(first, 50),
        first_token_p95_ms=_percentile(first, 95),
    )


def assert_same(found: Usage, expected: Usage) -> None:
    for name in Usage.__slots__:  # type: ignore[attr-defined]
        got, wanted = getattr(found, name), getattr(expected, name)
        assert got == wanted or (name.endswith("_ms") and abs(got - wanted) < 1e-6), (name, got, wanted)


async def a_report_equals_the_sums_worked_out_in_python(store: Store) -> None:
    for seed, count in ((1, 1), (2, 2), (3, 41), (4, 700)):
        events = random_events(count, seed)
        for each in events:
            each.request_id += f"-{seed}"
            each.time_ms += seed * 10**9
        await store.usage.write(events)
        start = START + seed * 10**9
        report = await store.usage.usage_report(start, start + count, ("user", "model", "streamed"))
        assert_same(report.totals, expected_usage(events))
        groups: dict[object, list[UsageEvent]] = {}
        for each in events:
            groups.setdefault((each.user_id, each.used_model, each.streamed), []).append(each)
        assert {row.key for row in report.rows} == groups.keys()
        for row in report.rows:
            assert_same(row.usage, expected_usage(groups[row.key]))

        of_group = await store.usage.usage_report(start, start + count, ("group",))
        for row in of_group.rows:
            members = [each for each in events if row.key[0] in each.groups or (row.key[0] is None and not each.groups)]
            assert_same(row.usage, expected_usage(members))
        filtered = await store.usage.usage_report(
            start, start + count, (), {"user": ["ada", "eve"], "group": "a", "model": None}
        )
        chosen = [each for each in events if each.user_id and "a" in each.groups and each.used_model is None]
        assert filtered.totals.requests == len(chosen)
        assert filtered.totals.cost_nano == sum(each.cost_nano for each in chosen)


async def every_dimension_can_be_grouped_and_filtered_by(store: Store) -> None:
    await store.usage.write([event(1, user_id="ada", groups=("a",), streamed=True, used_model="large")])
    for name in DIMENSIONS:
        report = await store.usage.usage_report(START, START + 10, [name])
        [row] = report.rows
        again = await store.usage.usage_report(START, START + 10, [], {name: row.key[0]})
        assert again.totals.requests == 1, name
