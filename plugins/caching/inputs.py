"""A request for embeddings of several inputs: those that are known are taken from the cache, the others are asked for,
and the client gets one answer."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from core.asgi import Message, Send
from core.cache import Answer, Cache, CacheRules
from core.cache.embeddings import Piece, joined, pieces_of
from core.cache.entry import Entry
from core.errors import AnswerLost, RequestRefused
from plugins.budgets.enforcement import Part
from plugins.caching import hits

if TYPE_CHECKING:
    from core.usage import Attempt
    from plugins.caching.asking import Ready
    from plugins.exchange import Exchange


class Inputs:
    """What there is for each of the inputs. `new` are the places of those to be asked for, each input once; `model` is
    the only one whose answer goes with what is there."""

    __slots__ = ("_known", "_new", "_sample", "cost_nano", "input_tokens", "keys", "model", "new")

    def __init__(self, ready: "Ready") -> None:
        self.keys = ready.input_keys
        self.model = ready.label.model
        self.new: tuple[int, ...] = ()
        self.input_tokens = self.cost_nano = 0
        """What those had cost that are known."""
        self._known: dict[bytes, Piece] = {}
        self._new: list[Piece] | None = None
        """The answers to those that are new, where not all were asked for."""
        self._sample: Entry | None = None
        """One of those that are known."""
        self.take({})

    def take(self, entries: Mapping[bytes, Entry]) -> None:
        """Use these, as far as each is an answer to one input."""
        for key, entry in entries.items():
            pieces = pieces_of(entry.body, 1) if entry.status == hits.OK else None
            if pieces is not None:
                self._known[key], self._sample = pieces[0], entry
                self.input_tokens += entry.input_tokens
                self.cost_nano += entry.cost_nano
        places = {key: place for place, key in reversed(list(enumerate(self.keys))) if key not in self._known}
        self.new = tuple(sorted(places.values()))

    @property
    def is_part(self) -> bool:
        """Whether not all inputs are to be sent."""
        return len(self.new) < len(self.keys)

    @property
    def some_known(self) -> bool:
        return bool(self._known)

    def new_of(self, given: Any) -> list[Any] | None:
        """Those of the inputs that are new; None for what cannot be the same inputs any more. Any: they are texts or
        lists of tokens, and LiteLLM's callbacks may have put anything there."""
        if not isinstance(given, list) or len(given) != len(self.keys):
            return None
        return [given[place] for place in self.new]

    def whole(self) -> Entry | None:
        """The answer to all inputs, where they are all known."""
        sample = self._sample
        if self.new or sample is None:
            return None
        return replace(sample, body=self._joined(self._known), input_tokens=self.input_tokens, cost_nano=self.cost_nano)

    def joined(self, answer: bytes) -> bytes | None:
        """The answer to all inputs from that to the new ones; None where it is no such answer."""
        self._new = pieces_of(answer, len(self.new))
        if self._new is None:
            return None
        new = {self.keys[place]: piece for place, piece in zip(self.new, self._new, strict=True)}
        return self._joined({**self._known, **new})

    def _joined(self, pieces: Mapping[bytes, Piece]) -> bytes:
        return joined([pieces[key] for key in self.keys])

    def entries(self, whole: Entry, answer: Answer, rules: CacheRules) -> Iterator[tuple[bytes, Entry]]:
        """What of an answer is kept, under which key: from the entry that it would be as a whole."""
        if rules.why_not_kept(replace(answer, body=b"{}")) is not None:
            return
        pieces = self._new if self.is_part else pieces_of(whole.body, len(self.new))
        if pieces is None:
            return
        for index, (place, piece) in enumerate(zip(self.new, pieces, strict=True)):
            body = joined([piece])
            if rules.why_not_kept(replace(answer, body=body)) is None:
                cost_nano = whole.cost_nano // len(pieces) + (index < whole.cost_nano % len(pieces))
                yield self.keys[place], replace(whole, body=body, input_tokens=piece.tokens, cost_nano=cost_nano)


async def look(cache: Cache, ready: "Ready", *, max_age: float | None = None, stale: bool = False) -> Inputs:
    """What there is for each input; not counted."""
    return (await _look(cache, ready, max_age, stale))[0]


async def find(cache: Cache, ready: "Ready") -> Inputs:
    """As `look`, counted as one question; nothing where the client wants to do without."""
    found, far = Inputs(ready), False
    if ready.control.read:
        found, far = await _look(cache, ready, ready.control.max_age, stale=False)
    counters = cache.counters
    if found.new:
        counters.miss(ready.label)
        return found
    counters.memory_hits += not far
    counters.redis_hits += far
    counters.hit(ready.label, found.cost_nano)
    return found


