"""Alerts in the store: told once by whoever comes first, delivered by whoever is free, in order for each subject."""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    CursorResult,
    Row,
    Select,
    and_,
    delete,
    exists,
    func,
    select,
    text,
    update,
)

from core.alerts import Alert
from core.ids import new_request_id
from core.store.tables import alert_deliveries, alert_floods, alerts
from core.store.writing import insert

if TYPE_CHECKING:
    from core.store.engine import Store

State = Literal["pending", "sent", "dead"]

_LOCK = 0x6C6C6D05  # any number, the same in every version
_CHUNK = 500  # keys in one IN (...)
_CLAIM_MS = 120_000
"""How long a delivery belongs to whoever sends it; must be more than any sending takes."""
_REMEMBERED_MS = 90 * 86_400_000
"""How long what cannot come again is kept."""
_ERROR_LENGTH = 500
_sent = alert_deliveries.c


@dataclass(frozen=True, slots=True)
class Raised:
    """An alert, the channels it goes to, and how often it happened since it was raised last."""

    alert: Alert
    channels: tuple[str, ...]
    times: int = 1


@dataclass(frozen=True, slots=True)
class Delivery:
    """One alert on its way to one channel. `claim` is what its sender holds; `attempts` how often it was tried."""

    alert_id: str
    channel: str
    alert: Alert
    times: int
    state: State
    attempts: int
    last_error: str | None
    claim: str | None = None

    @property
    def id(self) -> str:
        """Its name, the same in every attempt: receivers know by it what they have already."""
        return f"{self.alert_id}:{self.channel}"


@dataclass(frozen=True, slots=True)
class DeliveryCounts:
    """How many deliveries wait or were given up, and when the next one is due (Unix milliseconds)."""

    pending: int
    dead: int
    next_ms: int | None


