"""Which rules a request matches, in which order, and what a rule says about model groups."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.conditions import ConditionFailed, compile_condition
from core.context import Caller, RequestContext
from core.facts import Facts
from core.settings.models import Match, RoutingRule
from custom_router.rules import CompiledRule, RuleSet

NOON_MS = 1_772_366_400_000  # 2026-03-01 12:00 UTC
CHAT = RequestContext(
    "r-1",
    "chat_completions",
    Caller(user_id="ada", tier="premium", groups=("eng",)),
    "smart",
    task_type="coding",
    input_tokens=500,
    metadata={"app": "ide"},
    time_ms=NOON_MS,
)


def rule(id: str, when: str | Mapping[str, Any] = "true", **fields: Any) -> RoutingRule:
    return RoutingRule(id=id, when=when, **({"use": ("large",)} | fields))


def matching(rules: RuleSet, now_ms: int = NOON_MS, **changes: Any) -> list[str]:
    found = rules.matching(Facts(replace(CHAT, **changes)), now_ms)
    return [one.rule.id for one in found]


def test_lower_priorities_are_tried_first_and_equal_ones_in_their_order() -> None:
    rules = [rule("late", priority=200), rule("one"), rule("first", priority=1), rule("two")]
    assert matching(RuleSet(rules, Match.ALL)) == ["first", "one", "two", "late"]
    assert matching(RuleSet(rules, Match.FIRST)) == ["first"]


def test_only_rules_whose_condition_matches_are_followed_and_counted() -> None:
    rules = RuleSet(
        [
            rule("chat", {"task_type": "chat"}),
            rule("code", "task_type == 'coding' && input_tokens < 1000"),
            rule("long", "input_tokens > 1000"),
            rule("app", "metadata.app.startsWith('id')"),
            rule("both", "'eng' in groups && 'ops' in groups"),
            rule("off", enabled=False),
            rule("never", "stream && false"),
        ],
        Match.ALL,
    )
    assert matching(rules) == ["code", "app"]
    assert matching(rules, input_tokens=2000, task_type=None) == ["long", "app"]
    assert matching(rules, caller=Caller(groups=("ops", "eng")), metadata={}) == ["code", "both"]
    assert rules.hits == {"chat": 0, "code": 2, "long": 1, "app": 2, "both": 1, "never": 0}


def test_a_rule_is_tried_within_its_dates_alone() -> None:
    noon = datetime.fromtimestamp(NOON_MS / 1000, UTC)
    rules = RuleSet([rule("from", valid_from=noon), rule("until", valid_until=noon)], Match.ALL)
    assert matching(rules, NOON_MS - 1) == ["until"]
    assert matching(rules, NOON_MS) == ["from"]


def test_a_rule_that_cannot_be_answered_is_skipped_and_says_why() -> None:
    rules = RuleSet([rule("broken", "metadata.app > 5"), rule("text", "metadata.app"), rule("next")], Match.FIRST)
    assert matching(rules) == ["next"]
    assert matching(rules, metadata={"app": 6}) == ["broken"]
    assert matching(rules, metadata={}) == ["next"]
    assert rules.failures == {"broken": 1, "text": 1, "next": 0}
    assert rules.last_failure["broken"] == "it compares or combines values of different kinds"
    assert rules.last_failure["text"] == "gives something else than true or false"


def test_true_is_not_one() -> None:
    rules = RuleSet([rule("one", {"metadata.app": 1}), rule("true", {"metadata.app": [True]})], Match.ALL)
    assert matching(rules, metadata={"app": True}) == ["true"]
    assert matching(rules, metadata={"app": 1}) == ["one"]


# -- model groups --------------------------------------------------------------------------------------------------


def test_use_leaves_in_what_it_names_by_name_or_glob() -> None:
    compiled = CompiledRule(rule("r", use=("gpt-*", "claude")))
    assert [compiled.uses(group) for group in ("gpt-4o", "claude", "small", "gpt-4o")] == [True, True, False, True]
    assert compiled.added == ("claude",)


def test_a_rule_without_use_leaves_everything_in() -> None:
    compiled = CompiledRule(rule("r", use=(), exclude=("gpt-*",)))
    assert compiled.uses("small")
    assert (compiled.excludes("gpt-4o"), compiled.excludes("small"), compiled.prefers("gpt-4o")) == (True, False, False)


def test_preferred_groups_come_first_in_the_order_of_the_rule() -> None:
    compiled = CompiledRule(rule("r", use=(), prefer=("claude", "gpt-*", "gpt-5")))
    assert compiled.preferred(["small", "gpt-5", "gpt-4o", "large", "claude", "gpt-3"]) == [
        "claude",
        "gpt-4o",
        "gpt-3",
        "gpt-5",
        "small",
        "large",
    ]


def test_what_a_glob_remembers_is_bounded() -> None:
    compiled = CompiledRule(rule("r", exclude=("gpt-*",)))
    for number in range(5000):
        assert compiled.excludes(f"gpt-{number}")
    assert len(compiled._exclude._remembered) <= 1024  # pyright: ignore[reportPrivateUsage]


# -- the index -----------------------------------------------------------------------------------------------------

WHENS = st.lists(
    st.sampled_from(
        [
            "task_type == 'a'",
            "task_type in ['a', 'b']",
            "task_type == null",
            "task_type != 'a'",
            "'x' in groups",
            "'y' in groups",
            "input_tokens > 1",
            "input_tokens <= 2",
            "input_tokens == 2",
            "output_limit >= 1",
            "output_limit < 3",
            "metadata.app == 'a'",
            "metadata.app == true",
            "metadata.app.startsWith('a')",
            "stream",
            "!stream",
            "(stream || metadata.app == 1)",
            "output_limit + 1 < input_tokens",
        ]
    ),
    min_size=1,
    max_size=3,
).map(" && ".join)
MAPPINGS = st.dictionaries(
    st.sampled_from(["task_type", "groups"]), st.sampled_from(["a", ["x", "y"], ["a", "x"]]), min_size=1
)
CONTEXTS = st.builds(
    lambda task, groups, tokens, limit, app, stream: replace(
        CHAT,
        task_type=task,
        caller=Caller(groups=groups),
        input_tokens=tokens,
        output_limit=limit,
        metadata={} if app is None else {"app": app},
        stream=stream,
    ),
    st.sampled_from([None, "a", "b", "x"]),
    st.sampled_from([(), ("x",), ("x", "y"), ("a",)]),
    st.integers(0, 4),
    st.sampled_from([None, 0, 1, 2, 3]),
    st.sampled_from([None, "a", "ab", 1, True]),
    st.booleans(),
)


def says_yes(when: str | Mapping[str, Any], facts: Facts) -> bool:
    try:
        return compile_condition(when).matches(facts)
    except ConditionFailed:
        return False


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(st.lists(st.one_of(WHENS, MAPPINGS), min_size=1, max_size=8), st.lists(CONTEXTS, min_size=1, max_size=4))
def test_the_index_finds_what_asking_every_rule_finds(
    whens: list[str | Mapping[str, Any]], contexts: list[RequestContext]
) -> None:
    rules = RuleSet([rule(f"r{index}", when) for index, when in enumerate(whens)], Match.ALL)
    for context in contexts:
        facts = Facts(context)
        expected = [f"r{index}" for index, when in enumerate(whens) if says_yes(when, facts)]
        assert [one.rule.id for one in rules.matching(facts, NOON_MS)] == expected


def test_no_rules_match_nothing() -> None:
    assert matching(RuleSet([], Match.ALL)) == []


@pytest.mark.slow
@pytest.mark.parametrize("match", list(Match))
def test_thousands_of_rules_for_others_are_not_looked_at(match: Match) -> None:
    rules = [rule(f"r{index}", f"user_id == 'user-{index}' && metadata.app > 5") for index in range(2000)]
    found = RuleSet(rules, match)
    assert matching(found) == []
    assert sum(found.failures.values()) == 0
    assert matching(found, caller=Caller(user_id="user-7")) == []
    assert found.failures["r7"] == sum(found.failures.values()) == 1
