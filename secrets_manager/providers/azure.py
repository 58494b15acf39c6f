"""Azure Key Vault: secrets of one vault, read with its own client, logged in at Microsoft Entra ID."""

import re
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from core.errors import ConfigError
from core.settings.models.secrets import AzureSecrets
from core.settings.reference import LATEST, resolve_environ
from secrets_manager.provider import Check, Fetched, Lease, Reason, SecretUnavailable
from secrets_manager.providers.azure_logs import left_out, watch_loggers
from secrets_manager.value import SecretValue

if TYPE_CHECKING:
    from azure.keyvault.secrets import SecretClient

_SECTION = "secrets.providers.azure"
_CONNECTIONS = 32
_LABEL = r"[A-Za-z0-9-]{1,63}"
_URL = re.compile(rf"https://{_LABEL}(\.{_LABEL})*(:[1-9][0-9]{{0,4}})?/?")
_VERSION = re.compile(r"[0-9a-f]{32}")
_SOON = 14 * 86400.0
"""Seconds before a secret's end from which `doctor` warns of it."""


class AzureKeyVault:
    """The secrets of one Azure Key Vault. Needs the package's extra `azure`.

    Raises SecretUnavailable (MISCONFIGURED) for settings that cannot work. A secret past its expiry date, or before
    its not-before date, is given like any other, as Azure does; the dates come with it and the resolver judges them.
    """

    def __init__(self, settings: AzureSecrets, environ: Mapping[str, str]) -> None:
        self._url = _vault_url(settings, environ)
        self._vault = (urlsplit(self._url).hostname or "").partition(".")[0]
        self._connect_timeout = settings.connect_timeout
        self._ca_bundle = _ca_bundle(settings, environ)
        self._method = settings.auth.method
        texts = {
            name: _text(f"auth.{name}", getattr(settings.auth, name), environ)
            for name in ("tenant_id", "client_id", "client_secret")
        }
        try:
            import requests
            import requests.adapters
            from azure.keyvault.secrets import SecretClient

            from secrets_manager.providers.azure_login import EntraCredential
        except ImportError as error:
            missing = (error.name or "azure").partition(".")[0]
            failure = _misconfigured(
                f"Azure Key Vault needs a package that is not installed ({missing}): install "
                "litellm-orchestration[azure]"
            )
        else:
            self._session = requests.Session()
            self._session.mount("https://", requests.adapters.HTTPAdapter(4, _CONNECTIONS))
            self._transport: dict[str, Any] = {
                "session": self._session,
                "session_owner": False,
                "connection_timeout": settings.connect_timeout,
                "read_timeout": settings.read_timeout,
                "connection_verify": self._ca_bundle or True,
            }
            watch_loggers()
            self._credential = EntraCredential(settings.auth, texts, environ, **self._transport)
            self._client_class = SecretClient
            self._of_thread = threading.local()
            return
        raise failure

    def fetch(self, identifier: str, version: str) -> Fetched:
        """The secret's value and dates; `version` is 32 hexadecimal digits, or "latest"."""
        if version != LATEST and not _VERSION.fullmatch(version):
            raise SecretUnavailable(
                f"azure://{identifier} has no version {version!r}: versions of Azure Key Vault are 32 hexadecimal "
                f"digits; see az keyvault secret list-versions --vault-name {self._vault} --name {identifier}",
                Reason.NOT_FOUND,
            )
        try:
            with left_out():
                found = self._client.get_secret(identifier, None if version == LATEST else version)
        except Exception as error:
            failure = self._unavailable(error, identifier, version)
        else:
            dates = found.properties
            return Fetched(
                SecretValue(found.value or ""),
                dates.version or "",
                dates.expires_on.timestamp() if dates.expires_on else None,
                dates.not_before.timestamp() if dates.not_before else None,
            )
        # Outside the handler: the client's exception holds the whole answer and must not travel along as context.
        raise failure

    def renew(self, lease: Lease) -> Lease:
        """Azure Key Vault has no leases."""
        raise _misconfigured("Azure Key Vault has no leases to renew")

    def diagnose(self, identifiers: Mapping[str, str]) -> Iterator[Check]:
        """Settings, network, log-in, and each secret; see the protocol."""
        from secrets_manager.providers.azure_network import reachable

        yield Check("ok", f"Azure Key Vault {self._url}, log-in by auth.method: {self._method}")
        for check in reachable(self._url, self._connect_timeout, self._ca_bundle):
            yield check
            if check.level == "error":
                return
        # A vault says whether we may read at all by how it answers for a secret that is not there.
        probes = identifiers or {"orchestration-doctor": LATEST}
        logged_in = False
        for identifier, version in probes.items():
            check, reason = self._can_read(identifier, version)
            if reason in (Reason.UNAUTHENTICATED, Reason.UNREACHABLE, Reason.MISCONFIGURED) and not logged_in:
                yield check
                return
            if not logged_in:
                logged_in = True
                yield Check("ok", f"logged in at Microsoft Entra ID by {self._credential.used}")
            if identifiers:
                yield check
            elif reason is Reason.NOT_FOUND:
                yield Check("ok", "secrets may be read; no reference to this vault is configured yet")
            else:
                yield check

    def close(self) -> None:
        """Let go of the connections. What is fetched afterwards opens new ones."""
        self._credential.close()
        self._session.close()

    @property
    def _client(self) -> "SecretClient":
        """This thread's client: two threads in one client can take its token from each other half-way."""
        client = getattr(self._of_thread, "client", None)
        if client is None:
            from azure.core.pipeline.transport import RequestsTransport

            client = self._of_thread.client = self._client_class(
                self._url,
                self._credential,
                transport=RequestsTransport(**self._transport),
                retry_total=0,  # the resolver tries again
                permit_redirects=False,
                logging_enable=False,  # that would log answers, and so values
            )
            watch_loggers()
        return client

    def _unavailable(self, error: Exception, identifier: str, version: str) -> SecretUnavailable:
        from secrets_manager.providers.azure_failures import unavailable

        return unavailable(error, identifier, version, self._vault)

    def _can_read(self, identifier: str, version: str) -> tuple[Check, Reason | None]:
        try:
            found = self.fetch(identifier, version)
        except SecretUnavailable as error:
            return Check("error", getattr(error, "what", str(error)), getattr(error, "do", "")), error.reason
        found.value.wipe()
        name, now = f"azure://{identifier}", time.time()
        renew = f"az keyvault secret set --vault-name {self._vault} --name {identifier} --expires <date> --file <file>"
        if found.expires_at is not None and found.expires_at <= now:
            return Check("error", f"{name} has expired", f"put in a new version: {renew}"), Reason.EXPIRED
        if found.not_before is not None and found.not_before > now:
            return Check("error", f"{name} is not valid yet", "wait for its not-before date"), Reason.NOT_YET_VALID
        if found.expires_at is not None and found.expires_at - now < _SOON:
            days = int((found.expires_at - now) // 86400)
            return Check(
                "warning", f"{name} can be read, but expires in {days} days", f"put in a new one: {renew}"
            ), None
        return Check("ok", f"{name} can be read, version {found.version}"), None


def _misconfigured(message: str) -> SecretUnavailable:
    return SecretUnavailable(f"{message}.", Reason.MISCONFIGURED)


def _text(field: str, value: str | None, environ: Mapping[str, str]) -> str | None:
    """A setting with its reference resolved; raises SecretUnavailable with its name, never with its value."""
    if value is None:
        return None
    try:
        return resolve_environ(value, environ)
    except ConfigError as error:
        failure = _misconfigured(f"{_SECTION}.{field}: {error}")
    raise failure


def _vault_url(settings: AzureSecrets, environ: Mapping[str, str]) -> str:
    if settings.vault_url is None:
        raise _misconfigured(
            f"{_SECTION}.vault_url is not set, nor is the environment variable AZURE_KEY_VAULT_URL; it is "
            "https://<name>.vault.azure.net/"
        )
    url = _text("vault_url", settings.vault_url, environ) or ""
    if not _URL.fullmatch(url):
        raise _misconfigured(f"{_SECTION}.vault_url must be https://<name>.vault.azure.net/ with nothing behind it")
    return url.rstrip("/")


def _ca_bundle(settings: AzureSecrets, environ: Mapping[str, str]) -> str | None:
    path = _text("ca_bundle", settings.ca_bundle, environ)
    if path is None:
        return None
    if not Path(path).is_file():
        raise _misconfigured(f"{_SECTION}.ca_bundle: there is no file {path}")
    try:
        ssl.create_default_context(cafile=path)
    except OSError:
        failure = _misconfigured(f"{_SECTION}.ca_bundle: {path} holds no certificates in PEM")
    else:
        return path
    raise failure
