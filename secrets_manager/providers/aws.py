"""AWS Secrets Manager."""

import base64
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from core.settings.models import AwsSecrets
from core.settings.reference import LATEST
from secrets_manager.provider import Check, Fetched, Lease, Reason, SecretUnavailable
from secrets_manager.providers.aws_doctor import examined
from secrets_manager.providers.aws_failures import explained
from secrets_manager.providers.aws_login import AwsLogin
from secrets_manager.providers.botocore_logs import values_left_out
from secrets_manager.value import SecretValue

CURRENT = "AWSCURRENT"
_ARN = re.compile(r"arn:aws[a-z-]*:secretsmanager:([a-z0-9-]+):[0-9]{12}:secret:.+")
_VERSION_ID = re.compile(r"(?=.*[0-9])[0-9A-Za-z-]{32,64}")


class AwsSecretsManager:
    """Reads secrets of AWS Secrets Manager by name (in the region of the settings) or by ARN (in the ARN's).

    A version is a version id (32 to 64 letters, digits and hyphens, with a digit among them) or a staging label. A
    binary secret is its UTF-8 text, or base64 where it is none.
    """

    def __init__(
        self, settings: AwsSecrets, environ: Mapping[str, str], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._login = AwsLogin(settings, environ, clock)

    def fetch(self, identifier: str, version: str) -> Fetched:
        what = f"aws://{identifier}" + ("" if version == LATEST else f"?version={version}")
        region = self._region_of(identifier, what)
        failure: SecretUnavailable
        try:
            with values_left_out():
                client = self._login.client("secretsmanager", region)
                answer = cast("Mapping[str, Any]", client.get_secret_value(SecretId=identifier, **asked_for(version)))
            if "VersionId" in answer:
                return Fetched(_value(answer), str(answer["VersionId"]))
            message = f"{what}: {self._login.endpoint(region)} gives answers that are not those of Secrets Manager."
            failure = SecretUnavailable(message, Reason.UNREACHABLE)
        except SecretUnavailable as error:
            failure = SecretUnavailable(f"{what}: {error}", error.reason, retry_after=error.retry_after)
        except Exception as error:
            failure = explained(error, what, self._login.endpoint(region))
            if failure.reason is Reason.UNAUTHENTICATED:
                self._login.doubt()
        # Out here nothing hangs on it: what botocore raised, or what was raised over it, may quote an answer.
        raise failure

    def renew(self, lease: Lease) -> Lease:
        raise SecretUnavailable("AWS Secrets Manager gives no leases.", Reason.MISCONFIGURED)

    def diagnose(self, identifiers: Mapping[str, str]) -> Iterator[Check]:
        return examined(self._login, self.fetch, {name: (region_of(name), v) for name, v in identifiers.items()})

    def close(self) -> None:
        self._login.close()

    def _region_of(self, identifier: str, what: str) -> str:
        if identifier.startswith("arn:") and region_of(identifier) is None:
            message = f"{what} is no ARN of a secret (arn:aws:secretsmanager:<region>:<account>:secret:<name>)."
            raise SecretUnavailable(message, Reason.MISCONFIGURED)
        region = region_of(identifier) or self._login.region
        if region is None:
            message = f"{what}: AWS needs a region; set secrets.providers.aws.region or AWS_REGION."
            raise SecretUnavailable(message, Reason.MISCONFIGURED)
        return region


def region_of(identifier: str) -> str | None:
    """The region of an ARN; None for a name."""
    found = _ARN.fullmatch(identifier)
    return found[1] if found else None


def asked_for(version: str) -> dict[str, str]:
    """The parameter by which GetSecretValue knows a version."""
    if version == LATEST:
        return {"VersionStage": CURRENT}
    return {"VersionId": version} if _VERSION_ID.fullmatch(version) else {"VersionStage": version}


def _value(answer: Mapping[str, Any]) -> SecretValue:
    text = answer.get("SecretString")
    if isinstance(text, str):
        return SecretValue(text)
    binary: bytes = answer.get("SecretBinary") or b""
    try:
        return SecretValue(binary.decode("utf-8"))
    except UnicodeDecodeError:
        return SecretValue(base64.b64encode(binary).decode("ascii"))
