"""The way in: what a request has to pass before it may spend anything, and what it gives back when it is done."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Self

from core.asgi import Scope
from core.context import RequestContext
from core.settings import Settings
from core.settings.models import Key
from plugins.limits.gate import Gate, Slot
from plugins.limits.limiter import NO_LIMITS, Admission, Limiter


class Visit:
    """A request that is inside. `done` has to be called however it ends, before its answer's last byte leaves."""

    __slots__ = ("_admission", "_slot")

    def __init__(self, admission: Admission, slot: Slot) -> None:
        self._admission = admission
        self._slot = slot

    def done(self, tokens: int = 0) -> None:
        """It used so many tokens, input and output. Never waits; a second time does nothing."""
        self._slot.release()
        self._admission.done(tokens)

    def headers(self) -> dict[str, str]:
        """x-ratelimit headers for its answer."""
        return {} if self._admission is NO_LIMITS else self._admission.headers()


class Entrance:
    """One for each worker: its limiter and its gate."""

    def __init__(self, limiter: Limiter, gate: Gate) -> None:
        self.limiter = limiter
        self.gate = gate
        self._settings: Settings | None = None

    @classmethod
    def build(cls, settings: Settings, keys: Mapping[str, Key], shared_url: str | None) -> Self:
        """From the settings in force, the entries under `keys:` by key hash, and Redis's URL where there is one."""
        limits = settings.limits
        gate = Gate(limits.max_concurrent_requests, limits.places_to_wait, limits.queue_timeout)
        return cls(Limiter.build(settings, shared_url, keys), gate)

    def follow(self, settings: Settings, keys: Mapping[str, Key]) -> None:
        """Take over the settings of a snapshot; next to nothing where they are in force already."""
        self.limiter.configure(settings, keys)
        if settings is not self._settings:
            self._settings = settings
            limits = settings.limits
            self.gate.resize(limits.max_concurrent_requests, limits.places_to_wait, limits.queue_timeout)

    async def arrive(self, scope: Scope) -> None:
        """At the edge, before anything is known of the caller. Raises `RateLimited` for its address."""
        if self.limiter.counts_addresses:
            await self.limiter.arrive(scope)

    async def enter(
        self,
        context: RequestContext,
        *,
        count_input: Callable[[], int] | None = None,
        left: Callable[[], Awaitable[object]] | None = None,
    ) -> Visit:
        """Once the caller is known: rates and parallel requests first, which say no at once, then a place inside.

        `count_input` as in `Limiter.enter`, `left` as in `Gate.acquire`. Raises `RateLimited` and `Overloaded`.
        """
        admission = await self.limiter.enter(context, count_input=count_input)
        try:
            slot = await self.gate.acquire(context.priority, left)
        except BaseException:
            admission.done()
            raise
        return Visit(admission, slot)

    async def close(self) -> None:
        """Finish counting; connections are closed."""
        await self.limiter.close()
