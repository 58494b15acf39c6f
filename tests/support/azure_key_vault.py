"""A double of Azure Key Vault's REST API for secrets, over HTTPS, with the log-in it asks for.

    with AzureKeyVaultDouble() as vault:
        vault.set("openai", "sk-...")
        vault.settings()      # `secrets.providers.azure` for it, and vault.environ for the client secret
        vault.refuse("rbac")  # and so on: throttle, slow, away

The log-in host answers on the vault's own port. What it does was written from Microsoft's reference of the REST API
and its list of error codes; what the tests lean on is only reached through Azure's own clients.
"""

from __future__ import annotations

import json
import re
import ssl
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import trustme

from tests.support.azure_entra import TENANT, Application, Entra
from tests.support.json_server import Answer, JsonServer, Request

API_VERSIONS = ("2026-04-01", "2025-07-01", "7.6", "7.5", "7.4", "7.3", "7.2", "7.1", "7.0", "2016-10-01")
_NAME = re.compile(r"[0-9A-Za-z-]{1,127}")


@dataclass
class Version:
    """One version of a secret."""

    value: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    enabled: bool = True
    not_before: int | None = None
    expires: int | None = None
    content_type: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def attributes(self) -> dict[str, Any]:
        dates = {"nbf": self.not_before, "exp": self.expires}
        return {
            "enabled": self.enabled,
            **{name: at for name, at in dates.items() if at is not None},
            "created": self.created,
            "updated": self.created,
            "recoveryLevel": "Recoverable+Purgeable",
            "recoverableDays": 90,
        }


