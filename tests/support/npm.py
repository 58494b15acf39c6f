"""Node packages for the tests: installed once from a lock file into `.test-cache/`, and found again next time."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".test-cache"


class NodeMissing(RuntimeError):
    """Node.js or npm is not installed here."""


def node() -> str:
    """The path of Node.js; raises NodeMissing where it or npm is absent."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise NodeMissing(f"{program} is not installed (tools/install-system-packages installs it)")
    found = shutil.which("node")
    assert found is not None
    return found


@contextmanager
def locked(name: str) -> Iterator[None]:
    """One process at a time, for what is built into the cache."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def installed(source: Path) -> Path:
    """A copy of a folder with its locked packages beside it; built at most once for each content.

    `source` holds a package.json, a package-lock.json and scripts. Packages' own install scripts are not run.
    """
    node()
    files = sorted(path for path in source.iterdir() if path.is_file())
    content = hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()
    target = CACHE / f"{source.name}-{content[:16]}"
    with locked(source.name):
        if not target.exists():
            building = Path(tempfile.mkdtemp(prefix=f"{source.name}-building-", dir=CACHE))
            try:
                _build(files, building)
                # Older builds may be in use by another run: they stay until someone removes .test-cache.
                building.replace(target)
            finally:
                shutil.rmtree(building, ignore_errors=True)
    return target


def _build(files: list[Path], folder: Path) -> None:
    folder.chmod(0o755)
    for path in files:
        shutil.copy(path, folder)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    if result.returncode:
        raise RuntimeError(f"npm ci failed in {folder.name}:\n{result.stdout}{result.stderr}")
