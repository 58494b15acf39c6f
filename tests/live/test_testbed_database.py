"""LiteLLM with its own database through the Prisma bridge: keys, spend, several workers, outages, sudden deaths."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.support import processes
from tests.support.eventually import eventually_sync
from tests.support.litellm_database import LiteLLMDatabase, LiteLLMDatabases
from tests.support.postgres import PostgresServer
from tests.support.provider import FakeProvider
from tests.support.proxy import HiddenKey, ProxyProcess, openai_models

pytestmark = pytest.mark.live

MESSAGES = [{"role": "user", "content": "one two three four"}]


@pytest.fixture(scope="module")
def database(litellm_databases: LiteLLMDatabases) -> Iterator[LiteLLMDatabase]:
    with litellm_databases.database() as database:
        yield database


@pytest.fixture(scope="module")
def proxy(shared_provider: FakeProvider, database: LiteLLMDatabase) -> Iterator[ProxyProcess]:
    """Two workers of plain LiteLLM with its database. Not shared: the last tests end it."""
    prices = {"input_cost_per_token": 0.001, "output_cost_per_token": 0.01}
    config = {
        "model_list": openai_models(shared_provider.url, "small", **prices),
        "general_settings": {"proxy_batch_write_at": 1},
    }
    with ProxyProcess(config, env=database.env, workers=2) as proxy:
        yield proxy


def new_key(proxy: ProxyProcess, **settings: object) -> HiddenKey:
    with proxy.client() as admin:
        answer = admin.post("/key/generate", json={"models": ["small"], **settings})
    assert answer.status_code == 200, answer.text
    return HiddenKey(answer.json()["key"])


def chat(proxy: ProxyProcess, key: str) -> httpx.Response:
    with proxy.client(key) as client:
        return client.post("/v1/chat/completions", json={"model": "small", "messages": MESSAGES})


def info(proxy: ProxyProcess, key: str) -> dict[str, object]:
    with proxy.client() as admin:
        answer = admin.get("/key/info", params={"key": key})
    assert answer.status_code == 200, answer.text
    return answer.json()["info"]


def test_a_key_lives_from_generation_to_deletion(proxy: ProxyProcess, provider: FakeProvider):
    key = new_key(proxy, metadata={"tier": "premium", "nested": {"list": [1, None, "x"]}}, max_budget=5.0)
    assert chat(proxy, key).status_code == 200
    eventually_sync(lambda: info(proxy, key)["spend"] == pytest.approx(4 * 0.001 + 8 * 0.01), within=20)
    assert info(proxy, key)["metadata"] == {"tier": "premium", "nested": {"list": [1, None, "x"]}}
    assert provider.totals.total_tokens == 12
    with proxy.client() as admin:
        assert admin.post("/key/delete", json={"keys": [key]}).status_code == 200
    # Served from LiteLLM's archive. The worker that was not asked may remember the key for its short cache time.
    assert info(proxy, key)["status"] == "deleted"


def test_a_team_and_a_user_can_be_made_and_found(proxy: ProxyProcess):
    with proxy.client() as admin:
        team = admin.post("/team/new", json={"team_alias": "research", "metadata": {"groups": ["ai"]}}).json()
        user = admin.post("/user/new", json={"user_email": "ada@example.org", "auto_create_key": False}).json()
        key = new_key(proxy, team_id=team["team_id"], user_id=user["user_id"])
        found = admin.get("/team/info", params={"team_id": team["team_id"]}).json()
    assert found["team_info"]["metadata"]["groups"] == ["ai"]
    assert [entry["user_id"] for entry in found["keys"]] == [user["user_id"]]
    assert chat(proxy, key).status_code == 200


def test_both_workers_know_a_key_that_one_of_them_made(proxy: ProxyProcess, provider: FakeProvider):
    key = new_key(proxy)
    # A connection of its own for each request spreads them over the workers.
    assert {chat(proxy, key).status_code for _ in range(12)} == {200}
    assert len(proxy.engines) == 2, "an engine for each worker"
    assert len({engine.ppid() for engine in proxy.engines} | {proxy.pid}) == 3
    eventually_sync(lambda: info(proxy, key)["spend"] == pytest.approx(12 * 0.084), within=20)


def test_an_unknown_key_is_refused(proxy: ProxyProcess):
    assert chat(proxy, "sk-never-made-0123456789").status_code == 401


def test_an_outage_of_postgresql_ends_when_it_is_back(proxy: ProxyProcess, postgres_server: PostgresServer):
    key = new_key(proxy)
    postgres_server.stop()
    with proxy.client() as admin:
        assert admin.get("/key/info", params={"key": key}).status_code >= 400
    postgres_server.start()
    eventually_sync(lambda: info(proxy, key)["models"] == ["small"], within=30)


def test_the_engine_of_a_killed_worker_dies_with_it(proxy: ProxyProcess):
    engines = proxy.engines
    worker = engines[0].parent()
    assert worker is not None and worker.pid != proxy.pid
    worker.kill()
    eventually_sync(lambda: not processes.lives(engines[0]), within=10)
    assert processes.lives(engines[1])
    new_key(proxy)


def test_no_engine_survives_the_killed_proxy(proxy: ProxyProcess):
    engines = proxy.engines
    assert engines
    proxy.kill()
    assert not any(processes.lives(engine) for engine in engines)
    eventually_sync(lambda: not processes.answers(proxy.port), within=5)


# ---- The bridge by itself ----


def test_an_engine_notices_that_whoever_started_it_was_killed(litellm_database: LiteLLMDatabase):
    import prisma

    assert prisma.__file__ is not None
    port = processes.free_port()
    code = "import subprocess, sys; subprocess.Popen(sys.argv[1:]); print('started', flush=True); sys.stdin.read()"
    environment = {
        **os.environ,
        **litellm_database.env,
        "PRISMA_DML_PATH": str(Path(prisma.__file__).with_name("schema.prisma")),
    }
    command = [sys.executable, "-c", code, litellm_database.env["PRISMA_QUERY_ENGINE_BINARY"], "-p", str(port)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE) as starter:
        eventually_sync(lambda: httpx.get(f"http://localhost:{port}/status", trust_env=False).status_code == 200)
        starter.send_signal(signal.SIGKILL)
    eventually_sync(lambda: refuses(port), within=5)


def refuses(port: int) -> bool:
    try:
        httpx.get(f"http://localhost:{port}/status", trust_env=False)
    except httpx.ConnectError:
        return True
    return False


BRIDGE_PROGRAM = """
import asyncio, datetime, json
from prisma import Prisma, Json
from prisma.errors import UniqueViolationError

