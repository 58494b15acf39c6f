"""The keys a first run makes for itself: the master key and those of the quickstart's demo users.

They live in one file that only its owner can read, beside the journal, and reach the proxy as environment variables.
Nothing prints them.
"""

import os
import re
import secrets
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from pathlib import Path

MASTER_KEY = "LITELLM_MASTER_KEY"
_DEMO_REFERENCE = re.compile(r"os\.environ/(DEMO_KEY_[A-Z0-9_]+)")
_FOLDER = Path(".orchestration")


@dataclass(frozen=True)
class LocalKeys:
    """The variables that `path` provides, by name."""

    path: Path
    names: tuple[str, ...]

    @classmethod
    def of(cls, config: Path, folder: Path = _FOLDER) -> "LocalKeys":
        """The master key and every `os.environ/DEMO_KEY_…` that `config` refers to."""
        found: Iterable[str] = _DEMO_REFERENCE.findall(config.read_text(encoding="utf-8"))
        return cls(folder / "keys.env", (MASTER_KEY, *dict.fromkeys(found)))

    def into(self, environ: MutableMapping[str, str]) -> tuple[str, ...]:
        """Set what `environ` lacks, making what the file lacks; the names that came from the file."""
        missing = tuple(name for name in self.names if not environ.get(name))
        if not missing:
            return ()
        known = self._read()
        made = {name: f"sk-{secrets.token_urlsafe(32)}" for name in missing if name not in known}
        if made:
            known.update(made)
            self._write(known)
        environ.update({name: known[name] for name in missing})
        return missing

    def _read(self) -> dict[str, str]:
        if not self.path.exists():
            return {}
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))

    def _write(self, keys: dict[str, str]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = "# Made by llm-orchestration for this folder. Delete a line to have a new key made at the next start.\n"
        text += "".join(f"{name}={value}\n" for name, value in keys.items())
        fresh = self.path.with_suffix(".new")
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:  # noqa: PTH123
            file.write(text)
        fresh.replace(self.path)
