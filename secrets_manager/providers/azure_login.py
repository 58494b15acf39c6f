"""Logging in at Microsoft Entra ID: one log-in for all threads, and why it failed in words that hold no secret.

Imports the Azure SDK; `secrets_manager.providers.azure` imports this only when a vault is configured.
"""

import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

from azure.core.credentials import AccessToken, AccessTokenInfo, TokenRequestOptions
from azure.core.exceptions import AzureError, ClientAuthenticationError
from azure.core.pipeline.transport import RequestsTransport
from azure.identity import (
    ClientSecretCredential,
    DefaultAzureCredential,
    ManagedIdentityCredential,
    WorkloadIdentityCredential,
)

from core.settings.models.secrets import AzureAuth, AzureLogIn
from secrets_manager.provider import Reason, SecretUnavailable
from secrets_manager.providers.azure_failures import Refusal, network_cause, retry_after
from secrets_manager.providers.azure_logs import left_out, watch_loggers
from secrets_manager.value import MASK, MaskedText

_RENEW_BEFORE_END = 300.0
"""Seconds before its end from which a token is replaced: the Azure SDK's own margin."""
_TRY_AGAIN_AFTER = 30.0
"""Seconds after a log-in that failed for which a token near its end is used without another try."""

_WORKLOAD_VARIABLES = {"tenant_id": "AZURE_TENANT_ID", "client_id": "AZURE_CLIENT_ID"}
_TOKEN_FILE = "AZURE_FEDERATED_TOKEN_FILE"  # noqa: S105 - a variable's name

_WHAT_TO_DO = {
    AzureLogIn.DEFAULT: "set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET, give this machine a managed "
    "identity, or run `az login`",
    AzureLogIn.MANAGED_IDENTITY: "assign a managed identity to this machine, container or app, and check "
    "secrets.providers.azure.auth.client_id where it is a user-assigned one",
    AzureLogIn.CLIENT_SECRET: "check tenant_id, client_id and client_secret under secrets.providers.azure.auth",
    AzureLogIn.WORKLOAD_IDENTITY: "check that the pod's service account is the one of the identity's federated "
    "credential (az identity federated-credential list)",
}
_CODES = {
    "AADSTS7000215": "the client secret is wrong; put its value, not its id, into the variable",
    "AADSTS7000222": "the client secret has expired; make a new one: az ad app credential reset --id <client id>",
    "AADSTS700016": "the tenant has no application with this client id; check client_id and tenant_id",
    "AADSTS90002": "there is no such tenant in this cloud; check tenant_id and authority",
    "AADSTS70021": "no federated credential of the identity fits this token's issuer, subject and audience",
    "AADSTS700213": "no federated credential of the identity fits this token's subject",
    "AADSTS700024": "the federated token has expired; check that its file is renewed",
    "AADSTS53003": "a conditional access policy blocks this log-in",
}
"""What to do about the commonest refusals: learn.microsoft.com/entra/identity-platform/reference-error-codes."""


@dataclass(slots=True)
class _Trouble:
    """What went wrong between us and a log-in host."""

    host: str
    cause: str
    reason: Reason
    retry_after: float | None = None


