"""Which model groups a tier permits."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Protocol


class _Tier(Protocol):
    @property
    def models(self) -> Iterable[str]: ...


class TierAccess:
    """Answers whether tiers permit a model group, remembering each answer: there are few tiers and few groups."""

    def __init__(self, tiers: Mapping[str, _Tier]) -> None:
        self._patterns = {name: tuple(tier.models) for name, tier in tiers.items()}
        self._answers: dict[tuple[str, str], bool] = {}

    def permits(self, tiers: Iterable[str], model: str) -> bool:
        """True if every one of `tiers` permits `model`; no tier at all permits everything, an unknown one nothing."""
        return all(self._permits(tier, model) for tier in tiers)

    def narrower(self, one: str, other: str, models: Iterable[str]) -> bool:
        """True if `one` permits nothing among `models` that `other` does not."""
        return all(self._permits(other, model) for model in models if self._permits(one, model))

    def _permits(self, tier: str, model: str) -> bool:
        key = (tier, model)
        answer = self._answers.get(key)
        if answer is None:
            patterns = self._patterns.get(tier, ())
            answer = any(fnmatchcase(model, pattern) for pattern in patterns)
            if len(self._answers) < _MOST_ANSWERS:
                self._answers[key] = answer
        return answer


_MOST_ANSWERS = 10_000
"""Model names come from requests, so what is remembered about them is bounded."""
