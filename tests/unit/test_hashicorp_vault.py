"""HashiCorp Vault as a place that keeps secrets: hvac against a double of Vault's API."""

import io
import json
import logging
import re
import socket
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from core.settings.models.secrets import HashicorpSecrets, SecretCache, VaultEngine
from core.settings.reference import LATEST, SecretReference
from secrets_manager.provider import Check, Fetched, Reason, SecretProvider, SecretUnavailable
from secrets_manager.providers.hashicorp import HashicorpVault
from secrets_manager.resolver import Resolver
from tests.support.clock import DEFAULT_START, Clock
from tests.support.eventually import eventually_sync
from tests.support.transcript import blocks
from tests.support.vault import VaultDouble

PAGE = Path(__file__).resolve().parents[2] / "docs" / "secrets-hashicorp.md"
Made = Callable[..., HashicorpVault]


@pytest.fixture
def vault(clock: Clock) -> Iterator[VaultDouble]:
    """A Vault with a secret and a policy that reads KV secrets."""
    with VaultDouble(clock) as double:
        double.kv2("secret/llm/openai", key="sk-one", org="acme")
        double.policy("reader", "secret/data/llm/*")
        yield double


@pytest.fixture
def made(vault: VaultDouble, clock: Clock) -> Iterator[Made]:
    """`made(VAULT_TOKEN=..., auth={...}, mount=...)`: a provider; capitals are environment variables."""
    providers: list[HashicorpVault] = []

    def make(**words: Any) -> HashicorpVault:
        environ = {name: words.pop(name) for name in list(words) if name.isupper()}
        settings = HashicorpSecrets.model_validate({"url": vault.url, "timeout": 5, **words})
        providers.append(HashicorpVault(settings, environ, clock=clock))
        return providers[-1]

    yield make
    for provider in providers:
        provider.close()


def refused(provider: HashicorpVault, identifier: str, version: str = LATEST) -> SecretUnavailable:
    """The one exception that a provider may raise, with nothing hanging on it."""
    with pytest.raises(SecretUnavailable) as caught:
        provider.fetch(identifier, version)
    error = caught.value
    assert error.__cause__ is None and error.__context__ is None
    assert str(error).startswith(f"hashicorp://{identifier}: ")
    return error


def fields(fetched: Fetched) -> Any:
    return json.loads(fetched.value.reveal())


# -- reading ---------------------------------------------------------------------------------------------------------


def test_it_is_a_provider(made: Made) -> None:
    assert isinstance(made(), SecretProvider)


def test_a_kv2_secret_comes_as_the_json_of_its_fields_with_its_version(vault: VaultDouble, made: Made) -> None:
    fetched = made(VAULT_TOKEN=vault.token("reader")).fetch("secret/llm/openai", LATEST)
    assert fields(fetched) == {"key": "sk-one", "org": "acme"}
    assert (fetched.version, fetched.expires_at, fetched.lease) == ("1", None, None)


def test_a_kv_secret_whose_one_field_is_called_value_comes_as_that_text(vault: VaultDouble, made: Made) -> None:
    vault.kv2("secret/llm/plain", value="sk-plain")
    vault.kv1("old/plain", value="sk-old")
    provider = made(VAULT_TOKEN=vault.token())
    assert provider.fetch("secret/llm/plain", LATEST).value.reveal() == "sk-plain"
    assert provider.fetch("old/plain", LATEST).value.reveal() == "sk-old"


def test_an_older_version_is_read_by_its_number(vault: VaultDouble, made: Made) -> None:
    vault.kv2("secret/llm/openai", key="sk-two")
    provider = made(VAULT_TOKEN=vault.token("reader"))
    assert fields(provider.fetch("secret/llm/openai", "1"))["key"] == "sk-one"
    newest = provider.fetch("secret/llm/openai", LATEST)
    assert (fields(newest)["key"], newest.version) == ("sk-two", "2")


def test_a_version_that_vault_will_delete_expires_then(vault: VaultDouble, made: Made, clock: Clock) -> None:
    vault.kv2("secret/llm/short", delete_at=clock() + 90, key="sk-short")
    provider = made(VAULT_TOKEN=vault.token("reader"))
    assert provider.fetch("secret/llm/short", LATEST).expires_at == pytest.approx(clock() + 90, abs=0.001)
    clock.advance(91)
    assert refused(provider, "secret/llm/short").reason is Reason.DISABLED


def test_a_kv1_secret_is_read_and_has_no_versions(vault: VaultDouble, made: Made) -> None:
    vault.kv1("legacy/openai", key="sk-old")
    vault.policy("legacy", "legacy/openai")
    provider = made(VAULT_TOKEN=vault.token("legacy"))
    fetched = provider.fetch("legacy/openai", LATEST)
    assert (fields(fetched), fetched.version, fetched.lease) == ({"key": "sk-old"}, "", None)
    error = refused(provider, "legacy/openai", "2")
    assert error.reason is Reason.NOT_FOUND and "leave ?version= out" in str(error)


def test_a_mount_of_several_segments_is_found_and_asked_for_once(vault: VaultDouble, made: Made) -> None:
    vault.mount("team/ai/kv")
    vault.kv2("team/ai/kv/openai", key="sk-team")
    vault.kv2("team/ai/kv/a/b/c", key="sk-deep")
    provider = made(VAULT_TOKEN=vault.token())
    assert fields(provider.fetch("team/ai/kv/openai", LATEST)) == {"key": "sk-team"}
    assert fields(provider.fetch("team/ai/kv/a/b/c", LATEST)) == {"key": "sk-deep"}
    assert sum(path.startswith("sys/internal") for _, path, _ in vault.seen) == 1


def test_a_reference_of_one_segment_lies_in_the_configured_mount(vault: VaultDouble, made: Made) -> None:
    vault.mount("team/kv")
    vault.kv2("team/kv/openai", key="sk-team")
    assert fields(made(VAULT_TOKEN=vault.token(), mount="team/kv").fetch("openai", LATEST)) == {"key": "sk-team"}


