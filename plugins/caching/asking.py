"""A request that the cache may have an answer to, from when it arrives until its answer is kept."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.asgi import Message, Receive, Scope
from core.cache import Control, Label
from core.cache.entry import Entry
from core.context import RequestContext
from custom_router.decision import Plan
from plugins.arrival import Arrival, Planned

if TYPE_CHECKING:
    from core.snapshot import Snapshot
    from plugins.caching.inputs import Inputs
    from plugins.caching.recording import Recording
    from plugins.caching.sharing import Turn
    from plugins.identities import Identities, Identity


@dataclass(slots=True, weakref_slot=True)
class Ready:
    """What was worked out for a request in these bytes from this caller, to be used again for a moment: `context` is
    that of the first of them."""

    identity: "Identity"
    snapshot: "Snapshot"
    context: RequestContext
    plan: Plan
    permits: dict[str, bool]
    granted: frozenset[str]
    key: bytes
    label: Label
    control: Control
    ttl: float
    input_keys: tuple[bytes, ...] = ()
    """Those of each input alone, where embeddings of several are asked for; no answer is kept under `key` then."""


class Asking(Arrival):
    """`ready` is there once the key is known; `looked` says that nothing was found under it."""

    __slots__ = ("found", "inputs", "looked", "ready", "recording", "since", "stale", "turn")

    def __init__(
        self, scope: Scope, received: list[Message], rest: Receive, identities: "Identities", since: int
    ) -> None:
        super().__init__(scope, received, rest, identities)
        self.since = since
        """Of the cache, when it began."""
        self.ready: Ready | None = None
        self.looked = False
        self.inputs: Inputs | None = None
        """What there was for each of several inputs, and what is new."""
        self.found: Entry | Turn | None = None
        """What LiteLLM's pipeline was left for."""
        self.recording: Recording | None = None
        self.turn: Turn | None = None
        """Its part in a call that is made for several."""
        self.stale: Entry | None = None

    async def receive(self) -> Message:
        """As ASGI's. Where others wait for the same answer, a client that leaves is not told of before they have left
        as well."""
        message = self._again() or await self._rest()
        if message["type"] == "http.disconnect" and self.turn is not None:
            await self.turn.deserted()
        return message

    def plain_scope(self) -> Scope:
        """The scope for LiteLLM, which would compress the answer: whoever gets it later may not read that."""
        sent = self.scope["headers"]
        headers = [header for header in sent if header[0] != b"accept-encoding"]
        return self.scope if len(headers) == len(sent) else {**self.scope, "headers": headers}

    def _made(self) -> Planned | None:
        return super()._made() if self.ready is None else self.ready
