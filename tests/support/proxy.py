"""The LiteLLM proxy as its users start it: the real command, in a process of its own, in an empty folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

import httpx
import psutil
import yaml

from core.installation import SECRETS_FILE, SECRETS_SOURCE, names_our_secret_manager
from tests.support import processes
from tests.support.eventually import eventually_sync
from tests.support.warm import WARM

Command = Literal["litellm", "llm-orchestration"]

START_DEADLINE = 90.0
"""Seconds for each worker; a start takes some 12 s on an idle machine."""


class HiddenKey(str):
    """A key that no traceback or assertion message prints."""

    def __repr__(self) -> str:
        return "'sk-...'"


# Strong (LiteLLM refuses weak ones) and new in every run, so that nothing can come to depend on them.
MASTER_KEY = HiddenKey("sk-" + secrets.token_urlsafe(32))
SALT_KEY = HiddenKey("sk-" + secrets.token_urlsafe(32))

# What a program needs to run at all; everything else in the caller's environment stays out.
_INHERITED = ("LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "LD_LIBRARY_PATH")


def proxy_environment(home: Path, **extra: str) -> dict[str, str]:
    """The environment of a proxy: ours alone, without databases, keys or settings of whoever runs the tests."""
    binaries = Path(sys.executable).parent
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {
        **inherited,
        "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "HOME": str(home),
        "PYTHONUNBUFFERED": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_MASTER_KEY": str(MASTER_KEY),
        "LITELLM_SALT_KEY": str(SALT_KEY),
        "LITELLM_TELEMETRY": "False",
        "NO_PROXY": "127.0.0.1,localhost",
        **extra,
    }


def write_config(config: Mapping[str, Any] | Path, folder: Path) -> Path:
    """The path of a config.yaml: the file given, or a mapping written into `folder`, with our secret manager's file
    beside it where it names that."""
    if isinstance(config, Path):
        return config.resolve()
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False))
    if names_our_secret_manager(dict(config)):
        (folder / SECRETS_FILE).write_text(SECRETS_SOURCE)
    return path


def openai_models(provider_url: str, *names: str, **litellm_params: Any) -> list[dict[str, Any]]:
    """A `model_list` of models served by an OpenAI-compatible provider under the names clients ask for."""
    return [
        {
            "model_name": name,
            "litellm_params": {
                "model": f"openai/{name}",
                "api_base": provider_url,
                "api_key": "sk-provider",
                **litellm_params,
            },
            "model_info": {"id": f"{name}-id"},
        }
        for name in names
    ]


class ProxyProcess:
    """A proxy: `with ProxyProcess({"model_list": [...]}) as proxy:` and then ask `proxy.url` with `proxy.key`.

    `config` is a mapping or a path. `command` is the console script to run; `cwd` its folder, an empty one by default
    (LiteLLM imports from it); `env` is added to `proxy_environment`.
    """

    forks = False
    """Whether proxies are forked from a process that has imported LiteLLM already (`tests.support.warm`), which is to
    be told from a start only by the time it takes."""

    def __init__(
        self,
        config: Mapping[str, Any] | Path,
        *,
        env: Mapping[str, str] | None = None,
        workers: int = 1,
        command: Command = "litellm",
        cwd: Path | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self._own_folder = Path(tempfile.mkdtemp(prefix="proxy-"))
        self.cwd = cwd or self._own_folder
        self.config = write_config(config, self._own_folder)
        # An empty value takes a variable away: `llm-orchestration serve` then makes its own master key.
        self.env = {name: value for name, value in proxy_environment(self._own_folder, **(env or {})).items() if value}
        if workers > 1:
            # uvicorn kills a worker that does not answer it for 5 s. On a busy machine LiteLLM's imports take longer
            # than that, and the workers are killed and started again for ever.
            self.env.setdefault("TIMEOUT_WORKER_HEALTHCHECK", "150")
        if command == "litellm":
            # As `llm-orchestration serve` does: a proxy that had no time for 5 s closes connections with requests in
            # them that it has not read.
            self.env.setdefault("KEEPALIVE_TIMEOUT", "75")
        self.key = HiddenKey(self.env.get("LITELLM_MASTER_KEY", ""))
        self.log = self._own_folder / "proxy.log"
        self.port = processes.free_port()
        self.workers = workers
        self._command = command
        self._arguments = list(arguments)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Without /v1, which LiteLLM does not need; OpenAI's clients take `url + "/v1"` as well."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def headers(self) -> dict[str, str]:
        """The administrator's authorization."""
        return {"Authorization": f"Bearer {self.key}"}

    def client(self, key: str | None = None, timeout: float = 60) -> httpx.Client:
        """An HTTP client with the master key, or with `key`."""
        headers = {"Authorization": f"Bearer {key or self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)

    def async_client(self, key: str | None = None, timeout: float = 60) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {key or self.key}"}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=timeout, limits=limits, trust_env=False)

    # ---- Its life ----

    def spawn(self) -> None:
        """Start the command without waiting for it; the log goes on where an earlier start ended."""
        assert not self.running, "already running"
        program = Path(sys.executable).with_name(self._command)
        command: list[str | Path] = [program] if self._command == "litellm" else [program, "serve"]
        command += ["--config", self.config, "--host", "127.0.0.1", "--port", str(self.port)]
        if self.workers > 1:
            command += ["--num_workers" if self._command == "litellm" else "--workers", str(self.workers)]
        self._starts_before = self._count_starts()
        command = [*map(str, command), *self._arguments]
        with self.log.open("ab") as output:
            self._process = self._forked(command, output) or processes.start(
                command, env=self.env, cwd=self.cwd, output=output
            )

    def _forked(self, command: Sequence[str], output: IO[bytes]) -> subprocess.Popen[bytes] | None:
        if not self.forks or self._command != "litellm" or self.workers > 1:
            return None
        process = WARM.fork(command, self.env, self.cwd, output, usual=proxy_environment(self._own_folder))
        if process is not None:
            processes.adopt(process)
        return process

    def start(self) -> None:
        """Start the command and wait until every worker answers."""
        self.spawn()
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Return when all workers have started and /health/liveliness answers; the log's end is in the error."""

        def ready() -> bool:
            if not self.running:
                return True
            if self._count_starts() - self._starts_before < self.workers:
                return False
            return httpx.get(f"{self.url}/health/liveliness", timeout=5, trust_env=False).status_code == 200

        try:
            eventually_sync(ready, within=START_DEADLINE * self.workers, what="the proxy answering")
        except AssertionError as late:
            self.kill()
            raise RuntimeError(f"{late}; its log ends:\n{self.log_tail()}") from None
        if not self.running:
            raise RuntimeError(f"the proxy ended with status {self.wait()}; its log ends:\n{self.log_tail()}")

    def wait(self, within: float = 30) -> int:
        """Wait for the process to end by itself; returns its exit status."""
        assert self._process is not None, "not started"
        return self._process.wait(within)

    def stop(self, within: float = 30) -> int:
        """SIGTERM, and wait until it has shut down in order; returns its exit status (negative: a signal)."""
        assert self._process is not None, "not started"
        return processes.stop(self._process, within=within)

    def kill(self) -> None:
        """SIGKILL for the whole process group: workers and engines too."""
        if self._process is not None:
            processes.kill(self._process)

    def restart(self) -> None:
        """Stop and start again, on the same port and in the same folder."""
        self.stop()
        self.start()

    def __enter__(self) -> ProxyProcess:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop it, whatever state it is in, and remove its folder."""
        if self.running:
            self.stop(within=10)
        self.kill()
        shutil.rmtree(self._own_folder, ignore_errors=True)

    # ---- What it wrote and used ----

    def log_text(self) -> str:
        """All it has printed, with the session's keys made unreadable; the file `log` has it as it is."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        for key in filter(None, (self.key, self.env["LITELLM_SALT_KEY"])):
            text = text.replace(key, "sk-...")
        return text

    def log_tail(self, lines: int = 60) -> str:
        return "\n".join(self.log_text().splitlines()[-lines:])

    def _count_starts(self) -> int:
        """How many workers have said that they are ready, over all starts of this log."""
        return len(re.findall(r"Application startup complete", self.log_text()))

    @property
    def cpu_seconds(self) -> float:
        """User and system time so far, of the process and all its children, living or collected."""
        seconds = 0.0
        for member in processes.family(self.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = member.cpu_times()
                seconds += times.user + times.system + times.children_user + times.children_system
        return seconds

    @property
    def rss(self) -> int:
        """Bytes of memory in use by the process and its living children."""
        total = 0
        for member in processes.family(self.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += member.memory_info().rss
        return total

    @property
    def engines(self) -> list[psutil.Process]:
        """The Prisma query engines that this proxy has started and that live."""
        return [member for member in processes.family(self.pid)[1:] if _is_engine(member)]


def _is_engine(process: psutil.Process) -> bool:
    try:
        # The bridge names itself query-engine once Node runs; before that its command line tells.
        return "query-engine" in process.name() or any("engine.js" in part for part in process.cmdline())
    except psutil.NoSuchProcess:
        return False


class SharedProxies:
    """Proxies that tests of one session share, since a start takes so long: one for each way to start it."""

    def __init__(self) -> None:
        self._running: dict[str, ProxyProcess] = {}

    def get(
        self,
        config: Mapping[str, Any] | Path,
        *,
        env: Mapping[str, str] | None = None,
        workers: int = 1,
        command: Command = "litellm",
    ) -> ProxyProcess:
        """The running proxy for this configuration; started at its first use, and again if a test ended it."""
        content = config.read_text() if isinstance(config, Path) else json.dumps(config, sort_keys=True)
        identity = json.dumps([content, str(config) if isinstance(config, Path) else "", env or {}, workers, command])
        name = hashlib.sha256(identity.encode()).hexdigest()
        proxy = self._running.get(name)
        if proxy is None or not proxy.running:
            if proxy is not None:
                proxy.close()
            proxy = ProxyProcess(config, env=env, workers=workers, command=command)
            self._running[name] = proxy.__enter__()
        return proxy

    def close(self) -> None:
        for proxy in self._running.values():
            proxy.close()
        self._running.clear()
