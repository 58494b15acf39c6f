"""Learn from exported feedback, and say on requests that were not learned from whether it is any good.

python train.py feedback.jsonl --model model.json --cost-weight 20
"""

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from learned_router import Features, Learned, features_of, fitted

Choice = Callable[[Features], str]


@dataclass(frozen=True)
class Logged:
    """A request whose answer was rated: which model answered, with which probability it had been chosen."""

    features: Features
    model: str
    propensity: float
    reward: float


@dataclass(frozen=True)
class Value:
    """The mean reward of a way to choose, with the half-width of its 95 % interval."""

    mean: float
    margin: float

    @property
    def low(self) -> float:
        return self.mean - self.margin

    @property
    def high(self) -> float:
        return self.mean + self.margin


def read(lines: Sequence[str], cost_weight: float) -> list[Logged]:
    """Exported rows. Where one has no propensity, the share of its model in all rows counts: that is right for
    requests that were dealt out by weight, whatever was in them, and wrong for anything else."""
    rows: list[Mapping[str, Any]] = [json.loads(line) for line in lines if line.strip()]
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["model"]] = counts.get(row["model"], 0) + 1
    return [
        Logged(
            features_of(row["context"]),
            row["model"],
            row.get("propensity") or counts[row["model"]] / len(rows),
            row["rating"] - cost_weight * row["cost"],
        )
        for row in rows
    ]


def learn(rows: Sequence[Logged], *, epsilon: float = 0.05, **about: Any) -> Learned:
    return fitted([(row.model, row.features, row.reward) for row in rows], epsilon=epsilon, **about)


def scores(choice: Choice, rows: Sequence[Logged], model: Learned) -> list[float]:
    """For each request an unbiased estimate of its reward had `choice` chosen: doubly robust (Dudík, Langford & Li,
    "Doubly robust policy evaluation and learning", 2011).

    The model's guess, corrected by what really happened where both chose the same, as many times as that is rarer than
    always. Right if the propensities are, however wrong the guess; `model` must not have learned from `rows`.
    """
    found: list[float] = []
    for row in rows:
        chosen = choice(row.features)
        score = model.reward(chosen, row.features)
        if chosen == row.model:
            score += (row.reward - model.reward(row.model, row.features)) / row.propensity
        found.append(score)
    return found


def value(of: Sequence[float]) -> Value:
    mean = sum(of) / len(of)
    variance = sum((one - mean) ** 2 for one in of) / max(len(of) - 1, 1)
    return Value(mean, 1.96 * math.sqrt(variance / len(of)))


@dataclass(frozen=True)
class Evaluation:
    """`values` of always the same model, by its name; `gain` of what was learned over the best of these, request by
    request."""

    learned: Value
    values: Mapping[str, Value]
    best_fixed: str
    gain: Value
    shares: Mapping[str, float]

    @property
    def better(self) -> bool:
        """Whether the whole interval of the gain is above zero."""
        return self.gain.low > 0


def evaluate(rows: Sequence[Logged], *, seed: int = 1) -> Evaluation:
    """Learn from one half and judge by the other, both ways round, so that every request is judged once and never by
    what was learned from it."""
    mixed = list(rows)
    random.Random(seed).shuffle(mixed)  # noqa: S311 - no secret depends on it
    halves = mixed[::2], mixed[1::2]
    models = sorted({row.model for row in rows})
    learned: list[float] = []
    fixed: dict[str, list[float]] = {model: [] for model in models}
    chosen = dict.fromkeys(models, 0)
    for train, test in (halves, halves[::-1]):
        model = learn(train)
        if missing := set(models) - set(model.weights):
            raise ValueError(f"too few requests with {', '.join(sorted(missing))} to judge by: collect more feedback")
        choices = [model.best(row.features, models) for row in test]
        for one in choices:
            chosen[one] += 1
        learned += scores(lambda features, model=model: model.best(features, models), test, model)
        for name in models:
            fixed[name] += scores(lambda _, name=name: name, test, model)
    values = {name: value(own) for name, own in fixed.items()}
    best = max(models, key=lambda name: values[name].mean)
    gain = value([one - other for one, other in zip(learned, fixed[best], strict=True)])
    return Evaluation(value(learned), values, best, gain, {name: count / len(rows) for name, count in chosen.items()})


def told(found: Evaluation) -> str:
    lines = [f"{'choice':<24}{'reward':>9}   95 % interval"]
    for name, one in (("learned", found.learned), *((f"always {name}", one) for name, one in found.values.items())):
        lines.append(f"{name:<24}{one.mean:>9.4f}   {one.low:.4f} to {one.high:.4f}")
    shares = ", ".join(f"{name} {share:.0%}" for name, share in found.shares.items())
    lines.append(f"learned chooses: {shares}")
    gain = f"{found.gain.mean:+.4f} ({found.gain.low:+.4f} to {found.gain.high:+.4f})"
    verdict = "better" if found.better else "not shown to be better: collect more feedback, or keep to the fixed choice"
    lines.append(f"learned against always {found.best_fixed}: {gain}, {verdict}")
    return "\n".join(lines)


@click.command()
@click.argument("data", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", type=click.Path(dir_okay=False, path_type=Path), help="Where to write what was learned.")
@click.option("--cost-weight", default=0.0, show_default=True, help="What a dollar is worth, in points of the rating.")
@click.option("--epsilon", default=0.05, show_default=True, help="Share of requests that go to any model.")
def main(data: Path, model: Path | None, cost_weight: float, epsilon: float) -> None:
    """Learn from DATA, which export.py has written; exit 1 where nothing is gained by it."""
    rows = read(data.read_text().splitlines(), cost_weight)
    try:
        found = evaluate(rows)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{len(rows)} rated requests")
    click.echo(told(found))
    if model is not None:
        learn(rows, epsilon=epsilon, cost_weight=cost_weight).save(model)
        click.echo(f"{model} is written; the proxy reads it when its configuration is loaded.")
    if not found.better:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
