"""AWS Secrets Manager: how it is asked, what each refusal means, and that no answer gets into a log."""

from __future__ import annotations

import json
import logging
import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from core.settings.models import AwsSecrets
from secrets_manager.provider import Lease, Reason, SecretProvider, SecretUnavailable
from secrets_manager.providers.aws import AwsSecretsManager
from secrets_manager.providers.aws_doctor import partition_of
from tests.support.aws import ADMIN, REGION, isolate, lines, manager, refusal, sign_in, sign_out, text
from tests.support.clock import Clock
from tests.support.scripted_aws import ScriptedAws

MARK = "sk-marked-secret-5f2c9a"
TOKEN = "marked-session-token-77aa"
VERSION_ID = "e6d4a78c-cdaa-47a4-a618-e6c0fdcbccdc"
SECRET = {"Name": "openai", "VersionId": VERSION_ID, "SecretString": MARK}


@pytest.fixture(scope="module")
def shared_scripted() -> Iterator[ScriptedAws]:
    with ScriptedAws() as server:
        yield server


@pytest.fixture
def scripted(shared_scripted: ScriptedAws) -> ScriptedAws:
    shared_scripted.forget()
    return shared_scripted


@pytest.fixture(scope="module")
def provider(shared_scripted: ScriptedAws) -> AwsSecretsManager:
    """A provider that was used before; making a client takes a tenth of a second."""
    return manager(shared_scripted.url)


@pytest.fixture(autouse=True)
def only_an_administrators_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


# -- asking ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "parameter"),
    [
        # AWS means AWSCURRENT without it too; said aloud it also means that to whoever stands in for AWS.
        ("latest", {"VersionStage": "AWSCURRENT"}),
        ("AWSPREVIOUS", {"VersionStage": "AWSPREVIOUS"}),
        ("blue", {"VersionStage": "blue"}),
        (
            "a-staging-label-of-more-than-thirty-two-letters",
            {"VersionStage": "a-staging-label-of-more-than-thirty-two-letters"},
        ),
        (VERSION_ID, {"VersionId": VERSION_ID}),
        ("terraform-20240131000000000000000001", {"VersionId": "terraform-20240131000000000000000001"}),
    ],
)
def test_a_version_is_an_id_or_a_stage(
    provider: AwsSecretsManager, scripted: ScriptedAws, version: str, parameter: dict[str, str]
) -> None:
    scripted.answer(200, SECRET)
    fetched = provider.fetch("openai", version)
    assert (fetched.value.reveal(), fetched.version) == (MARK, VERSION_ID)
    assert [json.loads(body) for body in scripted.bodies] == [{"SecretId": "openai", **parameter}]


def test_connections_are_used_again(scripted: ScriptedAws) -> None:
    scripted.answer(200, SECRET)
    provider = manager(scripted.url)
    for _ in range(5):
        text(provider)
    assert scripted.connections == 1
    provider.close()


def test_it_is_a_provider() -> None:
    assert isinstance(manager("http://127.0.0.1:1"), SecretProvider)


# -- logging in ------------------------------------------------------------------------------------------------------


