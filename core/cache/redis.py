"""Answers that instances share, in Redis or in Redis Cluster.

Invalidations are numbered. An answer carries the number of the last one before it, and is outdated by every later one
that names one of its marks; so taking out a million answers is one step, and what is left of them runs out by itself.
An epoch tells whether the numbers are still those of before: where Redis lost them, it has no answers either.
"""

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

from core.cache.entry import Entry, packed, unpacked
from core.state.reservations import StateAway
from core.state.scripts import Scripts

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_LOG = logging.getLogger("orchestration.cache")

SIGNAL: Final = "cache"
"""Kind of the signal that something was taken out."""
Tell = Callable[[str, dict[str, Any]], Awaitable[bool]]
"""`core.state.signals.Signals.tell`."""

_TAG: Final = b"{orchestration}:cache:"
"""All keys of a script lie on one node of a cluster."""
_INVALIDATIONS: Final = _TAG + b"invalidations"
_MOST_MARKS = 2000
_EPOCH_BYTES, _NUMBER_BYTES, _NONCE_BYTES = 16, 8, 12
_CLEAR, _ENCRYPTED = b"\x00", b"\x01"
_LEAST_KEY = 16
_OFF_LOOP = 65_536
"""Bytes from which an answer is compressed in a thread."""
_REFRESH_EVERY = 1.0


class Link:
    """Redis for something that can do without: what does not answer within `patience` seconds counts as away, and is
    left alone for a while, that not every request waits for it."""

    FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
    LATE = 3
    """Answers in a row that come too late before it is left alone."""

    def __init__(self, url: str, patience: float = 0.05, clock: Callable[[], float] = time.monotonic) -> None:
        self.patience = patience
        self._clock = clock
        # The connection itself is given up later: an answer that is late once is no reason to open another.
        self._scripts = Scripts(url, max(1.0, 4 * patience))
        self._until = 0.0
        self._pause = self.FIRST_PAUSE
        self._late = 0
        self.away = False
        self.failures = 0

    async def ask(self, script: str, keys: Sequence[bytes], words: Sequence[bytes], patience: float = 0.0) -> Any:
        """What the script says; Any because each says something else. Raises StateAway."""
        now = self._clock()
        if now < self._until:
            raise StateAway("Redis did not answer a moment ago")
        tries_again = self.away
        if tries_again:
            self._until = now + self._pause  # the others do not wait for it
        call = asyncio.ensure_future(self._scripts.run(script, keys, words))
        try:
            done, _ = await asyncio.wait({call}, timeout=patience or self.patience)
            if not done:  # by now the answer may lie unread because this process was busy
                done, _ = await asyncio.wait({call}, timeout=_GRACE)
        finally:
            if not call.cancel() and not call.cancelled():
                call.exception()  # seen, though whoever asked may have left
        if not done:
            self._late += 1
            self._failed("it takes too long", tries_again, leave_alone=self._late >= self.LATE)
            raise StateAway("Redis does not answer in time")
        try:
            answer = call.result()
        except StateAway as error:
            self._failed(str(error), tries_again)
            raise
        if self.away:
            _LOG.warning("Redis is back: cached answers are shared again")
        self.away, self._pause, self._until, self._late = False, self.FIRST_PAUSE, 0.0, 0
        return answer

    async def close(self) -> None:
        await self._scripts.close()

    def _failed(self, why: str, tried_again: bool, *, leave_alone: bool = True) -> None:
        self.failures += 1
        if tried_again:
            self._pause = min(self._pause * 2, self.LONGEST_PAUSE)
        elif leave_alone and not self.away:
            self.away = True
            _LOG.warning("cached answers are not shared for now: %s", why)
        else:
            return
        self._until = self._clock() + self._pause * random.uniform(0.8, 1.2)  # noqa: S311


_AT_ONCE, _EACH = 64, 0.001
"""Answers that are asked for together, and the seconds that each makes Redis later."""
_GRACE = 0.01
_UNHURRIED = 1.0
"""Seconds for what no request waits for."""


