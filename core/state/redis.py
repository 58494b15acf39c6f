"""Reservations that any number of instances share, in Redis or in Redis Cluster.

Every key carries the same hash tag, so that one script can look at all the accounts of a request and change them in one
step; in a cluster they live on one node. Times are Redis's own, so that instances need not agree on theirs.
"""

import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import orjson

from core.budgets.account import Balance
from core.state.reservations import (
    ANY_STATE,
    KEPT_AFTER_END_MS,
    Claim,
    Lease,
    LeaseState,
    Reserved,
    Settled,
    Standing,
    StateAway,
    StateLost,
    TooLittle,
    Unopened,
)
from core.state.scripts import Scripts, away

if TYPE_CHECKING:
    from redis.asyncio import Redis

T = TypeVar("T")

_TAG = "{orchestration}:"
_EPOCH, _RECOVERY, _REGISTERED = _TAG + "epoch", _TAG + "recovery", _TAG + "registered"
_LEASES, _EXPIRY, _ACCOUNT = _TAG + "leases", _TAG + "expiry", _TAG + "account:"
_SHARED = tuple(key.encode() for key in (_EPOCH, _LEASES, _EXPIRY))
"""Keys of every reservation beside its accounts; bytes, because the client takes longer over text."""
_CHUNK = 200
"""Leases or accounts of one script call: it must not hold up the others."""