def test_names_with_blanks_umlauts_and_signs_reach_vault_as_they_are(vault: VaultDouble, made: Made) -> None:
    name = "secret/llm/schlüssel 100%?#x"
    vault.kv2(name, key="sk-odd")
    vault.kv1("old/a b%2F?c", key="sk-odd")
    provider = made(VAULT_TOKEN=vault.token())
    assert fields(provider.fetch(name, LATEST)) == {"key": "sk-odd"}
    assert fields(provider.fetch("old/a b%2F?c", LATEST)) == {"key": "sk-odd"}


@pytest.mark.parametrize("engine", ["kv2", "kv1"])
def test_without_the_preflight_kv2_and_then_kv1_is_tried_and_remembered(
    vault: VaultDouble, made: Made, engine: str
) -> None:
    vault.kv1("old/a", key="sk")
    vault.kv2("new/a", key="sk")
    mount = {"kv2": "new", "kv1": "old"}[engine]
    vault.answer_next("sys/internal/", 403, "permission denied", times=9)
    provider = made(VAULT_TOKEN=vault.token())
    for _ in range(3):
        assert fields(provider.fetch(f"{mount}/a", LATEST)) == {"key": "sk"}
    assert vault.calls[f"GET sys/internal/ui/mounts/{mount}/a"] == 1


def test_engines_named_in_the_settings_are_not_asked_for(vault: VaultDouble, made: Made) -> None:
    provider = made(VAULT_TOKEN=vault.token("reader"), engines={"secret": "kv2"})
    assert fields(provider.fetch("secret/llm/openai", LATEST))["key"] == "sk-one"
    assert not any(path.startswith("sys/") for _, path, _ in vault.seen)


def test_a_mount_that_became_another_kind_is_noticed(vault: VaultDouble, made: Made) -> None:
    vault.kv1("kv/a", key="sk-1")
    provider = made(VAULT_TOKEN=vault.token())
    assert provider.fetch("kv/a", LATEST).version == ""
    vault.mount("kv", version="2")
    vault.kv2("kv/a", key="sk-2")
    assert refused(provider, "kv/a").reason is Reason.NOT_FOUND
    assert provider.fetch("kv/a", LATEST).version == "1"


def test_a_namespace_goes_with_every_request_but_the_one_for_health(vault: VaultDouble, made: Made) -> None:
    vault.kv2("secret/app", namespace="team-a", key="sk-a")
    vault.policy("reader", "secret/data/app", namespace="team-a")
    token = vault.token("reader", namespace="team-a")
    provider = made(NAMESPACE="team-a", VAULT_TOKEN=token, namespace="os.environ/NAMESPACE")
    assert fields(provider.fetch("secret/app", LATEST)) == {"key": "sk-a"}
    assert [check.level for check in provider.diagnose({"secret/app": LATEST})] == ["ok"] * 4
    assert {namespace for _, path, namespace in vault.seen if path != "sys/health"} == {"team-a"}
    assert "namespace team-a" in str(refused(provider, "secret/other"))


# -- what is wrong with a secret -------------------------------------------------------------------------------------


def test_a_deleted_and_a_destroyed_version_are_disabled(vault: VaultDouble, made: Made, clock: Clock) -> None:
    provider = made(VAULT_TOKEN=vault.token("reader"))
    vault.version("secret/llm/openai", 1).deleted = clock()
    error = refused(provider, "secret/llm/openai")
    assert error.reason is Reason.DISABLED and "vault kv undelete -versions=1" in str(error)
    vault.version("secret/llm/openai", 1).destroyed = True
    error = refused(provider, "secret/llm/openai", "1")
    assert error.reason is Reason.DISABLED and "destroyed" in str(error)


@pytest.mark.parametrize(
    ("identifier", "version", "says"),
    [
        ("secret/llm/none", LATEST, "no such secret in 'secret'"),
        ("secret/llm/openai", "7", "no version 7 of it"),
        ("secret/llm/openai", "newest", "versions are numbers"),
        ("secret/llm/openai", "0", "versions are numbers"),
        ("old/none", LATEST, "no 'none' in 'old'"),
        ("secret/", LATEST, "no such secret"),
        ("team/kv", LATEST, "is a mount"),
        ("nowhere/x", LATEST, "no mount 'nowhere'"),
        ("database/creds/none", LATEST, "makes nothing at this path"),
        ("secret/empty", LATEST, "has no fields"),
    ],
)
def test_what_is_not_there_is_not_found(
    vault: VaultDouble, made: Made, identifier: str, version: str, says: str
) -> None:
    vault.kv1("old/a", key="sk")
    vault.mount("team/kv")
    vault.database("app")
    vault.kv2("secret/empty")
    error = refused(made(VAULT_TOKEN=vault.token()), identifier, version)
    assert error.reason is Reason.NOT_FOUND
    assert says in str(error)


@pytest.mark.parametrize(
    ("identifier", "stanza"),
    [
        ("secret/other", 'path "secret/data/other" { capabilities = ["read"] }'),
        ("old/other", 'path "old/other" { capabilities = ["read"] }'),
        ("database/creds/app", 'path "database/creds/app" { capabilities = ["read"] }'),
        ("nowhere/x", 'path "nowhere/data/x" { capabilities = ["read"] }'),
    ],
)
def test_what_may_not_be_read_names_the_stanza_that_the_policy_lacks(
    vault: VaultDouble, made: Made, identifier: str, stanza: str
) -> None:
    vault.kv1("old/a", key="sk")
    vault.database("app")
    vault.policy("some", "secret/data/a", "old/a", "database/creds/b")
    error = refused(made(VAULT_TOKEN=vault.token("some")), identifier)
    assert error.reason is Reason.FORBIDDEN
    assert stanza in str(error)


# -- what is wrong with Vault ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "reason", "says"),
    [
        ("sealed", Reason.SEALED, "is sealed"),
        ("uninitialised", Reason.SEALED, "is sealed"),
        ("dr_secondary", Reason.UNREACHABLE, "active node"),
        ("silent", Reason.UNREACHABLE, "broke the connection off"),
    ],
)
def test_a_vault_that_gives_nothing_away_is_told_apart(
    vault: VaultDouble, made: Made, mode: str, reason: Reason, says: str
) -> None:
    provider = made(VAULT_TOKEN=vault.token("reader"))
    provider.fetch("secret/llm/openai", LATEST)
    vault.mode = mode
    error = refused(provider, "secret/llm/openai")
    assert error.reason is reason and error.keeps_stale
    assert says in str(error)
    vault.mode = "active"
    assert fields(provider.fetch("secret/llm/openai", LATEST))["key"] == "sk-one"


