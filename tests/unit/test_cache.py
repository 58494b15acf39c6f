"""Answers that are kept: which, for how long, how many, and how they get out again."""

import gc
import random
import time
import tracemalloc
from collections.abc import Callable
from typing import Any, ClassVar

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.cache import (
    Answer,
    Cache,
    CacheRules,
    Control,
    Entry,
    Label,
    Memory,
    cache_key,
    control_of,
    ends_of,
    input_keys,
)
from core.cache.counters import MOST_LABELS
from core.cache.embeddings import inputs_of, joined, pieces_of
from core.cache.entry import mark, packed, unpacked
from core.cache.key import Beside
from core.errors import BadField
from core.settings.models import CacheScope, Caching
from tests.support.clock import Clock

CHAT = Label("chat", "large")


def entry(body: bytes = b"{}", /, **other: Any) -> Entry:
    given = {"model": "large", "created_ms": int(Clock().now * 1000), "ttl_ms": 60_000, "cost_nano": 5_000}
    return Entry(200, ((b"content-type", b"application/json"),), body, **({"ends": ends_of(())} | given | other))


def made(clock: Callable[[], float], entries: int = 100, size: int = 1 << 20) -> Cache:
    return Cache(Memory(entries, size), clock=clock)


class TestEntry:
    def test_a_stream_comes_in_the_chunks_in_which_it_came(self):
        chunks = [b"data: one\n\n", b"", b"data: two\n\n", b"data: [DONE]\n\n"]
        stream = entry(b"".join(chunks), ends=ends_of(chunks))
        assert list(stream.chunks()) == chunks
        assert list(entry(b"{}").chunks()) == [b"{}"]

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.binary(max_size=2000), max_size=8), st.text(max_size=5), st.integers(0, 2**60))
    def test_it_survives_being_packed(self, chunks: list[bytes], name: str, cost: int):
        kept = entry(b"".join(chunks), ends=ends_of(chunks), user_id=name, tags=(name,), cost_nano=cost)
        assert unpacked(packed(kept), 1 << 20) == kept

    def test_what_is_altered_or_too_large_is_no_entry(self):
        chance = random.Random(3)
        for data in (packed(entry(b"x" * 50)), packed(entry(b"words " * 1000, ends=ends_of([b"w" * 6000])))):
            with pytest.raises(ValueError):
                unpacked(data, 10)
            for _ in range(500):
                broken = bytearray(data[: chance.randrange(len(data))] if chance.random() < 0.3 else data)
                if broken:
                    broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
                try:
                    found = unpacked(bytes(broken), 1 << 20)
                except ValueError:
                    continue
                assert isinstance(found, Entry)

    def test_text_that_repeats_takes_little_room(self):
        assert len(packed(entry(b"to be or not to be, " * 1000))) < 1000


