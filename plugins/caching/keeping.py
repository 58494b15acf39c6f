"""An answer as it is kept, made of a request that is over."""

from typing import TYPE_CHECKING

from core.cache import Answer
from core.cache.entry import Entry
from plugins.caching.asking import Asking
from plugins.caching.recording import Recording, as_one

if TYPE_CHECKING:
    from core.settings.models.caching import Caching
    from plugins.exchange import Exchange

_MOST_TAGS = 20
_AT_LIMIT = (b'"finish_reason":"length"', b'"stop_reason":"max_tokens"', b'"max_output_tokens"', b'"MAX_TOKENS"')


def of(
    exchange: "Exchange", asking: Asking, recording: Recording, now_ms: int, settings: "Caching"
) -> tuple[Answer, Entry]:
    """What decides whether an answer is kept, and what is kept then."""
    ready, receipt, context = asking.ready, exchange.receipt, exchange.context
    assert ready is not None
    body, ends = as_one(recording.without_cost(exchange.cost_nano), recording.stream)
    used = exchange.attempts[-1] if exchange.attempts else None
    by_id = used is not None and used.deployment == ready.label.model
    answer = Answer(
        exchange.endpoint,
        recording.status,
        body,
        recording.stream,
        recording.complete,
        degraded=exchange.degraded or (exchange.spending is not None and bool(exchange.spending.degraded)),
        clamped=exchange.asked is not None and exchange.asked.clamped is not None and _ran_out(body),
        begun_by=ready.label.model,
        model="" if used is None else ready.label.model if by_id else used.model,
    )
    entry = Entry(
        recording.status,
        recording.headers,
        body,
        ends,
        ready.label.model,
        now_ms,
        ttl_ms=int(ready.ttl * 1000),
        stale_ms=int(settings.serve_stale * 1000),
        user_id=context.caller.user_id if context is not None else None,
        task_type=context.task_type if context is not None else None,
        tags=_tags(asking),
        input_tokens=receipt.input_tokens if receipt is not None else 0,
        output_tokens=receipt.output_tokens if receipt is not None else 0,
        cost_nano=exchange.cost_nano,
    )
    return answer, entry


def _tags(asking: Asking) -> tuple[str, ...]:
    """What the client has its answer known by: `tags` in its metadata."""
    metadata = (asking.body or {}).get("metadata")
    tags = metadata.get("tags") if isinstance(metadata, dict) else None
    return tuple(str(tag)[:128] for tag in tags[:_MOST_TAGS]) if isinstance(tags, list) else ()


def _ran_out(body: bytes) -> bool:
    """Whether an answer says that it ended at its limit."""
    written = body.replace(b" ", b"")
    return any(sign in written for sign in _AT_LIMIT)
