"""The worked custom strategy: it learns what pays, and does not claim what it has not learned."""

import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from core.settings.models import Routing
from core.store import Feedback, Giver, open_store
from core.usage import UsageEvent
from custom_router.strategies import Strategies, strategy_findings

FOLDER = Path(__file__).parents[2] / "examples" / "learned_router"
MODULES = ("learned_router", "train", "export")
PRICE = {"large": 0.01, "small": 0.001}
COST_WEIGHT = 20


@pytest.fixture(autouse=True)
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(FOLDER)
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


def asked(chance: random.Random) -> dict[str, Any]:
    return {
        "task_type": chance.choice(["coding", "chat", None]),
        "user_tier": chance.choice(["free", "premium"]),
        "input_tokens": int(chance.lognormvariate(6, 1.2)),
        "hour": chance.randrange(24),
        "has_tools": chance.random() < 0.2,
        "stream": chance.random() < 0.5,
    }


def good(context: dict[str, Any], model: str) -> float:
    """The chance of a good rating: only with long code and tools does the large model pay."""
    if model == "large":
        return 0.8
    hard = context["task_type"] == "coding" and context["input_tokens"] > 400
    return 0.25 if hard or context["has_tools"] else 0.75


def worth(context: dict[str, Any], model: str) -> float:
    return good(context, model) - COST_WEIGHT * PRICE[model]


def indifferent(_: dict[str, Any], model: str) -> float:
    """No request is worth another model than the next one is."""
    return 0.5 + COST_WEIGHT * PRICE[model]


def collected(count: int, seed: int = 1, rated: Any = good, large: float = 0.5) -> list[str]:
    """What `export.py` writes while requests are dealt out by weight."""
    chance = random.Random(seed)
    lines: list[str] = []
    for _ in range(count):
        context = asked(chance)
        model = "large" if chance.random() < large else "small"
        rating = int(chance.random() < rated(context, model))
        lines.append(json.dumps({"context": context, "model": model, "rating": rating, "cost": PRICE[model]}))
    return lines


def test_it_chooses_better_than_any_fixed_choice() -> None:
    import train

    learned = train.learn(train.read(collected(4000), COST_WEIGHT))
    chance = random.Random(2)
    contexts = [asked(chance) for _ in range(2000)]
    choices = [learned.best(train.features_of(context), ["large", "small"]) for context in contexts]
    won = sum(worth(context, choice) for context, choice in zip(contexts, choices, strict=True)) / len(contexts)
    best_fixed = max(sum(worth(context, model) for context in contexts) / len(contexts) for model in PRICE)
    best = sum(max(worth(context, model) for model in PRICE) for context in contexts) / len(contexts)
    assert won > best_fixed + 0.8 * (best - best_fixed)


@pytest.mark.parametrize("large", [0.5, 0.2])
def test_the_evaluation_tells_the_true_gain_without_trying_it(large: float) -> None:
    import train

    rows = train.read(collected(4000, large=large), COST_WEIGHT)
    found = train.evaluate(rows)
    chance = random.Random(3)
    contexts = [asked(chance) for _ in range(4000)]
    learned = train.learn(rows)
    true = {model: sum(worth(context, model) for context in contexts) / 4000 for model in PRICE}
    chosen = [worth(context, learned.best(train.features_of(context), list(PRICE))) for context in contexts]
    assert found.better
    assert found.values["large"].low < true["large"] < found.values["large"].high
    assert found.values["small"].low < true["small"] < found.values["small"].high
    assert found.learned.mean == pytest.approx(sum(chosen) / 4000, abs=2 * found.learned.margin)


def test_where_there_is_nothing_to_gain_it_says_so() -> None:
    import train

    claims = 0
    for seed in range(8):
        found = train.evaluate(train.read(collected(600, seed, indifferent), COST_WEIGHT))
        claims += found.better
    assert claims <= 1
    assert "not shown to be better" in train.told(found)


def test_a_model_that_half_the_data_never_saw_cannot_be_judged() -> None:
    import train

    lines = collected(200, large=0.0)
    lines.append(json.dumps({"context": {}, "model": "large", "rating": 1, "cost": 0}))
    with pytest.raises(ValueError, match="too few requests with large"):
        train.evaluate(train.read(lines, 0))


def test_the_command_trains_and_its_model_routes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import train

    data, model = tmp_path / "feedback.jsonl", tmp_path / "model.json"
    data.write_text("\n".join(collected(2000)))
    done = CliRunner().invoke(train.main, [str(data), "--model", str(model), "--cost-weight", str(COST_WEIGHT)])
    assert done.exit_code == 0, done.output
    assert "better" in done.output
    monkeypatch.setenv("LEARNED_ROUTER_MODEL", str(model))
    assert strategy_findings(Routing(strategies={"learned": "learned_router.LearnedRouter"})) == []


async def test_the_proxy_asks_it_as_a_strategy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import train

    train.learn(train.read(collected(2000), COST_WEIGHT), epsilon=0.1).save(tmp_path / "model.json")
    monkeypatch.setenv("LEARNED_ROUTER_MODEL", str(tmp_path / "model.json"))
    own = Strategies({"learned": "learned_router.LearnedRouter"}, 1.0)

    async def chosen(models: list[str], **context: Any) -> Counter[str | None]:
        return Counter([(await own.choose("learned", context, models)).model for _ in range(400)])

    hard = await chosen(["small", "large"], task_type="coding", input_tokens=5000, user_tier="free", hour=9)
    easy = await chosen(["large", "small"], task_type="chat", input_tokens=40, user_tier="free", hour=9)
    assert hard["large"] > 350
    assert easy["small"] > 350
    assert 5 < hard["small"] < 40, "and some of them go elsewhere, to learn from"
    assert (await chosen(["new", "newer"], task_type="chat"))["new"] > 350, "what it knows nothing about is left as is"


def test_without_a_model_the_check_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEARNED_ROUTER_MODEL", str(tmp_path / "nowhere.json"))
    (finding,) = strategy_findings(Routing(strategies={"learned": "learned_router.LearnedRouter"}))
    assert "nowhere.json" in finding.message


async def test_what_is_exported_says_what_a_request_was_like_and_not_whose(tmp_path: Path) -> None:
    import export

    store = open_store(f"sqlite:///{tmp_path}/store.db")
    await store.upgrade()
    event = UsageEvent(
        "r1",
        1_700_000_000_000,
        "chat_completions",
        200,
        user_id="ada",
        key_hash="k",
        session_id="s",
        tier="premium",
        task_type="coding",
        policy="smart",
        used_model="large",
        cost_nano=4_000_000,
        streamed=True,
        traits='{"t":900,"n":["tools"],"m":{"app":"secret project"}}',
    )
    others = [("r2", {"cache": "hit"}), ("r3", {"fallbacks": 1}), ("r4", {"policy": "other"}), ("r5", {"status": 500})]
    try:
        every = [event, *(replace(event, request_id=request_id, **change) for request_id, change in others)]
        await store.usage.write(every)
        given = [Feedback(one.request_id, "rating", 0.5) for one in every]
        await store.feedback.give(Giver(key_hash="k"), given)
        found = [row async for row in export.rows(store, "smart", "rating", 0)]
    finally:
        await store.close()
    assert [(row["model"], row["rating"], row["cost"]) for row in found] == [("large", 0.5, 0.004)]
    context = found[0]["context"]
    assert (context["input_tokens"], context["has_tools"], context["user_tier"]) == (900, True, "premium")
    assert not any(word in json.dumps(found) for word in ("ada", "secret project"))
