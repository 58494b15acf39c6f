"""What the fake provider has been told to do, and for whom."""

from __future__ import annotations

import dataclasses
import random
import threading
from dataclasses import dataclass
from typing import Any

BEHAVIOUR_HEADER = "x-fake-behaviour"


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How the provider answers. Times in seconds, counts in tokens; the defaults are a fast provider that works."""

    # The answer.
    output_tokens: int = 8
    """Visible tokens of each choice; clamped by the request's output limit."""
    text: str | None = None
    """The answer's words instead of generated ones; one token a word, whatever `output_tokens` says."""
    reasoning_tokens: int = 0
    """Hidden tokens that are billed as output, and count against the output limit first."""
    cached_tokens: int = 0
    """How many of the prompt's tokens are reported as read from the provider's cache."""
    prompt_tokens: int | None = None
    """Billed prompt tokens instead of one for every word of the prompt."""
    usage: bool = True
    """False: the tokens are billed, but reported nowhere."""

    # The pace.
    first_byte_delay: float = 0
    chunk_delay: float = 0
    hang: bool = False
    """Wait for `release()` (or for the client to give up) before the first byte."""
    hang_after_chunks: int | None = None
    """Wait for `release()` in the middle of a stream, after so many of its events."""

    # What goes wrong.
    statuses: tuple[int, ...] = ()
    """Statuses of the next requests, in order: (500, 500, 200). After the last one `status` holds again."""
    status: int = 200
    failure_rate: float = 0
    """Share of the requests that get `failure_status`; the same requests in every run."""
    failure_status: int = 500
    retry_after: float | None = None
    """The `retry-after` header of refusals, in seconds."""
    bill_failures: bool = False
    """Whether an error status costs what the answer would have cost: a provider that worked before it failed."""
    reset_connection: bool = False
    """Do the work, bill it, then reset the TCP connection instead of answering."""
    cut_after_chunks: int | None = None
    """Break a stream off after so many of its events: the connection closes without an end, and without usage.

    Without a `chunk_delay` the client may learn of the end before it has read the events."""
    end_after_chunks: int | None = None
    """End a stream in good order after so many of its events, as if it were whole, but without its last ones."""
    malformed: bool = False
    """Answer 200 with a body (or one event) that is not JSON."""

    @staticmethod
    def from_mapping(values: dict[str, Any]) -> Behaviour:
        """A behaviour from decoded JSON; unknown names raise TypeError."""
        if "statuses" in values:
            values = {**values, "statuses": tuple(values["statuses"])}
        return Behaviour(**values)

    def to_mapping(self) -> dict[str, Any]:
        """Only what differs from the defaults, ready for JSON."""
        return {
            field.name: value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
        }


class _Rule:
    """A behaviour in use: knows how far its sequence of statuses has come."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self._left = list(reversed(behaviour.statuses))
        self._random = random.Random(20_260_101)

    def next_status(self) -> int:
        if self._left:
            return self._left.pop()
        if self.behaviour.failure_rate and self._random.random() < self.behaviour.failure_rate:
            return self.behaviour.failure_status
        return self.behaviour.status


class Script:
    """Behaviours by api key, by model, and for everyone else; safe to change from any thread while requests run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget everything: a fast provider that works, for everyone."""
        with self._lock:
            self._default = _Rule(Behaviour())
            self._by_model: dict[str, _Rule] = {}
            self._by_key: dict[str, _Rule] = {}

    def set(self, behaviour: Behaviour, *, model: str | None = None, api_key: str | None = None) -> None:
        """Use a behaviour for an api key, or a model, or (with neither) whatever has no behaviour of its own."""
        if model is not None and api_key is not None:
            raise ValueError("a behaviour is for a model or for an api key, not for both")
        with self._lock:
            if api_key is not None:
                self._by_key[api_key] = _Rule(behaviour)
            elif model is not None:
                self._by_model[model] = _Rule(behaviour)
            else:
                self._default = _Rule(behaviour)

    def take(self, model: str, api_key: str) -> tuple[Behaviour, int]:
        """The behaviour and the status for one request: the api key's, else the model's, else the default."""
        with self._lock:
            rule = self._by_key.get(api_key) or self._by_model.get(model) or self._default
            return rule.behaviour, rule.next_status()
