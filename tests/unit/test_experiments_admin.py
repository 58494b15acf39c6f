"""Experiments while they run: how their units are told apart, what is done about them, and what administrators do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import httpx
import pytest
import yaml
from click.testing import CliRunner, Result
from fastapi import FastAPI

from core.alerts import Alert
from core.audit import AuditRecord
from core.cli.experiments import command as experiments_command
from core.ids import first_request_id
from core.ledger import Ledger
from core.runtime import Runtime
from core.settings.models import AlertEvent, Experiment
from core.store import AuditQuery, Feedback, Giver, Store, open_store
from core.usage import UsageEvent
from custom_router.experiments.allocation import Ranges, buckets_moved, first_ranges, from_json, moved, to_json
from custom_router.experiments.hashing import BUCKETS
from custom_router.experiments.metrics import units_of
from plugins.admin.access import changer, reader
from plugins.admin.entries import entries_router
from plugins.admin.experiments import experiments_router
from plugins.routing.evidence import Closing, history_of, periods_of, timeline_of
from plugins.routing.experiments import CLOSED, Experiments, reopen, weights_of
from tests.support.clock import Clock
from tests.support.json_server import Answer, JsonServer, Request

MODELS = {"control": "large", "b": "small"}


def experiment(**more: Any) -> Experiment:
    described = {"id": "e", "policy": "smart", "status": "running", **more}
    described.setdefault("variants", [{"id": name, "model": model} for name, model in MODELS.items()])
    return Experiment.model_validate(described)


# -- which weights held when -----------------------------------------------------------------------------------------


class TestTimeline:
    EVEN = {"control": 5000, "b": 5000}  # noqa: RUF012

    def test_an_arm_has_no_weight_while_it_is_closed(self):
        found = timeline_of([(10, self.EVEN)], [Closing("b", 20, 30), Closing("b", 40, None)], "control")
        assert [(at, weights["b"]) for at, weights in found] == [(10, 5000), (20, 0), (30, 5000), (40, 0)]

    def test_weights_that_change_while_an_arm_is_closed_hold_for_the_others(self):
        uneven = {"control": 9000, "b": 1000}
        found = timeline_of([(10, self.EVEN), (25, uneven)], [Closing("b", 20, 30)], "control")
        assert found == (
            *((10, self.EVEN), (20, {"control": 5000, "b": 0})),
            *((25, {"control": 9000, "b": 0}), (30, uneven)),
        )

    def test_an_arm_that_was_closed_before_the_beginning_begins_closed(self):
        found = timeline_of([(10, self.EVEN)], [Closing("b", 3, 5), Closing("b", 7, None)], "control")
        assert found == ((10, {"control": 5000, "b": 0}),)

    def test_the_control_is_never_closed_and_equal_weights_are_one_period(self):
        found = timeline_of([(10, self.EVEN), (20, dict(self.EVEN))], [Closing("control", 15, None)], "control")
        assert found == ((10, self.EVEN),)


# -- a worker that looks after them ----------------------------------------------------------------------------------


class Worker:
    """The experiments of one worker, with a real store. Time is the test's."""

    def __init__(self, store: Store, clock: Clock, *running: Experiment) -> None:
        self.store, self.clock = store, clock
        self.alerts: list[Alert] = []
        self.audited: list[AuditRecord] = []
        self.told: list[str] = []
        self.number = 0
        routing = SimpleNamespace(experiments=running)
        self.runtime: Any = SimpleNamespace(
            clock=clock, settings=SimpleNamespace(routing=routing), note=self.note, signals=self
        )
        self.experiments = Experiments(self.runtime, self.alerts.append)

    async def note(self, record: AuditRecord) -> None:
        self.audited.append(record)
        await self.store.audit.append("here", [record])

    async def tell(self, kind: str, body: dict[str, Any]) -> bool:
        self.told.append(kind)
        return True

    async def look(self) -> None:
        await self.experiments.look(self.store)

    async def begin(self, of: Experiment) -> Ranges:
        ranges = first_ranges({variant.id: variant.weight for variant in of.variants})
        assert await self.store.allocations.put(of.id, of.seed or of.id, to_json(ranges), 0)
        return ranges

    async def units(self, variant: str, count: int, **fields: Any) -> None:
        """New units with a request each, that arrive now."""
        now_ms = int(self.clock() * 1000)
        events: list[UsageEvent] = []
        for _ in range(count):
            self.number += 1
            name = f"{first_request_id(now_ms)}-7000-8000-{self.number:012x}"
            values = {"used_model": MODELS[variant], "latency_ms": 300, "status": 200, **fields}
            values["assignments"] = (("e", variant, f"user-{self.number}"),)
            events.append(UsageEvent(name, now_ms, "chat_completions", **values))
        await self.store.usage.write(events)

    async def rated(self, variant: str, ratings: list[float]) -> None:
        """New units with a request and a rating each."""
        first = self.number + 1
        await self.units(variant, len(ratings))
        now_ms = int(self.clock() * 1000)
        names = [f"{first_request_id(now_ms)}-7000-8000-{number:012x}" for number in range(first, first + len(ratings))]
        given = [Feedback(name, "rating", rating) for name, rating in zip(names, ratings, strict=True)]
        await self.store.feedback.give(Giver(any_request=True), given)


