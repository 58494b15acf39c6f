"""A secret provider in memory whose answers, failures and delays a test decides; it counts what it is asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping

from secrets_manager.provider import Check, Fetched, Lease, Reason, SecretUnavailable
from secrets_manager.value import SecretValue


class VaultOfValues:
    """`vault["name"] = "value"` makes a new version; `vault.failing = Reason.X` fails every call from then on."""

    def __init__(self, **values: str) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, str] = {}
        self._versions: dict[str, int] = {}
        self.failing: Reason | None = None
        self.retry_after: float | None = None
        self.delay = 0.0
        self.calls: list[str] = []
        self.renewals = 0
        self.lease: Lease | None = None
        self.expires_at: float | None = None
        self.not_before: float | None = None
        self.closed = False
        self.answering = threading.Event()
        self.answering.set()
        for name, value in values.items():
            self[name] = value

    def __setitem__(self, name: str, value: str) -> None:
        with self._lock:
            self._values[name] = value
            self._versions[name] = self._versions.get(name, 0) + 1

    def __delitem__(self, name: str) -> None:
        with self._lock:
            del self._values[name]

    def fetch(self, identifier: str, version: str) -> Fetched:
        with self._lock:
            self.calls.append(identifier)
            value, number = self._values.get(identifier), self._versions.get(identifier, 0)
        self.answering.wait(10)
        if self.delay:
            time.sleep(self.delay)
        if self.failing is not None:
            raise SecretUnavailable(f"{identifier}: {self.failing}", self.failing, retry_after=self.retry_after)
        if value is None:
            raise SecretUnavailable(f"{identifier} is not there.", Reason.NOT_FOUND)
        return Fetched(SecretValue(value), str(number), self.expires_at, self.not_before, self.lease)

    def renew(self, lease: Lease) -> Lease:
        self.renewals += 1
        if self.failing is not None:
            raise SecretUnavailable("the lease", self.failing)
        return lease

    def diagnose(self, identifiers: Mapping[str, str]) -> Iterator[Check]:
        for identifier in identifiers:
            yield Check("ok" if identifier in self._values else "error", identifier)

    def close(self) -> None:
        self.closed = True
