"""Azure Key Vault, read by Azure's own client from a double of its REST API: every answer and every way to log in."""

import gc
import io
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from azure.core.credentials import AccessToken
from azure.keyvault.secrets import SecretClient
from pydantic import ValidationError

from core.settings.models.secrets import AzureSecrets, SecretCache
from core.settings.reference import SecretReference
from secrets_manager.provider import Check, Fetched, Lease, Reason, SecretProvider, SecretUnavailable
from secrets_manager.providers.azure import AzureKeyVault
from secrets_manager.resolver import Resolver
from tests.support.azure_entra import TENANT, Application
from tests.support.azure_key_vault import AzureKeyVaultDouble
from tests.support.eventually import eventually_sync

VALUE = "sk-marked-4f1c9a"


@pytest.fixture
def vault(monkeypatch: pytest.MonkeyPatch) -> Iterator[AzureKeyVaultDouble]:
    """A vault with one secret, `openai`; nothing of the machine's own Azure set-up is seen."""
    for name in list(os.environ):
        if name.startswith(("AZURE_", "IDENTITY_", "MSI_", "IMDS_", "HTTPS_PROXY", "https_proxy")):
            monkeypatch.delenv(name)
    with AzureKeyVaultDouble() as double:
        for name, value in double.machine_environ.items():
            monkeypatch.setenv(name, value)
        double.set("openai", VALUE)
        yield double


def reader(
    vault: AzureKeyVaultDouble, auth: dict[str, str] | None = None, environ: dict[str, str] | None = None, **more: Any
) -> AzureKeyVault:
    """A provider of that vault; log-in by client secret unless `auth` says otherwise."""
    settings = AzureSecrets(**{**vault.settings(**(auth or {})), **more})
    return AzureKeyVault(settings, vault.environ if environ is None else environ)


def fetched(provider: AzureKeyVault, name: str = "openai", version: str = "latest") -> str:
    return provider.fetch(name, version).value.reveal()


def failure(call: Callable[[], object]) -> SecretUnavailable:
    """What a call fails with, after a look whether it brings anything along that it should not."""
    with pytest.raises(SecretUnavailable) as caught:
        call()
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    assert VALUE not in "".join(traceback.format_exception(error))
    return error


class AdministratorToken:
    """A credential of the administrator's, for Azure's own client."""

    def __init__(self, vault: AzureKeyVaultDouble) -> None:
        self._vault = vault

    def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        return AccessToken(self._vault.entra.issue(self._vault.administrator), int(time.time()) + 3600)


@pytest.fixture
def administrator(vault: AzureKeyVaultDouble) -> Iterator[SecretClient]:
    """What an administrator changes the vault with: Azure's own client."""
    with SecretClient(vault.url, AdministratorToken(vault), connection_verify=vault.ca_bundle) as client:
        yield client


