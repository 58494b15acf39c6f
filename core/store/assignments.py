"""What became of the units of an experiment: sums for each of them over its requests, worked out in the store.

An assignment counts from the first request that was admitted: what budgets, limits or tiers refused before a model was
asked exposes nobody. From then on everything counts for the arm that the unit was assigned to first, whatever was
delivered in the end.
"""

from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import orjson
from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Double,
    Select,
    Text,
    and_,
    case,
    cast,
    collate,
    false,
    func,
    literal,
    not_,
    or_,
    select,
    union_all,
)

from core.errors import RequestRefused
from core.store.tables import feedback, usage_assignments, usage_events

if TYPE_CHECKING:
    from core.store.engine import Store

_CLIENT_LEFT = 499
_CLIENT_ERROR, _SERVER_ERROR = 400, 500
_MODEL_DECLINED = "ContentPolicyViolationError"
_FETCHED = 5000
_LAST = (1 << 63) - 1
_assigned, _events = usage_assignments.c, usage_events.c


@dataclass(slots=True)
class UnitTotals:
    """The sums over the admitted requests of one unit, which is analysed under the arm that it had first.

    Money in nano-dollars, times in milliseconds; `first_ms` is when its first request arrived (Unix milliseconds).
    `errors` are requests that failed, other than by a refusal, or by the client leaving. `refusals` are those that we
    refused between two attempts, and those that the provider's content policy refused. `displaced` ones came to another
    model than the arm's in the end. `cached` answers have no part in cost, latency and time to first token; latency is
    of what was answered in full, `latencies` says how often it was how long. `tokens` are input and output. `feedback`
    is metric -> (count, sum). `crossed` counts the requests that were assigned to another arm, after the shares had
    changed.
    """

    variant: str
    unit: str
    first_ms: int
    requests: int = 0
    errors: int = 0
    refusals: int = 0
    cached: int = 0
    degraded: int = 0
    displaced: int = 0
    cost_nano: int = 0
    latency_ms_sum: int = 0
    latency_count: int = 0
    ttft_sum: int = 0
    ttft_count: int = 0
    tokens: int = 0
    latencies: dict[int, int] = field(default_factory=dict[int, int])
    feedback: dict[str, tuple[int, float]] = field(default_factory=dict[str, tuple[int, float]])
    crossed: int = 0


_SUMS = (
    *("requests", "errors", "refusals", "cached", "degraded", "displaced", "cost_nano"),
    *("latency_ms_sum", "latency_count", "ttft_sum", "ttft_count", "tokens"),
)


async def unit_totals(
    store: "Store", experiment: str, since_ms: int, until_ms: int, models: Mapping[str, str] = MappingProxyType({})
) -> AsyncGenerator[UnitTotals]:
    """The units that were exposed to an experiment from `since_ms` up to, not including, `until_ms`.

    The first arm of a unit is the first one in this period, so it should begin with the experiment. All of it is as it
    was at the beginning. `models` are those of the arms that have one; others have nothing displaced. Close the
    generator (`contextlib.aclosing`) where it is not read to its end. Raises StoreError.
    """
    await store.feedback.settle()
    query = _Query(store.is_sqlite, experiment, since_ms, until_ms, models)
    async with store.reading() as connection:
        unit: UnitTotals | None = None
        async for rows in connection.partitions(query.units(), _FETCHED):
            for row in rows:
                if unit is None or unit.unit != row[0]:
                    if unit is not None and unit.requests:
                        yield unit
                    unit = UnitTotals(row[1], row[0], row[2])
                _add(unit, row)
        # One without requests has feedback on what was refused alone.
        if unit is not None and unit.requests:
            yield unit


def _add(unit: UnitTotals, row: Any) -> None:  # as the driver gives it
    """One row of `_Query.units`: the sums under one arm, or a metric of feedback."""
    _, variant, _, metric, said, total, latencies, *sums = row
    if metric is not None:
        unit.feedback[metric] = (said, total)
        return
    for name, value in zip(_SUMS, sums, strict=True):
        setattr(unit, name, getattr(unit, name) + value)
    if variant != unit.variant:
        unit.crossed += sums[0]
    # An array of PostgreSQL, or JSON.
    for latency in orjson.loads(latencies) if isinstance(latencies, str) else latencies or ():
        unit.latencies[latency] = unit.latencies.get(latency, 0) + 1


