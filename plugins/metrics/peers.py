"""The other workers of this machine: each tells its readings to the one that is asked for metrics.

Workers share a port, so a scrape comes to any of them. Each listens on a socket of its own in a folder beside the
journal, which only its owner can enter; what it tells are numbers and names of the configuration.
"""

import asyncio
import hashlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import orjson

from plugins.metrics.catalog import Reading
from plugins.metrics.traffic import Spread

_LOG = logging.getLogger("orchestration.metrics")
_PATIENCE = 1.0
_DEAD_AFTER = 60.0
"""Seconds after which a socket that nobody listens on is a dead worker's, not one of a worker that just begins."""


class Peers:
    """`folder` is that of the sockets, `name` what metrics call this worker, `readings` what it has to tell."""

    def __init__(self, folder: Path, name: str, readings: Callable[[], Iterable[Reading]]) -> None:
        host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]  # others may share the folder
        self._folder = folder
        self._pattern = f"{host}-*.sock"
        self._path = folder / f"{host}-{name}.sock"
        self._readings = readings

    async def run(self) -> None:
        """Tell whoever asks, until cancelled; where sockets cannot be made there, say so and tell nobody."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._path.unlink(missing_ok=True)
            server = await asyncio.start_unix_server(self._tell, self._path)
        except OSError as error:
            _LOG.warning(
                "each worker answers for metrics with its own alone: no socket in %s (%s)", self._folder, error
            )
            return
        try:
            async with server:
                await server.serve_forever()
        finally:
            self._path.unlink(missing_ok=True)

    async def ask(self) -> dict[str, list[Reading]]:
        """What the others have, by their names. One that does not answer within a second is left out."""
        paths = [path for path in self._folder.glob(self._pattern) if path != self._path]
        told = await asyncio.gather(*(self._ask(path) for path in paths))
        names = (path.stem.partition("-")[2] for path in paths)
        return {name: readings for name, readings in zip(names, told, strict=True) if readings is not None}

    async def _ask(self, path: Path) -> list[Reading] | None:
        try:
            async with asyncio.timeout(_PATIENCE):
                reader, writer = await asyncio.open_unix_connection(path)
                try:
                    return decoded(await reader.read())
                finally:
                    writer.close()
        except ConnectionRefusedError:
            _clear_away(path)
        except (OSError, TimeoutError, ValueError):
            _LOG.debug("no metrics from %s", path.name)
        return None

    async def _tell(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(encoded(self._readings()))
            async with asyncio.timeout(_PATIENCE):
                await writer.drain()
        except (OSError, TimeoutError):
            _LOG.debug("metrics were asked for and not taken")
        finally:
            writer.close()


def _clear_away(path: Path) -> None:
    with suppress(OSError):
        if time.time() - path.stat().st_mtime > _DEAD_AFTER:
            path.unlink()


def worker_name() -> str:
    """What metrics call this worker: short, and in a container the same after a restart."""
    return str(os.getpid())


def encoded(readings: Iterable[Reading]) -> bytes:
    """Readings as JSON."""
    return orjson.dumps(
        [
            (name, labels, [value.counts, value.total_ms] if isinstance(value, Spread) else value)
            for name, labels, value in readings
        ]
    )


def decoded(told: bytes) -> list[Reading]:
    """The inverse of `encoded`. Raises ValueError for what is no JSON."""
    return [
        (name, tuple(labels), Spread(*value) if isinstance(value, list) else value)
        for name, labels, value in orjson.loads(told)
    ]