async def main():
    async with Prisma() as db:
        table = db.litellm_verificationtoken
        for number in range(3):
            await table.create({"token": f"t{number}", "models": ["a", "b"], "spend": number / 10,
                                "metadata": Json({"tier": "gold", "quote": 'say "hi"', "none": None, "n": number})})
        try:
            await table.create({"token": "t0"})
        except UniqueViolationError:
            print("unique")
        found = await table.find_many(where={"spend": {"gt": 0.05}}, order={"token": "desc"})
        print([row.token for row in found], found[0].metadata, found[0].models)
        await table.update_many(where={"token": {"in": ["t1", "t2"]}}, data={"spend": {"increment": 1}})
        await table.upsert(where={"token": "t9"}, data={"create": {"token": "t9"}, "update": {}})
        rows = await db.query_raw('select token, spend, models, metadata, now() as now, null as nothing, '
                                  'count(*) over () as total from "LiteLLM_VerificationToken" where token = any($1) '
                                  'order by token', ["t1", "t9"])
        print([(row["token"], row["spend"], row["models"], row["nothing"], row["total"]) for row in rows])
        async with db.batch_() as batch:
            batch.litellm_verificationtoken.delete(where={"token": "t0"})
            batch.litellm_verificationtoken.update(where={"token": "t9"}, data={"spend": 7})
        try:
            async with db.tx() as transaction:
                await transaction.litellm_verificationtoken.delete_many()
                raise KeyError("roll it back")
        except KeyError:
            pass
        print(await table.count(), (await table.find_unique(where={"token": "t9"})).spend)

asyncio.run(main())
"""


def test_the_bridge_speaks_prismas_protocol(litellm_database: LiteLLMDatabase):
    """Filters, JSON, unique violations, raw queries, batches and a transaction that is rolled back."""
    environment = {**os.environ, **litellm_database.env}
    result = subprocess.run(
        [sys.executable, "-c", BRIDGE_PROGRAM], env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "unique",
        """['t2', 't1'] {'n': 2, 'none': None, 'tier': 'gold', 'quote': 'say "hi"'} ['a', 'b']""",
        "[('t1', 1.1, ['a', 'b'], None, 2), ('t9', 0, None, None, 2)]",
        "3 7.0",
    ]
    with psycopg.connect(litellm_database.url) as connection:
        stored = connection.execute(
            """select metadata from "LiteLLM_VerificationToken" where token = 't1'"""
        ).fetchone()
    assert stored == ({"tier": "gold", "quote": 'say "hi"', "none": None, "n": 1},)
