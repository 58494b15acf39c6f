"""What HashiCorp Vault answers, as its API documentation and its source have it: state, policies and routes, no HTTP.

A namespace has its own mounts, policies, tokens and auth methods. Times come from the clock that is given.
"""

from __future__ import annotations

import fnmatch
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

Body = dict[str, Any]
Reply = tuple[int, Body]

DEFAULT_POLICY = {
    "auth/token/lookup-self": ["read"],
    "auth/token/renew-self": ["update"],
    "sys/capabilities-self": ["update"],
    "sys/leases/renew": ["update"],
}
_NO_VALUE: Reply = (404, {"errors": []})
_DENIED: Reply = (403, {"errors": ["permission denied"]})
_OPERATIONS = {"GET": "read", "POST": "update", "PUT": "update", "DELETE": "delete"}


@dataclass
class Token:
    policies: tuple[str, ...]
    issued: float
    ttl: float  # 0 = it does not end
    renewable: bool = True
    max_ttl: float = 0
    expires: float = 0
    path: str = "auth/token/create"
    leases: list[str] = field(default_factory=list)


@dataclass
class Version:
    data: Body
    created: float
    deleted: float = 0  # 0 = it is there; in the future: delete_version_after
    destroyed: bool = False


@dataclass
class Lease:
    token: str
    issued: float
    expires: float
    ttl: float
    max_ttl: float
    renewable: bool


@dataclass
class Role:
    """A role of AppRole, of Kubernetes or of a database; each uses some of it."""

    policies: tuple[str, ...] = ()
    ttl: float = 3600
    max_ttl: float = 0
    renewable: bool = True
    role_id: str = ""
    secret_ids: set[str] = field(default_factory=set)
    jwts: set[str] = field(default_factory=set)
    asks_mfa: bool = False
    rotated: float = 0  # a static database role: when Vault last changed its password


@dataclass
class Namespace:
    mounts: dict[str, tuple[str, Body | None]] = field(default_factory=dict)  # path -> type, options
    kv1: dict[str, Body] = field(default_factory=dict)
    kv2: dict[str, list[Version]] = field(default_factory=dict)
    policies: dict[str, Mapping[str, list[str]]] = field(default_factory=lambda: {"default": DEFAULT_POLICY})
    tokens: dict[str, Token] = field(default_factory=dict)
    auth: dict[str, dict[str, Role]] = field(default_factory=dict)  # mount -> roles
    databases: dict[str, dict[str, Role]] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)


