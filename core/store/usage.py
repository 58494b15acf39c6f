"""Usage events in the store: written once each, amended where something better is known, read back whole."""

import logging
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

import orjson
from sqlalchemy import Connection, RowMapping, delete, select, text, update

from core.budgets import Balance
from core.errors import StoreError
from core.journal import Amendment
from core.store.budgets import balances_of, charge
from core.store.tables import (
    ATTEMPT_COLUMNS,
    EVENT_COLUMNS,
    SCHEMA,
    usage_amendments,
    usage_assignments,
    usage_attempts,
    usage_events,
)
from core.store.writing import insert, without_nul
from core.usage import Attempt, UsageEvent

if TYPE_CHECKING:
    from core.reports import UsageReport
    from core.store.engine import Store

_LOG = logging.getLogger("orchestration.store")
_CHUNK = 500  # request ids in one IN (...)
_WAIT_FOR_EVENT = 7 * 86_400.0
_PURGE_EVERY = 3600.0
_TRIES = 10
_event_values = attrgetter(*EVENT_COLUMNS)
_attempt_values = attrgetter(*ATTEMPT_COLUMNS)
_GROUPS = EVENT_COLUMNS.index("groups")
_ACCOUNTS = ATTEMPT_COLUMNS.index("accounts")
# What an amendment may change (core/journal/amendment.py).
_AMENDED = (
    *("litellm_call_id", "deployment", "provider", "provider_model", "price_version", "usage"),
    *("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens", "cost_nano", "unknown_nano"),
)
_ATTEMPT_AMENDED = ("usage", "input_tokens", "output_tokens", "cost_nano")


@dataclass(slots=True, frozen=True)
class Written:
    """What one `write` changed: new events, and events that an amendment improved after they were stored.

    `balances` are those that every account now has which the attempts of these events name, new or not, and of every
    account that an amendment moved.
    """

    inserted: int
    amended: int
    balances: tuple[Balance, ...] = ()


REPLAY_COLUMNS = (
    *("time_ms", "endpoint", "key_hash", "key_alias", "user_id", "team_id", "groups", "tier", "task_type", "priority"),
    *("session_id", "asked_model", "used_model", "input_tokens", "output_tokens", "cost_nano", "status", "streamed"),
    *("traits", "error_class"),
)
"""What `UsageRepository.replay` gives of each request."""
_REPLAYED = 10_000


class _AlreadyThere(Exception):
    """Some of the events were stored before; rolls the transaction back."""


