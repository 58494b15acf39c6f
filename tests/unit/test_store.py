"""Opening, upgrading and locking a store."""

import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, inspect

import core.store.migrations
from core.errors import StoreError, StoreLocked
from core.journal import Amendment
from core.store import Store, StoreUrl, acquire_single_writer_lock, open_store
from core.store.migrations import FRESH, HEAD, fresh, make_afresh, upgrade_to_head
from core.store.tables import metadata
from core.usage import UsageEvent


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("sqlite:///x.db", "sqlite+aiosqlite"),
        ("postgres://me@host/db", "postgresql+asyncpg"),
        ("postgresql://postgres:@/postgres?host=/some/dir", "postgresql+asyncpg"),
        ("postgresql://me@host/db?schema=public&connection_limit=5&pgbouncer=true", "postgresql+asyncpg"),
    ],
)
def test_the_urls_people_have_are_understood(given: str, driver: str) -> None:
    assert StoreUrl.parse(given).url.drivername == driver


@pytest.mark.parametrize(
    "given", ["mysql://me:hunter2@host/db", "no url: hunter2", "postgresql://me:hunter2@host/db?wrong=1"]
)
def test_an_unusable_url_is_refused_without_its_password(given: str) -> None:
    with pytest.raises(StoreError) as caught:
        open_store(given)
    assert "hunter2" not in str(caught.value)


def test_a_password_is_masked_wherever_it_stands() -> None:
    for given in ("postgresql://me:hunter2@host/db", "postgresql://me@/db?password=hunter2&host=/x"):
        assert "hunter2" not in f"{StoreUrl.parse(given)} {StoreUrl.parse(given)!r}"


