"""Which provider reads which references: ours by their scheme, others by an entry point."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import dedent

import pytest

from core.settings import Finding, InvalidConfig, load
from core.settings.models import Secrets, Settings
from core.settings.reference import PROVIDERS_GROUP, SecretReference, added_providers
from core.settings.schema import json_schema
from secrets_manager.provider import Reason, SecretProvider, SecretUnavailable
from secrets_manager.providers import Providers
from secrets_manager.providers.local import LocalSecretsProvider

ROOT = Path(__file__).resolve().parents[2]

VAULT = """
    from secrets_manager.provider import Fetched
    from secrets_manager.value import SecretValue

    class Vault:
        closed = 0

        def __init__(self, settings, environ):
            self.prefix = settings["prefix"]

        def fetch(self, identifier, version):
            return Fetched(SecretValue(self.prefix + identifier), version)

        def renew(self, lease):
            raise NotImplementedError

        def diagnose(self, identifiers):
            return iter(())

        def close(self):
            Vault.closed += 1

    class NoProvider:
        def __init__(self, settings, environ):
            pass
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package that adds the provider `safe`, and broken ones, as pip would leave it."""
    (tmp_path / "their_vault.py").write_text(dedent(VAULT))
    information = tmp_path / "their_vault-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: their-vault\nVersion: 1.0\n")
    points = (
        f"[{PROVIDERS_GROUP}]\nsafe = their_vault:Vault\n"
        "empty = their_vault:NoProvider\ngone = their_vault_that_is_not_there:Vault\n"
    )
    (information / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(tmp_path)
    added_providers.cache_clear()
    yield tmp_path
    added_providers.cache_clear()
    sys.modules.pop("their_vault", None)


def providers(settings: Mapping[str, object] | None = None, *, production: bool = False, **environ: str) -> Providers:
    section = Secrets.model_validate({"providers": settings or {}})
    return Providers(section, environ, production=production)


def refusal(of: Providers, scheme: str) -> SecretUnavailable:
    with pytest.raises(SecretUnavailable) as raised:
        of(scheme)
    assert raised.value.reason is Reason.MISCONFIGURED
    return raised.value


def refused(tmp_path: Path, section: str) -> Finding:
    path = tmp_path / "config.yaml"
    path.write_text(f"orchestration: {{secrets: {{providers: {section}}}}}\n")
    with pytest.raises(InvalidConfig) as raised:
        load(path, {})
    (finding,) = [finding for finding in raised.value.findings if finding.severity == "error"]
    return finding


def test_each_scheme_has_one_provider_that_is_kept() -> None:
    every = providers(OPENAI="sk-1")
    local = every("env")
    assert isinstance(local, LocalSecretsProvider)
    assert every("env") is local
    assert local.fetch("OPENAI", "latest").value.reveal() == "sk-1"


@pytest.mark.parametrize(
    ("scheme", "settings"),
    [
        ("azure", {"azure": {"vault_url": "https://ours.vault.azure.net"}}),
        ("aws", {"aws": {"region": "eu-central-1"}}),
        ("hashicorp", {"hashicorp": {"url": "https://vault.example", "auth": {"token": "os.environ/VAULT_TOKEN"}}}),
        ("env", {}),
    ],
)
def test_the_built_in_providers_are_there(scheme: str, settings: Mapping[str, object]) -> None:
    every = providers(settings, VAULT_TOKEN="hvs.test")
    assert isinstance(every(scheme), SecretProvider)
    every.close()


def test_many_threads_get_the_same_one() -> None:
    every = providers()
    ready = threading.Barrier(16)
    found: list[SecretProvider] = []

    def ask() -> None:
        ready.wait()
        found.append(every("env"))

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert len({id(one) for one in found}) == 1


def test_heavy_clients_are_imported_when_their_scheme_is_first_used() -> None:
    script = """
        import sys
        from core.settings.models import Secrets
        from secrets_manager.providers import Providers
        Providers(Secrets(), {}, production=False)("env")
        print([name for name in ("boto3", "botocore", "hvac", "azure", "litellm") if name in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", dedent(script)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_local_provider_is_off_in_production_unless_the_settings_say_otherwise() -> None:
    assert "not enabled" in str(refusal(providers(production=True), "env"))
    assert isinstance(providers({"local": {"enabled": True}}, production=True)("env"), LocalSecretsProvider)
    assert "not enabled" in str(refusal(providers({"local": {"enabled": False}}), "env"))


def test_a_provider_that_could_not_be_made_is_tried_again() -> None:
    environ: dict[str, str] = {}
    section = Secrets.model_validate({"providers": {"local": {"file": "os.environ/SECRETS_FILE"}}})
    every = Providers(section, environ, production=False)
    for _ in range(2):
        assert "SECRETS_FILE" in str(refusal(every, "env"))
    environ["SECRETS_FILE"] = "/dev/null"
    assert isinstance(every("env"), LocalSecretsProvider)


def test_an_unknown_scheme_is_refused() -> None:
    assert "cyberark://" in str(refusal(providers(), "cyberark"))


def test_an_installed_package_adds_a_provider_with_settings_of_its_own(installed: Path) -> None:
    reference = SecretReference.parse("os.environ/safe://openai?version=7#key")
    every = providers({"safe": {"prefix": "sk-"}})
    fetched = every(reference.provider).fetch(reference.secret_identifier, reference.version)
    assert (fetched.value.reveal(), fetched.version) == ("sk-openai", "7")


def test_what_an_added_provider_raises_is_not_repeated(installed: Path) -> None:
    error = refusal(providers({"safe": {"prefx": "marked"}}), "safe")
    assert "safe://" in str(error)
    assert "KeyError" in str(error)
    assert (error.__cause__, error.__context__) == (None, None)


def test_an_entry_point_that_leads_nowhere_or_to_no_provider_is_named(installed: Path) -> None:
    assert "their_vault_that_is_not_there" in str(refusal(providers(), "gone"))
    assert "methods of a provider" in str(refusal(providers(), "empty"))


def test_closing_closes_all_and_makes_no_more(installed: Path) -> None:
    every = providers({"safe": {"prefix": ""}})
    made = every("safe")
    every.close()
    every.close()
    assert type(made).closed == 1  # type: ignore[attr-defined]
    with pytest.raises(SecretUnavailable, match="the proxy stops"):
        every("safe")


def test_settings_of_a_provider_that_is_not_installed_are_refused_with_the_nearest_name(tmp_path: Path) -> None:
    finding = refused(tmp_path, "{azrue: {vault_url: x}}")
    assert finding.path == "orchestration.secrets.providers.azrue"
    assert finding.message == "unknown field; did you mean 'azure'?"
    assert finding.valid == ("azure", "aws", "hashicorp", "local")
    assert (finding.line, finding.column) == (1, 39)
    assert refused(tmp_path, "{safe: {prefix: x}}").message == "unknown field"


def test_names_of_installed_providers_are_valid_and_suggested(installed: Path) -> None:
    assert refused(installed, "{saef: {}}").message == "unknown field; did you mean 'safe'?"
    assert refused(installed, "{safe: 3}").message == "must be a mapping"
    settings = Settings.model_validate({"secrets": {"providers": {"safe": {"prefix": "x"}}}})
    assert settings.secrets.providers.added == {"safe": {"prefix": "x"}}
    assert Settings.model_validate(settings.model_dump(exclude_defaults=True)) == settings


def test_a_secret_written_into_the_settings_of_an_added_provider_is_found(installed: Path) -> None:
    path = installed / "config.yaml"
    path.write_text("orchestration: {secrets: {providers: {safe: {prefix: x, api_key: marked}}}}\n")
    (finding,) = load(path, {}).findings
    assert (finding.severity, finding.path) == ("warning", "orchestration.secrets.providers.safe.api_key")
    assert "marked" not in f"{finding}{finding.as_json()}"
    path.write_text("orchestration: {secrets: {providers: {safe: {api_key: os.environ/SAFE_KEY}}}}\n")
    assert load(path, {}).findings == ()


def test_an_error_beside_an_unknown_provider_is_still_found(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("orchestration: {secrets: {providers: {azrue: {}, aws: {regoin: x}}}}\n")
    with pytest.raises(InvalidConfig) as raised:
        load(path, {})
    errors = {finding.path for finding in raised.value.findings if finding.severity == "error"}
    assert errors == {"orchestration.secrets.providers.azrue", "orchestration.secrets.providers.aws.regoin"}


def test_the_schema_knows_which_names_are_valid(installed: Path) -> None:
    section = json_schema()["$defs"]["SecretProviders"]
    assert section["additionalProperties"] == {"type": "object"}
    added_providers.cache_clear()
    sys.path.remove(str(installed))
    assert json_schema()["$defs"]["SecretProviders"]["additionalProperties"] is False
