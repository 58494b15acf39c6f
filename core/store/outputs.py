"""How long answers were, as the store remembers them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import select

from core.store.tables import usage_events
from core.usage import UsageState

if TYPE_CHECKING:
    from core.store.engine import Store

_events = usage_events.c


@dataclass(frozen=True, slots=True)
class Output:
    """One answer. `cut` where it ended at a limit that we had set."""

    time_ms: int
    model: str
    task_type: str | None
    tokens: int
    cut: bool


async def outputs(store: "Store", since_ms: int, limit: int, but_of: str | None = None) -> list[Output]:
    """The newest answers since then whose length a provider reported, at most `limit`, oldest first; those of the
    instance `but_of` are left out. Raises StoreError."""
    chosen = select(_events.time_ms, _events.used_model, _events.task_type, _events.output_tokens, _events.clamped)
    chosen = chosen.where(
        _events.time_ms >= since_ms,
        _events.usage == UsageState.REPORTED,
        _events.output_tokens > 0,
        _events.used_model.is_not(None),
    )
    if but_of is not None:
        chosen = chosen.where(_events.instance != but_of)
    async with store.reading() as connection:
        rows = (await connection.execute(chosen.order_by(_events.time_ms.desc()).limit(limit))).all()
    return [
        Output(row.time_ms, row.used_model, row.task_type, row.output_tokens, _cut(row.clamped, row.output_tokens))
        for row in reversed(rows)
    ]


def _cut(clamped: int | None, tokens: int) -> bool:
    return clamped is not None and tokens >= clamped
