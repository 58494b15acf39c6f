"""What the end of a call says about the deployment that was called."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    OK = "ok"
    FAILED = "failed"
    SLOW = "slow"
    """It answered, later than is any use: as good as failed."""
    THROTTLED = "throttled"
    """It is well, and wants to be left alone for a time that it names."""
    IGNORED = "ignored"
    """It says nothing: the client's mistake, our own refusal, a client that left."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`retry_after` is in seconds, for THROTTLED alone."""

    verdict: Verdict
    retry_after: float = 0.0


OK = Outcome(Verdict.OK)
FAILED = Outcome(Verdict.FAILED)
SLOW = Outcome(Verdict.SLOW)
IGNORED = Outcome(Verdict.IGNORED)


def throttled(seconds: float) -> Outcome:
    """The deployment asks to be left alone for so long."""
    return Outcome(Verdict.THROTTLED, seconds)


_BROKEN_4XX = frozenset((401, 402, 403, 408))
"""The deployment's key is refused, its account is empty, it waited too long. Any other 4xx is about the request."""
_ABOUT_THE_REQUEST_5XX = frozenset((501, 505))
_NOT_THE_PROVIDERS = (
    "CancelledError",  # the client left
    "ClientDisconnect",
    "ContentPolicyViolationError",
    "GuardrailRaisedException",
    "BlockedPiiEntityError",
    "ModifyResponseException",
    "HTTPException",  # a hook refused
    "ProxyException",
    "BudgetExceededError",
    "RejectedRequestError",
    "RouterRateLimitError",  # no deployment was left to ask
    "RouterRateLimitErrorBasic",
    "ImageFetchError",
)
_MISTAKES = frozenset(("TypeError", "KeyError", "AttributeError", "ValueError", "IndexError", "ValidationError"))
"""What LiteLLM stumbles over in a request, and then calls a failed connection: a client must not open a breaker so."""
_NETWORK = ("Timeout", "Connect", "Network", "Protocol", "SSL", "gaierror", "OSError", "ReadError", "WriteError")


def classify(
    status: int | None,
    error_class: str | None,
    retry_after: float | None,
    latency: float,
    *,
    slow_call: float | None = None,
    cause: str | None = None,
    ours: bool = False,
    another_key: bool = False,
) -> Outcome:
    """The outcome of one attempt.

    `status` is the provider's, None or 0 where it gave none; `error_class` the name of what was raised, None for an
    answer; `cause` the name of what that was raised from. `latency` is in seconds, of a stream to its first token.
    `ours` says that we refused, `another_key` that the key which was refused has been replaced by now: a rotated key
    is no broken deployment, though every request under way is told so.
    """
    if ours:
        return IGNORED
    if not error_class and (not status or status < 400):
        return SLOW if slow_call is not None and latency > slow_call else OK
    if error_class in _NOT_THE_PROVIDERS or (another_key and status in (401, 403)):
        return IGNORED
    if error_class == "APIConnectionError" and cause in _MISTAKES:
        return IGNORED
    if status == 429:
        # Without a word on how long, an empty account looks the same as a busy moment.
        return throttled(retry_after) if retry_after is not None and retry_after > 0 else FAILED
    if status and status >= 400:
        broken = status in _BROKEN_4XX if status < 500 else status not in _ABOUT_THE_REQUEST_5XX
        return FAILED if broken else IGNORED
    if error_class and any(word in error_class for word in _NETWORK):
        return FAILED
    return IGNORED
