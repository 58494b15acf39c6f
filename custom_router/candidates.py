"""Model groups as routing sees them: what they can do, what they cost, and how they are doing."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from core.context import Need

MEDIUM = 2
"""The priority of a group that has none, where others have one."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model group, all its deployments together: it can do what each of them can.

    `context_window` and `max_output` are tokens, None where not known. `lacks` is what it is known not to serve.
    `input_nano` and `output_nano` are nano-dollars a token, None where nothing prices it. `regions` are those of its
    deployments; a deployment that names none is in none.
    """

    name: str
    priority: int | None = None
    weight: float = 1.0
    regions: frozenset[str] = frozenset()
    context_window: int | None = None
    max_output: int | None = None
    lacks: frozenset[Need] = frozenset()
    input_nano: float | None = None
    output_nano: float | None = None
    deployments: tuple[str, ...] = ()

    def cost_nano(self, input_tokens: int, output_tokens: int) -> float | None:
        """What a request is expected to cost, None where nothing prices it."""
        if self.input_nano is None or self.output_nano is None:
            return None
        return self.input_nano * input_tokens + self.output_nano * output_tokens


class Live(Protocol):
    """How model groups are doing from second to second."""

    def available(self, group: str) -> bool:
        """Whether at least one of its deployments takes requests."""
        ...

    def away(self, groups: tuple[str, ...]) -> Collection[str]:
        """Those of the groups that are not available; mostly there are none."""
        ...

    def latency_ms(self, group: str, stream: bool) -> float | None:
        """What it took lately, to the first token for streams; None where nothing was measured."""
        ...

    def in_flight(self, group: str) -> int:
        """Requests under way at it."""
        ...

    def expected_outputs(self, groups: tuple[str, ...], task_type: str | None) -> Sequence[int]:
        """Tokens that the answers of each have, on average."""
        ...

    def turn(self, policy: str) -> int:
        """How many requests the policy has had, for taking turns; each call is one more."""
        ...