FAILING = {"status": 500, "error_class": "InternalServerError"}


@pytest.fixture
async def timed(tmp_path: Path, clock: Clock) -> AsyncIterator[Store]:
    store = open_store(f"sqlite:///{tmp_path}/timed.db", clock)
    await store.upgrade()
    yield store
    await store.close()


class TestGuardrails:
    async def test_an_arm_that_fails_is_closed_once_and_everybody_is_told(self, timed: Store, clock: Clock):
        worker, other = (Worker(timed, clock, experiment()) for _ in range(2))
        await worker.begin(experiment())
        clock.advance(60)
        await worker.units("control", 60)
        await worker.units("b", 60, **FAILING)
        await worker.look()
        await other.look()
        assert list((await timed.allocations.closed())["e"]) == ["b"]
        [alert] = worker.alerts
        assert (alert.event, alert.details["variant"]) == (AlertEvent.EXPERIMENT_ARM_STOPPED, "b")
        assert "error_rate is 100.00%" in alert.message
        assert [(one.actor, one.action, one.subject) for one in worker.audited] == [
            ("guardrail", CLOSED, "experiments/e")
        ]
        assert (worker.told, other.alerts, other.told) == (["routing"], [], [])

    async def test_an_arm_whose_model_fails_is_closed_also_where_another_answers_for_it(
        self, timed: Store, clock: Clock
    ):
        worker = Worker(timed, clock, experiment())
        await worker.begin(experiment())
        await worker.units("control", 60)
        await worker.units("b", 60, used_model=MODELS["control"])
        await worker.look()
        assert "displaced is 100.00%" in (await timed.allocations.closed())["e"]["b"].reason

    @pytest.mark.parametrize(
        "more",
        [
            {"metrics": {"stop_arms": False}},
            {"metrics": {"guardrails": []}},
            {"status": "paused"},
            {"end": "2027-01-15T11:00:00Z"},
            {"start": "2027-01-16T11:00:00Z"},
        ],
    )
    async def test_none_is_closed_where_that_is_not_asked_for(self, timed: Store, clock: Clock, more: dict[str, Any]):
        worker = Worker(timed, clock, experiment(**more))
        await worker.begin(experiment())
        await worker.units("control", 60)
        await worker.units("b", 60, **FAILING)
        await worker.look()
        assert (await timed.allocations.closed(), worker.alerts) == ({}, [])

    async def test_a_reopened_arm_is_judged_by_what_came_since(self, timed: Store, clock: Clock):
        of = experiment()
        worker = Worker(timed, clock, of)
        await worker.begin(of)
        clock.advance(10)
        await worker.units("control", 60)
        await worker.units("b", 60, **FAILING)
        await worker.look()
        clock.advance(60)
        assert await reopen(worker.runtime, timed, "e", "b", "ada")
        assert not await reopen(worker.runtime, timed, "e", "b", "ada")
        clock.advance(60)
        await worker.look()
        assert await timed.allocations.closed() == {}, "what it did before must not close it again"
        await worker.units("control", 60)
        await worker.units("b", 60, **FAILING)
        await worker.look()
        assert list((await timed.allocations.closed())["e"]) == ["b"]
        assert len(worker.alerts) == 2
        history = await history_of(timed, of)
        assert [weights["b"] for _, weights in history.timeline] == [5000, 0, 5000, 0]

    async def test_a_unit_that_came_to_an_arm_just_after_its_closing_is_compared_with_nobody(
        self, timed: Store, clock: Clock
    ):
        of = experiment()
        worker = Worker(timed, clock, of)
        await worker.begin(of)
        await worker.units("control", 20)
        await worker.units("b", 20)
        clock.advance(10)
        await timed.allocations.close("e", "b", "it failed")
        clock.advance(1)
        await worker.units("control", 5)
        await worker.units("b", 5)
        periods = await periods_of(timed, of, await history_of(timed, of), int(clock() * 1000))
        assert (units_of(periods.all, "control"), units_of(periods.all, "b")) == (25, 20)


