"""One configuration as requests see it: swapped whole when the file changes, never altered."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from core.access import TierAccess
from core.budgets.catalog import Catalog
from core.directory import Directory, Resolve
from core.settings import Loaded, Settings
from core.settings.models import Policy


@dataclass(frozen=True)
class Snapshot:
    """Settings with what is derived from them once. `version` counts from 1 since the worker started."""

    settings: Settings
    directory: Directory
    policies: Mapping[str, Policy]
    catalog: Catalog
    digest: str
    version: int
    loaded_at: float
    enforces_access: bool = field(init=False)
    counts_spending: bool = field(init=False)
    """Whether there is a budget that everything has to be charged to, or a tier that limits it."""

    def __post_init__(self) -> None:
        settings = self.settings
        declared = bool(settings.tiers or settings.routing.policies or settings.keys)
        object.__setattr__(self, "enforces_access", declared)
        object.__setattr__(self, "counts_spending", bool(settings.tiers or settings.budgets))

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
        catalog=Catalog(settings.budgets, models, _aliases(loaded.document)),
        digest=loaded.digest,
        version=version,
        loaded_at=now,
    )


def _aliases(document: Mapping[str, Any]) -> dict[str, str]:
    """Other names of model groups in `router_settings`: alias -> group. LiteLLM also takes `{model, hidden}`."""
    section: object = document.get("router_settings")
    given: object = (
        cast("Mapping[str, object]", section).get("model_group_alias") if isinstance(section, dict) else None
    )
    found: dict[str, str] = {}
    for alias, target in cast("dict[str, object]", given).items() if isinstance(given, dict) else ():
        group = cast("Mapping[str, object]", target).get("model") if isinstance(target, dict) else target
        if isinstance(group, str):
            found[str(alias)] = group
    return found
