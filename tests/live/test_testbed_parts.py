"""The test bed's servers, clock and waiting: what every other test leans on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from tests.conftest import without_node
from tests.support import npm, processes
from tests.support.clock import Clock
from tests.support.eventually import NeverHappened, eventually, eventually_sync
from tests.support.postgres import PostgresServer
from tests.support.provider import ProviderProcess
from tests.support.redis import RedisServer

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[2]


class TestRedis:
    def test_it_runs_lua_and_answers_by_tcp_and_by_socket(self, redis_server: RedisServer):
        script = "return cmsgpack.unpack(cmsgpack.pack(redis.call('incr', KEYS[1])))"
        with redis_server.client() as client, redis.Redis.from_url(redis_server.socket_url) as local:
            assert client.eval(script, 1, "counter") == 1
            assert local.get("counter") == b"1"

    def test_each_test_finds_it_empty(self, redis_server: RedisServer):
        with redis_server.client() as client:
            assert client.dbsize() == 0

    def test_an_outage_ends_at_the_same_address_without_what_it_knew(self, redis_server: RedisServer):
        with redis_server.client() as client:
            client.set("key", "value")
            redis_server.stop()
            with pytest.raises(redis.ConnectionError):
                client.ping()
            redis_server.start()
            assert client.get("key") is None

    def test_a_durable_one_keeps_what_it_knew(self):
        with RedisServer(durable=True) as server, server.client() as client:
            client.set("key", "value")
            server.stop()
            server.start()
            assert client.get("key") == b"value"

    def test_a_frozen_one_lets_clients_time_out(self, redis_server: RedisServer):
        with redis.Redis.from_url(redis_server.url, socket_timeout=0.2, retry=None) as client:
            client.ping()
            redis_server.freeze()
            with pytest.raises(redis.TimeoutError):
                client.ping()
            redis_server.thaw()
            assert client.ping()


class TestPostgres:
    def test_every_database_is_fresh(self, postgres_server: PostgresServer):
        with postgres_server.database() as first, postgres_server.database() as second:
            with psycopg.connect(first) as connection:
                connection.execute("create table taken (id int)")
            with psycopg.connect(second) as connection:
                assert connection.execute("select to_regclass('taken')").fetchone() == (None,)

    def test_a_database_is_the_same_by_tcp_and_by_socket(self, postgres_server: PostgresServer, postgres_url: str):
        name = postgres_url.rsplit("/", 1)[1]
        postgres_server.execute("create table here (id int)", database=name)
        with psycopg.connect(postgres_server.socket_url(name)) as connection:
            assert connection.execute("select count(*) from here").fetchone() == (0,)

    def test_an_outage_cuts_connections_and_keeps_what_was_committed(
        self, postgres_server: PostgresServer, postgres_url: str
    ):
        connection = psycopg.connect(postgres_url, autocommit=True)
        connection.execute("create table kept as select 1 as id")
        postgres_server.stop()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(postgres_url)
        postgres_server.start()
        with psycopg.connect(postgres_url) as again:
            assert again.execute("select id from kept").fetchone() == (1,)


class TestProviderProcess:
    def test_it_is_scripted_and_billed_from_outside(self):
        with ProviderProcess() as provider:
            provider.script(model="m", statuses=(500, 200), output_tokens=3)
            body = '{"model": "m", "prompt": "one two"}'
            command = ["curl", "-s", "-o", os.devnull, "-w", "%{http_code}", f"{provider.url}/completions", "-d", body]
            statuses = [subprocess.run(command, capture_output=True, text=True).stdout for _ in range(2)]
            assert statuses == ["500", "200"]
            assert [attempt.total_tokens for attempt in provider.attempts] == [0, 5]
            assert provider.totals.attempts == 2
            provider.reset()
            assert provider.attempts == []
        assert not processes.answers(provider.port)

    def test_started_by_hand_it_prints_its_address(self):
        command = [sys.executable, "-m", "tests.support.provider", "--port", "0"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                url = process.stdout.readline().strip()
                port = int(url.rsplit(":", 1)[1].removesuffix("/v1"))
                eventually_sync(lambda: processes.answers(port))
            finally:
                process.terminate()


def test_children_do_not_outlive_a_killed_test_run():
    code = (
        "import sys, time; from tests.support import processes\n"
        "print(processes.start([sys.executable, '-c', 'import time; time.sleep(600)']).pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        child = psutil.Process(int(run.stdout.readline()))
        run.send_signal(signal.SIGKILL)
    eventually_sync(lambda: not processes.lives(child), within=10)


@pytest.mark.usefixtures("node_client")  # which skips without Node.js
def test_node_packages_are_installed_once_for_the_same_lock_file():
    source = ROOT / "tests" / "support" / "node"
    first = npm.installed(source)
    before = (first / "node_modules").stat().st_mtime_ns
    assert npm.installed(source) == first
    assert (first / "node_modules").stat().st_mtime_ns == before


def test_without_node_tests_are_skipped_but_not_on_ci(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(npm.NodeMissing, match="node is not installed") as missing:
        npm.node()
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="NOT TESTED"):
        without_node(missing.value)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"CI needs Node\.js"):
        without_node(missing.value)


@pytest.mark.parametrize("folder", ["node", "prisma_bridge"])
def test_lock_files_pin_exact_versions_and_name_no_registry(folder: str):
    source = ROOT / "tests" / "support" / folder
    lock = json.loads((source / "package-lock.json").read_text())
    wanted = json.loads((source / "package.json").read_text())["dependencies"]
    assert {name: lock["packages"][f"node_modules/{name}"]["version"] for name in wanted} == wanted
    packages = [package for path, package in lock["packages"].items() if path]
    assert all("integrity" in package and "resolved" not in package for package in packages)


class TestClock:
    def test_it_moves_only_when_told(self, clock: Clock):
        start = clock()
        assert clock() == start
        clock.advance(90)
        assert clock() == start + 90
        with pytest.raises(ValueError, match="does not go back"):
            clock.advance(-1)

    async def test_sleeping_takes_no_time_and_moves_it(self, clock: Clock):
        start = clock()
        async with asyncio.timeout(1):
            await clock.sleep(3600)
        assert clock() == start + 3600
        assert clock.slept == [3600]

    async def test_sleepers_wake_when_their_time_has_come(self, clock: Clock):
        woken: list[int] = []

        async def sleeper(seconds: int) -> None:
            await clock.sleep_until_advanced(seconds)
            woken.append(seconds)

        async with asyncio.TaskGroup() as group:
            for seconds in (30, 10, 20):
                group.create_task(sleeper(seconds))
            await asyncio.sleep(0)
            clock.advance(9.9)
            await asyncio.sleep(0)
            assert woken == []
            clock.advance(10.1)
            await eventually(lambda: len(woken) == 2)
            assert woken == [10, 20]
            clock.advance(10)
        assert woken == [10, 20, 30]


class TestEventually:
    async def test_it_returns_what_the_condition_returned_at_last(self):
        answers = iter([None, 0, "found"])

        async def look() -> object:
            return next(answers)

        assert await eventually(look) == "found"

    async def test_an_error_counts_as_not_yet(self):
        answers = iter([True])

        def look() -> bool:
            if not failures:
                return next(answers)
            raise failures.pop()

        failures = [ConnectionError("away")]
        assert await eventually(look)

    async def test_it_gives_up_and_says_what_it_saw_last(self):
        with pytest.raises(NeverHappened, match=r"the answer did not happen within 0.05 s; last: returned \[\]"):
            await eventually(list, within=0.05, what="the answer")

    def test_without_a_loop_it_gives_up_as_well(self):
        with pytest.raises(NeverHappened, match="ZeroDivisionError"):
            eventually_sync(lambda: 1 // 0, within=0.05)
