"""Reading a proxy's books: the usage events in its store, straight from the tables."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from core.usage import Attempt, UsageEvent
from tests.support.eventually import eventually_sync
from tests.support.proxy import ProxyProcess


class Books:
    """The usage events of one proxy, in the order of their arrival.

    `store` is the path of an SQLite file or a PostgreSQL URL; by default the file that a proxy makes in its folder.
    """

    def __init__(self, proxy: ProxyProcess, store: Path | str | None = None) -> None:
        self._proxy = proxy
        self._store = store or proxy.cwd / "orchestration.db"
        self._known: set[str] = set()

    def mark(self) -> None:
        """What is recorded now is old: `recorded` and `new` are about what comes after."""
        # The proxy answers before its store is ready.
        eventually_sync(lambda: self._rows("usage_events") is not None, what="the store having its tables")
        eventually_sync(lambda: self.backlog() == 0, what="nothing waiting outside the store")
        self._known = {row["request_id"] for row in self._rows("usage_events")}

    def recorded(self, count: int = 1, within: float = 15) -> list[UsageEvent]:
        """The events since the mark, once nothing waits outside the store; fails unless they are exactly `count`."""

        def drained() -> bool:
            return self.backlog() == 0 and len(self.new()) >= count

        eventually_sync(drained, within=within, what=f"{count} events in the store and none outside")
        found = self.new()
        assert len(found) == count, found
        return found

    def new(self) -> list[UsageEvent]:
        """The events that have reached the store since the mark."""
        return [event for event in self.all() if event.request_id not in self._known]

    def event(self, request_id: str, within: float = 15) -> UsageEvent:
        """One event, as soon as the store has it."""

        def found() -> UsageEvent | None:
            return next((event for event in self.all() if event.request_id == request_id), None)

        event = eventually_sync(found, within=within, what=f"event {request_id} in the store")
        assert event is not None
        return event

    def all(self) -> list[UsageEvent]:
        attempts: dict[str, list[Attempt]] = {}
        for row in sorted(self._rows("usage_attempts"), key=lambda row: row["number"]):
            values = {name: value for name, value in row.items() if name != "request_id"}
            values["accounts"] = tuple(json.loads(values["accounts"] or "[]"))
            attempts.setdefault(row["request_id"], []).append(Attempt(**values))
        rows = sorted(self._rows("usage_events"), key=lambda row: row["time_ms"])
        return [_event(row, attempts.get(row["request_id"], [])) for row in rows]

    def backlog(self) -> int:
        """How many records wait outside the store, as the proxy's status has it."""
        store, journal = self.status()["store"], self.status()["journal"]
        return store["backlog_events"] + journal["waiting_in_memory"]

    def status(self) -> dict[str, Any]:
        """What `GET /orchestration/status` says to an administrator."""
        with self._proxy.client() as admin:
            return admin.get("/orchestration/status").raise_for_status().json()

    def _rows(self, table: str) -> Sequence[Mapping[str, Any]]:
        if isinstance(self._store, str):
            with psycopg.connect(self._store, row_factory=dict_row, connect_timeout=5) as connection:
                return connection.execute(f"SELECT * FROM orchestration.{table}").fetchall()  # type: ignore[arg-type]
        with closing(sqlite3.connect(f"file:{self._store}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(f"SELECT * FROM {table}")]


def _event(row: Mapping[str, Any], attempts: list[Attempt]) -> UsageEvent:
    values = dict(row, groups=tuple(json.loads(row["groups"])))
    # SQLite knows no booleans.
    values |= {name: bool(row[name]) for name in ("streamed", "degraded", "disconnected")}
    return UsageEvent(**values, attempts=attempts)
