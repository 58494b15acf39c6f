"""Child processes that never outlive the test run, even when the run itself is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

from tests.support.eventually import eventually_sync

# The guardian reads process groups from its standard input ("+123", "-123"). When the test run ends, however it ends,
# the kernel closes the other end of that pipe, and the guardian kills what is still registered.
_GUARDIAN = """
import os, signal, sys
groups = set()
for line in sys.stdin:
    (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


class _Guardian:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def tell(self, sign: str, group: int) -> None:
        with self._lock:
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _GUARDIAN],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    text=True,
                    start_new_session=True,  # Ctrl-C in the terminal is not for it
                )
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(f"{sign}{group}\n")
                self._process.stdin.flush()


_guardian = _Guardian()


def start(
    arguments: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    output: IO[bytes] | int = subprocess.DEVNULL,
    user: str | None = None,
    before_exec: Callable[[], None] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program in a process group of its own that is killed when this process ends. `output` gets both streams.

    `user` starts it as another user (root only).
    """
    process = subprocess.Popen(
        [str(argument) for argument in arguments],
        env=None if env is None else dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        user=user,
        group=user,
        extra_groups=[] if user else None,
        preexec_fn=before_exec,
    )
    adopt(process)
    return process


def adopt(process: subprocess.Popen[bytes]) -> None:
    """Have the process group that this process leads killed when our own process ends."""
    _guardian.tell("+", process.pid)


def stop(process: subprocess.Popen[bytes], sign: signal.Signals = signal.SIGTERM, within: float = 30) -> int:
    """Ask a process to end, kill its whole group if it has not after `within` seconds; returns its exit status."""
    if process.poll() is None:
        process.send_signal(sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(within)
    return kill(process)


def kill(process: subprocess.Popen[bytes]) -> int:
    """SIGKILL the process and everything in its group, and wait until all are gone; returns its exit status."""
    members = family(process.pid)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    status = process.wait(10)
    eventually_sync(lambda: not any(lives(member) for member in members), what="the children's end")
    _guardian.tell("-", process.pid)
    return status


def lives(process: psutil.Process) -> bool:
    """Whether it still runs; what nobody has collected yet is dead all the same."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def family(pid: int) -> list[psutil.Process]:
    """The process and all its living descendants, the process first; empty when it is gone."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(port: int, timeout: float = 0.5) -> bool:
    """Whether something accepts connections on this port of 127.0.0.1."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout):
            return True
    except OSError:
        return False
