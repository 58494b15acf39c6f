"""What the live tests share: a proxy with our plugin, and a store on a real PostgreSQL."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable

import pytest

from core.store import Store, open_store
from tests.support.books import Books
from tests.support.gateway import Gateway, gateway_config, key_environment
from tests.support.processes import free_port
from tests.support.provider import FakeProvider
from tests.support.proxy import ProxyProcess

# Most of a start is LiteLLM being imported: forked it takes two seconds, not ten.
ProxyProcess.forks = sys.platform == "linux"  # which alone lets one take over another's children


@pytest.fixture(scope="session")
def shared_gateway(shared_provider: FakeProvider, shared_proxy: Callable[..., ProxyProcess]) -> Gateway:
    """The session's gateway, as a previous test left it: for other fixtures. Tests ask for `gateway`."""
    config = gateway_config(shared_provider, nowhere=f"http://127.0.0.1:{free_port()}/v1")
    proxy = shared_proxy(config, env=key_environment())
    return Gateway(proxy, shared_provider, Books(proxy))


@pytest.fixture
def gateway(shared_gateway: Gateway, provider: FakeProvider) -> Gateway:
    """The shared gateway with a provider that works and an empty bill; its books begin with this test."""
    shared_gateway.books.mark()
    return shared_gateway


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[Store]:
    store = open_store(postgres_url)
    await store.upgrade()
    yield store
    await store.close()
