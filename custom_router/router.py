"""From a request's context to the ranked list of model groups that may serve it, with the reason for each that may
not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from core.access import TierAccess
from core.context import RequestContext


class _Policy(Protocol):
    @property
    def candidates(self) -> Sequence[str]: ...
    @property
    def grants(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """`candidates` in the order in which they are tried; `left_out` names the others with the reason.

    `policy` is the policy that was asked for, None where a model group was; `grants` says whether a key that lists the
    policy by name may use its candidates.
    """

    policy: str | None
    candidates: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    grants: bool = False


def rank(context: RequestContext, policies: Mapping[str, _Policy], access: TierAccess) -> Plan:
    """The groups that may serve `context`, in the order their policy lists them; a name that is no policy stands for
    itself.

    Tiers are applied here; whether LiteLLM lets the key call a candidate is asked of LiteLLM afterwards.
    """
    policy = policies.get(context.asked_model)
    if policy is None:
        name, groups, grants = None, (context.asked_model,), False
    else:
        name, groups, grants = context.asked_model, tuple(policy.candidates), policy.grants
    tiers = context.caller.tiers
    allowed = tuple(group for group in groups if access.permits(tiers, group))
    left_out = tuple(
        (group, f"tier {context.caller.tier} does not permit it") for group in groups if group not in allowed
    )
    return Plan(name, allowed, left_out, grants)
