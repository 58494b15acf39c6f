"""Where the store is: the URLs people have, turned into what the drivers take."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from core.errors import StoreError

_POSTGRESQL = {"postgres", "postgresql", "postgresql+asyncpg"}
_SQLITE = {"sqlite", "sqlite+aiosqlite"}
_PASSED_ON = {"host", "port", "user", "password", "database", "passfile"}
# What LiteLLM's own database client (Prisma) reads from the same DATABASE_URL, and what has no meaning for us.
_IGNORED = {
    *("schema", "connection_limit", "pool_timeout", "socket_timeout", "sslaccept", "sslidentity", "sslpassword"),
    *("options", "target_session_attrs", "client_encoding", "gssencmode", "channel_binding", "keepalives"),
}


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """A store's address. Its text form has the password masked; the real one goes to the driver alone."""

    url: URL
    connect_arguments: dict[str, Any]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `sqlite:///file`, `sqlite+aiosqlite:///file`, `postgresql://`, `postgres://` or `postgresql+asyncpg://`.

        libpq's and Prisma's query parameters are understood: sslmode, sslrootcert, sslcert, sslkey, connect_timeout,
        application_name, pgbouncer. Raises StoreError for anything else.
        """
        try:
            url = make_url(text)
        except ArgumentError:
            # The text may hold a password, and so may SQLAlchemy's message about it.
            raise StoreError("the store's URL cannot be read; write sqlite:///file.db or postgresql://…") from None
        if url.drivername in _SQLITE:
            return cls(url.set(drivername="sqlite+aiosqlite"), {})
        if url.drivername in _POSTGRESQL:
            return cls._postgresql(url.set(drivername="postgresql+asyncpg"))
        raise StoreError(
            f"no store is built for {url.drivername}://; write sqlite:///file.db or postgresql://user@host/database"
        )

    @classmethod
    def _postgresql(cls, url: URL) -> Self:
        options = {name: value if isinstance(value, str) else value[-1] for name, value in url.query.items()}
        arguments: dict[str, Any] = {}
        tls = {name: options.pop(name) for name in ("sslrootcert", "sslcert", "sslkey") if name in options}
        mode = options.pop("sslmode", None)
        if tls or mode in {"verify-ca", "verify-full"}:
            arguments["ssl"] = _tls_context(mode or "verify-full", tls)
        elif mode:
            arguments["ssl"] = mode
        if timeout := options.pop("connect_timeout", None):
            arguments["timeout"] = _number("connect_timeout", timeout)
        if name := options.pop("application_name", None):
            arguments["server_settings"] = {"application_name": name}
        if options.pop("pgbouncer", "false") == "true":
            arguments |= {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
        if unknown := options.keys() - _PASSED_ON - _IGNORED:
            raise StoreError(f"the store's URL has parameters that are not understood: {', '.join(sorted(unknown))}")
        return cls(url.set(query={name: value for name, value in options.items() if name in _PASSED_ON}), arguments)

    @property
    def is_sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    @property
    def file(self) -> Path | None:
        """SQLite's file; None for a database in memory and for PostgreSQL."""
        name = self.url.database
        in_memory = name in {None, "", ":memory:"} or "mode=memory" in str(name)
        return None if not self.is_sqlite or in_memory else Path(str(name).removeprefix("file:").partition("?")[0])

    def __str__(self) -> str:
        url = self.url
        if "password" in url.query:
            url = url.update_query_dict({"password": "***"})
        return url.render_as_string(hide_password=True)

    def __repr__(self) -> str:
        return f"StoreUrl({self})"


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise StoreError(f"{name} in the store's URL is not a number: {text}") from None


def _tls_context(mode: str, files: dict[str, str]) -> Any:  # an ssl.SSLContext; ssl is not imported without need
    import ssl

    try:
        context = ssl.create_default_context(cafile=files.get("sslrootcert"))
        context.check_hostname = mode == "verify-full"
        if mode not in {"verify-ca", "verify-full"}:
            context.verify_mode = ssl.CERT_NONE
        if "sslcert" in files:
            context.load_cert_chain(files["sslcert"], files.get("sslkey"))
    except OSError as error:
        raise StoreError(f"a certificate of the store's URL cannot be read: {error}") from error
    return context