def test_making_one_asks_nothing_and_a_missing_log_in_is_not_looked_for_a_thousand_times(
    scripted: ScriptedAws, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    sign_out(monkeypatch)
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", scripted.url)
    scripted.answer(404, b"")
    settings = AwsSecrets(region=REGION, endpoint_url=scripted.url)
    provider = AwsSecretsManager(settings, os.environ, clock=clock)
    assert scripted.requests == []
    error = refusal(provider)
    assert error.reason is Reason.UNAUTHENTICATED
    assert "AWS_ACCESS_KEY_ID" in str(error)
    asked = len(scripted.requests)
    assert asked > 0
    assert refusal(provider).reason is Reason.UNAUTHENTICATED
    assert len(scripted.requests) == asked

    sign_in(monkeypatch, ADMIN)
    scripted.answer(200, {"Name": "openai", "VersionId": "v" * 32, "SecretString": "sk-1"})
    clock.advance(6)
    assert text(provider) == "sk-1"


def test_a_role_is_asked_for_again_soon_after_sts_was_away_but_not_by_everybody_who_waited(
    scripted: ScriptedAws, clock: Clock
) -> None:
    role = "arn:aws:iam::123456789012:role/reader"
    settings = AwsSecrets(region=REGION, sts_endpoint_url=scripted.url, role_arn=role)
    provider = AwsSecretsManager(settings, os.environ, clock=clock)
    scripted.answer(503, b"<ErrorResponse><Error><Code>ServiceUnavailable</Code></Error></ErrorResponse>")
    for pause, asked in ((0.0, 1), (0.05, 1), (0.2, 2)):
        clock.advance(pause)
        error = refusal(provider)
        assert error.reason is Reason.UNREACHABLE
        assert role in str(error)
        assert len(scripted.requests) == asked


def test_credentials_that_are_renewed_in_the_file_are_found_without_a_restart(
    scripted: ScriptedAws, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clock: Clock
) -> None:
    sign_out(monkeypatch)
    keys = "[default]\naws_access_key_id = {}\naws_secret_access_key = secret\n"
    (tmp_path / "credentials").write_text(keys.format("OLDKEY"))
    provider = AwsSecretsManager(AwsSecrets(region=REGION, endpoint_url=scripted.url), os.environ, clock=clock)
    scripted.refuse("ExpiredTokenException")
    assert refusal(provider).reason is Reason.UNAUTHENTICATED
    (tmp_path / "credentials").write_text(keys.format("NEWKEY"))
    scripted.answer(200, SECRET)
    assert text(provider) == MARK
    assert ["OLDKEY" in asked["authorization"] for asked in scripted.requests] == [True, False]


def test_a_profile_that_does_not_exist_is_a_wrong_setting() -> None:
    with pytest.raises(SecretUnavailable, match=r"secrets\.providers\.aws\.profile") as raised:
        manager("http://127.0.0.1:1", profile="nobody", region=None)
    assert raised.value.reason is Reason.MISCONFIGURED


def test_a_name_without_a_region_is_a_wrong_setting() -> None:
    error = refusal(manager("http://127.0.0.1:1", region=None))
    assert error.reason is Reason.MISCONFIGURED
    assert "AWS_REGION" in str(error)


@pytest.mark.parametrize("field", ["region", "role_arn", "external_id", "endpoint_url"])
def test_a_setting_whose_variable_is_not_set_names_both(field: str) -> None:
    with pytest.raises(SecretUnavailable, match=f"{field}: the environment variable NOT_SET is not set") as raised:
        manager("http://127.0.0.1:1", **{field: "os.environ/NOT_SET"})
    assert raised.value.reason is Reason.MISCONFIGURED


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status", "reason", "named"),
    [
        ("AccessDeniedException", 400, Reason.FORBIDDEN, "secretsmanager:GetSecretValue"),
        ("DecryptionFailure", 400, Reason.FORBIDDEN, "kms:Decrypt"),
        ("UnrecognizedClientException", 400, Reason.UNAUTHENTICATED, "credentials"),
        ("ExpiredTokenException", 400, Reason.UNAUTHENTICATED, "expired"),
        ("InvalidSignatureException", 400, Reason.UNAUTHENTICATED, "clock"),
        ("ThrottlingException", 400, Reason.THROTTLED, "slow down"),
        ("TooManyRequestsException", 429, Reason.THROTTLED, "slow down"),
        ("InternalServiceError", 500, Reason.UNREACHABLE, "InternalServiceError"),
        ("ServiceUnavailable", 503, Reason.UNREACHABLE, "ServiceUnavailable"),
        ("InvalidParameterException", 400, Reason.MISCONFIGURED, "identifier or version"),
    ],
)
def test_each_refusal_has_its_reason_after_a_single_try(
    provider: AwsSecretsManager, scripted: ScriptedAws, code: str, status: int, reason: Reason, named: str
) -> None:
    # AWS's words about a wrong signature quote the whole request.
    scripted.refuse(code, f"x-amz-security-token:{TOKEN}", status=status)
    error = refusal(provider)
    assert error.reason is reason
    assert "aws://openai" in str(error)
    assert named in str(error)
    assert TOKEN not in str(error)
    assert len(scripted.requests) == 1


def test_a_refusal_by_kms_names_its_permission(provider: AwsSecretsManager, scripted: ScriptedAws) -> None:
    scripted.refuse("AccessDeniedException", "Access to KMS is not allowed")
    error = refusal(provider)
    assert error.reason is Reason.FORBIDDEN
    assert "kms:Decrypt" in str(error)