@pytest.mark.parametrize("mode", ["standby", "performance_standby"])
def test_a_standby_that_forwards_is_as_good_as_the_active_node(vault: VaultDouble, made: Made, mode: str) -> None:
    vault.mode = mode
    assert made(VAULT_TOKEN=vault.token("reader")).fetch("secret/llm/openai", LATEST).version == "1"


@pytest.mark.parametrize(
    ("status", "words", "reason"),
    [
        (429, "rate limit quota exceeded", Reason.THROTTLED),
        (500, "internal error", Reason.UNREACHABLE),
        (502, "", Reason.UNREACHABLE),
        (503, "no upstream", Reason.UNREACHABLE),
        (501, "Vault is not initialized", Reason.SEALED),
        (412, "required index state not present", Reason.UNREACHABLE),
        (472, "", Reason.UNREACHABLE),
        (473, "", Reason.UNREACHABLE),
        (403, "API access to this namespace has been locked by an administrator", Reason.SEALED),
        (400, "malformed", Reason.MISCONFIGURED),
        (418, "", Reason.MISCONFIGURED),
    ],
)
def test_statuses_have_their_reasons(vault: VaultDouble, made: Made, status: int, words: str, reason: Reason) -> None:
    provider = made(VAULT_TOKEN=vault.token("reader"))
    vault.answer_next("secret/data", status, words)
    error = refused(provider, "secret/llm/openai")
    assert error.reason is reason
    assert vault.calls["GET secret/data/llm/openai"] == 1, "one try a call; trying again is the resolver's"
    assert str(status) in str(error) or reason is Reason.SEALED


def test_what_vault_asks_for_in_retry_after_is_passed_on(vault: VaultDouble, made: Made) -> None:
    provider = made(VAULT_TOKEN=vault.token("reader"))
    for header, seconds in (("3", 3.0), ("soon", None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)):
        vault.answer_next("secret/data", 429, "quota", Retry_After=header)
        assert refused(provider, "secret/llm/openai").retry_after == seconds


@pytest.mark.parametrize("status", [200, 403, 404])
def test_a_page_that_is_not_vaults_says_nothing_about_the_secret(vault: VaultDouble, made: Made, status: int) -> None:
    provider = made(VAULT_TOKEN=vault.token("reader"))
    provider.fetch("secret/llm/openai", LATEST)
    vault.page_next("secret/data", status, "<html>default backend</html>")
    error = refused(provider, "secret/llm/openai")
    assert error.reason is Reason.UNREACHABLE and error.keeps_stale


def test_a_vault_that_does_not_answer_in_time_is_unreachable(vault: VaultDouble, made: Made) -> None:
    provider = made(VAULT_TOKEN=vault.token("reader"), timeout=0.1)
    vault.gate.clear()
    error = refused(provider, "secret/llm/openai")
    assert error.reason is Reason.UNREACHABLE and "did not answer within" in str(error)


def test_a_vault_that_is_away_comes_back_without_a_new_provider(vault: VaultDouble, made: Made) -> None:
    provider = made(VAULT_TOKEN=vault.token("reader"))
    provider.fetch("secret/llm/openai", LATEST)
    vault.away()
    error = refused(provider, "secret/llm/openai")
    assert error.reason is Reason.UNREACHABLE and "refuses the connection" in str(error)
    vault.back()
    assert provider.fetch("secret/llm/openai", LATEST).version == "1"


def test_a_name_that_does_not_resolve_is_said_to(made: Made) -> None:
    error = refused(made(url="http://vault.invalid:8200", VAULT_TOKEN="t"), "secret/a")
    assert error.reason is Reason.UNREACHABLE and "vault.invalid:8200's name cannot be resolved" in str(error)


def test_a_redirect_to_the_active_node_is_followed_with_the_token(vault: VaultDouble, made: Made) -> None:
    token = vault.token("reader")
    with VaultDouble() as standby:
        standby.mode, standby.redirect_to = "redirecting", vault.url
        assert made(url=standby.url, VAULT_TOKEN=token).fetch("secret/llm/openai", LATEST).version == "1"


# -- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def secure(tmp_path: Path, clock: Clock) -> Iterator[VaultDouble]:
    with VaultDouble(clock, tls=tmp_path) as double:
        double.kv2("secret/app", key="sk")
        yield double


def test_a_vault_with_a_certificate_of_an_own_ca_is_trusted_by_ca_cert(secure: VaultDouble, made: Made) -> None:
    provider = made(url=secure.url, ca_cert=str(secure.ca_file), VAULT_TOKEN=secure.token())
    assert fields(provider.fetch("secret/app", LATEST)) == {"key": "sk"}


def test_a_certificate_that_nobody_signed_is_not_trusted_and_no_token_is_sent(secure: VaultDouble, made: Made) -> None:
    error = refused(made(url=secure.url, VAULT_TOKEN=secure.token()), "secret/app")
    assert error.reason is Reason.UNREACHABLE and "hashicorp.ca_cert" in str(error)
    assert not secure.seen


def test_a_certificate_for_another_name_is_not_trusted(tmp_path: Path, made: Made) -> None:
    with VaultDouble(tls=tmp_path, hostname="vault.example.com") as other:
        error = refused(made(url=other.url, ca_cert=str(other.ca_file), VAULT_TOKEN="t"), "secret/app")
    assert error.reason is Reason.UNREACHABLE and "another name" in str(error)


def test_a_client_certificate_is_sent_where_vault_asks_for_one(tmp_path: Path, made: Made) -> None:
    with VaultDouble(tls=tmp_path, client_certificates=True) as strict:
        strict.kv2("secret/app", key="sk")
        words = {"url": strict.url, "ca_cert": str(strict.ca_file), "VAULT_TOKEN": strict.token()}
        assert refused(made(**words), "secret/app").reason is Reason.UNREACHABLE
        provider = made(**words, client_cert=str(strict.client_file))
        assert fields(provider.fetch("secret/app", LATEST)) == {"key": "sk"}


