"""What all instances know alike about experiments: whose buckets are whose, and which arms are closed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from core.settings.models import Experiment
from custom_router.experiments.allocation import Ranges, from_json

if TYPE_CHECKING:
    from core.store import Store


@dataclass(frozen=True, slots=True)
class Agreed:
    """By the experiment's id; `versions` are those of the ranges in the store, under whatever seed."""

    stored: Mapping[str, Ranges] = field(default_factory=dict[str, Ranges])
    versions: Mapping[str, int] = field(default_factory=dict[str, int])
    closed: Mapping[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])


async def read_agreed(store: "Store", experiments: Sequence[Experiment]) -> Agreed:
    """What the store has. Raises StoreError, and ConfigError for stored ranges that are none."""
    seeds = {experiment.id: experiment.drawn_from for experiment in experiments}
    loaded = await store.allocations.load()
    closed = await store.allocations.closed()
    return Agreed(
        {name: from_json(one.ranges) for name, one in loaded.items() if one.seed == seeds.get(name)},
        {name: one.version for name, one in loaded.items()},
        {name: frozenset(arms) for name, arms in closed.items()},
    )