def test_the_pause_that_aws_asks_for_is_passed_on(provider: AwsSecretsManager, scripted: ScriptedAws) -> None:
    scripted.refuse("ThrottlingException", headers={"retry-after": "7"})
    assert refusal(provider).retry_after == 7
    scripted.refuse("ThrottlingException", headers={"retry-after": "soon"})
    assert refusal(provider).retry_after is None


def test_no_answer_in_time_is_unreachable(scripted: ScriptedAws) -> None:
    scripted.answer(200, {}, delay=30)
    error = refusal(manager(scripted.url, read_timeout=0.1))
    assert error.reason is Reason.UNREACHABLE
    assert "ReadTimeoutError" in str(error)


def test_nobody_listening_is_unreachable() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        error = refusal(manager(url))
    assert error.reason is Reason.UNREACHABLE
    assert url in str(error)


def test_a_certificate_of_nobody_we_know_is_unreachable_and_one_of_our_own_authority_is_fine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with ScriptedAws(context) as scripted:
        scripted.answer(200, SECRET)
        error = refusal(manager(scripted.url))
        assert error.reason is Reason.UNREACHABLE
        assert "AWS_CA_BUNDLE" in str(error)
        authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "authority.pem"))
        assert text(manager(scripted.url)) == MARK


@pytest.mark.parametrize("body", [b"<html>Please log in</html>", b"{}", b"\xff\xfe", b'["x"]'])
def test_answers_of_something_else_are_unreachable(
    provider: AwsSecretsManager, scripted: ScriptedAws, body: bytes
) -> None:
    scripted.answer(200, body)
    assert refusal(provider).reason is Reason.UNREACHABLE


@pytest.mark.parametrize("identifier", ["arn:aws:s3:::bucket", ""])
def test_what_cannot_be_a_secret_is_a_wrong_setting(provider: AwsSecretsManager, identifier: str) -> None:
    assert refusal(provider, identifier).reason is Reason.MISCONFIGURED


def test_there_are_no_leases() -> None:
    with pytest.raises(SecretUnavailable):
        manager("http://127.0.0.1:1").renew(Lease("x", 1, True))


# -- logs ------------------------------------------------------------------------------------------------------------


def test_nothing_of_an_answer_or_a_signed_request_is_logged(
    scripted: ScriptedAws, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    scripted.answer(200, SECRET)
    with caplog.at_level(logging.DEBUG):
        assert text(manager(scripted.url)) == MARK
    assert "Making request for" in caplog.text
    assert "Response body" in caplog.text
    for never in (MARK, TOKEN, "Authorization", "Signature=", "AWS4-HMAC-SHA256 Credential"):
        assert never not in caplog.text
    assert TOKEN in str(scripted.requests)


def test_failures_are_logged_without_what_was_answered(scripted: ScriptedAws, caplog: pytest.LogCaptureFixture) -> None:
    scripted.refuse("InvalidSignatureException", f"x-amz-security-token:{TOKEN}")
    with caplog.at_level(logging.DEBUG):
        refusal(manager(scripted.url))
        refusal(manager(scripted.url, role_arn="arn:aws:iam::123456789012:role/r"))
    assert "Refreshing temporary credentials failed" in caplog.text
    assert TOKEN not in caplog.text


# -- diagnosis -------------------------------------------------------------------------------------------------------


def test_missing_credentials_end_the_diagnosis(monkeypatch: pytest.MonkeyPatch) -> None:
    sign_out(monkeypatch)
    checks = list(manager("http://127.0.0.1:1").diagnose({"openai": "latest"}))
    assert lines(checks) == [("ok", f"region {REGION}"), ("error", "no credentials")]
    assert "AWS_ACCESS_KEY_ID" in checks[-1].do


def test_no_region_is_said_before_anything_else() -> None:
    first = next(manager("http://127.0.0.1:1", region=None).diagnose({"openai": "latest"}))
    assert (first.level, first.do) == ("error", "Set secrets.providers.aws.region, or AWS_REGION.")


@pytest.mark.parametrize(
    ("region", "partition"),
    [("eu-central-1", "aws"), ("us-east-1", "aws"), ("cn-north-1", "aws-cn"), ("us-gov-west-1", "aws-us-gov")],
)
def test_arns_in_statements_are_those_of_the_regions_partition(region: str, partition: str) -> None:
    assert partition_of(region) == partition