async def test_a_split_that_is_surely_wrong_is_told_once(timed: Store, clock: Clock):
    worker = Worker(timed, clock, experiment())
    await worker.begin(experiment())
    await worker.units("control", 400)
    await worker.units("b", 200)
    for _ in range(3):
        await worker.look()
    [alert] = worker.alerts
    assert (alert.event, alert.dedupe_key) == (AlertEvent.EXPERIMENT_MISMATCH, "experiment_mismatch|e|e")
    assert "control 400 : b 200" in alert.message


async def test_a_closed_arm_and_a_change_of_weights_make_no_wrong_split(timed: Store, clock: Clock):
    of = experiment()
    worker = Worker(timed, clock, of)
    ranges = await worker.begin(of)
    await worker.units("control", 300)
    await worker.units("b", 300)
    clock.advance(60)
    await timed.allocations.put("e", "e", to_json(moved(ranges, {"control": 90, "b": 10})), 1)
    await worker.units("control", 900)
    await worker.units("b", 100)
    clock.advance(60)
    await timed.allocations.close("e", "b", "by hand")
    clock.advance(1)
    await worker.units("control", 900)
    await worker.look()
    assert worker.alerts == []


async def test_a_new_seed_begins_anew(timed: Store, clock: Clock):
    worker = Worker(timed, clock, experiment())
    ranges = await worker.begin(experiment())
    await worker.units("control", 30)
    clock.advance(60)
    await timed.allocations.put("e", "second", to_json(ranges), 1)
    await worker.units("b", 20)
    of = experiment(seed="second")
    history = await history_of(timed, of)
    periods = await periods_of(timed, of, history, int(clock() * 1000))
    assert (units_of(periods.all, "control"), units_of(periods.all, "b")) == (0, 20)
    assert (history.version, history.weights_changed) == (2, False)


class TestBandit:
    async def test_units_move_to_what_does_better_and_not_more_often_than_is_meant(self, timed: Store, clock: Clock):
        of = experiment(allocation="thompson", metrics={"guardrails": []})
        worker, other = Worker(timed, clock, of), Worker(timed, clock, of)
        await worker.begin(of)
        await worker.rated("control", [3, 4] * 40)
        await worker.rated("b", [4, 5] * 40)
        await worker.look()
        assert len(await timed.allocations.history("e")) == 1, "too soon"
        clock.advance(301)
        await asyncio.gather(worker.look(), other.look())
        [first, second] = [from_json(one.ranges) for one in await timed.allocations.history("e")]
        share = {variant: sum(end - start for start, end in owned) for variant, owned in second}
        assert share == {"control": 1000, "b": 9000}
        assert buckets_moved(first, second) == 4000
        clock.advance(301)
        await worker.look()
        assert len(await timed.allocations.history("e")) == 2, "nothing has changed since"
        assert sorted(worker.told + other.told) == ["routing"]

    async def test_weights_stay_while_there_is_too_little_to_go_by(self, timed: Store, clock: Clock):
        of = experiment(allocation="thompson")
        worker = Worker(timed, clock, of)
        await worker.begin(of)
        await worker.rated("b", [5, 4] * 40)
        clock.advance(301)
        await worker.look()
        assert len(await timed.allocations.history("e")) == 1

    def test_a_closed_arm_keeps_its_buckets(self):
        ranges = first_ranges({"control": 50, "b": 30, "c": 20})
        found = weights_of(ranges, {"control": 0.3, "b": 0.0, "c": 0.7}, {"b": object()})
        assert (found["b"], sum(found.values())) == (3000, BUCKETS)
        assert found["control"] == 2100
        after = dict(moved(ranges, found))
        assert after["b"] == dict(ranges)["b"]


