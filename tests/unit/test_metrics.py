"""Metrics: what they are called, what they count, what is never in them, and how workers tell each other."""

import asyncio
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from core.usage import Attempt, UsageEvent
from plugins.metrics.catalog import CATALOG, PREFIX, Kind, Reading
from plugins.metrics.exposition import exposition
from plugins.metrics.peers import Peers
from plugins.metrics.traffic import BOUNDS_MS, Spread, Traffic

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("smart", "small", "large", "openai/*")
WHO = {"key_hash": "0f" * 32, "key_alias": "adas-laptop", "user_id": "ada", "team_id": "research", "session_id": "s-1"}


def event(model: str = "small", status: int = 200, *attempts: Attempt, **more: object) -> UsageEvent:
    return UsageEvent(
        "r",
        0,
        "chat_completions",
        status,
        used_model=model,
        attempts=[*attempts],
        **{**WHO, **more},  # type: ignore[arg-type]
    )


def attempt(model: str = "small", status: int = 200, cost: int = 0, tokens: tuple[int, int] = (0, 0)) -> Attempt:
    return Attempt(1, model, status=status, cost_nano=cost, input_tokens=tokens[0], output_tokens=tokens[1])


def of(traffic: Traffic) -> Iterator[Reading]:
    for name, table in (("requests_total", traffic.requests), ("attempts_total", traffic.attempts)):
        for by, number in table.items():
            yield name, by, number
    for code, number in traffic.refused.items():
        yield "requests_refused_total", (code,), number
    for model, spread in traffic.durations.items():
        yield "request_duration_seconds", (model,), spread


def parsed(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name.removeprefix(PREFIX), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_names_say_their_unit_and_labels_are_few_and_about_nobody():
    names = [metric.name for metric in CATALOG]
    assert len(set(names)) == len(names)
    for metric in CATALOG:
        assert re.fullmatch(r"[a-z][a-z_]+[a-z]", metric.name)
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER), metric.name
        assert not re.search(r"_(ms|milliseconds|nano|usd|kb|mb|percent)\b", metric.name)
        assert set(metric.labels).isdisjoint({"user", "key", "team", "session", "worker", "tier", "group"})
        assert len(metric.labels) <= 4


def test_the_page_has_exactly_what_is_served():
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \| ([^|]+) \|$", (ROOT / "docs/metrics.md").read_text(), re.M)
    told = [(name, kind, re.findall(r"`(\w+)`", labels), text) for name, kind, labels, text in rows]
    assert told == [(PREFIX + one.name, one.kind.value, list(one.labels), one.text) for one in CATALOG]


def test_whatever_clients_ask_for_only_names_of_the_configuration_are_told():
    traffic = Traffic(lambda: NAMES)
    for number in range(3000):
        traffic.count(event(f"made-up-{number}", 400))
        traffic.count(event(f"openai/gpt-{number}", 200, attempt(f"openai/gpt-{number}", cost=1)))
    traffic.count(event("small"))
    assert {model for _, model, _, _ in traffic.requests} == {"other", "openai/*", "small"}
    assert traffic.cost_nano == {"openai/*": 3000}
    assert len(traffic._labels) <= 1000


def test_a_model_that_is_configured_later_gets_its_name_then():
    names = ["small"]
    traffic = Traffic(lambda: names)
    assert traffic.label("new") == "other"
    names.append("new")
    assert traffic.label("new") == "new"


def test_a_request_counts_once_and_each_of_its_attempts_where_it_went():
    traffic = Traffic(lambda: NAMES)
    tries = attempt("large", 503), attempt("small", 200, cost=7, tokens=(4, 8))
    traffic.count(event("small", 200, *tries, latency_ms=100, first_token_ms=40))
    assert traffic.requests == {("chat_completions", "small", "2xx", "none"): 1}
    assert traffic.attempts == {("large", "5xx"): 1, ("small", "2xx"): 1}
    assert traffic.tokens == {("small", "input"): 4, ("small", "output"): 8}
    assert traffic.cost_nano == {"large": 0, "small": 7}
    assert traffic.durations["small"].total_ms == 100
    assert traffic.first_tokens["small"].counts[0] == 1


