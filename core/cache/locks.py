"""One instance of several gets an answer, and the others wait for it, through Redis."""

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from core.cache.entry import Entry
from core.cache.redis import Link, RedisCache
from core.state.reservations import StateAway

Find = Callable[[bytes], Awaitable[Entry | None]]

_FIRST_LOOK, _LONGEST_LOOK = 0.005, 0.25
_MINE, _THERE = 1, 2


class RedisLocks:
    """`core.cache.flights.Elsewhere`. A lock lasts `lease` seconds and is renewed while its answer is under way, so
    that an instance which ends gives up its place. Whoever waits goes alone after `wait` seconds, or where Redis is
    away.

    `find` looks an answer up: `Cache.look`.
    """

    def __init__(self, link: Link, cache: RedisCache, find: Find, *, lease: float = 10.0, wait: float = 30.0) -> None:
        self._link = link
        self._cache = cache
        self._find = find
        self._lease = lease
        self._wait = wait
        self._held: dict[bytes, bytes] = {}
        """Keys with the word by which the lock is ours. Each has its own: a lock that is about to be given back is not
        the next one's."""
        self._ending: set[asyncio.Task[None]] = set()
        self._renewing: asyncio.Task[None] | None = None

    async def begin(self, key: bytes) -> Entry | None:
        """The answer that another instance got, or None: then it is ours to get, until `end`."""
        loop = asyncio.get_running_loop()
        began, waited, force, word = loop.time(), 0.0, False, secrets.token_bytes(8)
        while True:
            try:
                said = await self._lock(key, word, force=force)
            except StateAway:
                return None
            except asyncio.CancelledError:
                self._give_back(key, word)  # it may be ours
                raise
            if said == _MINE:
                self._held[key] = word
                self._renew_soon()
                try:
                    # Whoever had it may have got an answer that is kept elsewhere than under this key.
                    return await self._find(key) if waited else None
                except asyncio.CancelledError:
                    self._give_back(key, self._held.pop(key, word))
                    raise
            if said == _THERE:
                entry = await self._find(key)
                if entry is not None:
                    return entry
                force = True  # it is outdated, or cannot be read
                continue
            waited = loop.time() - began
            if waited >= self._wait:
                return None
            # The longer it takes, the less it matters to know at once.
            pause = min(max(_FIRST_LOOK, waited / 8), _LONGEST_LOOK, self._wait - waited)
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311

    async def end(self, key: bytes) -> None:
        """The answer is in Redis, or there will be none."""
        word = self._held.pop(key, None)
        if word is not None:
            await self._unlock(key, word)

    async def close(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
        for key in list(self._held):
            await self.end(key)

    async def _unlock(self, key: bytes, word: bytes) -> None:
        with suppress(StateAway):
            await self._link.ask("cache_unlock", [self._name(key)], [word])

    async def _lock(self, key: bytes, word: bytes, *, force: bool) -> Any:
        words = [word, b"%d" % int(self._lease * 1000), b"1" if force else b"0"]
        return await self._link.ask("cache_lock", [self._name(key), self._cache.name(key)], words)

    def _name(self, key: bytes) -> bytes:
        return self._cache.name(key) + b":lock"

    def _give_back(self, key: bytes, word: bytes) -> None:
        task = asyncio.get_running_loop().create_task(self._unlock(key, word))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _renew_soon(self) -> None:
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.get_running_loop().create_task(self._renew())

    async def _renew(self) -> None:
        while self._held:
            await asyncio.sleep(self._lease / 3)
            for key, word in list(self._held.items()):
                if self._held.get(key) is not word:
                    continue  # given back meanwhile
                try:
                    said = await self._lock(key, word, force=True)
                except StateAway:
                    break
                if self._held.get(key) is not word:
                    await self._unlock(key, word)  # or it would have come back
                elif said != _MINE:
                    del self._held[key]
