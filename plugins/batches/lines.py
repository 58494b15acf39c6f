"""The lines of a batch's input: each a request, read as budgets read one, and written as the provider shall get it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import orjson

from core.errors import BadField
from plugins.budgets.bound import bound
from plugins.budgets.extra_body import merge_extra_body
from plugins.budgets.output_limit import set_output_limit
from plugins.budgets.prices import GroupPrices

MOST_LINES = 50_000
"""As many as OpenAI takes."""

ENDPOINTS: Mapping[str, str] = {
    "/v1/chat/completions": "chat_completions",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "responses",
}
"""Where a line may go, and what budgets call it."""

_FIELDS = frozenset({"custom_id", "method", "url", "body"})
_NOT_IN_A_BATCH = ("stream", "background", "extra_body", "fallbacks", "mock_response")
_LIMIT_NAME = {"chat_completions": frozenset({"max_completion_tokens"})}
"""Lines reach the provider untranslated: every chat model of OpenAI takes this name, newer ones no other."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """What the first line says, and every other has to say as well."""

    url: str
    model: str


@dataclass(frozen=True, slots=True)
class Terms:
    """What lines are read by: prices of the group, the name its provider knows it by, the tier's output limit."""

    prices: GroupPrices
    provider_model: str
    most_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Lines:
    """All lines together. `body` is what the provider gets; `bound_nano` bounds what they cost, in nano-dollars, unless
    `unbounded` says why nothing does."""

    body: bytes
    count: int
    input_tokens: int
    bound_nano: int
    unbounded: str | None


def begin(data: bytes) -> Beginning:
    """The first line's endpoint and model. Raises `BadField`, as `read` does, for a line that cannot be read."""
    for number, line in _numbered(data):
        request = _parse(number, line)
        return Beginning(request["url"], request["body"]["model"])
    raise BadField("The file has no lines.")


def read(data: bytes, beginning: Beginning, terms: Terms) -> Lines:
    """Read every line; takes some 20 µs each, so call it on a thread."""
    written: list[bytes] = []
    seen: set[str] = set()
    total = tokens = 0
    unbounded: str | None = None
    endpoint = ENDPOINTS[beginning.url]
    for number, line in _numbered(data):
        if len(written) == MOST_LINES:
            raise BadField(f"The file has more than {MOST_LINES} lines; divide it.")
        request = _parse(number, line)
        if request["custom_id"] in seen:
            raise BadField(f"Line {number}: custom_id {request['custom_id'][:80]!r} is that of an earlier line.")
        seen.add(request["custom_id"])
        body: dict[str, Any] = request["body"]
        if request["url"] != beginning.url or body["model"] != beginning.model:
            raise BadField(
                f"Line {number} asks {body['model'][:80]!r} at {request['url']}, the first one {beginning.model!r} at "
                f"{beginning.url}; the lines of a batch go to one model at one endpoint."
            )
        cost, input_tokens, reason = _bound(number, endpoint, body, terms)
        if reason is not None and unbounded is None:
            unbounded = f"line {number}: {reason}"
        total, tokens = total + cost, tokens + input_tokens
        body["model"] = terms.provider_model
        written.append(orjson.dumps(request))
    return Lines(b"\n".join(written) + b"\n", len(written), tokens, total, unbounded)


def _bound(number: int, endpoint: str, body: dict[str, Any], terms: Terms) -> tuple[int, int, str | None]:
    """What the line can cost at most, its input tokens, and why nothing bounds it. Writes the limit that is reserved
    into the body."""
    try:
        merge_extra_body(endpoint, body)
        found = bound(endpoint, body, len(orjson.dumps(body)), terms.prices)
    except BadField as error:
        raise BadField(f"Line {number}: {error.message}") from None
    limit = found.maximum if found.asked is None else found.asked
    if terms.most_tokens is not None:
        limit = terms.most_tokens if limit is None else min(limit, terms.most_tokens)
    if not found.output_atto:
        limit = 0
    elif limit is not None and (found.asked is None or limit < found.asked):
        set_output_limit(endpoint, body, limit, taken=_LIMIT_NAME.get(endpoint))
    if found.unbounded or limit is None:
        return 0, found.input_tokens, (found.unbounded or ("nothing limits the answer",))[0]
    return found.cost(limit), found.input_tokens, None


def _numbered(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Lines with something in them, counted from 1 as editors do, without a second copy of the file."""
    start, number = 0, 0
    while start < len(data):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        number += 1
        line = data[start:end].strip()
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line:
            yield number, line
        start = end + 1


def _parse(number: int, line: bytes) -> dict[str, Any]:
    try:
        given = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise BadField(f"Line {number} is not JSON: {error}.") from None
    if not isinstance(given, dict):
        raise BadField(f"Line {number} is not an object with custom_id, method, url and body.")
    request = cast("dict[str, Any]", given)
    if unknown := sorted(request.keys() - _FIELDS):
        raise BadField(f"Line {number} has a field {unknown[0][:80]!r}; a line has custom_id, method, url and body.")
    custom_id, url, body = request.get("custom_id"), request.get("url"), request.get("body")
    if not isinstance(custom_id, str) or not custom_id:
        raise BadField(f"Line {number} has no custom_id.")
    if request.get("method") != "POST":
        raise BadField(f"Line {number}: method must be POST.")
    if not isinstance(url, str) or url not in ENDPOINTS:
        raise BadField(f"Line {number}: url must be one of {', '.join(ENDPOINTS)}.")
    if not isinstance(body, dict) or not isinstance(cast("dict[str, Any]", body).get("model"), str):
        raise BadField(f"Line {number}: body must be an object with a model.")
    for name in _NOT_IN_A_BATCH:
        if cast("dict[str, Any]", body).get(name):
            raise BadField(f"Line {number}: {name} cannot be used in a batch; leave it out.")
    return request
