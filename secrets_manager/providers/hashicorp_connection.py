"""The connection to HashiCorp Vault: hvac over one pool of connections, and what Vault's answers and failures mean.

hvac's exceptions carry whole bodies and lose the headers, so its clients are told to hand over the answers themselves.
What is raised here is raised outside of `except`, so that no exception of a library, which may hold a token or a value,
hangs on it.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from typing import Any, cast
from urllib.parse import urlsplit

from core.errors import ConfigError
from core.settings.models.secrets import HashicorpSecrets
from core.settings.reference import resolve_environ
from core.settings.urls import travels_in_the_clear
from secrets_manager.provider import Reason, SecretUnavailable

SECTION = "orchestration.secrets.providers.hashicorp"
_THREADS = 32
"""How many threads the resolver reads with; each may hold a connection."""
_STANDBY = {
    412: "has not caught up with the cluster yet (412)",
    472: "is the standby of a disaster recovery pair (472)",
    473: "is a performance standby and does not forward (473)",
}
_WITHOUT_A_BODY = {204, *range(300, 400), 412, 429, 472, 473}


@dataclass(frozen=True, slots=True)
class Answer:
    """What Vault answered; `body` may hold secrets. `errors` are Vault's own words, lower case, never shown."""

    status: int
    body: Mapping[str, Any] = field(repr=False)
    errors: str = field(repr=False, default="")
    retry_after: float | None = None

    def part(self, name: str) -> Mapping[str, Any]:
        """A mapping of the body; empty where it has none of this name."""
        return mapping(self.body.get(name))

    @property
    def warnings(self) -> str:
        return str(self.body.get("warnings") or "").lower()


