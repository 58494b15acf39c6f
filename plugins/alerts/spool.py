"""Files in which alerts wait until the store has them: one `write` into the page cache, which a kill does not undo."""

import fcntl
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from core.alerts import Alert

_LOG = logging.getLogger("orchestration.alerts")


class Spool:
    """Files of one process in a folder that several share. Each is locked by whoever writes or empties it, so that one
    without a lock has lost its writer. Where the folder takes nothing, alerts wait in memory alone."""

    def __init__(self, folder: Path | None, instance: str) -> None:
        self._folder = folder
        self._instance = instance
        self._number = 0
        self._current: _File | None = None
        self._before: list[_File] = []
        self._complained = False
        if folder is not None:
            with suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)

    def append(self, alert: Alert) -> None:
        """Write it down, if the disk takes it."""
        if self._folder is None:
            return
        try:
            if self._current is None:
                self._current = self._new(self._folder)
            os.write(self._current.fd, alert.to_json() + b"\n")
        except OSError as error:
            if not self._complained:
                self._complained = True
                _LOG.error("alerts wait in memory alone, %s takes nothing: %s", self._folder, error.strerror)

    def turn(self) -> None:
        """What comes from now on goes into another file, which `clear` leaves alone."""
        if self._current is not None:
            self._before.append(self._current)
            self._current = None

    def clear(self) -> None:
        """The store has what was there at the last `turn`."""
        for file in self._before:
            file.delete()
        self._before.clear()

    def orphans(self) -> list["Orphan"]:
        """What processes that are no more left behind; each is ours until it is deleted or closed."""
        found: list[Orphan] = []
        if self._folder is None:
            return found
        ours = {file.path for file in (*self._before, self._current) if file is not None}
        for path in sorted(self._folder.glob("*.jsonl")):
            if path not in ours:
                with suppress(OSError):
                    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                    if _locked(fd):
                        found.append(Orphan(path, fd))
                    else:
                        os.close(fd)
        return found

    def close(self) -> None:
        """Leave what is there to the next process."""
        for file in (*self._before, self._current):
            if file is not None:
                file.close()
        self._before, self._current = [], None

    def _new(self, folder: Path) -> "_File":
        while True:
            self._number += 1
            path = folder / f"{self._instance}-{self._number:06d}.jsonl"
            with suppress(FileExistsError):
                fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                if _locked(fd):
                    return _File(path, fd)
                os.close(fd)  # another process took it for a dead one's between the two calls


class _File:
    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd

    def delete(self) -> None:
        with suppress(OSError):
            self.path.unlink()
        self.close()

    def close(self) -> None:
        os.close(self.fd)


class Orphan(_File):
    """A file whose writer is dead."""

    def alerts(self) -> Sequence[Alert]:
        """What it holds; lines that were cut off are left out."""
        found: list[Alert] = []
        for line in self.path.read_bytes().splitlines():
            try:
                found.append(Alert.from_json(line))
            except (ValueError, KeyError, TypeError):
                _LOG.warning("%s has a damaged line; skipped", self.path)
        return found


def _locked(fd: int) -> bool:
    """Whether the file is ours alone now, and still has its name."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(fd).st_nlink > 0