def test_files_for_tls_that_cannot_be_used_are_the_settings_fault(
    secure: VaultDouble, made: Made, tmp_path: Path
) -> None:
    (tmp_path / "nonsense.pem").write_text("not a certificate")
    for name in ("missing.pem", "nonsense.pem"):
        error = refused(made(url=secure.url, ca_cert=str(tmp_path / name), VAULT_TOKEN="t"), "secret/app")
        assert error.reason is Reason.MISCONFIGURED and "ca_cert" in str(error)


def test_a_redirect_from_tls_to_plain_text_is_not_followed(vault: VaultDouble, secure: VaultDouble, made: Made) -> None:
    secure.mode, secure.redirect_to = "redirecting", vault.url
    provider = made(url=secure.url, ca_cert=str(secure.ca_file), VAULT_TOKEN=vault.token())
    assert refused(provider, "secret/llm/openai").reason is Reason.UNREACHABLE
    assert not vault.seen


def test_tls_to_a_port_that_does_not_speak_it_is_said_to(vault: VaultDouble, made: Made) -> None:
    error = refused(made(url=vault.url.replace("http:", "https:"), VAULT_TOKEN="t"), "secret/app")
    assert error.reason is Reason.UNREACHABLE and "does it speak https?" in str(error)


# -- the log-in ------------------------------------------------------------------------------------------------------

APPROLE: Mapping[str, Any] = {"method": "approle", "role_id": "os.environ/ROLE", "secret_id": "os.environ/SECRET"}


def test_making_a_provider_asks_vault_nothing(vault: VaultDouble, made: Made) -> None:
    made(VAULT_TOKEN="t").close()
    assert not vault.seen


def test_approle_logs_in_once_for_many_reads(vault: VaultDouble, made: Made) -> None:
    role = vault.approle("reader")
    provider = made(auth=APPROLE, ROLE=role.role_id, SECRET=role.secret_ids.copy().pop())
    for _ in range(3):
        provider.fetch("secret/llm/openai", LATEST)
    assert vault.calls["POST auth/approle/login"] == 1


def test_kubernetes_logs_in_with_the_service_accounts_token_of_now(
    vault: VaultDouble, made: Made, tmp_path: Path, clock: Clock
) -> None:
    file = tmp_path / "token"
    file.write_text("jwt-1\n")
    role = vault.kubernetes("gateway", "jwt-1", "reader", mount="k8s/prod", ttl=60, renewable=False)
    auth = {"method": "kubernetes", "role": "gateway", "mount": "k8s/prod", "service_account_token": str(file)}
    provider = made(auth=auth)
    assert provider.fetch("secret/llm/openai", LATEST).version == "1"
    file.write_text("jwt-2\n")
    role.jwts = {"jwt-2"}
    clock.advance(61)
    assert provider.fetch("secret/llm/openai", LATEST).version == "1"
    assert vault.calls["POST auth/k8s/prod/login"] == 2


def test_a_token_is_renewed_when_a_third_of_its_life_is_left(vault: VaultDouble, made: Made, clock: Clock) -> None:
    provider = made(VAULT_TOKEN=vault.token("reader", ttl=300))
    provider.fetch("secret/llm/openai", LATEST)
    clock.advance(195)
    provider.fetch("secret/llm/openai", LATEST)
    assert vault.calls["POST auth/token/renew-self"] == 0
    clock.advance(10)
    for _ in range(10):
        provider.fetch("secret/llm/openai", LATEST)
        clock.advance(205)
    assert vault.calls["POST auth/token/renew-self"] == 10


def test_a_token_that_comes_to_its_maximum_is_replaced_before_it_ends(
    vault: VaultDouble, made: Made, clock: Clock
) -> None:
    role = vault.approle("reader", ttl=300, max_ttl=600)
    provider = made(auth=APPROLE, ROLE=role.role_id, SECRET=role.secret_ids.copy().pop())
    for _ in range(200):
        provider.fetch("secret/llm/openai", LATEST)
        assert max(token.expires for token in vault.namespace("").tokens.values()) - clock() >= 60
        clock.advance(10)
    assert 3 <= vault.calls["POST auth/approle/login"] <= 5
    assert vault.calls["GET auth/token/lookup-self"] == 0, "no read has met a token that had ended"


def test_a_renewal_that_fails_does_not_stop_reading(vault: VaultDouble, made: Made, clock: Clock) -> None:
    role = vault.approle("reader", ttl=300)
    by_role = made(auth=APPROLE, ROLE=role.role_id, SECRET=role.secret_ids.copy().pop())
    by_token = made(VAULT_TOKEN=vault.token("reader", ttl=300))
    for provider in (by_role, by_token):
        provider.fetch("secret/llm/openai", LATEST)
    clock.advance(210)
    vault.answer_next("auth/token/renew-self", 500, times=2)
    for provider in (by_role, by_token):
        assert provider.fetch("secret/llm/openai", LATEST).version == "1"
    clock.advance(40)
    for provider in (by_role, by_token):
        provider.fetch("secret/llm/openai", LATEST)
    assert vault.calls["POST auth/token/renew-self"] == 4
    assert vault.calls["POST auth/approle/login"] == 1


@pytest.mark.parametrize("terse", [False, True])
def test_a_revoked_token_is_replaced_by_one_new_log_in_and_the_read_succeeds(
    vault: VaultDouble, made: Made, terse: bool
) -> None:
    vault.api.terse = terse
    role = vault.approle("reader")
    environ = {"ROLE": role.role_id, "SECRET": role.secret_ids.pop()}
    provider = made(auth=APPROLE, **environ)
    role.secret_ids.add(environ["SECRET"])
    provider.fetch("secret/llm/openai", LATEST)
    for token in list(vault.namespace("").tokens):
        vault.revoke(token)
    assert provider.fetch("secret/llm/openai", LATEST).version == "1"
    assert vault.calls["POST auth/approle/login"] == 2


def test_a_rotated_secret_id_in_the_environment_works_at_the_next_log_in(vault: VaultDouble, clock: Clock) -> None:
    role = vault.approle("reader", ttl=60, renewable=False)
    environ = {"ROLE": role.role_id, "SECRET": role.secret_ids.copy().pop()}
    provider = HashicorpVault(
        HashicorpSecrets.model_validate({"url": vault.url, "auth": APPROLE}), environ, clock=clock
    )
    provider.fetch("secret/llm/openai", LATEST)
    role.secret_ids = {"fresh"}
    environ["SECRET"] = "fresh"
    clock.advance(61)
    assert provider.fetch("secret/llm/openai", LATEST).version == "1"
    provider.close()


