"""What AWS and its SDK say when they do not give a secret, as a reason and what to do about it.

Their own words are not repeated: an answer about a wrong signature quotes the request with its security token. Only the
code and the principal's ARN are taken from them.
"""

import re
from collections.abc import Mapping
from typing import Any, cast

from secrets_manager.provider import Reason, SecretUnavailable

READ = "secretsmanager:GetSecretValue"
DECRYPT = "kms:Decrypt"
ASSUME = "sts:AssumeRole"

_NOT_KNOWN = frozenset(
    {
        "UnrecognizedClientException",
        "InvalidClientTokenId",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidToken",
        "InvalidAccessKeyId",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "IncompleteSignature",
        "IncompleteSignatureException",
        "InvalidSignatureException",
        "SignatureDoesNotMatch",
        "RequestExpired",
        "RequestTimeTooSkewed",
        "AuthFailure",
        "InvalidIdentityToken",
        "IDPRejectedClaim",
    }
)
_NOT_ALLOWED = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "NotAuthorized", "403"})
_SLOW_DOWN = re.compile(r"Throttl|TooManyRequests|RequestLimitExceeded|ThroughputExceeded|SlowDown|BandwidthLimit")
_AWAY = frozenset({"InternalServiceError", "InternalFailure", "InternalError", "ServiceUnavailable", "RequestTimeout"})
_NO_LOG_IN = frozenset(
    {
        "NoCredentialsError",
        "PartialCredentialsError",
        "CredentialRetrievalError",
        "TokenRetrievalError",
        "NoAuthTokenError",
        "SSOError",
        "LoginError",
        "MetadataRetrievalError",
        "RefreshWithMFAUnsupportedError",
        "UnknownCredentialError",
    }
)
_NO_ANSWER = frozenset(
    {"ConnectionError", "HTTPClientError", "IncompleteReadError", "ResponseParserError", "UnicodeError", "OSError"}
)
_WRONG_SETTINGS = frozenset({"BotoCoreError", "ValueError"})

_SIGN_IN = (
    "AWS has no credentials for us: give the machine a role (EC2, ECS, EKS), or set AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, or secrets.providers.aws.profile"
)


def explained(error: Exception, what: str, endpoint: str) -> SecretUnavailable:
    """What `error`, raised by botocore while `what` (a reference) was read at `endpoint`, means."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):
        operation = str(getattr(error, "operation_name", ""))
        return _refused(cast("Mapping[str, Any]", response), operation, what)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    name = type(error).__name__
    if "SSLError" in kinds:
        message = f"{what}: no trusted TLS connection to {endpoint}; see AWS_CA_BUNDLE and the clock of this machine."
        return SecretUnavailable(message, Reason.UNREACHABLE)
    if kinds & {"NoRegionError", "InvalidRegionError", "UnknownRegionError"}:
        message = f"{what}: AWS needs a valid region; set secrets.providers.aws.region or AWS_REGION."
        return SecretUnavailable(message, Reason.MISCONFIGURED)
    if kinds & {"ProfileNotFound", "ConfigNotFound", "ConfigParseError"}:
        message = (
            f"{what}: the profile of the AWS SDK cannot be read ({name}); see secrets.providers.aws.profile, "
            "AWS_PROFILE and ~/.aws/config."
        )
        return SecretUnavailable(message, Reason.MISCONFIGURED)
    if "ParamValidationError" in kinds:
        message = f"{what}: AWS takes no identifier or version that is written like this."
        return SecretUnavailable(message, Reason.MISCONFIGURED)
    if kinds & _NO_LOG_IN:
        return SecretUnavailable(f"{what}: {_SIGN_IN} ({name}).", Reason.UNAUTHENTICATED)
    if kinds & _NO_ANSWER:
        message = f"{what}: {endpoint} does not answer ({name}); see the network, the proxy and the VPC endpoint."
        return SecretUnavailable(message, Reason.UNREACHABLE)
    if "RuntimeError" in kinds:  # what botocore raises for credentials that are expired when they arrive
        message = f"{what}: AWS gave expired credentials; see the clock of this machine."
        return SecretUnavailable(message, Reason.UNAUTHENTICATED)
    if kinds & _WRONG_SETTINGS:
        message = f"{what}: the AWS SDK cannot work with its settings ({name}); see secrets.providers.aws."
        return SecretUnavailable(message, Reason.MISCONFIGURED)
    return SecretUnavailable(f"{what}: the AWS SDK failed ({name}).", Reason.UNREACHABLE)


def _refused(response: Mapping[str, Any], operation: str, what: str) -> SecretUnavailable:
    """What an answer of AWS that is not the secret means. Any: it is JSON."""
    said: Mapping[str, Any] = response.get("Error", {})
    about: Mapping[str, Any] = response.get("ResponseMetadata", {})
    words, code, status = str(said.get("Message", "")), str(said.get("Code", "")), int(about.get("HTTPStatusCode", 0))
    shown = code if re.fullmatch(r"[A-Za-z0-9_.]{1,64}", code) else f"HTTP {status}"
    if _SLOW_DOWN.search(code) or status == 429:
        message = f"{what}: AWS asks us to slow down ({shown}); raise secrets.cache.ttl if it happens often."
        return SecretUnavailable(message, Reason.THROTTLED, retry_after=_retry_after(about))
    if code in _AWAY or status >= 500:
        return SecretUnavailable(f"{what}: AWS failed ({shown}).", Reason.UNREACHABLE)
    if code in _NOT_KNOWN or status == 401:
        message = (
            f"{what}: AWS does not accept our credentials ({shown}); they are wrong, expired or of another partition, "
            "or the clock of this machine is wrong."
        )
        return SecretUnavailable(message, Reason.UNAUTHENTICATED)
    if operation and operation != "GetSecretValue":
        message = (
            f"{what}: the log-in failed, {operation} was refused ({shown}){_principal(words)}. Allow {ASSUME} on the "
            "role, and let the role's trust policy name us and the external id."
        )
        return SecretUnavailable(message, Reason.UNAUTHENTICATED)
    if code == "DecryptionFailure" or ("KMS" in words and (code in _NOT_ALLOWED or status == 403)):
        message = (
            f"{what}: AWS may not decrypt it for us ({shown}); allow {DECRYPT} on the KMS key of the secret, "
            "and see that the key is enabled."
        )
        return SecretUnavailable(message, Reason.FORBIDDEN)
    if code in _NOT_ALLOWED or status == 403:
        message = f"{what}: we may not read it ({shown}){_principal(words)}; allow {READ} on it."
        return SecretUnavailable(message, Reason.FORBIDDEN)
    if code == "ResourceNotFoundException":
        message = (
            f"{what}: AWS has no such secret or version here; see the name, the region, the account and that this "
            "version exists."
        )
        return SecretUnavailable(message, Reason.NOT_FOUND)
    if code == "InvalidRequestException":
        message = f"{what}: the secret is marked for deletion; restore it (aws secretsmanager restore-secret)."
        return SecretUnavailable(message, Reason.DISABLED)
    message = f"{what}: AWS takes no identifier or version that is written like this ({shown})."
    return SecretUnavailable(message, Reason.MISCONFIGURED)


def _principal(words: str) -> str:
    """Who AWS takes us for, from its message."""
    found = re.search(r"User: (arn:[\w:/+=,.@-]{1,300}) is not authorized", words)
    return f" as {found[1]}" if found else ""


def _retry_after(about: Mapping[str, Any]) -> float | None:
    try:
        return max(0.0, float(about["HTTPHeaders"]["retry-after"]))
    except (KeyError, TypeError, ValueError):
        return None