# -- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("auth", "field", "words"),
    [
        ({"method": "client_secret", "client_id": "c", "client_secret": "os.environ/S"}, "tenant_id", "is needed"),
        ({"method": "client_secret", "tenant_id": "t", "client_secret": "os.environ/S"}, "client_id", "is needed"),
        ({"method": "client_secret", "tenant_id": "t", "client_id": "c"}, "client_secret", "is needed"),
        ({"client_secret": "os.environ/S"}, "client_secret", "not used with method: default"),
        ({"tenant_id": "t"}, "tenant_id", "not used with method: default"),
        ({"method": "managed_identity", "authority": "https://login.example"}, "authority", "not used with"),
        ({"method": "workload_identity", "client_secret": "os.environ/S"}, "client_secret", "not used with"),
        ({"authority": "http://login.example"}, "authority", "should match pattern"),
        ({"method": "password"}, "method", "'default', 'managed_identity', 'client_secret' or 'workload_identity'"),
        ({"method": "client_secret", "client_secret": VALUE}, "client_secret", "never the secret itself"),
    ],
)
def test_a_log_in_that_cannot_work_is_refused_at_the_field(auth: dict[str, str], field: str, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        AzureSecrets.model_validate({"auth": auth})
    problems = {error["loc"]: error["msg"] for error in caught.value.errors()}
    assert words in problems["auth", field]
    assert VALUE not in str(caught.value)


@pytest.mark.parametrize("name", ["connect_timeout", "read_timeout"])
def test_a_timeout_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        AzureSecrets.model_validate({name: 0})


def test_it_is_a_provider(vault: AzureKeyVaultDouble) -> None:
    assert isinstance(reader(vault), SecretProvider)


def test_making_one_asks_nothing_of_the_network(vault: AzureKeyVaultDouble) -> None:
    reader(vault)
    assert not vault.requests
    assert not vault.entra.asked


def test_without_a_vault_the_setting_and_the_variable_are_named() -> None:
    error = failure(lambda: AzureKeyVault(AzureSecrets(), {}))
    assert error.reason is Reason.MISCONFIGURED
    assert "secrets.providers.azure.vault_url" in str(error)
    assert "AZURE_KEY_VAULT_URL" in str(error)


@pytest.mark.parametrize(
    "url",
    [
        f"http://{VALUE}",
        VALUE,
        f"https://{VALUE}:port",
        f"https://..{VALUE}",
        f"https://{VALUE}/secrets/openai",
        f"https://a:{VALUE}@host",
    ],
)
def test_what_is_no_vaults_url_is_refused_and_not_repeated(url: str) -> None:
    error = failure(lambda: AzureKeyVault(AzureSecrets(vault_url="os.environ/URL"), {"URL": url}))
    assert error.reason is Reason.MISCONFIGURED
    assert "vault_url must be https://" in str(error)
    assert VALUE not in str(error)


def test_variables_that_are_not_set_are_named(vault: AzureKeyVaultDouble) -> None:
    error = failure(lambda: reader(vault, environ={}))
    assert error.reason is Reason.MISCONFIGURED
    assert "auth.client_secret: the environment variable TEAM_VAULT_SECRET is not set" in str(error)
    assert "vault_url" in str(failure(lambda: AzureKeyVault(AzureSecrets(vault_url="os.environ/URL"), {})))


def test_a_tenant_that_cannot_be_one_is_refused_and_not_repeated(vault: AzureKeyVaultDouble) -> None:
    auth = {**vault.settings()["auth"], "tenant_id": "os.environ/TENANT"}
    error = failure(lambda: reader(vault, auth, {**vault.environ, "TENANT": f"{VALUE}!"}))
    assert error.reason is Reason.MISCONFIGURED
    assert "secrets.providers.azure.auth" in str(error)
    assert VALUE not in str(error)


def test_a_ca_bundle_that_is_not_there_is_named(vault: AzureKeyVaultDouble) -> None:
    error = failure(lambda: reader(vault, ca_bundle="/nowhere/ca.pem"))
    assert error.reason is Reason.MISCONFIGURED
    assert "ca_bundle: there is no file /nowhere/ca.pem" in str(error)


def test_a_ca_bundle_without_a_certificate_is_named(vault: AzureKeyVaultDouble, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(VALUE)
    error = failure(lambda: reader(vault, ca_bundle=str(tmp_path / "ca.pem")))
    assert error.reason is Reason.MISCONFIGURED
    assert "holds no certificates in PEM" in str(error)


def test_a_missing_package_is_named_with_the_extra_that_has_it(
    vault: AzureKeyVaultDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "azure.keyvault.secrets", None)
    error = failure(lambda: reader(vault))
    assert error.reason is Reason.MISCONFIGURED
    assert "install litellm-orchestration[azure]" in str(error)


# -- reading -----------------------------------------------------------------------------------------------------


def test_the_newest_version_is_read_and_older_ones_by_their_id(vault: AzureKeyVaultDouble) -> None:
    old = vault.set("rotated", "old")
    new = vault.set("rotated", "new")
    provider = reader(vault)
    latest = provider.fetch("rotated", "latest")
    assert (latest.value.reveal(), latest.version) == ("new", new)
    earlier = provider.fetch("rotated", old)
    assert (earlier.value.reveal(), earlier.version) == ("old", old)
    assert latest.expires_at is latest.not_before is latest.lease is None


def test_dates_come_along(vault: AzureKeyVaultDouble, administrator: SecretClient) -> None:
    begins, ends = datetime(2026, 1, 2, tzinfo=UTC), datetime(2999, 1, 2, tzinfo=UTC)
    administrator.set_secret("dated", "value", not_before=begins, expires_on=ends)
    found = reader(vault).fetch("dated", "latest")
    assert found.not_before == begins.timestamp()
    assert found.expires_at == ends.timestamp()


def test_the_resolver_refuses_what_is_past_or_before_its_dates(vault: AzureKeyVaultDouble) -> None:
    now = int(time.time())
    vault.set("expired", VALUE, expires=now - 10)
    vault.set("early", VALUE, not_before=now + 1000)
    provider = reader(vault)
    resolver = Resolver(lambda _: provider, SecretCache(), background=False)
    for name, reason in (("expired", Reason.EXPIRED), ("early", Reason.NOT_YET_VALID)):
        with pytest.raises(SecretUnavailable) as caught:
            resolver.resolve(SecretReference("azure", name), "a test")
        assert caught.value.reason is reason
    resolver.close()


def test_a_client_that_administers_the_vault_sees_a_vault(
    vault: AzureKeyVaultDouble, administrator: SecretClient
) -> None:
    made = administrator.set_secret("made", "by hand", content_type="text/plain")
    provider = reader(vault)
    assert fetched(provider, "made") == "by hand"
    assert [one.version for one in administrator.list_properties_of_secret_versions("made")] == [
        made.properties.version
    ]
    assert {one.name for one in administrator.list_properties_of_secrets()} == {"made", "openai"}
    administrator.update_secret_properties("made", enabled=False)
    assert failure(lambda: fetched(provider, "made")).reason is Reason.DISABLED
    administrator.update_secret_properties("made", enabled=True)
    assert fetched(provider, "made") == "by hand"


def test_a_deleted_secret_is_not_there_until_it_is_recovered(
    vault: AzureKeyVaultDouble, administrator: SecretClient
) -> None:
    provider = reader(vault)
    assert administrator.begin_delete_secret("openai").result().name == "openai"
    error = failure(lambda: fetched(provider))
    assert error.reason is Reason.NOT_FOUND
    assert "az keyvault secret recover --vault-name 127 --name openai" in str(error)
    administrator.begin_recover_deleted_secret("openai").wait()
    assert fetched(provider) == VALUE


def forbid(why: str) -> Callable[[AzureKeyVaultDouble], object]:
    return lambda vault: vault.refuse(why)


@pytest.mark.parametrize(
    ("happens", "reason", "words"),
    [
        (lambda vault: vault.delete("openai"), Reason.NOT_FOUND, ["has no secret of this name", "recover"]),
        (lambda vault: vault.disable("openai"), Reason.DISABLED, ["is disabled", "--enabled true"]),
        (forbid("rbac"), Reason.FORBIDDEN, ['"Key Vault Secrets User" is missing', "az role assignment create"]),
        (
            forbid("policy"),
            Reason.FORBIDDEN,
            ['permission "Get"', "az keyvault set-policy", "--secret-permissions get"],
        ),
        (forbid("firewall"), Reason.FORBIDDEN, ["firewall", "network-rule add", "--ip-address 203.0.113.7"]),
        (forbid("private"), Reason.FORBIDDEN, ["closed to public networks", "privatelink.vaultcore.azure.net"]),
        (
            lambda vault: vault.fail(403, 1, "Forbidden", VALUE),
            Reason.FORBIDDEN,
            ['"Key Vault Secrets User"', '"Get"', "<object id>"],
        ),
        (lambda vault: vault.throttle(1), Reason.THROTTLED, ["slow down", "secrets.cache.ttl"]),
        (lambda vault: vault.fail(500, 1, text=VALUE), Reason.UNREACHABLE, ["trouble of its own (HTTP 500"]),
        (lambda vault: vault.fail(503, 1), Reason.UNREACHABLE, ["HTTP 503"]),
        (lambda vault: vault.fail(400, 1, "BadParameter"), Reason.MISCONFIGURED, ["HTTP 400 BadParameter"]),
        (lambda vault: vault.fail(302, 1, headers={"Location": "/x"}), Reason.MISCONFIGURED, ["HTTP 302"]),
        (lambda vault: vault.garble(f"<html>{VALUE}"), Reason.UNREACHABLE, ["no valid answer", "proxy"]),
    ],
)
def test_each_refusal_has_its_reason_and_says_what_to_do(
    vault: AzureKeyVaultDouble, happens: Callable[[AzureKeyVaultDouble], object], reason: Reason, words: list[str]
) -> None:
    provider = reader(vault)
    happens(vault)
    error = failure(lambda: fetched(provider))
    assert error.reason is reason
    for word in ["azure://openai", *words]:
        assert word in str(error)
    assert VALUE not in str(error)


def test_who_was_refused_is_named_as_the_command_needs_it(vault: AzureKeyVaultDouble) -> None:
    vault.refuse("rbac", "openai")
    vault.set("other", "value")
    provider = reader(vault)
    assert fetched(provider, "other") == "value"
    error = failure(lambda: fetched(provider))
    assert f"--assignee {vault.reader.object_id} " in str(error)
    assert vault.reader.client_id in str(error)
    vault.allow()
    assert fetched(provider) == VALUE


def test_a_version_that_is_not_there_and_one_that_cannot_be(vault: AzureKeyVaultDouble) -> None:
    provider = reader(vault)
    error = failure(lambda: fetched(provider, version="0" * 32))
    assert error.reason is Reason.NOT_FOUND
    assert f"no version {'0' * 32}" in str(error)
    asked = len(vault.requests)
    error = failure(lambda: fetched(provider, version="3"))
    assert error.reason is Reason.NOT_FOUND
    assert "32 hexadecimal digits" in str(error)
    assert len(vault.requests) == asked


def test_a_throttled_read_says_for_how_long(vault: AzureKeyVaultDouble) -> None:
    provider = reader(vault)
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    for said, seconds in (("2", 2.0), (in_a_minute, pytest.approx(60, abs=5)), (None, None), ("soon", None)):
        vault.throttle(1, said)
        assert failure(lambda: fetched(provider)).retry_after == seconds


def test_a_failed_read_is_tried_once(vault: AzureKeyVaultDouble) -> None:
    provider = reader(vault)
    fetched(provider)
    before = len(vault.requests)
    vault.throttle(5)
    vault.fail(503, 5)
    for reason in [Reason.THROTTLED] * 5 + [Reason.UNREACHABLE] * 5:
        assert failure(lambda: fetched(provider)).reason is reason
    assert len(vault.requests) == before + 10


def test_a_vault_that_is_away_is_read_again_when_it_is_back(vault: AzureKeyVaultDouble) -> None:
    provider = reader(vault)
    fetched(provider)
    with vault.away():
        error = failure(lambda: fetched(provider))
        assert error.reason is Reason.UNREACHABLE
        assert "the connection was refused" in str(error)
    assert fetched(provider) == VALUE


def test_a_slow_vault_is_given_up_at_the_timeout(vault: AzureKeyVaultDouble) -> None:
    provider = reader(vault, read_timeout=0.2)
    fetched(provider)
    vault.delay = 5
    began = time.monotonic()
    error = failure(lambda: fetched(provider))
    assert time.monotonic() - began < 2
    assert error.reason is Reason.UNREACHABLE
    assert "read_timeout" in str(error)


def test_a_name_that_does_not_resolve_is_unreachable(vault: AzureKeyVaultDouble) -> None:
    error = failure(lambda: fetched(reader(vault, vault_url="https://team-vault.invalid")))
    assert error.reason is Reason.UNREACHABLE
    assert "the vault team-vault does not answer, its name cannot be resolved (DNS)" in str(error)


def test_a_certificate_of_an_unknown_authority_is_not_trusted(vault: AzureKeyVaultDouble) -> None:
    error = failure(lambda: fetched(reader(vault, ca_bundle=None)))
    assert error.reason is Reason.UNREACHABLE
    assert "TLS failed: unable to get local issuer certificate; secrets.providers.azure.ca_bundle" in str(error)
    assert not vault.requests


def test_no_token_goes_to_a_host_that_asks_for_one_of_another_domain(vault: AzureKeyVaultDouble) -> None:
    vault.entra.audience = "https://vault.azure.net"
    error = failure(lambda: fetched(reader(vault)))
    assert error.reason is Reason.MISCONFIGURED
    assert "secrets.providers.azure.vault_url" in str(error)
    assert not vault.entra.log_ins


def test_there_is_nothing_to_renew(vault: AzureKeyVaultDouble) -> None:
    assert failure(lambda: reader(vault).renew(Lease("id", 1, True))).reason is Reason.MISCONFIGURED


def test_after_close_it_can_still_be_asked(vault: AzureKeyVaultDouble) -> None:
    provider = reader(vault)
    fetched(provider)
    provider.close()
    assert fetched(provider) == VALUE


# -- logging in --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_many_threads_log_in_once_and_keep_their_connections(vault: AzureKeyVaultDouble) -> None:
    provider = reader(vault)
    for number in range(200):
        vault.set(f"secret-{number}", f"value-{number}")
    start = threading.Barrier(32)

    def read(number: int) -> str:
        if number < 32:
            start.wait(10)
        return fetched(provider, f"secret-{number}")

    with ThreadPoolExecutor(32) as threads:
        assert list(threads.map(read, range(200))) == [f"value-{number}" for number in range(200)]
    assert len(vault.entra.log_ins) == 1
    assert vault.connections_made <= 33
    assert sum(vault.reads.values()) == 200


def threads_in(function: str, module: str) -> int:
    """How many threads are in that function now, or in what it calls."""
    # CPython 3.11 holds a lock meanwhile that the collector needs to let go of a threading.local, and waits for ever.
    gc.disable()
    try:
        frames = sys._current_frames()
    finally:
        gc.enable()
    stacks = [traceback.extract_stack(frame) for frame in frames.values()]
    return sum(any(at.name == function and module in at.filename for at in stack) for stack in stacks)


def test_threads_that_wait_for_a_log_in_share_its_failure(vault: AzureKeyVaultDouble) -> None:
    provider = reader(vault)
    vault.entra.trouble = (503, {}, {})
    vault.entra.gate.clear()
    with ThreadPoolExecutor(8) as threads:
        reads = [threads.submit(failure, lambda: fetched(provider)) for _ in range(8)]
        eventually_sync(lambda: threads_in("get_token_info", "azure_login") == 8)
        vault.entra.gate.set()
        assert {read.result().reason for read in reads} == {Reason.UNREACHABLE}
    assert vault.entra.asked == 1
    vault.entra.trouble = None
    assert fetched(provider) == VALUE


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"client_secret": "os.environ/WRONG"}, ["AADSTS7000215", "the client secret is wrong"]),
        ({"client_id": "nobody"}, ["AADSTS700016", "check client_id and tenant_id"]),
    ],
)
def test_a_log_in_that_is_refused_says_what_is_wrong_with_it(
    vault: AzureKeyVaultDouble, change: dict[str, str], words: list[str]
) -> None:
    auth = {**vault.settings()["auth"], **change}
    error = failure(lambda: fetched(reader(vault, auth, {**vault.environ, "WRONG": VALUE})))
    assert error.reason is Reason.UNAUTHENTICATED
    for word in ["azure://openai cannot be read", *words]:
        assert word in str(error)
    assert VALUE not in str(error)


