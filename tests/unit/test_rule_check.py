"""What `check` says about rules and audiences: what cannot be used, never matches or is never reached, and where."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.conditions import ConditionFailed, compile_condition
from core.context import RequestContext
from core.facts import Facts
from core.settings import Finding, InvalidConfig, Settings, load
from core.settings.rule_check import covers, rule_findings
from tests.unit.test_rules import CONTEXTS, MAPPINGS, WHENS

HEAD = """\
model_list:
  - {model_name: small, litellm_params: {model: demo/small}}
  - {model_name: large, litellm_params: {model: demo/large}}
orchestration:
  tiers: {free: {}, premium: {}}
  groups: {eng: {users: [ada]}}
  routing:
    headers: [x-app]
    policies: {smart: {candidates: [large, small]}}
"""


def findings(tmp_path: Path, routing: str) -> list[Finding]:
    """What is said about the rules, in the order of the file; without that they are not built."""
    path = tmp_path / "config.yaml"
    path.write_text(HEAD + routing)
    try:
        found = load(path, {}).findings
    except InvalidConfig as invalid:
        found = invalid.findings
    return [finding for finding in found if "not built yet" not in finding.message]


def said(tmp_path: Path, *rules: str, match: str = "first") -> list[str]:
    lines = "".join(f"      - {{id: r{index}, use: [large], {rule}}}\n" for index, rule in enumerate(rules))
    return [
        f"{finding.severity} {finding.path.removeprefix('orchestration.routing.')}: {finding.message}"
        for finding in findings(tmp_path, f"    match: {match}\n    rules:\n{lines}")
    ]


def test_a_condition_that_cannot_be_used_is_found_at_its_character(tmp_path: Path) -> None:
    (finding,) = findings(
        tmp_path, "    rules:\n      - id: r\n        when: \"stream && task_typ == 'a'\"\n        use: [large]\n"
    )
    assert (finding.severity, finding.path) == ("error", "orchestration.routing.rules[0].when")
    assert (finding.line, finding.column) == (12, 26)
    assert finding.message == "there is no variable 'task_typ'; did you mean 'task_type'?"
    assert "user_tier" in finding.valid


def test_an_audience_is_checked_as_a_rule_is(tmp_path: Path) -> None:
    found = findings(
        tmp_path,
        """\
    experiments:
      - id: e
        policy: smart
        audience: {user_tier: fre, headers.x-other: a}
        variants: [{id: a, model: large, set: {temperature: hot}}, {id: b, model: small}]
      - {id: f, policy: smart, audience: "stream && !stream", variants: [{id: a}, {id: b}]}
      - {id: g, policy: smart, audience: {task: a}, variants: [{id: a}, {id: b}]}