@pytest.mark.parametrize("terse", [False, True])
def test_a_dead_token_is_unauthenticated_until_its_variable_holds_another(
    vault: VaultDouble, clock: Clock, terse: bool
) -> None:
    vault.api.terse = terse
    environ = {"VAULT_TOKEN": vault.token("reader", ttl=60, renewable=False)}
    provider = HashicorpVault(HashicorpSecrets(url=vault.url), environ, clock=clock)
    provider.fetch("secret/llm/openai", LATEST)
    clock.advance(61)
    error = refused(provider, "secret/llm/openai")
    assert error.reason is Reason.UNAUTHENTICATED and "the token in VAULT_TOKEN" in str(error)
    environ["VAULT_TOKEN"] = vault.token("reader")
    assert provider.fetch("secret/llm/openai", LATEST).version == "1"
    provider.close()


def test_a_forbidden_path_does_not_cost_a_log_in(vault: VaultDouble, made: Made) -> None:
    role = vault.approle("reader")
    provider = made(auth=APPROLE, ROLE=role.role_id, SECRET=role.secret_ids.copy().pop())
    for _ in range(3):
        assert refused(provider, "secret/other").reason is Reason.FORBIDDEN
    assert vault.calls["POST auth/approle/login"] == 1


def test_a_token_without_the_default_policy_reads_what_it_may(vault: VaultDouble, made: Made) -> None:
    provider = made(VAULT_TOKEN=vault.token(exactly=("reader",), ttl=300))
    assert provider.fetch("secret/llm/openai", LATEST).version == "1"
    assert refused(provider, "secret/other").reason is Reason.FORBIDDEN


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({}, "VAULT_TOKEN is not set"),
        ({"VAULT_TOKEN": ""}, "VAULT_TOKEN is not set"),
        ({"VAULT_TOKEN": "no-such-token"}, "does not accept the token in VAULT_TOKEN"),
        ({"VAULT_TOKEN": "line\nend"}, "cannot be sent"),
        ({"auth": {"token": "os.environ/OTHER"}, "VAULT_TOKEN": "t"}, "OTHER is not set"),
        ({"auth": APPROLE, "ROLE": "r"}, "auth.secret_id"),
        ({"auth": APPROLE, "ROLE": "r", "SECRET": "s"}, "vault write -f auth/approle/role/<role>/secret-id"),
        ({"auth": {**APPROLE, "mount": "elsewhere"}, "ROLE": "r", "SECRET": "s"}, "auth/elsewhere (403)"),
        ({"auth": {"method": "kubernetes", "role": "r", "service_account_token": "/no/such"}}, "/no/such"),
    ],
)
def test_a_log_in_that_cannot_succeed_is_unauthenticated_and_says_why(
    vault: VaultDouble, made: Made, words: dict[str, Any], says: str
) -> None:
    vault.approle("reader")
    error = refused(made(**words), "secret/llm/openai")
    assert error.reason is Reason.UNAUTHENTICATED and error.keeps_stale
    assert says in str(error)