# -- what administrators do ------------------------------------------------------------------------------------------

CONFIG = """
model_list:
  - {model_name: large, litellm_params: {model: openai/large}, model_info: {id: large-id}}
  - {model_name: small, litellm_params: {model: openai/small}, model_info: {id: small-id}}
orchestration:
  journal: {dir: %s}
  routing:
    policies:
      smart: {candidates: [large, small]}
    experiments:
      - id: e
        policy: smart
        end: 2099-01-01T00:00:00Z
        variants: [{id: control, model: large}, {id: b, model: small}]
      - {id: over, policy: smart, end: 2020-01-01T00:00:00Z, variants: [{id: a, model: large}, {id: b, model: small}]}
"""


class Proxy:
    """A proxy that serves two models, as the runtime sees it."""

    def model_groups(self) -> tuple[str, ...]:
        return ("large", "small")

    def secret(self, reference: str) -> str | None:
        return None

    def read_secrets(self, loaded: Any) -> None: ...

    def announce_policies(self, first: Any, before: Any) -> None: ...


class Desk:
    """An administrator's, at a runtime with a store."""

    def __init__(self, runtime: Runtime, store: Store) -> None:
        self.runtime, self.store = runtime, store
        app = FastAPI()
        app.include_router(experiments_router(runtime), prefix="/orchestration")
        app.include_router(entries_router(runtime), prefix="/orchestration")
        auth = SimpleNamespace(token="t", api_key="t", key_alias="root", user_id="root", user_role="proxy_admin")
        auth.team_id, auth.metadata, auth.team_metadata = None, {}, {}
        app.dependency_overrides = {changer: lambda: auth, reader: lambda: auth}
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://proxy")

    async def post(self, path: str, body: Any = None, **headers: str) -> httpx.Response:
        content = None if body is None else json.dumps(body)
        return await self.http.post(f"/orchestration/experiments/{path}", content=content, headers=headers)

    async def get(self, path: str) -> httpx.Response:
        return await self.http.get(f"/orchestration/experiments/{path}")


@pytest.fixture
async def desk(tmp_path: Path, store: Store) -> AsyncIterator[Desk]:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG % (tmp_path / "journal"))
    proxy: Any = Proxy()
    runtime = Runtime(config, proxy, environ={})
    runtime.store = store
    runtime.ledger = Ledger(runtime.journal, store.usage)
    runtime.ledger.start()
    runtime.ready.set()
    yield Desk(runtime, store)
    await runtime.ledger.stop()
    runtime.journal.close()


def status_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return answer.json()["entry"]["status"]


