"""Embeddings of several inputs: what is there for each, what is asked for, and what is kept of its answer."""

from dataclasses import replace
from typing import Any

import orjson

from core.cache import Answer, Cache, CacheRules, Control, Entry, Label, Memory, ends_of
from core.settings.models import Caching
from plugins.caching import inputs
from plugins.caching.asking import Ready
from tests.support.clock import Clock

LABEL = Label("", "embed")
RULES = CacheRules(Caching())


def answer(*texts: str, tokens: int = 0) -> bytes:
    data = [{"embedding": [0.5, ord(text)], "index": index} for index, text in enumerate(texts)]
    return orjson.dumps({"model": "embed", "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})


def said(body: bytes) -> str:
    return "".join(chr(one["embedding"][1]) for one in orjson.loads(body)["data"])


def entry(clock: Clock, *texts: str, **more: Any) -> Entry:
    given: dict[str, Any] = {"created_ms": int(clock() * 1000), "ttl_ms": 1000, "stale_ms": 5000, "cost_nano": 40}
    given |= {"input_tokens": 2} | more
    return Entry(200, (), answer(*texts, tokens=2), ends_of(()), "embed", **given)


def asking(texts: str, **control: Any) -> Ready:
    keys = tuple(text.encode() for text in texts)
    nothing: Any = None
    return Ready(nothing, nothing, nothing, nothing, {}, frozenset(), b"", LABEL, Control(**control), 60, keys)


async def test_only_what_is_new_is_asked_for_and_each_once(clock: Clock) -> None:
    cache = Cache(Memory(100, 1 << 20), clock=clock)
    cache.keep(b"a", entry(clock, "a"))
    cache.keep(b"x", entry(clock, "x", "y"))
    found = await inputs.find(cache, asking("bacbx"))
    assert found.new == (0, 2, 4), "an answer to two inputs is none to one"
    assert found.whole() is None
    whole = found.joined(answer("b", "c", "x", tokens=9))
    assert whole is not None
    assert said(whole) == "bacbx"
    assert orjson.loads(whole)["usage"]["total_tokens"] == 3 + 2 + 3 + 3 + 3
    assert found.joined(answer("b", "c")) is None
    assert (cache.counters.total.misses, cache.counters.total.saved_nano) == (1, 0)
    assert (await inputs.find(cache, asking("aa", read=False))).new == (0,)


async def test_what_is_all_known_is_one_hit_that_saves_what_all_of_it_cost(clock: Clock) -> None:
    cache = Cache(Memory(100, 1 << 20), clock=clock)
    for text in "ab":
        cache.keep(text.encode(), entry(clock, text))
    whole = (await inputs.find(cache, asking("ba"))).whole()
    assert whole is not None
    assert (said(whole.body), whole.input_tokens, whole.cost_nano) == ("ba", 4, 80)
    total = cache.counters.total
    assert (total.hits, total.misses, total.saved_nano, cache.counters.memory_hits) == (1, 0, 80, 1)
    clock.advance(2)
    assert (await inputs.find(cache, asking("ba"))).new == (0, 1), "too old"
    assert (await inputs.look(cache, asking("ba"), stale=True)).whole() is not None


async def test_each_input_is_kept_by_itself_with_its_share_of_tokens_and_cost(clock: Clock) -> None:
    cache = Cache(Memory(100, 1 << 20), clock=clock)
    found = await inputs.find(cache, asking("abc"))
    whole = replace(entry(clock), body=answer("a", "b", "c", tokens=8), cost_nano=161)
    given = Answer("embeddings", 200, whole.body, begun_by="embed", model="embed")
    kept = list(found.entries(whole, given, RULES))
    assert [(key, said(one.body)) for key, one in kept] == [(b"a", "a"), (b"b", "b"), (b"c", "c")]
    assert [(one.input_tokens, one.cost_nano) for _, one in kept] == [(3, 54), (3, 54), (2, 53)]
    for bad in ({"status": 500}, {"degraded": True}, {"complete": False}, {"model": "other"}):
        assert not list(found.entries(whole, replace(given, **bad), RULES))
