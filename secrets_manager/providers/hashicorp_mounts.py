"""Where in HashiCorp Vault a reference leads: which mount, which kind of engine, and so which path of the API."""

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from core.settings.models.secrets import VaultEngine
from secrets_manager.providers.hashicorp_connection import Answer, mapping

_KV = {"kv", "generic"}


@dataclass(frozen=True, slots=True)
class Place:
    """A secret's place: `path` inside the engine at `mount`."""

    mount: str
    path: str
    engine: VaultEngine

    @property
    def api_path(self) -> str:
        """The path that policies speak of."""
        between = "/data/" if self.engine is VaultEngine.KV2 else "/"
        return f"{self.mount}{between}{self.path}"

    @property
    def policy(self) -> str:
        """The stanza of a policy that allows to read it, and nothing else."""
        return stanza(self.api_path, "read")


def stanza(path: str, capability: str) -> str:
    """A policy's stanza in HCL."""
    return f'path "{path}" {{ capabilities = ["{capability}"] }}'


class Mounts:
    """Remembers what Vault says of its mounts. Mounts never lie inside each other, so a prefix tells them apart.

    `ask` gives Vault's answer to a call of hvac's client. Thread-safe: the first question about a first segment is
    asked by one thread while the others wait for it.
    """

    def __init__(
        self,
        engines: Mapping[str, VaultEngine],
        default_mount: str,
        ask: Callable[[Callable[[Any], Any]], Answer],  # Any: hvac has no types
    ) -> None:
        self._configured = dict(engines)
        self._default = default_mount
        self._ask = ask
        self._learnt: dict[str, VaultEngine] = {}
        self._asked: set[str] = set()
        self._locks: dict[str, threading.Lock] = {}

    def full_path(self, identifier: str) -> str:
        """The path of a reference; one of a single segment lies in the default mount."""
        path = "/".join(part for part in identifier.split("/") if part)
        return path if "/" in path else f"{self._default}/{path}"

    def place(self, identifier: str) -> Place | None:
        """Where it is; None where Vault does not tell us, because there is no such mount or we may not know.

        `path` is empty where the reference names a mount and nothing in it. Raises SecretUnavailable.
        """
        path = self.full_path(identifier)
        if (known := self._known(path)) is not None:
            return known
        first = path.partition("/")[0]
        if first not in self._asked:
            with self._locks.setdefault(first, threading.Lock()):
                if first not in self._asked:
                    try:
                        return self._told(path)
                    finally:
                        self._asked.add(first)
        # Also for those that have waited for an answer that did not come: they do not ask one after the other.
        return self._known(path) or self._told(path)

    def guesses(self, identifier: str) -> Iterator[Place]:
        """Where it may be, when Vault does not say: in the default mount if it starts so, else in the first segment."""
        path = self.full_path(identifier)
        inside = path.startswith(f"{self._default}/")
        mount = self._default if inside else path.partition("/")[0]
        for engine in (VaultEngine.KV2, VaultEngine.KV1):
            yield Place(mount, path.removeprefix(f"{mount}/"), engine)

    def learn(self, place: Place) -> None:
        """Remember a guess that was right."""
        self._learnt[place.mount] = place.engine

    def forget(self, place: Place) -> None:
        """Ask Vault again next time: the mount may have been made anew as something else."""
        self._learnt.pop(place.mount, None)

    def _known(self, path: str) -> Place | None:
        for known in (self._configured, self._learnt):
            end = len(path)
            while end > 0:
                mount = path[:end]
                if (engine := known.get(mount)) is not None:
                    return Place(mount, path[end + 1 :], engine)
                end = path.rfind("/", 0, end)
        return None

    def _told(self, path: str) -> Place | None:
        answer = self._ask(lambda client: client.read(f"sys/internal/ui/mounts/{quote(path)}"))
        data = answer.part("data")
        mount = str(data.get("path") or "").strip("/")
        if answer.status != 200 or not mount or not f"{path}/".startswith(f"{mount}/"):
            return None
        if data.get("type") in _KV:
            versioned = str(mapping(data.get("options")).get("version")) == "2"
            engine = VaultEngine.KV2 if versioned else VaultEngine.KV1
        else:
            engine = VaultEngine.DYNAMIC
        self._learnt[mount] = engine
        return Place(mount, path[len(mount) + 1 :], engine)