def test_a_service_account_that_the_role_does_not_admit_is_unauthenticated(
    vault: VaultDouble, made: Made, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("another")
    vault.kubernetes("gateway", "jwt", "reader")
    auth = {"method": "kubernetes", "role": "gateway", "service_account_token": str(file)}
    error = refused(made(auth=auth), "secret/llm/openai")
    assert error.reason is Reason.UNAUTHENTICATED and "bound_service_account_names" in str(error)


def test_a_log_in_that_wants_a_second_factor_is_unauthenticated(vault: VaultDouble, made: Made) -> None:
    role = vault.approle("reader", asks_mfa=True)
    provider = made(auth=APPROLE, ROLE=role.role_id, SECRET=role.secret_ids.copy().pop())
    assert "MFA" in str(refused(provider, "secret/llm/openai"))


def log_in_by_threads(vault: VaultDouble, provider: HashicorpVault, work: Callable[[], Any], threads: int) -> list[Any]:
    """What `work` gives in threads that all want the first log-in; Vault answers when each of them waits for it."""
    vault.gate.clear()
    with ThreadPoolExecutor(threads) as pool:
        done = [pool.submit(work) for _ in range(threads)]
        try:
            flights = provider._login._flights
            eventually_sync(lambda: len(flights[None]._condition._waiters) == threads - 1, what="all threads wait")
        finally:
            vault.gate.set()
        return [one.result() for one in done]


def test_many_threads_share_one_log_in(vault: VaultDouble, made: Made) -> None:
    role = vault.approle("reader")
    words = {"ROLE": role.role_id, "SECRET": role.secret_ids.copy().pop(), "engines": {"secret": "kv2"}}
    provider = made(auth=APPROLE, **words)
    fetched = log_in_by_threads(vault, provider, lambda: provider.fetch("secret/llm/openai", LATEST), 32)
    assert {one.version for one in fetched} == {"1"}
    assert vault.calls["POST auth/approle/login"] == 1
    assert vault.calls["GET secret/data/llm/openai"] == 32


def test_threads_that_wait_for_a_log_in_share_its_failure(vault: VaultDouble, made: Made) -> None:
    provider = made(auth=APPROLE, ROLE="r", SECRET="s", engines={"secret": "kv2"})
    errors = log_in_by_threads(vault, provider, lambda: refused(provider, "secret/llm/openai"), 8)
    assert {error.reason for error in errors} == {Reason.UNAUTHENTICATED}
    assert len({id(error) for error in errors}) == 8
    assert vault.calls["POST auth/approle/login"] == 1


def test_many_threads_share_one_question_about_a_mount(vault: VaultDouble, made: Made) -> None:
    provider = made(VAULT_TOKEN=vault.token("reader"))
    vault.kv1("old/a", key="sk")
    assert refused(provider, "old/a").reason is Reason.FORBIDDEN  # only to log in
    vault.gate.clear()
    started = threading.Barrier(17)

    def fetch() -> str:
        started.wait()
        return provider.fetch("secret/llm/openai", LATEST).version

    with ThreadPoolExecutor(16) as pool:
        reads = [pool.submit(fetch) for _ in range(16)]
        started.wait()
        eventually_sync(lambda: vault.calls["GET sys/internal/ui/mounts/secret/llm/openai"] == 1)
        vault.gate.set()
        assert {read.result() for read in reads} == {"1"}
    assert vault.calls["GET sys/internal/ui/mounts/secret/llm/openai"] == 1


def test_threads_do_not_wait_one_after_the_other_for_a_vault_that_is_silent(vault: VaultDouble, made: Made) -> None:
    provider = made(VAULT_TOKEN=vault.token("reader"), timeout=0.3)
    vault.gate.clear()
    with ThreadPoolExecutor(16) as pool:
        errors = list(pool.map(lambda _: refused(provider, "secret/llm/openai"), range(16)))
    assert {error.reason for error in errors} == {Reason.UNREACHABLE}
    assert vault.calls["GET auth/token/lookup-self"] <= 4


def test_connections_are_kept_for_as_many_threads_as_read(vault: VaultDouble, made: Made) -> None:
    provider = made(VAULT_TOKEN=vault.token("reader"))
    provider.fetch("secret/llm/openai", LATEST)
    for round_ in (1, 2, 3):
        vault.gate.clear()
        with ThreadPoolExecutor(32) as pool:
            reads = [pool.submit(provider.fetch, "secret/llm/openai", LATEST) for _ in range(32)]
            eventually_sync(lambda r=round_: vault.calls["GET secret/data/llm/openai"] == 1 + 32 * r)
            vault.gate.set()
            assert {read.result().version for read in reads} == {"1"}
    assert vault.connections == 32


def test_a_renewal_that_fails_meanwhile_does_not_make_a_dead_token_look_forbidden(
    vault: VaultDouble, made: Made, clock: Clock
) -> None:
    token = vault.token("reader", ttl=300)
    provider = made(VAULT_TOKEN=token)
    provider.fetch("secret/llm/openai", LATEST)
    vault.revoke(token)
    vault.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        early = pool.submit(refused, provider, "secret/llm/openai")
        eventually_sync(lambda: vault.calls["GET secret/data/llm/openai"] == 2)
        clock.advance(201)
        late = pool.submit(refused, provider, "secret/llm/openai")
        eventually_sync(lambda: vault.calls["POST auth/token/renew-self"] == 1)
        vault.gate.set()
        assert {early.result().reason, late.result().reason} == {Reason.UNAUTHENTICATED}


# -- secrets made on demand ------------------------------------------------------------------------------------------


@pytest.fixture
def database(vault: VaultDouble) -> VaultDouble:
    vault.database("app", ttl=3600, max_ttl=7200)
    vault.policy("dba", "database/creds/*", "database/static-creds/*")
    return vault


def test_a_secret_made_on_demand_has_a_lease_that_is_renewed(database: VaultDouble, made: Made, clock: Clock) -> None:
    provider = made(VAULT_TOKEN=database.token("dba"))
    fetched = provider.fetch("database/creds/app", LATEST)
    assert set(fields(fetched)) == {"username", "password"}
    assert fetched.version == "2027-01-15T12:00:00Z"
    lease = fetched.lease
    assert lease is not None and (lease.seconds, lease.renewable) == (3600, True)
    assert lease.id.rpartition("/")[2] not in repr(fetched.version)
    clock.advance(2400)
    assert provider.renew(lease).seconds == 3600
    clock.advance(2400)
    assert provider.renew(lease).seconds == 2400, "no further than max_ttl"


def test_a_lease_that_has_ended_is_not_renewed(database: VaultDouble, made: Made, clock: Clock) -> None:
    provider = made(VAULT_TOKEN=database.token("dba"))
    lease = provider.fetch("database/creds/app", LATEST).lease
    assert lease is not None
    clock.advance(3601)
    with pytest.raises(SecretUnavailable) as caught:
        provider.renew(lease)
    assert caught.value.reason is Reason.EXPIRED
    assert lease.id.rpartition("/")[2] not in str(caught.value)


def test_a_lease_is_no_longer_than_its_token_lives(database: VaultDouble, made: Made, clock: Clock) -> None:
    role = database.approle("dba", ttl=600, max_ttl=1200)
    provider = made(auth=APPROLE, ROLE=role.role_id, SECRET=role.secret_ids.copy().pop())
    lease = provider.fetch("database/creds/app", LATEST).lease
    assert lease is not None and lease.seconds == 600
    clock.advance(420)
    assert provider.renew(lease).seconds == 600, "the token was renewed first"


def test_a_lease_of_a_token_that_was_replaced_is_read_anew(database: VaultDouble, made: Made, clock: Clock) -> None:
    role = database.approle("dba", ttl=600, renewable=False)
    provider = made(auth=APPROLE, ROLE=role.role_id, SECRET=role.secret_ids.copy().pop())
    lease = provider.fetch("database/creds/app", LATEST).lease
    clock.advance(401)
    assert lease is not None
    with pytest.raises(SecretUnavailable, match="log-in that has been replaced"):
        provider.renew(lease)


def test_a_lease_that_may_not_be_renewed_names_the_stanza(database: VaultDouble, made: Made) -> None:
    database.policy("narrow", "database/creds/app")
    provider = made(VAULT_TOKEN=database.token(exactly=("narrow", "self")))
    database.policy("self", "auth/token/lookup-self")
    lease = provider.fetch("database/creds/app", LATEST).lease
    assert lease is not None
    with pytest.raises(SecretUnavailable) as caught:
        provider.renew(lease)
    assert caught.value.reason is Reason.FORBIDDEN
    assert 'path "sys/leases/renew" { capabilities = ["update"] }' in str(caught.value)


def test_a_password_that_vault_rotates_itself_has_its_rotation_for_a_version(
    database: VaultDouble, made: Made, clock: Clock
) -> None:
    role = database.database("static", rotated=clock())
    provider = made(VAULT_TOKEN=database.token("dba"))
    first = provider.fetch("database/static-creds/static", LATEST)
    clock.advance(30)
    assert provider.fetch("database/static-creds/static", LATEST).version == first.version
    role.rotated = clock()
    assert provider.fetch("database/static-creds/static", LATEST).version == "2027-01-15T12:00:30Z"
    assert first.lease is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lease", "longest_lease", "token", "longest_token"),
    [(3600, 7200, 1800, 86400), (3600, 0, 1200, 3600), (600, 1800, 3600, 0), (86400, 86400, 900, 900)],
)
def test_over_a_day_the_resolver_never_holds_a_secret_whose_lease_or_token_has_ended(
    vault: VaultDouble, made: Made, clock: Clock, lease: float, longest_lease: float, token: float, longest_token: float
) -> None:
    vault.database("app", ttl=lease, max_ttl=longest_lease)
    vault.policy("dba", "database/creds/app")
    role = vault.approle("dba", ttl=token, max_ttl=longest_token)
    provider = made(auth=APPROLE, ROLE=role.role_id, SECRET=role.secret_ids.copy().pop())
    cache = SecretCache(ttl=1_000_000)  # so that leases alone decide when to read
    resolver = Resolver(lambda scheme: provider, cache, clock=clock, background=False)
    reference = SecretReference("hashicorp", "database/creds/app", field="username")
    assert not resolver.keep([reference], "start")
    space = vault.namespace("")
    for _ in range(24 * 60):
        clock.advance(60)
        resolver.tick()
        username = resolver.current(reference).value.reveal()
        living = {
            id_[-6:]
            for id_, one in space.leases.items()
            if one.expires > clock() and one.token in space.tokens and space.tokens[one.token].expires > clock()
        }
        assert username.removeprefix("v-app-") in living, f"after {clock() - DEFAULT_START:.0f} s"
    assert vault.calls["PUT sys/leases/renew"] > 0 or lease > longest_token > 0
    resolver.close()


