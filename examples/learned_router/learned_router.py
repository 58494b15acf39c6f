"""A custom strategy that has learned from feedback which model is worth it for which request.

One linear model for each candidate says what reward a request would have with it: the rating that it would get, less
what it costs. The best one is chosen; a small share of requests goes to any, so that there is always something to
learn from. What it looks at are features of the request; its text is not among them.
"""

import json
import math
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

WHERE = "LEARNED_ROUTER_MODEL"
"""The environment variable that names the file with what was learned; default: `model.json` beside this one."""

Features = Mapping[str, float]

_FLAGS = ("has_images", "has_audio", "has_documents", "has_tools", "wants_json", "stream")
_RIDGE = 1.0


def features_of(context: Mapping[str, Any]) -> dict[str, float]:
    """What a linear model sees of a request: `context` is what conditions of rules see.

    Task and tier are one feature for each value, the length counts by its logarithm, for each task by itself; the hour
    is a point on the clock's face. A value that training never saw has no weight, and so changes nothing.
    """
    length = math.log1p(context.get("input_tokens") or 0) / 10
    hour = (context.get("hour") or 0) * math.tau / 24
    found = {"always": 1.0, "length": length, "hour sin": math.sin(hour), "hour cos": math.cos(hour)}
    task, tier = context.get("task_type"), context.get("user_tier")
    found[f"task {task}"] = 1.0
    found[f"task {task} length"] = length
    found[f"tier {tier}"] = 1.0
    for flag in _FLAGS:
        if context.get(flag):
            found[flag] = 1.0
    return found


@dataclass(frozen=True)
class Learned:
    """For each model the weights of its features, and of how many requests they were learned."""

    weights: Mapping[str, Mapping[str, float]]
    requests: Mapping[str, int]
    epsilon: float = 0.05
    about: Mapping[str, Any] = field(default_factory=dict)

    def reward(self, model: str, features: Features) -> float:
        """What a request is expected to be worth with a model that it was trained on."""
        weights = self.weights[model]
        return sum(weights.get(name, 0.0) * value for name, value in features.items())

    def best(self, features: Features, models: Sequence[str]) -> str:
        """The one of `models` with the highest expected reward; the first where none of them is known."""
        known = [model for model in models if model in self.weights]
        return max(known, key=lambda model: self.reward(model, features), default=models[0])

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        return cls(**json.loads(path.read_text()))


def fitted(examples: Sequence[tuple[str, Features, float]], *, epsilon: float = 0.05, **about: Any) -> Learned:
    """Learn from examples of (model, features, reward): ridge regression for each model."""
    weights: dict[str, dict[str, float]] = {}
    requests: dict[str, int] = {}
    for model in sorted({model for model, _, _ in examples}):
        own = [(features, reward) for chosen, features, reward in examples if chosen == model]
        weights[model], requests[model] = _ridge(own), len(own)
    return Learned(weights, requests, epsilon, about)


def _ridge(examples: Sequence[tuple[Features, float]]) -> dict[str, float]:
    """w = (X'X + λI)⁻¹ X'y. Features are few, so the sums are kept and the equations solved as they stand."""
    names = sorted({name for features, _ in examples for name in features})
    place = {name: at for at, name in enumerate(names)}
    size = len(names)
    square = [[_RIDGE if row == column else 0.0 for column in range(size)] for row in range(size)]
    right = [0.0] * size
    for features, reward in examples:
        present = [(place[name], value) for name, value in features.items()]
        for row, value in present:
            right[row] += value * reward
            into = square[row]
            for column, other in present:
                into[column] += value * other
    return dict(zip(names, _solved(square, right), strict=True))


def _solved(square: list[list[float]], right: list[float]) -> list[float]:
    """Gaussian elimination; what is on the diagonal is positive, since λ was added to it."""
    size = len(right)
    for pivot in range(size):
        top = square[pivot]
        for row in range(pivot + 1, size):
            factor = square[row][pivot] / top[pivot]
            if factor:
                into = square[row]
                for column in range(pivot, size):
                    into[column] -= factor * top[column]
                right[row] -= factor * right[pivot]
    solution = [0.0] * size
    for row in reversed(range(size)):
        known = sum(square[row][column] * solution[column] for column in range(row + 1, size))
        solution[row] = (right[row] - known) / square[row][row]
    return solution


class LearnedRouter:
    """What `routing.strategies` names. The file is read once, when the configuration is loaded."""

    def __init__(self) -> None:
        default = Path(__file__).with_name("model.json")
        self.learned = Learned.load(Path(os.environ.get(WHERE, default)))
        self.chance = random.Random()  # noqa: S311 - no secret depends on it

    async def select_model(self, context: dict[str, Any], models: list[str]) -> str:
        if self.chance.random() < self.learned.epsilon:
            return self.chance.choice(models)
        return self.learned.best(features_of(context), models)