def test_an_expired_client_secret_says_so(vault: AzureKeyVaultDouble) -> None:
    vault.reader.secret_expired = True
    error = failure(lambda: fetched(reader(vault)))
    assert error.reason is Reason.UNAUTHENTICATED
    assert "the client secret has expired" in str(error)


def test_a_vault_of_another_tenant_says_which(vault: AzureKeyVaultDouble) -> None:
    auth = {**vault.settings()["auth"], "tenant_id": "11111111-0000-4000-8000-000000000000"}
    error = failure(lambda: fetched(reader(vault, auth)))
    assert error.reason is Reason.UNAUTHENTICATED
    assert f"set secrets.providers.azure.auth.tenant_id to {TENANT}" in str(error)


def test_trouble_of_the_log_in_host_is_not_taken_for_a_wrong_password(vault: AzureKeyVaultDouble) -> None:
    vault.entra.trouble = (503, {}, {"error": VALUE})
    error = failure(lambda: fetched(reader(vault)))
    assert (error.reason, error.retryable) == (Reason.UNREACHABLE, True)
    assert "the log-in at 127.0.0.1" in str(error)
    vault.entra.trouble = (429, {"Retry-After": "7"}, {"error": VALUE})
    error = failure(lambda: fetched(reader(vault)))
    assert (error.reason, error.retry_after) == (Reason.THROTTLED, 7.0)
    auth = {**vault.settings()["auth"], "authority": "https://login.invalid"}
    error = failure(lambda: fetched(reader(vault, auth)))
    assert error.reason is Reason.UNREACHABLE
    assert "the log-in at login.invalid failed, its name cannot be resolved (DNS)" in str(error)


