"""What clients are told of their limits: the usual x-ratelimit headers, and refusals that say when to come back."""

import math
from collections.abc import Sequence

from core.errors import RateLimited
from plugins.limits.counters import Level
from plugins.limits.quotas import Kind, Quota, Scope

_SHOWN = {Kind.REQUESTS: "requests", Kind.TOKENS: "tokens"}


def ratelimit_headers(quotas: Sequence[Quota], levels: Sequence[Level]) -> dict[str, str]:
    """Limit, remaining and reset of the tightest limit of requests and of tokens: the one with least left.

    The reset is the time until nothing of the limit is used any more, as OpenAI writes it: `42.25s`.
    """
    headers: dict[str, str] = {}
    for kind, shown in _SHOWN.items():
        left = [
            (max(0, quota.most - level.used), quota.most, level.reset)
            for quota, level in zip(quotas, levels, strict=True)
            if quota.kind is kind
        ]
        if left:
            remaining, most, reset = min(left)
            headers[f"x-ratelimit-limit-{shown}"] = str(most)
            headers[f"x-ratelimit-remaining-{shown}"] = str(remaining)
            headers[f"x-ratelimit-reset-{shown}"] = f"{reset:.2f}s"
    return headers


def put(headers: list[tuple[bytes, bytes]], ours: dict[str, str]) -> None:
    """Put ours into an answer's headers, in place of what a provider or LiteLLM says under the same names."""
    if ours:
        names = {name.encode(): value.encode() for name, value in ours.items()}
        headers[:] = [pair for pair in headers if pair[0].lower() not in names]
        headers += names.items()


def refusal(quotas: Sequence[Quota], levels: Sequence[Level], refused: Sequence[int]) -> RateLimited:
    """The error for a request that does not fit; where several limits refuse, the one that does so longest is named."""
    worst = max(refused, key=lambda index: levels[index].wait)
    quota, level = quotas[worst], levels[worst]
    again = retry_after(level.wait)
    return RateLimited(
        f"{_allows(quota)}; {level.used} are used. Try again in {again} s.",
        details=_details(quota) | {"used": level.used, "retry_after_seconds": again},
        headers={"retry-after": str(again), **ratelimit_headers(quotas, levels)},
    )


def too_large(quota: Quota, tokens: int) -> RateLimited:
    """The error for an input that no window of the limit will ever hold."""
    return RateLimited(
        f"{_allows(quota)}; the input alone has {tokens}. Send less, or have the limit raised.",
        details=_details(quota) | {"input_tokens": tokens},
        headers={"x-should-retry": "false"},
    )


def address_refusal(address: str, most: int, wait: float) -> RateLimited:
    """The error for an address that sends too much."""
    again = retry_after(wait)
    return RateLimited(
        f"{address} may send {most} requests per minute (limits.per_ip_requests_per_minute). Try again in {again} s.",
        details={
            "limit": "per_ip_requests_per_minute",
            "scope": Scope.ADDRESS,
            "name": address,
            "allowed": most,
            "retry_after_seconds": again,
        },
        headers={
            "retry-after": str(again),
            "x-ratelimit-limit-requests": str(most),
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": f"{wait:.2f}s",
        },
    )


def retry_after(wait: float) -> int:
    """Whole seconds, at least one: `retry-after` knows no fractions, and too early is in vain."""
    return max(1, math.ceil(wait))


_AMOUNTS = {
    Kind.REQUESTS: "requests per minute",
    Kind.TOKENS: "tokens per minute",
    Kind.PARALLEL: "requests at the same time",
}


def _allows(quota: Quota) -> str:
    amount = f"{quota.most} {_AMOUNTS[quota.kind]}"
    if quota.scope is Scope.TIER:
        return f"Tier {quota.name} allows each user {amount}"
    return f"This key may use {amount}" if quota.scope is Scope.KEY else f"User {quota.name} may use {amount}"


def _details(quota: Quota) -> dict[str, object]:
    return {"limit": quota.kind, "scope": quota.scope, "name": quota.name, "allowed": quota.most}