class AlertRepository:
    """The outbox of alerts. Every method raises StoreError while the database cannot be used.

    Whoever changes anything holds one lock: alerts are few, and so neither order nor numbers depend on luck.
    """

    def __init__(self, store: "Store") -> None:
        self._store = store

    async def raise_(self, raised: Sequence[Raised], digest_ms: int) -> int:
        """Put alerts into the outbox, all or none, in this order; returns how many are new messages.

        One that is told once, by its key, is left out if anybody raised it before. One that comes in floods is told at
        once if none of its key was within `digest_ms`, and else counted, for `tell_floods`. Raises RecordRefused (a
        StoreError) for what the database cannot hold.
        """
        if not raised:
            return 0

        def work(connection: Connection) -> int:
            now = self._lock(connection)
            once = [one.alert.dedupe_key for one in raised if not one.alert.comes_in_floods]
            told = _present(connection, once)
            floods = _floods(connection, [one.alert.dedupe_key for one in raised if one.alert.comes_in_floods])
            new: list[Raised] = []
            for one in raised:
                key = one.alert.dedupe_key
                if not one.alert.comes_in_floods:
                    if key not in told:
                        told.add(key)
                        new.append(one)
                    continue
                flood = floods.get(key)
                if flood is None or (flood.times == 0 and flood.until_ms <= now):
                    new.append(one)
                    floods[key] = _Flood(replace(one, times=0), now + digest_ms)
                else:
                    floods[key] = _Flood(replace(one, times=flood.times + one.times), flood.until_ms)
            _keep(connection, floods)
            _tell(connection, new, now)
            return len(new)

        return await self._store.write(work)

    async def tell_floods(self, digest_ms: int) -> int:
        """Make messages of the floods whose time is over, and forget those that ended; returns how many messages."""
        due = select(alert_floods).where(alert_floods.c.until_ms <= self._now())
        if await self._store.read(lambda connection: connection.execute(due.limit(1)).first()) is None:
            return 0

        def work(connection: Connection) -> int:
            now = self._lock(connection)
            rows = connection.execute(due.where(alert_floods.c.until_ms <= now)).all()
            floods = {row.dedupe_key: _flood(row) for row in rows}
            going_on = [flood.raised for flood in floods.values() if flood.times]
            again = {
                key: _Flood(replace(one.raised, times=0), now + digest_ms) for key, one in floods.items() if one.times
            }
            _drop(connection, list(floods))
            _keep(connection, again)
            _tell(connection, going_on, now)
            return len(going_on)

        return await self._store.write(work)

    async def claim(self, sender: str, limit: int) -> list[Delivery]:
        """Up to `limit` deliveries that are due, for `sender` alone for two minutes, oldest first.

        Of one subject and channel, only the first that is neither sent nor given up.
        """
        due = _due(self._now()).limit(1)
        if await self._store.read(lambda connection: connection.execute(due).first()) is None:
            return []
        claim = f"{sender}/{uuid.uuid4().hex[:8]}"

        def work(connection: Connection) -> list[Delivery]:
            now = self._lock(connection)
            rows = connection.execute(_due(now).order_by(_sent.seq).limit(limit)).all()
            for row in rows:
                holder = {"claimed_by": claim, "claimed_until_ms": now + _CLAIM_MS}
                connection.execute(update(alert_deliveries).where(_is(row.alert_id, row.channel)).values(holder))
            return [replace(_delivery(row), claim=claim) for row in rows]

        return await self._store.write(work)

    async def sent(self, delivery: Delivery) -> None:
        """The channel has taken it."""
        done = {"state": "sent", "claimed_by": None, "claimed_until_ms": 0, "last_error": None}
        place = and_(_is(delivery.alert_id, delivery.channel), _sent.state == "pending")
        await self._change(update(alert_deliveries).where(place).values({**done, "attempts": _sent.attempts + 1}))

    async def failed(self, delivery: Delivery, error: str, next_ms: int | None) -> None:
        """The channel has not; try again at `next_ms` (Unix milliseconds), or never. Changes nothing where the claim
        has passed to somebody else."""
        change: dict[str, Any] = {"last_error": error[:_ERROR_LENGTH], "claimed_by": None, "claimed_until_ms": 0}
        change |= {"state": "dead"} if next_ms is None else {"next_ms": next_ms}
        place = and_(_is(delivery.alert_id, delivery.channel), _sent.claimed_by == delivery.claim)
        await self._change(update(alert_deliveries).where(place).values({**change, "attempts": _sent.attempts + 1}))

    async def dead(self, limit: int = 100) -> list[Delivery]:
        """What was given up, newest first."""
        chosen = _deliveries().where(_sent.state == "dead").order_by(_sent.seq.desc(), _sent.channel).limit(limit)
        async with self._store.reading() as connection:
            return [_delivery(row) for row in await connection.execute(chosen)]

    async def resend(self, delivery_id: str) -> bool:
        """Try again, from the beginning, what was given up; whether there is such a delivery."""
        alert_id, _, channel = delivery_id.partition(":")
        fresh = {"state": "pending", "attempts": 0, "next_ms": self._now(), "claimed_by": None, "claimed_until_ms": 0}
        place = and_(_is(alert_id, channel), _sent.state == "dead")
        return await self._change(update(alert_deliveries).where(place).values(fresh)) == 1

    async def counts(self) -> DeliveryCounts:
        """How much is on its way."""
        chosen = select(_sent.state, func.count(), func.min(func.greatest(_sent.next_ms, _sent.claimed_until_ms)))
        if self._store.is_sqlite:
            chosen = select(_sent.state, func.count(), func.min(func.max(_sent.next_ms, _sent.claimed_until_ms)))
        chosen = chosen.where(_sent.state != "sent").group_by(_sent.state)
        rows = await self._store.read(lambda connection: connection.execute(chosen).all())
        found = {row[0]: (row[1], row[2]) for row in rows}
        pending, dead = found.get("pending", (0, None)), found.get("dead", (0, None))
        return DeliveryCounts(pending[0], dead[0], pending[1])

    async def forget(self) -> int:
        """Delete what cannot come again and is 90 days old; returns how many alerts."""
        old = alerts.c.over_ms < self._now() - _REMEMBERED_MS

        def work(connection: Connection) -> int:
            self._lock(connection)
            connection.execute(delete(alert_deliveries).where(_sent.alert_id.in_(select(alerts.c.id).where(old))))
            return connection.execute(delete(alerts).where(old)).rowcount

        return await self._store.write(work)

    def _now(self) -> int:
        return int(self._store.clock() * 1000)

    def _lock(self, connection: Connection) -> int:
        """Be the only one who changes alerts until the transaction ends (SQLite has but one writer); the time then."""
        if not self._store.is_sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        return self._now()

    async def _change(self, statement: Any) -> int:  # an UPDATE, whose type names its table's
        def work(connection: Connection) -> int:
            result: CursorResult[Any] = connection.execute(statement)
            return result.rowcount

        return await self._store.write(work)


