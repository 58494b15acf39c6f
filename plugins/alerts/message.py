"""What a channel is given, and why it did not take it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

from core.alerts import Severity
from core.errors import OrchestrationError
from core.store.alerts import Delivery


class NotSent(OrchestrationError):
    """A channel did not take a message. The text names no part of the channel's URL that may be secret.

    `retryable` says whether the same may succeed later, `retry_after` (seconds) when the receiver wants to be asked.
    """

    def __init__(self, text: str, *, retryable: bool = True, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.retryable = retryable
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Message:
    """An alert as it is told. `id` is the same in every attempt; `times` is more than 1 for what came in a flood."""

    id: str
    event: str
    severity: Severity
    subject: str
    text: str
    details: Mapping[str, Any]  # whatever JSON holds
    time_ms: int
    times: int = 1

    @classmethod
    def of(cls, delivery: Delivery) -> "Message":
        alert = delivery.alert
        return cls(
            id=delivery.id,
            event=alert.event.value,
            severity=alert.severity,
            subject=alert.subject,
            text=alert.message,
            details=alert.details,
            time_ms=alert.time_ms,
            times=delivery.times,
        )

    @property
    def title(self) -> str:
        return f"[{self.severity}] {self.event}: {self.subject}"

    @property
    def body(self) -> str:
        """Plain text: what happened, how often, the details a line each."""
        lines = [self.text if self.times == 1 else f"{self.text} ({self.times} times)"]
        lines += [f"{name}: {value}" for name, value in self.details.items()]
        lines.append(datetime.fromtimestamp(self.time_ms / 1000, UTC).isoformat(timespec="seconds"))
        return "\n".join(lines)


class Channel(Protocol):
    """A place that takes messages."""

    async def send(self, message: Message) -> None:
        """Raises NotSent."""
        ...


def refusal(what: str, status: int, retry_after: float | None) -> NotSent:
    """What an HTTP status other than success means: later for what may pass, never for what is wrong with us."""
    later = status in (408, 409, 425, 429) or status >= 500
    hint = "" if later else "; check the channel's URL and secret, then re-send it"
    return NotSent(f"{what} answered with status {status}{hint}", retryable=later, retry_after=retry_after)


def seconds_of(retry_after: str | None, now: float) -> float | None:
    """What a `retry-after` asks for: seconds, or a date. None for anything else."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - now
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
