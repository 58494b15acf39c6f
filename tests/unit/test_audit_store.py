"""The audit: append-only, a hash chain for each instance, and a verification that notices what was done to it."""

import asyncio
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from core.audit import OPENED, AuditRecord, Broken
from core.store import AuditQuery, Store, open_store

pytestmark = pytest.mark.timeout(60)


def record(number: int, **more: str) -> AuditRecord:
    fields = {"actor": "ada", "action": "secret.fetched", "subject": f"azure://key-{number}", **more}
    return AuditRecord(time_ms=1_000_000 + number, **fields)  # type: ignore[arg-type]


@pytest.fixture
def tamper(tmp_path: Path) -> Callable[[str], None]:
    """Change the table as somebody does who has the file."""

    def change(statement: str) -> None:
        connection = sqlite3.connect(tmp_path / "store.db")
        for name in ("update", "delete"):
            connection.execute(f"DROP TRIGGER IF EXISTS audit_records_no_{name}")
        assert connection.execute(statement).rowcount > 0
        connection.commit()
        connection.close()

    return change


async def broken(store: Store) -> list[Broken]:
    return list((await store.audit.verify()).broken)


async def two_chains(store: Store) -> None:
    for number in range(5):
        await store.audit.append("one", [record(number)])
    await store.audit.append("two", [record(number) for number in range(10, 13)])


async def test_what_is_appended_is_found_newest_first_and_verifies(store: Store) -> None:
    await two_chains(store)
    page = await store.audit.query(AuditQuery(0, 2_000_000, subject="azure://key-1*", limit=2))
    assert [entry.record.subject for entry in page.entries] == ["azure://key-12", "azure://key-11"]
    rest = await store.audit.query(AuditQuery(0, 2_000_000, subject="azure://key-1*", limit=2, cursor=page.cursor))
    assert [entry.record.subject for entry in rest.entries] == ["azure://key-10", "azure://key-1"]
    found = await store.audit.verify()
    assert (found.records, found.broken) == (10, ()), "eight, and the first record of each chain"


async def test_appending_the_same_again_adds_nothing(store: Store) -> None:
    records = [record(1), record(2)]
    assert await store.audit.append("one", records) == 2
    assert await store.audit.append("one", [*records, record(3)]) == 1
    assert await store.audit.append("other", records) == 0
    assert await store.audit.count() == 4


async def test_a_restart_goes_on_with_the_chain(store: Store, tmp_path: Path) -> None:
    await store.audit.append("one", [record(1)])
    again = open_store(f"sqlite:///{tmp_path}/store.db")
    await again.audit.append("one", [record(2)])
    found = await again.audit.verify()
    assert ([head.seq for head in found.heads], found.broken) == ([3], ())
    await again.close()


async def test_nobody_changes_or_deletes_a_record_by_mistake(store: Store, tmp_path: Path) -> None:
    await two_chains(store)
    connection = sqlite3.connect(tmp_path / "store.db")
    for statement in ("UPDATE audit_records SET actor = 'bob'", "DELETE FROM audit_records"):
        with pytest.raises(sqlite3.IntegrityError, match="never changed or deleted"):
            connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    "column",
    ["time_ms", "actor", "action", "subject", "version", "reason", "outcome", "detail", "id", "previous_hash", "hash"],
)
async def test_a_changed_column_is_noticed(column: str, store: Store, tamper: Callable[[str], None]) -> None:
    await two_chains(store)
    value = "7" if column == "time_ms" else "'ok, or not'"
    tamper(f"UPDATE audit_records SET {column} = {value} WHERE chain = 'one' AND seq = 3")
    assert [(place.chain, place.seq) for place in await broken(store)] == [("one", 3)]


async def test_a_removed_record_is_noticed(store: Store, tamper: Callable[[str], None]) -> None:
    await two_chains(store)
    tamper("DELETE FROM audit_records WHERE chain = 'one' AND seq = 4")
    assert [(place.chain, place.seq) for place in await broken(store)] == [("one", 4)]


async def test_records_that_change_places_are_noticed(store: Store, tamper: Callable[[str], None]) -> None:
    await two_chains(store)
    tamper("UPDATE audit_records SET seq = 100 WHERE chain = 'one' AND seq = 3")
    tamper("UPDATE audit_records SET seq = 3 WHERE chain = 'one' AND seq = 4")
    tamper("UPDATE audit_records SET seq = 4 WHERE chain = 'one' AND seq = 100")
    assert [(place.chain, place.seq) for place in await broken(store)] == [("one", 3)]


async def test_a_removed_end_and_a_removed_chain_are_noticed_by_the_chains_that_came_later(
    store: Store, tamper: Callable[[str], None]
) -> None:
    await two_chains(store)
    tamper("DELETE FROM audit_records WHERE chain = 'one' AND seq >= 5")
    assert [(place.chain, place.seq) for place in await broken(store)] == [("one", 5)]
    tamper("DELETE FROM audit_records WHERE chain = 'one'")
    (place,) = await broken(store)
    assert (place.chain, place.seq) == ("one", 1)
    assert "the whole chain is missing" in place.what


async def test_what_a_living_writer_wrote_is_missed_when_it_writes_again(
    store: Store, tamper: Callable[[str], None]
) -> None:
    await store.audit.append("one", [record(1), record(2)])
    tamper("DELETE FROM audit_records WHERE chain = 'one' AND seq = 3")
    await store.audit.append("one", [record(3)])
    assert [(place.chain, place.seq) for place in await broken(store)] == [("one", 3)]


async def test_a_head_that_was_noted_shows_a_history_that_was_written_anew(
    store: Store, tamper: Callable[[str], None]
) -> None:
    await store.audit.append("one", [record(1), record(2)])
    noted = (await store.audit.verify()).heads
    tamper("DELETE FROM audit_records")
    forged = open_store(str(store.url.url))
    await forged.audit.append("one", [replace(record(1), actor="nobody"), record(2)])
    assert (await forged.audit.verify()).broken == ()
    assert [place.chain for place in (await forged.audit.verify(noted)).broken] == ["one"]
    await forged.close()


async def test_writers_at_once_keep_their_chains(tmp_path: Path, store: Store) -> None:
    stores = [open_store(f"sqlite:///{tmp_path}/store.db") for _ in range(3)]

    async def write(number: int) -> None:
        for step in range(10):
            await stores[number].audit.append(f"chain-{number}", [record(number * 100 + step)])

    await asyncio.gather(*(write(number) for number in range(3)))
    found = await store.audit.verify()
    assert (found.records, found.broken, len(found.heads)) == (33, (), 3)
    for one in stores:
        await one.close()


async def test_only_the_store_opens_chains(store: Store) -> None:
    with pytest.raises(ValueError, match=OPENED):
        await store.audit.append("one", [record(1, action=OPENED)])