class _Query:
    """The SQL, the same for both databases."""

    def __init__(
        self, is_sqlite: bool, experiment: str, since_ms: int, until_ms: int, models: Mapping[str, str]
    ) -> None:
        self._is_sqlite = is_sqlite
        self._wanted = and_(
            _assigned.experiment == experiment, _assigned.time_ms >= since_ms, _assigned.time_ms < until_ms
        )
        self._array = Text() if is_sqlite else ARRAY(BigInteger)
        self._joined = usage_assignments.join(usage_events, _assigned.request_id == _events.request_id)
        # Errors are rare: whoever has none is not looked for in the lists.
        failed = _events.error_class.is_not(None)
        ours = and_(failed, _events.error_class.in_(sorted(_our_refusals())))
        left = or_(_events.disconnected, _events.status == _CLIENT_LEFT)
        wrong = or_(failed, _events.status >= _CLIENT_ERROR, _events.status == 0)
        self._admitted = not_(and_(ours, _events.used_model.is_(None)))
        self._refused = and_(failed, or_(ours, _events.error_class == _MODEL_DECLINED))
        self._failed = and_(wrong, not_(self._refused), not_(left))
        self._cached = and_(_events.cache.is_not(None), _events.cache.in_(["hit", "shared"]))
        others = [and_(_assigned.variant == variant, _events.used_model != name) for variant, name in models.items()]
        self._displaced = or_(false(), *others)
        self._measured = and_(not_(wrong), not_(left), not_(self._cached))

    def units(self) -> Select[*tuple[Any, ...]]:
        """Rows of a unit, one after the other: first the sums of each arm that it had, the first arm first, then those
        of each metric of feedback."""
        each = self._each_request().subquery("each_request").c
        sums: dict[str, ColumnElement[Any]] = {
            "requests": func.count(),
            "latency_count": func.count(each.latency_ms_sum),
            "ttft_count": func.count(each.ttft_sum),
        }
        arms = select(
            each.unit,
            each.variant,
            func.min(each.time_ms).label("first_ms"),
            cast(literal(None, Text), Text).label("metric"),
            cast(literal(0, BigInteger), BigInteger).label("said"),
            cast(literal(0.0, Double), Double).label("total"),
            self._array_of(each.latency_ms_sum).label("latencies"),
            *((sums[name] if name in sums else _sum(each[name])).label(name) for name in _SUMS),
        ).group_by(each.unit, each.variant)
        unit = self._unit()
        zero = cast(literal(0, BigInteger), BigInteger)
        said = (
            select(
                unit.label("unit"),
                cast(literal("", Text), Text).label("variant"),
                cast(literal(_LAST, BigInteger), BigInteger).label("first_ms"),
                feedback.c.metric.label("metric"),
                func.count().label("said"),
                func.sum(feedback.c.value).label("total"),
                cast(literal(None, self._array), self._array).label("latencies"),
                *(zero.label(name) for name in _SUMS),
            )
            .select_from(usage_assignments.join(feedback, _assigned.request_id == feedback.c.request_id))
            .where(self._wanted)
            .group_by(unit, feedback.c.metric)
        )
        both = union_all(arms, said).subquery("both_kinds").c
        metric = case((both.metric.is_(None), 0), else_=1)
        return select(*both).order_by(both.unit, metric, both.first_ms, both.variant, both.metric)

    def _each_request(self) -> Select[*tuple[Any, ...]]:
        values = {
            "errors": _flag(self._failed),
            "refusals": _flag(self._refused),
            "cached": _flag(self._cached),
            "degraded": _flag(_events.degraded),
            "displaced": _flag(self._displaced),
            "cost_nano": case((self._cached, 0), else_=_events.cost_nano),
            "latency_ms_sum": case((self._measured, _events.latency_ms)),
            "ttft_sum": case((self._measured, _events.first_token_ms)),
            "tokens": _events.input_tokens + _events.output_tokens,
        }
        named = [value.label(name) for name, value in values.items()]
        chosen = select(self._unit().label("unit"), _assigned.variant, _assigned.time_ms, *named)
        chosen = chosen.select_from(self._joined).where(self._wanted, self._admitted)
        # With a limit, SQLite works each of these out once, and not once for every sum that it is in.
        return chosen.limit(_LAST) if self._is_sqlite else chosen

    def _array_of(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        collected = func.json_group_array(column) if self._is_sqlite else func.array_agg(column, type_=self._array)
        return collected.filter(column.is_not(None))

    def _unit(self) -> ColumnElement[Any]:
        # Any order will do, and this is the quickest.
        return _assigned.unit if self._is_sqlite else collate(_assigned.unit, "C")


def _flag(condition: ColumnElement[bool]) -> ColumnElement[Any]:
    return case((condition, 1), else_=0)


def _sum(value: ColumnElement[Any]) -> ColumnElement[Any]:
    # PostgreSQL sums to numeric.
    return cast(func.coalesce(func.sum(value), 0), BigInteger)


def _our_refusals() -> Iterator[str]:
    """What usage events call the requests that were refused here, not by a provider."""
    kinds: list[type[RequestRefused]] = [RequestRefused]
    while kinds:
        kind = kinds.pop()
        if kind.status < _SERVER_ERROR:
            yield kind.__name__
        kinds += kind.__subclasses__()