def test_only_what_a_model_answered_in_full_is_timed():
    traffic = Traffic(lambda: NAMES)
    traffic.count(event(cache="hit", latency_ms=1))
    traffic.count(event("small", 503, attempt(status=503), latency_ms=9000, error_class="AllModelsFailed"))
    traffic.count(event("small", 200, attempt(status=503), degraded=True, latency_ms=9000))
    traffic.count(event("small", 200, attempt(), disconnected=True, latency_ms=9000))
    assert traffic.durations == {}
    assert traffic.refused == {"all_models_failed": 1}
    assert traffic.requests["chat_completions", "small", "2xx", "hit"] == 1


def test_a_histogram_has_each_answer_in_every_bucket_from_its_own_on():
    spread = Spread()
    for ms in (50, 51, 300_000, 300_001):
        spread.add(ms)
    found = parsed(exposition({"1": [("request_duration_seconds", ("small",), spread)]}, []))
    here = {"model": "small", "worker": "1"}

    def bucket(le: str) -> float:
        return found["request_duration_seconds_bucket", frozenset({**here, "le": le}.items())]

    assert [bucket("0.05"), bucket("0.1"), bucket("300.0"), bucket("+Inf")] == [1, 2, 3, 4]
    assert found["request_duration_seconds_count", frozenset(here.items())] == 4
    assert found["request_duration_seconds_sum", frozenset(here.items())] == pytest.approx(600.102)
    assert len([name for name, _ in found if name.endswith("_bucket")]) == len(BOUNDS_MS) + 1


def test_nobody_who_asked_is_in_what_is_served():
    traffic = Traffic(lambda: NAMES)
    traffic.count(event("sk-pasted-into-the-model", 400, attempt("small"), error_class="sk-in-an-error"))
    text = exposition({"1": of(traffic)}, []).decode()
    assert 'model="other"' in text
    assert "sk-" not in text
    assert not [value for value in WHO.values() if value in text]


def test_a_name_that_looks_like_the_format_stays_a_label():
    name = 'x"} 1\nllm_orchestration_workers 99\n\\'
    found = parsed(exposition({"1": [("rule_hits_total", (name,), 3)]}, [("workers", (), 1)]))
    assert found["workers", frozenset()] == 1
    assert 3 in found.values()


def test_prometheus_client_is_loaded_by_whoever_scrapes_alone():
    for path in (ROOT / "plugins").rglob("*.py"):
        assert not re.search(r"^(from|import) prometheus_client", path.read_text(), re.M), path


async def test_workers_of_a_machine_tell_each_other_and_the_dead_are_cleared_away(tmp_path: Path):
    told: list[Reading] = [("retries_total", (), 3), ("request_duration_seconds", ("small",), Spread([1] * 14, 5))]
    one, other = Peers(tmp_path / "m", "1", list), Peers(tmp_path / "m", "2", lambda: told)
    tasks = [asyncio.create_task(peers.run()) for peers in (one, other)]
    try:
        async with asyncio.timeout(5):
            while len([*(tmp_path / "m").glob("*.sock")]) < 2:
                await asyncio.sleep(0)
        assert await one.ask() == {"2": told}
        assert await other.ask() == {"1": []}
        host = next((tmp_path / "m").glob("*-1.sock")).name.partition("-")[0]
        dead, young = tmp_path / "m" / f"{host}-8.sock", tmp_path / "m" / f"{host}-9.sock"
        for path in (dead, young):
            _abandoned(path)
        os.utime(dead, (time.time() - 3600, time.time() - 3600))
        assert await one.ask() == {"2": told}
        assert not dead.exists()
        assert young.exists()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [young.name]


def _abandoned(path: Path) -> None:
    """A socket whose process was killed."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


async def test_where_no_socket_can_be_made_a_worker_answers_for_itself(tmp_path: Path):
    peers = Peers(tmp_path / ("long" * 40), "1", list)
    await peers.run()
    assert await peers.ask() == {}
