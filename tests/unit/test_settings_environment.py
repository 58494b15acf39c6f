"""Environment variables that override config.yaml."""

from pathlib import Path
from typing import Any

import pytest

from core.errors import ConfigError
from core.settings import OVERRIDES, InvalidConfig, Settings, load, resolve_environ, shared_state_url, store_url
from core.settings.models import Store

CASES: dict[str, tuple[str, Any, str | None]] = {
    # variable: a value, what it becomes, a bad value (None: any text is good)
    "KEY_VAULT_PROVIDER": ("azure", "azure", "gcp"),
    "AZURE_KEY_VAULT_URL": ("https://v.vault.azure.net/", "https://v.vault.azure.net/", "http://v"),
    "AWS_REGION": ("us-east-1", "us-east-1", None),
    "VAULT_URL": ("https://vault.company.com", "https://vault.company.com", "vault"),
    "VAULT_TOKEN": ("hvs.verysecret", "os.environ/VAULT_TOKEN", None),
    "DATABASE_URL": ("postgresql://u:p@h:5432/db", "postgresql+asyncpg://u:p@h:5432/db", "mysql://h/db"),
    "LLM_GATEWAY_DB_URL": ("sqlite:///x.db", "sqlite+aiosqlite:///x.db", "x.db"),
    "REDIS_URL": ("redis://redis:6379/0", "redis://redis:6379/0", "redis"),
    "CACHE_TTL": ("7200", 7200, "an hour"),
    "MAX_CONCURRENT_REQUESTS": ("50", 50, "0"),
    "CIRCUIT_BREAKER_THRESHOLD": ("7", 7, "-1"),
    "ENABLE_METRICS": ("false", False, "maybe"),
    "METRICS_ENABLED": ("true", True, "maybe"),
    "LOG_LEVEL": ("warning", "WARNING", "LOUD"),
}
WRITTEN = """\
orchestration:
  secrets: {default_provider: aws, providers: {azure: {vault_url: "https://old"}, hashicorp: {url: "https://old"}}}
  store: {url: "sqlite:///old.db"}
  shared_state: {url: "redis://old"}
  caching: {default_ttl: 1}
  limits: {max_concurrent_requests: 1}
  resilience: {circuit_breaker: {failure_threshold: 1}}
  analytics: {metrics: true, log_level: ERROR}
"""


def config(tmp_path: Path, text: str = WRITTEN) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def value_at(settings: Settings, loc: tuple[str, ...]) -> Any:
    value: Any = settings
    for name in loc:
        value = getattr(value, name)
    return value


def test_every_variable_of_the_table_has_a_case():
    assert set(CASES) == {override.variable for override in OVERRIDES}


@pytest.mark.parametrize("override", OVERRIDES, ids=lambda override: override.variable)
def test_a_variable_overrides_the_file(tmp_path: Path, override: Any):
    value, expected, _ = CASES[override.variable]
    before = value_at(load(config(tmp_path), {}).settings, override.loc)
    after = value_at(load(config(tmp_path), {override.variable: value}).settings, override.loc)
    assert after == expected
    assert before != after or override.variable == "METRICS_ENABLED"


@pytest.mark.parametrize("variable", [variable for variable, (_, _, bad) in CASES.items() if bad is not None])
def test_a_bad_value_is_refused_by_the_name_of_its_variable(tmp_path: Path, variable: str):
    with pytest.raises(InvalidConfig) as raised:
        load(config(tmp_path), {variable: str(CASES[variable][2])})
    (finding,) = (finding for finding in raised.value.findings if finding.severity == "error")
    assert finding.variable == variable
    assert str(finding).startswith(f"environment {variable} error orchestration.")
    assert finding.line is None


def test_a_variable_works_without_any_section(tmp_path: Path):
    assert load(config(tmp_path, ""), {"CACHE_TTL": "5"}).settings.caching.default_ttl == 5


def test_an_empty_variable_counts_as_not_set(tmp_path: Path):
    assert load(config(tmp_path), {"CACHE_TTL": ""}).settings.caching.default_ttl == 1


