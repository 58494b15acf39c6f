"""The ledger, the lock and the report on a real PostgreSQL."""

import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import StoreLocked
from core.journal import Journal
from core.ledger import Ledger
from core.store import Store, acquire_single_writer_lock, open_store
from core.store.migrations import HEAD
from tests.support.eventually import eventually
from tests.support.postgres import PostgresServer
from tests.unit import ledger_cases as cases
from tests.unit.test_store import UPGRADE

pytestmark = pytest.mark.live


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
    await cases.a_record_that_does_not_fit_is_set_aside_and_the_rest_goes_on(store, tmp_path)


async def test_two_writers_share_a_directory_and_a_killed_ones_records_are_adopted(
    store: Store, tmp_path: Path
) -> None:
    await cases.two_writers_share_a_directory_and_a_killed_ones_records_are_adopted(store, tmp_path)


async def test_what_a_killed_process_had_sent_is_charged_what_was_reserved(store: Store, tmp_path: Path) -> None:
    await cases.what_a_killed_process_had_sent_is_charged_what_was_reserved(store, tmp_path)


async def test_what_the_store_has_already_is_not_charged_again(store: Store, tmp_path: Path) -> None:
    await cases.what_the_store_has_already_is_not_charged_again(store, tmp_path)


async def test_an_answer_in_a_segment_that_another_heir_holds_is_waited_for(store: Store, tmp_path: Path) -> None:
    await cases.an_answer_in_a_segment_that_another_heir_holds_is_waited_for(store, tmp_path)


async def test_whoever_follows_the_ledger_is_told_of_every_batch_and_cannot_stop_it(
    store: Store, tmp_path: Path
) -> None:
    await cases.whoever_follows_the_ledger_is_told_of_every_batch_and_cannot_stop_it(store, tmp_path)


async def test_a_report_equals_the_sums_worked_out_in_python(store: Store) -> None:
    await cases.a_report_equals_the_sums_worked_out_in_python(store)


async def test_every_dimension_can_be_grouped_and_filtered_by(store: Store) -> None:
    await cases.every_dimension_can_be_grouped_and_filtered_by(store)


def test_four_processes_may_upgrade_at_once(postgres_url: str) -> None:
    command = [sys.executable, "-c", UPGRADE, postgres_url]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate()[0].strip() for process in processes] == [f"{HEAD} False"] * 4


async def test_a_second_writer_is_refused_and_told_who_has_the_store(store: Store) -> None:
    other = open_store(store.url.url.render_as_string(hide_password=False))
    lock = await acquire_single_writer_lock(store, "worker one")
    with pytest.raises(StoreLocked, match=r"worker one \(pid \d+ on .*REDIS_URL"):
        await acquire_single_writer_lock(other, "worker two")
    assert await lock.held()
    await lock.release()
    await (await acquire_single_writer_lock(other, "worker two")).release()
    await other.close()


async def test_a_database_that_goes_away_and_comes_back_has_everything(tmp_path: Path) -> None:
    with PostgresServer() as server:
        store = open_store(server.socket_url())
        await store.upgrade()
        lock = await acquire_single_writer_lock(store, "worker one")
        journal = Journal(tmp_path, "one")
        ledger = Ledger(journal, store.usage, linger=0.01)
        ledger.start()
        for number in range(100):
            journal.append(cases.event(number))
        assert await ledger.flush(30)
        server.stop()
        for number in range(100, 600):
            journal.append(cases.event(number))
        await eventually(lambda: ledger.status().last_error, within=20)
        assert ledger.status().backlog_events == 500
        assert not await lock.held()
        server.start()
        assert await ledger.flush(60)
        assert len(await cases.stored_ids(store)) == 600
        assert ledger.status().last_error is None
        await ledger.stop()
        journal.close()
        await lock.release()
        await store.close()
