"""How instances come to agree on whose buckets of an experiment are whose."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.settings.models import Experiment, ExperimentStatus
from custom_router.experiments.agreed import Agreed, read_agreed
from custom_router.experiments.allocation import ranges_in_force, to_json

if TYPE_CHECKING:
    from core.store import Store


class Agreement:
    """This instance's part in it. Ranges are moved by whoever's configuration changes while it runs, so that an
    instance that has not read its file yet does not move them back."""

    def __init__(self) -> None:
        self._seen: dict[str, Experiment] = {}

    async def reach(self, store: "Store", experiments: Sequence[Experiment]) -> Agreed:
        """What is agreed on, after storing the ranges of experiments that have none yet, or other weights or variants
        than they had. Raises StoreError, and ConfigError for stored ranges that are none."""
        agreed = await read_agreed(store, experiments)
        changed = False
        for experiment in experiments:
            if experiment.status is not ExperimentStatus.RUNNING or self._seen.get(experiment.id) == experiment:
                continue
            stored = agreed.stored.get(experiment.id)
            ranges = ranges_in_force(experiment, stored)
            if ranges != stored:
                version = agreed.versions.get(experiment.id, 0)
                # Where another instance was first, what it has put is read now.
                await store.allocations.put(experiment.id, experiment.drawn_from, to_json(ranges), version)
                changed = True
            self._seen[experiment.id] = experiment
        return await read_agreed(store, experiments) if changed else agreed
