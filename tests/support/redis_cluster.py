"""A real Redis Cluster: three nodes on this machine, the slots shared among them."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

import redis

from tests.support import processes
from tests.support.eventually import eventually_sync
from tests.support.redis import executable

SLOTS = 16384


class RedisCluster:
    """`with RedisCluster() as cluster:`; `urls` are those of its nodes, every one an entrance."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="cluster-"))
        self._nodes: list[subprocess.Popen[bytes]] = []
        self.ports = [processes.free_port() for _ in range(3)]

    @property
    def urls(self) -> list[str]:
        return [f"redis://127.0.0.1:{port}/0" for port in self.ports]

    def client(self, port: int) -> redis.Redis:
        return redis.Redis(host="127.0.0.1", port=port, socket_timeout=5)

    def start(self) -> None:
        for port in self.ports:
            folder = self._directory / str(port)
            folder.mkdir()
            with (folder / "log").open("ab") as output:
                arguments = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
                # The bus has a port of its own, by default 10000 further, which may be no port at all.
                bus = ["--cluster-enabled", "yes", "--cluster-port", str(processes.free_port())]
                self._nodes.append(processes.start([executable(), *arguments, *bus], output=output))
        for port in self.ports:
            eventually_sync(lambda port=port: bool(self.client(port).ping()), within=10)
        command = ["redis-cli", "--cluster", "create", *(f"127.0.0.1:{port}" for port in self.ports), "--cluster-yes"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        for port in self.ports:
            eventually_sync(lambda port=port: self._whole(port), within=30)

    def _whole(self, port: int) -> bool:
        found: dict[str, str] = self.client(port).execute_command("CLUSTER INFO")
        return found["cluster_state"] == "ok"

    def flushall(self) -> None:
        for port in self.ports:
            self.client(port).flushall()

    def __enter__(self) -> RedisCluster:
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
        for node in self._nodes:
            processes.kill(node)
        shutil.rmtree(self._directory, ignore_errors=True)
