"""The usage report: who used what, and what it cost, from the store; numbers only, no formatting."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import ColumnElement, Select, and_, case, cast, func, literal, or_, select, true

from core.errors import StoreError
from core.money import format_dollars
from core.store.tables import usage_events as events

if TYPE_CHECKING:
    from core.store.engine import Store

Value: TypeAlias = str | int | bool | None
"""A group's key in one dimension; None where the events have none."""

_DAY_MS = 86_400_000
_HOUR_MS = 3_600_000
_PERCENTILES = (50, 95)
_SUMMED = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens", "cost_nano", "unknown_nano")

DIMENSIONS: Mapping[str, str] = {
    "user": "user_id",
    "team": "team_id",
    "key": "key_hash",
    "key_alias": "key_alias",
    "model": "used_model",
    "asked_model": "asked_model",
    "provider": "provider",
    "provider_model": "provider_model",
    "deployment": "deployment",
    "tier": "tier",
    "task_type": "task_type",
    "group": "groups",
    "endpoint": "endpoint",
    "policy": "policy",
    "variant": "variant",
    "session": "session_id",
    "status": "status",
    "error": "error_class",
    "cache": "cache",
    "usage": "usage",
    "streamed": "streamed",
    "instance": "instance",
    "day": "time_ms",
    "hour": "time_ms",
}
"""What a report can be grouped and filtered by -> the column it comes from. Days and hours are UTC.

An event counts in each of its user groups, so with `group` the rows add up to more than the totals.
"""


@dataclass(slots=True)
class Usage:
    """The sums over some events. Money in nano-dollars, times in milliseconds, None where nothing was measured.

    Percentiles interpolate linearly between the two nearest events (PostgreSQL's percentile_cont, NumPy's default).
    """

    requests: int = 0
    errors: int = 0
    """Requests with a status of 400 or above, or an error class."""
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost_nano: int = 0
    unknown_nano: int = 0
    """The part of the cost that was charged at an upper bound."""
    cache_hits: int = 0
    """Answers that came from the cache or were shared with a request in flight."""
    latency_p50_ms: float | None = None
    latency_p95_ms: float | None = None
    first_token_p50_ms: float | None = None
    first_token_p95_ms: float | None = None

    @property
    def cache_share(self) -> float:
        """Part of the requests that a cache answered, 0 to 1."""
        return self.cache_hits / self.requests if self.requests else 0.0


@dataclass(slots=True)
class UsageRow:
    """One group: its key in each dimension of the report, and its sums."""

    key: tuple[Value, ...]
    usage: Usage


@dataclass(slots=True)
class UsageReport:
    """Usage from `start_ms` up to, not including, `end_ms`: rows in falling order of cost, and the sum of it all."""

    start_ms: int
    end_ms: int
    by: tuple[str, ...]
    rows: list[UsageRow] = field(default_factory=list[UsageRow])
    totals: Usage = field(default_factory=Usage)


def as_json(report: UsageReport) -> dict[str, Any]:
    """The report for programs: money both exact, in nano-dollars, and as decimal text; times in ISO 8601."""
    return {
        "start": iso(report.start_ms),
        "end": iso(report.end_ms),
        "by": list(report.by),
        "rows": [dict(zip(report.by, row.key, strict=True)) | _numbers(row.usage) for row in report.rows],
        "totals": _numbers(report.totals),
    }


