"""A real PostgreSQL of our own, reachable on 127.0.0.1 and by a Unix socket, from the binaries that pgserver ships."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import psycopg
from psycopg import sql

from tests.support import processes
from tests.support.eventually import eventually_sync

with warnings.catch_warnings(action="ignore"):  # where XDG_RUNTIME_DIR is not set
    from pgserver._commands import POSTGRES_BIN_PATH
    from pgserver.utils import ensure_folder_permissions, ensure_prefix_permissions, ensure_user_exists

SUPERUSER = "postgres"

_SYSTEM_USER = "pgserver"
_READ_AND_ENTER = 0o555
_READ = 0o444

_FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class PostgresServer:
    """`with PostgresServer() as server:` gives a running server; `stop()` and `start()` make an outage in between.

    It has no passwords and listens on 127.0.0.1 alone. By default it trades durability for speed; benchmarks that
    measure writes pass `durable=True`. As root, PostgreSQL runs as a system user of its own, since it refuses root.
    """

    def __init__(self, *, durable: bool = False) -> None:
        # Not below pytest's own temporary folder: that is closed to other users, and long for a socket's path.
        self._directory = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._data = self._directory / "data"
        self._log = self._directory / "log"
        self._options = {"max_connections": "300", **({} if durable else _FAST)}
        self._user = self._unprivileged_user()
        self._process: subprocess.Popen[bytes] | None = None
        self.port = processes.free_port()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def url(self, database: str = SUPERUSER) -> str:
        """A connection URL over TCP, of the plain `postgresql://` form."""
        return f"postgresql://{SUPERUSER}@127.0.0.1:{self.port}/{database}"

    def socket_url(self, database: str = SUPERUSER) -> str:
        """The same database by the Unix socket."""
        return f"postgresql://{SUPERUSER}@/{database}?host={self._directory}&port={self.port}"

    def start(self) -> None:
        """Start the server, making its data directory the first time, and wait until it accepts queries."""
        if self.running:
            return
        if not self._data.exists():
            self._initialise()
        arguments: list[str | Path] = [POSTGRES_BIN_PATH / "postgres", "-D", self._data]
        arguments += ["-h", "127.0.0.1", "-p", str(self.port), "-k", self._directory]
        for name, value in self._options.items():
            arguments += ["-c", f"{name}={value}"]
        with self._log.open("ab") as output:
            self._process = processes.start(arguments, output=output, user=self._user, cwd=self._directory)

        def ready() -> bool:
            if not self.running:
                raise RuntimeError(f"postgres ended:\n{self._log.read_text()[-2000:]}")
            self.execute("select 1")
            return True

        eventually_sync(ready, within=30, what="PostgreSQL answering")

    def stop(self) -> None:
        """Shut the server down at once; open connections are cut."""
        if self._process is not None:
            processes.stop(self._process, signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL for the whole server: the next start recovers from the log."""
        if self._process is not None:
            processes.kill(self._process)

    def execute(self, statement: str | sql.Composed, database: str = SUPERUSER) -> None:
        """Run SQL outside a transaction block; several statements without parameters may be given as one text."""
        with psycopg.connect(self.url(database), autocommit=True, connect_timeout=5) as connection:
            connection.execute(statement)  # type: ignore[arg-type]

    def create_database(self, name: str | None = None, template: str = "template1") -> str:
        """Make a new database, a copy of `template`, and return its name."""
        name = name or f"test_{uuid.uuid4().hex[:16]}"
        statement = sql.SQL("create database {} template {}")
        self.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
        return name

    def drop_database(self, name: str) -> None:
        """Remove a database and cut whoever still uses it."""
        self.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))

    @contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """A fresh database for one use; yields its URL and drops it afterwards."""
        name = self.create_database(template=template)
        try:
            yield self.url(name)
        finally:
            if self.running:
                self.drop_database(name)

    def __enter__(self) -> PostgresServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            # Without a checkpoint, but the postmaster still collects its children: SIGKILL would leave them to init.
            processes.stop(self._process, signal.SIGQUIT, within=5)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _initialise(self) -> None:
        if self._user is not None:
            owner = pwd.getpwnam(self._user)
            os.chown(self._directory, owner.pw_uid, owner.pw_gid)
            self._log.touch()
            os.chown(self._log, owner.pw_uid, owner.pw_gid)
        command = [POSTGRES_BIN_PATH / "initdb", "-D", self._data, "-U", SUPERUSER]
        subprocess.run(
            [*command, "--auth=trust", "--encoding=utf8", "--no-locale", "--no-sync"],
            check=True,
            capture_output=True,
            user=self._user,
            group=self._user,
            extra_groups=[] if self._user else None,
            cwd=self._directory,
        )

    @staticmethod
    def _unprivileged_user() -> str | None:
        """The user to run as when we are root; its way to the binaries is opened."""
        if os.geteuid() != 0:
            return None
        ensure_user_exists(_SYSTEM_USER)
        ensure_prefix_permissions(POSTGRES_BIN_PATH)
        ensure_folder_permissions(POSTGRES_BIN_PATH, _READ_AND_ENTER)
        ensure_folder_permissions(POSTGRES_BIN_PATH.parent / "lib", _READ)
        return _SYSTEM_USER
