"""The key of an answer: equal for requests that may share one, different for all others."""

import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Generic, NamedTuple, TypeVar, cast

import orjson

from core.context import Caller
from core.settings.models.caching import CacheScope

T = TypeVar("T")

KEY_BYTES = 24
_VERSION = 1
"""Part of every key: raised whenever keys come to mean something else."""

Owner = tuple[str, str]
"""Whose answers they are: the kind of owner, and its id."""

LEFT_OUT = frozenset(
    {
        "model",
        "stream",
        "stream_options",
        "metadata",
        "litellm_metadata",
        "user",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "cache",
        "caching",
        "no-log",
        "ttl",
        "timeout",
        "stream_timeout",
        "request_timeout",
        "num_retries",
        "max_retries",
        "request_id",
        "litellm_call_id",
        "litellm_trace_id",
        "litellm_session_id",
    }
)
"""Fields of a body that are no part of the question, or that the key takes from elsewhere."""

COUNTED_METADATA = ("guardrails", "disable_global_guardrails", "disable_global_guardrail", "tags")
"""What LiteLLM takes from `metadata` and lets change an answer."""

DEFAULTS: Mapping[str, Any] = {
    "n": 1,
    "best_of": 1,
    "echo": False,
    "logprobs": False,
    "top_logprobs": 0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": {},
    "stop": [],
    "tools": [],
    "functions": [],
    "modalities": ["text"],
    "response_format": {"type": "text"},
    "encoding_format": "float",
    "service_tier": "auto",
    "truncation": "disabled",
    "background": False,
    "include": [],
}
"""Values that mean the same as leaving the field out, with every provider. A temperature of 1 is not among them."""

_NUMBERS = frozenset({"temperature", "top_p", "presence_penalty", "frequency_penalty"})
_STREAM_DEFAULTS: tuple[Any, ...] = (None, {}, {"include_usage": False})
VARYING = frozenset({b"anthropic-version", b"anthropic-beta", b"openai-beta", b"x-litellm-tags"})
"""Headers that may change an answer."""


def owner_of(scope: CacheScope, caller: Caller) -> Owner | None:
    """Who shares the answers of a caller; None for one who cannot be told from others. Without a team, or a user, the
    scope is the next narrower one."""
    if scope is CacheScope.GLOBAL:
        return ("global", "")
    if scope is CacheScope.TEAM and caller.team_id:
        return ("team", caller.team_id)
    if caller.user_id:
        return ("user", caller.user_id)
    return ("key", caller.key_hash) if caller.key_hash else None


def vary(headers: Iterable[tuple[bytes, bytes]], query: bytes = b"") -> tuple[str, ...]:
    """The headers (ASGI's) and the query as far as they may change an answer, for `cache_key`."""
    told = [f"{name.decode('latin-1')}: {value.decode('latin-1')}" for name, value in headers if name in VARYING]
    if query:
        return (*sorted(told), f"?{query.decode('latin-1')}")
    return tuple(sorted(told)) if told else ()


class Beside(NamedTuple):
    """What a key is made of besides endpoint and body. `model` is the one that answers, after routing; `variant` the
    experiments' arms; `written` what rules and variants write into the body, where they have not yet; `dialect` tells
    apart what one endpoint answers in several ways, such as by its path; `namespace` is the client's own."""

    model: str
    owner: Owner
    stream: bool = False
    dialect: str = ""
    variant: str = ""
    guardrails: Sequence[str] = ()
    varying: Sequence[str] = ()
    written: Mapping[str, Any] | None = None
    namespace: str = ""


def cache_key(endpoint: str, body: Mapping[str, Any], beside: Beside) -> bytes | None:
    """The key of a request, `KEY_BYTES` long; None for a body that is no JSON.

    `body` is as orjson reads it: whitespace and the order of fields are gone, defaults and fields that do not change
    the answer are taken out here.
    """
    text = _text(endpoint, body, beside)
    return None if text is None else blake2b(text, digest_size=KEY_BYTES).digest()


