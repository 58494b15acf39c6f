"""HashiCorp Vault (and OpenBao) as a place that keeps secrets: KV version 2 and 1, and secrets made on demand."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from core.settings.models.secrets import HashicorpSecrets, VaultEngine
from core.settings.reference import LATEST
from secrets_manager.provider import Check, Fetched, Lease, Reason, SecretUnavailable
from secrets_manager.providers.hashicorp_connection import Answer, Connection, mapping
from secrets_manager.providers.hashicorp_diagnosis import diagnosis
from secrets_manager.providers.hashicorp_login import Login, Session
from secrets_manager.providers.hashicorp_mounts import Mounts, Place, stanza
from secrets_manager.value import SecretValue


class HashicorpVault:
    """Reads `hashicorp://<mount>/<path>`: a secret's fields as JSON, or the bare text of a KV secret whose one field is
    called `value`.

    Versions are numbers for KV version 2, empty for KV version 1, and the moment of making for secrets on demand.
    """

    def __init__(
        self, settings: HashicorpSecrets, environ: Mapping[str, str], *, clock: Callable[[], float] = time.time
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._connection = Connection(settings, environ)
        self._login = Login(self._connection, settings.auth, environ, clock)
        self._mounts = Mounts(settings.engines, settings.mount, lambda call: self._ask(call)[0])

    def fetch(self, identifier: str, version: str) -> Fetched:
        """One read, after a log-in where one is due. Raises SecretUnavailable."""
        try:
            return self._read(identifier, version)
        except SecretUnavailable as error:
            failure = error
        # Raised here so that nothing hangs on it, and anew because threads that share a log-in share its failure.
        message = f"hashicorp://{identifier}: {failure}"
        raise SecretUnavailable(message, failure.reason, retry_after=failure.retry_after)

    def renew(self, lease: Lease) -> Lease:
        """The lease, as long as its role gives and its token lives. Raises SecretUnavailable."""
        role = lease.id.rpartition("/")[0]
        session = self._login.session()
        if lease.id not in session.leases:
            message = f"The lease of {role} belongs to a log-in that has been replaced; read the secret anew."
            raise SecretUnavailable(message, Reason.EXPIRED)
        now = self._clock()
        answer, session = self._ask(lambda client: client.sys.renew_lease(lease.id, increment=0))
        if answer.status == 200:
            renewed = self._lease(answer, session, now)
            if renewed is not None:
                return renewed
        session.leases.discard(lease.id)
        if answer.status == 403:
            message = f"The token may not renew the lease of {role}. Add: {stanza('sys/leases/renew', 'update')}"
            raise SecretUnavailable(message, Reason.FORBIDDEN)
        message = f"The lease of {role} has ended or cannot be renewed ({answer.status}); read the secret anew."
        raise SecretUnavailable(message, Reason.EXPIRED)

    def diagnose(self, identifiers: Mapping[str, str]) -> Iterator[Check]:
        """What is right and wrong, from the settings to each secret; a secret that reading would make is not read."""
        return diagnosis(self._settings, self._connection, self._login, self._mounts, self.fetch, identifiers)

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    def _ask(self, call: Callable[[Any], Any]) -> tuple[Answer, Session]:
        """Vault's answer with a token that is good, and whose it was: 403 means that it is not allowed."""
        session = self._login.session()
        answer = self._connection.ask(lambda: call(session.client))
        if answer.status == 403:
            another = self._login.after_refusal(session)
            if another is not None:
                session = another
                answer = self._connection.ask(lambda: call(session.client))
        return answer, session

    def _read(self, identifier: str, version: str) -> Fetched:
        _check_version(version)
        place = self._mounts.place(identifier)
        if place is not None:
            _check_place(place, version)
            return self._outcome(place, version, *self._get(place, version))
        # Vault tells nobody which mounts there are who may read nothing in them. A policy that names one path exactly
        # is enough for it to tell, so this is for what stands between us and it.
        two, one = self._mounts.guesses(identifier)
        answer, session = self._get(two, version)
        if not _versions(answer):
            other, other_session = self._get(one, version)
            if other.status == 200:
                one = replace(one, engine=VaultEngine.DYNAMIC) if other.body.get("lease_id") else one
                self._mounts.learn(one)
                _check_place(one, version)
                return self._outcome(one, version, other, other_session)
            if answer.status == 403 and other.status == 403:
                raise SecretUnavailable(
                    f"the token may read nothing in '{two.mount}', or there is no such mount"
                    f"{self._inside()}. To allow it, add to its policy: {two.policy}"
                    f" (for KV version 1: {one.policy}).",
                    Reason.FORBIDDEN,
                )
            if answer.status == 404 and other.status == 404 and "no handler for route" in answer.errors:
                message = f"there is no mount '{two.mount}'{self._inside()}; see: vault secrets list."
                raise SecretUnavailable(message, Reason.NOT_FOUND)
            if answer.status == 403 and not _is_versioned(other):
                return self._outcome(one, version, other, other_session)
        else:
            self._mounts.learn(two)
        return self._outcome(two, version, answer, session)

    def _get(self, place: Place, version: str) -> tuple[Answer, Session]:
        if place.engine is not VaultEngine.KV2:
            return self._ask(lambda client: client.read(quote(place.api_path)))
        number = None if version == LATEST else int(version)
        return self._ask(
            lambda client: client.secrets.kv.v2.read_secret_version(
                place.path, number, mount_point=place.mount, raise_on_deleted_version=True
            )
        )

    def _outcome(self, place: Place, version: str, answer: Answer, session: Session) -> Fetched:
        now = self._clock()
        if answer.status == 200 and place.engine is VaultEngine.KV2 and not _versions(answer):
            self._mounts.forget(place)
            message = f"'{place.mount}' does not answer as KV version 2; correct it in 'engines', or leave it out."
            raise SecretUnavailable(message, Reason.MISCONFIGURED)
        if answer.status == 200:
            return self._fetched(place, answer, session, now)
        self._mounts.forget(place)
        raise self._failure(place, version, answer)

    def _fetched(self, place: Place, answer: Answer, session: Session, now: float) -> Fetched:
        data = answer.part("data")
        if place.engine is VaultEngine.KV2:
            metadata = _versions(answer)
            ends = _moment(metadata.get("deletion_time"))  # of delete_version_after
            return Fetched(_value(mapping(data.get("data")), place), str(metadata.get("version")), expires_at=ends)
        if place.engine is VaultEngine.KV1:
            return Fetched(_value(data, place), "")
        # A password that Vault rotates itself comes without a lease, and says when it last did.
        made = _moment(data.get("last_vault_rotation")) or now
        stamp = datetime.fromtimestamp(made, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return Fetched(_value(data, place), stamp, lease=self._lease(answer, session, now))

    def _lease(self, answer: Answer, session: Session, now: float) -> Lease | None:
        lease_id, seconds = answer.body.get("lease_id"), answer.body.get("lease_duration")
        if not isinstance(lease_id, str) or not lease_id or not isinstance(seconds, int) or seconds <= 0:
            return None
        renewable = answer.body.get("renewable") is True
        if renewable:
            session.leases.add(lease_id)
        # Vault revokes what a token was given when the token ends.
        return Lease(lease_id, max(min(float(seconds), session.ends - now), 0.0), renewable)

    def _failure(self, place: Place, version: str, answer: Answer) -> SecretUnavailable:
        deleted = _versions(answer)
        if answer.status == 404 and deleted:
            number = deleted.get("version")
            if deleted.get("destroyed") is True:
                what = f"version {number} is destroyed for good; put a new one: vault kv put."
            else:
                what = f"version {number} is deleted; put a new one, or: vault kv undelete -versions={number}."
            return SecretUnavailable(what, Reason.DISABLED)
        if answer.status == 403:
            where = f"the token may not read it{self._inside()}"
            return SecretUnavailable(f"{where}. Add to its policy: {place.policy}", Reason.FORBIDDEN)
        if answer.status == 404 and place.engine is VaultEngine.KV2:
            which = "" if version == LATEST else f", or no version {version} of it"
            message = f"there is no such secret in '{place.mount}'{self._inside()}{which}."
            return SecretUnavailable(message, Reason.NOT_FOUND)
        if answer.status == 404:
            message = f"there is no '{place.path}' in '{place.mount}'{self._inside()}."
            return SecretUnavailable(message, Reason.NOT_FOUND)
        if answer.status in {400, 405} and place.engine is VaultEngine.DYNAMIC:
            what = f"'{place.mount}' makes nothing at this path ({answer.status}); is the role's name right?"
            return SecretUnavailable(what, Reason.NOT_FOUND)
        message = f"{self._connection.place} does not take the request ({answer.status}); look at its log."
        return SecretUnavailable(message, Reason.MISCONFIGURED)

    def _inside(self) -> str:
        return f" (namespace {self._connection.namespace})" if self._connection.namespace else ""


def _versions(answer: Answer) -> Mapping[str, Any]:
    """What KV version 2 says of a version, also of a deleted one; empty in other answers."""
    metadata = mapping(answer.part("data").get("metadata"))
    return metadata if isinstance(metadata.get("version"), int) else {}


def _is_versioned(answer: Answer) -> bool:
    """Whether KV version 2 tells that it was asked as if it were version 1."""
    return "versioned" in answer.warnings


def _value(fields: Mapping[str, Any], place: Place) -> SecretValue:
    if not fields:
        raise SecretUnavailable(f"the secret in '{place.mount}' has no fields.", Reason.NOT_FOUND)
    only = fields.get("value") if len(fields) == 1 and place.engine is not VaultEngine.DYNAMIC else None
    return SecretValue(only if isinstance(only, str) and only else json.dumps(fields))


def _moment(text: object) -> float | None:
    """A time of Vault's (RFC 3339 with nanoseconds) in Unix seconds."""
    try:
        return datetime.fromisoformat(str(text)).timestamp() if text else None
    except ValueError:
        return None


def _check_version(version: str) -> None:
    if version != LATEST and not (version.isascii() and version.isdigit() and 0 < int(version) < 2**31):
        raise SecretUnavailable("versions are numbers from 1 on; write ?version=<number>.", Reason.NOT_FOUND)


def _check_place(place: Place, version: str) -> None:
    if not place.path:
        message = f"'{place.mount}' is a mount; write hashicorp://{place.mount}/<path>."
        raise SecretUnavailable(message, Reason.NOT_FOUND)
    if version != LATEST and place.engine is not VaultEngine.KV2:
        message = f"only KV version 2 keeps versions, and '{place.mount}' is not; leave ?version= out."
        raise SecretUnavailable(message, Reason.NOT_FOUND)
