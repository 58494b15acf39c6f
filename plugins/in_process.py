"""LiteLLM's proxy inside a Python program: the same app with its lifespan, reached without a network."""

import asyncio
import os
from pathlib import Path
from typing import Any

import httpx

from core.asgi_transport import StreamingASGITransport
from core.errors import ConfigError
from core.local_keys import LocalKeys
from core.process import IN_PROCESS

_START_SECONDS = 120.0
_TIMEOUT = httpx.Timeout(600.0)


class InProcess:
    """One proxy in this process. `config` defaults to config.yaml in the working directory."""

    def __init__(self, config: str | os.PathLike[str] | None, api_key: str | None) -> None:
        self._config = Path(config or "config.yaml")
        self._api_key = api_key
        self._lifespan: _Lifespan | None = None

    async def open(self) -> httpx.AsyncClient:
        """Start the proxy. Raises `ConfigError` or `StoreError` where it cannot start."""
        if not self._config.is_file():
            raise ConfigError(f"There is no {self._config}. Name the file: get_gateway(config=…).")
        os.environ[IN_PROCESS] = "1"
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        keys = LocalKeys.of(self._config)
        keys.into(os.environ)
        os.environ["CONFIG_FILE_PATH"] = str(self._config.resolve())

        from litellm.proxy.proxy_server import app

        self._lifespan = _Lifespan(app)
        await self._lifespan.start()
        from plugins.wiring import wiring

        runtime = wiring().runtime
        await asyncio.wait_for(runtime.ready.wait(), _START_SECONDS)
        if runtime.failure is not None:
            raise runtime.failure
        return httpx.AsyncClient(
            transport=StreamingASGITransport(app),
            base_url="http://orchestration",
            headers={"authorization": f"Bearer {self._api_key or os.environ['LITELLM_MASTER_KEY']}"},
            timeout=_TIMEOUT,
        )

    async def close(self) -> None:
        if self._lifespan is not None:
            from plugins.wiring import unwire

            await self._lifespan.stop()
            await unwire()
            self._lifespan = None


class _Lifespan:
    """The ASGI lifespan protocol, spoken as a server would."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._from_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        self._task = asyncio.create_task(self._app(scope, self._to_app.get, self._from_app.put))
        await self._to_app.put({"type": "lifespan.startup"})
        await self._expect("lifespan.startup.complete")

    async def stop(self) -> None:
        await self._to_app.put({"type": "lifespan.shutdown"})
        await self._expect("lifespan.shutdown.complete")
        assert self._task is not None
        await self._task

    async def _expect(self, kind: str) -> None:
        assert self._task is not None
        answer = asyncio.create_task(self._from_app.get())
        await asyncio.wait({answer, self._task}, timeout=_START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
            if self._task.done():
                self._task.result()
            raise TimeoutError(f"LiteLLM's proxy did not answer with {kind}")
        message = answer.result()
        if message["type"] != kind:
            raise ConfigError(f"LiteLLM's proxy did not start: {message.get('message') or message['type']}")