def iso(time_ms: int) -> str:
    """Unix milliseconds as people write a moment in UTC."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat().replace("+00:00", "Z")


def _numbers(of: Usage) -> dict[str, Any]:
    return asdict(of) | {"cost": format_dollars(of.cost_nano), "cache_share": round(of.cache_share, 6)}


async def usage_report(
    store: "Store",
    start_ms: int,
    end_ms: int,
    by: Sequence[str] = ("user", "model"),
    filters: Mapping[str, Value | Sequence[str]] | None = None,
) -> UsageReport:
    """Group the events of a period by DIMENSIONS; rows and totals see the same state of the store.

    `filters` keeps the events whose dimension has this value (None: has none), or one of several. Raises ValueError
    for an unknown dimension, StoreError when the store cannot be read.
    """
    if unknown := [name for name in (*by, *(filters or {})) if name not in DIMENSIONS]:
        raise ValueError(f"no dimension {', '.join(unknown)}; there are {', '.join(DIMENSIONS)}")
    report = UsageReport(start_ms, end_ms, tuple(dict.fromkeys(by)))
    query = _Query(store.is_sqlite)
    wanted = and_(events.c.time_ms >= start_ms, events.c.time_ms < end_ms, *query.conditions(filters or {}))
    async with store.reading() as connection:
        try:
            for row in await connection.execute(query.grouped((), wanted)):
                report.totals = _usage(tuple(row))
            if report.totals.requests:
                for row in await connection.execute(query.grouped(report.by, wanted)):
                    key = tuple(_readable(name, value) for name, value in zip(report.by, row, strict=False))
                    report.rows.append(UsageRow(key, _usage(tuple(row)[len(key) :])))
        except Exception as error:
            if "integer overflow" in str(error):
                raise StoreError("a sum does not fit into 64 bits (9.2 billion dollars); ask for less time") from error
            raise
    report.rows.sort(key=lambda row: (-row.usage.cost_nano, -row.usage.requests, [str(part) for part in row.key]))
    return report


class _Query:
    """The SQL, the same for both databases but for the unfolding of a JSON array."""

    def __init__(self, is_sqlite: bool) -> None:
        if is_sqlite:
            self._groups = func.json_each(events.c.groups).table_valued("value", name="user_groups")
        else:
            from sqlalchemy.dialects.postgresql import JSONB

            names = func.jsonb_array_elements_text(cast(events.c.groups, JSONB))
            self._groups = names.table_valued("value", name="user_groups")

    def conditions(self, filters: Mapping[str, Value | Sequence[str]]) -> list[ColumnElement[bool]]:
        return [self._condition(name, value) for name, value in filters.items()]

    def _condition(self, name: str, value: Value | Sequence[str]) -> ColumnElement[bool]:
        values: list[Any] = [value] if value is None or isinstance(value, (str, int)) else list(value)
        if name == "group":
            if value is None:
                return events.c.groups == "[]"
            return select(literal(1)).select_from(self._groups).where(self._groups.c.value.in_(values)).exists()
        if name in {"day", "hour"}:
            unit = _DAY_MS if name == "day" else _HOUR_MS
            starts = [int(_moment(str(each)).timestamp() * 1000) for each in values]
            return or_(*(and_(events.c.time_ms >= start, events.c.time_ms < start + unit) for start in starts))
        column = events.c[DIMENSIONS[name]]
        present = [each for each in values if each is not None]
        if name == "status":
            present = [int(each) for each in present]
        chosen = column.in_(present)
        return or_(chosen, column.is_(None)) if None in values else chosen

    def grouped(self, by: Sequence[str], wanted: ColumnElement[bool]) -> Select[*tuple[Any, ...]]:
        """One row a group: its key, then the fields of `Usage` as `_usage` reads them."""
        keys = [self._key(name).label(f"key_{number}") for number, name in enumerate(by)]
        same = [self._key(name) for name in by]
        measured = {"latency": events.c.latency_ms, "first_token": events.c.first_token_ms}
        ranks: list[ColumnElement[Any]] = []
        for name, column in measured.items():
            rank = func.row_number().over(partition_by=same, order_by=[column.is_(None), column])
            ranks += [rank.label(f"{name}_at"), func.count(column).over(partition_by=same).label(f"{name}_of")]
        source = events
        if "group" in by:
            source = events.outerjoin(self._groups, true())
        each = select(*keys, events, *ranks).select_from(source).where(wanted).subquery("each_event")
        failed = or_(each.c.status >= 400, each.c.error_class.is_not(None))
        cached = each.c.cache.in_(["hit", "shared"])
        sums: list[ColumnElement[Any]] = [
            func.count(),
            func.sum(case((failed, 1), else_=0)),
            *(func.sum(each.c[name]) for name in _SUMMED),
            func.sum(case((cached, 1), else_=0)),
        ]
        for name, column in measured.items():
            at, of, value = each.c[f"{name}_at"], each.c[f"{name}_of"], each.c[column.name]
            sums.append(func.max(of))
            for percent in _PERCENTILES:
                # The two neighbours of the percentile; where between them it lies, `_between` works out.
                below = (of - 1) * percent // 100 + 1
                sums.append(func.max(case((at == below, value))))
                sums.append(func.max(case((and_(at == below + 1, at <= of), value))))
        groups = [each.c[key.name] for key in keys]
        return select(*groups, *sums).group_by(*groups)

    def _key(self, name: str) -> ColumnElement[Any]:
        if name == "group":
            return self._groups.c.value
        column = events.c[DIMENSIONS[name]]
        if name == "day":
            return column - column % literal(_DAY_MS, literal_execute=True)
        if name == "hour":
            return column - column % literal(_HOUR_MS, literal_execute=True)
        return column


def _usage(values: tuple[Any, ...]) -> Usage:
    count = 9
    usage = Usage(*(int(value or 0) for value in values[:count]))
    latency, first_token = values[count : count + 5], values[count + 5 : count + 10]
    usage.latency_p50_ms, usage.latency_p95_ms = _percentiles(*latency)
    usage.first_token_p50_ms, usage.first_token_p95_ms = _percentiles(*first_token)
    return usage


def _percentiles(of: int | None, *neighbours: int | None) -> tuple[float | None, float | None]:
    return _between(of, 50, *neighbours[:2]), _between(of, 95, *neighbours[2:])


def _between(of: int | None, percent: int, below: int | None, above: int | None) -> float | None:
    if not of or below is None:
        return None
    part = (of - 1) * percent % 100
    return float(below) if above is None or not part else below + (above - below) * part / 100


def _readable(name: str, value: Any) -> Value:  # what the driver gives for a column
    if name == "streamed":
        return bool(value)
    if name in {"day", "hour"}:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=int(value))
        return moment.strftime("%Y-%m-%d" if name == "day" else "%Y-%m-%dT%H:00Z")
    return value


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