# -- doctor ----------------------------------------------------------------------------------------------------------


def found(checks: Iterator[Check], level: str) -> list[Check]:
    return [check for check in checks if check.level == level]


def test_the_doctor_finds_nothing_wrong_with_a_good_setup_and_makes_no_secret(vault: VaultDouble, made: Made) -> None:
    vault.database("app")
    vault.kv1("old/a", key="sk")
    vault.policy("all", "secret/data/llm/openai", "database/creds/app", "old/a")
    role = vault.approle("all")
    provider = made(auth=APPROLE, ROLE=role.role_id, SECRET=role.secret_ids.copy().pop())
    names = ("secret/llm/openai", "database/creds/app", "old/a")
    checks = list(provider.diagnose(dict.fromkeys(names, LATEST)))
    assert [check.level for check in checks] == ["ok"] * 6
    assert "policies: all, default" in checks[2].what
    assert vault.calls["GET database/creds/app"] == 0


def test_the_doctor_names_the_stanza_that_each_secret_lacks(vault: VaultDouble, made: Made) -> None:
    provider = made(VAULT_TOKEN=vault.token("reader"))
    names = ("secret/llm/openai", "secret/other", "nowhere/x", "secret/llm/none")
    forbidden, nowhere, none = found(provider.diagnose(dict.fromkeys(names, LATEST)), "error")
    assert 'path "secret/data/other" { capabilities = ["read"] }' in forbidden.do
    assert "no such mount" in nowhere.do
    assert "hashicorp://secret/llm/none cannot be read (not_found)" in none.what


@pytest.mark.parametrize(
    ("mode", "level", "says"),
    [
        ("sealed", "error", "is sealed"),
        ("uninitialised", "error", "is not initialised"),
        ("dr_secondary", "error", "disaster recovery"),
        ("standby", "warning", "standby"),
        ("performance_standby", "warning", "performance standby"),
    ],
)
def test_the_doctor_looks_at_vaults_health_first(
    vault: VaultDouble, made: Made, mode: str, level: str, says: str
) -> None:
    vault.mode = mode
    checks = list(made(VAULT_TOKEN=vault.token("reader")).diagnose({"secret/llm/openai": LATEST}))
    assert checks[1].level == level and says in checks[1].what and checks[1].do
    assert (len(checks) == 2) == (level == "error")


def test_the_doctor_tells_a_vault_that_is_away_and_a_log_in_that_fails(vault: VaultDouble, made: Made) -> None:
    assert "auth.secret_id" in found(made(auth=APPROLE, ROLE="r").diagnose({}), "error")[0].do
    provider = made(VAULT_TOKEN="t")
    vault.away()
    assert "cannot be reached (unreachable)" in found(provider.diagnose({}), "error")[0].what


def test_the_doctor_warns_of_tokens_that_are_too_mighty_or_about_to_end(vault: VaultDouble, made: Made) -> None:
    (mighty,) = found(made(VAULT_TOKEN=vault.token()).diagnose({}), "warning")
    assert "may do everything" in mighty.what
    short = made(VAULT_TOKEN=vault.token("reader", ttl=600, renewable=False))
    (ending,) = found(short.diagnose({}), "error")
    assert "cannot be renewed" in ending.what
    blind = made(VAULT_TOKEN=vault.token(exactly=("reader",)))
    checks = list(blind.diagnose({"secret/llm/openai": LATEST}))
    assert "may not look itself up" in found(iter(checks), "warning")[0].what
    assert checks[-1].level == "ok"


# -- the page --------------------------------------------------------------------------------------------------------


def test_the_policy_of_the_page_is_enough_for_the_page(vault: VaultDouble, made: Made) -> None:
    (policy,) = blocks(PAGE, "hcl")
    rules = re.findall(r'path "([^"]+)" \{\s*capabilities = \["read"\]\s*\}', policy)
    assert len(rules) == policy.count("path ")
    vault.policy("llm-proxy", *rules)
    role = vault.approle("llm-proxy")
    provider = made(auth=APPROLE, ROLE=role.role_id, SECRET=role.secret_ids.copy().pop())
    (named,) = re.findall(r"api_key: (\S+?)}", blocks(PAGE, "yaml")[0])
    reference = SecretReference.parse(named)
    checks = list(provider.diagnose({reference.secret_identifier: reference.version}))
    assert [check.level for check in checks] == ["ok"] * 4
    assert fields(provider.fetch(reference.secret_identifier, LATEST))[reference.field] == "sk-one"
    assert refused(provider, "secret/other").reason is Reason.FORBIDDEN


