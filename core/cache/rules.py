"""What is cached: which questions have an answer that others may get, which answers are kept, and for how long."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final, cast

from core.errors import BadField
from core.record import record
from core.settings.models.caching import CacheScope, Caching

ENDPOINTS: Final = frozenset(
    {
        "chat_completions",
        "completions",
        "embeddings",
        "generate_content",
        "messages",
        "moderations",
        "rerank",
        "responses",
    }
)
"""Those whose answers are kept: JSON or events, the same for the same question."""
_SAMPLED: Final = frozenset({"chat_completions", "completions", "generate_content", "messages", "responses"})

_OWN_WAY: Final = frozenset(
    {"api_key", "api_base", "base_url", "organization", "user_config", "extra_headers", "extra_query"}
)
"""With these a request says itself where it goes, or with which credentials."""
_TELLING: Final = _OWN_WAY | {"extra_body", "background", "conversation", "store", "tools"}
"""Fields but for which there is nothing against an answer's being looked for."""
_HARMLESS_TOOLS: Final = ("function", "custom", "web_search", "file_search")
"""Types of tools, by their beginning, that change nothing by themselves: the client runs them, or they only read."""


@dataclass(frozen=True, slots=True)
class Control:
    """What a client wants of the cache. `ttl` and `max_age` are seconds: how long its answer may be kept, and how old
    the one it gets may be."""

    read: bool = True
    store: bool = True
    ttl: float | None = None
    max_age: float | None = None
    namespace: str = ""

    @property
    def shares(self) -> bool:
        """Whether it may wait for an answer that another request is getting."""
        return self.read and self.store and self.max_age is None


AS_CONFIGURED: Final = Control()


def control_of(body: Mapping[str, Any], headers: Iterable[tuple[bytes, bytes]] = ()) -> Control:
    """From the body's `cache`, as LiteLLM has it (`no-cache`, `no-store`, `ttl`, `s-maxage`, `namespace`), and the
    header Cache-Control of RFC 9111 (no-cache, no-store, max-age). Of two the stricter counts.

    Raises BadField for what cannot be understood: it may be the wish not to be kept.
    """
    wish = body.get("cache")
    texts = [value for name, value in headers if name == b"cache-control"]
    if wish is None and not texts:
        return AS_CONFIGURED
    said: Mapping[str, Any] = {}
    if wish is not None:
        if not isinstance(wish, dict):
            raise BadField('cache must be an object such as {"no-cache": true}.')
        said = cast("dict[str, Any]", wish)
    header = _directives(b",".join(texts).decode("latin-1"))
    ages = [_seconds(said[name], f"cache.{name}") for name in ("s-maxage", "s-max-age") if said.get(name) is not None]
    if "max-age" in header:
        ages.append(_seconds(header["max-age"], "cache-control: max-age"))
    ttl = said.get("ttl")
    namespace = said.get("namespace")
    if not isinstance(namespace, str | None):
        raise BadField("cache.namespace must be a text.")
    return Control(
        read=not (_true(said, "no-cache") or "no-cache" in header),
        store=not (_true(said, "no-store") or "no-store" in header),
        ttl=None if ttl is None else _seconds(ttl, "cache.ttl"),
        max_age=min(ages, default=None),
        namespace=namespace or "",
    )


def _true(said: Mapping[str, Any], name: str) -> bool:
    value = said.get(name)
    if not isinstance(value, bool | None):
        raise BadField(f"cache.{name} must be true or false.")
    return value is True


def _seconds(value: Any, where: str) -> float:
    try:
        seconds = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = float("nan")
    if not 0 <= seconds < float("inf"):
        raise BadField(f"{where} must be a number of seconds, 0 or more.")
    return seconds


