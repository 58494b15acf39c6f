"""Secrets: what a value costs a request, how often a vault is asked, and what a rotation costs clients.

    python -m benchmarks secrets [--quick]

The vault is the double of HashiCorp Vault's REST API that the tests use, in a process of its own time (a thread), asked
by the real client; it answers after 50 ms.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.figures import Bound, Figure, Result
from core.settings import Settings
from core.settings.reference import SecretReference
from secrets_manager.service import PLACEHOLDER, SecretService
from tests.support.provider import FakeProvider
from tests.support.secret_proxy import CHAT, FileVault, proxy_with
from tests.support.vault import VaultDouble

_VAULT_SECONDS = 0.05
_CONNECTIONS = 64


def measure(references: int = 1000, reads: int = 200_000, rotations: int = 5) -> Result:
    """All figures; some two minutes."""
    began = time.perf_counter()
    figures = [*_cached(references, reads), *asyncio.run(_rotation(rotations))]
    return Result("secrets", figures, time.perf_counter() - began)


def _cached(references: int, reads: int) -> Iterator[Figure]:
    with VaultDouble() as vault:
        token = vault.token("read-all")
        vault.policy("read-all", "secret/data/*")
        for number in range(references):
            vault.kv2(f"secret/key-{number}", value=f"value-{number}")
        vault.latency = _VAULT_SECONDS
        environ = {"VAULT_TOKEN": token}
        hashicorp = {"url": vault.url, "auth": {"method": "token"}}
        settings = Settings.model_validate({"secrets": {"providers": {"hashicorp": hashicorp}}})
        service = SecretService(environ)
        began = time.perf_counter()
        service.configure(settings, {"model_list": [_model(number) for number in range(references)]})
        yield Figure(
            f"{references} references read at the start", time.perf_counter() - began, "s", must=Bound("<=", 5)
        )
        asked = sum(count for call, count in vault.calls.items() if "secret/data/" in call)
        yield Figure("calls to the vault for each of them", asked / references, must=Bound("==", 1))

        resolver, reference = service.resolver, SecretReference("hashicorp", "secret/key-1")
        yield Figure.of("cached value", _microseconds(lambda: resolver.current(reference), reads), "us", Bound("<=", 5))
        call: dict[str, Any] = {f"argument_{n}": "text" for n in range(40)} | {"messages": [], "stream": False}

        def put() -> None:
            call["api_key"] = _PLACEHOLDER
            service.put_into(call, "gpt-1")

        yield Figure.of("value put into a call of 43 arguments", _microseconds(put, reads), "us")
        asked_now = sum(count for call, count in vault.calls.items() if "secret/data/" in call)
        yield Figure(f"calls to the vault for {2 * reads} reads", asked_now - asked, must=Bound("==", 0))
        service.close()


_PLACEHOLDER = f"{PLACEHOLDER}hashicorp://secret/key-1"


def _model(number: int) -> dict[str, Any]:
    parameters = {"model": "openai/x", "api_key": f"os.environ/hashicorp://secret/key-{number}"}
    return {"model_name": f"gpt-{number}", "litellm_params": parameters}


def _microseconds(work: Any, times: int, rounds: int = 9) -> list[float]:
    found: list[float] = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(times // rounds):
            work()
        found.append((time.perf_counter() - began) / (times // rounds) * 1e6)
    return found


async def _rotation(rotations: int) -> list[Figure]:
    """Each time the old key is refused from the moment on at which the new one is in the vault."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        provider = stack.enter_context(FakeProvider())
        vault = FileVault(folder)
        vault.put(OPENAI="sk-0", ANTHROPIC="sk-unused")
        proxy = stack.enter_context(proxy_with(provider, vault))
        stop, answers = asyncio.Event(), [0, 0]
        latencies: list[float] = []

        async def ask(client: Any) -> None:
            while not stop.is_set():
                began = time.perf_counter()
                answer = await client.post("/v1/chat/completions", json={"model": "small", **CHAT})
                latencies.append(time.perf_counter() - began)
                answers[answer.status_code != 200] += 1

        async with proxy.async_client() as client, asyncio.TaskGroup() as tasks:
            for _ in range(_CONNECTIONS):
                tasks.create_task(ask(client))
            for number in range(rotations):
                before = sum(answers)
                while sum(answers) < before + 4 * _CONNECTIONS:
                    await asyncio.sleep(0.05)
                vault.put(OPENAI=f"sk-{number + 1}")
                provider.script(api_key=f"sk-{number}", status=401)
            before = sum(answers)
            while sum(answers) < before + 4 * _CONNECTIONS:
                await asyncio.sleep(0.05)
            stop.set()
    return [
        Figure(f"answers, {_CONNECTIONS} connections, {rotations} rotations", sum(answers)),
        Figure("of these failed", answers[1], must=Bound("==", 0)),
        Figure("p99 with the rotations", statistics.quantiles(latencies, n=100)[98] * 1e3, "ms"),
    ]
