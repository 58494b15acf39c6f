"""Our hash, ranges and namespaces are GrowthBook's, in recorded cases and against its SDK.

The recorded cases hold units where they are when the SDK changes. They have the form of the cases.json that GrowthBook
publishes with its SDKs; `GROWTHBOOK_CASES=path/to/cases.json` runs those instead, as far as they are about assignment.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from growthbook.core import gbhash, inNamespace
from hypothesis import given, settings
from hypothesis import strategies as st

from custom_router.experiments.allocation import first_ranges, variants_in
from custom_router.experiments.hashing import BUCKETS, Seeds, fnv1a32, namespace_hash, unit_draw, unit_hash

RECORDED = Path(__file__).parents[1] / "support" / "growthbook_cases.json"
CASES: dict[str, list[Any]] = json.loads(Path(os.environ.get("GROWTHBOOK_CASES", RECORDED)).read_text())

texts = st.text(st.characters(exclude_categories=()), max_size=40)
"""Halves of surrogate pairs too: JSON can smuggle them in."""


def named(cases: list[Any]) -> list[Any]:
    return [pytest.param(*case[1:], id=case[0]) for case in cases]


def test_a_unit_has_growthbooks_hash() -> None:
    for seed, unit, version, expected in CASES["hash"]:
        if version == 2:
            assert unit_hash(seed, unit) == expected, (seed, unit)
        elif version == 1 and seed.startswith("__"):
            assert namespace_hash(seed[2:], fnv1a32(unit)) / 1000 == expected, (seed, unit)


@pytest.mark.parametrize(("arguments", "expected"), named(CASES["getBucketRange"]))
def test_an_experiment_starts_with_growthbooks_ranges(arguments: list[Any], expected: list[list[float]]) -> None:
    count, coverage, weights = arguments
    weights = weights or [1.0] * count
    # GrowthBook makes weights equal that do not add up, and cuts the ends off ranges for coverage; we do neither.
    if coverage != 1 or len(weights) != count or (sum(weights) != 1 and len(set(weights)) > 1):
        pytest.skip("is not about full ranges")
    ours = first_ranges({str(variant): weight for variant, weight in enumerate(weights)})
    theirs = [[math.ceil(round(edge * BUCKETS, 6)) for edge in ends] for ends in expected]
    assert [list(*ranges) for _, ranges in ours] == [ends if ends[0] < ends[1] else [] for ends in theirs]


@pytest.mark.parametrize(("place", "ranges", "expected"), named(CASES["chooseVariation"]))
def test_a_bucket_has_growthbooks_variant(place: float, ranges: list[list[float]], expected: int) -> None:
    if [low for low, _ in ranges] != [0, *(high for _, high in ranges[:-1])]:
        pytest.skip("is not about full ranges")
    edges = [[math.ceil(round(edge * BUCKETS, 6)) for edge in ends] for ends in ranges]
    buckets = variants_in(tuple((str(index), ((low, high),) * (low < high)) for index, (low, high) in enumerate(edges)))
    assert buckets.owner(round(place * BUCKETS)) == str(expected)


def test_a_unit_is_in_growthbooks_part_of_a_namespace() -> None:
    for name, unit, (namespace, low, high), expected in CASES["inNamespace"]:
        assert (low <= namespace_hash(namespace, fnv1a32(unit)) / 1000 < high) is expected, name


@given(st.lists(texts, min_size=1, max_size=25), texts)
@settings(max_examples=80, deadline=None)
def test_many_seeds_at_once_give_what_the_sdk_gives_one_by_one(seeds: list[str], unit: str) -> None:
    ours = [draw % BUCKETS / BUCKETS for draw in Seeds(seeds).draws(unit)[0]]
    assert ours == [gbhash(seed, unit, 2) for seed in seeds] == [unit_hash(seed, unit) for seed in seeds]


def test_short_states_are_hashed_without_zeros_in_front() -> None:
    units = [f"user-{number}" for number in range(150_000)]
    seeds = Seeds(["large-vs-small"])
    short = [unit for unit in units if fnv1a32(unit, fnv1a32("large-vs-small")) < 1_000_000]
    assert len(short) > 20
    assert [seeds.draws(unit)[0][0] for unit in short] == [unit_draw("large-vs-small", unit) for unit in short]


@given(texts, texts, st.integers(0, 999), st.integers(1, 1000))
@settings(max_examples=80, deadline=None)
def test_namespaces_are_the_sdks(namespace: str, unit: str, low: int, high: int) -> None:
    ours = low <= namespace_hash(namespace, fnv1a32(unit)) < high
    assert ours == inNamespace(unit, (namespace, low / 1000, high / 1000))