def test_the_page_explains_every_reason_that_vault_gives() -> None:
    told = set(re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.M))
    assert told == {reason.value for reason in Reason} - {"not_yet_valid"}


# -- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"auth": {"method": "approle", "secret_id": "os.environ/X"}}, "'role_id'"),
        ({"auth": {"method": "approle", "role_id": "x"}}, "'secret_id'"),
        ({"auth": {"method": "kubernetes"}}, "'role'"),
        ({"auth": {"token": "os.environ/hashicorp://secret/token"}}, "environment variable"),
        ({"auth": {"token": "hvs.written-out"}}, "must be a reference"),
        ({"mount": "/secret/"}, "pattern"),
        ({"engines": {"secret": "kv3"}}, "kv2"),
        ({"timeout": 0}, "greater than 0"),
        ({"client_key": "key.pem"}, "'client_cert'"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_the_name_of_the_field(section: Any, says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        HashicorpSecrets.model_validate(section)
    assert says in str(caught.value)
    assert "written-out" not in str(caught.value)


def test_kinds_of_engines_are_read_from_their_names() -> None:
    section = HashicorpSecrets.model_validate({"engines": {"a": "kv1", "b/c": "dynamic"}})
    assert section.engines == {"a": VaultEngine.KV1, "b/c": VaultEngine.DYNAMIC}


@pytest.mark.parametrize(
    ("settings", "environ"),
    [
        ({}, {}),
        ({"url": "os.environ/VAULT_URL"}, {}),
        ({"url": "os.environ/VAULT_URL"}, {"VAULT_URL": "vault:8200"}),
        ({"url": "os.environ/VAULT_URL"}, {"VAULT_URL": "https://ada:s3cret@vault:8200"}),
        ({"url": "https://vault:notaport"}, {}),
        ({"url": "https://vault", "namespace": "os.environ/NAMESPACE"}, {}),
    ],
)
def test_a_provider_that_does_not_know_where_vault_is_cannot_be_made(
    settings: dict[str, Any], environ: dict[str, str]
) -> None:
    with pytest.raises(SecretUnavailable) as caught:
        HashicorpVault(HashicorpSecrets.model_validate(settings), environ)
    assert caught.value.reason is Reason.MISCONFIGURED
    assert "orchestration.secrets.providers.hashicorp." in str(caught.value)
    assert "s3cret" not in str(caught.value)


# -- no leak ---------------------------------------------------------------------------------------------------------


def test_no_secret_reaches_a_log_an_error_or_a_repr(
    vault: VaultDouble, made: Made, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = {name: f"MARKED-{name}" for name in ("value", "token", "secret_id", "jwt", "password", "foreign")}
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine localhost login ada password {marks['foreign']}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    vault.kv2("secret/llm/marked", key=marks["value"])
    vault.kv1("old/marked", value=marks["value"])
    vault.database("app", ttl=60)
    vault.policy("marked", "secret/data/llm/*", "old/*", "database/creds/*")
    role = vault.approle("marked", ttl=90)
    role.secret_ids.add(marks["secret_id"])
    (tmp_path / "jwt").write_text(marks["jwt"])
    vault.token("marked", token=marks["token"])
    kubernetes = {"method": "kubernetes", "role": "gateway", "service_account_token": str(tmp_path / "jwt")}

    shown = io.StringIO()
    handler = logging.StreamHandler(shown)
    root = logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in ("", "urllib3", "requests", "hvac")}
    root.addHandler(handler)
    for name in levels:
        logging.getLogger(name).setLevel(logging.DEBUG)
    try:
        providers = [
            made(VAULT_TOKEN=marks["token"]),
            made(auth=APPROLE, ROLE=role.role_id, SECRET=marks["secret_id"]),
            made(auth=kubernetes),
            made(VAULT_TOKEN=marks["token"] + "\r\nX: y"),
            made(VAULT_TOKEN=marks["token"] + "-dead"),
        ]
        names = ("secret/llm/marked", "old/marked", "database/creds/app", "secret/other", "nowhere/x", "team")
        leases: list[Any] = []
        for mode in ("active", "sealed", "dr_secondary", "silent", "active"):
            vault.mode = mode
            vault.answer_next("secret/data", 500, f"failed with {marks['value']}")
            vault.answer_next("old/", 400, f"failed with {marks['value']}")
            for provider in providers:
                for name in names:
                    shown.write(outcome(lambda p=provider, n=name: kept(p.fetch(n, LATEST), leases)))
                for lease in leases:
                    shown.write(outcome(lambda p=provider, x=lease: p.renew(x) and None))
                shown.write("".join(f"{check!r}\n" for check in provider.diagnose(dict.fromkeys(names, LATEST))))
                shown.write(repr(provider) + repr(vars(provider)) + repr(provider._login._session))
            clock.advance(70)
    finally:
        root.removeHandler(handler)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)

    text = shown.getvalue()
    assert "/v1/secret/data/llm/marked" in text, "urllib3 has logged at DEBUG"
    assert leases and "forbidden" in text and "Traceback" in text
    assert not [name for name, mark in marks.items() if mark in text]
    assert not any(lease.id.rpartition("/")[2] in text for lease in leases)
    assert not any(token in text for token in vault.namespace("").tokens)
    assert role.secret_ids.isdisjoint(text.split())
    assert "authorization" not in vault.header_names, "what ~/.netrc holds is for others"


def kept(fetched: Fetched, leases: list[Any]) -> str:
    if fetched.lease is not None:
        leases.append(fetched.lease)
    return repr((fetched.value, fetched.version, fetched.expires_at))


def outcome(work: Callable[[], object]) -> str:
    """What somebody who prints everything would see: the repr, or the error with all that hangs on it."""
    try:
        return repr(work())
    except SecretUnavailable as error:
        return "".join(traceback.format_exception(error)) + repr(error) + error.reason + repr(error.args)


def test_a_closed_provider_leaves_no_connection_open(vault: VaultDouble, made: Made) -> None:
    provider = made(VAULT_TOKEN=vault.token("reader"))
    provider.fetch("secret/llm/openai", LATEST)
    (connection,) = vault._open
    provider.close()
    eventually_sync(lambda: connection.fileno() == -1 or connection not in vault._open)
    assert isinstance(connection, socket.socket)
