"""What a config.yaml may say, what is refused, and where the finding points."""

import hashlib
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import ValidationError

from core.errors import ConfigError
from core.settings import Finding, InvalidConfig, Loaded, Settings, load
from core.settings.models import AtLimit, Weekday

MODELS = """\
model_list:
  - {model_name: small, litellm_params: {model: demo/small}}
  - {model_name: large, litellm_params: {model: demo/large}}
  - {model_name: "openai/*", litellm_params: {model: "openai/*"}}
router_settings: {model_group_alias: {tiny: small}}
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def loaded(tmp_path: Path, section: str, environ: dict[str, str] | None = None) -> Loaded:
    return load(written(tmp_path, MODELS + section), environ or {})


def refused(tmp_path: Path, section: str, environ: dict[str, str] | None = None) -> tuple[Finding, ...]:
    with pytest.raises(InvalidConfig) as raised:
        loaded(tmp_path, section, environ)
    return tuple(finding for finding in raised.value.findings if finding.severity == "error")


def test_everything_has_a_default():
    settings = Settings()
    assert settings.store.url == "sqlite+aiosqlite:///orchestration.db"
    assert settings.shared_state.url is None
    assert settings.budgets == ()
    assert settings.limits.max_body_bytes == 10_485_760


def test_a_file_without_our_section_and_an_empty_one_are_valid(tmp_path: Path):
    for text in ("", "orchestration:\n", "orchestration:\n  budgets:\n  tiers:\n"):
        assert load(written(tmp_path, text), {}).settings == Settings()


def test_settings_do_not_change_once_read(tmp_path: Path):
    settings = loaded(tmp_path, "orchestration: {tiers: {free: {}}}").settings
    with pytest.raises(ValidationError):
        settings.environment = "production"  # type: ignore[assignment, misc]
    with pytest.raises(TypeError):
        settings.tiers["other"] = settings.tiers["free"]  # type: ignore[index]


WHOLE = """\
orchestration:
  store:        {url: sqlite+aiosqlite:///orchestration.db}
  shared_state: {url: null, on_outage: deny}
  secrets:
    default_provider: local
    cache: {ttl: 300, refresh_ahead: 0.8, stale_while_error: 3600}
    providers:
      azure: {vault_url: os.environ/AZURE_KEY_VAULT_URL}
      aws: {region: os.environ/AWS_REGION}
      hashicorp: {url: os.environ/VAULT_URL, auth: {method: token}, mount: secret}
      local: {enabled: true}
    access: [{models: ["gpt-*"], allow: ["azure://openai-*"]}]
  keys:         [{key: os.environ/DEMO_KEY, user_id: ada, team_id: research, tier: premium, models: [smart], trusted: false}]
  groups:       {ai_team: {users: [ada], teams: [research]}}
  tiers:
    free:    {models: [small], requests_per_minute: 20, tokens_per_minute: 20000, max_parallel_requests: 4, priority: 3}
    premium: {models: ["*"], priority: 1}
  default_tier: free
  routing:
    order: [experiments, rules, tiers, priority, cost]
    policies:
      smart: {candidates: [large, small], objective: priority, grants: true, sticky: session, regions: [eu],
              fallback_response: "The assistant is busy, please try again."}
    rules:
      - {id: long-code, when: "task_type == 'coding' && input_tokens > 8000", use: [large]}
      - {id: chat, when: {task_type: chat, user_tier: [free]}, prefer: [small]}
    experiments:
      - {id: large-vs-small, policy: smart, unit: user, audience: {task_type: chat}, traffic: 0.5,
         variants: [{id: control, model: large, weight: 50}, {id: treatment, model: small, weight: 50}],
         metrics: {primary: rating, guardrails: [error_rate, latency_p95, cost]}, status: running}
    strategies: {mine: tests.support.strategies.LastOne}
  budgets:
    - {budget_id: everyone, per: user, total_budget: 20, reset_period: DAILY, at_limit: degrade, degrade_to: [small]}
  alerts:       {channels: {ops: os.environ/ALERT_URL}, rules: [{on: [budget_threshold, breaker_open, secret_stale], to: [ops]}]}
  caching:      {enabled: true, default_ttl: 3600, scope: team, max_entries: 10000, max_bytes: 268435456, deduplicate: true,
                 cache_strategies: {task_type: {coding: {ttl: 7200}, chat: {ttl: 1800}}}}
  resilience:
    circuit_breaker: {failure_threshold: 5, window: 60, open_for: 30, half_open_requests: 1}
    retries:         {max_attempts: 3, base_delay: 0.2, max_delay: 5, jitter: full}
    health_checks:   {interval: 60, timeout: 10}
  limits:       {max_concurrent_requests: 1000, max_body_bytes: 10485760, per_ip_requests_per_minute: null}
  analytics:    {retention_days: 400, metrics: true}
  environment: development
  journal:      {dir: .orchestration/journal}
"""  # noqa: E501


def test_a_configuration_that_says_everything_loads_and_reads_back(tmp_path: Path):
    settings = loaded(tmp_path, WHOLE).settings
    assert settings.routing.experiments[0].variants[1].model == "small"
    assert [event.value for event in settings.alerts.rules[0].on] == [
        "budget_threshold",
        "breaker_open",
        "secret_stale",
    ]
    assert settings.caching.cache_strategies.task_type["chat"].ttl == 1800
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


def test_the_budget_of_the_specification_is_accepted_as_written(tmp_path: Path):
    section = """\
orchestration:
  budgets:
    - budget_id: team_ai_budget
      name: AI Team Monthly Budget
      total_budget: 5000.0
      reset_period: MONTHLY
      alert_thresholds: [0.5, 0.8, 0.95]
      auto_disable_at_limit: true
      user_groups: [ai_team, data_science]
"""
    (budget,) = loaded(tmp_path, section).settings.budgets
    assert budget.total_budget == Decimal("5000.0")
    assert budget.at_limit is AtLimit.BLOCK
    assert budget.alert_thresholds == (0.5, 0.8, 0.95)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("", AtLimit.BLOCK),
        ("auto_disable_at_limit: true", AtLimit.BLOCK),
        ("auto_disable_at_limit: false", AtLimit.WARN),
        ("auto_disable_at_limit: false, at_limit: degrade, degrade_to: [small]", AtLimit.DEGRADE),
        ("at_limit: warn", AtLimit.WARN),
    ],
)
def test_a_budget_says_in_either_way_what_happens_at_its_limit(tmp_path: Path, said: str, meant: AtLimit):
    section = f"orchestration: {{budgets: [{{budget_id: b, total_budget: 0.1, {said}}}]}}"
    (budget,) = loaded(tmp_path, section).settings.budgets
    assert (budget.at_limit, budget.total_budget) == (meant, Decimal("0.1"))


def test_a_budget_says_where_its_periods_begin_what_is_carried_over_and_who_has_another_allowance(tmp_path: Path):
    section = """\
orchestration:
  budgets:
    - {budget_id: weekly, total_budget: 1, reset_period: weekly, anchor: {week_starts: sunday}}
    - {budget_id: fiscal, total_budget: 1, reset_period: QUARTERLY, anchor: {month: 4, day: 6}, rollover: {max: 0.5}}
    - {budget_id: people, total_budget: 1, per: user, overrides: {ada: 20, nobody-knows-her: 0.000000001}}
"""
    settings = loaded(tmp_path, section).settings
    weekly, fiscal, people = settings.budgets
    assert weekly.anchor is not None and weekly.anchor.week_starts is Weekday.SUNDAY
    assert fiscal.anchor is not None and (fiscal.anchor.month, fiscal.anchor.day) == (4, 6)
    assert fiscal.rollover is not None and fiscal.rollover.max == Decimal("0.5")
    assert people.overrides == {"ada": Decimal(20), "nobody-knows-her": Decimal("0.000000001")}
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    ("budget", "path", "says"),
    [
        ("task_types: []", "task_types", "does not narrow"),
        ("user_groups: [opps]", "user_groups[0]", "did you mean 'ops'? (it may come from a team's metadata)"),
        ("user_groups: [nobody]", "user_groups[0]", "has no members"),
        ("flat_reserve: 1.5", "flat_reserve", "is more than the whole budget (1)"),
        ("per: user, users: [ada], overrides: {eve: 2}", "overrides.eve", "not in the budget's scope"),
        ("per: model, models: ['la*'], overrides: {small: 2}", "overrides.small", "not in the budget's scope"),
    ],
)
def test_a_budget_that_does_less_than_it_seems_to_is_a_warning(tmp_path: Path, budget: str, path: str, says: str):
    groups = "{ops: {users: [ada]}, nobody: {}}"
    section = f"orchestration: {{groups: {groups}, budgets: [{{budget_id: b, total_budget: 1, {budget}}}]}}"
    found = [one for one in loaded(tmp_path, section).findings if "not built yet" not in one.message]
    assert [(one.severity, one.path) for one in found] == [("warning", f"orchestration.budgets[0].{path}")]
    assert says in found[0].message


@pytest.mark.parametrize(
    "budget",
    [
        "user_groups: [ops]",
        "flat_reserve: 1.5, per: user, overrides: {ada: 2}",
        "flat_reserve: 1.5, at_limit: warn",
        "per: team, overrides: {research: 2}",
        "per: model, models: ['la*'], overrides: {large: 2}",
        f"per: key, keys: [the-alias], overrides: {{'sha256:{'0a' * 32}': 2}}",
    ],
)
def test_a_budget_that_does_what_it_says_has_nothing_to_say(tmp_path: Path, budget: str):
    section = (
        f"orchestration: {{groups: {{ops: {{users: [ada]}}}}, budgets: [{{budget_id: b, total_budget: 1, {budget}}}]}}"
    )
    assert [one for one in loaded(tmp_path, section).findings if "not built yet" not in one.message] == []


def test_an_unknown_field_is_refused_with_the_nearest_name_and_its_line(tmp_path: Path):
    (finding,) = refused(tmp_path, "orchestration:\n  tiers:\n    free:\n      modles: [small]\n")
    assert finding.path == "orchestration.tiers.free.modles"
    assert (finding.line, finding.column) == (MODELS.count("\n") + 4, 7)
    assert "did you mean 'models'?" in finding.message
    assert "priority" in finding.valid
    assert finding.value is None


def test_every_problem_is_reported_at_once_in_the_order_of_the_file(tmp_path: Path):
    section = """\
orchestration:
  default_tier: gold
  tiers: {free: {priority: 99}}
  caching: {scope: everyone}
  nonsense: 1
  routing: {policies: {smart: {candidates: [medium]}}}
"""
    findings = refused(tmp_path, section)
    assert [finding.path for finding in findings] == [
        "orchestration.default_tier",
        "orchestration.tiers.free.priority",
        "orchestration.caching.scope",
        "orchestration.nonsense",
        "orchestration.routing.policies.smart.candidates[0]",
    ]


LITERAL = "sk-" + "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("section", "path", "says"),
    [
        ("[1]", "", "must be a mapping"),
        ("{tiers: 5}", ".tiers", "must be a mapping"),
        ("{tiers: {free: 5}}", ".tiers.free", "must be a mapping of fields"),
        ("{tiers: {free: {priority: yes}}}", ".tiers.free.priority", "not true or false"),
        ("{tiers: {free: {priority: 0}}}", ".tiers.free.priority", "greater than or equal to 1"),
        ("{tiers: {'a b': {}}}", ".tiers.a b", "match pattern"),
        ("{default_tier: gold}", ".default_tier", "no tier is defined"),
        ("{keys: [{user_id: ada}]}", ".keys[0]", "exactly one of `key`"),
        (f"{{keys: [{{key: {LITERAL}}}]}}", ".keys[0].key", "never the secret itself"),
        ("{keys: [{key: os.environ/azur://x}]}", ".keys[0].key", "did you mean 'azure://'?"),
        ("{keys: [{key: 'os.environ/A B'}]}", ".keys[0].key", "not a reference that can be looked up"),
        ("{keys: [{key: 'os.environ/azure://a#f'}]}", ".keys[0].key", "only with aws:// and hashicorp://"),
        ("{keys: [{key: 'os.environ/aws://a?x=1'}]}", ".keys[0].key", "?version=<version> and nothing else"),
        ("{keys: [{key_hash: 'sha256:12'}]}", ".keys[0].key_hash", "match pattern"),
        ("{keys: [{key: os.environ/A, user_id: 7}]}", ".keys[0].user_id", "put it in quotes"),
        ("{keys: [{key: os.environ/A, tier: gold}]}", ".keys[0].tier", "no tier is defined"),
        ("{keys: [{key: os.environ/A, models: [smal]}]}", ".keys[0].models[0]", "did you mean 'small'?"),
        ("{keys: [{key: os.environ/A, models: []}]}", ".keys[0].models", "needs at least 1 item"),
        ("{keys: [{key: os.environ/A}, {key: os.environ/A}]}", ".keys[1].key", "used 2 times"),
        ("{tiers: {free: {models: ['gpt-*']}}}", ".tiers.free.models[0]", "matches no model or policy"),
        ("{routing: {policies: {p: {candidates: []}}}}", ".routing.policies.p.candidates", "needs at least 1 item"),
        ("{routing: {policies: {p: {}}}}", ".routing.policies.p", "'candidates' is required"),
        ("{routing: {policies: {small: {candidates: [large]}}}}", ".routing.policies.small", "is also a model"),
        (
            "{routing: {policies: {p: {candidates: [large]}, q: {candidates: [p]}}}}",
            ".routing.policies.q.candidates[0]",
            "is a policy",
        ),
        (
            "{routing: {policies: {p: {candidates: [large], objective: costs}}}}",
            ".routing.policies.p.objective",
            "did you mean 'cost'?",
        ),
        ("{routing: {order: [tiers, tiers]}}", ".routing", "twice"),
        ("{routing: {rules: [{id: a, when: 'true', use: [larg]}]}}", ".routing.rules[0].use[0]", "'large'"),
        ("{routing: {rules: [{id: a, when: 'true', prefer: [larg]}]}}", ".routing.rules[0].prefer[0]", "'large'"),
        ("{routing: {rules: [{id: a, when: 'true', exclude: [larg]}]}}", ".routing.rules[0].exclude[0]", "'large'"),
        ("{routing: {rules: [{id: a, when: 5, use: [large]}]}}", ".routing.rules[0].when", "an expression, or"),
        (
            "{routing: {rules: [{id: a, when: 'true', use: [large], priority: 1.9}]}}",
            ".routing.rules[0].priority",
            "integer",
        ),
        (
            "{routing: {rules: [{id: a, when: 'true', use: [large], priority: yes}]}}",
            ".routing.rules[0].priority",
            "not true or false",
        ),
        (
            "{routing: {policies: {p: {candidates: [large]}}, experiments: [{id: e, policy: p, variants: "
            "[{id: a, model: large}, {id: b, model: small}], metrics: {guardrail_limit: yes}}]}}",
            ".routing.experiments[0].metrics.guardrail_limit",
            "not true or false",
        ),
        ("{routing: {rules: [{id: a, when: x}]}}", ".routing.rules[0]", "needs one of use"),
        (
            "{routing: {rules: [{id: a, when: 'true', use: [large]}, {id: a, when: 'true', use: [large]}]}}",
            ".routing.rules[1].id",
            "the first is routing.rules[0]",
        ),
        (
            "{routing: {policies: {p: {candidates: [large]}}, experiments: [{id: e, policy: q, variants: "
            "[{id: a, model: large}, {id: b, model: small}]}]}}",
            ".routing.experiments[0].policy",
            "'q' is not a policy",
        ),
        (
            "{routing: {policies: {p: {candidates: [large]}}, experiments: [{id: e, policy: p, variants: "
            "[{id: a, model: large}, {id: b, model: smal}]}]}}",
            ".routing.experiments[0].variants[1].model",
            "did you mean 'small'?",
        ),
        ("{routing: {strategies: {mine: notdotted}}}", ".routing.strategies.mine", "match pattern"),
        ("{budgets: [{budget_id: b}]}", ".budgets[0]", "'total_budget' is required"),
        ("{budgets: [{budget_id: b, total_budget: .inf}]}", ".budgets[0].total_budget", "finite"),
        ("{budgets: [{budget_id: b, total_budget: -1}]}", ".budgets[0].total_budget", "greater than or equal to 0"),
        ("{budgets: [{budget_id: b, total_budget: 1, timezone: Mars/X}]}", ".budgets[0].timezone", "a timezone"),
        ("{budgets: [{budget_id: b, total_budget: 1, reset_period: HOURLY}]}", ".budgets[0].reset_period", "one of"),
        (
            "{budgets: [{budget_id: b, total_budget: 1, alert_thresholds: [0.9, 0.5]}]}",
            ".budgets[0].alert_thresholds",
            "rise",
        ),
        ("{budgets: [{budget_id: b, total_budget: 1, at_limit: degrade}]}", ".budgets[0]", "needs degrade_to"),
        ("{budgets: [{budget_id: b, total_budget: 1, degrade_to: [small]}]}", ".budgets[0]", "set at_limit: degrade"),
        (
            "{budgets: [{budget_id: b, total_budget: 1, at_limit: degrade, degrade_to: [smol]}]}",
            ".budgets[0].degrade_to[0]",
            "did you mean 'small'?",
        ),
        (
            "{budgets: [{budget_id: b, total_budget: 1, auto_disable_at_limit: true, at_limit: degrade, "
            "degrade_to: [small]}]}",
            ".budgets[0]",
            "contradicts at_limit: degrade",
        ),
        (
            "{budgets: [{budget_id: b, total_budget: 1}, {budget_id: b, total_budget: 1}]}",
            ".budgets[1].budget_id",
            "used 2 times",
        ),
        (f"{{budgets: [{{budget_id: b, total_budget: 1, keys: [{LITERAL}]}}]}}", ".budgets[0].keys", "never the keys"),
        ("{budgets: [{budget_id: 'a~b', total_budget: 1}]}", ".budgets[0].budget_id", "match pattern"),
        ("{budgets: [{budget_id: 'a|b', total_budget: 1}]}", ".budgets[0].budget_id", "match pattern"),
        (
            "{budgets: [{budget_id: b, total_budget: 1, anchor: {week_starts: SUNDAY}}]}",
            ".budgets[0].anchor",
            "week_starts does nothing with reset_period: MONTHLY, which takes day",
        ),
        (
            "{budgets: [{budget_id: b, total_budget: 1, reset_period: DAILY, anchor: {day: 2}}]}",
            ".budgets[0].anchor",
            "day does nothing with reset_period: DAILY, which has no anchor",
        ),
        (
            "{budgets: [{budget_id: b, total_budget: 1, reset_period: QUARTERLY, anchor: {week_starts: MONDAY}}]}",
            ".budgets[0].anchor",
            "which takes month and day",
        ),
        ("{budgets: [{budget_id: b, total_budget: 1, anchor: {day: 29}}]}", ".budgets[0].anchor.day", "equal to 28"),
        ("{budgets: [{budget_id: b, total_budget: 1, anchor: {dya: 2}}]}", ".budgets[0].anchor.dya", "mean 'day'?"),
        (
            "{budgets: [{budget_id: b, total_budget: 1, reset_period: WEEKLY, anchor: {week_starts: SUNDY}}]}",
            ".budgets[0].anchor.week_starts",
            "did you mean 'SUNDAY'?",
        ),
        (
            "{budgets: [{budget_id: b, total_budget: 1, reset_period: TOTAL, rollover: {max: 1}}]}",
            ".budgets[0].rollover",
            "has no next period",
        ),
        ("{budgets: [{budget_id: b, total_budget: 1, rollover: {}}]}", ".budgets[0].rollover", "'max' is required"),
        ("{budgets: [{budget_id: b, total_budget: 1, overrides: {a: 2}}]}", ".budgets[0].overrides", "needs `per`"),
        (
            "{budgets: [{budget_id: b, total_budget: 1, per: user, overrides: {a: -2}}]}",
            ".budgets[0].overrides.a",
            "greater than or equal to 0",
        ),
        (
            "{budgets: [{budget_id: b, total_budget: 1, per: key, overrides: {the-alias: 2}}]}",
            ".budgets[0].overrides",
            "takes hashes of keys",
        ),
        (
            "{budgets: [{budget_id: b, total_budget: 1, per: model, overrides: {smal: 2}}]}",
            ".budgets[0].overrides.smal",
            "did you mean 'small'?",
        ),
        ("{reservations: {quantile: 0}}", ".reservations.quantile", "greater than 0"),
        ("{reservations: {quantile: 99}}", ".reservations.quantile", "less than or equal to 1"),
        ("{reservations: {initial_output_tokens: 0}}", ".reservations.initial_output_tokens", "or equal to 1"),
        ("{reservations: {lease_seconds: 0}}", ".reservations.lease_seconds", "greater than or equal to 1"),
        ("{alerts: {channels: {ops: 'https://hooks/x'}}}", ".alerts.channels.ops", "never the secret itself"),
        (
            "{alerts: {channels: {ops: os.environ/URL}, rules: [{on: [breaker_open], to: [opps]}]}}",
            ".alerts.rules[0].to[0]",
            "did you mean 'ops'?",
        ),
        (
            "{alerts: {channels: {ops: os.environ/URL}, rules: [{on: [breaker], to: [ops]}]}}",
            ".alerts.rules[0].on[0]",
            "did you mean 'breaker_open'?",
        ),
        ("{caching: {default_ttl: .nan}}", ".caching.default_ttl", "must be"),
        ("{store: {url: mysql://h/db}}", ".store.url", "must be sqlite"),
        ("{shared_state: {url: http://h}}", ".shared_state.url", "must be redis://"),
        ("{environment: prod}", ".environment", "did you mean 'production'?"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_where_it_stands(tmp_path: Path, section: str, path: str, says: str):
    findings = refused(tmp_path, f"orchestration:\n  {section}\n")
    assert [finding.path for finding in findings] == [f"orchestration{path}"]
    assert says in findings[0].message
    assert findings[0].line == MODELS.count("\n") + 2
    assert LITERAL not in str(findings[0]) + str(findings[0].as_json())


def test_names_may_be_models_policies_aliases_globs_and_wildcards(tmp_path: Path):
    section = """\
orchestration:
  keys: [{key: os.environ/A, models: [smart, tiny, openai/gpt-5, "openai/gpt-*", "la*"]}]
  tiers: {free: {models: [smart, "sm*"]}}
  routing: {policies: {smart: {candidates: [openai/gpt-5, tiny]}}}
"""
    assert loaded(tmp_path, section).findings == ()


def test_an_unknown_model_is_only_a_warning_where_litellm_keeps_models_in_its_database(tmp_path: Path):
    section = "general_settings: {store_model_in_db: true}\norchestration: {tiers: {free: {models: [other]}}}"
    (finding,) = loaded(tmp_path, section).findings
    assert (finding.severity, finding.path) == ("warning", "orchestration.tiers.free.models[0]")


def test_a_member_twice_in_a_group_is_a_warning(tmp_path: Path):
    (finding,) = loaded(tmp_path, "orchestration: {groups: {g: {users: [ada, bob, ada]}}}").findings
    assert (finding.severity, finding.path) == ("warning", "orchestration.groups.g.users[2]")


def test_included_models_count_and_findings_name_the_file_they_are_in(tmp_path: Path):
    (tmp_path / "models.yaml").write_text("model_list:\n  - {model_name: medium, litellm_params: {api_key: sk-abc}}\n")
    section = "include: [models.yaml]\norchestration: {tiers: {free: {models: [medium, small]}}}\n"
    result = loaded(tmp_path, section)
    assert [model["model_name"] for model in result.document["model_list"]] == ["small", "large", "openai/*", "medium"]
    assert "include" not in result.document
    assert [file.name for file in result.files] == ["config.yaml", "models.yaml"]
    (finding,) = result.findings
    assert (Path(finding.file or "").name, finding.line, finding.severity) == ("models.yaml", 2, "warning")


def test_a_missing_include_is_refused(tmp_path: Path):
    (finding,) = refused(tmp_path, "include: [nowhere.yaml]\n")
    assert "cannot read the file" in finding.message
    assert "nowhere.yaml" in (finding.file or "")


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("a: 1\n\tb: 2\n", 2, "never with tabs"),
        ("a: [1, 2\nb: 3\n", 2, "YAML: "),
        ("orchestration:\n  tiers: {}\n  tiers: {}\n", 3, "'tiers' is here twice; the first is in line 2"),
        ("- 1\n", 1, "must be a mapping of sections"),
        ("a: *nowhere\n", 1, "undefined alias"),
        ("a: !!python/name:os.system x\n", 1, "could not determine a constructor"),
        ("a:\n  - !!int seven\n", 2, "cannot read this value"),
        ("a: " + "[" * 500 + "]" * 500, 1, "nested more than"),
        ("a: 1\n---\nb: 2\n", 2, "but found another document"),
        ("include: models.yaml\n", 1, "must be a list of file paths"),
    ],
)
def test_what_is_not_yaml_is_refused_with_its_line(tmp_path: Path, text: str, line: int, says: str):
    with pytest.raises(InvalidConfig) as raised:
        load(written(tmp_path, text), {})
    (finding,) = raised.value.findings
    assert (finding.line, finding.severity) == (line, "error")
    assert says in finding.message


def test_bytes_that_are_not_text_are_refused(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"a: 1\nb: \xff\xfe\n")
    with pytest.raises(ConfigError, match="not a valid YAML file"):
        load(path, {})


def test_a_name_twice_in_litellms_part_is_a_warning(tmp_path: Path):
    (finding,) = load(written(tmp_path, "litellm_settings:\n  a: 1\n  a: 2\n"), {}).findings
    assert (finding.severity, finding.line) == ("warning", 3)


def test_the_document_is_what_litellm_sees(tmp_path: Path):
    result = loaded(tmp_path, "base: &base {a: on}\nlitellm_settings: {<<: *base, b: 010}\n")
    assert result.document["litellm_settings"] == {"a": True, "b": 8}
    assert result.digest == hashlib.sha256((tmp_path / "config.yaml").read_bytes()).hexdigest()


def test_a_secret_on_the_wrong_side_of_a_colon_is_not_repeated(tmp_path: Path):
    findings = refused(tmp_path, f"orchestration: {{{LITERAL}: 1, api_token: hunter2, store: {{url: 'x://u:pw@h'}}}}")
    text = "".join(f"{finding}{finding.as_json()}" for finding in findings)
    assert len(findings) == 3
    for secret in (LITERAL, "hunter2", "pw"):
        assert secret not in text.replace("u:***", "")


def test_urls_with_passwords_are_not_in_a_repr(tmp_path: Path):
    section = "orchestration: {store: {url: 'postgresql://u:hunter2@h/db'}}"
    assert "hunter2" not in repr(loaded(tmp_path, section).settings)


def test_a_missing_file_is_a_config_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot read the file"):
        load(tmp_path / "nowhere.yaml", {})
