"""The log-in at HashiCorp Vault: a token when one is first needed, kept alive, and replaced when it ends.

There is no thread for it: whoever reads a secret looks whether the token is due. Leases belong to the token they were
given to and end with it, so a session knows its own.
"""

import math
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from core.settings.models.secrets import AuthMethod, HashicorpAuth
from core.settings.reference import PREFIX
from secrets_manager.provider import Reason, SecretUnavailable
from secrets_manager.providers.hashicorp_connection import SECTION, Answer, Connection, resolved

_DUE = 2 / 3
"""Share of a token's life after which it is renewed; renewed to less than this share, it has come to its maximum."""
_DEAD = ("invalid token", "bad token", "token not found", "missing client token")


@dataclass(slots=True, eq=False)
class Session:
    """A token in use. `seconds` is the life it was given, infinite for one that does not end; times are the clock's."""

    client: Any = field(repr=False)  # hvac has no types
    token: str = field(repr=False)
    seconds: float
    ends: float
    renewable: bool
    due: float
    """When to renew it, or to log in anew."""
    looked_up: bool = False
    """Whether it could look itself up."""
    leases: set[str] = field(default_factory=set[str], repr=False)

    def prolonged(self, now: float, seconds: float) -> None:
        """It lives for `seconds` from now on."""
        self.seconds = max(self.seconds, seconds)  # it may have been half over when we got it
        self.ends, self.due = now + seconds, now + seconds * _DUE

    def put_off(self, now: float) -> None:
        """Try to renew it again later, in what it has left."""
        self.due = now + max((self.ends - now) * (1 - _DUE), 1.0)


