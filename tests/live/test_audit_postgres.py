"""The audit on a real PostgreSQL: append-only, a chain for each writer, and what was done to it is noticed."""

import asyncio
from collections.abc import Callable

import psycopg
import pytest

from core.audit import AuditRecord
from core.errors import StoreError
from core.store import AuditQuery, Store, open_store
from tests.support.eventually import eventually
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.live

TABLE = "orchestration.audit_records"


def record(number: int, subject: str = "") -> AuditRecord:
    return AuditRecord(1_000_000 + number, "ada", "secret.fetched", subject or f"azure://key-{number}")


@pytest.fixture
async def two_chains(store: Store) -> None:
    for number in range(5):
        await store.audit.append("one", [record(number)])
    await store.audit.append("two", [record(number) for number in range(10, 13)])


@pytest.fixture
def tamper(postgres_url: str) -> Callable[[str], None]:
    """Change the table as its owner can."""

    def change(*statements: str) -> None:
        with psycopg.connect(postgres_url) as connection:
            connection.execute(f"ALTER TABLE {TABLE} DISABLE TRIGGER ALL")
            for statement in statements:
                assert connection.execute(statement).rowcount > 0  # type: ignore[call-overload]
            connection.execute(f"ALTER TABLE {TABLE} ENABLE TRIGGER ALL")

    return change


async def broken(store: Store) -> list[tuple[str, int]]:
    return [(place.chain, place.seq) for place in (await store.audit.verify()).broken]


@pytest.mark.usefixtures("two_chains")
async def test_what_is_appended_is_found_page_by_page_and_verifies(store: Store) -> None:
    found: list[str] = []
    cursor: str | None = None
    while True:
        query = AuditQuery(0, 2_000_000, subject="azure://key-?", action="secret.*", limit=2, cursor=cursor)
        page = await store.audit.query(query)
        found += [entry.record.subject for entry in page.entries]
        cursor = page.cursor
        if cursor is None:
            break
    assert found == [f"azure://key-{number}" for number in (4, 3, 2, 1, 0)]
    verified = await store.audit.verify()
    assert (verified.records, verified.broken) == (10, ())


async def test_a_pattern_takes_what_is_special_to_the_database_as_it_stands(store: Store) -> None:
    subjects = ["azure://a_b", "azure://axb", "azure://a%b", "azure://a\\b", "azure://A_b"]
    await store.audit.append("one", [record(number, subject) for number, subject in enumerate(subjects)])
    for pattern, expected in (("azure://a_*", subjects[:1]), ("*a%b", subjects[2:3]), ("*a\\b", subjects[3:4])):
        page = await store.audit.query(AuditQuery(0, 2_000_000, subject=pattern))
        assert [entry.record.subject for entry in page.entries] == expected


async def test_what_a_text_of_the_database_cannot_hold_is_replaced_and_still_verifies(store: Store) -> None:
    await store.audit.append("one", [record(1, "azure://nul\0 surrogate\ud800")])
    assert (await store.audit.verify()).broken == ()


@pytest.mark.usefixtures("two_chains")
@pytest.mark.parametrize("statement", ["UPDATE {} SET actor = 'bob'", "DELETE FROM {}", "TRUNCATE {}"])
def test_nobody_changes_or_deletes_a_record_by_mistake(statement: str, store: Store, postgres_url: str) -> None:
    with (
        psycopg.connect(postgres_url) as connection,
        pytest.raises(psycopg.errors.RaiseException, match="never changed or deleted"),
    ):
        connection.execute(statement.format(TABLE))  # type: ignore[call-overload]


@pytest.mark.usefixtures("two_chains")
@pytest.mark.parametrize(
    ("statements", "place"),
    [
        ([f"UPDATE {TABLE} SET outcome = 'denied' WHERE chain = 'one' AND seq = 3"], ("one", 3)),
        ([f"DELETE FROM {TABLE} WHERE chain = 'one' AND seq = 4"], ("one", 4)),
        ([f"DELETE FROM {TABLE} WHERE chain = 'one' AND seq >= 5"], ("one", 5)),
        ([f"DELETE FROM {TABLE} WHERE chain = 'one'"], ("one", 1)),
        ([f"UPDATE {TABLE} SET seq = {a} WHERE chain = 'one' AND seq = {b}" for a, b in ((9, 3), (3, 4), (4, 9))],
         ("one", 3)),
    ],
    ids=["changed", "removed in the middle", "removed at the end", "a whole chain", "swapped"],
)  # fmt: skip
async def test_what_was_done_to_the_table_is_noticed(
    statements: list[str], place: tuple[str, int], store: Store, tamper: Callable[..., None]
) -> None:
    tamper(*statements)
    assert await broken(store) == [place]


async def test_a_living_writer_misses_what_it_wrote(store: Store, tamper: Callable[..., None]) -> None:
    await store.audit.append("one", [record(1), record(2)])
    tamper(f"DELETE FROM {TABLE} WHERE seq = 3")
    await store.audit.append("one", [record(3)])
    assert await broken(store) == [("one", 3)]


async def test_writers_at_once_keep_their_chains_even_where_two_share_one(store: Store, postgres_url: str) -> None:
    stores = [open_store(postgres_url) for _ in range(4)]

    async def write(number: int, chain: str) -> None:
        for step in range(25):
            await stores[number].audit.append(chain, [record(number * 100 + step)])

    await asyncio.gather(*(write(number, chain) for number, chain in enumerate(("a", "b", "shared", "shared"))))
    found = await store.audit.verify()
    assert (found.records, found.broken) == (103, ())
    assert [(head.chain, head.seq) for head in found.heads] == [("a", 26), ("b", 26), ("shared", 51)]
    for one in stores:
        await one.close()


async def test_the_same_records_from_two_tries_at_once_are_there_once(store: Store, postgres_url: str) -> None:
    again = open_store(postgres_url)
    records = [record(number) for number in range(50)]
    written = await asyncio.gather(*(one.audit.append("one", records) for one in (store, again)))
    assert sorted(written) == [0, 50]
    assert (await store.audit.count(), await broken(store)) == (51, [])
    await again.close()


async def test_a_chain_goes_on_after_the_database_was_away(postgres_server: PostgresServer, store: Store) -> None:
    await store.audit.append("one", [record(1)])
    postgres_server.stop()
    with pytest.raises(StoreError):
        await store.audit.append("one", [record(2)])
    postgres_server.start()

    async def appended() -> bool:
        await store.audit.append("one", [record(2)])
        return True

    await eventually(appended, within=20)
    found = await store.audit.verify()
    assert ([head.seq for head in found.heads], found.broken) == ([3], ())
