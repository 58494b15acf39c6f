"""Environment variables and a file of ours as a place that keeps secrets: for development."""

import os
import stat
import threading
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path

from dotenv.parser import parse_stream

from core.errors import ConfigError
from core.settings.models import LocalSecrets
from core.settings.reference import resolve_environ
from secrets_manager.provider import Check, Fetched, Lease, Reason, SecretUnavailable
from secrets_manager.value import SecretValue

_PRIVATE = 0o600
_Identity = tuple[int, int, int, int]


class LocalSecretsProvider:
    """Reads a secret from the file of `secrets.providers.local.file`, if there is one and it has the name, else from
    the environment variable of that name.

    The file is read again when it has changed. It must be a regular file of ours or of root that nobody else may read.
    """

    def __init__(self, settings: LocalSecrets, environ: Mapping[str, str]) -> None:
        if settings.enabled is False:
            message = (
                "env:// is the local secret provider, for development, and is not enabled; use a vault, or "
                "os.environ/NAME for a plain variable."
            )
            raise SecretUnavailable(message, Reason.MISCONFIGURED)
        self._environ = environ
        self._file = _SecretsFile(_path(settings.file, environ)) if settings.file is not None else None

    def fetch(self, identifier: str, version: str) -> Fetched:
        if self._file is not None:
            value = self._file.value(identifier)
            if value is not None:
                return Fetched(value, "file")
        text = self._environ.get(identifier)
        if text:
            return Fetched(SecretValue(text), "environment")
        how = "not set" if text is None else "empty"
        neither = f" and {self._file.path} does not name it" if self._file is not None else ""
        message = f"env://{identifier}: the environment variable {identifier} is {how}{neither}."
        raise SecretUnavailable(message, Reason.NOT_FOUND)

    def renew(self, lease: Lease) -> Lease:
        raise SecretUnavailable("The local secret provider gives no leases.", Reason.MISCONFIGURED)

    def diagnose(self, identifiers: Mapping[str, str]) -> Iterator[Check]:
        yield Check("ok", "the local secret provider is enabled; production refuses it")
        if self._file is not None:
            try:
                count = self._file.count()
                yield Check("ok", f"{self._file.path} is private and has {count} name(s)")
            except SecretUnavailable as error:
                yield Check("error", f"{self._file.path} cannot be used", str(error))
                return
        for identifier, version in identifiers.items():
            try:
                found = self.fetch(identifier, version)
            except SecretUnavailable as error:
                yield Check("error", f"env://{identifier} has no value", str(error))
            else:
                found.value.wipe()
                yield Check("ok", f"env://{identifier} is set, in the {found.version}")

    def close(self) -> None:
        if self._file is not None:
            self._file.wipe()


class _SecretsFile:
    """The names and values of a file of `NAME=value` lines, as it is now."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._identity: _Identity | None = None
        self._values: dict[str, SecretValue] = {}

    def value(self, name: str) -> SecretValue | None:
        """A value of its own for whoever asks, since they may wipe it. Raises SecretUnavailable (MISCONFIGURED)."""
        with self._lock:
            self._refresh()
            found = self._values.get(name)
            return None if found is None or found.empty else SecretValue(found.reveal())

    def count(self) -> int:
        with self._lock:
            self._refresh()
            return len(self._values)

    def wipe(self) -> None:
        with self._lock:
            self._forget()

    def _refresh(self) -> None:
        try:
            # Not to hang on a pipe; what is opened is what is checked, whatever happens to the name meanwhile.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                status = os.fstat(descriptor)
                refused = _refusal(status)
                identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
                if refused is None and identity == self._identity:
                    return
                content = b"" if refused else _content(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._unusable(f"cannot be read ({error.strerror})") from None
        if refused:
            raise self._unusable(refused)
        values = self._parsed(content)
        self._forget()
        self._values, self._identity = values, identity

    def _forget(self) -> None:
        for value in self._values.values():
            value.wipe()
        self._values, self._identity = {}, None

    def _parsed(self, content: bytes) -> dict[str, SecretValue]:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = None
        if text is None:  # raised out here: the exception above holds the whole file
            raise self._unusable("is not UTF-8")
        values: dict[str, SecretValue] = {}
        for binding in parse_stream(StringIO(text)):
            if binding.error or (binding.key is not None and binding.value is None):
                raise self._unusable(f"line {binding.original.line} is not NAME=value")
            if binding.key is not None and binding.value is not None:
                values[binding.key] = SecretValue(binding.value)
        return values

    def _unusable(self, why: str) -> SecretUnavailable:
        return SecretUnavailable(f"secrets.providers.local.file ({self.path}) {why}.", Reason.MISCONFIGURED)


def _content(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb", closefd=False) as file:
        return file.read()


def _refusal(status: os.stat_result) -> str | None:
    """Why a file of this status may not hold secrets."""
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    if status.st_uid not in {os.geteuid(), 0}:
        return "belongs to somebody else; it must be owned by the user of the proxy or by root"
    mode = stat.S_IMODE(status.st_mode)
    if mode & ~_PRIVATE:
        return f"has mode {mode:04o}, others could read or change it: chmod 600"
    return None


def _path(file: str, environ: Mapping[str, str]) -> Path:
    try:
        return Path(resolve_environ(file, environ)).expanduser()
    except (ConfigError, RuntimeError) as error:
        message = f"secrets.providers.local.file: {error}."
        raise SecretUnavailable(message, Reason.MISCONFIGURED) from None
