"""Which requests share an answer: equal ones of one owner, and no others."""

import json
import random
import time
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.cache import Cache, Entry, Label, Memory, Owner, RawMemo, Seen, cache_key, ends_of, owner_of, raw_key, vary
from core.cache.key import Beside
from core.context import Caller
from core.settings.models import CacheScope

OURS: Owner = ("team", "research")
BODY: dict[str, Any] = {
    "model": "smart",
    "messages": [{"role": "user", "content": "What is a lease?"}],
    "max_tokens": 100,
    "tools": [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}],
}


def key(body: dict[str, Any] = BODY, /, endpoint: str = "chat_completions", **other: Any) -> bytes | None:
    return cache_key(endpoint, body, Beside(**({"model": "large", "owner": OURS} | other)))


@pytest.mark.parametrize(
    "same",
    [
        {"n": 1},
        {"stream": False, "stream_options": {"include_usage": True}},
        {"presence_penalty": 0},
        {"stop": None, "seed": None},
        {"user": "ada", "metadata": {"task_type": "chat", "trace": 7}, "safety_identifier": "x"},
        {"cache": {"ttl": 60}, "timeout": 30, "num_retries": 2, "litellm_call_id": "1"},
        {"model": "another-name-for-it"},
        {"response_format": {"type": "text"}, "logit_bias": {}},
    ],
)
def test_what_does_not_change_the_answer_does_not_change_the_key(same: dict[str, Any]):
    assert key({**BODY, **same}) == key()


@pytest.mark.parametrize(
    "other",
    [
        {"n": 2},
        {"n": True},
        {"temperature": 1},
        {"max_tokens": 101},
        {"tools": []},
        {"messages": [{"role": "user", "content": "What is a lease ?"}]},
        {"messages": [{"role": "system", "content": "What is a lease?"}]},
        {"response_format": {"type": "json_object"}},
        {"metadata": {"guardrails": ["pii"]}},
        {"metadata": {"tags": ["eu"]}},
        {"extra_body": {"n": 1}},
        {"guardrails": ["pii"]},
        {"a_field_of_next_year": 0},
    ],
)
def test_what_may_change_the_answer_changes_the_key(other: dict[str, Any]):
    assert key({**BODY, **other}) != key()


@pytest.mark.parametrize(
    "other",
    [
        {"endpoint": "messages"},
        {"model": "small"},
        {"owner": ("team", "sales")},
        {"owner": ("user", "research")},
        {"stream": True},
        {"dialect": "/v1/responses/compact"},
        {"variant": "large-vs-small/treatment"},
        {"guardrails": ("pii",)},
        {"varying": ("anthropic-beta: x",)},
        {"written": {"temperature": 0}},
        {"namespace": "mine"},
    ],
)
def test_so_does_each_thing_beside_the_body(other: dict[str, Any]):
    assert key(BODY, **other) != key()


def test_order_and_whitespace_do_not_matter():
    spaced = json.dumps(dict(reversed(BODY.items())), indent=3)
    assert key(orjson.loads(spaced)) == key(orjson.loads(orjson.dumps(BODY)))


def test_a_stream_with_usage_is_another_answer_than_one_without():
    with_usage = {**BODY, "stream": True, "stream_options": {"include_usage": True}}
    without = {**BODY, "stream": True, "stream_options": {"include_usage": False}}
    assert key(with_usage, stream=True) != key({**BODY, "stream": True}, stream=True)
    assert key(without, stream=True) == key({**BODY, "stream": True}, stream=True)


def test_a_number_is_the_same_however_it_is_written():
    assert key({**BODY, "temperature": 0}) == key({**BODY, "temperature": 0.0})


def test_what_is_no_json_has_no_key():
    assert key({**BODY, "seed": 10**30}) is None
    assert key({**BODY, "seed": {1, 2}}) is None
    assert key({**BODY, "temperature": 10**400}) is None
    assert key({**BODY, "user_field": "\ud800"}) is None


@pytest.mark.parametrize(
    ("scope", "caller", "owner"),
    [
        (CacheScope.GLOBAL, Caller(user_id="ada", team_id="research"), ("global", "")),
        (CacheScope.TEAM, Caller(user_id="ada", team_id="research"), ("team", "research")),
        (CacheScope.TEAM, Caller(user_id="ada"), ("user", "ada")),
        (CacheScope.TEAM, Caller(key_hash="abc"), ("key", "abc")),
        (CacheScope.USER, Caller(user_id="ada", team_id="research"), ("user", "ada")),
        (CacheScope.USER, Caller(team_id="research"), None),
    ],
)
def test_who_shares_is_never_more_than_the_scope_says(scope: CacheScope, caller: Caller, owner: Owner | None):
    assert owner_of(scope, caller) == owner


def test_headers_that_change_answers_are_told_apart_and_others_are_not():
    beta, trace = (b"anthropic-beta", b"tools"), (b"x-trace", b"1")
    assert vary([beta, trace]) == vary([trace, beta]) != vary([trace]) == ()
    assert vary([], b"api-version=2") != vary([], b"api-version=3")


