"""What Azure Key Vault's refusals mean: each error of its client as a SecretUnavailable.

Imports the Azure SDK; `secrets_manager.providers.azure` imports this only when a vault is configured.
"""

import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, cast

import requests
import urllib3
from azure.core.exceptions import (
    HttpResponseError,
    ServiceRequestError,
    ServiceRequestTimeoutError,
    ServiceResponseError,
    ServiceResponseTimeoutError,
)

from core.settings.reference import LATEST
from secrets_manager.provider import Reason, SecretUnavailable

ROLE = "Key Vault Secrets User"
"""The built-in role with the one data action we need, Microsoft.KeyVault/vaults/secrets/getSecret/action."""


class Refusal(SecretUnavailable):
    """A failed read: `what` is so, and what to `do` about it, for `doctor` to show apart."""

    def __init__(self, what: str, do: str, reason: Reason, *, retry_after: float | None = None) -> None:
        super().__init__(f"{what}: {do}" if do else what, reason, retry_after=retry_after)
        self.what = what
        self.do = do


def unavailable(error: Exception, name: str, version: str, vault: str) -> SecretUnavailable:
    """The failure of a read of `name` in our words. `vault` is the vault's name, for the commands that help."""
    cannot = f"azure://{name} cannot be read"
    if isinstance(error, Refusal):  # the log-in's
        return Refusal(f"{cannot}: {error.what}", error.do, error.reason, retry_after=error.retry_after)
    if isinstance(error, HttpResponseError) and error.status_code is not None:
        return _refused(error, error.status_code, name, version, vault)
    if isinstance(error, ServiceRequestError | ServiceResponseError):
        what = f"{cannot}: the vault {vault} does not answer, {network_cause(error)}"
        return Refusal(what, "check the network between here and the vault", Reason.UNREACHABLE)
    if isinstance(error, ValueError) and "challenge" in str(error):
        what = f"{cannot}: what answers for the vault {vault} wants a token for another domain, and got none"
        return Refusal(what, "check secrets.providers.azure.vault_url", Reason.MISCONFIGURED)
    # What the client raises for an answer that it cannot read, such as a proxy's page.
    what = f"{cannot}: the vault {vault} sent no valid answer ({type(error).__name__})"
    return Refusal(what, "look for a proxy or gateway in between", Reason.UNREACHABLE)


def _refused(error: HttpResponseError, status: int, name: str, version: str, vault: str) -> Refusal:
    code, inner, text = _body(error)
    what = f"azure://{name}"
    said = " ".join(filter(None, (f"HTTP {status}", inner or code)))
    if status == 404:
        which = "secret of this name" if version == LATEST else f"version {version} of it, or no such secret"
        return Refusal(
            f"{what} is not there, the vault {vault} has no {which}",
            f"create it, or if it was deleted, az keyvault secret recover --vault-name {vault} --name {name}",
            Reason.NOT_FOUND,
        )
    if status == 401:
        number = re.search(r"AKV\d+", text)
        return Refusal(
            f"{what} cannot be read: the vault {vault} does not accept our log-in ({number[0] if number else said})",
            "check that secrets.providers.azure.auth has the vault's tenant_id, and the authority of its cloud",
            Reason.UNAUTHENTICATED,
        )
    if status == 403:
        return _forbidden(name, vault, inner, text)
    if status == 429:
        return Refusal(
            f"{what} cannot be read now: the vault {vault} asks us to slow down (HTTP 429)",
            "a longer secrets.cache.ttl asks it less often",
            Reason.THROTTLED,
            retry_after=retry_after(getattr(error.response, "headers", {})),
        )
    if status == 408 or status >= 500:
        what = f"{what} cannot be read: the vault {vault} has trouble of its own ({said})"
        return Refusal(what, "see azure.status.microsoft if it lasts", Reason.UNREACHABLE)
    what = f"{what} cannot be read: what answers for the vault {vault} says {said}"
    return Refusal(what, "check that secrets.providers.azure.vault_url is a Key Vault's", Reason.MISCONFIGURED)


