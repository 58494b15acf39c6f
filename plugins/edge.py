"""The edge: an ASGI wrapper round LiteLLM's app, first to see a request and last to see its answer.

For a route that costs money it opens an `Exchange`, lets LiteLLM's pipeline and our hooks fill it, adds our headers
to the answer, and has the books written before the last byte leaves.
"""

from typing import TYPE_CHECKING

import orjson

from core.asgi import App, Message, Receive, Scope, Send
from core.errors import BodyTooLarge, NotReady, NotRecordable, RequestRefused, RouteRefused
from core.money import to_dollars
from plugins import listing, outcome, receipt, second_try
from plugins.batches.service import Batches
from plugins.caching import hits
from plugins.caching import service as caching
from plugins.caching.asking import Asking
from plugins.caching.sharing import Turn
from plugins.exchange import INTERRUPTED, Exchange, current
from plugins.identities import may_change
from plugins.limits import Entrance
from plugins.limits.headers import put
from plugins.log import unlogged
from plugins.metrics import traffic
from plugins.resilience import outages
from plugins.resilience import service as resilience
from plugins.resilience.degraded import Body
from plugins.routes import ROUTES, Handling

if TYPE_CHECKING:
    from core.cache.entry import Entry
    from core.runtime import Runtime, Snapshot


class Edge:
    def __init__(self, app: App, runtime: "Runtime") -> None:
        self.app = app
        self.runtime = runtime
        self.entrance: Entrance | None = None
        self._followed: Snapshot | None = None
        self.batches = Batches(app, runtime, self.entrance_now)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        path = _path(scope)
        route = ROUTES.of(scope.get("method", "WEBSOCKET"), path)
        if route.handling is Handling.ENFORCED and kind == "http":
            await self._enforced(route.endpoint, scope, receive, send)
        elif route.handling is Handling.REFUSED and self.runtime.counts_spending:
            await _refuse(kind, RouteRefused(_refusal(scope)), send)
        elif route.handling is Handling.LATER and kind == "http" and self.runtime.counts_spending:
            if route.endpoint == "batches":
                await self._enforced(route.endpoint, scope, receive, send)
            else:
                await self.batches.serve(route.endpoint, scope, receive, send)
        elif path in listing.PATHS:
            await listing.serve(self.app, scope, receive, send)
        elif caching.caching is not None and kind == "http" and may_change(scope["method"], path):
            await self.app(scope, receive, caching.caching.watched(send))
        else:
            await self.app(scope, receive, send)

    async def _enforced(self, endpoint: str, scope: Scope, receive: Receive, send: Send) -> None:
        runtime = self.runtime
        if not runtime.ready.is_set():
            await runtime.ready.wait()
        if runtime.failure is not None:
            await _refuse("http", NotReady(f"This worker could not start: {runtime.failure}"), send)
            return
        most = runtime.settings.limits.max_body_bytes
        declared = _content_length(scope["headers"])
        if declared is not None and declared > most:
            await _refuse("http", _too_large(most), send)
            return
        if not runtime.journal.accepting:
            message = (
                "Usage can be written neither to the journal nor to memory; nothing may be spent. See the proxy's log."
            )
            await _refuse("http", NotRecordable(message, headers={"retry-after": "5"}), send)
            return
        entrance = self.entrance_now()
        try:
            resilience.arrive(scope["headers"])
        except RequestRefused as overloaded:
            # A line of the access log takes several times as long as all the rest, and there are many now.
            await _refuse("http", overloaded, unlogged(send))
            return
        try:
            await entrance.arrive(scope)
        except RequestRefused as refusal:
            await _refuse("http", refusal, send)
            return
        exchange = Exchange(endpoint, scope["headers"], declared or 0)
        answer = _Answer(exchange, runtime, send)
        if declared is None:
            receive = _counted(receive, answer, most)
        exchange.entrance, exchange.receive = entrance, receive
        token = current.set(exchange)
        try:
            cache = caching.caching
            if cache is not None and (asking := await cache.ask(exchange, scope, receive)) is not None:
                scope, receive = asking.plain_scope(), asking.receive
                if await cache.at_the_edge(exchange, asking, answer):
                    return
            if (arrival := await outages.arrive(exchange, scope, receive)) is not None:
                receive = arrival.receive
                if await outages.at_the_edge(exchange, arrival, answer):
                    return
            if endpoint in second_try.ENDPOINTS:
                await second_try.SecondTry(exchange, receive, answer.send).run(self.app, scope)
            elif endpoint == "batches":
                refusal = await self.batches.create(exchange, scope, receive, answer.send)
                if refusal is not None:
                    exchange.refused(refusal)
                    await answer.refuse(refusal)
            else:
                await self.app(scope, receive, caching.way_back(exchange, answer))
        finally:
            current.reset(token)
            answer.close()
            exchange.leave()
            caching.over(exchange)
            resilience.leave(exchange)

    def entrance_now(self) -> Entrance:
        """The way in, with the settings in force."""
        snapshot, entrance = self.runtime.snapshot, self.entrance
        if entrance is not None and snapshot is self._followed:
            return entrance
        settings, keys = self.runtime.settings, snapshot.directory.entries
        if entrance is None:
            entrance = self.entrance = Entrance.build(settings, keys, self.runtime.shared_url)
        entrance.follow(settings, keys)
        self._followed = snapshot
        return entrance