class VaultApi:
    """Answers requests: `answer(method, path, query, body, token, namespace)`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.namespaces: dict[str, Namespace] = {"": Namespace()}
        self.terse = False
        """Whether a dead token is only called "permission denied", as older versions do."""

    def answer(self, method: str, path: str, query: Mapping[str, str], body: Body, token: str, namespace: str) -> Reply:
        space = self.namespaces.get(namespace.strip("/"))
        if space is None:
            return 404, {"errors": [f'no handler for route "{namespace}/{path}". route entry not found.']}
        if path.startswith("auth/") and path.endswith("/login"):
            return self._log_in(space, path.removeprefix("auth/").removesuffix("/login"), body)
        entry = self._token(space, token)
        if entry is None:
            dead = "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"
            return 403, {"errors": ["permission denied" if self.terse or not token else dead]}
        if path.startswith("sys/internal/ui/mounts/"):
            return self._preflight(space, entry, path.removeprefix("sys/internal/ui/mounts/"))
        if _OPERATIONS.get(method, "") not in capabilities(space, entry, path) and "root" not in entry.policies:
            return _DENIED
        match (method, path):
            case ("GET", "auth/token/lookup-self"):
                return 200, _envelope(self._described(entry))
            case ("POST" | "PUT", "auth/token/renew-self"):
                return self._renewed_token(entry, token)
            case ("POST" | "PUT", "sys/capabilities-self"):
                found = {one: capabilities(space, entry, one) or ["deny"] for one in body["paths"]}
                return 200, {**_envelope(dict(found)), **found}
            case ("POST" | "PUT", "sys/leases/renew"):
                return self._renewed_lease(space, body["lease_id"], float(body.get("increment") or 0))
        mount = next((one for one in space.mounts if path.startswith(f"{one}/")), None)
        if mount is None or method != "GET":
            return 404, {"errors": [f'no handler for route "{path}". route entry not found.']}
        kind, options = space.mounts[mount]
        inside = path[len(mount) + 1 :]
        if kind == "kv" and (options or {}).get("version") == "2":
            return self._read_kv2(space, mount, inside, query)
        if kind == "kv":
            data = space.kv1.get(path)
            return _NO_VALUE if data is None else (200, _envelope(data, lease_duration=2764800))
        return self._read_database(space, mount, inside, token)

    # -- what a token may --

    def _token(self, space: Namespace, token: str) -> Token | None:
        entry = space.tokens.get(token)
        if entry is not None and entry.ttl and self.clock() >= entry.expires:
            for lease in entry.leases:
                space.leases.pop(lease, None)
            del space.tokens[token]
            return None
        return entry

    def new_token(self, space: Namespace, token: str, entry: Token) -> None:
        entry.expires = entry.issued + entry.ttl
        space.tokens[token] = entry

    def _described(self, entry: Token) -> Body:
        left = max(int(entry.expires - self.clock()), 0) if entry.ttl else 0
        return {
            "accessor": "8609694a",
            "policies": list(entry.policies),
            "ttl": left,
            "creation_ttl": int(entry.ttl),
            "explicit_max_ttl": int(entry.max_ttl),
            "renewable": entry.renewable,
            "path": entry.path,
            "type": "service",
            "expire_time": _stamp(entry.expires) if entry.ttl else None,
        }

    def _renewed_token(self, entry: Token, token: str) -> Reply:
        if not entry.renewable or not entry.ttl:
            return 400, {"errors": ["lease is not renewable"]}
        entry.expires = _extended(self.clock(), entry.issued, entry.ttl, entry.max_ttl)
        return 200, {**_envelope(None), "auth": self._auth(token, entry)}

    def _auth(self, token: str, entry: Token) -> Body:
        return {
            "client_token": token,
            "accessor": "8609694a",
            "policies": list(entry.policies),
            "token_policies": list(entry.policies),
            "lease_duration": int(entry.expires - self.clock()) if entry.ttl else 0,
            "renewable": entry.renewable,
            "token_type": "service",
            "mfa_requirement": None,
        }

    # -- log-ins --

    def _log_in(self, space: Namespace, mount: str, body: Body) -> Reply:
        roles = space.auth.get(mount)
        if roles is None:
            return _DENIED
        if "role_id" in body:
            role = next((one for one in roles.values() if one.role_id == body["role_id"]), None)
            if role is None or body.get("secret_id") not in role.secret_ids:
                return 400, {"errors": ["invalid role or secret ID"]}
        else:
            role = roles.get(body.get("role", ""))
            if role is None:
                return 400, {"errors": [f'invalid role name "{body.get("role")}"']}
            if body.get("jwt") not in role.jwts:
                return _DENIED
        if role.asks_mfa:
            return 200, {**_envelope(None), "auth": {"client_token": "", "mfa_requirement": {"mfa_request_id": "1"}}}
        token = f"hvs.{uuid.uuid4().hex}"
        entry = Token(role.policies, self.clock(), role.ttl, role.renewable, role.max_ttl, path=f"auth/{mount}/login")
        self.new_token(space, token, entry)
        return 200, {**_envelope(None), "auth": self._auth(token, entry)}

    # -- engines --

    def _preflight(self, space: Namespace, entry: Token, path: str) -> Reply:
        mount = next((one for one in space.mounts if f"{path}/".startswith(f"{one}/")), None)
        seen = mount is not None and any(
            pattern.startswith(f"{mount}/") or f"{mount}/".startswith(pattern.rstrip("*").split("+")[0])
            for pattern, granted in _rules(space, entry)
            if granted != ["deny"]
        )
        if mount is None or not (seen or "root" in entry.policies):
            hint = f'please ensure client\'s policies grant access to path "{path}/"'
            return 403, {"errors": [f"preflight capability check returned 403, {hint}"]}
        kind, options = space.mounts[mount]
        return 200, _envelope(
            {"path": f"{mount}/", "type": kind, "options": options, "description": "", "local": False}
        )

    def _read_kv2(self, space: Namespace, mount: str, inside: str, query: Mapping[str, str]) -> Reply:
        if not inside.startswith("data/"):
            warning = "Invalid path for a versioned K/V secrets engine. See the API docs for the appropriate endpoints."
            return 404, {**_envelope(None), "warnings": [warning]}
        versions = space.kv2.get(f"{mount}/{inside.removeprefix('data/')}", [])
        number = int(query.get("version") or 0) or len(versions)
        if not 0 < number <= len(versions):
            return _NO_VALUE
        version = versions[number - 1]
        gone = version.destroyed or 0 < version.deleted <= self.clock()
        metadata = {
            "created_time": _stamp(version.created),
            "custom_metadata": None,
            "deletion_time": _stamp(version.deleted) if version.deleted else "",
            "destroyed": version.destroyed,
            "version": number,
        }
        return 404 if gone else 200, _envelope({"data": None if gone else version.data, "metadata": metadata})

    def _read_database(self, space: Namespace, mount: str, inside: str, token: str) -> Reply:
        kind, _, name = inside.partition("/")
        role = space.databases.get(mount, {}).get(name)
        if role is None or kind not in {"creds", "static-creds"}:
            return 400, {"errors": [f"unknown role: {name}"]}
        if kind == "static-creds":
            data = {"username": name, "password": f"rotated-at-{role.rotated}", "ttl": 60, "rotation_period": 3600}
            return 200, _envelope({**data, "last_vault_rotation": _stamp(role.rotated)})
        now = self.clock()
        lease_id = f"{mount}/creds/{name}/{uuid.uuid4().hex}"
        space.leases[lease_id] = Lease(token, now, now + role.ttl, role.ttl, role.max_ttl, role.renewable)
        space.tokens[token].leases.append(lease_id)
        made = {"username": f"v-{name}-{lease_id[-6:]}", "password": uuid.uuid4().hex}
        return 200, _envelope(made, lease_id, int(role.ttl), role.renewable)

    def _renewed_lease(self, space: Namespace, lease_id: str, increment: float) -> Reply:
        lease, now = space.leases.get(lease_id), self.clock()
        if lease is None or now >= lease.expires:
            return 400, {"errors": ["lease not found"]}
        if not lease.renewable:
            return 400, {"errors": ["lease is not renewable"]}
        lease.expires = _extended(now, lease.issued, increment or lease.ttl, lease.max_ttl)
        return 200, _envelope(None, lease_id, int(lease.expires - now), True)


def capabilities(space: Namespace, entry: Token, path: str) -> list[str]:
    """What a token's policies allow on a path: the most specific rule of each policy counts, and `deny` wins."""
    if "root" in entry.policies:
        return ["root"]
    found: list[str] = []
    for name in entry.policies:
        rules = space.policies.get(name, {})
        fitting = [rule for rule in rules if _fits(rule, path)]
        if fitting:
            found += rules[max(fitting, key=lambda rule: (len(rule.rstrip("*")), not rule.endswith("*")))]
    return ["deny"] if "deny" in found else sorted(set(found))


def _rules(space: Namespace, entry: Token) -> Iterator[tuple[str, list[str]]]:
    for name in entry.policies:
        yield from space.policies.get(name, {}).items()


def _fits(rule: str, path: str) -> bool:
    if "+" in rule:
        pattern = "/".join("[!/]*" if part == "+" else part for part in rule.split("/"))
        return path.count("/") == rule.count("/") and fnmatch.fnmatchcase(path, pattern)
    return path.startswith(rule[:-1]) if rule.endswith("*") else path == rule


def _extended(now: float, issued: float, ttl: float, max_ttl: float) -> float:
    return min(now + ttl, issued + max_ttl) if max_ttl else now + ttl


def _envelope(data: Body | None, lease_id: str = "", lease_duration: int = 0, renewable: bool = False) -> Body:
    return {
        "request_id": str(uuid.uuid4()),
        "lease_id": lease_id,
        "renewable": renewable,
        "lease_duration": lease_duration,
        "data": data,
        "wrap_info": None,
        "warnings": None,
        "auth": None,
    }


def _stamp(moment: float) -> str:
    """RFC 3339 with nanoseconds, as Go prints it."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "742Z"