class Connection:
    """hvac clients for one Vault, and one way to ask it. Thread-safe; nothing is asked before `ask`.

    Raises SecretUnavailable (MISCONFIGURED) when the settings or the environment do not tell where Vault is.
    """

    def __init__(self, settings: HashicorpSecrets, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._url = _url(settings, environ)
        self.namespace = resolved("namespace", settings.namespace, environ) if settings.namespace else None
        self._session = _session(settings)

    @property
    def place(self) -> str:
        """Where Vault is, as it may be shown: host and port, and the namespace."""
        inside = f", namespace {self.namespace}" if self.namespace else ""
        return f"Vault at {urlsplit(self._url).netloc.rpartition('@')[2]}{inside}"

    @property
    def in_the_clear(self) -> bool:
        """Whether tokens and values travel without TLS to another machine."""
        return travels_in_the_clear(self._url)

    def client(self, token: str = "", *, namespaced: bool = True) -> Any:  # hvac has no types
        """A client of hvac for a token, over the connections that all of them share."""
        import hvac  # pyright: ignore[reportMissingTypeStubs]
        import hvac.adapters  # pyright: ignore[reportMissingTypeStubs]

        cert, key = self._settings.client_cert, self._settings.client_key
        return hvac.Client(
            url=self._url,
            token=token,  # None would make hvac look for one in the environment
            cert=(cert, key or cert) if cert else (),  # pyright: ignore[reportArgumentType] # None: see token
            verify=self._settings.ca_cert or True,
            timeout=self._settings.timeout,  # pyright: ignore[reportArgumentType] # requests takes fractions
            session=self._session,
            adapter=hvac.adapters.RawAdapter,  # pyright: ignore[reportArgumentType] # inferred from the default
            namespace=self.namespace if namespaced else None,
            ignore_exceptions=True,
        )

    def ask(self, call: Callable[[], Any], *, health: bool = False) -> Answer:  # hvac has no types
        """The answer to one call of a client. Whatever says nothing about the secret itself becomes SecretUnavailable:
        no answer, 429, 5xx, sealed, standby. With `health`, every status is an answer.
        """
        started = time.monotonic()
        try:
            outcome = _answer(call())
        except Exception as error:  # requests lets errors of urllib3, ssl and the operating system through
            outcome = self._failure(error, time.monotonic() - started)
        if isinstance(outcome, Answer) and not health:
            outcome = self._refusal(outcome) or outcome
        if isinstance(outcome, SecretUnavailable):
            raise outcome
        return outcome

    def close(self) -> None:
        """Close all connections."""
        self._session.close()

    def _refusal(self, answer: Answer) -> SecretUnavailable | None:
        status, errors = answer.status, answer.errors
        if status == 429:
            return _unavailable(f"{self.place} asks to slow down (429).", Reason.THROTTLED, answer.retry_after)
        if status == 501 or "not initialized" in errors:
            return _unavailable(f"{self.place} is not initialised.", Reason.SEALED, answer.retry_after)
        if status == 503 and "sealed" in errors:
            return _unavailable(f"{self.place} is sealed; unseal it.", Reason.SEALED, answer.retry_after)
        if status == 403 and "has been locked" in errors:
            message = f"{self.place} is locked by an administrator; see: vault namespace unlock."
            return _unavailable(message, Reason.SEALED, answer.retry_after)
        standby = _STANDBY.get(status)
        if standby is None and (300 <= status < 400 or "disaster recovery" in errors or "dr secondary" in errors):
            standby = f"points elsewhere instead of answering ({status})"
        if standby is not None:
            message = f"{self.place} {standby}; let 'url' lead to the active node."
            return _unavailable(message, Reason.UNREACHABLE, answer.retry_after)
        if status >= 500:
            message = f"{self.place}, or what stands before it, has an error of its own ({status}); look at its log."
            return _unavailable(message, Reason.UNREACHABLE, answer.retry_after)
        return None

    def _failure(self, error: Exception, after: float) -> SecretUnavailable:
        import requests

        text = str(error)  # only looked at: it may repeat what was sent
        if isinstance(error, requests.Timeout):
            return _unavailable(f"{self.place} did not answer within {after:.1f} s.", Reason.UNREACHABLE)
        if isinstance(error, requests.exceptions.SSLError):
            return self._tls(text)
        if isinstance(error, requests.exceptions.ProxyError):
            message = f"The HTTP proxy on the way to {self.place} does not let us through; look at HTTPS_PROXY."
            return _unavailable(message, Reason.UNREACHABLE)
        if isinstance(error, requests.ConnectionError):
            if "NameResolutionError" in text or "getaddrinfo" in text:
                what = "'s name cannot be resolved; look at 'url' and at DNS."
            elif "refused" in text:
                what = " refuses the connection; is it running, and is the port right?"
            else:
                what = " broke the connection off."
            return _unavailable(self.place + what, Reason.UNREACHABLE)
        if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
            files = f"{SECTION}.ca_cert, client_cert or client_key"
            return _unavailable(f"A file of {files} cannot be read ({type(error).__name__}).", Reason.MISCONFIGURED)
        return _unavailable(f"{self.place} gave no usable answer ({type(error).__name__}).", Reason.UNREACHABLE)

    def _tls(self, text: str) -> SecretUnavailable:
        if any(mark in text for mark in ("NO_CERTIFICATE_OR_CRL_FOUND", "PEM lib", "NO_START_LINE", "BAD_END_LINE")):
            files = f"{SECTION}.ca_cert, client_cert or client_key"
            return _unavailable(f"A file of {files} is not PEM.", Reason.MISCONFIGURED)
        if "doesn't match" in text or "Hostname mismatch" in text or "IP address mismatch" in text:
            what = "its certificate is for another name; use the name of the certificate in 'url'."
        elif "CERTIFICATE_VERIFY_FAILED" in text and "expired" in text:
            what = "its certificate has expired."
        elif "CERTIFICATE_VERIFY_FAILED" in text:
            what = f"nobody we trust signed its certificate; name the CA's PEM file in {SECTION}.ca_cert."
        elif "CERTIFICATE_REQUIRED" in text or "alert" in text.lower():
            what = f"it does not take our side of TLS; does it want {SECTION}.client_cert?"
        else:
            what = "TLS failed; does it speak https?"
        return _unavailable(f"{self.place}: {what}", Reason.UNREACHABLE)


def mapping(value: object) -> Mapping[str, Any]:
    """A JSON object, and an empty one in place of anything else."""
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def resolved(name: str, value: str, environ: Mapping[str, str]) -> str:
    """A setting's value, or that of the variable it refers to. Raises SecretUnavailable (MISCONFIGURED)."""
    try:
        return resolve_environ(value, environ)
    except ConfigError as error:
        message = f"{SECTION}.{name}: {error}."
    raise SecretUnavailable(message, Reason.MISCONFIGURED)


def _url(settings: HashicorpSecrets, environ: Mapping[str, str]) -> str:
    if settings.url is None:
        raise SecretUnavailable(f"{SECTION}.url is not set, so there is no Vault to ask.", Reason.MISCONFIGURED)
    url = resolved("url", settings.url, environ).strip().rstrip("/")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and parts.hostname and "@" not in parts.netloc and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        message = f"{SECTION}.url is not the URL of a Vault; write https://<host>:<port>."
        raise SecretUnavailable(message, Reason.MISCONFIGURED)
    return url


def _session(settings: HashicorpSecrets) -> Any:
    """The connections; Any because requests has no types of its own."""
    missing = next((name for name in ("hvac", "requests") if find_spec(name) is None), None)
    if missing:
        message = f"hashicorp:// needs the package {missing}; install litellm-orchestration[vault]."
        raise SecretUnavailable(message, Reason.MISCONFIGURED)
    import requests
    from requests.adapters import HTTPAdapter

    class Session(requests.Session):
        """A standby node may send us to the active one, but never with the token out of TLS."""

        def get_redirect_target(self, resp: requests.Response) -> str | None:
            target = super().get_redirect_target(resp)
            down = target is not None and (resp.url or "").startswith("https:") and target.startswith("http:")
            return None if down else target

    session = Session()
    session.verify = settings.ca_cert or True
    session.auth = _no_other_credentials
    adapter = HTTPAdapter(pool_connections=2, pool_maxsize=_THREADS, max_retries=0)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session


def _no_other_credentials(request: Any) -> Any:
    """Without an `auth` of its own, requests sends what ~/.netrc has for the host."""
    return request


def _answer(response: Any) -> Answer:
    body: Any = None
    if response.content:
        try:
            body = response.json()
        except ValueError:
            body = None
    fields = mapping(body)
    # Vault answers in JSON. A page of somebody else, such as the 404 of an ingress, says nothing about the secret.
    if not fields and response.status_code < 500 and response.status_code not in _WITHOUT_A_BODY:
        return Answer(502, {})
    errors = " ".join(str(one) for one in fields.get("errors") or ()).lower()
    return Answer(response.status_code, fields, errors, _seconds(response.headers.get("Retry-After")))


def _seconds(retry_after: str | None) -> float | None:
    """A Retry-After header in seconds: it holds a number, or a date."""
    if not retry_after:
        return None
    try:
        return max(float(retry_after), 0.0) if retry_after.strip().isdigit() else _until(retry_after)
    except ValueError:
        return None


def _until(date: str) -> float:
    return max(parsedate_to_datetime(date).timestamp() - time.time(), 0.0)


def _unavailable(message: str, reason: Reason, retry_after: float | None = None) -> SecretUnavailable:
    return SecretUnavailable(message, reason, retry_after=retry_after)