class AzureKeyVaultDouble:
    """A vault `team-vault` and a tenant with one application that may read it. A context manager."""

    def __init__(self) -> None:
        self.entra = Entra()
        self.reader = self.entra.register(Application(client_secret=f"client-{uuid.uuid4().hex}"))
        self.administrator = Application()
        self.requests: list[tuple[str, str, int]] = []
        """Method, path and status of every answer of the vault."""
        self.reads: Counter[str] = Counter()
        """How often each secret's value was given."""
        self.delay = 0.0
        self._secrets: dict[str, list[Version]] = {}
        self._deleted: dict[str, list[Version]] = {}
        self._refused: dict[str, str] = {}
        self._next: list[Answer] = []
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._folder = tempfile.TemporaryDirectory(prefix="azure-key-vault-")
        authority = trustme.CA()
        self.ca_bundle = str(Path(self._folder.name) / "ca.pem")
        authority.cert_pem.write_to_path(self.ca_bundle)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(self._tls)
        self._server = JsonServer(0, self._answer, self._tls)
        self._machine = JsonServer(0, self._machine_answer)
        self.port = self._server.port
        self.url = self.entra.issuer = f"https://127.0.0.1:{self.port}"
        # Its client sends a token only to a host below the domain that the challenge names: to anything.vault.azure.net
        # for vault.azure.net, and so to 127.0.0.1 for this.
        self.entra.audience = f"https://0.0.1:{self.port}"

    def __enter__(self) -> AzureKeyVaultDouble:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._server.stop()
        self._machine.stop()
        self._folder.cleanup()

    # -- how to reach it -----------------------------------------------------------------------------------------

    @property
    def environ(self) -> dict[str, str]:
        """The variables that `settings()` refers to."""
        return {"TEAM_VAULT_SECRET": self.reader.client_secret or ""}

    @property
    def machine_environ(self) -> dict[str, str]:
        """What makes Azure's clients take this for a virtual machine's identity endpoint."""
        return {"AZURE_POD_IDENTITY_AUTHORITY_HOST": f"http://127.0.0.1:{self._machine.port}"}

    def settings(self, **auth: str) -> dict[str, Any]:
        """The section `secrets.providers.azure`: log-in by client secret, unless `auth` says otherwise."""
        by_secret = {
            "method": "client_secret",
            "tenant_id": TENANT,
            "client_id": self.reader.client_id,
            "client_secret": "os.environ/TEAM_VAULT_SECRET",
            "authority": self.url,
        }
        return {"vault_url": self.url, "ca_bundle": self.ca_bundle, "auth": auth or by_secret}

    @property
    def connections_made(self) -> int:
        return self._server.accepted

    # -- what an administrator does ------------------------------------------------------------------------------

    def set(self, name: str, value: str, **attributes: Any) -> str:
        """A new version, and its id. `attributes` as in Version."""
        version = Version(value, **attributes)
        with self._lock:
            self._secrets.setdefault(name, []).append(version)
        return version.id

    def disable(self, name: str) -> None:
        self._secrets[name][-1].enabled = False

    def delete(self, name: str) -> None:
        with self._lock:
            self._deleted[name] = self._secrets.pop(name)

    def recover(self, name: str) -> None:
        with self._lock:
            self._secrets[name] = self._deleted.pop(name)

    def refuse(self, why: str, *names: str) -> None:
        """403 to all but the administrator, for all secrets or for these: rbac, policy, firewall, private."""
        self._refused |= dict.fromkeys(names or ("*",), why)

    def allow(self) -> None:
        """Undo `refuse`."""
        self._refused.clear()

    def throttle(self, times: int, retry_after: str | None = "2") -> None:
        """429 to the next requests."""
        headers = {"Retry-After": retry_after} if retry_after else {}
        text = "Request was not processed because too many requests were received. Reason: VaultRequestTypeLimitReached"
        self.fail(429, times, "Throttled", text, headers)

    def fail(
        self, status: int, times: int, code: str = "", text: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """An error to the next requests that come with a token."""
        self._next += [(status, headers or {}, {"error": {"code": code or "InternalError", "message": text}})] * times

    def garble(self, body: str) -> None:
        """A page in place of the next answer, with status 200."""
        self._next.append((200, {"Content-Type": "text/html"}, body))

    @contextmanager
    def away(self) -> Iterator[None]:
        """Nothing listens, and the connections are cut, for as long as the block lasts."""
        self._server.stop()
        try:
            yield
        finally:
            self._server = JsonServer(self.port, self._answer, self._tls)

    # -- the REST API --------------------------------------------------------------------------------------------

    def _machine_answer(self, request: Request) -> Answer:
        if urlsplit(request.path).path != "/metadata/identity/oauth2/token":
            return 404, {}, {}
        return self.entra.machine_answer(dict(request.headers.items()), request.query)

    def _answer(self, request: Request) -> Answer:
        path = urlsplit(request.path).path
        if path.startswith(f"/{TENANT}/") or "/oauth2/" in path or "/.well-known/" in path:
            return self.entra.answer(request.command, path, dict(parse_qsl(request.body.decode())))
        if self.delay:
            self._stopped.wait(self.delay)
        status, headers, body = self._vault_answer(request, path.strip("/").split("/"))
        with self._lock:
            self.requests.append((request.command, path, status))
        common = {
            "x-ms-keyvault-region": "westeurope",
            "x-ms-keyvault-service-version": "1.9.2411.1",
            "x-ms-request-id": str(uuid.uuid4()),
            "x-ms-client-request-id": request.headers.get("x-ms-client-request-id", ""),
            "Cache-Control": "no-cache",
        }
        return status, {**common, **headers}, body

    def _vault_answer(self, request: Request, parts: list[str]) -> Answer:
        if request.query.get("api-version") not in API_VERSIONS:
            return _error(400, "BadParameter", "The specified version is not recognized.")
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        caller = self.entra.caller(token) if scheme == "Bearer" else None
        if caller is None:
            text = "AKV10032: Invalid issuer or lifetime." if token else "AKV10000: Request is missing a Bearer token."
            where = f'authorization="{self.entra.issuer}/{TENANT}", resource="{self.entra.audience}"'
            return _error(401, "Unauthorized", text, headers={"WWW-Authenticate": f"Bearer {where}"})
        with self._lock:
            if self._next:
                return self._next.pop(0)
            if caller is not self.administrator and (refusal := self._refusal(caller, parts)) is not None:
                return refusal
            return self._operation(request, parts)

    def _refusal(self, caller: Application, parts: list[str]) -> Answer | None:
        name = parts[1] if len(parts) > 1 else ""
        why = self._refused.get(name) or self._refused.get("*")
        who = f"appid={caller.client_id};oid={caller.object_id};iss=https://sts.windows.net/{TENANT}/"
        if why == "rbac":
            text = (
                "Caller is not authorized to perform action on resource.\r\nIf role assignments, deny assignments or "
                f"role definitions were changed recently, please observe propagation time.\r\nCaller: {who}\r\n"
                "Action: 'Microsoft.KeyVault/vaults/secrets/getSecret/action'\r\nResource: '/subscriptions/0/"
                f"resourcegroups/team/providers/microsoft.keyvault/vaults/team-vault/secrets/{name}'\r\nAssignment: "
                "(not found)\r\nDenyAssignmentId: null\r\nDecisionReason: 'DeniedWithNoValidRBAC' \r\n"
                "Vault: team-vault;location=westeurope\r\n"
            )
            return _error(403, "Forbidden", text, "ForbiddenByRbac")
        if why == "policy":
            text = (
                f"The user, group or application '{who}' does not have secrets get permission on key vault "
                "'team-vault;location=westeurope'. For help resolving this issue, please see "
                "https://go.microsoft.com/fwlink/?linkid=2125287"
            )
            return _error(403, "Forbidden", text, "ForbiddenByPolicy")
        if why == "firewall":
            text = (
                "Client address is not authorized and caller is not a trusted service.\r\nClient address: 203.0.113.7"
                f"\r\nCaller: {who}\r\nVault: team-vault;location=westeurope"
            )
            return _error(403, "Forbidden", text, "ForbiddenByFirewall")
        if why == "private":
            text = (
                "Public network access is disabled and request is not from a trusted service nor via an approved "
                f"private link.\r\nCaller: {who}\r\nVault: team-vault;location=westeurope"
            )
            return _error(403, "Forbidden", text, "ForbiddenByConnection")
        return None

    def _operation(self, request: Request, parts: list[str]) -> Answer:
        match request.command, parts:
            case "GET", ["secrets", name] | ["secrets", name, ""]:
                return self._get(name, None)
            case "GET", ["secrets", name, "versions"]:
                return 200, {}, {"value": [self._item(name, one) for one in self._secrets.get(name, [])]}
            case "GET", ["secrets", name, version]:
                return self._get(name, version)
            case "GET", ["secrets"]:
                items = [self._item(name, versions[-1], False) for name, versions in sorted(self._secrets.items())]
                return 200, {}, {"value": items, "nextLink": None}
            case "PUT", ["secrets", name]:
                return self._put(name, json.loads(request.body))
            case "PATCH", ["secrets", name, *version]:
                return self._patch(name, "".join(version), json.loads(request.body))
            case "DELETE", ["secrets", name] if name in self._secrets:
                self.delete(name)
                return 200, {}, self._deleted_bundle(name)
            case "GET", ["deletedsecrets", name] if name in self._deleted:
                return 200, {}, self._deleted_bundle(name)
            case "DELETE", ["deletedsecrets", name] if name in self._deleted:
                del self._deleted[name]
                return 204, {}, None
            case "POST", ["deletedsecrets", name, "recover"] if name in self._deleted:
                self.recover(name)
                return 200, {}, self._item(name, self._secrets[name][-1])
            case _, ["secrets" | "deletedsecrets", name, *_]:
                return _not_found(name)
            case _:
                return _error(404, "NotFound", "Resource not found.")

    def _get(self, name: str, version: str | None) -> Answer:
        if version is not None and not re.fullmatch(r"[0-9a-f]{32}", version):
            return _error(400, "BadParameter", "The request URI contains an invalid version.")
        versions = self._secrets.get(name, [])
        found = next((one for one in reversed(versions) if version in (None, one.id)), None)
        if found is None:
            return _not_found(f"{name}/{version}" if version else name)
        if not found.enabled:
            return _error(403, "Forbidden", "Operation get is not allowed on a disabled secret.", "SecretDisabled")
        self.reads[name] += 1
        return 200, {}, {"value": found.value} | self._item(name, found)

    def _put(self, name: str, body: dict[str, Any]) -> Answer:
        if not _NAME.fullmatch(name):
            return _error(400, "BadParameter", "The request URI contains an invalid name.")
        if name in self._deleted:
            text = f"Secret {name} is currently in a deleted but recoverable state, and its name cannot be reused."
            return _error(409, "Conflict", text, "ObjectIsDeletedButRecoverable")
        given = body.get("attributes") or {}
        version = Version(
            body["value"],
            enabled=given.get("enabled", True),
            not_before=given.get("nbf"),
            expires=given.get("exp"),
            content_type=body.get("contentType"),
        )
        self._secrets.setdefault(name, []).append(version)
        return 200, {}, {"value": version.value} | self._item(name, version)

    def _patch(self, name: str, version: str, body: dict[str, Any]) -> Answer:
        versions = self._secrets.get(name, [])
        found = next((one for one in reversed(versions) if version in ("", one.id)), None)
        if found is None:
            return _not_found(name)
        given = body.get("attributes") or {}
        found.enabled = given.get("enabled", found.enabled)
        found.not_before = given.get("nbf", found.not_before)
        found.expires = given.get("exp", found.expires)
        return 200, {}, self._item(name, found)

    def _item(self, name: str, version: Version, with_version: bool = True) -> dict[str, Any]:
        url = f"{self.url}/secrets/{name}{f'/{version.id}' if with_version else ''}"
        kind = {"contentType": version.content_type} if version.content_type else {}
        return {"id": url, "attributes": version.attributes(), **kind}

    def _deleted_bundle(self, name: str) -> dict[str, Any]:
        now = int(time.time())
        dates = {"deletedDate": now, "scheduledPurgeDate": now + 90 * 86400}
        return {"recoveryId": f"{self.url}/deletedsecrets/{name}", **dates} | self._item(name, self._deleted[name][-1])


def _error(status: int, code: str, text: str, inner: str = "", headers: dict[str, str] | None = None) -> Answer:
    inside = {"innererror": {"code": inner}} if inner else {}
    return status, headers or {}, {"error": {"code": code, "message": text, **inside}}


def _not_found(name: str) -> Answer:
    text = (
        f"A secret with (name/id) {name} was not found in this key vault. If you recently deleted this secret you may "
        "be able to recover it using the correct recovery command. For help resolving this issue, please see "
        "https://go.microsoft.com/fwlink/?linkid=2125182"
    )
    return _error(404, "SecretNotFound", text)