def test_a_token_that_the_vault_no_longer_takes_is_replaced_on_the_way(vault: AzureKeyVaultDouble) -> None:
    provider = reader(vault)
    fetched(provider)
    vault.entra.tokens.clear()
    assert fetched(provider) == VALUE
    assert len(vault.entra.log_ins) == 2


def test_many_threads_replace_a_refused_token_once(vault: AzureKeyVaultDouble) -> None:
    provider = reader(vault)
    start = threading.Barrier(8)

    def read(_: int) -> str:
        start.wait(10)
        return fetched(provider)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(read, range(8))) == [VALUE] * 8
        assert len(vault.entra.log_ins) == 1
        vault.entra.tokens.clear()
        assert list(threads.map(read, range(8))) == [VALUE] * 8
    assert len(vault.entra.log_ins) == 2


def test_a_token_near_its_end_is_used_while_the_log_in_is_away(vault: AzureKeyVaultDouble) -> None:
    vault.entra.lifetime = 299
    provider = reader(vault)
    fetched(provider)
    vault.entra.trouble = (503, {}, {})
    asked = vault.entra.asked
    assert [fetched(provider) for _ in range(5)] == [VALUE] * 5
    assert vault.entra.asked == asked + 1


def test_a_vault_that_takes_no_token_of_ours_says_its_code(vault: AzureKeyVaultDouble) -> None:
    provider = reader(vault)
    vault.fail(401, 3, "Unauthorized", f"AKV10032: Invalid issuer. {VALUE}")
    error = failure(lambda: fetched(provider))
    assert error.reason is Reason.UNAUTHENTICATED
    assert "does not accept our log-in (AKV10032): check that secrets.providers.azure.auth" in str(error)
    assert VALUE not in str(error)


