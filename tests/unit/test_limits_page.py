"""The page on limits shows what happens with its own configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.context import Caller
from core.errors import RateLimited
from core.settings import load
from plugins.limits import Gate, Limiter
from plugins.limits.memory import MemoryCounters
from tests.support.clock import Clock
from tests.support.transcript import blocks
from tests.unit.limits_cases import arriving, request

PAGE = Path(__file__).resolve().parents[2] / "docs" / "limits.md"
EVE = Caller(key_hash="k", user_id="eve", tier="free", tiers=("free",))


@pytest.fixture
def limits(tmp_path: Path, clock: Clock) -> Limiter:
    file = tmp_path / "config.yaml"
    file.write_text(blocks(PAGE, "yaml")[0])
    settings = load(file, {}).settings
    return Limiter(MemoryCounters(clock), settings, {"nightly": settings.keys[0]})


async def test_the_headers_and_the_refusal_are_those_of_the_page(limits: Limiter) -> None:
    (headers,) = blocks(PAGE, "text")
    (refusal,) = blocks(PAGE, "json")
    admission = await limits.enter(request(EVE))
    assert "".join(f"{name}: {value}\n" for name, value in admission.headers().items()) == headers
    admission.done()
    for _ in range(19):
        (await limits.enter(request(EVE))).done()
    with pytest.raises(RateLimited) as found:
        await limits.enter(request(EVE))
    assert {"error": found.value.body()} == json.loads(refusal)


async def test_every_limit_of_the_page_is_in_force(limits: Limiter, clock: Clock) -> None:
    nightly = Caller(key_hash="nightly", user_id="nightly", tier="premium", tiers=("premium",))
    ada = Caller(key_hash="k2", user_id="ada", tier="premium", tiers=("premium",))
    for caller, expected in ((nightly, {600, 2}), (ada, {600, 100_000}), (EVE, {20, 20_000, 4})):
        assert {quota.most for quota, _ in await limits.standing(caller)} == expected
    for _ in range(1200):
        await limits.arrive(arriving("10.0.0.1", x_forwarded_for="203.0.113.7"))
    with pytest.raises(RateLimited):
        await limits.arrive(arriving("10.0.0.2", x_forwarded_for="203.0.113.7"))


def test_the_queue_is_made_from_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(blocks(PAGE, "yaml")[0])
    limits = load(file, {}).settings.limits
    gate = Gate(limits.max_concurrent_requests, limits.places_to_wait, limits.queue_timeout)
    assert (gate.most, gate.queue_size, gate.queue_timeout) == (500, 1000, 10)
