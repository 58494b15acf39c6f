"""The ledger writer and the store's repository on SQLite."""

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from core.budgets import Account
from core.errors import StoreError
from core.journal import Journal
from core.ledger import Ledger
from core.store import Store, open_store
from tests.support.eventually import eventually
from tests.unit import ledger_cases as cases


async def test_an_event_comes_back_whole_and_a_second_write_changes_nothing(store: Store) -> None:
    await cases.an_event_comes_back_whole_and_a_second_write_changes_nothing(store)


async def test_amendments_apply_in_any_order(store: Store) -> None:
    await cases.amendments_apply_in_any_order(store)


async def test_an_amendment_waits_seven_days_for_its_event(store: Store) -> None:
    await cases.an_amendment_waits_seven_days_for_its_event(store)


async def test_a_worker_is_live_while_it_beats_and_forgotten_after_a_day(store: Store) -> None:
    await cases.a_worker_is_live_while_it_beats_and_forgotten_after_a_day(store)


async def test_nul_characters_are_replaced(store: Store) -> None:
    await cases.nul_characters_are_replaced(store)


async def test_a_record_that_does_not_fit_is_set_aside_and_the_rest_goes_on(store: Store, tmp_path: Path) -> None:
    await cases.a_record_that_does_not_fit_is_set_aside_and_the_rest_goes_on(store, tmp_path / "journal")


async def test_two_writers_share_a_directory_and_a_killed_ones_records_are_adopted(
    store: Store, tmp_path: Path
) -> None:
    await cases.two_writers_share_a_directory_and_a_killed_ones_records_are_adopted(store, tmp_path / "journal")


async def test_what_a_killed_process_had_sent_is_charged_what_was_reserved(store: Store, tmp_path: Path) -> None:
    await cases.what_a_killed_process_had_sent_is_charged_what_was_reserved(store, tmp_path / "journal")


async def test_what_the_store_has_already_is_not_charged_again(store: Store, tmp_path: Path) -> None:
    await cases.what_the_store_has_already_is_not_charged_again(store, tmp_path / "journal")


async def test_an_answer_in_a_segment_that_another_heir_holds_is_waited_for(store: Store, tmp_path: Path) -> None:
    await cases.an_answer_in_a_segment_that_another_heir_holds_is_waited_for(store, tmp_path / "journal")


async def test_whoever_follows_the_ledger_is_told_of_every_batch_and_cannot_stop_it(
    store: Store, tmp_path: Path
) -> None:
    await cases.whoever_follows_the_ledger_is_told_of_every_batch_and_cannot_stop_it(store, tmp_path / "journal")


_SERVES_UNTIL_KILLED = """
import asyncio, sys
from itertools import count
from pathlib import Path
from core.journal import Journal
from core.ledger import Ledger
from core.store import open_store
from core.usage import UsageEvent
async def main():
    journal = Journal(Path(sys.argv[2]), "doomed", segment_bytes=20_000)
    Ledger(journal, open_store(sys.argv[1]).usage, linger=0.001).start()
    for number in count():
        journal.append(UsageEvent(f"request-{number}", number, "/v1/chat/completions", 200))
        sys.stdout.write(f"request-{number}\\n")
        sys.stdout.flush()
        await asyncio.sleep(0)
asyncio.run(main())
"""