_ERROR = b"event: error\n"
"""JSON has no line ends, so this stands in no answer's text."""


class _Answer:
    """The sending side of one exchange."""

    __slots__ = ("exchange", "refused", "runtime", "started", "to_client")

    def __init__(self, exchange: Exchange, runtime: "Runtime", to_client: Send) -> None:
        self.exchange = exchange
        self.runtime = runtime
        self.to_client = to_client
        self.started = False
        self.refused = False

    async def send(self, message: Message) -> None:
        if self.refused:
            return
        if message["type"] == "http.response.start":
            if (asking := self.exchange.asking) is not None:
                if asking.found is not None:
                    await self.found(asking.found)
                    return
                self._lead(asking)
            if self.exchange.refusal is not None:
                # LiteLLM rewrites errors of hooks, differently on each endpoint; clients are promised one form.
                await self.refuse(self.exchange.refusal)
                return
            if message["status"] >= 400 and self.exchange.unpaid is not None:
                self.exchange.refused(self.exchange.unpaid)
                await self.refuse(self.exchange.unpaid)
                return
            if message["status"] >= 400 and (failure := resilience.failure(self.exchange)) is not None:
                self.exchange.refused(failure)
                await caching.seek_stale(self.exchange)
                await self.refuse(failure)
                return
            self._start(message)
        elif message["type"] == "http.response.body":
            self._body(message)
        await self.to_client(message)

    async def refuse(self, error: RequestRefused) -> None:
        """Answer with an error in place of whatever the app would say, if it has said nothing yet; or, where that is
        what a policy wants, with something in place of the error."""
        if not self.started and not self.refused:
            self.refused = True
            instead = resilience.instead(self.exchange, error)
            self.exchange.status = error.status if instead is None else 200
            self._record()
            if instead is None:
                await _refuse("http", error, self.to_client, self.exchange)
            else:
                await _send(instead, self.to_client, self.exchange.stream, self._headers())
        self.refused = True

    async def found(self, found: "Entry | Turn") -> None:
        """Answer with what the cache has, in place of whatever the app would say."""
        self.refused = self.started = True
        exchange, cache = self.exchange, caching.caching
        assert cache is not None
        if isinstance(found, Turn):
            try:
                await found.relay(self.to_client, self._record, cache, self._headers)
            except RequestRefused as refusal:
                exchange.status = refusal.status
                self._record()
                await _refuse("http", refusal, self.to_client, exchange)
            return
        hits.note(exchange, found)
        await hits.send(found, exchange, self.to_client, self._record, self._headers)

    def _headers(self) -> list[tuple[bytes, bytes]]:
        headers = self.exchange.response_headers()
        if self.exchange.visit is not None:
            put(headers, self.exchange.visit.headers())
        return headers

    def _lead(self, asking: Asking) -> None:
        """Whoever waits for the same answer gets what this client gets."""
        if asking.turn is not None:
            self.to_client = asking.turn.lead(self.to_client)

    def close(self) -> None:
        """The app is done. An answer without a last byte went to a client that left, or was cut short."""
        if not self.exchange.closed:
            self.exchange.disconnected = True
            self.exchange.status = self.exchange.status or 499
            self._record()

    def _start(self, message: Message) -> None:
        exchange = self.exchange
        self.started = True
        exchange.status = message["status"]
        headers = message["headers"] = list(message.get("headers", ()))
        exchange.stream = _is_event_stream(headers)
        if not exchange.stream:
            exchange.settle()
        if exchange.asking is not None and exchange.asking.recording is not None:
            exchange.asking.recording.start(message, exchange.stream)
        headers += exchange.response_headers()
        if exchange.visit is not None:
            put(headers, exchange.visit.headers())

    def _body(self, message: Message) -> None:
        exchange = self.exchange
        body: bytes = message.get("body", b"")
        if exchange.stream and body:
            if exchange.first_byte is None:
                exchange.note_first_byte()
            if _ERROR in body:
                # LiteLLM tells no hook of a stream of the Messages dialect that breaks off.
                exchange.error_class = exchange.error_class or INTERRUPTED
            if receipt.may_hold_usage(body):
                message["body"] = _with_cost(body, exchange)
        if exchange.asking is not None and exchange.asking.recording is not None:
            exchange.asking.recording.body(message)
        if not message.get("more_body", False):
            self._record()

    def _record(self) -> None:
        exchange, runtime = self.exchange, self.runtime
        exchange.closed = True
        exchange.settle()
        exchange.leave()
        event = exchange.usage_event(runtime.instance, runtime.price_version)
        if event is not None:
            runtime.journal.append(event)
            outcome.remember_unsure(exchange)
            traffic.count(event)
        caching.keep(exchange)