def test_a_managed_identity_logs_in_where_the_machine_has_one(vault: AzureKeyVaultDouble) -> None:
    auth = {"method": "managed_identity"}
    error = failure(lambda: fetched(reader(vault, auth, {})))
    assert error.reason is Reason.UNAUTHENTICATED
    assert "assign a managed identity" in str(error)
    vault.entra.machine_identity = Application()
    provider = reader(vault, auth, {})
    assert fetched(provider) == VALUE
    assert vault.entra.log_ins == [vault.entra.machine_identity.client_id]
    theirs = {**auth, "client_id": "os.environ/IDENTITY"}
    assert fetched(reader(vault, theirs, {"IDENTITY": vault.entra.machine_identity.client_id})) == VALUE
    assert failure(lambda: fetched(reader(vault, theirs, {"IDENTITY": "another"}))).reason is Reason.UNAUTHENTICATED


def test_a_workload_identity_logs_in_with_the_pods_token(vault: AzureKeyVaultDouble, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a-token-of-kubernetes")
    pod = vault.entra.register(Application(federated_token="a-token-of-kubernetes"))
    auth = {"method": "workload_identity", "authority": vault.url}
    environ = {
        "AZURE_TENANT_ID": TENANT,
        "AZURE_CLIENT_ID": pod.client_id,
        "AZURE_FEDERATED_TOKEN_FILE": str(token),
    }
    assert fetched(reader(vault, auth, environ)) == VALUE
    assert vault.entra.log_ins == [pod.client_id]
    token.write_text("of another service account")
    error = failure(lambda: fetched(reader(vault, auth, environ)))
    assert error.reason is Reason.UNAUTHENTICATED
    assert "no federated credential of the identity fits" in str(error)


def test_a_workload_identity_without_its_variables_names_them(vault: AzureKeyVaultDouble) -> None:
    error = failure(lambda: reader(vault, {"method": "workload_identity"}, {"AZURE_TENANT_ID": TENANT}))
    assert error.reason is Reason.MISCONFIGURED
    assert "AZURE_CLIENT_ID, AZURE_FEDERATED_TOKEN_FILE" in str(error)


def test_without_a_method_azures_own_search_finds_the_log_in(
    vault: AzureKeyVaultDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    auth = {"authority": vault.url}
    error = failure(lambda: fetched(reader(vault, auth, {})))
    assert error.reason is Reason.UNAUTHENTICATED
    for word in ("EnvironmentCredential", "ManagedIdentityCredential", "AzureCliCredential", "`az login`"):
        assert word in str(error)
    vault.entra.machine_identity = Application()
    assert fetched(reader(vault, auth, {})) == VALUE
    monkeypatch.setenv("AZURE_TENANT_ID", TENANT)
    monkeypatch.setenv("AZURE_CLIENT_ID", vault.reader.client_id)
    monkeypatch.setenv("AZURE_CLIENT_SECRET", vault.reader.client_secret or "")
    assert fetched(reader(vault, auth, {})) == VALUE
    assert vault.entra.log_ins == [vault.entra.machine_identity.client_id, vault.reader.client_id]
    vault.entra.trouble = (503, {}, {})
    assert failure(lambda: fetched(reader(vault, auth, {}))).reason is Reason.UNREACHABLE


# -- doctor ------------------------------------------------------------------------------------------------------


def checked(provider: AzureKeyVault, *names: str) -> list[Check]:
    checks = list(provider.diagnose(dict.fromkeys(names, "latest")))
    assert VALUE not in repr(checks)
    return checks


def test_a_vault_that_is_set_up_is_found_to_be(vault: AzureKeyVaultDouble) -> None:
    checks = checked(reader(vault), "openai")
    assert {check.level for check in checks} == {"ok"}
    text = "\n".join(check.what for check in checks)
    for words in (vault.url, "client_secret", "TLSv1.3", "by ClientSecretCredential", "azure://openai can be read"):
        assert words in text


def test_the_doctor_names_the_credential_that_azures_search_found(vault: AzureKeyVaultDouble) -> None:
    vault.entra.machine_identity = Application()
    checks = checked(reader(vault, {"authority": vault.url}, {}), "openai")
    assert "logged in at Microsoft Entra ID by ManagedIdentityCredential" in [check.what for check in checks]


def test_the_doctor_looks_at_every_secret_and_says_what_is_missing(vault: AzureKeyVaultDouble) -> None:
    now = int(time.time())
    vault.set("forbidden", VALUE)
    vault.refuse("rbac", "forbidden")
    vault.set("expired", VALUE, expires=now - 10)
    vault.set("early", VALUE, not_before=now + 1000)
    vault.set("soon", VALUE, expires=now + 3 * 86400 + 60)
    checks = checked(reader(vault), "forbidden", "expired", "early", "soon", "missing", "openai")[-6:]
    assert [check.level for check in checks] == ["error", "error", "error", "warning", "error", "ok"]
    assert checks[0].do.startswith('az role assignment create --role "Key Vault Secrets User"')
    assert checks[1].what == "azure://expired has expired"
    assert checks[3].what == "azure://soon can be read, but expires in 3 days"
    assert "create it" in checks[4].do


def test_the_doctor_tells_without_any_reference_whether_secrets_may_be_read(vault: AzureKeyVaultDouble) -> None:
    assert checked(reader(vault))[-1].what.startswith("secrets may be read")
    vault.refuse("policy")
    last = checked(reader(vault))[-1]
    assert last.level == "error"
    assert last.do.startswith("az keyvault set-policy")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vault_url": "https://team-vault.invalid"}, "the name team-vault.invalid cannot be resolved"),
        ({"vault_url": "https://127.0.0.1:1"}, "no connection to 127.0.0.1 port 1"),
        ({"ca_bundle": None}, "the certificate of 127.0.0.1 is not trusted"),
    ],
)
def test_the_doctor_stops_where_the_way_to_the_vault_ends(
    vault: AzureKeyVaultDouble, change: dict[str, Any], words: str
) -> None:
    checks = checked(reader(vault, **change), "openai")
    assert words in checks[-1].what
    assert checks[-1].do
    assert [check.level for check in checks].count("error") == 1
    assert not vault.entra.asked