def test_our_own_database_variable_wins_over_the_one_we_share(tmp_path: Path):
    environ = {"LLM_GATEWAY_DB_URL": "postgres://h/ours", "DATABASE_URL": "postgresql://h/litellm"}
    assert load(config(tmp_path), environ).settings.store.url == "postgresql+asyncpg://h/ours"


def test_the_database_of_litellms_general_settings_is_not_ours(tmp_path: Path):
    path = config(tmp_path, "general_settings: {database_url: 'postgresql://h/litellm'}")
    assert load(path, {}).settings.store.url == Store().url


def test_variables_that_the_file_sets_count_as_litellm_sets_them(tmp_path: Path):
    path = config(tmp_path, "environment_variables: {CACHE_TTL: 9, REDIS_URL: os.environ/OTHER}")
    settings = load(path, {"CACHE_TTL": "5", "REDIS_URL": "redis://before", "OTHER": "redis://localhost"}).settings
    assert settings.caching.default_ttl == 9
    assert settings.shared_state.url == "redis://localhost"


def test_metrics_variables_that_contradict_each_other_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="contradict each other"):
        load(config(tmp_path), {"ENABLE_METRICS": "true", "METRICS_ENABLED": "false"})


def test_the_vault_token_is_kept_nowhere(tmp_path: Path):
    result = load(config(tmp_path), {"VAULT_TOKEN": "hvs.verysecret"})
    assert "verysecret" not in f"{result}{result.settings.model_dump()}"


def test_a_bad_database_url_is_not_repeated_with_its_password(tmp_path: Path):
    with pytest.raises(InvalidConfig) as raised:
        load(config(tmp_path), {"DATABASE_URL": "mysql://u:hunter2@h/db"})
    assert "hunter2" not in f"{raised.value}{[finding.as_json() for finding in raised.value.findings]}"


@pytest.mark.parametrize(
    ("url", "normalised"),
    [
        ("postgres://h/db", "postgresql+asyncpg://h/db"),
        ("postgresql://u:p%40x@h/db?sslmode=require", "postgresql+asyncpg://u:p%40x@h/db?ssl=require"),
        (
            "postgresql://h/db?schema=public&connection_limit=5&pgbouncer=true",
            "postgresql+asyncpg://h/db?prepared_statement_cache_size=0",
        ),
        ("sqlite:////data/x.db", "sqlite+aiosqlite:////data/x.db"),
        ("os.environ/MY_DB", "os.environ/MY_DB"),
    ],
)
def test_store_urls_are_understood_as_people_write_them(url: str, normalised: str):
    assert Store(url=url).url == normalised


def test_a_plain_setting_may_refer_to_a_variable(tmp_path: Path):
    path = config(tmp_path, "orchestration: {store: {url: os.environ/MY_DB}, shared_state: {url: os.environ/MY_REDIS}}")
    environ = {"MY_DB": "postgres://h/db", "MY_REDIS": "rediss://r"}
    settings = load(path, environ).settings
    assert settings.store.url == "os.environ/MY_DB"
    assert store_url(settings, environ) == "postgresql+asyncpg://h/db"
    assert shared_state_url(settings, environ) == "rediss://r"


def test_a_reference_to_a_variable_that_is_not_set_is_a_warning_and_an_error_when_needed(tmp_path: Path):
    result = load(config(tmp_path, "orchestration: {store: {url: os.environ/MY_DB}}"), {})
    assert [finding.message for finding in result.findings] == ["the environment variable MY_DB is not set"]
    with pytest.raises(ConfigError, match=r"orchestration\.store\.url .*MY_DB is not set"):
        store_url(result.settings, {})


def test_references_resolve_to_variables_only():
    assert resolve_environ("os.environ/A", {"A": "1"}) == "1"
    assert resolve_environ("plain", {}) == "plain"
    with pytest.raises(ConfigError, match="only refer to an environment variable"):
        resolve_environ("os.environ/azure://a", {})
