"""How long answers are expected to be."""

import random

import pytest

from plugins.budgets.expected import ExpectedOutput


def seen(lengths: list[int], task: str | None = None, quantile: float = 0.99) -> ExpectedOutput:
    expected = ExpectedOutput(quantile, 2048)
    for length in lengths:
        expected.saw("large", task, length)
    return expected


def test_without_history_the_configured_length_is_expected() -> None:
    assert seen([]).limit("large", None) == 2048
    assert seen([100] * 19).limit("large", "chat") == 2048
    assert seen([100] * 50).limit("small", None) == 2048


def test_equal_answers_are_expected_to_stay_so_with_some_room() -> None:
    assert 102 <= seen([100] * 100).limit("large", None) <= 105
    assert 102 <= seen([100] * 3000).limit("large", None) <= 105


@pytest.mark.slow
@pytest.mark.parametrize("answers", [100, 1000, 10_000])
@pytest.mark.parametrize("spread", [0.1, 0.5, 1.0])
def test_hardly_any_answer_is_cut_short(answers: int, spread: float) -> None:
    chance = random.Random(answers)
    cut, tried = 0, 0
    for _ in range(20):
        expected = seen([int(chance.lognormvariate(5.5, spread)) for _ in range(answers)])
        limit = expected.limit("large", None)
        tried += 500
        cut += sum(chance.lognormvariate(5.5, spread) > limit for _ in range(500))
    assert cut / tried <= 0.01


def test_a_task_with_enough_answers_has_a_length_of_its_own() -> None:
    expected = seen([1000] * 50, "coding")
    for _ in range(50):
        expected.saw("large", "chat", 50)
    assert expected.limit("large", "chat") < 100
    assert expected.limit("large", "coding") > 1000
    assert expected.limit("large", "translation") > 1000, "unknown: as long as any of the model's"


def test_answers_that_we_cut_make_the_limit_grow() -> None:
    expected = seen([100] * 100)
    before = expected.limit("large", None)
    for _ in range(10):
        expected.saw("large", None, before, cut=True)
    assert expected.limit("large", None) > 1.9 * before


def test_what_models_did_long_ago_is_forgotten() -> None:
    expected = seen([4000] * 5000)
    for _ in range(60_000):
        expected.saw("large", None, 100)
    assert expected.limit("large", None) < 110


def test_task_types_of_clients_do_not_fill_the_memory() -> None:
    expected = ExpectedOutput(0.99, 2048)
    for number in range(10_000):
        expected.saw("large", f"task{number}", 100)
    assert len(expected._lengths) <= 2049
    assert expected.limit("large", "task9999") < 200