def test_the_doctor_stops_at_a_log_in_that_fails(vault: AzureKeyVaultDouble) -> None:
    checks = checked(reader(vault, environ={"TEAM_VAULT_SECRET": VALUE}), "openai", "another")
    assert [check.level for check in checks].count("error") == 1
    assert "AADSTS7000215" in checks[-1].what


def test_behind_a_proxy_the_doctor_leaves_the_way_to_it(
    vault: AzureKeyVaultDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")
    checks = checked(reader(vault), "openai")
    assert "through the proxy" in checks[1].what
    assert "proxy that HTTPS_PROXY names does not work" in checks[-1].what


# -- what must never be seen -------------------------------------------------------------------------------------


def test_nothing_secret_is_logged_at_any_level(vault: AzureKeyVaultDouble, caplog: pytest.LogCaptureFixture) -> None:
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))
    caplog.set_level(1)
    logging.getLogger().addHandler(handler)
    try:
        provider = reader(vault)
        fetched(provider)
        fetched(provider)
        for happens in (
            lambda: vault.fail(500, 1, text=VALUE),
            lambda: vault.fail(403, 1, text=VALUE),
            lambda: vault.garble(VALUE),
            lambda: vault.refuse("rbac"),
        ):
            happens()
            failure(lambda: fetched(provider))
        list(provider.diagnose({"openai": "latest"}))
        vault.allow()
        leak: dict[str, Any] = {"access_token": VALUE, "error": VALUE, "error_description": VALUE, "other": VALUE}
        for answer in ((200, {}, VALUE), (200, {}, leak), (400, {}, leak), (500, {}, VALUE)):
            vault.entra.trouble = vault.entra.machine_trouble = answer
            for auth in ({}, {"authority": vault.url}, {"method": "managed_identity"}):
                provider = reader(vault, auth)
                # A host that answers with any text for a token is believed; the vault then refuses it.
                failure(lambda provider=provider: fetched(provider))
        vault.entra.trouble = vault.entra.machine_trouble = None
        failure(lambda: fetched(reader(vault, environ={"TEAM_VAULT_SECRET": VALUE})))
        vault.entra.machine_identity = Application()
        fetched(reader(vault, {"method": "managed_identity"}, {}))
        ours = lines.getvalue()
        with SecretClient(vault.url, AdministratorToken(vault), connection_verify=vault.ca_bundle) as another:
            another.get_secret("openai")
        theirs = lines.getvalue().removeprefix(ours)
    finally:
        logging.getLogger().removeHandler(handler)
    assert "urllib3.connectionpool DEBUG" in ours  # the handler heard everything
    assert "azure" not in {line.partition(".")[0] for line in ours.splitlines()}
    assert "azure.core.pipeline.policies.http_logging_policy INFO" in theirs
    for secret in (VALUE, vault.reader.client_secret or "", *vault.entra.tokens):
        assert secret not in ours


def test_neither_the_provider_nor_what_it_gives_shows_a_secret(vault: AzureKeyVaultDouble) -> None:
    provider = reader(vault)
    found: Fetched = provider.fetch("openai", "latest")
    shown = repr(found) + repr(provider) + repr(vars(provider)) + repr(vars(provider._credential))  # pyright: ignore
    for secret in (VALUE, vault.reader.client_secret or "", *vault.entra.tokens):
        assert secret not in shown