class TestMemory:
    def test_the_least_recently_used_go_first(self):
        memory = Memory(3, 1 << 20)
        for name in (b"a", b"b", b"c"):
            memory.put(name, entry())
        now = entry().created_ms
        memory.get(b"a", now)
        memory.put(b"d", entry())
        assert [memory.get(name, now) is not None for name in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
        assert memory.evictions == 1

    @pytest.mark.parametrize(("body_bytes", "users"), [(20, 1), (20, 100_000), (1_000, 100_000), (50_000, 1)])
    def test_it_takes_no_more_room_than_it_may(self, body_bytes: int, users: int):
        most = 1 << 20
        memory, chance = Memory(1_000_000, most), random.Random(1)
        gc.freeze()  # what others left behind is not looked through again
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for number in range(2_000 if body_bytes < 10_000 else 100):
                body = bytes(chance.randrange(body_bytes // 2, body_bytes * 2))
                parts = [body[:10]] * 20
                user, tag = f"user-{chance.randrange(users)}", f"tag-{chance.randrange(50)}"
                memory.put(number.to_bytes(24, "big"), entry(body, user_id=user, tags=(tag,), ends=ends_of(parts)))
            del body, parts, user, tag
            gc.collect()
            taken = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
            gc.unfreeze()
        assert memory.evictions > 50
        assert 0.6 * most < taken < 1.1 * most

    def test_one_that_is_larger_than_all_the_room_is_not_kept_and_drives_out_nobody(self):
        memory = Memory(10, 10_000)
        memory.put(b"a", entry())
        assert not memory.put(b"b", entry(b"x" * 20_000))
        assert len(memory) == 1

    def test_taking_out_by_mark_leaves_the_others_and_nothing_behind(self):
        memory, chance = Memory(500, 1 << 24), random.Random(2)
        for number in range(2_000):
            memory.put(b"%d" % number, entry(user_id=f"u{number % 7}", tags=(f"t{number % 3}",)))
            if chance.random() < 0.1:
                memory.drop(b"%d" % chance.randrange(number + 1))
        expected = sum(f"u{number % 7}" != "u3" for number in range(2_000) if memory.get(b"%d" % number, 0))
        memory.invalidate(mark("user", "u3"))
        assert len(memory) == expected
        memory.invalidate(mark("model", "large"))
        assert (len(memory), memory.bytes) == (0, 0)
        assert not memory._marked

    def test_a_look_up_takes_as_long_among_many_as_among_few(self):
        def longest(entries: int) -> float:
            memory = Memory(entries, 1 << 30)
            for number in range(3 * entries):
                memory.put(number.to_bytes(8, "big"), entry())
            keys = [number.to_bytes(8, "big") for number in range(2 * entries, 3 * entries)][:200]
            times: list[float] = []
            for _ in range(10):
                began = time.perf_counter()
                for key in keys:
                    memory.get(key, 0)
                times.append(time.perf_counter() - began)
            return min(times)

        assert longest(10_000) < 10 * longest(200)


class TestCache:
    async def test_an_answer_is_there_until_its_time_is_over(self, clock: Clock):
        cache = made(clock)
        assert await cache.find(b"k", CHAT) is None
        cache.keep(b"k", entry(b"answer"))
        clock.advance(59.9)
        assert (await cache.find(b"k", CHAT) or entry()).body == b"answer"
        clock.advance(0.1)
        assert await cache.find(b"k", CHAT) is None
        assert (cache.stats().total.hits, cache.stats().total.misses) == (1, 2)
        assert cache.stats().total.saved_nano == 5_000

    async def test_a_stale_one_is_kept_for_when_nothing_else_answers(self, clock: Clock):
        cache = made(clock)
        cache.keep(b"k", entry(b"old", stale_ms=100_000))
        clock.advance(100)
        assert cache.get(b"k", CHAT) is None
        stale = await cache.stale(b"k", CHAT)
        assert stale is not None
        assert stale.body == b"old"
        assert cache.stats().total.stale == 1
        clock.advance(60)
        assert await cache.stale(b"k", CHAT) is None

    async def test_a_client_may_want_it_younger(self, clock: Clock):
        cache = made(clock)
        cache.keep(b"k", entry())
        clock.advance(10)
        assert cache.get(b"k", CHAT, max_age=9) is None
        assert cache.get(b"k", CHAT, max_age=10) is not None

    @pytest.mark.parametrize(
        "what",
        [{"model": "large"}, {"user": "ada"}, {"tag": "docs"}, {"task_type": "chat"}, {"all": True}],
    )
    async def test_answers_are_taken_out_by_what_they_have(self, clock: Clock, what: dict[str, Any]):
        cache = made(clock)
        cache.keep(b"k", entry(user_id="ada", tags=("docs",), task_type="chat"))
        cache.keep(b"other", entry(user_id="bob", model="small"))
        assert await cache.invalidate(**what) == (2 if "all" in what else 1)
        assert cache.get(b"k", CHAT) is None
        assert (cache.get(b"other", CHAT) is None) == ("all" in what)

    async def test_an_answer_that_began_before_it_was_taken_out_is_not_kept(self, clock: Clock):
        cache = made(clock)
        since = cache.generation
        await cache.invalidate(model="large")
        assert not cache.keep(b"k", entry(), since)
        assert cache.keep(b"other", entry(model="small"), since)
        assert cache.keep(b"k", entry(), cache.generation)
        for number in range(3_000):
            await cache.invalidate(user=f"u{number}")
        assert not cache.keep(b"k", entry(), since)

    def test_what_is_counted_is_bounded_whatever_clients_call_their_tasks(self, clock: Clock):
        cache = made(clock)
        cache.keep(b"k", entry())
        for number in range(3 * MOST_LABELS):
            cache.get(b"k", Label(f"task-{number}", "large"))
        stats = cache.stats()
        assert len(stats.by_label) == MOST_LABELS + 1
        assert sum(count.hits for count in stats.by_label.values()) == stats.total.hits == 3 * MOST_LABELS


def rules(**given: Any) -> CacheRules:
    return CacheRules(Caching.model_validate({"enabled": True, **given}))


STRATEGIES = {
    "task_type": {"coding": {"ttl": 1}, "never": {"ttl": 0}},
    "model": {"gpt-4o": {"ttl": 2}, "gpt-*": {"ttl": 3}},
    "tier": {"free": {"ttl": 4}},
}


@pytest.mark.parametrize(
    ("task_type", "model", "tier", "asked", "ttl"),
    [
        ("coding", "gpt-4o", "free", None, 1),
        ("never", "gpt-4o", "free", 60, 0),
        ("chat", "gpt-4o", "free", None, 2),
        (None, "gpt-5", "free", None, 3),
        (None, "claude", "free", None, 4),
        (None, "claude", None, None, 3600),
        (None, "claude", None, 10, 10),
        (None, "claude", None, 1e9, 3600),
    ],
)
def test_the_most_specific_ttl_counts(task_type: str | None, model: str, tier: str | None, asked: Any, ttl: float):
    assert rules(cache_strategies=STRATEGIES).ttl(task_type, model, tier, asked) == ttl


@pytest.mark.parametrize(
    ("endpoint", "body", "reason"),
    [
        ("chat_completions", {"messages": []}, None),
        ("embeddings", {"input": "a"}, None),
        ("images", {"prompt": "a"}, "endpoint"),
        ("chat_completions", {"api_key": "k"}, "own credentials or address"),
        ("chat_completions", {"extra_body": {"api_base": "https://x"}}, "own credentials or address"),
        ("chat_completions", {"store": True}, "has effects"),
        ("responses", {"store": True}, None),
        ("responses", {"background": True}, "has effects"),
        ("responses", {"conversation": "c"}, "has effects"),
        ("responses", {"tools": [{"type": "web_search_preview"}, {"type": "function"}]}, None),
        ("responses", {"tools": [{"type": "mcp"}]}, "tools with effects"),
        ("messages", {"tools": [{"name": "mine"}]}, None),
        ("messages", {"tools": [{"name": "bash", "type": "bash_20250124"}]}, "tools with effects"),
    ],
)
def test_questions_whose_answer_is_not_for_others_are_not_asked(endpoint: str, body: dict[str, Any], reason: Any):
    assert rules().why_not_asked(endpoint, body) == reason


def test_only_answers_without_chance_where_so_configured():
    strict = rules(cache_sampled=False)
    assert strict.why_not_asked("chat_completions", {}) == "sampled"
    assert strict.why_not_asked("chat_completions", {"temperature": 0}) is None
    assert strict.why_not_asked("generate_content", {"generationConfig": {"temperature": 0.0}}) is None
    assert strict.why_not_asked("embeddings", {}) is None


def test_a_response_that_its_provider_keeps_is_its_users_own():
    assert rules(scope="global").scope("responses", {}) is CacheScope.USER
    assert rules(scope="global").scope("responses", {"store": False}) is CacheScope.GLOBAL
    assert rules(scope="team").scope("chat_completions", {}) is CacheScope.TEAM


def chat(message: bytes = b'{"role":"assistant","content":"Hi"}', reason: bytes = b"stop") -> bytes:
    return b'{"choices":[{"message":%b,"finish_reason":"%b"}]}' % (message, reason)


DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("endpoint", "body", "facts", "reason"),
    [
        ("chat_completions", chat(), {}, None),
        ("chat_completions", chat(reason=b"length"), {}, None),
        ("chat_completions", chat(reason=b"length"), {"clamped": True}, "clamped"),
        ("chat_completions", chat(reason=b"content_filter"), {}, "cut short"),
        ("chat_completions", chat()[:-4], {}, "cut short"),
        ("chat_completions", chat(), {"complete": False}, "cut short"),
        ("chat_completions", b"", {}, "empty"),
        ("chat_completions", chat(b"x" * 2_000_000), {}, "too large"),
        ("chat_completions", chat(), {"status": 500}, "error"),
        ("chat_completions", chat(), {"degraded": True}, "degraded"),
        ("chat_completions", chat(), {"model": "small"}, "another model answered"),
        ("chat_completions", chat(b'{"content":null,"tool_calls":[{"id":"1"}]}'), {}, "tool calls"),
        ("chat_completions", chat(b'{"content":"x","tool_calls":null,"function_call":null}'), {}, None),
        ("chat_completions", chat(rb'{"content":"\"tool_calls\":[{\"id\""}'), {}, None),
        ("chat_completions", b'data: {"choices":[]}\n\n' + DONE, {"stream": True}, None),
        ("chat_completions", b'data: {"choices":[]}\n\n', {"stream": True}, "cut short"),
        ("chat_completions", b'data: {"c":"data: [DONE]"}\n\n', {"stream": True}, "cut short"),
        ("chat_completions", b'data: {"error":{"message":"x"}}\n\n' + DONE, {"stream": True}, "cut short"),
        (
            "messages",
            b'event: message_stop\ndata: {"type": "message_stop"}\n\n',
            {"stream": True},
            None,
        ),
        ("messages", b'event: error\ndata: {"type":"error"}\n\n', {"stream": True}, "cut short"),
        ("messages", b'{"content":[{"type":"tool_use","id":"1"}]}', {}, "tool calls"),
        ("responses", b'{"status":"completed","output":[]}', {}, None),
        ("responses", b'{"status":"incomplete","output":[]}', {}, "cut short"),
        ("responses", b'{"status":"completed","output":[{"type":"function_call"}]}', {}, "tool calls"),
        ("responses", b'{"status":"completed","output":[{"type":"web_search_call"}]}', {}, None),
        ("responses", b'event: x\ndata: {"type":"response.completed"}\n\n', {"stream": True}, None),
        ("generate_content", b'data: {"candidates":[{"finishReason":"STOP"}]}\n\n', {"stream": True}, None),
        ("generate_content", b'data: {"candidates":[{"finishReason":"SAFETY"}]}\n\n', {"stream": True}, "cut short"),
    ],
)
def test_only_whole_answers_that_are_everybodys_are_kept(endpoint: str, body: bytes, facts: Any, reason: str | None):
    answer = Answer(endpoint, body=body, **({"status": 200, "begun_by": "large", "model": "large"} | facts))
    assert rules().why_not_kept(answer) == reason


def test_tool_calls_are_kept_where_so_configured():
    answer = Answer("chat_completions", 200, chat(b'{"tool_calls":[{"id":"1"}]}'))
    assert rules(cache_tool_calls=True).why_not_kept(answer) is None


@pytest.mark.parametrize(
    ("cache", "header", "control"),
    [
        (None, None, Control()),
        ({"no-cache": True}, None, Control(read=False)),
        ({"no-store": True, "ttl": 5}, None, Control(store=False, ttl=5)),
        ({"s-maxage": 9, "namespace": "n"}, b"max-age=4", Control(max_age=4, namespace="n")),
        (None, b"No-Cache, no-store", Control(read=False, store=False)),
        ({"no-cache": False}, b"no-cache", Control(read=False)),
    ],
)
def test_a_client_may_do_without(cache: Any, header: bytes | None, control: Control):
    headers = [(b"accept", b"*/*")] + ([(b"cache-control", header)] if header else [])
    assert control_of({"cache": cache}, headers) == control


@pytest.mark.parametrize("cache", [True, {"no-store": "yes"}, {"ttl": -1}, {"ttl": "soon"}, {"namespace": 3}])
def test_a_wish_that_is_not_understood_is_refused(cache: Any):
    with pytest.raises(BadField, match="cache"):
        control_of({"cache": cache})


class TestEmbeddings:
    BODY: ClassVar[dict[str, Any]] = {"model": "e", "input": ["a", "b\n", [1, 2]], "dimensions": 2}
    ALL: ClassVar = Beside("e", ("team", "t"), variant="x/y", namespace="n")

    def answer(self, *order: int, tokens: int = 8, **more: Any) -> bytes:
        data = [{"index": index, "embedding": [0.5, index], "object": "embedding"} for index in order]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "details": None}
        return orjson.dumps({"object": "list", "model": "e", "data": data, "usage": usage, **more})

    def test_each_input_has_the_key_that_it_has_alone(self):
        inputs = inputs_of(self.BODY)
        assert inputs is not None
        for more in ({}, {"encoding_format": "base64"}, {"dimensions": 3}, {"user": "u"}):
            body = {**self.BODY, **more}
            keys = input_keys(body, inputs, self.ALL)
            assert keys == tuple(cache_key("embeddings", {**body, "input": one}, self.ALL) for one in inputs)
            assert keys[0] == cache_key("embeddings", {**body, "input": ["a"]}, self.ALL)
            assert len({*keys, cache_key("embeddings", body, self.ALL)}) == 4
        assert not {*keys} & {*input_keys({**self.BODY, "dimensions": 4}, inputs, self.ALL)}

    @pytest.mark.parametrize(
        "given", ["a", ["a"], [1, 2, 3], [], [{"image": "x"}, "a"], [["a"], ["b"]], [[], "a"], None]
    )
    def test_one_input_is_not_taken_apart(self, given: Any):
        assert inputs_of({"input": given}) is None
        assert inputs_of({**self.BODY, "extra_body": {"input": "x"}}) is None

    def test_what_is_taken_apart_is_the_same_again_when_put_together(self):
        pieces = pieces_of(self.answer(2, 0, 1), 3)
        assert pieces is not None
        assert orjson.loads(joined(pieces)) == orjson.loads(self.answer(0, 1, 2))
        assert [piece.tokens for piece in pieces] == [3, 3, 2]
        assert pieces_of(joined([pieces[1]]), 1) == [pieces[1]]
        shuffled = orjson.loads(joined([pieces[2], pieces[1], pieces[1]]))
        assert [one["embedding"][1] for one in shuffled["data"]] == [2, 1, 1]
        assert [one["index"] for one in shuffled["data"]] == [0, 1, 2]
        assert shuffled["usage"]["total_tokens"] == 2 + 3 + 3

    @pytest.mark.parametrize(
        "data",
        [
            *(
                b"",
                b"[]",
                b'[{"index":0},{"index":1}]',
                b"[1,2]",
                b'[{"embedding":0,"index":0},{"embedding":1,"index":1}]',
            ),
            *(b'[{"embedding":[1],"index":0}]', b'[{"embedding":[1],"index":0},{"embedding":[2],"index":0}]'),
            *(b'[{"embedding":[1],"index":0},{"embedding":[[2]],"index":1}]', b'[{"embedding":[1'),
            b'[{"embedding":[1],"index":0},{"embedding":null,"index":1}]',
            b'[{"embedding":[1],"index":0},{"embedding":["]"],"index":1}]',
        ],
    )
    def test_an_answer_of_another_form_is_left_whole(self, data: bytes):
        answer = b'{"data":%s,"usage":null}' % data
        assert pieces_of(answer, 2) is None
