"""A fake provider of language models that speaks OpenAI's and Anthropic's API, and keeps its own books.

`FakeProvider` runs in a thread of the test, `ProviderProcess` in a process of its own for benchmarks; both are
context managers with the same face: `url`, `script`, `bill`, `release`, `reset`. By hand:
`python -m tests.support.provider --port 0` prints the address it listens on.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import uvicorn

from tests.support import processes
from tests.support.eventually import eventually_sync
from tests.support.provider.app import ProviderApp
from tests.support.provider.bill import Attempt, Bill, Totals, total
from tests.support.provider.script import BEHAVIOUR_HEADER, Behaviour

__all__ = [
    "FakeProvider",
    "ProviderProcess",
    "ProviderApp",
    "Attempt",
    "Behaviour",
    "Bill",
    "Totals",
    "total",
    "serve",
    "BEHAVIOUR_HEADER",
]

_ROOT = Path(__file__).resolve().parents[3]


def serve(app: ProviderApp, port: int = 0) -> uvicorn.Server:
    """A uvicorn server for the app, bare for speed; not started yet."""
    return uvicorn.Server(
        uvicorn.Config(
            app,  # type: ignore[arg-type]
            host="127.0.0.1",
            port=port,
            lifespan="off",
            log_level="critical",  # a cut answer is meant, not an error,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            ws="none",
            timeout_graceful_shutdown=1,
            timeout_keep_alive=300,  # longer than LiteLLM keeps a connection, as providers do
        )
    )


class _Provider(ABC):
    """What both ways of running the provider have in common."""

    port: int

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The base URL for OpenAI clients and LiteLLM's `api_base`; Anthropic's clients want `origin`."""
        return f"{self.origin}/v1"

    def script(self, *, model: str | None = None, api_key: str | None = None, **behaviour: Any) -> None:
        """Behave so from now on, for a model, an api key, or everyone else; the names are those of `Behaviour`.

        `provider.script(model="gpt-4o", statuses=(500, 500, 200))`
        """
        self._set(Behaviour.from_mapping(behaviour), model, api_key)

    @abstractmethod
    def _set(self, behaviour: Behaviour, model: str | None, api_key: str | None) -> None: ...

    @property
    @abstractmethod
    def attempts(self) -> list[Attempt]:
        """Every request received since the reset, in order."""

    @property
    @abstractmethod
    def totals(self) -> Totals:
        """Sums over everything received since the reset."""

    @property
    @abstractmethod
    def held(self) -> int:
        """How many requests hang right now."""

    @abstractmethod
    def release(self) -> None:
        """Let every hanging request go on."""

    @abstractmethod
    def reset(self) -> None:
        """A fast provider that works, with an empty bill; what hangs is let go."""

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def stop(self) -> None: ...

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class FakeProvider(_Provider):
    """The provider in a thread of this process. The port stays the same when it is stopped and started again."""

    def __init__(self) -> None:
        self.app = ProviderApp()
        self.port = processes.free_port()
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def bill(self) -> Bill:
        return self.app.bill

    def start(self) -> None:
        server = self._server = serve(self.app, self.port)
        self._thread = threading.Thread(target=server.run, name="fake-provider", daemon=True)
        self._thread.start()
        eventually_sync(lambda: server.started, within=10, what="the fake provider listening")

    def stop(self) -> None:
        if self._server is None or self._thread is None:
            return
        self.app.gate.release()
        self._server.should_exit = True
        self._thread.join(10)
        self._server = self._thread = None

    def _set(self, behaviour: Behaviour, model: str | None, api_key: str | None) -> None:
        self.app.script.set(behaviour, model=model, api_key=api_key)

    @property
    def attempts(self) -> list[Attempt]:
        return self.app.bill.attempts

    @property
    def totals(self) -> Totals:
        return self.app.bill.totals

    @property
    def held(self) -> int:
        return self.app.gate.held

    def release(self) -> None:
        self.app.gate.release()

    def reset(self) -> None:
        self.app.script.reset()
        self.app.bill.reset()
        self.app.gate.release()


class ProviderProcess(_Provider):
    """The provider in a process of its own, so that it takes no time from what is measured.

    `itemised=False` keeps only the totals of the bill, for long runs.
    """

    def __init__(self, *, itemised: bool = True) -> None:
        self.port = processes.free_port()
        self._itemised = itemised
        self._process: subprocess.Popen[bytes] | None = None
        self._client = httpx.Client(base_url=self.origin, trust_env=False, timeout=30)

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def start(self) -> None:
        arguments = [sys.executable, "-m", "tests.support.provider", "--port", str(self.port)]
        if not self._itemised:
            arguments.append("--totals-only")
        self._process = processes.start(arguments, cwd=_ROOT)
        eventually_sync(lambda: processes.answers(self.port), within=20, what="the fake provider listening")

    def stop(self) -> None:
        if self._process is not None:
            processes.stop(self._process, within=5)
            self._process = None

    def _ask(self, command: str, **values: object) -> Any:
        return self._client.post(f"/_control/{command}", json=values).raise_for_status().json()

    def _set(self, behaviour: Behaviour, model: str | None, api_key: str | None) -> None:
        self._ask("script", behaviour=behaviour.to_mapping(), model=model, api_key=api_key)

    @property
    def attempts(self) -> list[Attempt]:
        return [Attempt(**values) for values in self._ask("bill")]

    @property
    def totals(self) -> Totals:
        return Totals(**self._ask("totals"))

    @property
    def held(self) -> int:
        return self._ask("held")

    def release(self) -> None:
        self._ask("release")

    def reset(self) -> None:
        self._ask("reset")
