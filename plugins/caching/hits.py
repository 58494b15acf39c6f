"""An answer that exists, sent to a client as its own."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from core.asgi import Send
from core.cache.entry import Entry
from core.usage import UsageState
from plugins.receipt import Receipt

if TYPE_CHECKING:
    from plugins.exchange import Exchange

HIT, SHARED, STALE, PARTIAL, MISS = "hit", "shared", "stale", "partial", "miss"
OK = 200


def note(exchange: "Exchange", entry: Entry, how: str = HIT) -> None:
    """The exchange is answered with this, for nothing."""
    exchange.stream = entry.is_stream
    answered(exchange, entry.status, entry.model, how, entry.input_tokens, entry.output_tokens)


def answered(exchange: "Exchange", status: int, model: str | None, how: str, tokens_in: int, tokens_out: int) -> None:
    exchange.cached, exchange.cached_model, exchange.status = how, model, status
    exchange.receipt = Receipt(UsageState.NONE, tokens_in, tokens_out, cost_nano=0, from_cache=True)
    exchange.error_class = None


async def send(
    entry: Entry,
    exchange: "Exchange",
    to_client: Send,
    record: Callable[[], None],
    own: Callable[[], list[tuple[bytes, bytes]]],
) -> None:
    """`own` gives the headers of this request; `record` writes the books, before the last byte leaves."""
    headers = [*entry.headers, *own()]
    if not entry.is_stream:
        record()
        headers.append((b"content-length", b"%d" % len(entry.body)))
        await to_client({"type": "http.response.start", "status": entry.status, "headers": headers})
        await to_client({"type": "http.response.body", "body": entry.body})
        return
    await to_client({"type": "http.response.start", "status": entry.status, "headers": headers})
    for chunk in entry.chunks():
        if exchange.first_byte is None:
            exchange.note_first_byte()
        await to_client({"type": "http.response.body", "body": chunk, "more_body": True})
    record()
    await to_client({"type": "http.response.body", "body": b""})
