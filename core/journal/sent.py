"""What the books will say of a request whose process is killed before the provider's answer is written down."""

from dataclasses import dataclass
from typing import Self

from core.usage import UsageEvent, UsageState

KILLED = "ProcessKilled"


@dataclass(slots=True, frozen=True)
class SentAttempt:
    """A request at the moment its last attempt goes to the provider: the event so far, earlier attempts included.

    The last attempt says what is reserved for it and in which accounts; where nothing is, its `cost_nano` is the upper
    bound of what it can cost.
    """

    event: UsageEvent

    def to_json(self) -> bytes:
        """One line of JSON."""
        return self.event.to_json()

    @classmethod
    def from_json(cls, line: bytes) -> Self:
        """The inverse of `to_json`. Raises as `UsageEvent.from_json`, and ValueError for an event without attempts."""
        event = UsageEvent.from_json(line)
        if not event.attempts:
            raise ValueError("no attempt was sent")
        return cls(event)

    def killed(self) -> UsageEvent:
        """The event in which the last attempt's usage is unknown and costs what was reserved. Changes what it is of."""
        event = self.event
        last = max(event.attempts, key=lambda attempt: attempt.number)
        last.status, last.error_class, last.usage = 0, KILLED, UsageState.UNKNOWN
        last.cost_nano = last.reserved_nano or last.cost_nano
        event.status, event.error_class, event.usage = 0, KILLED, UsageState.UNKNOWN
        event.cost_nano = sum(attempt.cost_nano for attempt in event.attempts)
        event.unknown_nano = sum(a.cost_nano for a in event.attempts if a.usage == UsageState.UNKNOWN)
        for name in ("deployment", "provider", "provider_model"):
            setattr(event, name, getattr(event, name) or getattr(last, name))
        event.used_model = event.used_model or last.model
        return event
