"""Whom LiteLLM's own authentication has accepted a moment ago, for what."""

import marshal
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import orjson

from core.asgi import Scope

_MOST = 4096

SAID = frozenset(
    {b"x-task-type", b"x-priority", b"x-session-id", b"x-user-id", b"x-user-tier", b"cache-control", b"content-type"}
)
"""Headers that we read ourselves, and LiteLLM's authentication does not."""
HARMLESS = SAID | {
    *(b"accept", b"accept-encoding", b"accept-language", b"connection", b"content-length", b"date", b"host"),
    *(b"keep-alive", b"pragma", b"te", b"transfer-encoding", b"user-agent", b"expect", b"priority", b"dnt"),
    *(b"traceparent", b"tracestate", b"baggage", b"x-request-id", b"x-correlation-id", b"x-amzn-trace-id"),
    *(b"x-request-start", b"x-b3-traceid", b"x-b3-spanid", b"x-b3-parentspanid", b"x-b3-sampled", b"b3"),
    *(b"cf-ray", b"x-cloud-trace-context", b"sentry-trace", b"idempotency-key"),
    *(b"x-stainless-arch", b"x-stainless-async", b"x-stainless-lang", b"x-stainless-os", b"x-stainless-runtime"),
    *(b"x-stainless-package-version", b"x-stainless-read-timeout", b"x-stainless-retry-count"),
    *(b"x-stainless-runtime-version", b"x-stainless-timeout", b"x-stainless-helper-method"),
    *(b"anthropic-version", b"anthropic-beta", b"openai-beta"),
}
"""Headers that say nothing of who asks. Any other may: configurations choose headers for keys, users and addresses."""

_BY_VALUE = 2
_IN_BODY = ("model", "user", "safety_identifier", "tags")
_IN_METADATA = ("user_id", "user", "tags")
_METADATA_IN_BODY = ("metadata", "litellm_metadata")
_ELSEWHERE = frozenset(_IN_BODY[1:]).union(_METADATA_IN_BODY)
"""All but the model."""


def who(scope: Scope) -> bytes:
    """A digest of all that tells a caller from others before the body is read: credentials, address, path."""
    peer = scope.get("client")
    told = [header for header in scope["headers"] if header[0] not in HARMLESS]
    # As bytes that say nothing else, by what is quickest; the version whose bytes depend on the values alone.
    whole = marshal.dumps((scope["path"], scope.get("query_string"), peer and peer[0], told), _BY_VALUE)
    return blake2b(whole, digest_size=16).digest()


def fingerprint(caller: bytes, body: Mapping[str, Any]) -> bytes:
    """`who` with what LiteLLM's authentication takes from a body: the model, and on whose behalf it is asked."""
    model = body.get("model")
    if isinstance(model, str) and model and _ELSEWHERE.isdisjoint(body):
        return caller + model.encode("utf-8", "surrogatepass")  # longer than any digest
    said: list[Any] = [body.get(name) for name in _IN_BODY]
    for place in _METADATA_IN_BODY:
        metadata = body.get(place)
        if isinstance(metadata, dict):
            said += [metadata.get(name) for name in _IN_METADATA]
        elif metadata is not None:
            said.append(metadata)
    return blake2b(caller + orjson.dumps(said), digest_size=16).digest()


@dataclass(slots=True)
class Identity:
    """What LiteLLM said of a caller; Any because the class is LiteLLM's. `until` is by the monotonic clock."""

    auth: Any
    guardrails: tuple[str, ...]
    until: float


class Identities:
    """By `fingerprint`. Only what LiteLLM has accepted comes in here, and `forget` empties it at once.

    `ttl` gives the seconds after which a key that was revoked without our seeing it is out, 0 where none is remembered.
    """

    def __init__(
        self,
        ttl: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.generation = 0
        """Counts how often all was forgotten: whoever was accepted before that is not remembered after it."""
        self._clock = clock
        self._wall = wall
        self._ttl = ttl
        self._basis: object = None
        self._known: OrderedDict[bytes, Identity] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def of(self, fingerprint: bytes) -> Identity | None:
        found = self._known.get(fingerprint)
        return found if found is not None and self.holds(found) else None

    def holds(self, identity: Identity) -> bool:
        return self._clock() < identity.until

    def remember(self, fingerprint: bytes, auth: Any, since: int) -> Identity:
        """LiteLLM has accepted a request; `since` is the `generation` when that began. Returns who it is, whether or
        not that is remembered."""
        seconds = self._ttl()
        expires = getattr(auth, "expires", None)
        if expires is not None and (until := _time_of(expires)) is not None:
            seconds = min(seconds, until - self._wall())
        identity = Identity(auth, guardrails_of(auth), 0.0)
        if since != self.generation or seconds <= 0:
            return identity
        identity.until = self._clock() + seconds
        self._known[fingerprint] = identity
        self._known.move_to_end(fingerprint)
        if len(self._known) > _MOST:
            _, oldest = self._known.popitem(last=False)
            oldest.until = 0.0
        return identity

    def under(self, settings: object) -> None:
        """These settings are in force: whoever was accepted under others is forgotten."""
        if settings is not self._basis:
            if self._basis is not None:
                self.forget()
            self._basis = settings

    def forget(self) -> None:
        """Something was changed about keys, users or teams."""
        self.generation += 1
        for identity in self._known.values():
            identity.until = 0.0
        self._known.clear()


def _time_of(expires: Any) -> float | None:
    """Unix seconds of LiteLLM's `expires`: a time, or its text; without a zone it is UTC."""
    if isinstance(expires, str):
        try:
            expires = datetime.fromisoformat(expires)
        except ValueError:
            return 0.0
    if not isinstance(expires, datetime):
        return None
    return (expires if expires.tzinfo is not None else expires.replace(tzinfo=UTC)).timestamp()


_METADATA = ("metadata", "team_metadata", "project_metadata")
_OF_ANSWERS = (  # in the order in which they stand in a key
    *("guardrails", "policies", "disable_global_guardrails", "opted_out_global_guardrails", "tags"),
    *("model_config", "prompt_id", "logging", "disable_fallbacks"),
)
_NAMES_OF_ANSWERS = frozenset(_OF_ANSWERS)


def guardrails_of(auth: Any) -> tuple[str, ...]:
    """What a key, its team and project bring along that may change an answer, as texts for a key of the cache."""
    found: list[str] = []
    for place in _METADATA:
        metadata = getattr(auth, place, None)
        if metadata and isinstance(metadata, Mapping) and not _NAMES_OF_ANSWERS.isdisjoint(metadata):
            found += [
                f"{place}.{name}={orjson.dumps(metadata[name], default=str).decode()}"
                for name in _OF_ANSWERS
                if metadata.get(name)
            ]
    return tuple(found)


CHANGES = (
    *("/key/", "/team/", "/user/", "/organization/", "/customer/", "/end_user/", "/budget/", "/project/", "/jwt/"),
    *("/scim/", "/sso/", "/tag/", "/config/", "/guardrails", "/policies", "/policy/", "/model/", "/access_group"),
    *("/v1/access_group", "/permissions", "/orchestration/", "/global/", "/invitation/", "/model_group/", "/prompts"),
)
"""Beginnings of the routes on which anything but a look may change what a key may do, or what it gets."""


def may_change(method: str, path: str) -> bool:
    """Whether a request may change what is remembered of callers."""
    return method not in ("GET", "HEAD", "OPTIONS") and path.startswith(CHANGES)
