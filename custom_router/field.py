"""A policy's candidates as they stand for every request of the same tiers and needs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import NamedTuple

from core.access import TierAccess
from core.context import Need
from core.settings.models import Policy
from custom_router.candidates import Candidate, Choice
from custom_router.rules import CompiledRule

_FOR = 1.0
"""Models may change at any time, by an edit or because LiteLLM learns of prices."""
_MOST = 1000
"""Combinations of policies, tiers and needs; tiers come from keys, needs from requests."""
_RULES = 256
"""Combinations of rules that a field remembers what they leave of it."""


class Standing(NamedTuple):
    """Which candidates may serve a request; the others with the reason; which of those for want of permission."""

    choice: Choice
    left_out: Sequence[tuple[str, str]]
    forbidden: frozenset[str]


_Narrowing = tuple[tuple[CompiledRule, ...], str | None]
"""The rules that take candidates away, and which one is kept all the same."""


@dataclass(frozen=True, slots=True)
class Field:
    """The groups that a policy's requests may come to. `standing` has those candidates of the policy that are permitted
    and capable; `barred` has of all others why they are not. `shortest` is the smallest context window among the
    candidates."""

    known: Mapping[str, Candidate]
    standing: Standing
    barred: Mapping[str, str]
    shortest: float
    _left: dict[_Narrowing, Standing] = field(default_factory=dict[_Narrowing, Standing])

    @property
    def names(self) -> tuple[str, ...]:
        """Of the candidates."""
        return self.standing.choice.names

    def holds(self, names: tuple[str, ...]) -> bool:
        """Whether all of these are among the candidates."""
        return all(name in self.names for name in names)

    def left_by(self, rules: Sequence[CompiledRule], kept: str | None) -> Standing:
        """What the rules leave of it. `kept`, which an experiment has chosen, is not left out by a rule that uses
        others; had one excluded it, it would not have been chosen."""
        key = tuple(rules), kept
        found = self._left.get(key)
        if found is None:
            if len(self._left) >= _RULES:
                self._left.clear()
            found = self._left[key] = self._left_by(rules, kept)
        return found

    def _left_by(self, rules: Sequence[CompiledRule], kept: str | None) -> Standing:
        choice, left_out, forbidden = self.standing
        taken: dict[str, str] = {}
        for rule in rules:
            for name in choice.names:
                if name not in taken and name != kept and (how := rule.takes(name)) is not None:
                    taken[name] = f"rule {rule.rule.id} {how}"
        return Standing(choice.without(taken), (*left_out, *taken.items()), forbidden | taken.keys())


class Fields:
    """The fields of one configuration, each worked out at most once a second."""

    def __init__(self, access: TierAccess, candidate_of: Callable[[str], Candidate]) -> None:
        self._access = access
        self._candidate_of = candidate_of
        self._known: dict[tuple[str, tuple[str, ...], frozenset[Need]], Field] = {}
        self._since = 0.0

    def of(
        self,
        asked: str,
        policy: Policy,
        groups: tuple[str, ...],
        tiers: tuple[str, ...],
        tier: str | None,
        needs: frozenset[Need],
    ) -> Field:
        """`groups` are all that a request for the policy `asked` may come to; `tier` is the one that reasons name."""
        known, now = self._known, monotonic()
        if now - self._since >= _FOR or len(known) >= _MOST:
            known.clear()
            self._since = now
        key = asked, tiers, needs
        found = known.get(key)
        if found is None:
            found = known[key] = self._worked_out(policy, groups, tiers, tier, needs)
        return found

    def _worked_out(
        self, policy: Policy, groups: tuple[str, ...], tiers: tuple[str, ...], tier: str | None, needs: frozenset[Need]
    ) -> Field:
        known = {name: self._candidate_of(name) for name in groups}
        forbidden = frozenset(name for name in groups if not self._access.permits(tiers, name))
        barred = dict.fromkeys(forbidden, f"tier {tier} does not permit it")
        for name, candidate in known.items():
            if name not in forbidden and (reason := incapable(candidate, policy, needs)) is not None:
                barred[name] = reason
        candidates = [known[name] for name in policy.candidates if name not in barred]
        left_out = tuple((name, barred[name]) for name in policy.candidates if name in barred)
        windows = [one.context_window for one in candidates if one.context_window is not None]
        return Field(
            known=known,
            standing=Standing(Choice(candidates), left_out, forbidden),
            barred=barred,
            shortest=min(windows, default=float("inf")),
        )


def incapable(candidate: Candidate, policy: Policy, needs: frozenset[Need]) -> str | None:
    """Why a group cannot serve a policy's requests with such needs, None where it can."""
    if policy.regions and candidate.regions.isdisjoint(policy.regions):
        return f"none of its deployments is in {', '.join(policy.regions)}"
    if needs and not candidate.lacks.isdisjoint(needs):
        return f"it does not take {', '.join(sorted(candidate.lacks & needs))}"
    return None
