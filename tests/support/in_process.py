"""LiteLLM's proxy app in the test's own process, behind an ASGI transport, with its lifespan run.

LiteLLM keeps the proxy in module globals, so a process can hold one, once. `in_a_fresh_process` runs a function that
needs it in an interpreter of its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.support.proxy import proxy_environment, write_config

_ROOT = Path(__file__).resolve().parents[2]
_started_in: int | None = None


@asynccontextmanager
async def proxy_in_process(
    config: Mapping[str, Any] | Path, *, env: Mapping[str, str] | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """Run LiteLLM's proxy here and yield a client with the master key; only once in a process.

    httpx's ASGI transport gives a stream only when it is complete; for anything about pace use `ProxyProcess`.
    The process's environment is replaced while it runs, so that it is that of `ProxyProcess`. Raises RuntimeError
    for a second proxy in the same process, also after the first has ended.
    """
    global _started_in
    if _started_in == os.getpid():
        raise RuntimeError(
            "this process has already run a LiteLLM proxy, whose state lives in module globals; "
            "run this in a process of its own with in_a_fresh_process, or use ProxyProcess"
        )
    _started_in = os.getpid()
    with tempfile.TemporaryDirectory(prefix="proxy-") as name:
        folder = Path(name)
        environment = proxy_environment(folder, **(env or {}))
        environment["CONFIG_FILE_PATH"] = str(write_config(config, folder))
        with _environment(environment):
            # Only now: LiteLLM reads its environment while it is imported.
            from litellm.proxy.proxy_server import app

            async with app.router.lifespan_context(app):
                headers = {"Authorization": f"Bearer {environment['LITELLM_MASTER_KEY']}"}
                transport = httpx.ASGITransport(app=app)
                async with httpx.AsyncClient(
                    transport=transport, base_url="http://proxy", headers=headers, timeout=60
                ) as client:
                    yield client


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Any:
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def in_a_fresh_process(function: Callable[..., Coroutine[Any, Any, None]], *arguments: str, within: float = 120) -> str:
    """Run a module-level coroutine function with text arguments in a new interpreter; returns what it printed.

    Raises AssertionError with its output when it fails.
    """
    code = (
        "import asyncio, importlib, sys\n"
        "module, name, *arguments = sys.argv[1:]\n"
        "asyncio.run(getattr(importlib.import_module(module), name)(*arguments))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    result = subprocess.run(
        [sys.executable, "-c", code, function.__module__, function.__qualname__, *arguments],
        cwd=_ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=within,
    )
    if result.returncode:
        output = re.sub(r"sk-[\w-]{20,}", "sk-...", result.stdout + result.stderr)
        raise AssertionError(f"{function.__qualname__} failed in its own process:\n{output[-6000:]}")
    return result.stdout