def test_the_newest_revision_is_the_one_named() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(core.store.migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


@pytest.mark.slow
@pytest.mark.parametrize("apart", [False, True])
async def test_the_migrations_make_the_tables_that_the_code_uses(apart: bool, tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/below/store.db")
    assert not (tmp_path / "below").exists()
    await store.upgrade(apart=apart)
    await store.upgrade(apart=apart)
    assert await store.version() == HEAD
    async with store.reading() as connection:
        for table in metadata.tables.values():
            found = await connection.run_sync(lambda sync, name=table.name: inspect(sync).get_columns(name))
            assert [(c["name"], c["nullable"], str(c["type"])) for c in found] == [
                (c.name, bool(c.nullable), str(c.type)) for c in table.columns
            ]
            indexes = await connection.run_sync(lambda sync, name=table.name: inspect(sync).get_indexes(name))
            assert {index["name"] for index in indexes} == {index.name for index in table.indexes}
    await store.close()


def test_the_script_for_an_empty_database_makes_what_the_revisions_make() -> None:
    """Else: python -m core.store.migrations.fresh"""
    assert FRESH.read_text() == fresh.migrated()
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        assert make_afresh(connection)
        assert fresh.script_of(connection) == FRESH.read_text()
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars().all() == [HEAD]
        assert not make_afresh(connection), "it is empty no more"
        upgrade_to_head(connection)
        assert fresh.script_of(connection) == FRESH.read_text()


async def test_an_empty_database_needs_no_process_to_make_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.child.ask", None)
    store = open_store(f"sqlite:///{tmp_path}/store.db")
    await store.upgrade(apart=True)
    assert await store.version() == HEAD
    await store.close()


def upgrade_to(connection: Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(core.store.migrations.__file__).parent))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


async def of_the_first_version(store: Store) -> None:
    async with store.writing() as connection:
        await connection.run_sync(upgrade_to, "0001")


async def test_a_store_of_the_first_version_is_upgraded_with_what_waits_in_it(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/store.db")

    async with store.writing() as connection:
        await connection.run_sync(upgrade_to, "0001")
        text = Amendment("request-1", provider="demo").to_json().decode()
        await connection.exec_driver_sql("INSERT INTO usage_amendments VALUES ('request-1', ?)", (text,))
    await store.upgrade()
    await store.usage.write([UsageEvent("request-1", 1, "/v1/chat/completions", 200)])
    event = await store.usage.get("request-1")
    assert event is not None and event.provider == "demo"
    await store.close()


async def test_attempts_from_before_budgets_belong_to_no_account_and_old_workers_go_on_writing(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/store.db")
    as_it_was = (
        "request_id, number, model, started_ms, latency_ms, status, usage, input_tokens, output_tokens, cost_nano"
    )
    write = f"INSERT INTO usage_attempts ({as_it_was}) VALUES (?, 1, 'large', 0, 0, 200, 'reported', 1, 2, 3)"
    async with store.writing() as connection:
        await connection.run_sync(upgrade_to, "0003")
        await connection.exec_driver_sql(write, ("request-1",))
    await store.upgrade()
    async with store.writing() as connection:
        await connection.exec_driver_sql(write, ("request-2",))
    for name in ("request-1", "request-2"):
        await store.usage.write([UsageEvent(name, 1, "/v1/chat/completions", 200)])
        event = await store.usage.get(name)
        assert event is not None
        assert [(each.cost_nano, each.accounts, each.reserved_nano) for each in event.attempts] == [(3, (), 0)]
    await store.close()


@pytest.mark.slow
@pytest.mark.parametrize("apart", [False, True])
async def test_a_store_of_a_newer_version_is_refused(apart: bool, tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/store.db")
    await store.upgrade()
    async with store.writing() as connection:
        await connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match="run the version that made them"):
        await store.upgrade(apart=apart)
    await store.close()


async def test_where_no_other_process_can_be_had_the_store_is_upgraded_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"sqlite:///{tmp_path}/store.db")
    await of_the_first_version(store)
    monkeypatch.setattr("sys.executable", str(tmp_path / "nothing"))
    await store.upgrade(apart=True)
    assert await store.version() == HEAD
    await store.close()


UPGRADE = """
import asyncio, sys
from core.store import open_store
async def main():
    store = open_store(sys.argv[1])
    await store.upgrade(apart=True)
    print(await store.version(), "alembic" in sys.modules)
    await store.close()
asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("empty", [True, False])
async def test_four_processes_may_upgrade_at_once_and_none_loads_what_that_needs(empty: bool, tmp_path: Path) -> None:
    if not empty:
        store = open_store(f"sqlite:///{tmp_path}/store.db")
        await of_the_first_version(store)
        await store.close()
    command = [sys.executable, "-c", UPGRADE, f"sqlite:///{tmp_path}/store.db"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate()[0].strip() for process in processes] == [f"{HEAD} False"] * 4


async def test_a_second_writer_is_refused_and_told_who_has_the_store(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/store.db")
    lock = await acquire_single_writer_lock(store, "worker one")
    assert await lock.held()
    with pytest.raises(StoreLocked, match=r"worker one \(pid \d+ on .*REDIS_URL"):
        await acquire_single_writer_lock(store, "worker two")
    await lock.release()
    await (await acquire_single_writer_lock(store, "worker two")).release()
    await store.close()


@pytest.mark.slow
def test_core_imports_no_sqlalchemy_until_a_store_is_opened() -> None:
    code = "import sys, core.journal, core.ledger, core.usage, core.cli.report; print('sqlalchemy' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


@pytest.mark.slow
def test_a_store_loads_neither_the_orm_nor_the_dialect_of_the_other_database(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from core.store import open_store\n"
        "async def main():\n"
        f"    store = open_store('sqlite:///{tmp_path}/store.db')\n"
        "    await store.upgrade(apart=True)\n"
        "    for name in ('usage', 'budgets', 'audit', 'alerts', 'batches', 'overlay', 'feedback', 'allocations'):\n"
        "        getattr(store, name)\n"
        "    await store.close()\n"
        "asyncio.run(main())\n"
        "print([name for name in ('sqlalchemy.orm', 'sqlalchemy.dialects.postgresql') if name in sys.modules])\n"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