class TestSteps:
    async def test_one_is_started_paused_started_stopped_and_promoted(self, desk: Desk):
        assert status_of(await desk.post("e/start")) == "running"
        assert status_of(await desk.post("e/start")) == "running"
        assert desk.runtime.overlay.version == 1, "the second changed nothing"
        assert status_of(await desk.post("e/pause")) == "paused"
        assert status_of(await desk.post("e/start")) == "running"
        stopped = await desk.post("e/stop", {"promote": "b"})
        assert (status_of(stopped), stopped.json()["entry"]["promote"]) == ("stopped", "b")
        [parsed] = [one for one in desk.runtime.settings.routing.experiments if one.id == "e"]
        assert (parsed.status.value, parsed.promote) == ("stopped", "b")
        assert parsed.end is not None and parsed.end.year == 2099, "the rest of the entry stays"
        assert (await desk.post("e/stop", {"promote": None})).json()["entry"].get("promote") is None
        records = (await desk.store.audit.query(AuditQuery(0, 1 << 60, subject="experiments/e"))).entries
        assert [entry.record.action for entry in reversed(records)] == [
            *("experiment.start", "experiment.pause", "experiment.start", "experiment.stop", "experiment.stop"),
        ]
        assert json.loads(records[-1].record.detail)["before"] == {"status": "draft", "promote": None}

    async def test_a_stopped_one_starts_only_if_that_is_meant(self, desk: Desk):
        await desk.post("e/stop", {"promote": "b"})
        refused = await desk.post("e/start")
        assert (refused.status_code, '{"again": true}' in refused.json()["error"]["message"]) == (400, True)
        again = await desk.post("e/start", {"again": True})
        assert (status_of(again), "promote" in again.json()["entry"]) == ("running", False)

    @pytest.mark.parametrize(
        ("path", "body", "complaint"),
        [
            ("e/pause", None, "is a draft; only one that runs is paused"),
            ("over/start", None, "ended at 2020-01-01"),
            ("e/stop", {"promote": "contrl"}, "did you mean 'control'"),
            ("e/stop", {"promot": "b"}, "did you mean 'promote'"),
            ("e/start", {"again": 1}, "again"),
            ("e/reopen", {"variant": "b"}, "is not closed"),
            ("e/reopen", {"variant": "z"}, "one of its variants"),
        ],
    )
    async def test_what_cannot_be_done_says_why(self, desk: Desk, path: str, body: Any, complaint: str):
        answer = await desk.post(path, body)
        assert (answer.status_code, complaint in answer.json()["error"]["message"]) == (400, True), answer.text

    @pytest.mark.parametrize("word", ["start", "pause", "stop", "reopen"])
    async def test_one_that_is_not_there_is_not_found(self, desk: Desk, word: str):
        body = {"variant": "b"} if word == "reopen" else None
        assert (await desk.post(f"none/{word}", body)).status_code == 404
        assert (await desk.get("none/results")).status_code == 404

    async def test_an_etag_is_kept_to_where_one_is_sent(self, desk: Desk):
        known = (await desk.get("e")).headers["etag"]
        assert status_of(await desk.post("e/start", **{"if-match": known})) == "running"
        assert (await desk.post("e/pause", **{"if-match": known})).status_code == 412


