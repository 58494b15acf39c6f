"""One file of the journal, and how far into it the store has got."""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

from core.journal.record import count_records

_NAME = re.compile(r"(?P<instance>.+)-(?P<number>\d{6,})\.jsonl")
_READ = 1 << 20


class Segment:
    """An append-only file of lines, locked (flock) by the process that writes or drains it for as long as that lives.

    `size` is the end of the last whole line that we wrote (for an adopted segment: of the file), `acknowledged` the
    offset up to which everything is in the store. That offset is kept beside the file in `<name>.ack`; losing it costs
    work, not correctness, because the store takes an event once.
    """

    def __init__(self, path: Path, fd: int, *, size: int = 0, acknowledged: int = 0) -> None:
        self.path = path
        self.fd = fd
        self.size = size
        self.acknowledged = acknowledged
        self.unread = 0
        """Records written and not yet acknowledged, as far as they have been counted."""
        self._torn_tail = False
        self._ack_fd: int | None = None

    def __repr__(self) -> str:
        return f"Segment({self.path.name}, {self.acknowledged}/{self.size})"

    @classmethod
    def create(cls, directory: Path, instance: str, first_number: int = 1) -> Self:
        """A new segment with the first free number. Raises OSError when the directory takes no file."""
        number = first_number
        while True:
            path = directory / f"{instance}-{number:06d}.jsonl"
            number += 1
            try:
                fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileExistsError:
                continue
            if _lock(fd):
                _sync_directory(directory)
                return cls(path, fd)
            os.close(fd)  # another worker took the empty file for a dead one's between the two calls

    @classmethod
    def adopt(cls, path: Path) -> Self | None:
        """A segment left behind by a process that is no more; None while its writer, or another heir, lives."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        if not _lock(fd):
            os.close(fd)
            return None
        segment = cls(path, fd, size=os.fstat(fd).st_size)
        segment.acknowledged = segment._acknowledged_before()
        segment.unread = sum(count_records(data) for data in segment.chunks(segment.acknowledged))
        return segment

    @property
    def number(self) -> int:
        return _number(self.path)

    @property
    def instance(self) -> str:
        """Whose records these are."""
        return _instance(self.path)

    @property
    def backlog(self) -> int:
        """Bytes that the store does not have yet."""
        return self.size - self.acknowledged

    def append(self, lines: bytes, records: int) -> None:
        """Write whole lines. On an OSError nothing of them stays in the file, or what stays will be seen as torn."""
        if self._torn_tail:
            lines = b"\n" + lines
        try:
            written = os.write(self.fd, lines)
            if written != len(lines):
                # A disk that fills up takes a part first; the rest says why.
                written += os.write(self.fd, lines[written:])
                if written != len(lines):
                    raise OSError(f"short write to {self.path}")
        except OSError:
            self._undo()
            raise
        self._torn_tail = False
        self.size += len(lines)
        self.unread += records

    def _undo(self) -> None:
        try:
            os.ftruncate(self.fd, self.size)
        except OSError:
            # Then the next line must begin on a line of its own, and the reader skips what lies between.
            self._torn_tail = True
            with suppress(OSError):
                self.size = os.fstat(self.fd).st_size

    def read(self, wanted: int = _READ, start: int | None = None) -> bytes:
        """The next whole lines from `start`, by default the unacknowledged, about `wanted` bytes; empty at the end.

        A last line without its newline, left by a writer that died, is returned as it is.
        """
        start = self.acknowledged if start is None else start
        left = self.size - start
        while True:
            length = min(wanted, left)
            data = os.pread(self.fd, length, start)
            end = data.rfind(b"\n") + 1
            if end:
                return data[:end]
            if len(data) == left or len(data) < length:
                return data
            wanted *= 2  # one line longer than that

    def chunks(self, start: int = 0) -> Iterator[bytes]:
        """All lines from `start`, some at a time."""
        while data := self.read(_READ, start):
            start += len(data)
            yield data

    def acknowledge(self, end: int, records: int) -> None:
        """Everything before offset `end` is in the store. Raises OSError when that cannot be noted."""
        self.acknowledged = end
        self.unread = 0 if end >= self.size else max(0, self.unread - records)
        if self._ack_fd is None:
            self._ack_fd = os.open(self._ack_path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.pwrite(self._ack_fd, b"%020d\n" % end, 0)

    def delete(self) -> None:
        """Remove the file and its offset, then let go of the lock."""
        with suppress(FileNotFoundError):
            self.path.unlink()
        with suppress(FileNotFoundError):
            self._ack_path.unlink()
        self.close()

    def close(self) -> None:
        """Let go of the lock; the file stays for whoever adopts it."""
        os.close(self.fd)
        if self._ack_fd is not None:
            os.close(self._ack_fd)
            self._ack_fd = None

    @property
    def _ack_path(self) -> Path:
        return self.path.with_suffix(".ack")

    def _acknowledged_before(self) -> int:
        try:
            offset = int(self._ack_path.read_bytes())
        except (OSError, ValueError):
            return 0
        # Only the end of a line is a place to go on from.
        fits = 0 < offset <= self.size and os.pread(self.fd, 1, offset - 1) == b"\n"
        return offset if fits else 0


def segment_paths(directory: Path) -> list[Path]:
    """Every segment in the directory, oldest first within an instance."""
    return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name))


def is_newest(segment: Segment) -> bool:
    """Whether no later segment of the same instance is left, in anybody's hands."""
    directory, instance = segment.path.parent, segment.instance
    others = (path for path in segment_paths(directory) if _instance(path) == instance)
    return all(_number(path) <= segment.number for path in others)


def is_gone(directory: Path, instance: str) -> bool:
    """Whether no segment of the instance is left, in anybody's hands."""
    return all(_instance(path) != instance for path in segment_paths(directory))


def _number(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match["number"])


def _instance(path: Path) -> str:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return match["instance"]


def _lock(fd: int) -> bool:
    """Whether the lock is ours now and the file still has a name."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return os.fstat(fd).st_nlink > 0


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
