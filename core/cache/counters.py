"""How often the cache answered, and what that saved."""

from dataclasses import dataclass, field
from typing import NamedTuple


class Label(NamedTuple):
    """What is counted together."""

    task_type: str
    model: str


OTHERS = Label("other", "other")
"""Everything beyond the first `MOST_LABELS`: clients choose the names of task types."""
MOST_LABELS = 500


@dataclass(slots=True)
class Count:
    """`hits` came from memory or Redis while fresh, `stale` when they were not, `shared` from a request in flight;
    `partial` are those of the `misses` that had answers to some of their inputs."""

    hits: int = 0
    misses: int = 0
    partial: int = 0
    stale: int = 0
    shared: int = 0
    saved_nano: int = 0


@dataclass(slots=True)
class Counters:
    total: Count = field(default_factory=Count)
    by_label: dict[Label, Count] = field(default_factory=dict[Label, Count])
    memory_hits: int = 0
    redis_hits: int = 0

    def hit(self, label: Label, saved_nano: int) -> None:
        count, total = self.of(label), self.total
        count.hits += 1
        total.hits += 1
        count.saved_nano += saved_nano
        total.saved_nano += saved_nano

    def miss(self, label: Label) -> None:
        self.of(label).misses += 1
        self.total.misses += 1

    def partial(self, label: Label, saved_nano: int) -> None:
        """What was counted as a miss was one in part only."""
        count, total = self.of(label), self.total
        count.partial += 1
        total.partial += 1
        count.saved_nano += saved_nano
        total.saved_nano += saved_nano

    def stale(self, label: Label) -> None:
        self.of(label).stale += 1
        self.total.stale += 1

    def shared(self, label: Label, saved_nano: int) -> None:
        count, total = self.of(label), self.total
        count.shared += 1
        total.shared += 1
        count.saved_nano += saved_nano
        total.saved_nano += saved_nano

    def of(self, label: Label) -> Count:
        count = self.by_label.get(label)
        if count is None:
            if len(self.by_label) >= MOST_LABELS:
                label = OTHERS
            count = self.by_label.setdefault(label, Count())
        return count