def _with_cost(body: bytes, exchange: Exchange) -> bytes:
    """Remember the usage a stream's events report, and put the cost into the final one."""
    events = body.split(b"\n\n")
    for index, event in enumerate(events):
        if not receipt.may_hold_usage(event):
            continue
        usage = receipt.usage_in_event(event)
        if not usage:
            continue
        exchange.see_usage(usage)
        if receipt.is_final(event):
            exchange.settle()
            events[index] = b"" if exchange.hides_usage else _priced(event, exchange.cost_nano)
    return b"\n\n".join(events) if not exchange.hides_usage else _joined(events)


def _joined(events: list[bytes]) -> bytes:
    """Events without those that were taken out; the last part is what stood behind the last separator."""
    return b"".join(event + b"\n\n" for event in events[:-1] if event) + events[-1]


def _priced(event: bytes, cost_nano: int) -> bytes:
    start = event.find(b"{")
    data = orjson.loads(event[start:])
    holder = data if "usage" in data else data["response"]
    holder["usage"]["cost"] = float(to_dollars(cost_nano))
    return event[:start] + orjson.dumps(data)


def _counted(receive: Receive, answer: _Answer, most: int) -> Receive:
    """A body of undeclared length is counted as it arrives and cut off where it becomes too large."""

    async def counted() -> Message:
        message = await receive()
        if message["type"] == "http.request":
            answer.exchange.body_bytes += len(message.get("body", b""))
            if answer.exchange.body_bytes > most:
                await answer.refuse(_too_large(most))
                return {"type": "http.disconnect"}
        return message

    return counted


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(root) else path


def _content_length(headers: list[tuple[bytes, bytes]]) -> int | None:
    for name, value in headers:
        if name == b"content-length":
            return int(value) if value.isdigit() else None
    return None


def _is_event_stream(headers: list[tuple[bytes, bytes]]) -> bool:
    for name, value in headers:  # a loop, because a generator is resumed for each header of each answer
        if name == b"content-type":
            return value.startswith(b"text/event-stream")
    return False


def _too_large(most: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than the {most} bytes that limits.max_body_bytes allows.")


def _refusal(scope: Scope) -> str:
    return (
        f"{scope.get('method', 'WEBSOCKET')} {_path(scope)} spends money in a way that cannot be bounded, so it is "
        "closed while tiers or budgets are configured. Use an OpenAI-compatible route of a configured model."
    )


async def _send(body: Body, send: Send, stream: bool, own: list[tuple[bytes, bytes]]) -> None:
    kind, pieces = body
    headers = [(b"content-type", kind), *own]
    if not stream:
        headers.append((b"content-length", str(sum(map(len, pieces))).encode()))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"".join(pieces)})
        return
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for piece in pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _refuse(kind: str, error: RequestRefused, send: Send, exchange: Exchange | None = None) -> None:
    if kind == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": error.code})
        return
    anthropic = exchange is not None and exchange.endpoint == "messages"
    body = orjson.dumps({"type": "error", "error": error.body()} if anthropic else {"error": error.body()})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in error.headers.items()]
    headers += exchange.response_headers() if exchange else []
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