def _forbidden(name: str, vault: str, inner: str, text: str) -> Refusal:
    what = f"azure://{name}"
    attributes = f"az keyvault secret set-attributes --vault-name {vault} --name {name}"
    if inner == "SecretDisabled" or "disabled secret" in text:
        return Refusal(f"{what} is disabled", f"{attributes} --enabled true, or a new version", Reason.DISABLED)
    if inner == "SecretExpired":
        return Refusal(f"{what} has expired", f"put a new version into the vault {vault}", Reason.EXPIRED)
    if inner == "SecretNotYetValid":
        return Refusal(f"{what} is not valid yet", f"wait, or {attributes} --not-before <date>", Reason.NOT_YET_VALID)
    if inner == "ForbiddenByFirewall" or "Client address is not authorized" in text:
        found = re.search(r"Client address: ([0-9a-fA-F.:]+)", text)
        address = found[1] if found else "<our address>"
        return Refusal(
            f"{what} may not be read from {address}, by the firewall of the vault {vault}",
            f"az keyvault network-rule add --name {vault} --ip-address {address}",
            Reason.FORBIDDEN,
        )
    if inner == "ForbiddenByConnection" or "Public network access is disabled" in text:
        return Refusal(
            f"{what} may not be read from here, the vault {vault} is closed to public networks",
            "let its name resolve to its private endpoint here (zone privatelink.vaultcore.azure.net)",
            Reason.FORBIDDEN,
        )
    return _not_permitted(name, vault, inner, text)


def _not_permitted(name: str, vault: str, inner: str, text: str) -> Refusal:
    """Which permission is missing, for whom, and the command that grants it."""
    principal = re.search(r"\boid=([0-9a-fA-F-]{36})", text)
    application = re.search(r"\bappid=([0-9a-fA-F-]{36})", text)
    whom = principal[1] if principal else "<object id>"
    known_as = f" (client id {application[1]})" if application else ""
    role = f'the role "{ROLE}"'
    permission = 'the secret permission "Get" in the vault\'s access policies'
    give_role = (
        f'az role assignment create --role "{ROLE}" --assignee {whom} --scope '
        f'"$(az keyvault show --name {vault} --query id --output tsv)/secrets/{name}"'
    )
    give_permission = f"az keyvault set-policy --name {vault} --object-id {whom} --secret-permissions get"
    if inner == "ForbiddenByRbac" or "not authorized to perform action" in text:
        missing, do = role, f"{give_role}, then wait some minutes"
    elif inner in ("ForbiddenByPolicy", "AccessDenied") or "secrets get permission" in text or "access policy" in text:
        missing, do = permission, give_permission
    else:
        missing, do = f"{role} (or {permission})", f"{give_role} or {give_permission}"
    return Refusal(f"azure://{name} may not be read by {whom}{known_as}, {missing} is missing", do, Reason.FORBIDDEN)


def _body(error: HttpResponseError) -> tuple[str, str, str]:
    """The code, inner code and text of an error's body, as far as it is one of Key Vault's."""
    found: Any = None
    with suppress(Exception):  # a body that cannot be read is none
        found = json.loads(cast(Any, error.response).text())
    fields = _mapping(_mapping(found).get("error"))
    inner = _mapping(fields.get("innererror") or fields.get("innerError"))
    return _code(fields), _code(inner), str(fields.get("message") or "")


def _mapping(value: Any) -> Mapping[str, Any]:
    return cast(Mapping[str, Any], value) if isinstance(value, dict) else {}


def _code(fields: Mapping[str, Any]) -> str:
    """Only what looks like a code: this ends up in messages."""
    code = fields.get("code")
    return code if isinstance(code, str) and re.fullmatch(r"[A-Za-z]{1,64}", code) else ""


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait as an answer's Retry-After says, as a number or as a date."""
    said = headers.get("Retry-After")
    if not said:
        return None
    with suppress(ValueError):
        return max(0.0, float(said))
    with suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    return None


def network_cause(error: BaseException) -> str:
    """What went wrong on the way to a host."""
    if isinstance(error, ServiceRequestTimeoutError):
        return "no connection in time (connect_timeout)"
    if isinstance(error, ServiceResponseTimeoutError):
        return "no answer in time (read_timeout)"
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, urllib3.exceptions.NameResolutionError):
            return "its name cannot be resolved (DNS)"
        if isinstance(cause, requests.exceptions.SSLError | urllib3.exceptions.SSLError):
            reason = next((one.verify_message for one in causes if hasattr(one, "verify_message")), "")  # pyright: ignore
            trust = "; secrets.providers.azure.ca_bundle names the authorities to trust"
            return f"TLS failed{f': {reason}{trust}' if reason else ''}"
        if isinstance(cause, requests.exceptions.ProxyError):
            return "the proxy that HTTPS_PROXY names does not work"
        if isinstance(cause, ConnectionRefusedError):
            return "the connection was refused"
    for cause in causes:
        if isinstance(cause, OSError) and cause.strerror and not isinstance(cause, requests.RequestException):
            return cause.strerror
    return "the connection broke off"


def _causes(error: BaseException) -> list[BaseException]:
    """An exception and all that it stems from, in whatever way the libraries remember it."""
    found: list[BaseException] = []
    waiting: list[Any] = [error]
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, BaseException) and not any(one is other for other in found):
            found.append(one)
            inner = (getattr(one, "inner_exception", None), getattr(one, "reason", None))
            waiting += [*inner, *one.args, one.__cause__, one.__context__]
    return found
