"""AWS Secrets Manager as moto knows it: versions, regions, roles, policies, and logs at every level."""

from __future__ import annotations

import base64
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from secrets_manager.provider import Reason
from tests.support.aws import REGION, isolate, lines, manager, refusal, sign_in, text
from tests.support.moto_server import MotoServer
from tests.support.scripted_aws import ScriptedAws

pytestmark = pytest.mark.live

MARK = "sk-marked-secret-5f2c9a"
TOKEN = "marked-session-token-77aa"
READ = {"Effect": "Allow", "Action": "secretsmanager:GetSecretValue", "Resource": "*"}


@pytest.fixture(scope="module")
def shared_aws() -> Iterator[MotoServer]:
    with MotoServer() as server:
        yield server


@pytest.fixture
def aws(shared_aws: MotoServer) -> MotoServer:
    shared_aws.reset()
    return shared_aws


@pytest.fixture
def scripted() -> Iterator[ScriptedAws]:
    with ScriptedAws() as server:
        yield server


@pytest.fixture(autouse=True)
def only_an_administrators_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def test_a_secret_is_read_with_the_id_of_its_version(aws: MotoServer) -> None:
    made = aws.client().create_secret(Name="team/openai", SecretString="sk-1")
    fetched = manager(aws.url).fetch("team/openai", "latest")
    assert (fetched.value.reveal(), fetched.version) == ("sk-1", made["VersionId"])


def test_a_json_secret_is_given_whole(aws: MotoServer) -> None:
    aws.client().create_secret(Name="openai", SecretString='{"key": "sk-1"}')
    assert json.loads(text(manager(aws.url))) == {"key": "sk-1"}


@pytest.mark.parametrize(
    ("binary", "expected"),
    [("schlüssel".encode(), "schlüssel"), (b"\xff\x00\xfe", base64.b64encode(b"\xff\x00\xfe").decode())],
)
def test_a_binary_secret_is_its_text_or_base64(aws: MotoServer, binary: bytes, expected: str) -> None:
    aws.client().create_secret(Name="openai", SecretBinary=binary)
    assert text(manager(aws.url)) == expected


def test_versions_are_found_by_id_and_by_stage(aws: MotoServer) -> None:
    client = aws.client()
    first = client.create_secret(Name="openai", SecretString="sk-1")["VersionId"]
    second = client.put_secret_value(SecretId="openai", SecretString="sk-2")["VersionId"]
    client.put_secret_value(
        SecretId="openai",
        SecretString="sk-3",
        ClientRequestToken="terraform-20240131000000000000000001",
        VersionStages=["blue"],
    )
    provider = manager(aws.url)
    assert text(provider, version=first) == "sk-1"
    assert text(provider, version=second) == "sk-2"
    assert text(provider, version="AWSPREVIOUS") == "sk-1"
    assert text(provider, version="AWSCURRENT") == text(provider) == "sk-2"
    assert text(provider, version="blue") == text(provider, version="terraform-20240131000000000000000001") == "sk-3"
    assert refusal(provider, version="green").reason is Reason.NOT_FOUND


def test_the_newest_is_the_one_with_the_label_awscurrent_also_after_it_was_moved(aws: MotoServer) -> None:
    client = aws.client()
    first = client.create_secret(Name="openai", SecretString="sk-1")["VersionId"]
    second = client.put_secret_value(SecretId="openai", SecretString="sk-2")["VersionId"]
    client.update_secret_version_stage(
        SecretId="openai", VersionStage="AWSCURRENT", MoveToVersionId=first, RemoveFromVersionId=second
    )
    assert text(manager(aws.url)) == "sk-1"


