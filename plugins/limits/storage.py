"""Our counters as a storage of the `limits` library, so that its moving window decides on them.

The library's own storages do not fit: its memory looks at every counter there is on each hit, and its Redis keeps an
entry for each token and cannot take several limits in one step.
"""

import time

from limits.aio.storage import MovingWindowSupport, Storage
from limits.errors import StorageError

from plugins.limits.counters import WINDOW_SECONDS, Counters
from plugins.limits.quotas import Kind, Quota, Scope


class MovingWindows(Storage, MovingWindowSupport):
    """The part of a storage that `limits.aio.strategies.MovingWindowRateLimiter` uses, for windows of a minute."""

    STORAGE_SCHEME = None

    def __init__(self, counters: Counters) -> None:
        super().__init__()
        self._counters = counters

    @property
    def base_exceptions(self) -> type[Exception]:
        return OSError

    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        self._check_length(expiry)
        return await self._counters.hit(key, limit, amount)

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """When what is oldest in a full window happened, and how much is in it."""
        self._check_length(expiry)
        (level,) = await self._counters.look([Quota(Kind.REQUESTS, Scope.ADDRESS, "", key, limit)])
        return time.time() + (level.wait or level.reset) - expiry, level.used

    def _check_length(self, expiry: int) -> None:
        if expiry != WINDOW_SECONDS:
            raise StorageError(ValueError(f"windows are {WINDOW_SECONDS} s long here, not {expiry}"))

    async def check(self) -> bool:
        return True

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        raise NotImplementedError(_ONLY_MOVING)

    async def get(self, key: str) -> int:
        raise NotImplementedError(_ONLY_MOVING)

    async def get_expiry(self, key: str) -> float:
        raise NotImplementedError(_ONLY_MOVING)

    async def reset(self) -> int | None:
        raise NotImplementedError(_ONLY_MOVING)

    async def clear(self, key: str) -> None:
        raise NotImplementedError(_ONLY_MOVING)


_ONLY_MOVING = "this storage has moving windows only"
