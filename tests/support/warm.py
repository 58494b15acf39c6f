"""Proxies that start in two seconds and not in ten: forked from a process that has imported LiteLLM already.

What runs in the fork is the command's entry point, with its arguments, environment and folder. LiteLLM reads part of
its environment while it is imported: the names that it looked at then are noted, and a proxy for which one of them has
another value is started by the command itself, as is one with several workers or with LiteLLM's database.

This file is also the program that forks; see `serve`.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

_PLACES = frozenset({"HOME", "PATH", "TMPDIR"})
"""Read while LiteLLM is imported, but for nothing that is kept."""
_PR_SET_CHILD_SUBREAPER = 36
_ENOUGH = 1 << 20


_OF_THE_DATABASE = frozenset({"DATABASE_URL", "PRISMA_BINARY_CACHE_DIR"})


class Forked(subprocess.Popen[bytes]):
    """A process that became a child of this one when its parent ended, as if this one had started it."""

    # What `Popen` itself sets, as far as it is used to wait for a process and to signal it.
    def __init__(self, pid: int, arguments: Sequence[str]) -> None:
        self.args = list(arguments)
        self.pid = pid
        self.returncode: Any = None
        self.stdin = self.stdout = self.stderr = None
        self._child_created = True
        self._waitpid_lock = threading.Lock()
        self._communication_started = False
        self._input = None


class Warm:
    """The process that forks, started when the first proxy is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._environment: dict[str, str] = {}
        self._looked_at: frozenset[str] = frozenset()

    def fork(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        cwd: Path,
        output: IO[bytes],
        *,
        usual: Mapping[str, str],
    ) -> Forked | None:
        """A process that runs the command `litellm` with these arguments; None where it has to be started as such.
        Under the `usual` environment LiteLLM is imported."""
        with self._lock:
            if self._socket is None:
                self._start(usual)
            if self._differs(environment):
                return None
            assert self._socket is not None
            order = {"arguments": list(arguments), "environment": dict(environment), "cwd": str(cwd)}
            socket.send_fds(self._socket, [json.dumps(order).encode()], [output.fileno()])
            return Forked(int(self._socket.recv(_ENOUGH)), arguments)

    def _differs(self, environment: Mapping[str, str]) -> bool:
        """Whether LiteLLM would have been imported otherwise."""
        if not _OF_THE_DATABASE.isdisjoint(environment):  # its client is generated when a test first needs it
            return True
        names = self._looked_at - _PLACES
        return any(environment.get(name) != self._environment.get(name) for name in names)

    def _start(self, environment: Mapping[str, str]) -> None:
        # Whose parent ends becomes this one's child.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._folder = tempfile.TemporaryDirectory(prefix="warm-")
        self._environment = {**environment, "HOME": self._folder.name}
        with theirs:
            # It ends when the other end of the socket is closed, however this process ends.
            subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env=self._environment,
                cwd=self._folder.name,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                stdout=subprocess.DEVNULL,
            )
        self._socket = ours
        self._looked_at = frozenset(json.loads(ours.recv(_ENOUGH)))


WARM = Warm()


# ---- The process that forks ----


class _Watched:
    """Notes which variables of the environment are looked at."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._kind: Any = type(os.environ)
        self._get, self._contains = self._kind.__getitem__, self._kind.__contains__

    def __enter__(self) -> set[str]:
        names, get, contains = self.names, self._get, self._contains

        def noted_get(environ: Any, name: str) -> str:
            names.add(name)
            return get(environ, name)

        def noted_contains(environ: Any, name: str) -> bool:
            names.add(name)
            return contains(environ, name)

        self._kind.__getitem__, self._kind.__contains__ = noted_get, noted_contains
        return names

    def __exit__(self, *_: object) -> None:
        self._kind.__getitem__, self._kind.__contains__ = self._get, self._contains


def serve(orders: socket.socket) -> tuple[dict[str, Any], int] | None:
    """Import LiteLLM, say which variables it looked at, and fork for each order. Returns an order and where its output
    goes in each fork, and None in this process once there are no more."""
    with _Watched() as names:
        for module in ("litellm.proxy.proxy_cli", "litellm.proxy.proxy_server", "uvicorn"):
            importlib.import_module(module)
    orders.send(json.dumps(sorted(names)).encode())
    gc.collect()
    gc.freeze()
    while True:
        message, descriptors, _, _ = socket.recv_fds(orders, _ENOUGH, 1)
        if not message:
            return None
        answer, told = os.pipe()
        between = os.fork()
        if between == 0:
            child = os.fork()
            if child == 0:
                for descriptor in (answer, told, orders.fileno()):
                    os.close(descriptor)
                return json.loads(message), descriptors[0]
            os.write(told, str(child).encode())
            os._exit(0)
        os.waitpid(between, 0)
        orders.send(os.read(answer, 32))
        for descriptor in (answer, told, *descriptors):
            os.close(descriptor)


def become(order: Mapping[str, Any], output: int) -> None:
    """Make this process one that was started with the arguments, environment and folder of the order."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environment"])
    random.seed()
    sys.argv = order["arguments"]


def main() -> None:
    sys.path[0] = str(Path(sys.executable).parent)  # where a command has its own folder; ours has a redis.py
    order = serve(socket.socket(fileno=int(sys.argv[1])))
    if order is not None:
        become(*order)
        from litellm.proxy.proxy_cli import run_server

        run_server()


if __name__ == "__main__":
    main()
