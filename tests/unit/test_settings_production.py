"""What production refuses, and what says that it is not built yet."""

from pathlib import Path

import pytest

from core.settings import UNBUILT, Finding, InvalidConfig, load
from core.settings.unbuilt import unbuilt

SAFE = "environment: production, journal: {dir: /data/journal}, store: {url: 'postgresql://localhost/db'}"


def findings(tmp_path: Path, section: str, rest: str = "", environ: dict[str, str] | None = None) -> list[Finding]:
    path = tmp_path / "config.yaml"
    path.write_text(f"{rest}\norchestration: {{{section}}}\n")
    try:
        every = load(path, environ or {}).findings
    except InvalidConfig as refused:
        every = refused.findings
    return [finding for finding in every if "not built yet" not in finding.message]


def summary(found: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.severity, finding.path.removeprefix("orchestration.")) for finding in found]


def test_a_safe_configuration_has_nothing_to_say(tmp_path: Path):
    assert findings(tmp_path, SAFE) == []


def test_the_defaults_are_not_safe_enough_for_production(tmp_path: Path):
    assert summary(findings(tmp_path, "environment: production")) == [
        ("error", "journal.dir"),
        ("warning", "store.url"),
    ]


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("journal: {dir: /tmp/x}", ("error", "journal.dir")),
        ("journal: {dir: relative}", ("error", "journal.dir")),
        ("secrets: {default_provider: local}", ("error", "secrets.default_provider")),
        ("secrets: {providers: {local: {enabled: true}}}", ("error", "secrets.providers.local.enabled")),
        ("secrets: {providers: {local: {file: secrets.env}}}", ("error", "secrets.providers.local.file")),
        ("keys: [{key: 'os.environ/env://K'}]", ("error", "keys[0].key")),
        ("keys: [{key: 'os.environ/secret://K'}]", ("error", "keys[0].key")),
        ("shared_state: {url: 'redis://redis:6379'}", ("error", "shared_state.url")),
        ("store: {url: 'postgresql://db/x'}", ("error", "store.url")),
        ("store: {url: 'postgresql://db/x?sslmode=prefer'}", ("error", "store.url")),
        ("store: {url: 'sqlite:////data/x.db'}", ("warning", "store.url")),
        ("secrets: {providers: {hashicorp: {url: 'http://vault:8200'}}}", ("error", "secrets.providers.hashicorp.url")),
        ("secrets: {providers: {aws: {endpoint_url: 'http://aws'}}}", ("error", "secrets.providers.aws.endpoint_url")),
        (
            "secrets: {providers: {aws: {sts_endpoint_url: 'http://aws'}}}",
            ("error", "secrets.providers.aws.sts_endpoint_url"),
        ),
        ("trust_key_metadata: true", ("warning", "trust_key_metadata")),
        (
            "shared_state: {on_outage: allow}, budgets: [{budget_id: b, total_budget: 1}]",
            ("warning", "shared_state.on_outage"),
        ),
    ],
)
def test_unsafe_choices_are_named_in_production_and_allowed_in_development(
    tmp_path: Path, section: str, expected: tuple[str, str]
):
    name = section.partition(":")[0]
    others = ", ".join(part for part in SAFE.split(", ") if not part.startswith(name))
    assert summary(findings(tmp_path, f"{others}, {section}")) == [expected]
    assert findings(tmp_path, section) == []


@pytest.mark.parametrize(
    "section",
    [
        "shared_state: {url: 'rediss://redis:6379'}",
        "shared_state: {url: 'redis://127.0.0.1'}",
        "shared_state: {url: 'unix:///run/redis.sock'}",
        "shared_state: {on_outage: allow}, budgets: [{budget_id: b, total_budget: 1, at_limit: warn}]",
        "shared_state: {on_outage: deny}, budgets: [{budget_id: b, total_budget: 1}]",
        "keys: [{key: os.environ/K}]",
        "secrets: {default_provider: aws}, keys: [{key: 'os.environ/secret://K'}]",
        "secrets: {providers: {aws: {endpoint_url: 'https://vpce.example'}}}",
    ],
)
def test_safe_choices_are_accepted_in_production(tmp_path: Path, section: str):
    assert findings(tmp_path, f"{SAFE}, {section}") == []


@pytest.mark.parametrize("url", ["postgresql://db/x?sslmode=verify-full", "postgresql:///x?host=/var/run/postgresql"])
def test_postgres_with_tls_or_over_a_socket_is_safe(tmp_path: Path, url: str):
    section = f"environment: production, journal: {{dir: /data/journal}}, store: {{url: '{url}'}}"
    assert findings(tmp_path, section) == []