def test_an_arn_is_read_in_its_own_region(aws: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", aws.url)
    arn = aws.client(region="us-east-1").create_secret(Name="openai", SecretString="sk-us")["ARN"]
    for region in (REGION, None):
        provider = manager(aws.url, region=region, endpoint_url=None)
        assert text(provider, arn) == "sk-us"
    assert refusal(manager(aws.url)).reason is Reason.NOT_FOUND


def test_an_endpoint_of_our_region_is_not_asked_for_secrets_of_another(
    aws: MotoServer, scripted: ScriptedAws, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", aws.url)
    arn = aws.client(region="us-east-1").create_secret(Name="openai", SecretString="sk-us")["ARN"]
    assert text(manager(scripted.url), arn) == "sk-us"
    assert scripted.requests == []


def test_settings_may_refer_to_variables(aws: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    aws.client().create_secret(Name="openai", SecretString="sk-1")
    monkeypatch.setenv("OUR_REGION", REGION)
    monkeypatch.setenv("OUR_ENDPOINT", aws.url)
    assert text(manager("os.environ/OUR_ENDPOINT", region="os.environ/OUR_REGION")) == "sk-1"


def test_a_profile_gives_credentials_and_region(
    aws: MotoServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    aws.client(region="eu-west-1").create_secret(Name="openai", SecretString="sk-1")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    (tmp_path / "config").write_text("[profile work]\nregion = eu-west-1\n")
    (tmp_path / "credentials").write_text("[work]\naws_access_key_id = a\naws_secret_access_key = b\n")
    assert text(manager(aws.url, region=None, profile="work")) == "sk-1"


def test_many_threads_share_the_connections(aws: MotoServer) -> None:
    aws.client().create_secret(Name="openai", SecretString="sk-1")
    provider = manager(aws.url)
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(text(provider))) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["sk-1"] * 32


def test_a_role_reads_what_its_policy_allows(aws: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    aws.client().create_secret(Name="openai", SecretString="sk-1")
    role = aws.role("reader", READ)
    sign_in(monkeypatch, aws.user("ada", {"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": role}))
    aws.check_permissions()
    assert text(manager(aws.url, role_arn=role, external_id="house-42")) == "sk-1"
    assert refusal(manager(aws.url)).reason is Reason.FORBIDDEN


def test_a_role_that_may_not_be_assumed_is_a_failed_log_in(aws: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    role = aws.role("reader", READ)
    sign_in(monkeypatch, aws.user("ada"))
    aws.check_permissions()
    error = refusal(manager(aws.url, role_arn=role))
    assert error.reason is Reason.UNAUTHENTICATED
    assert "aws://openai" in str(error)
    assert "user/ada. Allow sts:AssumeRole" in str(error)
    assert role in str(error)


def test_a_missing_permission_is_named_with_who_lacks_it(aws: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    aws.client().create_secret(Name="openai", SecretString="sk-1")
    sign_in(monkeypatch, aws.user("ada"))
    aws.check_permissions()
    error = refusal(manager(aws.url))
    assert error.reason is Reason.FORBIDDEN
    assert "arn:aws:iam::123456789012:user/ada; allow secretsmanager:GetSecretValue" in str(error)


def test_a_secret_that_is_not_there_and_one_that_is_deleted_differ(aws: MotoServer) -> None:
    client = aws.client()
    client.create_secret(Name="old", SecretString="sk-1")
    client.delete_secret(SecretId="old")
    assert refusal(manager(aws.url), "nothing").reason is Reason.NOT_FOUND
    error = refusal(manager(aws.url), "old")
    assert error.reason is Reason.DISABLED
    assert "restore" in str(error)


def test_nothing_secret_is_logged_at_any_level(
    aws: MotoServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = aws.client()
    client.create_secret(Name="openai", SecretString=MARK)
    client.create_secret(Name="binary", SecretBinary=MARK.encode())
    role = aws.role("reader", READ)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    with caplog.at_level(logging.DEBUG):
        caplog.clear()
        provider = manager(aws.url, role_arn=role, external_id="marked-external-id")
        list(provider.diagnose({"openai": "latest", "nothing": "latest"}))
        text(provider)
        text(provider, "binary")
        refusal(provider, "nothing")
        text(manager(aws.url))
        log = caplog.text
    assert "Making request for" in log
    assert "botocore.parsers" in log
    for secret in (MARK, base64.b64encode(MARK.encode()).decode(), TOKEN, "marked-external-id", "SecretAccessKey"):
        assert secret not in log
    for header in ("Authorization", "Signature=", "X-Amz-Security-Token'", "AWS4-HMAC-SHA256 Credential"):
        assert header not in log


def test_what_others_ask_of_aws_is_logged_as_ever(aws: MotoServer, caplog: pytest.LogCaptureFixture) -> None:
    aws.client().create_secret(Name="openai", SecretString="sk-1")
    text(manager(aws.url))
    with caplog.at_level(logging.DEBUG, logger="botocore"):
        aws.client("sts").get_caller_identity()
    assert "GetCallerIdentityResponse" in caplog.text
    assert "left out" not in caplog.text


def test_a_good_set_up_is_confirmed_step_by_step(aws: MotoServer) -> None:
    made = aws.client().create_secret(Name="openai", SecretString="sk-1")
    assert lines(manager(aws.url).diagnose({"openai": "latest"})) == [
        ("ok", f"region {REGION}"),
        ("ok", "credentials from environment variables"),
        ("ok", "logged in as arn:aws:sts::123456789012:user/moto"),
        ("ok", f"{aws.url} answers"),
        ("ok", f"aws://openai: readable, version {made['VersionId']}"),
    ]


def test_a_missing_permission_comes_with_the_statement_that_gives_it(
    aws: MotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws.client().create_secret(Name="openai", SecretString="sk-1")
    sign_in(monkeypatch, aws.user("ada"))
    aws.check_permissions()
    *_, last = manager(aws.url).diagnose({"openai": "latest"})
    assert (last.level, last.what) == ("error", "aws://openai: forbidden")
    statement = json.loads(last.do[last.do.index("{") :])
    assert statement["Action"] == "secretsmanager:GetSecretValue"
    assert statement["Resource"] == f"arn:aws:secretsmanager:{REGION}:123456789012:secret:openai-??????"


def test_a_role_that_may_not_be_assumed_comes_with_its_statement(
    aws: MotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = aws.role("reader", READ)
    sign_in(monkeypatch, aws.user("ada"))
    aws.check_permissions()
    *_, last = manager(aws.url, role_arn=role).diagnose({"openai": "latest"})
    assert (last.level, last.what) == ("error", f"the role {role} cannot be assumed")
    assert json.loads(last.do[last.do.index("{") :]) == {
        "Effect": "Allow",
        "Action": "sts:AssumeRole",
        "Resource": role,
    }


def test_a_region_that_does_not_answer_is_tried_once(aws: MotoServer, scripted: ScriptedAws) -> None:
    scripted.answer(503, {})
    found = lines(manager(scripted.url, sts_endpoint_url=aws.url).diagnose({"one": "latest", "two": "latest"}))
    assert found[-2:] == [
        ("error", "aws://one: unreachable"),
        ("error", "aws://two: not tried, its region does not answer"),
    ]
    assert len(scripted.requests) == 1


def test_a_private_network_without_sts_is_only_a_warning(scripted: ScriptedAws, aws: MotoServer) -> None:
    aws.client().create_secret(Name="openai", SecretString="sk-1")
    scripted.answer(503, {})
    found = lines(manager(aws.url, sts_endpoint_url=scripted.url).diagnose({"openai": "latest"}))
    assert ("warning", "STS does not say who we are") in found
    assert found[-1][0] == "ok"
