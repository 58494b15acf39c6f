"""What becomes known about a request after its event was written, and the rule by which it may change the books."""

from dataclasses import dataclass, fields
from typing import Any, Self, TypedDict

import orjson

from core.usage import Attempt, UsageEvent, UsageState

# How much each state is worth. "none" is not in it: nothing was billed, and nothing learnt later changes that.
_WORTH: dict[str, int] = {UsageState.UNKNOWN: 1, UsageState.ESTIMATED: 2, UsageState.REPORTED: 3}
_NAMED_ONCE = ("litellm_call_id", "deployment", "provider", "provider_model", "price_version")


class UsageFields(TypedDict, total=False):
    """The fields that an amendment may carry; see `Amendment`."""

    attempt: int
    usage: str
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    cost_nano: int
    litellm_call_id: str
    deployment: str
    provider: str
    provider_model: str
    price_version: str


@dataclass(slots=True, frozen=True)
class Amendment:
    """Later knowledge about one attempt of a request: its real usage, or names the event lacks.

    `usage` with the token counts and `cost_nano` (nano-dollars) describe the attempt with that number, by default the
    last one; the request's sums move by the difference. They count only where they are worth more than what the books
    have: reported, then estimated, then unknown. The names are taken where the event has none.
    """

    request_id: str
    attempt: int | None = None
    usage: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost_nano: int = 0
    litellm_call_id: str | None = None
    deployment: str | None = None
    provider: str | None = None
    provider_model: str | None = None
    price_version: str | None = None

    def to_json(self) -> bytes:
        """One line of JSON, fields that have their default left out."""
        record = {name: value for name, default in _DEFAULTS if (value := getattr(self, name)) != default}
        return orjson.dumps(record)

    @classmethod
    def from_json(cls, line: bytes) -> Self:
        """The inverse of `to_json`; unknown fields of a newer version are dropped."""
        record: dict[str, Any] = orjson.loads(line)
        return cls(**{name: value for name, value in record.items() if name in _NAMES})

    def improve(self, event: UsageEvent) -> bool:
        """Change `event` where this knows better; whether anything changed. Applying it twice changes nothing more."""
        named = self._name(event)
        return self._correct_usage(event) or named

    def _name(self, event: UsageEvent) -> bool:
        changed = False
        for name in _NAMED_ONCE:
            value = getattr(self, name)
            if value is not None and getattr(event, name) is None:
                setattr(event, name, value)
                changed = True
        return changed

    def _correct_usage(self, event: UsageEvent) -> bool:
        target = self._described_by(event)
        if self.usage is None or target is None or target.usage not in _WORTH:
            return False
        if _WORTH.get(self.usage, 0) <= _WORTH[target.usage]:
            return False
        if target.usage == UsageState.UNKNOWN:
            event.unknown_nano -= target.cost_nano
        added = self.cost_nano - target.cost_nano
        added_input = self.input_tokens - target.input_tokens
        added_output = self.output_tokens - target.output_tokens
        event.cost_nano += added
        event.input_tokens += added_input
        event.output_tokens += added_output
        # Attempts keep no count of these two; what the better source says replaces what the event had.
        event.cached_tokens = self.cached_tokens or event.cached_tokens
        event.reasoning_tokens = self.reasoning_tokens or event.reasoning_tokens
        target.usage = self.usage
        if isinstance(target, Attempt):
            target.cost_nano += added
            target.input_tokens += added_input
            target.output_tokens += added_output
            # A request is known as well as the least known of its billed attempts.
            event.usage = min((a.usage for a in event.attempts if a.usage in _WORTH), key=_WORTH.__getitem__)
        return True

    def _described_by(self, event: UsageEvent) -> Attempt | UsageEvent | None:
        """The attempt meant; the event itself where it lists none; None for an attempt it does not have."""
        if not event.attempts:
            return event
        if self.attempt is None:
            return max(event.attempts, key=lambda attempt: attempt.number)
        return next((attempt for attempt in event.attempts if attempt.number == self.attempt), None)


_DEFAULTS: tuple[tuple[str, object], ...] = tuple((field.name, field.default) for field in fields(Amendment))
_NAMES = frozenset(name for name, _ in _DEFAULTS)
