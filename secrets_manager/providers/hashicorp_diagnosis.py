"""What `doctor secrets` says of HashiCorp Vault: from the settings over the log-in to each secret's policy."""

import math
from collections.abc import Callable, Iterator, Mapping

from core.settings.models.secrets import HashicorpSecrets, VaultEngine
from core.settings.reference import LATEST
from secrets_manager.provider import Check, Fetched, SecretUnavailable
from secrets_manager.providers.hashicorp_connection import Connection
from secrets_manager.providers.hashicorp_login import Login, Session
from secrets_manager.providers.hashicorp_mounts import Mounts, Place, stanza

_HEALTH: dict[int, tuple[str, str]] = {
    429: ("is a standby node", "It forwards reads to the active node; let 'url' lead to that one where it can."),
    473: ("is a performance standby", "Reads are served here; what is written elsewhere comes with a delay."),
}
_SICK: dict[int, tuple[str, str]] = {
    472: ("is the standby of a disaster recovery pair and gives no secrets", "Let 'url' lead to the primary cluster."),
    501: ("is not initialised", "Run: vault operator init."),
    503: ("is sealed", "Run: vault operator unseal."),
}
_SOON = 3600.0


def diagnosis(
    settings: HashicorpSecrets,
    connection: Connection,
    login: Login,
    mounts: Mounts,
    fetch: Callable[[str, str], Fetched],
    identifiers: Mapping[str, str],
) -> Iterator[Check]:
    """The checks in the order in which one thing needs the other; it stops where nothing further can be found out."""
    yield Check("ok", f"Settings: {connection.place}, log-in by {settings.auth.method}.")
    if connection.in_the_clear:
        yield Check("warning", "The token and the secrets travel without TLS.", "Use https:// in 'url'.")
    health = _health(connection)
    yield health
    if health.level == "error":
        return
    try:
        session = login.session()
        yield from _token(connection, session)
    except SecretUnavailable as error:
        yield Check("error", f"Log-in by {settings.auth.method} failed ({error.reason}).", str(error))
        return
    for identifier, version in identifiers.items():
        try:
            yield from _secret(connection, session, mounts, fetch, identifier, version)
        except SecretUnavailable as error:
            yield Check("error", f"hashicorp://{identifier} cannot be read ({error.reason}).", str(error))


def _health(connection: Connection) -> Check:
    # The path exists in the root namespace alone.
    client = connection.client(namespaced=False)
    try:
        answer = connection.ask(lambda: client.sys.read_health_status(method="GET"), health=True)
    except SecretUnavailable as error:
        return Check("error", f"{connection.place} cannot be reached ({error.reason}).", str(error))
    if answer.status in _SICK:
        what, do = _SICK[answer.status]
        return Check("error", f"{connection.place} {what}.", do)
    if answer.status in _HEALTH:
        what, do = _HEALTH[answer.status]
        return Check("warning", f"{connection.place} {what}.", do)
    if answer.status != 200 or "sealed" not in answer.body:
        what = f"{connection.place} does not tell its health ({answer.status})."
        return Check("warning", what, "Is it a Vault, and may this machine ask /v1/sys/health?")
    return Check("ok", f"{connection.place} is unsealed and active, version {answer.body.get('version', 'unknown')}.")


def _token(connection: Connection, session: Session) -> Iterator[Check]:
    answer = connection.ask(lambda: session.client.auth.token.lookup_self())
    if answer.status != 200:
        do = f"Add to its policy: {stanza('auth/token/lookup-self', 'read')} (the policy 'default' has it)."
        yield Check("warning", "The token may not look itself up, so when it ends is not known.", do)
        return
    data = answer.part("data")
    policies = sorted({str(one) for name in ("policies", "identity_policies") for one in data.get(name) or ()})
    life = "does not end" if session.ends == math.inf else f"lives for {data.get('ttl')} s"
    life += ", renewable" if data.get("renewable") is True else ""
    yield Check("ok", f"Logged in; policies: {', '.join(policies)}; the token {life}.")
    if "root" in policies:
        yield Check("warning", "The token may do everything.", "Use a token whose policy reads these secrets alone.")
    if not session.renewable and session.ends < math.inf and data.get("path") in (None, "auth/token/create"):
        urgent = "error" if float(data.get("ttl") or 0) < _SOON else "warning"
        do = "Make a periodic one: vault token create -period=24h -policy=<policy>; or log in with approle."
        yield Check(urgent, f"The token ends in {data.get('ttl')} s and cannot be renewed.", do)


def _secret(
    connection: Connection,
    session: Session,
    mounts: Mounts,
    fetch: Callable[[str, str], Fetched],
    identifier: str,
    version: str,
) -> Iterator[Check]:
    place = mounts.place(identifier)
    if place is not None and place.path and (missing := _missing(connection, session, place)) is not None:
        yield missing
        return
    if place is not None and place.path and place.engine is VaultEngine.DYNAMIC and version == LATEST:
        yield Check("ok", f"hashicorp://{identifier} may be made; it was not, since that gives out a new secret.")
        return
    fetched = fetch(identifier, version)
    kept = f"version {fetched.version}" if fetched.version else "without versions"
    fetched.value.wipe()
    yield Check("ok", f"hashicorp://{identifier} can be read, {kept}.")


def _missing(connection: Connection, session: Session, place: Place) -> Check | None:
    """What the policy lacks; None when it has it, or when we may not ask."""
    answer = connection.ask(lambda: session.client.sys.get_capabilities([place.api_path]))
    found = answer.body.get(place.api_path) or answer.part("data").get(place.api_path)
    if answer.status != 200 or not found or "root" in found or ("read" in found and "deny" not in found):
        return None
    what = f"The token's policies do not allow to read {place.api_path} (they give: {', '.join(found)})."
    return Check("error", what, f"Add to one of them: {place.policy}")
