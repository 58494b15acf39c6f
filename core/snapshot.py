"""One configuration as requests see it: swapped whole when the file changes, never altered."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from core.access import TierAccess
from core.directory import Directory, Resolve
from core.settings import Loaded, Settings
from core.settings.models import Policy


@dataclass(frozen=True)
class Snapshot:
    """Settings with what is derived from them once. `version` counts from 1 since the worker started."""

    settings: Settings
    directory: Directory
    policies: Mapping[str, Policy]
    digest: str
    version: int
    loaded_at: float
    enforces_access: bool = field(init=False)
    bounds_spending: bool = field(init=False)

    def __post_init__(self) -> None:
        settings = self.settings
        declared = bool(settings.tiers or settings.routing.policies or settings.keys)
        object.__setattr__(self, "enforces_access", declared)
        blocking = any(budget.at_limit == "block" for budget in settings.budgets)
        object.__setattr__(self, "bounds_spending", bool(settings.tiers) or blocking)

    @property
    def access(self) -> TierAccess:
        return self.directory.access

    @property
    def first_candidates(self) -> dict[str, str]:
        """Policy name -> the group that serves it while nothing else decides."""
        return {name: policy.candidates[0] for name, policy in self.policies.items() if policy.candidates}


def take_snapshot(loaded: Loaded, resolve: Resolve, models: tuple[str, ...], version: int, now: float) -> Snapshot:
    """Derive a snapshot from a loaded file; `models` are the model groups that exist."""
    settings = loaded.settings
    return Snapshot(
        settings=settings,
        directory=Directory(settings, resolve, models),
        policies=settings.routing.policies,
        digest=loaded.digest,
        version=version,
        loaded_at=now,
    )