class Login:
    """Gives the session to ask with. Threads that need one at the same time share one log-in, and its failure."""

    def __init__(
        self, connection: Connection, auth: HashicorpAuth, environ: Mapping[str, str], clock: Callable[[], float]
    ) -> None:
        self._connection = connection
        self._auth = auth
        self._environ = environ
        self._clock = clock
        self._mount = auth.mount or auth.method.value
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._flights: dict[Session | None, Future[Session]] = {}

    def session(self) -> Session:
        """The session in use, renewed if it is due. Raises SecretUnavailable."""
        session, now = self._session, self._clock()
        if session is not None and now < session.due:
            return session
        usable = session if session is not None and now < session.ends else None
        return self._shared(None, self._renewed_or_new, meanwhile=usable)

    def after_refusal(self, refused: Session) -> Session | None:
        """The session to try again with after Vault answered 403; None where the token is good, and only not allowed.

        Raises SecretUnavailable (UNAUTHENTICATED) where the token has ended and there is no way to another.
        """
        session = self._shared(refused, lambda: self._in_place_of(refused))
        return None if session is refused else session

    def _shared(self, key: Session | None, work: Callable[[], Session], meanwhile: Session | None = None) -> Session:
        """What `work` gives, done once for all threads that want it for the same `key` at the same time."""
        with self._lock:
            before, flight = self._session, self._flights.get(key)
            mine = flight is None
            if flight is None:
                flight = self._flights[key] = Future()
        if not mine:
            return meanwhile or flight.result()
        try:
            session = work()
        except BaseException as error:
            flight.set_exception(error)
            raise
        else:
            with self._lock:
                # Otherwise another flight was faster, and its session is as good.
                if self._session is before:
                    self._session = session
            flight.set_result(session)
            return session
        finally:
            with self._lock:
                del self._flights[key]

    def _renewed_or_new(self) -> Session:
        session, now = self._session, self._clock()
        if session is None or now >= session.ends:
            return self._new()
        if now < session.due or self._renewed(session, now):
            return session
        if self._auth.method is AuthMethod.TOKEN and self._token() == session.token:
            session.put_off(now)  # nobody but who gave it can replace it; it is good until it ends
            return session
        try:
            return self._new()
        except SecretUnavailable:
            session.put_off(now)
            return session

    def _renewed(self, session: Session, now: float) -> bool:
        if not session.renewable:
            return False
        try:
            answer = self._connection.ask(lambda: session.client.auth.token.renew_self())
        except SecretUnavailable:
            session.put_off(now)
            return True
        seconds = _number(answer.part("auth").get("lease_duration"))
        if answer.status != 200 or seconds <= 0:
            return False
        session.prolonged(now, seconds)
        return seconds >= session.seconds * _DUE

    def _in_place_of(self, refused: Session) -> Session:
        current = self._session
        if current is not None and current is not refused:
            return current
        answer = self._connection.ask(lambda: refused.client.auth.token.lookup_self())
        if answer.status == 200:
            return refused
        if self._auth.method is AuthMethod.TOKEN and self._token() == refused.token:
            # Vault says "invalid token" of one that has ended; older ones do not, so what it could do before counts.
            if not refused.looked_up and not _is_dead(answer):
                return refused
            refused.ends = refused.due = self._clock()
            raise self._dead()
        refused.ends = refused.due = self._clock()
        return self._new()

    def _new(self) -> Session:
        match self._auth.method:
            case AuthMethod.TOKEN:
                return self._with_token(self._token())
            case AuthMethod.APPROLE:
                role_id = resolved("auth.role_id", self._auth.role_id or "", self._environ)
                secret_id = self._credential("secret_id", self._auth.secret_id or "")
                login = self._connection.client().auth.approle.login
                return self._logged_in(lambda: login(role_id, secret_id, use_token=False, mount_point=self._mount))
            case AuthMethod.KUBERNETES:
                role = resolved("auth.role", self._auth.role or "", self._environ)
                jwt = self._service_account_token()
                login = self._connection.client().auth.kubernetes.login
                return self._logged_in(lambda: login(role, jwt, use_token=False, mount_point=self._mount))

    def _with_token(self, token: str) -> Session:
        client, now = self._connection.client(token), self._clock()
        answer = self._connection.ask(lambda: client.auth.token.lookup_self())
        before = self._session
        could = before is not None and before.token == token and before.looked_up
        if answer.status != 200 and (could or _is_dead(answer)):
            raise self._dead()
        # A token without the default policy may not look itself up. It may still be good for what it is for.
        data = answer.part("data")
        seconds = _number(data.get("ttl")) or math.inf
        session = Session(client, token, seconds, now + seconds, data.get("renewable") is True, now + seconds * _DUE)
        session.looked_up = answer.status == 200
        return session

    def _logged_in(self, login: Callable[[], Any]) -> Session:
        now = self._clock()
        answer = self._connection.ask(login)
        auth = answer.part("auth")
        token = auth.get("client_token")
        if answer.status != 200 or not isinstance(token, str) or not token:
            raise self._refused(answer)
        seconds = _number(auth.get("lease_duration")) or math.inf
        client = self._connection.client(token)
        return Session(client, token, seconds, now + seconds, auth.get("renewable") is True, now + seconds * _DUE)

    def _token(self) -> str:
        return self._credential("token", self._auth.token or f"{PREFIX}VAULT_TOKEN")

    def _credential(self, name: str, reference: str) -> str:
        """What a reference to a variable stands for now, so that one that was rotated works."""
        failure: SecretUnavailable | None = None
        value = ""
        try:
            value = resolved(f"auth.{name}", reference, self._environ).strip()
        except SecretUnavailable as error:
            failure = error
        if failure is not None:
            raise SecretUnavailable(str(failure), Reason.UNAUTHENTICATED)
        if not value.isascii() or not value.isprintable():
            message = f"{SECTION}.auth.{name}: what the variable holds cannot be sent; it has line ends or umlauts."
            raise SecretUnavailable(message, Reason.UNAUTHENTICATED)
        return value

    def _service_account_token(self) -> str:
        problem = "is empty"
        try:
            text = Path(self._auth.service_account_token).read_text("ascii").strip()
        except (OSError, ValueError) as error:
            text, problem = "", f"cannot be read ({type(error).__name__})"
        if not text:
            where = f"{SECTION}.auth.service_account_token ({self._auth.service_account_token})"
            message = f"{where} {problem}; is this a pod with a mounted service account token?"
            raise SecretUnavailable(message, Reason.UNAUTHENTICATED)
        return text

    def _dead(self) -> SecretUnavailable:
        name = (self._auth.token or f"{PREFIX}VAULT_TOKEN").removeprefix(PREFIX).removeprefix("env://")
        message = (
            f"{self._connection.place} does not accept the token in {name}: it has ended, was revoked or belongs to "
            "another namespace. Put a new one there, or log in with approle or kubernetes."
        )
        return SecretUnavailable(message, Reason.UNAUTHENTICATED)

    def _refused(self, answer: Answer) -> SecretUnavailable:
        where = f"{self._connection.place} refuses the log-in at auth/{self._mount} ({answer.status})"
        if answer.status == 200:
            why = "it asks for a second factor, which a program does not have; exempt the role from MFA."
        elif answer.status == 404 or "no handler for route" in answer.errors:
            why = f"no auth method is mounted there; name its path in {SECTION}.auth.mount."
        elif self._auth.method is AuthMethod.APPROLE:
            why = (
                "the role id or the secret id is wrong, used up or ended, or the role does not admit this address. Make"
                f" a new one: vault write -f auth/{self._mount}/role/<role>/secret-id."
            )
        else:
            why = (
                f"role {self._auth.role} does not admit this service account; see bound_service_account_names and "
                f"_namespaces in: vault read auth/{self._mount}/role/{self._auth.role}."
            )
        return SecretUnavailable(f"{where}: {why}", Reason.UNAUTHENTICATED)


def _is_dead(answer: Answer) -> bool:
    return any(mark in answer.errors for mark in _DEAD)


def _number(value: object) -> float:
    return float(cast("float", value)) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
