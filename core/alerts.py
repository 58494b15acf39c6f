"""An alert: something a person should know, with what makes it the same alert everywhere."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import orjson

from core.settings.models.alerts import AlertEvent

Severity = Literal["info", "warning", "critical"]

ONCE = frozenset(
    {
        *(AlertEvent.BUDGET_THRESHOLD, AlertEvent.BUDGET_LIMIT, AlertEvent.BUDGET_FORECAST),
        *(AlertEvent.EXPERIMENT_ARM_STOPPED, AlertEvent.EXPERIMENT_MISMATCH),
    }
)
"""Told once for each `dedupe_key`, by whoever comes first. All other events may come in floods: their key names the
flood, of which the first is told at once and the rest are counted and told together."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing to tell.

    `subject` is what it is about: alerts of one subject arrive in the order in which they were raised. `details` are
    values that JSON holds, without secrets. `dedupe_key` is the same on every instance for the same thing, such as
    `budget_threshold|team_ai~3f|1764547200000|ada|0.8`. `over_ms` (Unix milliseconds) is when that key will not come
    again, so that it need not be remembered for ever: the end of a budget's period.
    """

    event: AlertEvent
    subject: str
    message: str
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])  # whatever JSON holds
    dedupe_key: str = ""
    time_ms: int = 0
    severity: Severity = "warning"
    over_ms: int | None = None

    def __post_init__(self) -> None:
        if not self.dedupe_key:
            object.__setattr__(self, "dedupe_key", f"{self.event.value}|{self.subject}")

    @property
    def comes_in_floods(self) -> bool:
        return self.event not in ONCE

    def at(self, time_ms: int) -> "Alert":
        """The same with a time, if it has none."""
        return self if self.time_ms else replace(self, time_ms=time_ms)

    def to_json(self) -> bytes:
        """One line without its end. Raises TypeError for details that are no JSON."""
        return orjson.dumps(
            {
                "event": self.event.value,
                "subject": self.subject,
                "message": self.message,
                "details": dict(self.details),
                "dedupe_key": self.dedupe_key,
                "time_ms": self.time_ms,
                "severity": self.severity,
                "over_ms": self.over_ms,
            }
        )

    @classmethod
    def from_json(cls, line: bytes | str) -> "Alert":
        """The inverse of `to_json`. Raises ValueError, KeyError or TypeError for anything else."""
        found: dict[str, Any] = orjson.loads(line)
        found["event"] = AlertEvent(found["event"])
        return cls(**found)
