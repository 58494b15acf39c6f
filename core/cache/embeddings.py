"""Embeddings of many inputs, each of which has an answer of its own: only those that are new are asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import orjson


def inputs_of(body: Mapping[str, Any]) -> list[Any] | None:
    """The inputs of a request for embeddings where there are several, texts or lists of tokens; else None."""
    given = body.get("input")
    if not isinstance(given, list):
        return None
    inputs = cast("list[Any]", given)
    # A list of numbers is one input, in tokens; `extra_body` may bring other inputs.
    if len(inputs) < 2 or body.get("extra_body") is not None or not all(map(_is_input, inputs)):
        return None
    return inputs


def _is_input(one: Any) -> bool:
    if isinstance(one, list):
        tokens = cast("list[Any]", one)
        return bool(tokens) and isinstance(tokens[0], int)
    return isinstance(one, str)


@dataclass(frozen=True, slots=True)
class Piece:
    """The answer to one input. `item` is its JSON, as the only one of its answer; `rest` are the answer's other fields,
    without its usage, `usage` what of that says how little was used (zeros and nulls)."""

    item: bytes
    tokens: int
    rest: Mapping[str, Any]
    usage: Mapping[str, Any]


def pieces_of(answer: bytes, count: int) -> list[Piece] | None:
    """An answer to `count` inputs as those to each of them, in their order; None where it is not of that form. The
    tokens are divided evenly: how many each input took is not said."""
    frame, vectors = _without_vectors(answer)
    try:
        whole = orjson.loads(frame)
        data: list[dict[str, Any]] = whole.pop("data")
        usage: dict[str, Any] = whole.pop("usage", None) or {}
        tokens = int(usage.get("prompt_tokens") or 0)
        if [one.pop("embedding") for one in data] != list(range(count)) or len(vectors) != count:
            return None
        places = [one.pop("index") for one in data]
        if sorted(places) != list(range(count)):
            return None
    except (orjson.JSONDecodeError, AttributeError, TypeError, KeyError, ValueError):
        return None
    items = [
        b'{"embedding":%s,%s' % (vector, orjson.dumps({**one, "index": 0})[1:])
        for vector, one in zip(vectors, data, strict=True)
    ]
    nothing = {name: value for name, value in usage.items() if not value}
    # Earlier inputs have the tokens that are left over; the sum stays the same.
    shares = [tokens // count + (place < tokens % count) for place in range(count)]
    sorted_items = (item for _, item in sorted(zip(places, items, strict=True)))
    return [Piece(item, share, whole, nothing) for item, share in zip(sorted_items, shares, strict=True)]


def _without_vectors(answer: bytes) -> tuple[bytes, list[bytes]]:
    """The answer with a number in place of each vector, and the vectors: they are long, and need not be read. Where it
    is of another form the rest is no JSON, or its numbers are not these."""
    parts: list[bytes] = []
    vectors: list[bytes] = []
    at = 0
    # In JSON a quote within a text is escaped, so nothing that is said can look like a field.
    while (begin := answer.find(_VECTOR, at)) >= 0:
        begin += len(_VECTOR)
        end = answer.find(b'"' if answer[begin : begin + 1] == b'"' else b"]", begin + 1) + 1 or len(answer)
        parts += (answer[at:begin], b"%d" % len(vectors))
        vectors.append(answer[begin:end])
        at = end
    return b"".join((*parts, answer[at:])), vectors


_VECTOR = b'"embedding":'


def joined(pieces: Sequence[Piece]) -> bytes:
    """The answer to all inputs from those to each; at least one."""
    first = pieces[0]
    tokens = sum(piece.tokens for piece in pieces)
    usage = {**first.usage, "prompt_tokens": tokens, "total_tokens": tokens}
    # The index stands last in each item.
    items = b",".join(piece.item[:-2] + b"%d}" % index for index, piece in enumerate(pieces))
    return b'%s,"data":[%s]}' % (orjson.dumps({**first.rest, "usage": usage})[:-1], items)
