"""Whether AWS Secrets Manager is set up well enough to read certain secrets, and the policy that is missing if not."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from secrets_manager.provider import Check, Fetched, Reason, SecretUnavailable
from secrets_manager.providers.aws_failures import ASSUME, DECRYPT, READ, explained
from secrets_manager.providers.aws_login import AwsLogin
from secrets_manager.providers.botocore_logs import values_left_out

_KINDS = {
    "env": "environment variables",
    "shared-credentials-file": "the shared credentials file",
    "config-file": "the SDK's config file",
    "assume-role": "a role of the profile",
    "assume-role-with-web-identity": "a web identity, such as an EKS service account's",
    "container-role": "the container's role",
    "iam-role": "the instance's role",
    "sso": "IAM Identity Center",
    "login": "aws login",
    "custom-process": "credential_process of the profile",
}
_SET_REGION = "Set secrets.providers.aws.region, or AWS_REGION."


def examined(
    login: AwsLogin, fetch: Callable[[str, str], Fetched], secrets: Mapping[str, tuple[str | None, str]]
) -> Iterator[Check]:
    """What is so, step by step; `secrets` is identifier -> (the region its ARN names, version)."""
    if login.region is not None:
        yield Check("ok", f"region {login.region}")
    elif any(region is None for region, _ in secrets.values()):
        yield Check("error", "no region: secrets that are given by name cannot be found", _SET_REGION)
        secrets = {name: (region, version) for name, (region, version) in secrets.items() if region is not None}
    elif secrets:
        yield Check("ok", "no region of our own: every secret is an ARN, which names its region")
    else:
        yield Check("warning", "no region: only ARNs can be read", _SET_REGION)
    try:
        with values_left_out():
            kind = login.kind()
    except SecretUnavailable as error:
        yield Check("error", "no credentials", str(error))
        return
    yield Check("ok", f"credentials from {_KINDS.get(kind, kind)}")
    regions = [login.region, *(region for region, _ in secrets.values())]
    first = next((region for region in regions if region is not None), "us-east-1")
    identity = _identity(login, first)
    yield identity
    if identity.level == "error":
        return
    account = re.search(r"arn:aws[a-z-]*:(?:sts|iam)::([0-9]{12}):", identity.what)
    yield from _readable(login, fetch, secrets, account[1] if account else "<account>")


def _identity(login: AwsLogin, region: str) -> Check:
    """Who STS says we are; with a role it is the role that says so."""
    try:
        with values_left_out():
            who: Mapping[str, Any] = login.client("sts", region).get_caller_identity()  # Any: it is JSON
        return Check("ok", f"logged in as {who['Arn']}")
    except SecretUnavailable as error:
        failure = error
    except Exception as error:
        failure = explained(error, "sts:GetCallerIdentity", "STS")
    if login.role is not None:
        do = str(failure)
        if ASSUME in do:
            do += f" The policy of whoever assumes the role needs {_statement(ASSUME, login.role)}"
        return Check("error", f"the role {login.role} cannot be assumed", do)
    if failure.reason is Reason.UNAUTHENTICATED:
        return Check("error", "AWS does not accept the credentials", str(failure))
    # A private network may have an endpoint for secrets and none for STS.
    return Check("warning", "STS does not say who we are", str(failure))


def _readable(
    login: AwsLogin, fetch: Callable[[str, str], Fetched], secrets: Mapping[str, tuple[str | None, str]], account: str
) -> Iterator[Check]:
    reached: dict[str, bool] = {}
    for identifier, (of_arn, version) in secrets.items():
        region = of_arn or login.region or ""
        if reached.get(region) is False:
            yield Check("error", f"aws://{identifier}: not tried, its region does not answer")
            continue
        try:
            found = fetch(identifier, version)
            error = None
        except SecretUnavailable as failure:
            found, error = None, failure
        if region not in reached:
            reached[region] = error is None or error.reason is not Reason.UNREACHABLE
            if reached[region]:
                yield Check("ok", f"{login.endpoint(region)} answers")
        if found is not None:
            found.value.wipe()
            yield Check("ok", f"aws://{identifier}: readable, version {found.version}")
        elif error is not None:
            yield Check("error", f"aws://{identifier}: {error.reason}", _what_to_do(error, identifier, region, account))


def _what_to_do(error: SecretUnavailable, identifier: str, region: str, account: str) -> str:
    if error.reason is not Reason.FORBIDDEN:
        return str(error)
    partition = partition_of(region)
    if DECRYPT in str(error):
        return f"{error} {_statement(DECRYPT, f'arn:{partition}:kms:{region}:{account}:key/<id of the key>')}"
    # AWS puts a hyphen and six characters behind the name.
    name = f"arn:{partition}:secretsmanager:{region}:{account}:secret:{identifier}-??????"
    return f"{error} {_statement(READ, identifier if identifier.startswith('arn:') else name)}"


def partition_of(region: str) -> str:
    """The second part of the ARNs of a region."""
    return next((f"aws-{area}" for area in ("cn", "us-gov") if region.startswith(f"{area}-")), "aws")


def _statement(action: str, resource: str) -> str:
    return json.dumps({"Effect": "Allow", "Action": action, "Resource": resource})