class _WatchedTransport(RequestsTransport):
    """Remembers trouble with the network, which the credentials wrap into sentences about authentication."""

    trouble: _Trouble | None = None

    # The base class declares overloads by its two kinds of request; this passes on whichever comes.
    def send(self, request: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        url = urlsplit(str(request.url))
        send = cast(Callable[..., Any], super().send)  # pyright: ignore[reportUnknownMemberType]
        try:
            response = send(request, **kwargs)
        except AzureError as error:
            # Plain http is the machine's own identity endpoint: its silence means that there is no identity.
            if url.scheme == "https":
                self.trouble = _Trouble(url.netloc, network_cause(error), Reason.UNREACHABLE)
            raise
        if response.status_code == 429:
            pause = retry_after(response.headers)
            self.trouble = _Trouble(url.netloc, "it asks us to slow down (HTTP 429)", Reason.THROTTLED, pause)
        elif response.status_code >= 500 or response.status_code == 410:
            self.trouble = _Trouble(url.netloc, f"it answers HTTP {response.status_code}", Reason.UNREACHABLE)
        return response


class _Token(AccessTokenInfo):
    """A token whose repr does not show it."""

    def __repr__(self) -> str:
        return f"AccessTokenInfo({MASK!r}, expires_on={self.expires_on})"


class EntraCredential:
    """A credential of the Azure SDK that many threads share: they wait for one log-in, and for its failure too.

    Raises SecretUnavailable alone. `used` names the credential that gave the last token, for people to read.
    """

    def __init__(
        self, auth: AzureAuth, texts: Mapping[str, str | None], environ: Mapping[str, str], **transport: Any
    ) -> None:
        """`texts` are the fields of `auth` with their references resolved; `transport` goes to the HTTP transport."""
        self._method = auth.method
        self._transport = _WatchedTransport(**transport)
        self._lock = threading.Lock()
        self._tokens: dict[tuple[object, ...], AccessTokenInfo] = {}
        self._given = threading.local()
        self._failure: Refusal | None = None
        self._failed_at = float("-inf")
        self.used = ""
        options: dict[str, Any] = {"transport": self._transport, "retry_total": 0}
        if auth.authority is not None:
            # Whoever names an authority trusts it; asking the public cloud about it would fail in a closed network.
            options |= {"authority": auth.authority, "disable_instance_discovery": True}
        # A credential keeps its tokens and would give a refused one again: then it is made anew.
        self._make: Callable[[], Any] = lambda: _credential(auth, texts, environ, options)
        try:
            with left_out():
                self._credential = self._make()
        except ValueError:
            message = "secrets.providers.azure.auth: the tenant id, client id or authority is not a valid one"
            failure = SecretUnavailable(message, Reason.MISCONFIGURED)
        else:
            return
        raise failure

    def get_token_info(self, *scopes: str, options: TokenRequestOptions | None = None) -> AccessTokenInfo:
        """A token: from memory where it is good for a while yet, or where no other can be had and it is still valid."""
        asked_at = time.monotonic()
        asked: TokenRequestOptions = options or {}
        key = (*scopes, asked.get("tenant_id"))
        with self._lock:
            token = self._tokens.get(key)
            good = token is not None and _lasts(token, _RENEW_BEFORE_END)
            # A thread's client that asks for what it was given has had it refused. Claims are what the vault missed.
            refused = good and token is getattr(self._given, "token", None)
            usable = token is not None and _lasts(token, 0) and not refused and not asked.get("claims")
            if token is not None and usable and (good or time.monotonic() < self._failed_at + _TRY_AGAIN_AFTER):
                return self._give(token)
            if self._failure is not None and self._failed_at > asked_at:
                failure = self._failure  # somebody else's try ended while this one waited for it
            else:
                given = self._log_in(scopes, asked, anew=refused)
                if isinstance(given, AccessTokenInfo):
                    self._tokens[key] = given
                    return self._give(given)
                failure = self._failure = given
                self._failed_at = time.monotonic()
            if token is not None and usable:
                return self._give(token)
        raise Refusal(failure.what, failure.do, failure.reason, retry_after=failure.retry_after)

    def get_token(self, *scopes: str, claims: str | None = None, tenant_id: str | None = None, **_: Any) -> AccessToken:
        """As `get_token_info`: the older form of a credential."""
        asked: TokenRequestOptions = {}
        if claims:
            asked["claims"] = claims
        if tenant_id:
            asked["tenant_id"] = tenant_id
        token = self.get_token_info(*scopes, options=asked)
        return AccessToken(token.token, token.expires_on)

    def close(self) -> None:
        self._credential.close()

    def _give(self, token: AccessTokenInfo) -> AccessTokenInfo:
        self._given.token = token
        return token

    def _log_in(self, scopes: tuple[str, ...], asked: TokenRequestOptions, *, anew: bool) -> AccessTokenInfo | Refusal:
        self._transport.trouble = None
        watch_loggers()
        try:
            if anew:
                self._credential = self._make()
            token = self._credential.get_token_info(*scopes, options=asked)
        except Exception as error:  # the chain of credentials lets anything through
            return self._failed(error)
        chosen = getattr(self._credential, "_successful_credential", None) or self._credential
        self.used = type(chosen).__name__
        text = MaskedText(token.token)
        return _Token(text, token.expires_on, token_type=token.token_type, refresh_on=token.refresh_on)

    def _failed(self, error: Exception) -> Refusal:
        """The failure in our words: the library's may quote whatever a host answered."""
        trouble = self._transport.trouble
        if trouble is not None:
            what = f"the log-in at {trouble.host} failed, {trouble.cause}"
            do = "" if trouble.reason is Reason.THROTTLED else "check the network between here and that host"
            return Refusal(what, do, trouble.reason, retry_after=trouble.retry_after)
        text = str(error)
        code = re.search(r"AADSTS\d+", text)
        if code is not None:
            message = f"Microsoft Entra ID refuses the log-in ({code[0]})"
            do = _CODES.get(code[0], _WHAT_TO_DO[self._method])
        elif tenant := re.search(r"not configured to acquire tokens for tenant ([\w.-]+)\.", text):
            message = "the vault belongs to another tenant than the log-in"
            do = f"set secrets.providers.azure.auth.tenant_id to {tenant[1]}, with an application of that tenant"
        elif tried := re.findall(r"\n\t(\w+)", text):
            message = f"none of the Azure SDK's credentials gave a log-in ({', '.join(tried)})"
            do = _WHAT_TO_DO[self._method]
        elif isinstance(error, ClientAuthenticationError | ValueError):
            message = f"no credential was found (auth.method: {self._method})"
            do = _WHAT_TO_DO[self._method]
        else:
            message = f"the log-in failed ({type(error).__name__}, auth.method: {self._method})"
            do = _WHAT_TO_DO[self._method]
        return Refusal(message, do, Reason.UNAUTHENTICATED)


def _lasts(token: AccessTokenInfo, seconds: float) -> bool:
    """Whether it is valid for longer than that."""
    return token.expires_on - time.time() > seconds


def _credential(
    auth: AzureAuth, texts: Mapping[str, str | None], environ: Mapping[str, str], options: dict[str, Any]
) -> Any:
    """The Azure SDK's credential for a method. Raises ValueError for what it would not take."""
    client = texts["client_id"]
    if auth.method is AzureLogIn.CLIENT_SECRET:
        secret = MaskedText(texts["client_secret"] or "")
        return ClientSecretCredential(texts["tenant_id"] or "", client or "", secret, **options)
    if auth.method is AzureLogIn.MANAGED_IDENTITY:
        return ManagedIdentityCredential(client_id=client, **options)
    if auth.method is AzureLogIn.WORKLOAD_IDENTITY:
        found = {name: texts[name] or environ.get(variable) for name, variable in _WORKLOAD_VARIABLES.items()}
        file = environ.get(_TOKEN_FILE)
        missing = [_WORKLOAD_VARIABLES[name] for name, value in found.items() if not value]
        if missing or not file:
            names = ", ".join([*missing, *([] if file else [_TOKEN_FILE])])
            raise SecretUnavailable(
                f"secrets.providers.azure.auth.method: workload_identity needs the environment variables {names}; "
                'the label azure.workload.identity/use: "true" on the pod sets them',
                Reason.MISCONFIGURED,
            )
        return WorkloadIdentityCredential(**found, token_file_path=file, **options)
    if client is not None:
        options = {**options, "managed_identity_client_id": client}
    return DefaultAzureCredential(**options)
