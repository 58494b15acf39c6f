"""Model groups as routing sees them: what they can do, what they cost, and how they are doing."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import inf
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


class Choice:
    """Candidates that a request may come to, in the order given. What objectives compare of them is worked out once for
    all requests that have the same choice."""

    __slots__ = ("_prices", "_priorities", "candidates", "names")

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.candidates = candidates
        self.names = tuple([one.name for one in candidates])
        self._priorities: tuple[Sequence[int], bool] | None = None
        self._prices: tuple[Sequence[float], Sequence[float], bool] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def without(self, names: Collection[str]) -> "Choice":
        """Those that are not named."""
        return Choice([one for one in self.candidates if one.name not in names])

    @property
    def priorities(self) -> tuple[Sequence[int], bool]:
        """Of each, `MEDIUM` where it has none; and whether one has any."""
        if self._priorities is None:
            given = [one.priority for one in self.candidates]
            found = [MEDIUM if priority is None else priority for priority in given]
            self._priorities = found, any(priority is not None for priority in given)
        return self._priorities

    @property
    def prices(self) -> tuple[Sequence[float], Sequence[float], bool]:
        """Nano-dollars of an input token of each, and of an output token; both are infinite where nothing prices it.
        And whether all are priced."""
        if self._prices is None:
            pairs = [(one.input_nano, one.output_nano) for one in self.candidates]
            known = [(inf, inf) if paid is None or earned is None else (paid, earned) for paid, earned in pairs]
            paid = [one for one, _ in known]
            self._prices = paid, [one for _, one in known], inf not in paid
        return self._prices


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
