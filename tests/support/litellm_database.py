"""LiteLLM's own database, with its keys, users and teams, on an embedded PostgreSQL and without native engines.

prisma-client-py is generated into the virtual environment and pointed at the bridge in `prisma_bridge/`. LiteLLM's
migrations are applied once, to a template that every database after it is a copy of.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import npm
from tests.support.postgres import POSTGRES_BIN_PATH, PostgresServer

_BRIDGE = Path(__file__).with_name("prisma_bridge")
_TEMPLATE = "litellm_template"


@dataclass(frozen=True, slots=True)
class LiteLLMDatabase:
    """A database with LiteLLM's tables, and the environment that makes a proxy use it."""

    url: str
    env: Mapping[str, str] = field(repr=False)


class LiteLLMDatabases:
    """Makes databases for LiteLLM on a running PostgreSQL. Raises npm.NodeMissing without Node.js."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._bridge = npm.installed(_BRIDGE)
        _generate_client(self._bridge)
        self._migrate()

    @contextmanager
    def database(self) -> Iterator[LiteLLMDatabase]:
        """A fresh one with LiteLLM's tables, all empty; dropped afterwards."""
        with self._server.database(_TEMPLATE) as url:
            yield LiteLLMDatabase(url, {**_bridge_environment(self._bridge), "DATABASE_URL": url})

    def _migrate(self) -> None:
        self._server.create_database(_TEMPLATE)
        folder = _package("litellm_proxy_extras") / "migrations"
        # Their folders' names begin with a date: applied in that order, statement by statement as psql does it.
        script = "\n".join(path.read_text() for path in sorted(folder.glob("*/migration.sql")))
        result = subprocess.run(
            [POSTGRES_BIN_PATH / "psql", "-q", "-v", "ON_ERROR_STOP=1", self._server.url(_TEMPLATE)],
            input=script,
            capture_output=True,
            text=True,
            env={**os.environ, "PGOPTIONS": "-c client_min_messages=warning"},
        )
        if result.returncode:
            raise RuntimeError(f"LiteLLM's migrations failed:\n{result.stderr[-2000:]}")


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None, f"{name} is not installed"
    return Path(spec.origin).parent


def _bridge_environment(bridge: Path) -> dict[str, str]:
    engine = str(bridge / "engine.js")
    return {
        "PRISMA_QUERY_ENGINE_BINARY": engine,
        "PRISMA_SCHEMA_ENGINE_BINARY": engine,
        "PRISMA_BINARY_CACHE_DIR": str(bridge),
        "CHECKPOINT_DISABLE": "1",
        # The tables are there already, and LiteLLM's way to make them wants the native schema engine.
        "DISABLE_SCHEMA_UPDATE": "true",
    }


def _generate_client(bridge: Path) -> None:
    """`prisma generate` for LiteLLM's schema, unless prisma-client-py's package already holds that client."""
    # Targets name binaries to download; there is none.
    lines = (_package("litellm") / "proxy" / "schema.prisma").read_text().splitlines()
    schema = "\n".join(line for line in lines if "binaryTargets" not in line) + "\n"
    # Both are written by the generator. A virtual environment that was made anew has neither.
    client, generated_from = _package("prisma") / "client.py", _package("prisma") / "schema.prisma"
    with npm.locked("prisma-client"):
        if client.exists() and generated_from.exists() and generated_from.read_text() == schema:
            return
        source = npm.CACHE / "litellm.prisma"
        source.write_text(schema)
        binaries = Path(sys.executable).parent
        result = subprocess.run(
            [binaries / "prisma", "generate", "--schema", source],
            env={**os.environ, **_bridge_environment(bridge), "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        if result.returncode:
            raise RuntimeError(f"prisma generate failed:\n{result.stdout}{result.stderr}")
