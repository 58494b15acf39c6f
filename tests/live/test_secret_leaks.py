"""No secret value anywhere: every route and every trouble with marked secrets, at the loudest log level, then a search.

What is searched: the log, every answer with its headers, every file the proxy wrote, its database, Redis, command lines
and the output of our commands, for each value as it is, in base64, URL-quoted, and in part.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import redis

from tests.support.eventually import eventually_sync
from tests.support.gateway import NO_BREAKERS, model
from tests.support.provider import FakeProvider
from tests.support.proxy import ProxyProcess
from tests.support.redis import RedisServer
from tests.support.secret_proxy import CALLS, CHAT, MANAGER, FileVault
from tests.support.vault import VaultDouble

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]

TOOL = Path(sys.executable).with_name("llm-orchestration")
# Routes that end the proxy, or wait for ever.
LEFT_OUT = {"/health/drain", "/shutdown", "/v1/realtime", "/realtime"}
TROUBLES: dict[str, dict[str, Any]] = {
    "refused": {"status": 401},
    "forbidden": {"status": 403},
    "bad request": {"status": 400},
    "throttled": {"status": 429},
    "failed": {"status": 500},
    "malformed": {"malformed": True},
    "reset": {"reset_connection": True},
    "cut": {"cut_after_chunks": 1},
}


def marked(name: str) -> str:
    return f"{name}-{secrets.token_hex(24)}"


@dataclass
class Search:
    """Looks for values, however they are written."""

    values: dict[str, str] = field(default_factory=dict[str, str])
    paths: set[str] = field(default_factory=set[str])
    found: list[str] = field(default_factory=list[str])

    def forms(self) -> Iterator[tuple[str, bytes]]:
        for name, value in self.values.items():
            random = value.rpartition("-")[2]
            yield name, value.encode()
            yield f"{name} in part", random[:16].encode()
            yield f"{name} in part", random[-16:].encode()
            for before in range(3):  # what stands in front decides how the bits fall
                yield f"{name} in base64", base64.b64encode(b"x" * before + value.encode())[4:-4]
            yield f"{name} in a URL", urllib.parse.quote(value, safe="").encode()

    def look(self, where: str, content: bytes | str) -> None:
        data = content.encode(errors="replace") if isinstance(content, str) else content
        for form, text in self.forms():
            if text in data:
                at = data.index(text)
                context = data[max(0, at - 160) : at].decode(errors="replace")
                self.found.append(f"{form}: {where}: ...{context}<HERE>")

    def drive(self, path: str, answer: httpx.Response) -> None:
        """A code path and what came of it."""
        self.paths.add(path)
        self.look(path, answer.content)
        self.look(f"{path}, headers", repr(answer.headers.raw))


@dataclass
class Stage:
    proxy: ProxyProcess
    provider: FakeProvider
    vault: FileVault
    hashicorp: VaultDouble
    redis: RedisServer
    search: Search
    config: dict[str, Any]

    def rotate(self, name: str) -> str:
        value = marked(name.lower())
        self.search.values[f"{name} {len(self.search.values)}"] = value
        self.vault.put(**{name: value})
        return value


def configured(provider: FakeProvider, vault: FileVault, hashicorp: VaultDouble) -> dict[str, Any]:
    headers = {"x-team": "os.environ/hashicorp://secret/team#header"}
    named = {"credential_name": "shared", "credential_values": {"api_key": "os.environ/env://CREDENTIAL"}}
    return {
        "litellm_settings": {"callbacks": ["litellm_orchestration.callback"], "num_retries": 1, "request_timeout": 5},
        "general_settings": {"master_key": "os.environ/env://MASTER", **MANAGER},
        "credential_list": [named | {"credential_info": {"description": "shared"}}],
        "model_list": [
            model("small", provider.url, api_key="os.environ/env://OPENAI", extra_headers=headers),
            model("claude", provider.origin, provider="anthropic", api_key="os.environ/env://ANTHROPIC"),
            model("embed", provider.url, mode="embedding", api_key="os.environ/hashicorp://secret/embed#key"),
            model("nowhere", "http://127.0.0.1:9/v1", api_key="os.environ/env://OPENAI"),
            model("borrowed", provider.url, api_key=None, litellm_credential_name="shared"),
            model("unread", provider.url, api_key="os.environ/hashicorp://secret/missing#key"),
        ],
        "orchestration": {
            "resilience": NO_BREAKERS,
            "store": {"url": "os.environ/env://STORE"},
            "secrets": {
                "cache": {"ttl": 5},
                "providers": {
                    "local": {"file": str(vault.path)},
                    "hashicorp": {"url": hashicorp.url, "auth": {"method": "token"}},
                },
            },
            "analytics": {"log_level": "DEBUG"},
        },
    }


@pytest.fixture(scope="module")
def stage(
    shared_provider: FakeProvider,
    shared_postgres: Any,
    shared_redis: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stage]:
    search = Search()
    shared_provider.reset()
    shared_postgres.start()
    shared_redis.start()
    with VaultDouble() as hashicorp, shared_postgres.database() as url:
        names = ("MASTER", "OPENAI", "ANTHROPIC", "CREDENTIAL", "HEADER", "EMBED", "TOKEN", "PASSWORD")
        search.values = {name: marked(f"sk-{name.lower()}") for name in names}
        values = search.values
        vault = FileVault(tmp_path_factory.mktemp("vault"))
        # PostgreSQL trusts whoever is here, whatever the password.
        store = url.replace("postgresql://postgres@", f"postgresql://postgres:{values['PASSWORD']}@")
        assert values["PASSWORD"] in store
        vault.put(STORE=store, **{name: values[name] for name in ("MASTER", "OPENAI", "ANTHROPIC", "CREDENTIAL")})
        hashicorp.policy("all", "secret/data/*")
        hashicorp.token("all", token=values["TOKEN"])
        hashicorp.kv2("secret/team", header=values["HEADER"])
        hashicorp.kv2("secret/embed", key=values["EMBED"])
        config = configured(shared_provider, vault, hashicorp)
        environ = {"VAULT_TOKEN": values["TOKEN"], "REDIS_URL": shared_redis.url, "LITELLM_LOG": "DEBUG"}
        environ |= {"LITELLM_MASTER_KEY": ""}
        with ProxyProcess(config, env=environ, arguments=["--detailed_debug"]) as proxy:
            yield Stage(proxy, shared_provider, vault, hashicorp, shared_redis, search, config)


def admin(stage: Stage, timeout: float = 20) -> httpx.Client:
    return stage.proxy.client(stage.search.values["MASTER"], timeout=timeout)


def ask(stage: Stage, client: httpx.Client, what: str, method: str, path: str, **request: Any) -> None:
    try:
        stage.search.drive(f"{method} {path}, {what}", client.request(method, path, **request))
    except httpx.HTTPError as error:  # an answer that was cut
        stage.search.paths.add(f"{method} {path}, {what}: {type(error).__name__}")


def test_the_search_finds_what_it_looks_for() -> None:
    search = Search({"A": marked("sk-a")})
    for form in (
        search.values["A"],
        base64.b64encode(b"Bearer:" + search.values["A"].encode() + b"::").decode(),
        urllib.parse.quote(f"x={search.values['A']}"),
        f"...{search.values['A'][-16:]}",
        f"{search.values['A'][:26]}...",
    ):
        search.found.clear()
        search.look("planted", f"text {form} text")
        assert search.found, form
    search.found.clear()
    search.look("harmless", "text " + secrets.token_hex(200))
    assert search.found == []


def test_calls_in_every_trouble(stage: Stage) -> None:
    with admin(stage) as client, ThreadPoolExecutor(len(CALLS)) as pool:

        def ask_each(what: str, **more: Any) -> None:
            """All at the same time: most of it is waiting for the next try."""

            def one(name: str) -> None:
                path, body = CALLS[name]
                ask(stage, client, f"{name}, {what}", "POST", path, json={**body, **more})

            list(pool.map(one, CALLS))

        ask_each("good")
        for trouble, behaviour in TROUBLES.items():
            stage.provider.reset()
            stage.provider.script(**behaviour)
            ask_each(trouble)
        stage.provider.reset()
        for other in ("nowhere", "borrowed", "unread", "unknown-model"):
            ask_each(other, model=other)
        for name, (path, _) in CALLS.items():
            ask(stage, client, f"{name}, no body", "POST", path, content=b"{")
        used = {attempt.api_key for attempt in stage.provider.attempts}
    with stage.proxy.client("sk-nobody") as stranger:
        for name, (path, body) in CALLS.items():
            ask(stage, stranger, f"{name}, stranger", "POST", path, json=body)
    assert used <= set(stage.search.values.values())


def test_rotations(stage: Stage) -> None:
    with admin(stage) as client:
        for name in ("chat", "chat-stream", "completion-stream", "responses", "messages-of-openai"):
            path, body = CALLS[name]
            old = stage.vault.values["OPENAI"]
            new = stage.rotate("OPENAI")
            stage.provider.reset()
            stage.provider.script(api_key=old, status=401)
            ask(stage, client, f"{name}, rotated", "POST", path, json=body)
            assert stage.provider.attempts[-1].api_key == new
            bad = stage.rotate("OPENAI")
            ask(stage, client, "all", "POST", "/orchestration/secrets/refresh")
            stage.provider.script(api_key=bad, status=403)
            ask(stage, client, f"{name}, bad new key", "POST", path, json=body)
            stage.vault.put(OPENAI=new)
            ask(stage, client, "one", "POST", "/orchestration/secrets/refresh", json={"references": ["env://OPENAI"]})
            stage.provider.reset()


def test_vaults_in_every_trouble(stage: Stage) -> None:
    chat = {"model": "small", **CHAT}
    with admin(stage, timeout=60) as client:
        for mode in ("sealed", "uninitialised", "standby", "active"):
            stage.hashicorp.mode = mode
            ask(stage, client, f"vault {mode}", "POST", "/orchestration/secrets/refresh")
            ask(stage, client, f"vault {mode}", "POST", "/v1/chat/completions", json=chat)
        for status in (400, 403, 404, 429, 500, 503):
            stage.hashicorp.answer_next("secret/data/team", status, "told so", times=3)
            ask(stage, client, f"vault answers {status}", "POST", "/orchestration/secrets/refresh")
            ask(stage, client, f"vault answers {status}", "GET", "/orchestration/secrets")
        stage.hashicorp.away()
        ask(stage, client, "vault away", "POST", "/orchestration/secrets/refresh")
        stage.hashicorp.back()
        stage.vault.path.chmod(0o644)
        ask(stage, client, "readable file", "POST", "/orchestration/secrets/refresh")
        stage.vault.path.chmod(0o600)
        for body in (b"{", b'{"references": 1}', b'{"references": ["env://X"]}', b'["azur://x"]'):
            ask(stage, client, repr(body), "POST", "/orchestration/secrets/refresh", content=body)
        ask(stage, client, "well again", "POST", "/orchestration/secrets/refresh")


def test_every_route_of_the_proxy(stage: Stage) -> None:
    with admin(stage, timeout=8) as client:
        # LiteLLM describes its thousand routes on the first request, which takes many seconds on a busy machine.
        routes = client.get("/openapi.json", timeout=60).json()["paths"]
        for path, methods in routes.items():
            if path in LEFT_OUT or "realtime" in path:
                continue
            concrete = path.replace("{", "").replace("}", "")
            if "get" in methods:
                ask(stage, client, "empty", "GET", concrete)
            if "post" in methods and "key/" in path:
                ask(stage, client, "empty", "POST", concrete, json={})
        ours = (f"/orchestration/{page}" for page in ("status", "metrics", "secrets", "secrets/audit"))
        for path in (*ours, "/model/info"):
            ask(stage, client, "again", "GET", path)
        ask(stage, client, "of one", "GET", "/health?model=small")


def test_configurations_good_and_bad(stage: Stage) -> None:
    good = stage.proxy.config.read_text()
    edits = {
        "malformed": good.replace("env://ANTHROPIC", "azur://ANTHROPIC"),
        "unknown field": good.replace("orchestration:", "orchestration:\n  bugdets: []", 1),
        "missing": good.replace(
            "model_list:",
            "model_list:\n- model_name: x\n  litellm_params: {model: openai/x, "
            "api_key: os.environ/env://NOT_THERE}\n  model_info: {id: x}",
            1,
        ),
        "good": good,
    }
    with admin(stage) as client:
        for name, text in edits.items():
            log = stage.proxy.log_text()
            before = log.count("settings version") + log.count("not taken over")
            stage.proxy.config.write_text(text)

            def noticed(before: int = before) -> bool:
                log = stage.proxy.log_text()
                return log.count("settings version") + log.count("not taken over") > before

            eventually_sync(noticed, within=15, what=f"the {name} configuration")
            ask(stage, client, name, "GET", "/orchestration/status")
            for arguments in (["check"], ["doctor"], ["doctor", "secrets"]):
                run(stage, name, *arguments, str(stage.proxy.config))


def run(stage: Stage, what: str, *arguments: str) -> None:
    values = stage.search.values
    environ = {**os.environ, "LITELLM_MASTER_KEY": values["MASTER"], "VAULT_TOKEN": values["TOKEN"]}
    environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run([TOOL, *arguments], env=environ, cwd=stage.proxy.cwd, capture_output=True, timeout=60)
    stage.search.paths.add(f"{' '.join(arguments)}, {what}")
    stage.search.look(f"output of {arguments}", done.stdout + done.stderr)


def test_commands(stage: Stage) -> None:
    for arguments in (["list"], ["list", "--json"], ["refresh"], ["refresh", "env://NOT_THERE"]):
        run(stage, "with the key", "secrets", *arguments, "--url", stage.proxy.url)
    for arguments in (["--verify"], ["--json"]):
        run(stage, "with the config", "secrets", "audit", *arguments, "--config", str(stage.proxy.config))


@pytest.mark.parametrize("case", ["missing master key", "production without a secret", "vault away"])
def test_starts_that_fail(case: str, stage: Stage) -> None:
    config = json.loads(json.dumps(stage.config))
    values = stage.search.values
    environ = {"VAULT_TOKEN": values["TOKEN"], "LITELLM_LOG": "DEBUG", "LITELLM_MASTER_KEY": ""}
    if case == "missing master key":
        config["general_settings"]["master_key"] = "os.environ/env://NOT_THERE"
    elif case == "production without a secret":
        config["orchestration"]["environment"] = "production"
    else:
        config["general_settings"]["alerting_key"] = "os.environ/hashicorp://secret/team#header"
        config["orchestration"]["secrets"]["providers"]["hashicorp"]["url"] = "http://127.0.0.1:9"
    proxy = ProxyProcess(config, env=environ, arguments=["--detailed_debug"])
    try:
        with pytest.raises(RuntimeError):
            proxy.start()
        stage.search.paths.add(f"start, {case}")
        stage.search.look(f"log of a start with {case}", proxy.log.read_bytes())
    finally:
        proxy.close()


def test_nothing_is_found_anywhere(stage: Stage) -> None:
    """Runs last: everything above has happened."""
    search, proxy = stage.search, stage.proxy
    for process in [psutil.Process(proxy.pid), *psutil.Process(proxy.pid).children(recursive=True)]:
        search.look("a command line", " ".join(process.cmdline()))
    connection = redis.Redis.from_url(stage.redis.url)
    for key in connection.scan_iter():
        search.look(f"Redis key {key!r}", key + (connection.dump(key) or b""))
    proxy.stop()
    search.look("the log", proxy.log.read_bytes())
    for folder in {proxy.cwd, proxy.config.parent}:
        for file in folder.rglob("*"):
            if file.is_file():
                search.look(str(file), file.read_bytes())
    store = stage.vault.values["STORE"]
    dump = subprocess.run(
        [sys.executable, "-c", DUMP, store], capture_output=True, check=True, env={**os.environ}
    ).stdout
    assert b"secret.fetched" in dump
    search.look("the database", dump)
    assert len(search.paths) >= 200, len(search.paths)
    assert search.found == []


DUMP = """
import asyncio, sys, asyncpg
async def dump():
    connection = await asyncpg.connect(sys.argv[1])
    tables = "select schemaname, tablename from pg_tables where schemaname not in ('pg_catalog', 'information_schema')"
    for schema, table in await connection.fetch(tables):
        for row in await connection.fetch(f'select t::text from "{schema}"."{table}" t'):
            print(row[0])
asyncio.run(dump())
"""
