"""What callers said about their answers, in the store: of own requests alone, the last value for each metric."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, delete, exists, func, select, tuple_

from core.store.tables import feedback, feedback_waiting, usage_events
from core.store.writing import upserting, without_nul

if TYPE_CHECKING:
    from core.store.engine import Store

ARRIVES_WITHIN = 3600.0
"""Seconds in which the event of a request is expected in the store: until then, feedback on it waits."""
MOST_WAITING = 1000
"""Values of one giver that may wait."""
_WAITS = 7 * 86_400.0
_AHEAD = 60.0  # that the clock of another instance may be
_PURGE_EVERY = 3600.0
_SETTLED = 1000  # at a time
_CHUNK = 500  # request ids in one IN (...)
_said, _waiting, _events = feedback.c, feedback_waiting.c, usage_events.c


@dataclass(frozen=True, slots=True)
class Giver:
    """Who gives feedback: on the requests of this key and of this user; an administrator (`any_request`) on all."""

    key_hash: str | None = None
    user_id: str | None = None
    any_request: bool = False

    def owns(self, key_hash: str | None, user_id: str | None) -> bool:
        """Whether the request of this key and user is the giver's."""
        of_key = self.key_hash is not None and self.key_hash == key_hash
        return self.any_request or of_key or (self.user_id is not None and self.user_id == user_id)


@dataclass(frozen=True, slots=True)
class Feedback:
    """A value for a metric of one request; finite."""

    request_id: str
    metric: str
    value: float


class Received(StrEnum):
    """What became of a value."""

    RECORDED = "recorded"
    WAITING = "waiting"
    """The request is not in the store yet, or is somebody else's, which is not told apart."""
    NOT_FOUND = "not_found"
    """There is no such request, or it is somebody else's, which is not told apart."""
    TOO_MANY = "too_many"
    """`MOST_WAITING` values of the giver wait already."""