class RedisReservations:
    """`core.state.reservations.ReservationState` in Redis, with the building of a new state after a loss (`recover`).

    `patience` is how many seconds an answer may take; see `Scripts`.
    """

    def __init__(self, url: str, *, lease_seconds: float = 60.0, patience: float = 10.0) -> None:
        self._term = str(int(lease_seconds * 1000))
        self._scripts = Scripts(url, patience)
        self._run = self._scripts.run
        self.epoch = ""
        """The state that is known; another one means that it was lost meanwhile."""

    async def reserve(self, lease: str, claims: Sequence[Claim], *, slack: int = 1) -> Reserved | TooLittle | Unopened:
        keys = [*_SHARED, *[(_ACCOUNT + claim.account.key).encode() for claim in claims]]
        # One text and not an argument for each word: that is quicker on both sides.
        most = claims[0].amounts
        wanted: list[str | int] = [self.epoch, self._term, len(most), slack]
        wanted += [claim.limit_nano for claim in claims]
        if all(claim.amounts == most for claim in claims):
            wanted += most
        else:
            wanted += [amount for claim in claims for amount in claim.amounts]
        answer = await self._run("reserve", keys, [lease, " ".join(map(str, wanted))])
        word = answer[0]
        if word == b"lost":
            raise StateLost
        if word == b"unopened":
            missing: list[int] = answer[1:]
            return Unopened(tuple(claims[index].account for index in missing))
        has = [int(number) for number in answer[2].split()]
        if word == b"little":
            return TooLittle(_standings(has))
        level = int(answer[1])
        if word == b"ok":
            has[2::4] = [before + claim.amounts[level] for before, claim in zip(has[2::4], claims, strict=True)]
        return Reserved(level, _standings(has))

    async def sent(self, lease: str) -> bool:
        answer = int(await self._run("sent", [_EPOCH, _LEASES], [self.epoch, lease]))
        if answer < 0:
            raise StateLost
        return answer == 1

    async def settle(self, lease: str, accounts: Sequence[str], cost_nano: int) -> tuple[Settled, ...]:
        keys = [_LEASES, _EXPIRY, *(_ACCOUNT + key for key in accounts)]
        answer = await self._run("settle", keys, [lease, str(cost_nano)])
        if not answer:
            return ()
        standings = _standings([int(number) for number in answer[0].split()])
        return tuple(
            Settled(key, standing, cost_nano - int(presumed))
            for key, standing, presumed in zip(accounts, standings, answer[1].split(), strict=True)
        )

    async def renew(self, leases: Sequence[str]) -> None:
        for chunk in _chunks(leases):
            await self._run("renew", [_EXPIRY], [self._term, *chunk])

    async def reap(self) -> tuple[Lease, ...]:
        presumed: list[Lease] = []
        while True:
            over, found = await self._run("reap", [_LEASES, _EXPIRY], [str(_CHUNK)])
            for name, record in zip(found[::2], found[1::2], strict=True):
                presumed.append(Lease(name.decode(), LeaseState.PRESUMED, _amounts(record)))
            if over < _CHUNK:
                return tuple(presumed)

    async def put(
        self,
        balances: Sequence[Balance],
        ends_ms: Mapping[str, int | None],
        written: Sequence[str] = (),
        *,
        opens: str = ANY_STATE,
    ) -> None:
        # Balances first: what is in them and still stands as settled is counted twice for a moment, never not at all.
        for chunk in _chunks(balances):
            keys, arguments = [_EPOCH, _LEASES, _EXPIRY], [opens]
            for balance in chunk:
                end = ends_ms.get(balance.key)
                keys.append(_ACCOUNT + balance.key)
                forget = 0 if end is None else end + KEPT_AFTER_END_MS
                arguments += map(str, (balance.spent_nano, balance.extra_nano, balance.version, forget))
            only = written if len(balances) <= _CHUNK and len(written) <= _CHUNK else ()
            await self._run("put", keys, [*arguments, *only])
            if only:
                return
        for chunk in _chunks(written):
            await self._run("put", [_EPOCH, _LEASES, _EXPIRY], [opens, *chunk])

    async def settled(self, before: str) -> tuple[Lease, ...]:
        leases: list[Lease] = []
        cursor = b"0"
        while True:
            cursor, found = await self._run("settled", [_LEASES], [cursor, str(_CHUNK), before])
            leases += [
                Lease(name.decode(), LeaseState.SETTLED, _amounts(record))
                for name, record in zip(found[::2], found[1::2], strict=True)
            ]
            if cursor == b"0":
                return tuple(leases)

    async def standings(self, keys: Sequence[str]) -> dict[str, Standing]:
        found: dict[str, Standing] = {}
        async with self._answering() as client:
            for chunk in _chunks(keys):
                pipeline: Any = client.pipeline(transaction=False)
                for key in chunk:
                    pipeline.hmget(_ACCOUNT + key, "written", "settled", "reserved", "extra", "opened")
                for key, has in zip(chunk, await pipeline.execute(), strict=True):
                    if has[4] is not None:
                        found[key] = Standing(*(int(value or 0) for value in has[:4]))
        return found

    # -- after a loss --------------------------------------------------------------------------------------------

    async def recover(self) -> bool:
        word, epoch = await self._run("recover", [_EPOCH, _RECOVERY], [uuid.uuid4().hex])
        self.epoch = epoch.decode()
        return word == b"is"

    async def register(self, instance: str, leases: Sequence[Lease]) -> bool:
        for chunk in _chunks(leases):
            if not await self._register("", chunk):
                return False
        return await self._register(instance, ())

    async def _register(self, instance: str, leases: Sequence[Lease]) -> bool:
        arguments = [self.epoch, self._term, _ACCOUNT, instance]
        for lease in leases:
            amounts = [part for key, amount in lease.amounts.items() for part in (key, str(amount))]
            state = LeaseState.SETTLED if lease.state is LeaseState.PRESUMED else lease.state
            arguments += [lease.id, orjson.dumps({"state": state, "amounts": amounts}).decode()]
        return int(await self._run("register", [_RECOVERY, _REGISTERED, _LEASES, _EXPIRY, _EPOCH], arguments)) == 1

    async def finish(self, instances: Sequence[str]) -> tuple[str, ...]:
        keys = [_EPOCH, _RECOVERY, _REGISTERED]
        return tuple(name.decode() for name in await self._run("finish", keys, [self.epoch, *instances]))

    async def eviction(self) -> str | None:
        """Redis's policy for a full memory, None where it is not told. Anything but noeviction loses what was spent."""
        try:
            async with self._answering() as client:
                found = await client.config_get("maxmemory-policy")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        except StateAway:
            return None
        return cast("dict[str, str]", found).get("maxmemory-policy")

    async def close(self) -> None:
        await self._scripts.close()

    @asynccontextmanager
    async def _answering(self) -> "AsyncGenerator[Redis]":
        try:
            yield self._scripts.client()
        except Exception as error:
            raise away(error) or error from error


def _amounts(record: bytes) -> dict[str, int]:
    """The amounts of a lease by account, from the JSON of its record: level, then account and amount in turn."""
    parts = orjson.loads(record)[1:]
    return {key.removeprefix(_ACCOUNT): int(amount) for key, amount in zip(parts[::2], parts[1::2], strict=True)}


def _standings(numbers: Sequence[int]) -> tuple[Standing, ...]:
    return tuple(map(Standing, numbers[::4], numbers[1::4], numbers[2::4], numbers[3::4]))


def _chunks(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
