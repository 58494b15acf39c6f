"""A request whose body is read at the edge, and what was found out there that LiteLLM's pipeline need not find out
again."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import orjson

from core.asgi import Message, Receive, Scope
from core.context import RequestContext
from custom_router.decision import Plan
from plugins.identities import fingerprint, who

if TYPE_CHECKING:
    from core.runtime import Runtime
    from core.snapshot import Snapshot
    from plugins.exchange import Exchange
    from plugins.identities import Identities, Identity

Foresee = Callable[["Runtime", "Exchange", Any, Mapping[str, Any]], Awaitable[bool]]
"""Works out context and plan from a body as it was sent, for a caller that LiteLLM has accepted (Any: its class)."""


class Planned(Protocol):
    """A plan that was made at the edge, and what it was made of."""

    @property
    def snapshot(self) -> "Snapshot": ...
    @property
    def permits(self) -> dict[str, bool]: ...
    @property
    def plan(self) -> Plan: ...


class Foreseen(NamedTuple):
    """`Planned`, and nothing else."""

    snapshot: "Snapshot"
    permits: dict[str, bool]
    plan: Plan


async def whole(receive: Receive) -> list[Message]:
    """The messages of a request's body; the last is something else where its client left."""
    received: list[Message] = [await receive()]
    while received[-1]["type"] == "http.request" and received[-1].get("more_body"):
        received.append(await receive())
    return received


class Arrival:
    """`received` is what came of it so far, `rest` gives what comes after that."""

    __slots__ = (
        *("_fingerprint", "_next", "_received", "_rest", "body", "caller", "context", "foreseen", "generation"),
        *("identities", "identity", "scope"),
    )

    def __init__(self, scope: Scope, received: list[Message], rest: Receive, identities: "Identities") -> None:
        self.scope = scope
        self.identities = identities
        self.generation = identities.generation
        """Of the identities, when it began."""
        self.caller = who(scope) if received[-1]["type"] == "http.request" else b""
        """Who asks; empty for a client that left before all of its request was there."""
        self.identity: Identity | None = None
        """Who LiteLLM has just said it is."""
        self.body: Mapping[str, Any] | None = None
        self.context: RequestContext | None = None
        """As it was worked out at the edge."""
        self.foreseen: Foreseen | None = None
        self._received = received
        self._rest = rest
        self._next = 0
        self._fingerprint: bytes | None = None

    @property
    def sent(self) -> bytes:
        """The body as it was sent."""
        if len(self._received) == 1:
            return self._received[0].get("body", b"")
        return b"".join(message.get("body", b"") for message in self._received)

    async def receive(self) -> Message:
        """As ASGI's: what was received already, then the rest."""
        return self._again() or await self._rest()

    def _again(self) -> Message | None:
        if self._next >= len(self._received):
            return None
        self._next += 1
        return self._received[self._next - 1]

    def read(self) -> Mapping[str, Any] | None:
        """The body, None where it is no JSON object."""
        if self.body is None:
            try:
                body = orjson.loads(self.sent)
            except orjson.JSONDecodeError:
                return None
            if not isinstance(body, dict):
                return None
            self.body = body
        return self.body

    def fingerprint(self, body: Mapping[str, Any]) -> bytes:
        """That of its caller with what `body`, which is its own, says of him."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.caller, body)
        return self._fingerprint

    def accepted(self, auth: Any, model: str) -> None:
        """LiteLLM has accepted its caller for this model; Any because the class is LiteLLM's."""
        body = self.read() if self.caller else None
        if body is not None and body.get("model") == model:
            self.identity = self.identities.remember(self.fingerprint(body), auth, self.generation)

    def plan_for(self, snapshot: Any, context: RequestContext, permits: Mapping[str, bool]) -> Plan | None:
        """The plan that was made at the edge, where it still holds for what the pipeline found out."""
        made = self._made()
        if made is None or made.snapshot is not snapshot or made.permits != permits or self.context != context:
            return None
        return made.plan

    def _made(self) -> Planned | None:
        return self.foreseen
