"""The test bed's fixtures: each gives one real part from `tests/support`, started when a test first asks for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from tests.support.clock import Clock
from tests.support.litellm_database import LiteLLMDatabase, LiteLLMDatabases
from tests.support.node_client import NodeClient
from tests.support.npm import NodeMissing
from tests.support.postgres import PostgresServer
from tests.support.provider import FakeProvider
from tests.support.proxy import ProxyProcess, SharedProxies
from tests.support.redis import RedisServer
from tests.support.redis_cluster import RedisCluster
from tests.support.untested import untested

# LiteLLM fetches its price list while it is imported, and goes on trying in the background where there is no network.
# Tests that are about that fetch remove this again.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"


def without_node(reason: NodeMissing) -> NoReturn:
    """`untested` for whatever runs on Node.js."""
    untested("Node.js", reason)


@pytest.fixture
def clock() -> Clock:
    """Time that moves only when the test says so."""
    return Clock()


@pytest.fixture(scope="session")
def shared_provider() -> Iterator[FakeProvider]:
    """The session's fake provider, as a previous test left it: for other fixtures. Tests ask for `provider`."""
    with FakeProvider() as provider:
        yield provider


@pytest.fixture
def provider(shared_provider: FakeProvider) -> Iterator[FakeProvider]:
    """The fake provider with its default behaviour and an empty bill."""
    shared_provider.reset()
    yield shared_provider
    shared_provider.reset()


@pytest.fixture(scope="session")
def shared_postgres() -> Iterator[PostgresServer]:
    """The session's PostgreSQL, as a previous test left it: for other fixtures. Tests ask for `postgres_server`."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgres_server(shared_postgres: PostgresServer) -> PostgresServer:
    """A running PostgreSQL; a test may stop it."""
    shared_postgres.start()
    return shared_postgres


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A fresh, empty PostgreSQL database of the test's own."""
    with postgres_server.database() as url:
        yield url


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """The session's Redis, as a previous test left it: for other fixtures. Tests ask for `redis_server`."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """A running, empty Redis; a test may stop or freeze it."""
    shared_redis.thaw()
    shared_redis.start()
    shared_redis.flushall()
    return shared_redis


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    """A running Redis Cluster of the module's own."""
    if shutil.which("redis-cli") is None or shutil.which("redis-server") is None:
        untested("redis-server 7 and redis-cli", "there is no redis-server 7 with redis-cli here")
    with RedisCluster() as running:
        yield running


@pytest.fixture(scope="session")
def shared_proxy() -> Iterator[Callable[..., ProxyProcess]]:
    """`shared_proxy(config, env=..., workers=..., command=...)`: a running proxy, the same one for the same words."""
    proxies = SharedProxies()
    yield proxies.get
    proxies.close()


@pytest.fixture(scope="session")
def litellm_databases(shared_postgres: PostgresServer) -> LiteLLMDatabases:
    """Where LiteLLM's own databases come from; builds the Prisma bridge once."""
    try:
        return LiteLLMDatabases(shared_postgres)
    except NodeMissing as reason:
        without_node(reason)


@pytest.fixture
def litellm_database(postgres_server: PostgresServer, litellm_databases: LiteLLMDatabases) -> Iterator[LiteLLMDatabase]:
    """A fresh database with LiteLLM's tables; give `.env` to a proxy."""
    with litellm_databases.database() as database:
        yield database


@pytest.fixture(scope="session")
def node_client() -> NodeClient:
    """The `openai` package for Node: `node_client("chat", url=..., key=..., model=..., prompt=...)`."""
    try:
        return NodeClient()
    except NodeMissing as reason:
        without_node(reason)
