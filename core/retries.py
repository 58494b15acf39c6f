"""When a call is made again: after how long, how often in all, and until when."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

from core.settings.models.operations import Jitter, Retries

_MOST_SAVED = 10.0
"""Retries that a quiet time saves up: what a sudden failure may be met with beyond the share."""
_A_SECOND = 0.1
"""Retries that may always be made, however little traffic there is."""


def delay(
    rules: Retries, attempt: int, retry_after: float | None = None, chance: Callable[[], float] = random.random
) -> float | None:
    """Seconds to wait after attempt number `attempt` (the first is 1) has failed, None where it is not worth it: there
    is no attempt left, or the provider asks for more than `max_delay`.

    Exponential back-off with full jitter (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/),
    never less than `retry_after`. `chance` gives a number from 0 to 1.
    """
    if attempt >= rules.max_attempts or (retry_after is not None and retry_after > rules.max_delay):
        return None
    most = min(rules.max_delay, rules.base_delay * 2.0 ** min(attempt - 1, 60))
    wait = most if rules.jitter is Jitter.NONE else most * chance()
    return wait if retry_after is None else min(max(wait, retry_after), rules.max_delay)


class RetryBudget:
    """Keeps retries to a share of the requests, so that a provider in trouble does not get several times its load.

    A bucket of tokens: a request earns `share` of one, a retry costs one. `clock` gives seconds.
    """

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._clock = clock
        self._tokens = _MOST_SAVED if share else 0.0
        self._at = clock()

    def request(self) -> None:
        """A request has come."""
        self._tokens = min(self._tokens + self._share, _MOST_SAVED)

    def retry(self) -> bool:
        """Whether there may be one more; if so, it is paid."""
        now = self._clock()
        if self._share:
            self._tokens = min(self._tokens + max(now - self._at, 0.0) * _A_SECOND, _MOST_SAVED)
        self._at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a request has to be over, on the clock that `begin` was given; `at` None: never."""

    at: float | None = None

    @classmethod
    def begin(cls, rules: Retries, now: float) -> "Deadline":
        return cls(None if rules.deadline is None else now + rules.deadline)

    def allows(self, now: float, wait: float = 0.0) -> bool:
        """Whether there is time left for an attempt after so many seconds."""
        return self.at is None or now + wait < self.at


def retry_after_seconds(header: str | None, now: float) -> float | None:
    """Seconds of a `retry-after` header, which has seconds or a date (RFC 9110, 10.2.3); None where it says nothing.

    `now` is Unix seconds.
    """
    text = (header or "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            date = parsedate_to_datetime(text)
        except ValueError:
            return None
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now
    return seconds if 0 < seconds < 1e9 else None