""",
    )
    assert [(finding.severity, finding.line, finding.message) for finding in found] == [
        ("error", 13, "header 'x-other' is not among routing.headers; add it there to look at it"),
        ("warning", 13, "'fre' is not a tier; did you mean 'free'?"),
        ("error", 14, "must be a number from 0 to 2"),
        ("warning", 15, "nobody takes part: stream cannot have two values"),
        ("error", 16, "there is no variable 'task'; did you mean 'task_type'?"),
    ]


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ("task_type == 'a' && task_type == 'b'", "never matches: task_type cannot have two values"),
        ("{task_type: []}", "never matches: the list for task_type is empty"),
        ("input_tokens > 9 && input_tokens < 5", "never matches: no input_tokens is in the range"),
        ("user_tier in ['free', 'gold']", "'gold' is not a tier"),
        ("{groups: [eng, sales]}", "'sales' is not a group (it may come from a team's metadata)"),
    ],
)
def test_a_rule_that_never_matches_is_a_warning(tmp_path: Path, when: str, message: str) -> None:
    quoted = when if when.startswith("{") else f'"{when}"'
    assert said(tmp_path, f"when: {quoted}") == [f"warning rules[0].when: {message}"]


def test_a_rule_whose_time_has_passed_is_a_warning() -> None:
    configured = Settings.model_validate(
        {"routing": {"rules": [{"id": "r", "when": "true", "use": ["a"], "valid_until": "2026-01-01T00:00:00Z"}]}}
    )
    assert rule_findings(configured, datetime(2025, 12, 31, tzinfo=UTC)) == []
    (finding,) = rule_findings(configured, datetime(2026, 1, 1, tzinfo=UTC))
    assert finding.loc[-1] == "valid_until"


HIDDEN = "is never followed: whenever it matches, rule 'r0' does and is tried first"


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ('when: "true"', "when: {task_type: a}"),
        ("when: {task_type: a}", "when: \"task_type == 'a' && input_tokens > 5\""),
        ("when: {task_type: [a, b]}", "when: {task_type: b, stream: true}"),
        ('when: "input_tokens > 5"', 'when: "input_tokens >= 8 && input_tokens < 20"'),
        ("when: \"user_id.startsWith('a')\"", "when: \"user_id.startsWith('a')\""),
        ("when: {groups: [eng]}", "when: \"'eng' in groups && stream\""),
        ("when: {task_type: a}", "when: {task_type: a}, valid_from: 2030-01-01T00:00:00Z"),
    ],
)
def test_a_rule_that_an_earlier_one_hides_names_it(tmp_path: Path, earlier: str, later: str) -> None:
    assert said(tmp_path, earlier, later) == [f"warning rules[1].when: {HIDDEN}"]
    assert said(tmp_path, earlier, later, match="all") == []


def test_what_is_tried_first_is_told_by_the_priority(tmp_path: Path) -> None:
    assert said(tmp_path, 'when: "true"', "when: {task_type: a}, priority: 1") == []


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("when: {task_type: a, stream: true}", "when: {task_type: a}"),
        ("when: {task_type: a}, enabled: false", "when: {task_type: a}"),
        ("when: {task_type: a}, valid_from: 2030-01-01T00:00:00Z", "when: {task_type: a}"),
        ("when: \"task_type == 'a' && size(user_id) > 3\"", "when: {task_type: a}"),
        ('when: "input_tokens > 5"', 'when: "input_tokens > 4"'),
        ('when: "output_limit > 0"', "when: {task_type: a}"),
    ],
)
def test_a_rule_that_an_earlier_one_leaves_requests_for_is_fine(tmp_path: Path, earlier: str, later: str) -> None:
    assert said(tmp_path, earlier, later) == []


def test_fields_that_are_set_have_a_name_and_a_value_that_fit(tmp_path: Path) -> None:
    fine = "{temperature: 0.2, top_p: 1, max_tokens: 100, timeout: 30, tags: [a], reasoning_effort: low, seed: 7}"
    assert said(tmp_path, f'when: "true", set: {fine}') == []
    wrong = "{temperatur: 1, top_p: 2, max_tokens: 0.5, timeout: 0, tags: a, reasoning_effort: much, seed: true}"
    assert [one.partition(" rules[0].set.")[2][:50] for one in said(tmp_path, f'when: "true", set: {wrong}')] == [
        "temperatur: unknown field; did you mean 'temperatu",
        "top_p: must be a number from 0 to 1",
        "max_tokens: must be a whole number from 1",
        "timeout: must be seconds, more than 0 and at most ",
        "tags: must be a list of texts",
        "reasoning_effort: must be one of none, minimal, lo",
        "seed: must be a whole number",
    ]


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(st.one_of(WHENS, MAPPINGS), st.one_of(WHENS, MAPPINGS), st.lists(CONTEXTS, min_size=3, max_size=6))
def test_what_is_said_to_hide_a_rule_matches_whenever_the_rule_does(
    one: str, other: str, contexts: list[RequestContext]
) -> None:
    first, second = compile_condition(one), compile_condition(other)
    if covers(first, second):
        for context in contexts:
            facts = Facts(context)
            try:
                matched = second.matches(facts)
            except ConditionFailed:
                continue
            assert not matched or first.matches(facts)