class TestResults:
    @pytest.mark.slow
    async def test_the_better_arm_is_said_to_be_better(self, desk: Desk):
        await desk.post("e/start")
        [of] = [one for one in desk.runtime.settings.routing.experiments if one.id == "e"]
        clock = Clock(desk.runtime.clock() - 5)
        worker = Worker(desk.store, clock, of)
        await worker.begin(of)
        await worker.rated("control", [2, 3] * 50)
        await worker.rated("b", [4, 5] * 50)
        answer = await desk.get("e/results")
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert list(found)[:3] == ["id", "messages", "split"]
        assert (found["split"]["mismatch"], found["weights_changed"]) == (False, False)
        assert [(one["id"], one["units"], one["share"]) for one in found["variants"]] == [
            *(("control", 100, 0.5), ("b", 100, 0.5)),
        ]
        [rating] = [one for one in found["comparisons"] if one["metric"] == "rating"]
        assert (rating["verdict"], rating["control"], rating["estimate"]) == ("better", 2.5, 4.5)
        assert rating["still_needed"] is not None

    async def test_where_the_statistics_are_not_installed_the_extra_is_named(
        self, desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        (tmp_path / "gbstats.py").write_text("raise ModuleNotFoundError('gone', name='gbstats')\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        answer = await desk.get("e/results")
        assert (answer.status_code, answer.json()["error"]["code"]) == (501, "not_installed")
        assert "litellm-orchestration[experiments]" in answer.json()["error"]["message"]


# -- the command line ------------------------------------------------------------------------------------------------

ENTRY = yaml.safe_load("""
id: e
status: running
policy: smart
traffic: 0.5
variants: [{id: control, model: large, weight: 50}, {id: b, model: small, weight: 50, set: {temperature: 0}}]
""")
COMPARED: dict[str, Any] = {
    "metric": "rating",
    "role": "primary",
    "variant": "b",
    "verdict": "better",
    "why": "higher, where higher is better",
    "control": 2.5,
    "estimate": 4.5,
    "lift": 0.8,
    "lift_interval": [0.7, None],
    "chance_to_win": None,
    "corrected": 0.000012,
    "still_needed": [0, 1200],
}
RESULTS: dict[str, Any] = {
    "id": "e",
    "messages": [],
    "split": {"mismatch": False, "sure": False, "p_value": 0.5, "always_valid": 1.0},
    "status": "running",
    "began_at": "2027-01-15T12:00:00Z",
    "primary": "rating",
    "method": "sequential",
    "variants": [
        {"id": "control", "control": True, "model": "large", "units": 1000, "share": 0.5}
        | {"closed": None, "reopened_at": None},
        {"id": "b", "control": False, "model": "small", "units": 990, "share": 0.5}
        | {"closed": {"since": "2027-01-16T12:00:00Z", "reason": "error_rate"}, "reopened_at": None},
    ],
    "comparisons": [COMPARED],
}


@dataclass
class Api:
    """A double of the admin API with one experiment; it remembers what it was asked for."""

    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=lambda: dict(RESULTS))

    def __call__(self, request: Request) -> Answer:
        path = request.path.removeprefix("/orchestration/").partition("?")[0]
        body = json.loads(request.body) if request.body else None
        self.asked.append((request.command, path, body))
        match path:
            case "experiments":
                return 200, {}, {"experiments": [{"id": "e", "entry": ENTRY}], "next_cursor": None}
            case "experiments/e/results":
                return 200, {}, self.results
            case "experiments/none":
                return 404, {}, {"error": {"message": "There is no experiment 'none'."}}
            case "experiments/e/stop":
                return 200, {}, {"id": "e", "entry": ENTRY | {"status": "stopped", "promote": "b"}}
            case _:
                return 200, {}, {"id": "e", "entry": ENTRY}


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def url(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("LITELLM_MASTER_KEY", "sk-test-admin")
    server = JsonServer(0, api)
    yield f"http://127.0.0.1:{server.port}"
    server.stop()


def run(*arguments: str, of: click.Command = experiments_command) -> Result:
    return CliRunner().invoke(of, arguments)


class TestCommands:
    def test_they_are_listed_and_shown(self, url: str):
        listed = run("list", "--url", url)
        assert listed.exit_code == 0, listed.output
        assert listed.stdout.splitlines()[1].split() == [
            *("e", "running", "smart", "user", "control", "50,", "b", "50", "rating")
        ]
        shown = run("show", "e", "--url", url)
        assert "traffic    0.5" in shown.stdout and '{"temperature": 0}' in shown.stdout
        assert json.loads(run("list", "--url", url, "--json").stdout)[0]["entry"] == ENTRY

    def test_results_say_who_is_better_by_how_much_and_what_it_takes(self, url: str):
        shown = run("results", "e", "--url", url)
        assert shown.exit_code == 0, shown.output
        for said in ("control (control)", "990", "closed since 2027-01-16", "+80.0% (+70.0% to …)", "1.2e-05", "1,200"):
            assert said in shown.stdout, said

    def test_a_wrong_split_comes_first_and_ends_with_one(self, url: str, api: Api):
        api.results["messages"] = ["SAMPLE RATIO MISMATCH: no."]
        api.results["split"] = RESULTS["split"] | {"mismatch": True}
        shown = run("results", "e", "--url", url)
        assert (shown.exit_code, shown.stdout.splitlines()[0]) == (1, "! SAMPLE RATIO MISMATCH: no.")
        assert run("results", "e", "--url", url, "--json").exit_code == 1

    @pytest.mark.parametrize(
        ("arguments", "path", "body"),
        [
            (["start", "e"], "experiments/e/start", {}),
            (["start", "e", "--again"], "experiments/e/start", {"again": True}),
            (["pause", "e"], "experiments/e/pause", {}),
            (["stop", "e"], "experiments/e/stop", {}),
            (["stop", "e", "--promote", "b"], "experiments/e/stop", {"promote": "b"}),
            (["reopen", "e", "b"], "experiments/e/reopen", {"variant": "b"}),
        ],
    )
    def test_a_command_asks_for_what_it_is_told(
        self, url: str, api: Api, arguments: list[str], path: str, body: dict[str, Any]
    ):
        result = run(*arguments, "--url", url)
        assert result.exit_code == 0, result.output
        assert api.asked[-1] == ("POST", path, body)
        assert result.stdout.startswith("e: ")

    def test_what_the_proxy_says_against_it_ends_with_one(self, url: str):
        result = run("show", "none", "--url", url)
        assert (result.exit_code, "There is no experiment 'none'." in result.output) == (1, True)
