"""URLs of the store and of Redis: what is accepted, how it is normalised, and how it may be shown."""

import re
from urllib.parse import parse_qsl, urlencode, urlsplit

from core.settings.reference import checked_reference, is_reference

_POSTGRES = {"postgresql", "postgres", "postgresql+asyncpg"}
_SQLITE = {"sqlite", "sqlite+aiosqlite"}
_REDIS = {"redis", "rediss", "unix"}
# Connection URLs are often written for Prisma (LiteLLM's own database); asyncpg refuses what it does not know.
_ASYNCPG = {
    "host",
    "port",
    "user",
    "password",
    "database",
    "ssl",
    "passfile",
    "timeout",
    "command_timeout",
    "statement_cache_size",
    "prepared_statement_cache_size",
    "target_session_attrs",
}
_TLS = {"require", "verify-ca", "verify-full", "true"}


def checked_store_url(url: str) -> str:
    """The URL as SQLAlchemy's async drivers want it; a reference stays as it is. ValueError when neither fits."""
    if is_reference(url):
        return checked_reference(url)
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError("is not a URL; write sqlite:///<file> or postgresql://<user>@<host>/<database>") from None
    if parts.scheme in _SQLITE and url.partition("://")[2][:1] in {"", "/"}:
        return f"sqlite+aiosqlite://{url.partition('://')[2]}"
    if parts.scheme in _POSTGRES and "://" in url and parts.path.strip("/"):
        # By hand: urlunsplit drops the slashes of a URL without a host (a Unix socket).
        query = _asyncpg_query(parts.query)
        return f"postgresql+asyncpg://{parts.netloc}{parts.path}{'?' if query else ''}{query}"
    raise ValueError("must be sqlite:///<file> or postgresql://<user>:<password>@<host>:<port>/<database>")


def checked_redis_url(url: str) -> str:
    """The URL itself, or a reference. ValueError when it is not Redis's."""
    if is_reference(url):
        return checked_reference(url)
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError("is not a URL; write redis://<host>:<port>/<db>") from None
    if parts.scheme not in _REDIS or "://" not in url or not (parts.hostname or parts.path.strip("/")):
        raise ValueError("must be redis://, rediss:// (TLS) or unix:// and a host or socket")
    return url


def redacted(url: str) -> str:
    """The URL without its password and without values of its query."""
    without_password = re.sub(r"(://[^/?#]*?)(:[^/?#]*)?@", lambda m: f"{m[1]}{':***' if m[2] else ''}@", url)
    return re.sub(r"([?&][^=&#]+=)[^&#]*", r"\1***", without_password)


def travels_in_the_clear(url: str) -> bool:
    """Whether what is sent to this URL can be read on the way: no TLS, and not to this machine."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    host = parts.hostname or query.get("host") or ""
    if host in {"", "localhost", "127.0.0.1", "::1"} or host.startswith("/") or "%2f" in host.lower():
        return False
    if parts.scheme in {"redis", "http"}:
        return True
    return parts.scheme.startswith("postgres") and query.get("ssl", query.get("sslmode")) not in _TLS


def _asyncpg_query(query: str) -> str:
    wanted: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name == "sslmode":
            wanted["ssl"] = "require" if value == "no-verify" else value
        elif name == "connect_timeout":
            wanted["timeout"] = value
        elif name == "pgbouncer" and value == "true":
            wanted["prepared_statement_cache_size"] = "0"
        elif name in _ASYNCPG:
            wanted[name] = value
    return urlencode(wanted)