class RedisCache:
    """Gets and puts; everything that goes wrong is a miss, but for `invalidate`. `hear` wants to be the handler of
    `SIGNAL`, and `tell` sends it: other instances then learn at once what they otherwise learn within a second.

    `key` encrypts what is kept (AES-256-GCM, bound to the place where it lies) and hides the keys; any 16 bytes or
    more. Answers of more than `most_bytes` are not kept.
    """

    def __init__(
        self, link: Link, *, key: bytes | None = None, most_bytes: int = 1_048_576, tell: Tell | None = None
    ) -> None:
        self._link = link
        self._tell = tell
        self._most_bytes = most_bytes
        self._cipher: AESGCM | None = None
        self._name_key = b""
        if key is not None:
            self._cipher, self._name_key = _cipher(key)
        self._epoch = b""
        self._last = -1
        self._marks: dict[str, int] = {}
        """The number of the last invalidation of each mark."""
        self._owed: set[str] = set()
        """Marks that Redis has yet to be told of."""
        self._learning = asyncio.Lock()
        self._listeners: list[Callable[[Sequence[str]], object]] = []
        self._said_unreadable = False
        self.unreadable = 0

    @property
    def away(self) -> bool:
        return self._link.away

    def on_invalidated(self, listener: Callable[[Sequence[str]], object]) -> None:
        """Call with the marks that another instance, or this one, has taken out."""
        self._listeners.append(listener)

    async def get(self, key: bytes) -> Entry | None:
        name = self.name(key)
        if self._owed:
            return None
        try:
            epoch, last, value = await self._link.ask("cache_get", [_INVALIDATIONS, name], [_new_epoch()])
            if not self._epoch or (value is not None and (epoch, int(last)) != (self._epoch, self._last)):
                await self.refresh()
        except StateAway:
            return None
        if value is None:
            return None
        return await self._opened(name, value)

    async def get_each(self, keys: Sequence[bytes]) -> list[Entry | None]:
        """As `get`, for many at once."""
        found: list[Entry | None] = []
        with suppress(StateAway):
            while len(found) < len(keys) and not self._owed:
                names = [self.name(key) for key in keys[len(found) : len(found) + _AT_ONCE]]
                patience = self._link.patience + _EACH * len(names)
                words = [_new_epoch()]
                epoch, last, *values = await self._link.ask("cache_get", [_INVALIDATIONS, *names], words, patience)
                if not self._epoch or (any(values) and (epoch, int(last)) != (self._epoch, self._last)):
                    await self.refresh()
                for name, value in zip(names, values, strict=True):
                    found.append(None if value is None else await self._opened(name, value))
        return found + [None] * (len(keys) - len(found))

    async def put(self, key: bytes, entry: Entry) -> bool:
        """Whether Redis has it."""
        if len(entry.body) > self._most_bytes or not self._epoch:
            return False
        name, epoch, number = self.name(key), self._epoch, self._last
        large = len(entry.body) > _OFF_LOOP
        value = await asyncio.to_thread(packed, entry) if large else packed(entry)
        text = self._sealed(name, epoch, number, value)
        kept_ms = b"%d" % max(1, entry.ttl_ms + entry.stale_ms)
        try:
            words = [epoch, kept_ms, text]
            return bool(await self._link.ask("cache_put", [_INVALIDATIONS, name], words, _UNHURRIED))
        except StateAway:
            return False

    async def invalidate(self, marks: Sequence[str]) -> None:
        """Take out everything with one of these marks, `all` for everything. Raises StateAway: it is tried again by
        `run`, and nothing is read until then."""
        self._owed.update(marks)
        await self.refresh()
        if self._tell is not None:
            await self._tell(SIGNAL, {})

    async def hear(self, body: dict[str, Any]) -> None:
        """Another instance says that something was taken out."""
        with suppress(StateAway):
            await self.refresh()

    async def refresh(self) -> None:
        """Learn what was invalidated. Raises StateAway."""
        async with self._learning:
            owed = sorted(self._owed)
            if owed:
                words = [_new_epoch(), b"%d" % _MOST_MARKS, *(mark.encode() for mark in owed)]
                await self._link.ask("cache_invalidate", [_INVALIDATIONS], words, _UNHURRIED)
                self._owed.difference_update(owed)
            words = [_new_epoch(), self._epoch, b"%d" % self._last]
            epoch, last, *rows = await self._link.ask("cache_marks", [_INVALIDATIONS], words, _UNHURRIED)
            before = self._last if epoch == self._epoch else -1
            if int(last) == before:
                return
            self._epoch, self._last = epoch, int(last)
            self._marks = {name.decode(): int(number) for name, number in zip(rows[::2], rows[1::2], strict=True)}
        # Whoever has just come has nothing in memory that could be outdated.
        news = [name for name, number in self._marks.items() if number > before >= 0]
        for listener in self._listeners if news else ():
            listener(news)

    async def run(self) -> None:
        """Keep knowing what is invalidated, until cancelled."""
        while True:
            with suppress(StateAway):
                await self.refresh()
            await asyncio.sleep(random.uniform(0.8, 1.2) * _REFRESH_EVERY)  # noqa: S311

    async def close(self) -> None:
        await self._link.close()

    def name(self, key: bytes) -> bytes:
        """Where an answer lies."""
        hidden = blake2b(key, digest_size=24, key=self._name_key).digest() if self._name_key else key
        return _TAG + hidden.hex().encode()

    async def _opened(self, name: bytes, value: bytes) -> Entry | None:
        try:
            epoch, number, data = self._unsealed(name, value)
            if epoch != self._epoch:
                return None
            most = self._most_bytes
            entry = await asyncio.to_thread(unpacked, data, most) if len(data) > _OFF_LOOP else unpacked(data, most)
        except ValueError as error:
            self.unreadable += 1
            if not self._said_unreadable:
                self._said_unreadable = True
                _LOG.warning("answers in Redis cannot be read and count as misses: %s", error)
            return None
        outdated = (self._marks.get(mark, 0) > number for mark in ("all", *entry.marks))
        return None if any(outdated) else entry

    def _sealed(self, name: bytes, epoch: bytes, number: int, data: bytes) -> bytes:
        front = epoch + number.to_bytes(_NUMBER_BYTES, "big")
        if self._cipher is None:
            return _CLEAR + front + data
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return _ENCRYPTED + front + nonce + self._cipher.encrypt(nonce, data, name + front)

    def _unsealed(self, name: bytes, value: bytes) -> tuple[bytes, int, bytes]:
        """Epoch, number and the packed entry. Raises ValueError."""
        how, front = value[:1], value[1 : 1 + _EPOCH_BYTES + _NUMBER_BYTES]
        rest = value[1 + len(front) :]
        epoch, number = front[:_EPOCH_BYTES], int.from_bytes(front[_EPOCH_BYTES:], "big")
        if self._cipher is None:
            if how != _CLEAR:
                raise ValueError("encrypted, and caching.encryption_key is not set")
            return epoch, number, rest
        if how != _ENCRYPTED:
            raise ValueError("not encrypted, though caching.encryption_key is set")
        from cryptography.exceptions import InvalidTag

        try:
            return epoch, number, self._cipher.decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], name + front)
        except InvalidTag:
            raise ValueError("encrypted with another key than caching.encryption_key, or altered") from None


def _cipher(key: bytes) -> "tuple[AESGCM, bytes]":
    """What encrypts, and the key that hides names; both follow from the one that is given."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    if len(key) < _LEAST_KEY:
        raise ValueError(f"an encryption key has at least {_LEAST_KEY} bytes, not {len(key)}")
    short = blake2b(key, digest_size=64).digest()
    values = blake2b(b"values", digest_size=32, key=short).digest()
    return AESGCM(values), blake2b(b"names", digest_size=32, key=short).digest()


def _new_epoch() -> bytes:
    return secrets.token_hex(_EPOCH_BYTES // 2).encode()