@pytest.mark.slow
async def test_after_a_kill_every_acknowledged_event_is_in_the_store_once(store: Store, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _SERVES_UNTIL_KILLED, f"sqlite:///{tmp_path}/store.db", tmp_path / "journal"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged = [process.stdout.readline().strip() for _ in range(5000)]
    process.send_signal(signal.SIGKILL)
    acknowledged += [line.strip() for line in process.stdout if line.endswith("\n")]
    process.wait()
    process.stdout.close()

    journal = Journal(tmp_path / "journal", "heir")
    ledger = Ledger(journal, store.usage, linger=0.01)
    ledger.start()
    await eventually(lambda: not list((tmp_path / "journal").glob("doomed-*")), within=30)
    ids = await cases.stored_ids(store)
    assert len(ids) == len(set(ids))
    assert set(acknowledged) <= set(ids)
    assert len(ids) <= len(acknowledged) + 1
    await ledger.stop()
    journal.close()


_SENDS_UNTIL_KILLED = """
import asyncio, sys
from itertools import count
from pathlib import Path
from core.journal import Journal, SentAttempt
from core.ledger import Ledger
from core.store import open_store
from core.usage import Attempt, UsageEvent
async def request(journal, number):
    attempt = Attempt(1, "large", accounts=("team~1|0|",), reserved_nano=1000)
    event = UsageEvent(f"request-{number}", number, "/v1/chat/completions", 200, attempts=[attempt])
    journal.sent(SentAttempt(event))
    sys.stdout.write(f"request-{number}\\n")
    sys.stdout.flush()
    for _ in range(number % 50):
        await asyncio.sleep(0)
    attempt.cost_nano = event.cost_nano = 10
    journal.append(event)
async def main():
    journal = Journal(Path(sys.argv[2]), "doomed", segment_bytes=20_000)
    Ledger(journal, open_store(sys.argv[1]).usage, linger=0.001).start()
    running = set()
    for number in count():
        running.add(task := asyncio.create_task(request(journal, number)))
        task.add_done_callback(running.discard)
        await asyncio.sleep(0)
asyncio.run(main())
"""


@pytest.mark.slow
async def test_after_a_kill_everything_that_was_sent_is_charged_once(store: Store, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _SENDS_UNTIL_KILLED, f"sqlite:///{tmp_path}/store.db", tmp_path / "journal"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    sent = [process.stdout.readline().strip() for _ in range(3000)]
    process.send_signal(signal.SIGKILL)
    sent += [line.strip() for line in process.stdout if line.endswith("\n")]
    process.wait()
    process.stdout.close()

    journal = Journal(tmp_path / "journal", "heir")
    ledger = Ledger(journal, store.usage, linger=0.01)
    ledger.start()
    await eventually(lambda: not list((tmp_path / "journal").glob("doomed-*")), within=30)
    ids = await cases.stored_ids(store)
    assert len(ids) == len(set(ids)) <= len(sent) + 1
    assert set(sent) <= set(ids)
    events = [event for each in ids if (event := await store.usage.get(each))]
    killed = [event for event in events if event.error_class == "ProcessKilled"]
    assert killed
    assert {event.cost_nano for event in killed} == {1000}
    assert {event.cost_nano for event in events if event.error_class is None} == {10}
    account = Account("team~1", 0)
    spent = (await store.budgets.balances([account]))[account.key].spent_nano
    assert spent == sum(event.cost_nano for event in events)
    await ledger.stop()
    journal.close()


@pytest.mark.slow
async def test_a_locked_database_is_waited_for_and_the_backlog_is_shown(store: Store, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", "one")
    ledger = Ledger(journal, store.usage, linger=0.01)
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for number in range(100):
        journal.append(cases.event(number))
    ledger.start()
    await eventually(lambda: ledger.status().last_error, within=20)
    status = ledger.status()
    assert "locked" in (status.last_error or "")
    assert status.backlog_events == 100
    assert status.backlog_bytes == journal.segments[0].size
    other.execute("ROLLBACK")
    other.close()
    assert await ledger.flush(30)
    assert ledger.status().last_error is None
    assert ledger.status().backlog_events == 0
    assert len(await cases.stored_ids(store)) == 100
    await ledger.stop()
    journal.close()


async def test_what_could_not_be_written_before_the_stop_is_written_after_the_next_start(tmp_path: Path) -> None:
    unreachable = open_store(f"sqlite:///{tmp_path}/missing/store.db")
    journal = Journal(tmp_path / "journal", "one")
    journal.append(cases.event(1))
    ledger = Ledger(journal, unreachable.usage, linger=0.01)
    ledger.start()
    assert not await ledger.flush(0.2)
    await ledger.stop(0.2)
    journal.close()
    await unreachable.close()

    store = open_store(f"sqlite:///{tmp_path}/store.db")
    await store.upgrade()
    journal = Journal(tmp_path / "journal", "one")
    ledger = Ledger(journal, store.usage, linger=0.01)
    ledger.start()
    await eventually(lambda: cases.stored_ids(store), within=20)
    await ledger.stop()
    journal.close()
    assert await cases.stored_ids(store) == ["request-1"]
    await store.close()


async def test_closing_the_store_waits_for_a_write_that_was_given_up(store: Store, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", "one")
    ledger = Ledger(journal, store.usage, linger=0.01)
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    journal.append(cases.event(1))
    ledger.start()
    await ledger.stop(0.2)
    other.execute("ROLLBACK")
    await store.close()
    assert [row for [row] in other.execute("SELECT request_id FROM usage_events")] == ["request-1"]
    other.close()
    journal.close()


async def test_of_a_long_backlog_each_event_is_stored_once(store: Store, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", "one", segment_bytes=1 << 20)
    for number in range(12_000):
        journal.append(cases.event(number))
    ledger = Ledger(journal, store.usage, linger=0.01, batch_bytes=100_000)
    ledger.start()
    assert await ledger.flush(30)
    assert sorted(await cases.stored_ids(store)) == sorted(f"request-{number}" for number in range(12_000))
    assert ledger.status().written == 12_000
    await ledger.stop()
    journal.close()


async def test_a_store_in_memory_works_like_one_in_a_file() -> None:
    store = open_store("sqlite://")
    await store.upgrade()
    await cases.an_event_comes_back_whole_and_a_second_write_changes_nothing(store)
    await store.close()


async def test_a_store_that_is_not_there_is_named_in_the_error(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/missing/store.db")
    with pytest.raises(StoreError, match=r"missing/store\.db"):
        await store.ping()
    await store.close()
