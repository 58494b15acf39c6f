"""What a double of Azure Key Vault needs of Microsoft Entra ID: applications that log in, and tokens to check.

Answers as documented: the v2.0 token endpoint with a client secret or a federated token, and the identity endpoint of
a virtual machine (IMDS). No sockets here; `azure_key_vault.py` has them.
"""

from __future__ import annotations

import base64
import json
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.support.json_server import Answer

TENANT = "72f988bf-0000-4000-8000-00000000aaaa"


@dataclass
class Application:
    """An application or a managed identity of the tenant."""

    client_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    object_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    client_secret: str | None = None
    secret_expired: bool = False
    federated_token: str | None = None
    """The assertion of a federated credential: what Kubernetes writes into the pod."""


class Entra:
    """One tenant. `issuer` is where it is reached; `audience` is what tokens for the vault are for."""

    def __init__(self) -> None:
        self.issuer = ""
        self.audience = ""
        self.lifetime = 3600
        self.tokens: dict[str, tuple[Application, float]] = {}
        self.log_ins: list[str] = []
        """The client ids that were given a token, in order."""
        self.asked = 0
        """How often the log-in host was asked for anything."""
        self.gate = threading.Event()
        """While it is cleared, the log-in host thinks."""
        self.gate.set()
        self.trouble: Answer | None = None
        self.machine_trouble: Answer | None = None
        self.machine_identity: Application | None = None
        self._applications: dict[str, Application] = {}
        self._lock = threading.Lock()

    def register(self, application: Application) -> Application:
        """Make an application known to the tenant."""
        self._applications[application.client_id] = application
        return application

    def caller(self, token: str) -> Application | None:
        """Who a token speaks for, while it is valid."""
        found = self.tokens.get(token)
        return found[0] if found and found[1] > time.time() else None

    def answer(self, method: str, path: str, form: Mapping[str, str]) -> Answer:
        """The log-in host's answer."""
        with self._lock:
            self.asked += 1
        self.gate.wait(30)
        if self.trouble is not None:
            return self.trouble
        tenant, _, rest = path.lstrip("/").partition("/")
        if tenant != TENANT:
            return _refusal(400, "invalid_request", 90002, f"Tenant '{tenant}' not found.")
        if method == "GET" and rest == "v2.0/.well-known/openid-configuration":
            base = f"{self.issuer}/{TENANT}"
            endpoints = {"token_endpoint": f"{base}/oauth2/v2.0/token", "issuer": f"{base}/v2.0"}
            return 200, {}, endpoints | {"authorization_endpoint": f"{base}/oauth2/v2.0/authorize"}
        if method == "POST" and rest == "oauth2/v2.0/token":
            return self._token(form)
        return 404, {}, {}

    def machine_answer(self, headers: Mapping[str, str], query: Mapping[str, str]) -> Answer:
        """The answer of a virtual machine's identity endpoint."""
        if self.machine_trouble is not None:
            return self.machine_trouble
        if headers.get("Metadata") != "true":
            return 400, {}, {"error": "invalid_request", "error_description": "Required metadata header not specified"}
        identity = self.machine_identity
        if identity is None or query.get("client_id", identity.client_id) != identity.client_id:
            return 400, {}, {"error": "invalid_request", "error_description": "Identity not found"}
        token = self.issue(identity)
        ends = str(int(time.time()) + self.lifetime)
        body = {"access_token": token, "client_id": identity.client_id, "expires_in": str(self.lifetime)}
        return 200, {}, body | {"expires_on": ends, "resource": query.get("resource", ""), "token_type": "Bearer"}

    def issue(self, application: Application) -> str:
        """A token of the application's, looking like the real ones."""
        now = int(time.time())
        claims = {"aud": self.audience, "iss": f"https://sts.windows.net/{TENANT}/", "iat": now}
        claims |= {"exp": now + self.lifetime, "appid": application.client_id, "oid": application.object_id}
        parts = ({"typ": "JWT", "alg": "RS256", "kid": "double"}, claims, uuid.uuid4().hex)
        token = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts)
        with self._lock:
            self.tokens[token] = (application, now + self.lifetime)
            self.log_ins.append(application.client_id)
        return token

    def _token(self, form: Mapping[str, str]) -> Answer:
        client_id = form.get("client_id", "")
        application = self._applications.get(client_id)
        if application is None:
            text = f"Application with identifier '{client_id}' was not found in the directory."
            return _refusal(400, "unauthorized_client", 700016, text)
        if "client_assertion" in form:
            if application.federated_token is None or form["client_assertion"] != application.federated_token:
                text = "No matching federated identity record found for presented assertion subject."
                return _refusal(401, "invalid_client", 700213, text)
        elif application.client_secret is None or form.get("client_secret") != application.client_secret:
            text = f"Invalid client secret provided for app '{client_id}'."
            return _refusal(401, "invalid_client", 7000215, text)
        elif application.secret_expired:
            return _refusal(
                401, "invalid_client", 7000222, f"The client secret keys for app '{client_id}' are expired."
            )
        if f"{self.audience}/.default" not in form.get("scope", "").split():
            return _refusal(400, "invalid_resource", 500011, "The resource principal was not found in the tenant.")
        token = self.issue(application)
        return 200, {}, {"token_type": "Bearer", "expires_in": self.lifetime, "access_token": token}


def _refusal(status: int, error: str, code: int, text: str) -> Answer:
    body = {"error": error, "error_codes": [code], "trace_id": str(uuid.uuid4()), "correlation_id": str(uuid.uuid4())}
    return status, {}, body | {"error_description": f"AADSTS{code}: {text} Trace ID: {body['trace_id']}"}