class FeedbackRepository:
    """The tables of feedback. Every method raises StoreError while the database cannot be used.

    Of a request and a metric the last value counts, and `updated_ms` says when that was said; the same value again
    changes nothing. What is said of a request that is named recently (within `ARRIVES_WITHIN`) and not in the store
    waits for its event, for 7 days, and counts if that turns out to be the giver's own.
    """

    def __init__(self, store: "Store") -> None:
        self._store = store
        self._next_purge = 0.0

    async def give(self, giver: Giver, values: Sequence[Feedback]) -> list[Received]:
        """Record the values, in one transaction; what became of each, in their order."""
        now = self._store.clock()
        now_ms = int(now * 1000)
        values = [Feedback(_clean(one.request_id), one.metric, one.value) for one in values]

        def work(connection: Connection) -> list[Received]:
            self._settle(connection, _waiting.giver == _name_of(giver))
            self._purge(connection)
            owners = _owners(connection, {one.request_id for one in values})
            room = MOST_WAITING - _waiting_of(connection, giver)
            own: dict[tuple[str, str], tuple[Any, ...]] = {}
            late: dict[tuple[str, str], tuple[Any, ...]] = {}
            found: list[Received] = []
            for one in values:
                key = (one.request_id, one.metric)
                owner = owners.get(one.request_id)
                if owner is not None and giver.owns(*owner):
                    own[key] = (*key, one.value, now_ms, now_ms, giver.key_hash)
                    found.append(Received.RECORDED)
                elif not _is_recent(one.request_id, now):
                    found.append(Received.NOT_FOUND)
                elif key not in late and len(late) >= room:
                    found.append(Received.TOO_MANY)
                else:
                    # Somebody else's too: neither the answer nor the time it takes tells that it is there.
                    late[key] = (*key, _name_of(giver), one.value, now_ms)
                    late[key] += (giver.key_hash, giver.user_id, giver.any_request)
                    found.append(Received.WAITING)
            self._record(connection, own.values())
            self._keep_waiting(connection, late.values())
            return found

        return await self._store.write(work)

    async def settle(self) -> int:
        """Count what has waited for events that are here by now; returns how many values those were."""
        arrived = select(exists().where(_waiting.request_id == _events.request_id))
        async with self._store.reading() as connection:
            if not (await connection.execute(arrived)).scalar():
                return 0
        return await self._store.write(self._settle)

    async def of(self, request_id: str) -> dict[str, float]:
        """What was said about a request: metric -> value."""
        chosen = select(_said.metric, _said.value).where(_said.request_id == _clean(request_id)).order_by(_said.metric)
        async with self._store.reading() as connection:
            return {row.metric: row.value for row in await connection.execute(chosen)}

    def _settle(self, connection: Connection, *of: ColumnElement[bool]) -> int:
        joined = feedback_waiting.join(usage_events, _waiting.request_id == _events.request_id)
        owner = (_events.key_hash.label("owner_key"), _events.user_id.label("owner_user"))
        arrived = select(feedback_waiting, *owner).select_from(joined)
        arrived = arrived.where(*of).order_by(_waiting.time_ms).limit(_SETTLED)
        place = tuple_(_waiting.request_id, _waiting.metric, _waiting.giver)
        settled = 0
        while rows := connection.execute(arrived).all():
            own = [row for row in rows if _giver_of(row).owns(row.owner_key, row.owner_user)]
            last = {(row.request_id, row.metric): row for row in own}
            new = ((*key, row.value, row.time_ms, row.time_ms, row.key_hash) for key, row in last.items())
            self._record(connection, new, waited=True)
            settled += len(last)
            for start in range(0, len(rows), _CHUNK):
                done = [(row.request_id, row.metric, row.giver) for row in rows[start : start + _CHUNK]]
                connection.execute(delete(feedback_waiting).where(place.in_(done)))
        return settled

    def _record(self, connection: Connection, rows: Iterable[tuple[Any, ...]], *, waited: bool = False) -> None:
        # In the order of the key, so that two transactions cannot wait for each other.
        given = [dict(zip(_said.keys(), row, strict=True)) for row in sorted(rows, key=lambda row: row[:2])]
        if not given:
            return
        new = self._insert(feedback)
        changed = _said.value != new.excluded.value
        statement = new.on_conflict_do_update(
            index_elements=[_said.request_id, _said.metric],
            set_={name: new.excluded[name] for name in ("value", "updated_ms", "key_hash")},
            # What has waited may have been overtaken.
            where=and_(changed, new.excluded.updated_ms >= _said.updated_ms) if waited else changed,
        )
        connection.execute(statement, given)

    def _keep_waiting(self, connection: Connection, rows: Iterable[tuple[Any, ...]]) -> None:
        given = [dict(zip(_waiting.keys(), row, strict=True)) for row in sorted(rows, key=lambda row: row[:3])]
        if not given:
            return
        new = self._insert(feedback_waiting)
        statement = new.on_conflict_do_update(
            index_elements=[_waiting.request_id, _waiting.metric, _waiting.giver],
            set_={name: new.excluded[name] for name in ("value", "time_ms", "key_hash", "user_id", "any_request")},
        )
        connection.execute(statement, given)

    def _purge(self, connection: Connection) -> None:
        """Now and then, drop what has waited for an event that never came."""
        now = self._store.clock()
        if now >= self._next_purge:
            self._next_purge = now + _PURGE_EVERY
            connection.execute(delete(feedback_waiting).where(_waiting.time_ms < int((now - _WAITS) * 1000)))

    def _insert(self, table: Any) -> Any:  # of either dialect
        return upserting(table, is_sqlite=self._store.is_sqlite)


def _owners(connection: Connection, request_ids: Iterable[str]) -> dict[str, tuple[str | None, str | None]]:
    """Key and user of each of the requests that is in the store."""
    asked, found = sorted(request_ids), dict[str, tuple[str | None, str | None]]()
    for start in range(0, len(asked), _CHUNK):
        names = (_events.request_id, _events.key_hash, _events.user_id)
        chosen = select(*names).where(_events.request_id.in_(asked[start : start + _CHUNK]))
        found.update((row.request_id, (row.key_hash, row.user_id)) for row in connection.execute(chosen))
    return found


def _waiting_of(connection: Connection, giver: Giver) -> int:
    counted: Select[int] = select(func.count()).where(_waiting.giver == _name_of(giver))
    return connection.execute(counted).scalar() or 0


def _name_of(giver: Giver) -> str:
    return _clean(giver.key_hash or giver.user_id or "")


def _giver_of(row: Row[*tuple[Any, ...]]) -> Giver:
    return Giver(row.key_hash, row.user_id, bool(row.any_request))


def _is_recent(request_id: str, now: float) -> bool:
    """Whether a request of this name can be on its way to the store (`core.ids.new_request_id`)."""
    digits = request_id[:8] + request_id[9:13]
    if len(request_id) != _LONG or request_id[8] != "-" or request_id[13:15] != "-7" or not set(digits) <= _HEX:
        return False
    named = int(digits, 16) / 1000
    return now - ARRIVES_WITHIN <= named <= now + _AHEAD


_LONG = 36
_HEX = frozenset("0123456789abcdef")


def _clean(text: str) -> str:
    return without_nul(text) or ""