@dataclass(frozen=True, slots=True)
class _Flood:
    raised: Raised
    until_ms: int

    @property
    def times(self) -> int:
        return self.raised.times


def _tell(connection: Connection, new: Sequence[Raised], now: int) -> None:
    """Messages, with a delivery for each channel."""
    if not new:
        return
    seq = connection.execute(select(func.coalesce(func.max(alerts.c.seq), 0))).scalar_one()
    rows: list[tuple[Any, ...]] = []
    deliveries: list[tuple[Any, ...]] = []
    for number, one in enumerate(new, seq + 1):
        name, alert = new_request_id(), one.alert
        # A message about a flood is not the last one of its key, and no other has its name.
        key, over = (f"{alert.dedupe_key}|{name}", now) if alert.comes_in_floods else (alert.dedupe_key, alert.over_ms)
        rows.append((name, number, key, alert.to_json().decode(), one.times, over))
        deliveries += [
            (name, channel, number, alert.subject, "pending", 0, now, None, 0, None) for channel in one.channels
        ]
    insert(connection, alerts, rows)
    insert(connection, alert_deliveries, deliveries)


def _keep(connection: Connection, floods: dict[str, _Flood]) -> None:
    _drop(connection, list(floods))
    rows = [
        (key, one.raised.alert.to_json().decode(), json.dumps(one.raised.channels), one.times, one.until_ms)
        for key, one in floods.items()
    ]
    insert(connection, alert_floods, rows)


def _drop(connection: Connection, keys: Sequence[str]) -> None:
    for some in _chunks(keys):
        connection.execute(delete(alert_floods).where(alert_floods.c.dedupe_key.in_(some)))


def _present(connection: Connection, keys: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for some in _chunks(keys):
        found.update(connection.execute(select(alerts.c.dedupe_key).where(alerts.c.dedupe_key.in_(some))).scalars())
    return found


def _floods(connection: Connection, keys: Sequence[str]) -> dict[str, _Flood]:
    found: dict[str, _Flood] = {}
    for some in _chunks(keys):
        for row in connection.execute(select(alert_floods).where(alert_floods.c.dedupe_key.in_(some))):
            found[row.dedupe_key] = _flood(row)
    return found


def _flood(row: Row[Any]) -> _Flood:
    return _Flood(Raised(Alert.from_json(row.alert), tuple(json.loads(row.channels)), row.times), row.until_ms)


def _chunks(keys: Sequence[str]) -> list[Sequence[str]]:
    return [keys[start : start + _CHUNK] for start in range(0, len(keys), _CHUNK)]


def _deliveries() -> "Select[*tuple[Any, ...]]":
    return select(
        *(_sent.alert_id, _sent.channel, _sent.state, _sent.attempts, _sent.last_error, alerts.c.alert, alerts.c.times)
    ).join_from(alert_deliveries, alerts, _sent.alert_id == alerts.c.id)


def _due(now: int) -> "Select[*tuple[Any, ...]]":
    earlier = alert_deliveries.alias("earlier").c
    first = ~exists().where(
        earlier.state == "pending",
        earlier.channel == _sent.channel,
        earlier.subject == _sent.subject,
        earlier.seq < _sent.seq,
    )
    free = and_(_sent.state == "pending", _sent.next_ms <= now, _sent.claimed_until_ms <= now)
    return _deliveries().where(free, first)


def _is(alert_id: str, channel: str) -> ColumnElement[bool]:
    return and_(_sent.alert_id == alert_id, _sent.channel == channel)


def _delivery(row: Row[Any]) -> Delivery:
    return Delivery(
        row.alert_id, row.channel, Alert.from_json(row.alert), row.times, row.state, row.attempts, row.last_error
    )
