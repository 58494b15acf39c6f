"""What the fake provider would send an invoice for: the other side's books, to compare ours with."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["open", "answered", "refused", "failed", "malformed", "reset", "cut", "abandoned"]
"""How an attempt ended. refused: 4xx; failed: 5xx; cut: we broke off; abandoned: the client left before the end."""


@dataclass(slots=True)
class Attempt:
    """One request that arrived, whatever became of it. Tokens are those billed, also where no usage was reported."""

    at: float
    """Unix seconds of arrival."""
    endpoint: str
    """The API path from /v1 on."""
    model: str
    api_key: str = field(repr=False)
    body_sha256: str
    streamed: bool
    body: dict[str, Any] = field(repr=False)
    """The request as it arrived: the limits and parameters that were really sent."""
    status: int = 0
    """The HTTP status that was sent; 0 while none was."""
    outcome: Outcome = "open"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Output billed, reasoning included, over all choices."""
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(slots=True)
class Totals:
    """Sums over attempts."""

    attempts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Bill:
    """Every attempt in order of arrival. `itemised=False` keeps only the totals, for long benchmarks."""

    def __init__(self, *, itemised: bool = True) -> None:
        self._lock = threading.Lock()
        self.itemised = itemised
        self.reset()

    def reset(self) -> None:
        with self._lock:
            self._attempts: list[Attempt] = []
            self._forgotten = Totals()

    def open(self, attempt: Attempt) -> None:
        if self.itemised:
            with self._lock:
                self._attempts.append(attempt)

    def close(self, attempt: Attempt, outcome: Outcome) -> None:
        attempt.outcome = outcome
        if not self.itemised:
            with self._lock:
                self._forgotten.attempts += 1
                self._forgotten.prompt_tokens += attempt.prompt_tokens
                self._forgotten.completion_tokens += attempt.completion_tokens

    @property
    def attempts(self) -> list[Attempt]:
        with self._lock:
            return list(self._attempts)

    def of(self, *, model: str | None = None, api_key: str | None = None) -> list[Attempt]:
        """The attempts for a model and/or with an api key."""
        return [
            attempt
            for attempt in self.attempts
            if (model is None or attempt.model == model) and (api_key is None or attempt.api_key == api_key)
        ]

    @property
    def totals(self) -> Totals:
        """Sums over everything that was received since the reset."""
        if not self.itemised:
            with self._lock:
                return dataclasses.replace(self._forgotten)
        return total(self.attempts)

    def __len__(self) -> int:
        return self.totals.attempts


def total(attempts: Iterable[Attempt]) -> Totals:
    """The sums over some attempts."""
    sums = Totals()
    for attempt in attempts:
        sums.attempts += 1
        sums.prompt_tokens += attempt.prompt_tokens
        sums.completion_tokens += attempt.completion_tokens
    return sums