class UsageRepository:
    """The usage ledger's tables."""

    def __init__(self, store: "Store") -> None:
        self._store = store
        self._next_purge = 0.0

    async def write(self, events: Sequence[UsageEvent], amendments: Sequence[Amendment] = ()) -> Written:
        """Store all of this, or nothing, in one transaction; whatever was stored before is left alone.

        The accounts of the attempts are charged in the same transaction, for each event once. An amendment may come
        before its event: it waits in a table of its own, for 7 days. Raises StoreError while the database cannot be
        used and RecordRefused (a StoreError) when it will not hold one of the values.
        """
        by_id = {without_nul(event.request_id): event for event in reversed(events)}
        late: Sequence[Amendment] = []
        for amendment in amendments:
            event = by_id.get(without_nul(amendment.request_id))
            if event is None:
                late.append(amendment)
            else:
                amendment.improve(event)

        def work(connection: Connection, known: bool) -> Written:
            there = self._present(connection, list(by_id)) if known else set[str]()
            new = [event for request_id, event in by_id.items() if request_id not in there] if there else by_id.values()
            self._insert(connection, new)
            charges: dict[str, int] = {}
            for event in new:
                for attempt in event.attempts:
                    for key in attempt.accounts:
                        charges[key] = charges.get(key, 0) + attempt.cost_nano
            # Where some were there already, perhaps it is without what we just merged into our copies.
            missed = amendments if there else late
            waiting = self._waiting(connection)
            amended = self._amend(connection, [*waiting, *missed], charges) if waiting or missed else 0
            self._purge(connection)
            # Last, and in the order of their keys: whoever waits for these rows holds nothing that we still need.
            charge(connection, charges)
            if there:
                charges |= dict.fromkeys((key for each in events for one in each.attempts for key in one.accounts), 0)
            return Written(len(new), amended, tuple(balances_of(connection, charges)))

        # That nothing was there before is the rule, and costs nothing to find out: the rows inserted are counted.
        for looking in range(_TRIES):
            try:
                return await self._store.write(partial(work, known=looking > 0))
            except _AlreadyThere:
                pass
        raise StoreError(f"other workers keep writing the same usage events to {self._store.url}; trying again helps")

    async def get(self, request_id: str) -> UsageEvent | None:
        """The event with its attempts and assignments; None when there is none."""
        async with self._store.reading() as connection:
            event = (await connection.run_sync(self._load, [request_id])).get(request_id)
            if event is not None and event.variant:
                event.assignments = await connection.run_sync(_assignments_of, event)
        return event

    async def present(self, request_ids: Iterable[str]) -> set[str]:
        """Those of the requests whose events are stored. Raises StoreError."""
        wanted, found = list(request_ids), set[str]()
        async with self._store.reading() as connection:
            for start in range(0, len(wanted), _CHUNK):
                ids = wanted[start : start + _CHUNK]
                chosen = select(usage_events.c.request_id).where(usage_events.c.request_id.in_(ids))
                found.update((await connection.execute(chosen)).scalars())
        return found

    async def usage_report(
        self,
        start_ms: int,
        end_ms: int,
        by: Sequence[str] = ("user", "model"),
        filters: Mapping[str, str | int | bool | Sequence[str] | None] | None = None,
    ) -> "UsageReport":
        """Usage from `start_ms` up to, not including, `end_ms`, grouped; see `core.reports.usage_report`."""
        from core.reports import usage_report

        return await usage_report(self._store, start_ms, end_ms, by, filters)

    async def replay(
        self, since_ms: int, until_ms: int, chunk: int = _REPLAYED
    ) -> AsyncGenerator[list[tuple[Any, ...]]]:
        """What was asked from `since_ms` up to, not including, `until_ms`, in the order of its arrival, for decisions
        to be made again: `chunk` requests at a time, each the values of `REPLAY_COLUMNS`.

        As the driver gives them: groups are a JSON array, flags may be 0 and 1. All of it is as it was at the
        beginning; close the generator (`contextlib.aclosing`) where it is not read to its end. Raises StoreError.
        """
        names = ", ".join(f'"{name}"' for name in REPLAY_COLUMNS)
        table = "usage_events" if self._store.is_sqlite else f"{SCHEMA}.usage_events"
        # As text: what SQLAlchemy does with each value takes longer than reading it.
        asked = f"SELECT {names} FROM {table} WHERE time_ms >= :since AND time_ms < :until ORDER BY time_ms"  # noqa: S608
        async with self._store.reading() as connection:
            async for rows in connection.partitions(text(asked), chunk, {"since": since_ms, "until": until_ms}):
                yield cast("list[tuple[Any, ...]]", rows)

    def _present(self, connection: Connection, request_ids: Sequence[str | None]) -> set[str]:
        found: set[str] = set()
        for start in range(0, len(request_ids), _CHUNK):
            ids = request_ids[start : start + _CHUNK]
            chosen = select(usage_events.c.request_id).where(usage_events.c.request_id.in_(ids))
            found.update(connection.execute(chosen).scalars())
        return found

    def _insert(self, connection: Connection, events: Collection[UsageEvent]) -> None:
        rows: list[tuple[Any, ...]] = []
        attempts: list[tuple[Any, ...]] = []
        assignments: list[tuple[Any, ...]] = []
        for event in events:
            values = _event_values(event)
            rows.append((*values[:_GROUPS], _groups_text(event.groups), *values[_GROUPS + 1 :]))
            for attempt in event.attempts:
                values = _attempt_values(attempt)
                accounts = orjson.dumps(attempt.accounts).decode() if attempt.accounts else None
                attempts.append((event.request_id, *values[:_ACCOUNTS], accounts, *values[_ACCOUNTS + 1 :]))
            for experiment, variant, unit in event.assignments:
                assignments.append((experiment, event.request_id, variant, unit, event.time_ms))
        # Another worker may have stored one of them since we looked, too.
        if insert(connection, usage_events, rows) != len(rows):
            raise _AlreadyThere
        insert(connection, usage_attempts, attempts)
        insert(connection, usage_assignments, assignments)

    def _waiting(self, connection: Connection) -> list[Amendment]:
        """Amendments that waited for an event which is here now."""
        # Asked with every batch, so as text: building and looking up the statement would cost more than the answer.
        prefix = "" if self._store.is_sqlite else f"{SCHEMA}."
        statement = (
            f"SELECT amendment FROM {prefix}usage_amendments AS a "  # noqa: S608
            f"WHERE EXISTS (SELECT 1 FROM {prefix}usage_events AS e WHERE e.request_id = a.request_id)"
        )
        return [Amendment.from_json(each.encode()) for each in connection.exec_driver_sql(statement).scalars()]

    def _amend(self, connection: Connection, amendments: Sequence[Amendment], charges: dict[str, int]) -> int:
        """Improve what is stored, and add to `charges` what that moves in the accounts; returns how many changed."""
        request_ids = sorted({amendment.request_id for amendment in amendments})
        events = self._load(connection, request_ids, lock=True)
        charged = [attempt for event in events.values() for attempt in event.attempts if attempt.accounts]
        costs = [attempt.cost_nano for attempt in charged]
        changed: dict[str, UsageEvent] = {}
        early: list[tuple[str, str, int]] = []
        now = int(self._store.clock() * 1000)
        for amendment in amendments:
            event = events.get(amendment.request_id)
            if event is None:
                early.append((amendment.request_id, amendment.to_json().decode(), now))
            elif amendment.improve(event):
                changed[event.request_id] = event
        for event in changed.values():
            self._save(connection, event)
        for attempt, cost in zip(charged, costs, strict=True):
            for key in attempt.accounts if attempt.cost_nano != cost else ():
                charges[key] = charges.get(key, 0) + attempt.cost_nano - cost
        insert(connection, usage_amendments, early)
        if events:
            arrived = list(events)
            for start in range(0, len(arrived), _CHUNK):
                ids = arrived[start : start + _CHUNK]
                connection.execute(delete(usage_amendments).where(usage_amendments.c.request_id.in_(ids)))
        return len(changed)

    def _purge(self, connection: Connection) -> None:
        """Now and then, drop the amendments whose event never came: it was refused, or lost with its machine."""
        now = self._store.clock()
        if now < self._next_purge:
            return
        self._next_purge = now + _PURGE_EVERY
        old = usage_amendments.c.since_ms < int((now - _WAIT_FOR_EVENT) * 1000)
        if dropped := connection.execute(delete(usage_amendments).where(old)).rowcount:
            _LOG.warning("%d amendments of usage were dropped: their events did not come within 7 days", dropped)

    def _save(self, connection: Connection, event: UsageEvent) -> None:
        connection.execute(
            update(usage_events)
            .where(usage_events.c.request_id == event.request_id)
            .values({name: _kept(getattr(event, name)) for name in _AMENDED})
        )
        for attempt in event.attempts:
            connection.execute(
                update(usage_attempts)
                .where(usage_attempts.c.request_id == event.request_id, usage_attempts.c.number == attempt.number)
                .values({name: getattr(attempt, name) for name in _ATTEMPT_AMENDED})
            )

    def _load(self, connection: Connection, request_ids: Sequence[str], lock: bool = False) -> dict[str, UsageEvent]:
        events: dict[str, UsageEvent] = {}
        for start in range(0, len(request_ids), _CHUNK):
            ids = request_ids[start : start + _CHUNK]
            chosen = select(usage_events).where(usage_events.c.request_id.in_(ids)).order_by(usage_events.c.request_id)
            for row in connection.execute(chosen.with_for_update() if lock else chosen).mappings():
                events[row["request_id"]] = _event(row)
            of_these = select(usage_attempts).where(usage_attempts.c.request_id.in_(ids))
            ordered = of_these.order_by(usage_attempts.c.request_id, usage_attempts.c.number)
            for row in connection.execute(ordered).mappings():
                if event := events.get(row["request_id"]):
                    event.attempts.append(_attempt(row))
        return events


def _kept(value: str | int | None) -> str | int | None:
    return without_nul(value) if isinstance(value, str) else value


def _groups_text(groups: tuple[str, ...]) -> str:
    return orjson.dumps(groups).decode() if groups else "[]"


def _assignments_of(connection: Connection, event: UsageEvent) -> tuple[tuple[str, str, str], ...]:
    """In the order in which the event's variants name the experiments."""
    columns = usage_assignments.c
    names = [variant.partition("/")[0] for variant in (event.variant or "").split(",")]
    chosen = select(columns.experiment, columns.variant, columns.unit).where(
        columns.experiment.in_(names), columns.request_id == event.request_id
    )
    found = {row.experiment: (row.experiment, row.variant, row.unit) for row in connection.execute(chosen)}
    return tuple(found[name] for name in names if name in found)


def _attempt(row: RowMapping) -> Attempt:
    values = {name: row[name] for name in ATTEMPT_COLUMNS}
    values["accounts"] = tuple(orjson.loads(values["accounts"] or b"[]"))
    return Attempt(**values)


def _event(row: RowMapping) -> UsageEvent:
    values = {name: row[name] for name in EVENT_COLUMNS}
    values["groups"] = tuple(orjson.loads(values["groups"]))
    return UsageEvent(**values)
