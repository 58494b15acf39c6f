"""Lets requests in as far as rates and parallel limits allow, and counts what they used when they are done."""

import time
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_network
from typing import TYPE_CHECKING, Self

from core.asgi import Scope
from core.context import Caller, RequestContext
from core.settings import Settings
from core.settings.models import Key
from plugins.limits.address import Network, client_address, counted_as
from plugins.limits.counters import Counters, Level, releases_of
from plugins.limits.fallback import FallbackCounters
from plugins.limits.headers import address_refusal, ratelimit_headers, refusal, too_large
from plugins.limits.memory import MemoryCounters
from plugins.limits.quotas import Kind, Quota, QuotaBook, Quotas
from plugins.limits.redis import RedisCounters

if TYPE_CHECKING:
    from limits import RateLimitItem
    from limits.aio.strategies import MovingWindowRateLimiter


class Admission:
    """A request that was let in. `done` gives back what it holds and has to be called however it ends."""

    __slots__ = ("_counters", "_lease", "_levels", "_quotas")

    def __init__(self, quotas: Quotas, levels: Sequence[Level], lease: str, counters: Counters | None) -> None:
        self._quotas = quotas
        self._levels = levels
        self._lease = lease
        self._counters = counters

    def done(self, tokens: int = 0) -> None:
        """It ended, having used so many tokens, input and output. Never waits; a second time does nothing."""
        counters, self._counters = self._counters, None
        if counters is None:
            return
        charges = [(quota.counter, tokens) for quota in self._quotas if quota.kind is Kind.TOKENS] if tokens > 0 else []
        releases = releases_of(self._quotas, self._lease)
        if charges or releases:
            counters.leave(charges, releases)

    def headers(self) -> dict[str, str]:
        """x-ratelimit headers of the tightest limits, as they stood when the request was let in."""
        return ratelimit_headers(self._quotas, self._levels)


NO_LIMITS = Admission((), (), "", None)
"""Of every request that no limit applies to."""


class Limiter:
    """Counters live as long as this; `configure` takes over other settings, and what is counted goes on."""

    def __init__(self, counters: Counters, settings: Settings, keys: Mapping[str, Key]) -> None:
        self._counters = counters
        self._strategy: MovingWindowRateLimiter | None = None
        self._configured: tuple[Settings | None, Mapping[str, Key] | None] = (None, None)
        self.configure(settings, keys)

    @classmethod
    def build(
        cls,
        settings: Settings,
        shared_url: str | None,
        keys: Mapping[str, Key],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> Self:
        """Counters in Redis where there is a URL, with memory to fall back on, else in memory. `keys` are the entries
        under `keys:` by the hash of their key."""
        memory = MemoryCounters(clock)
        counters: Counters = memory
        if shared_url is not None:
            shared = RedisCounters(shared_url, undelivered=lambda charges: memory.leave(charges, ()))
            counters = FallbackCounters(shared, memory, clock=clock)
        return cls(counters, settings, keys)

    def configure(self, settings: Settings, keys: Mapping[str, Key]) -> None:
        """Take over the settings of a snapshot; nothing happens where they are in force already."""
        if settings is self._configured[0] and keys is self._configured[1]:
            return
        self._configured = (settings, keys)
        self._book = QuotaBook(settings, keys)
        self._trusted: tuple[Network, ...] = tuple(ip_network(text) for text in settings.limits.trusted_proxies)
        self._header = settings.limits.forwarded_header.encode()
        most = settings.limits.per_ip_requests_per_minute
        self._per_address: RateLimitItem | None = None
        if most is not None:
            from limits import RateLimitItemPerMinute
            from limits.aio.strategies import MovingWindowRateLimiter

            from plugins.limits.storage import MovingWindows

            self._per_address = RateLimitItemPerMinute(most, namespace="address")
            self._strategy = self._strategy or MovingWindowRateLimiter(MovingWindows(self._counters))

    @property
    def counts_addresses(self) -> bool:
        """Whether `arrive` has anything to do."""
        return self._per_address is not None

    async def arrive(self, scope: Scope) -> None:
        """Count a request to the address it comes from. Raises `RateLimited`."""
        item, strategy = self._per_address, self._strategy
        if item is None or strategy is None:
            return
        peer = scope.get("client")
        address = client_address(peer[0] if peer else None, scope["headers"], self._trusted, self._header)
        if address is None:
            return
        name = counted_as(address)
        if not await strategy.hit(item, name):
            stats = await strategy.get_window_stats(item, name)
            raise address_refusal(name, item.amount, stats.reset_time - time.time())

    async def enter(self, context: RequestContext, *, count_input: Callable[[], int] | None = None) -> Admission:
        """Let the request in if it fits every limit of its caller, and count it; all or nothing.

        `count_input()` gives the input's exact tokens; it is called only for bodies that might not fit at all.
        Raises `RateLimited`.
        """
        if self._book.empty:
            return NO_LIMITS
        quotas = self._book.of(context.caller)
        if not quotas:
            return NO_LIMITS
        if count_input is not None:
            _check_size(quotas, context.input_bytes, count_input)
        entry = await self._counters.enter(quotas, context.request_id)
        if entry.refused:
            raise refusal(quotas, entry.levels, entry.refused)
        return Admission(quotas, entry.levels, context.request_id, entry.counters)

    async def standing(self, caller: Caller) -> list[tuple[Quota, Level]]:
        """Every limit of a caller and where it stands, for those who want to know; nothing is counted."""
        quotas = self._book.of(caller)
        return list(zip(quotas, await self._counters.look(quotas), strict=True)) if quotas else []

    async def close(self) -> None:
        """Finish counting; connections are closed."""
        await self._counters.close()


def _check_size(quotas: Quotas, input_bytes: int, count_input: Callable[[], int]) -> None:
    """Tokens are charged when they are known, so one request may use more than is left; but an input that is larger
    than the whole limit would go through in every minute that begins empty."""
    smallest = min((quota for quota in quotas if quota.kind is Kind.TOKENS), key=lambda quota: quota.most, default=None)
    # A token is at least a byte.
    if smallest is not None and input_bytes > smallest.most:
        tokens = count_input()
        if tokens > smallest.most:
            raise too_large(smallest, tokens)