def test_what_a_variable_says_is_judged_too(tmp_path: Path):
    (finding,) = findings(tmp_path, SAFE, environ={"REDIS_URL": "redis://:hunter2@elsewhere"})
    assert (finding.severity, finding.variable) == ("error", "REDIS_URL")
    assert "hunter2" not in f"{finding}{finding.as_json()}"


@pytest.mark.parametrize(
    ("rest", "path"),
    [
        ("general_settings: {master_key: sk-1234}", "general_settings.master_key"),
        ("general_settings: {database_url: 'postgresql://u:sk-1234@h/x'}", "general_settings.database_url"),
        ("environment_variables: {OPENAI_API_KEY: sk-1234}", "environment_variables.OPENAI_API_KEY"),
        (
            "model_list: [{model_name: m, litellm_params: {model: openai/x, api_key: sk-1234}}]",
            "model_list[0].litellm_params.api_key",
        ),
    ],
)
def test_a_written_out_secret_is_a_warning_and_in_production_an_error(tmp_path: Path, rest: str, path: str):
    for section, severity in (("", "warning"), (SAFE, "error")):
        (finding,) = findings(tmp_path, section, rest)
        assert (finding.severity, finding.path, finding.line) == (severity, path, 1)
        assert "sk-1234" not in f"{finding}{finding.as_json()}"


@pytest.mark.parametrize("key", ["os.environ/env://OPENAI", "os.environ/secret://OPENAI"])
def test_a_model_with_a_key_from_the_local_provider_is_refused_in_production(tmp_path: Path, key: str):
    rest = (
        "general_settings: {key_management_system: custom}\n"
        f"model_list: [{{model_name: m, litellm_params: {{model: openai/x, api_key: '{key}'}}}}]"
    )
    (finding,) = findings(tmp_path, SAFE, rest)
    assert (finding.severity, finding.path) == ("error", "model_list[0].litellm_params.api_key")
    assert "for development" in finding.message
    assert findings(tmp_path, "", rest) == []


def test_references_and_placeholders_are_not_secrets(tmp_path: Path):
    models = [{"model_name": "m", "litellm_params": {"api_key": key}} for key in ("os.environ/K", "none")]
    rest = f"model_list: {models}"
    assert findings(tmp_path, SAFE, rest) == []


UNBUILT_EXAMPLES = """\
  shared_state: {url: "redis://localhost", on_outage: deny}
  journal: {redis: stream}
  secrets:
    default_provider: azure
    cache: {ttl: 1}
    providers: {azure: {vault_url: "https://v"}, aws: {region: x}, hashicorp: {mount: kv}}
    access: [{allow: ["azure://*"]}]
  tiers: {free: {requests_per_minute: 1, tokens_per_minute: 1, max_parallel_requests: 1, max_tokens: 1, priority: 1}}
  routing:
    order: [tiers, cost]
    policies: {p: {candidates: [m], objective: cost, sticky: user, regions: [eu], fallback_response: sorry}}
    rules: [{id: a, when: 'true', use: [m]}]
    experiments: [{id: e, policy: p, variants: [{id: a, model: m}, {id: b, model: m}]}]
    strategies: {mine: tests.support.strategies.LastOne}
  budgets: [{budget_id: b, total_budget: 1}]
  alerts: {channels: {ops: os.environ/U}}
  resilience: {circuit_breaker: {window: 1}, retries: {max_attempts: 1}, health_checks: {interval: 1}}
  limits: {max_concurrent_requests: 1, per_ip_requests_per_minute: 1}
  analytics: {retention_days: 1, metrics: true}
"""


def warned(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> list[Finding]:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    every = load(path, environ or {}).findings
    return [finding for finding in every if "not built yet" in finding.message]


def test_every_setting_that_does_nothing_yet_says_so_with_its_line(tmp_path: Path):
    text = f"model_list: [{{model_name: m}}]\norchestration:\n{UNBUILT_EXAMPLES}"
    found = warned(tmp_path, text)
    assert len(found) == len(UNBUILT)
    assert all(finding.severity == "warning" and finding.line and finding.line > 2 for finding in found)


def test_what_asks_for_nothing_is_not_warned_about(tmp_path: Path):
    text = "orchestration: {budgets: [], alerts: {}, caching: {enabled: false}, secrets: {default_provider: local}}"
    assert warned(tmp_path, text) == []


def test_a_variable_that_asks_for_something_unbuilt_is_named():
    section, field = UNBUILT[0].path.split(".")
    (finding,) = unbuilt({section: {field: "x"}}, {("orchestration", section, field): "A_VARIABLE"})
    assert finding.variable == "A_VARIABLE"


def test_a_variable_that_is_set_for_other_reasons_does_not_warn(tmp_path: Path):
    assert warned(tmp_path, "", {"AWS_REGION": "eu-central-1"}) == []