class TestRawMemo:
    def test_the_same_bytes_of_the_same_credential_are_known(self, clock: Callable[[], float]):
        memo: RawMemo[str] = RawMemo(clock=clock)
        memo.put(raw_key(b"{}", b"ada", b"/v1/chat"), 1, "plan")
        assert memo.get(raw_key(b"{}", b"ada", b"/v1/chat"), 1) == "plan"
        for other in (
            raw_key(b"{} ", b"ada", b"/v1/chat"),
            raw_key(b"{}", b"ad", b"a/v1/chat"),
            raw_key(b"{}", b"ada"),
        ):
            assert memo.get(other, 1) is None

    def test_other_settings_and_time_make_it_forget(self, clock: Any):
        memo: RawMemo[str] = RawMemo(keep=5, clock=clock)
        memo.put(b"k", 1, "plan")
        assert memo.get(b"k", 2) is None
        memo.put(b"k", 2, "plan")
        clock.advance(5)
        assert memo.get(b"k", 2) is None

    def test_it_holds_so_many_and_keeps_those_that_are_asked_for(self):
        memo: RawMemo[int] = RawMemo(most=100)
        for number in range(1000):
            memo.put(b"%d" % number, 1, number)
            assert memo.get(b"0", 1) == 0
        assert len(memo) <= 100


def test_what_came_before_is_known_until_much_else_has_come():
    seen = Seen(most=10)
    assert [seen.again(b"a"), seen.again(b"a")] == [False, True]
    assert not any(seen.again(b"%d" % number) for number in range(9))
    assert seen.again(b"a"), "at least the last ten are known"
    assert not any(seen.again(b"%d" % number) for number in range(100, 120))
    assert not seen.again(b"0")


PLAIN = st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["", "a", "b", "1", "text"])
FIELDS = st.dictionaries(
    st.sampled_from(["n", "seed", "temperature", "stop", "messages", "x", "tools"]),
    st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner)),
    max_size=3,
)


@settings(max_examples=120, deadline=None)
@given(FIELDS, FIELDS)
def test_bodies_have_one_key_only_where_they_say_the_same(one: dict[str, Any], other: dict[str, Any]):
    assert (key(one) == key(other)) == (meaning(one) == meaning(other))


def meaning(body: dict[str, Any]) -> str:
    """Another way to write down what is asked: as text, which tells True from 1."""
    said = {name: value for name, value in body.items() if value is not None}
    for name, default in {"n": "1", "stop": "[]", "tools": "[]"}.items():
        if json.dumps(said.get(name)) == default:
            del said[name]
    if type(said.get("temperature")) is int:
        said["temperature"] = float(said["temperature"])
    return json.dumps(said, sort_keys=True)


@pytest.mark.slow
def test_nobody_gets_the_answer_to_another_question():
    assert_no_mix_ups(100_000, seed=7)


def assert_no_mix_ups(requests: int, seed: int) -> None:
    """Random requests of many owners, variants and parameters through a cache that evicts: every hit is the answer to
    the question that was asked, and whatever was asked and not evicted is a hit."""
    chance = random.Random(seed)
    label, now = Label("", ""), int(time.time() * 1000)
    cache = Cache(Memory(5_000, 64 << 20))
    keys: dict[bytes, str] = {}
    hits = 0
    for _ in range(requests):
        asked, found = random_question(chance)
        previous = keys.setdefault(found, asked)
        assert previous == asked
        entry = cache.get(found, label)
        if entry is None:
            body = asked.encode()
            cache.keep(found, Entry(200, (), body, ends_of(()), "m", now, 10**9))
        else:
            assert entry.body.decode() == asked
            hits += 1
    assert len(set(keys.values())) == len(keys)
    assert hits > requests / 4


def random_question(chance: random.Random) -> tuple[str, bytes]:
    """A question in words of our own, and the key of one of the many requests that ask it."""
    pick = chance.choice
    scope = pick(list(CacheScope))
    # The names of teams and users are the same on purpose.
    team, user, secret = pick(["a", "b", None]), pick(["a", "b", None]), pick(["a", "b"])
    owner = owner_of(scope, Caller(key_hash=secret, user_id=user, team_id=team))
    assert owner is not None
    whose = "all" if scope is CacheScope.GLOBAL else f"team {team}" if scope is CacheScope.TEAM and team else None
    whose = whose or (f"user {user}" if user else f"key {secret}")
    words, temperature, copies = pick(["a", "b", "ab", "a b"]), pick([None, 0, 0.5, 1]), pick([1, 2])
    model, variant, stream = pick(["m", "n"]), pick(["", "e/a", "e/b", "e/a,f/b"]), pick([True, False])
    fields: list[tuple[str, Any]] = [("messages", [{"role": "user", "content": words}])]
    if temperature is not None:
        fields.append(("temperature", pick([temperature, float(temperature)])))
    if copies != 1 or pick([True, False]):
        fields.append(("n", copies))
    fields += chance.sample(
        [("user", pick("ab")), ("metadata", {"trace": pick("ab")}), ("model", pick("mn")), ("seed", None)], k=2
    )
    chance.shuffle(fields)
    body = orjson.loads(orjson.dumps(dict(fields), option=pick([0, orjson.OPT_INDENT_2])))
    found = cache_key("chat_completions", body, Beside(model, owner, stream=stream, variant=variant))
    assert found is not None
    temperature = None if temperature is None else float(temperature)
    return f"{whose}: {words!r} {temperature} {copies} {model} {variant} {stream}", found