def _directives(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        found[name.strip().lower()] = value.strip().strip('"')
    return found


@record
class Answer:
    """What is looked at before an answer is kept. `body` is all of it, a stream's chunks joined. `complete`: its last
    byte was sent by whoever made it. `clamped`: under an output limit that the client did not ask for. `begun_by` is
    the model that the key was made for, `model` the one that answered."""

    endpoint: str
    status: int
    body: bytes
    stream: bool = False
    complete: bool = True
    degraded: bool = False
    clamped: bool = False
    begun_by: str = ""
    model: str = ""


class CacheRules:
    """The rules of one configuration. Reasons are short texts for logs and explanations; None is no objection."""

    def __init__(self, caching: Caching) -> None:
        self._caching = caching
        strategies = caching.cache_strategies
        self._by_task = {name: each.ttl for name, each in strategies.task_type.items()}
        self._by_model = {name: each.ttl for name, each in strategies.model.items()}
        self._by_tier = {name: each.ttl for name, each in strategies.tier.items()}
        self._matched: dict[str, float | None] = {}

    def ttl(self, task_type: str | None, model: str, tier: str | None, asked: float | None = None) -> float:
        """Seconds that an answer is kept, 0 for not at all: by the task type, else by the model (by name, else by the
        first glob), else by the tier, else the default. A client may only ask for less."""
        found = self._by_task.get(task_type) if task_type is not None else None
        if found is None and self._by_model:
            found = self._of_model(model)
        if found is None and tier is not None:
            found = self._by_tier.get(tier)
        if found is None:
            found = self._caching.default_ttl
        return found if asked is None else min(found, asked)

    def scope(self, endpoint: str, body: Mapping[str, Any]) -> CacheScope:
        """Who may share the answer. One that its provider keeps under an id belongs to the user who may go on from
        it."""
        if endpoint == "responses" and body.get("store") is not False:
            return CacheScope.USER
        return self._caching.scope

    def why_not_asked(self, endpoint: str, body: Mapping[str, Any]) -> str | None:
        """Why no answer to such a question is looked for, shared or kept."""
        if endpoint not in ENDPOINTS:
            return "endpoint"
        if not _TELLING.isdisjoint(body) and (reason := self._of_fields(endpoint, body)) is not None:
            return reason
        if not self._caching.cache_sampled and endpoint in _SAMPLED and _temperature(body) != 0:
            return "sampled"
        return None

    def _of_fields(self, endpoint: str, body: Mapping[str, Any]) -> str | None:
        extra: object = body.get("extra_body")
        layers = (body, cast("Mapping[str, Any]", extra)) if isinstance(extra, dict) else (body,)
        for layer in layers:
            if any(layer[name] is not None for name in _OWN_WAY & layer.keys()):
                return "own credentials or address"
            if layer.get("background") or layer.get("conversation") is not None:
                return "has effects"
            if layer.get("store") and endpoint != "responses":
                return "has effects"
            if not self._caching.cache_tool_calls and _has_effects(layer.get("tools")):
                return "tools with effects"
        return None

    def why_not_kept(self, answer: Answer) -> str | None:
        """Why an answer is not kept. One that ended at the output limit that its client asked for is kept: the limit is
        part of the question."""
        if answer.status != 200:
            return "error"
        if answer.degraded:
            return "degraded"
        if answer.clamped:
            return "clamped"
        if answer.begun_by != answer.model:
            return "another model answered"
        if not answer.body:
            return "empty"
        if len(answer.body) > self._caching.max_entry_bytes:
            return "too large"
        if not answer.complete or not _whole(answer):
            return "cut short"
        if not self._caching.cache_tool_calls and _calls(answer):
            return "tool calls"
        return None

    def _of_model(self, model: str) -> float | None:
        if model not in self._matched:
            found = self._by_model.get(model)
            if found is None:
                found = next((ttl for name, ttl in self._by_model.items() if fnmatchcase(model, name)), None)
            if len(self._matched) >= _MOST_MODELS:
                self._matched.clear()
            self._matched[model] = found
        return self._matched[model]


_MOST_MODELS = 1000


def _has_effects(tools: object) -> bool:
    """Whether a tool is run by the provider or the proxy, and does more than read."""
    if not isinstance(tools, list):
        return False
    for tool in cast("list[object]", tools):
        kind = cast("dict[str, object]", tool).get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and not kind.startswith(_HARMLESS_TOOLS):
            return True
    return False


def _temperature(body: Mapping[str, Any]) -> object:
    for name in ("generationConfig", "config"):
        nested = body.get(name)
        if isinstance(nested, dict):
            return cast("dict[str, object]", nested).get("temperature")
    return body.get("temperature")


# In JSON a quote within a text is escaped, so what an answer says cannot look like one of its fields. A text is looked
# for first: that is many times as fast as looking for a pattern.
_CHAT_CALLS = (b"_call", re.compile(rb'"tool_calls"\s*:\s*\[\s*\{|"function_call"\s*:\s*\{'))
_CALLS: Final[Mapping[str, tuple[bytes, re.Pattern[bytes]] | None]] = {
    "chat_completions": _CHAT_CALLS,
    "completions": _CHAT_CALLS,
    "messages": (b"tool_use", re.compile(rb'"type"\s*:\s*"(mcp_)?tool_use"')),
    "responses": (b"_call", re.compile(rb'"type"\s*:\s*"(?!web_search_call"|file_search_call")\w+_call"')),
    "generate_content": (b"functionCall", re.compile(rb'"functionCall"\s*:\s*\{')),
    "embeddings": None,
    "moderations": None,
    "rerank": None,
}
_FILTERED = b'"content_filter"'
_STOPPED = re.compile(rb'"finish_reason"\s*:\s*"content_filter"')
_LAST_EVENT: Final[Mapping[str, re.Pattern[bytes]]] = {
    "chat_completions": re.compile(rb"^data:\s*\[DONE\]", re.M),
    "completions": re.compile(rb"^data:\s*\[DONE\]", re.M),
    "messages": re.compile(rb'^data:\s*\{[^\n]*"type"\s*:\s*"message_stop"', re.M),
    "responses": re.compile(rb'^data:\s*\{[^\n]*"type"\s*:\s*"response\.completed"', re.M),
    "generate_content": re.compile(rb'"finishReason"\s*:\s*"(STOP|MAX_TOKENS)"'),
}
_ERROR_EVENT = re.compile(rb'^(event:\s*error\s*$|data:\s*\{\s*"error"\s*:|data:\s*\{\s*"type"\s*:\s*"error")', re.M)
_UNFINISHED = re.compile(rb'"status"\s*:\s*"(incomplete|failed|in_progress|queued|cancelled)"')


def _calls(answer: Answer) -> bool:
    """Whether an answer asks for tools to be run."""
    signs = _CALLS[answer.endpoint]
    return signs is not None and signs[0] in answer.body and signs[1].search(answer.body) is not None


def _whole(answer: Answer) -> bool:
    """Whether an answer says that it came to its end."""
    body = answer.body
    if answer.stream:
        last = _LAST_EVENT.get(answer.endpoint)
        if last is None or last.search(body) is None or _ERROR_EVENT.search(body):
            return False
        return not _was_stopped(body)
    if not body.rstrip().endswith((b"}", b"]")):
        return False
    if answer.endpoint == "responses" and _UNFINISHED.search(body):
        return False
    return not _was_stopped(body)


def _was_stopped(body: bytes) -> bool:
    return _FILTERED in body and _STOPPED.search(body) is not None