def input_keys(body: Mapping[str, Any], inputs: Sequence[Any], beside: Beside) -> tuple[bytes, ...]:
    """The `cache_key`s of requests for embeddings that are as `body`, but for each of `inputs` (texts, or lists of
    tokens) alone; none for a body that is no JSON."""
    text = _text("embeddings", {**body, "input": _AN_INPUT}, beside)
    if text is None:
        return ()
    before, _, after = text.partition(orjson.dumps(_AN_INPUT))
    begun = blake2b(before, digest_size=KEY_BYTES)
    keys: list[bytes] = []
    for one in inputs:
        digest = begun.copy()
        digest.update(orjson.dumps(one))
        digest.update(after)
        keys.append(digest.digest())
    return tuple(keys)


_AN_INPUT = secrets.token_hex(16)
"""Stands where an input does, and that nobody can have written anywhere else."""


def _text(endpoint: str, body: Mapping[str, Any], beside: Beside) -> bytes | None:
    """What the key is a digest of."""
    question: dict[str, Any] = {}
    try:
        for name, value in body.items():
            if value is None or name in LEFT_OUT:
                continue
            if name in _NUMBERS and type(value) is int:
                value = float(value)
            elif name == "input" and endpoint == "embeddings":
                value = alone(value)
            if name in DEFAULTS:
                default = DEFAULTS[name]
                if value == default and type(value) is type(default):
                    continue
            question[name] = value
        options = body.get("stream_options") if beside.stream else None
        options = None if options in _STREAM_DEFAULTS else options
        whole = (_VERSION, endpoint, *beside, options, _counted(body), question)
        return orjson.dumps(whole, option=orjson.OPT_SORT_KEYS)
    except (TypeError, ValueError, OverflowError):
        return None


def alone(value: Any) -> Any:
    """The input of embeddings, which may stand in a list or not where there is one."""
    if not isinstance(value, list):
        return value
    inputs = cast("list[Any]", value)
    return inputs[0] if len(inputs) == 1 and isinstance(inputs[0], str | list) else inputs  # pyright: ignore[reportUnknownVariableType]


def _counted(body: Mapping[str, Any]) -> list[Any] | None:
    if "metadata" not in body and "litellm_metadata" not in body:
        return None
    found: list[Any] = []
    for place in ("metadata", "litellm_metadata"):
        metadata = body.get(place)
        if isinstance(metadata, dict):
            found += [(place, name, metadata[name]) for name in COUNTED_METADATA if name in metadata]
    return found or None


def raw_key(body: bytes, *parts: bytes) -> bytes:
    """A digest of a request as it arrived: its body, and `parts` for all else that has a say (credential, path, query,
    headers that are read)."""
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    digest.update(body)
    return digest.digest()


class RawMemo(Generic[T]):
    """What was worked out for requests that came in the very same bytes (`raw_key`): for `keep` seconds, since routing
    may decide otherwise by then, and under one version of the settings. Holds at most `most`."""

    def __init__(self, most: int = 20_000, keep: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._half = max(1, most // 2)
        self._keep = keep
        self._clock = clock
        self._version = 0
        # What has not been asked for since the younger half was begun goes with the older one.
        self._young: dict[bytes, tuple[float, T]] = {}
        self._old: dict[bytes, tuple[float, T]] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, key: bytes, version: int) -> T | None:
        if version != self._version:
            self._begin(version)
            return None
        found = self._young.get(key)
        if found is None:
            found = self._old.pop(key, None)
            if found is None:
                return None
            self._add(key, found)
        until, value = found
        return value if self._clock() < until else None

    def put(self, key: bytes, version: int, value: T) -> None:
        if version != self._version:
            self._begin(version)
        self._old.pop(key, None)
        self._add(key, (self._clock() + self._keep, value))

    def clear(self) -> None:
        self._begin(self._version)

    def _add(self, key: bytes, item: tuple[float, T]) -> None:
        if len(self._young) >= self._half:
            self._old, self._young = self._young, {}
        self._young[key] = item

    def _begin(self, version: int) -> None:
        self._version = version
        self._young, self._old = {}, {}


class Seen:
    """Which texts have come before, of at least the last `most` different ones; now and then one that has not."""

    def __init__(self, most: int = 20_000) -> None:
        self._most = max(1, most)
        self._young: set[int] = set()
        self._old: set[int] = set()

    def again(self, text: bytes) -> bool:
        """Whether it has come before; from now on it has."""
        mark = hash(text)
        if mark in self._young:
            return True
        if len(self._young) >= self._most:
            self._old, self._young = self._young, set()
        self._young.add(mark)
        return mark in self._old
