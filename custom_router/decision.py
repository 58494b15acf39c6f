"""What routing decided about one request, and why."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from custom_router.experiments.assignment import Assigned


class Assignment(NamedTuple):
    """A unit and its variant in an experiment. Forced ones are not counted. A unit whose arm is closed, and everybody
    who gets a promoted variant, are in no experiment."""

    experiment: str
    variant: str
    unit: str
    counted: bool = True


@dataclass(frozen=True, slots=True)
class Step:
    """What one stage did, in the order of the stages: what it removed and what it moved to the front, with the
    reason."""

    stage: str
    removed: tuple[tuple[str, str], ...] = ()
    promoted: tuple[str, ...] = ()
    why: str = ""


NOTHING: Mapping[str, Any] = MappingProxyType({})


class Plan(NamedTuple):
    """`candidates` in the order in which they are tried; `left_out` names the others with the reason.

    `policy` is the policy that was asked for, None where a model group was; `grants` says whether a key that lists the
    policy by name may use its candidates. `denied` is the message of the rule `denied_by` that refuses the request.
    `set` are fields of the request that rules and variants set. `strategy` is a custom strategy that has
    yet to say which of the candidates `tied` comes first. Only deployments in `regions` may serve, where any are named.
    `incapable`: a group that might be used cannot serve such a request.
    `steps` is filled where it was asked for.
    """

    policy: str | None
    candidates: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    grants: bool = False
    denied: str | None = None
    denied_by: str | None = None
    rules: tuple[str, ...] = ()
    assigned: tuple[Assigned, ...] = ()
    set: Mapping[str, Any] = NOTHING
    system_prefix: str | None = None
    strategy: str | None = None
    tied: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    incapable: bool = False
    reason: str = ""
    steps: tuple[Step, ...] = ()

    @property
    def assignments(self) -> tuple[Assignment, ...]:
        """The units and their variants, for the books."""
        return tuple([Assignment(arm.experiment, arm.of, unit, arm.counted) for arm, unit in self.assigned])

    @property
    def variants(self) -> str:
        """`experiment/variant` of each assignment, separated by commas."""
        return ",".join([f"{arm.experiment}/{arm.of}" for arm, _ in self.assigned])