async def _look(cache: Cache, ready: "Ready", max_age: float | None, stale: bool) -> tuple[Inputs, bool]:
    found, keys = Inputs(ready), tuple(dict.fromkeys(ready.input_keys))
    entries, far = await cache.look_each(keys, max_age, stale=stale)
    there = {key: entry for key, entry in zip(keys, entries, strict=True) if entry is not None}
    if sum(len(entry.body) for entry in there.values()) > _OFF_LOOP:
        await asyncio.to_thread(found.take, there)
    else:
        found.take(there)
    return found, far


def in_memory(cache: Cache, keys: Sequence[bytes], now_ms: int) -> tuple[int, int]:
    """Tokens and nano-dollars of what is kept for these inputs."""
    entries = [entry for key in dict.fromkeys(keys) if (entry := cache.memory.get(key, now_ms)) is not None]
    return sum(entry.input_tokens for entry in entries), sum(entry.cost_nano for entry in entries)


# -- only what is new is asked for -------------------------------------------------------------------------------------


def part_of(exchange: "Exchange", data: Mapping[str, Any]) -> Part | None:
    """What of LiteLLM's `data` is sent to the model that has answered the rest before, and to it alone."""
    asking = exchange.asking
    inputs = asking.inputs if asking is not None else None
    if asking is None or inputs is None or not inputs.is_part:
        return None
    new = inputs.new_of(data.get("input"))
    if asking.body is None or new is None:
        asking.inputs = None  # a callback has made something else of the question
        return None
    sent = orjson.dumps({**asking.body, "input": new}, default=str)
    return Part(inputs.model, {**data, "input": new}, len(sent))


def narrow(exchange: "Exchange", attempt: "Attempt", call: dict[str, Any]) -> None:
    """An attempt begins: it is sent what `part_of` said. Raises LiteLLM's 503 where that cannot be done."""
    inputs = exchange.asking.inputs if exchange.asking is not None else None
    if inputs is None or not inputs.is_part or attempt.model != inputs.model:
        return
    new = inputs.new_of(call.get("input"))
    if new is None:
        from plugins import compat

        raise compat.cannot_call("Its inputs are no longer those that were asked for.", call)
    call["input"] = new


class PutTogether:
    """The way back of an answer, before anything is made of it: one to some of the inputs becomes one to all."""

    def __init__(self, exchange: "Exchange", answer: "Sending", cache: Cache) -> None:
        self._exchange = exchange
        self._answer = answer
        self._cache = cache
        self._start: Message | None = None
        self._chunks: list[bytes] = []

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and self._is_part(message):
            self._start = message
        elif self._start is None:
            await self._answer.send(message)
        elif message["type"] == "http.response.body":
            self._chunks.append(message.get("body", b""))
            if not message.get("more_body", False):
                await self._put_together(self._start, b"".join(self._chunks))

    def _is_part(self, start: Message) -> bool:
        asking, attempts = self._exchange.asking, self._exchange.attempts
        inputs = asking.inputs if asking is not None else None
        if inputs is None or not inputs.is_part:
            return False
        return start["status"] == hits.OK and bool(attempts) and attempts[-1].model == inputs.model

    async def _put_together(self, start: Message, answer: bytes) -> None:
        exchange = self._exchange
        assert exchange.asking is not None
        assert exchange.asking.ready is not None
        inputs = exchange.asking.inputs
        assert inputs is not None
        whole = inputs.joined(answer)
        if whole is None:
            refusal = AnswerLost(
                'The answers to these inputs cannot be put together; ask again with "cache": {"no-cache": true}.'
            )
            exchange.refused(refusal)
            await self._answer.refuse(refusal)
            return
        if inputs.some_known:
            exchange.cached = hits.PARTIAL
            self._cache.counters.partial(exchange.asking.ready.label, inputs.cost_nano)
        headers = [header for header in start["headers"] if header[0] != b"content-length"]
        headers.append((b"content-length", b"%d" % len(whole)))
        await self._answer.send({**start, "headers": headers})
        await self._answer.send({"type": "http.response.body", "body": whole})


class Sending(Protocol):
    """The sending side of an exchange."""

    @property
    def send(self) -> Send: ...
    async def refuse(self, error: RequestRefused) -> None: ...


_OFF_LOOP = 1_048_576
"""Bytes of answers from which they are read in a thread."""
