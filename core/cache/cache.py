"""Answers that exist: in memory, and behind it in Redis where instances share them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.cache.counters import Count, Counters, Label
from core.cache.entry import Entry, mark
from core.cache.memory import Memory

if TYPE_CHECKING:
    from core.cache.redis import RedisCache

EVERYTHING = "all"
"""The mark that every entry has."""
_MOST_REMEMBERED = 1000
"""Invalidations that are kept apart; beyond that the next counts for everything."""


@dataclass(frozen=True, slots=True)
class Stats:
    """`entries` and `bytes` are those in memory; `by_label` counts by task type and model."""

    entries: int
    bytes: int
    max_bytes: int
    evictions: int
    memory_hits: int
    redis_hits: int
    redis_away: bool
    total: Count
    by_label: Mapping[Label, Count]


class Cache:
    """`get` looks in memory only and never waits; `find` looks further.

    `clock` gives Unix seconds.
    """

    def __init__(
        self, memory: Memory, redis: "RedisCache | None" = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.memory = memory
        self.redis = redis
        self.counters = Counters()
        self.generation = 0
        """Counts invalidations; an answer that began under an earlier one is kept only if none of them is about it."""
        self._invalidated: dict[str, int] = {}
        self._clock = clock
        if redis is not None:
            redis.on_invalidated(self._take_out)

    def get(self, key: bytes, label: Label, max_age: float | None = None) -> Entry | None:
        """A fresh answer in memory, no older than `max_age` seconds, counted as a hit. A miss is not counted."""
        now_ms = int(self._clock() * 1000)
        entry = self.memory.get(key, now_ms)
        if entry is None or not _fresh(entry, now_ms, max_age):
            return None
        self.counters.memory_hits += 1
        self.counters.hit(label, entry.cost_nano)
        return entry

    async def find(self, key: bytes, label: Label, max_age: float | None = None) -> Entry | None:
        """A fresh answer, also from Redis, or None; counted as a hit or a miss."""
        found = self.get(key, label, max_age)
        if found is not None:
            return found
        if self.redis is not None:
            entry = await self._fetched(key)
            if entry is not None and _fresh(entry, int(self._clock() * 1000), max_age):
                self.counters.redis_hits += 1
                self.counters.hit(label, entry.cost_nano)
                return entry
        self.counters.miss(label)
        return None

    async def look(self, key: bytes) -> Entry | None:
        """A fresh answer from memory or Redis, not counted."""
        now_ms = int(self._clock() * 1000)
        entry = self.memory.get(key, now_ms)
        if (entry is None or not entry.fresh(now_ms)) and self.redis is not None:
            entry = await self._fetched(key)
        return entry if entry is not None and entry.fresh(int(self._clock() * 1000)) else None

    async def look_each(
        self, keys: Sequence[bytes], max_age: float | None = None, *, stale: bool = False
    ) -> tuple[list[Entry | None], bool]:
        """As `look`, for many questions at once, no older than `max_age` seconds, or `stale`; and whether any came from
        Redis."""

        def good(entry: Entry | None) -> bool:
            return entry is not None and (stale or _fresh(entry, int(self._clock() * 1000), max_age))

        now_ms = int(self._clock() * 1000)
        found = [entry if good(entry := self.memory.get(key, now_ms)) else None for key in keys]
        missing = [index for index, entry in enumerate(found) if entry is None]
        if self.redis is None or not missing:
            return found, False
        generation = self.generation
        far = await self.redis.get_each([keys[index] for index in missing])
        now_ms = int(self._clock() * 1000)
        for index, entry in zip(missing, far, strict=True):
            if entry is not None and self._is_good(entry, generation):
                self.memory.put(keys[index], entry)
            # Somebody may have got it while we asked Redis.
            entry = self.memory.get(keys[index], now_ms)
            found[index] = entry if good(entry) else None
        return found, any(far)

    async def stale(self, key: bytes, label: Label) -> Entry | None:
        """An answer that may stand in where nothing else answers, however old within its `stale_ms`."""
        entry = self.memory.get(key, int(self._clock() * 1000))
        if entry is None and self.redis is not None:
            entry = await self._fetched(key)
        if entry is not None:
            self.counters.stale(label)
        return entry

    def keep(self, key: bytes, entry: Entry, since: int | None = None) -> bool:
        """Keep an answer in memory; whether it was kept. `since` is the `generation` when its request began."""
        if entry.ttl_ms <= 0 or (since is not None and self._is_outdated(entry, since)):
            return False
        return self.memory.put(key, entry)

    async def put(self, key: bytes, entry: Entry, since: int | None = None) -> bool:
        """`keep`, and in Redis for the other instances. Returns whether it was kept in memory."""
        kept = self.keep(key, entry, since)
        if self.redis is not None and entry.ttl_ms > 0 and not (since is not None and self._is_outdated(entry, since)):
            await self.redis.put(key, entry)
        return kept

    async def invalidate(
        self,
        *,
        model: str | None = None,
        user: str | None = None,
        task_type: str | None = None,
        tag: str | None = None,
        all: bool = False,
    ) -> int:
        """Take out what has any of these, everywhere, and what is on its way; returns how many entries were in this
        memory. Raises StateAway where Redis could not be told: other instances go on with what they have until it is
        back, and then learn of it."""
        named = {"model": model, "user": user, "task_type": task_type, "tag": tag}
        marks = [mark(kind, name) for kind, name in named.items() if name is not None]
        marks += [EVERYTHING] if all else []
        count = self._take_out(marks)
        if self.redis is not None and marks:
            await self.redis.invalidate(marks)
        return count

    def stats(self) -> Stats:
        memory, counters = self.memory, self.counters
        return Stats(
            entries=len(memory),
            bytes=memory.bytes,
            max_bytes=memory.max_bytes,
            evictions=memory.evictions,
            memory_hits=counters.memory_hits,
            redis_hits=counters.redis_hits,
            redis_away=self.redis is not None and self.redis.away,
            total=counters.total,
            by_label=counters.by_label,
        )

    async def _fetched(self, key: bytes) -> Entry | None:
        assert self.redis is not None
        generation = self.generation
        entry = await self.redis.get(key)
        if entry is None or not self._is_good(entry, generation):
            return None
        self.memory.put(key, entry)
        return entry

    def _is_good(self, entry: Entry, since: int) -> bool:
        return entry.usable(int(self._clock() * 1000)) and not self._is_outdated(entry, since)

    def _take_out(self, marks: Sequence[str]) -> int:
        count = 0
        for name in marks:
            self.generation += 1
            if name == EVERYTHING or len(self._invalidated) >= _MOST_REMEMBERED:
                self._invalidated.clear()
                self._invalidated[EVERYTHING] = self.generation
                count += self.memory.clear() if name == EVERYTHING else self.memory.invalidate(name)
            else:
                self._invalidated[name] = self.generation
                count += self.memory.invalidate(name)
        return count

    def _is_outdated(self, entry: Entry, since: int) -> bool:
        """Whether it began before something that takes it out."""
        if since == self.generation:
            return False
        known = self._invalidated
        return known.get(EVERYTHING, 0) > since or any(known.get(name, 0) > since for name in entry.marks)


def _fresh(entry: Entry, now_ms: int, max_age: float | None) -> bool:
    return entry.fresh(now_ms) and (max_age is None or now_ms - entry.created_ms <= max_age * 1000)
