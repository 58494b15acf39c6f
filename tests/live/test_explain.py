"""Routing that explains itself: before a request, after it, and for a configuration that is only proposed."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from click.testing import CliRunner, Result

from core.cli import main
from core.store import open_store
from core.usage import UsageEvent
from custom_router.recordings import Job, prepared, run
from plugins.admin.routing import ENDPOINTS
from tests.support.eventually import eventually_sync
from tests.support.gateway import KEYS, MESSAGES, OURS, key_environment, model
from tests.support.provider import FakeProvider
from tests.support.proxy import ProxyProcess
from tests.support.transcript import Shell, blocks, matches, steps

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]


def config_of(provider: FakeProvider, folder: Path) -> dict[str, Any]:
    blind = model("small", provider.url)
    blind["model_info"]["supports_vision"] = False
    variants = [{"id": "control", "model": "large"}, {"id": "treatment", "model": "small"}]
    return {
        **OURS,
        "model_list": [blind, model("large", provider.url), model("claude", provider.url)],
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        "orchestration": {
            "store": {"url": f"sqlite+aiosqlite:///{folder}/store.db"},
            "keys": [
                {"key": "os.environ/KEY_ADA", "user_id": "ada", "team_id": "research", "tier": "premium"},
                {"key": "os.environ/KEY_BOB", "user_id": "bob", "tier": "free"},
                {"key": "os.environ/KEY_CARL", "user_id": "carl", "tier": "premium", "models": ["smart", "small"]},
            ],
            "groups": {"scientists": {"teams": ["research"]}},
            "tiers": {
                "free": {"models": ["small", "smart"], "priority": 3},
                "premium": {"models": ["*"], "priority": 1},
            },
            "default_tier": "free",
            "routing": {
                "headers": ["x-app"],
                "policies": {
                    "smart": {"candidates": ["large", "small"]},
                    "tested": {"candidates": ["large", "small"]},
                },
                "rules": [
                    {"id": "long-code", "when": "task_type == 'coding' && input_tokens > 8000", "prefer": ["claude"],
                     "use": ["claude", "large"]},
                    {"id": "batch", "when": "metadata.app == 'batch'", "prefer": ["small"], "set": {"temperature": 0}},
                    {"id": "web", "when": "headers['x-app'] == 'web'", "prefer": ["small"]},
                    {"id": "night", "when": "hour == 3 && task_type == 'nightly'", "deny": "Not at night."},
                ],
                "experiments": [{"id": "ab", "policy": "tested", "variants": variants, "status": "running"}],
            },
            "budgets": [{"budget_id": "everything", "total_budget": 1000}],
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def proxy(shared_provider: FakeProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    config = config_of(shared_provider, tmp_path_factory.mktemp("explain"))
    with ProxyProcess(config, env=key_environment()) as running:
        yield running


@pytest.fixture
def desk(proxy: ProxyProcess) -> Desk:
    return Desk(proxy)


class Desk:
    """Callers and an administrator of a proxy."""

    def __init__(self, proxy: ProxyProcess) -> None:
        self.proxy = proxy

    def post(self, path: str, body: Any, who: str | None = None) -> httpx.Response:
        with self.proxy.client(None if who is None else KEYS[who]) as client:
            return client.post(f"/orchestration/{path}", json=body)

    def explain(self, who: str | None = None, **body: Any) -> dict[str, Any]:
        answer = self.post("routing/explain", {"model": "smart", **body}, who)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refused(self, who: str | None = None, **body: Any) -> tuple[int, str]:
        answer = self.post("routing/explain", {"model": "smart", **body}, who)
        return answer.status_code, answer.json()["error"]["message"]

    def chat(self, who: str, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        with self.proxy.client(KEYS[who]) as client:
            whole = {"model": "smart", "messages": MESSAGES, **body}
            return client.post("/v1/chat/completions", json=whole, headers=headers or {})

    def past(self, request_id: str, who: str | None = None) -> httpx.Response:
        with self.proxy.client(None if who is None else KEYS[who]) as client:
            return client.get(f"/orchestration/routing/requests/{request_id}")


def reasons(left_out: list[dict[str, str]]) -> dict[str, str]:
    return {one["model"]: one["reason"] for one in left_out}


# -- before a request --------------------------------------------------------------------------------------------------


def test_a_caller_sees_what_its_tier_leaves_and_in_which_step(desk: Desk) -> None:
    found = desk.explain("bob")
    assert found["candidates"] == ["small"]
    assert reasons(found["left_out"]) == {"large": "tier free does not permit it"}
    steps = {step["stage"]: step for step in found["steps"]}
    assert reasons(steps["tiers"]["removed"]) == {"large": "tier free does not permit it"}
    assert found["caller"] == {"user_id": "bob", "team_id": None, "groups": [], "tier": "free"}
    assert found["request"]["priority"] == 3


def test_a_key_that_lists_its_models_is_held_to_them_whoever_asks(desk: Desk) -> None:
    for found in (desk.explain("carl"), desk.explain(user_id="carl")):
        assert found["candidates"] == ["small"]
        assert reasons(found["left_out"]) == {"large": "this key may not use it"}


@pytest.mark.parametrize(
    ("said", "first"),
    [
        ({}, "large"),
        ({"needs": ["images"], "metadata": {"app": "batch"}}, "large"),
        ({"metadata": {"app": "batch"}}, "small"),
        ({"headers": {"X-App": "web"}}, "small"),
        ({"task_type": "coding", "input_tokens": 9000}, "claude"),
        ({"task_type": "coding", "input_tokens": 8000}, "large"),
        ({"task_type": "nightly", "at": "2026-03-01T03:30:00Z"}, None),
        ({"task_type": "nightly", "at": "2026-03-01T03:30:00-01:00"}, "large"),
    ],
)
def test_what_is_said_of_a_request_decides(desk: Desk, said: dict[str, Any], first: str | None) -> None:
    found = desk.explain("ada", **said)
    assert next(iter(found["candidates"]), None) == first
    assert (found["denied"] is None) == (first is not None)


def test_what_a_rule_sets_and_what_no_rule_looks_at_is_told(desk: Desk) -> None:
    found = desk.explain("ada", metadata={"app": "batch", "other": 1})
    assert found["rules"] == ["batch"]
    assert found["set"] == {"temperature": 0}
    assert found["notes"] == ["No rule or experiment looks at metadata.other."]


def test_other_candidates_can_stand_in_for_a_policys_own(desk: Desk) -> None:
    assert desk.explain("ada", candidates=["small", "claude"])["candidates"] == ["small", "claude"]
    found = desk.explain("ada", model="tested", candidates=["small", "claude"])
    assert found["assignments"], "it is the policy that the experiment is about"
    assert set(found["candidates"]) <= {"small", "claude", "large"}
    nameless = desk.post("routing/explain", {"candidates": ["large", "small"]}, "bob").json()
    assert nameless["candidates"] == ["small"]


def test_an_experiments_arm_is_the_one_that_requests_get(desk: Desk) -> None:
    found = desk.explain("ada", model="tested")
    [assignment] = found["assignments"]
    assert assignment["unit"] == "ada"
    answer = desk.chat("ada", model="tested")
    assert answer.headers["x-orchestration-experiment"] == f"ab/{assignment['variant']}"
    assert answer.headers["x-orchestration-model"] == found["candidates"][0]


def test_administrators_ask_about_anybody_and_others_about_themselves(desk: Desk) -> None:
    assert desk.explain(user_id="bob")["candidates"] == ["small"]
    assert desk.explain(team_id="research", tier="premium")["caller"]["groups"] == ["scientists"]
    assert desk.explain("ada", user_id="ada")["candidates"] == ["large", "small"]
    assert desk.refused("bob", user_id="ada")[0] == 403
    assert desk.refused("bob", tier="premium")[0] == 403
    assert desk.explain(user_id="bob", tier="premium")["candidates"] == ["large", "small"]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"modle": "smart"}, "modle: unknown field; did you mean 'model'?"),
        ({"needs": ["imagse"]}, "needs: 'imagse' is none; did you mean 'images'?; valid: images, audio"),
        ({"endpoint": "chat"}, "endpoint: 'chat' is none"),
        ({"tier": "premum"}, "tier: there is no tier 'premum'; did you mean 'premium'?; valid: free, premium."),
        ({"priority": 11}, "priority must be a whole number from 1 (first) to 10, not '11'."),
        ({"input_tokens": -1}, "input_tokens: must be a whole number of tokens from 0."),
        ({"at": "2026-03-01"}, "at: must be a time with its zone, such as 2026-03-01T09:00:00Z, not '2026-03-01'."),
        ({"metadata": {"app": []}}, "metadata.app: must be a text, a number, true or false."),
        ({"stream": "yes"}, "stream: must be true or false."),
        ({"candidates": []}, "candidates must be a list of 1 to 100 names of models."),
        ({"candidates": ["smal"]}, "candidates: there is no model smal"),
        ({"candidates": ["small"], "model": "large"}, "model: large is no policy"),
        ({"model": None}, "model: say which model or policy is asked for."),
    ],
)
def test_what_is_wrong_is_named_with_what_would_be_valid(desk: Desk, wrong: dict[str, Any], named: str) -> None:
    status, message = desk.refused(**wrong)
    assert status == 400
    assert named in message


# -- after it ----------------------------------------------------------------------------------------------------------


def test_a_recorded_request_is_explained_by_the_configuration_that_was_in_force(desk: Desk) -> None:
    answer = desk.chat("ada", metadata={"app": "batch"})
    request_id = answer.headers["x-orchestration-request-id"]
    assert answer.headers["x-orchestration-model"] == "small"
    before = eventually_sync(lambda: kept(desk.past(request_id)), within=30)
    rule = {"when": "metadata.app == 'batch'", "prefer": ["large"]}
    with desk.proxy.client() as admin:
        changed = admin.put("/orchestration/rules/batch", json=rule, headers={"If-Match": "*"})
        assert changed.status_code == 200, changed.text
        try:
            assert desk.explain("ada", metadata={"app": "batch"})["candidates"][0] == "large"
            after = desk.past(request_id).json()
        finally:
            admin.delete("/orchestration/rules/batch?revert=true", headers={"If-Match": "*"}).raise_for_status()
    assert after == before
    assert after["decision"]["candidates"] == ["small", "large"]
    assert after["decision"]["set"] == {"temperature": 0}
    assert after["decision"]["rules"] == ["batch"]
    assert after["agrees"]
    assert after["recorded"]["route"] == "rule=batch priority"
    assert [attempt["model"] for attempt in after["recorded"]["attempts"]] == ["small"]


def kept(answer: httpx.Response) -> Any:
    """The explanation, once the settings of then are in the store."""
    found = answer.json()
    return found if answer.status_code == 200 and found["settings"]["kept"] else None


def test_a_refusal_is_explained_too(desk: Desk) -> None:
    answer = desk.chat("bob", model="claude")
    assert answer.status_code == 403
    found = desk.past(answer.headers["x-orchestration-request-id"]).json()
    assert found["recorded"]["error"] == "ModelNotAllowed"
    assert found["decision"]["left_out"] == [{"model": "claude", "reason": "tier free does not permit it"}]
    assert found["agrees"]


def test_what_a_key_may_not_use_is_left_out_again(desk: Desk) -> None:
    answer = desk.chat("carl")
    found = desk.past(answer.headers["x-orchestration-request-id"], "carl").json()
    assert found["decision"]["candidates"] == ["small"]
    assert "large was left out then" in found["notes"][0]


def test_only_its_owner_and_administrators_see_a_request(desk: Desk) -> None:
    request_id = desk.chat("ada").headers["x-orchestration-request-id"]
    assert desk.past(request_id).status_code == desk.past(request_id, "ada").status_code == 200
    other, nobodys = desk.past(request_id, "bob"), desk.past("no-such-request", "bob")
    assert other.status_code == nobodys.status_code == 404
    assert other.text == nobodys.text.replace("no-such-request", request_id)


# -- another configuration ---------------------------------------------------------------------------------------------


def test_a_proposal_is_tried_out_on_what_was_recorded(desk: Desk) -> None:
    for _ in range(3):
        assert desk.chat("ada", {"x-task-type": "tried"}).headers["x-orchestration-model"] == "large"
    tiers = {"free": {"models": ["small", "smart"]}, "premium": {"models": ["small", "smart", "tested"]}}
    budgets = [{"budget_id": "tight", "task_types": ["tried"], "total_budget": 0.0000001}]
    answer = desk.post("routing/simulate", {"config": {"tiers": tiers, "budgets": budgets}, "since": "1h"})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    [moved] = [one for one in found["moved"] if one["task_type"] == "tried"]
    assert (moved["from"], moved["to"], moved["requests"]) == ("large", "small", 3)
    models = {one["model"]: one for one in found["models"]}
    assert "large" in models
    assert models["large"]["after"]["requests"] == 0
    assert float(found["cost"]["after"]) < float(found["cost"]["before"])
    [tight] = found["budgets"]
    assert (tight["before"]["over"], tight["after"]["over"]) == (1, 1)
    assert float(tight["after"]["spent"]) < float(tight["before"]["spent"])


def test_a_proposal_that_does_not_fit_is_refused_and_changes_nothing(desk: Desk) -> None:
    policies = {"smart": {"candidates": ["lagre"]}}
    answer = desk.post("routing/simulate", {"config": {"routing": {"policies": policies}}})
    assert answer.status_code == 400
    assert "'lagre' is not a model" in answer.json()["error"]["message"]
    assert desk.post("routing/simulate", {"config": {"keys": []}}).status_code == 400
    assert desk.post("routing/simulate", {"config": {}}, "ada").status_code == 403
    assert desk.explain("ada")["candidates"] == ["large", "small"]


def test_one_simulation_runs_at_a_time(desk: Desk) -> None:
    def ask(_: int) -> int:
        return desk.post("routing/simulate", {"config": {}, "since": "1h"}).status_code

    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(ask, range(2))) == [200, 429]
    assert ask(0) == 200


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.fixture
def command(proxy: ProxyProcess, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("LITELLM_MASTER_KEY", str(proxy.key))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, list(arguments))

    return run


def test_the_command_line_explains_a_request_before_and_after(desk: Desk, command: Callable[..., Result]) -> None:
    asked = ("--model", "smart", "--user", "bob", "--metadata", "app=batch", "--url", desk.proxy.url)
    told = command("routing", "explain", *asked)
    assert told.exit_code == 0, told.output
    assert "For bob, tier free." in told.output
    assert "Tried in this order: small" in told.output
    assert "large: tier free does not permit it" in told.output
    assert "Set: temperature = 0" in told.output
    assert json.loads(command("routing", "explain", *asked, "--json").output)["candidates"] == ["small"]

    request_id = desk.chat("ada", metadata={"app": "batch"}).headers["x-orchestration-request-id"]
    told = command("explain", request_id, "--url", desk.proxy.url)
    assert told.exit_code == 0, told.output
    assert "answered  by small" in told.output
    assert "rule batch matches" in told.output
    missing = command("explain", "nothing", "--url", desk.proxy.url)
    assert missing.exit_code == 1
    assert "There is no request 'nothing'" in missing.output


def test_the_command_line_simulates_over_the_store_itself(
    desk: Desk, command: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_id = desk.chat("ada").headers["x-orchestration-request-id"]
    eventually_sync(lambda: desk.past(request_id).status_code == 200, within=30)
    proposal = yaml.safe_load(desk.proxy.config.read_text())
    proposal["orchestration"]["routing"]["policies"]["smart"]["candidates"] = ["small"]
    file = tmp_path / "new.yaml"
    file.write_text(yaml.safe_dump(proposal))
    for name, key in key_environment().items():
        monkeypatch.setenv(name, key)
    told = command("simulate", "--config", str(file), "--since", "1h", "--workers", "1", "--json")
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert {(one["from"], one["to"]) for one in found["moved"]} >= {("large", "small")}
    told = command("simulate", "--config", str(file), "--since", "1h", "--workers", "1")
    assert told.exit_code == 0, told.output
    for title in ("Models", "What moves", "Refused", "Experiments", "Budgets"):
        assert f"\n{title}\n" in told.output


async def test_several_processes_on_postgresql_find_what_one_finds(postgres_url: str) -> None:
    store = open_store(postgres_url)
    await store.upgrade()
    try:
        await store.usage.write([event(place) for place in range(25_000)])
        sections = {"routing": {"policies": {"smart": {"candidates": ["small", "large"]}}}}
        proposal, wanted = await prepared(store, sections, {}, 0, 100_000)
    finally:
        await store.close()
    assert len(wanted) == 3
    job = Job(proposal, postgres_url, wanted)
    told: list[int] = []
    both, alone = [await asyncio.to_thread(run, job, workers, told.append) for workers in (2, 1)]
    assert both == alone
    assert alone.requests == alone.after["small"][0] == 25_000
    assert sum(told) == 50_000


def event(place: int) -> UsageEvent:
    return UsageEvent(
        request_id=f"r{place}",
        time_ms=place // 2,
        endpoint="chat_completions",
        status=200,
        user_id=f"user-{place % 9}",
        asked_model="smart",
        used_model="large",
        input_tokens=place % 100,
        output_tokens=10,
        cost_nano=1000,
    )


def test_every_endpoint_whose_models_cost_money_can_be_asked_about() -> None:
    table = files("plugins").joinpath("routes.txt").read_text()
    named = {line.split()[3] for line in table.splitlines() if line.startswith("enforced ")}
    assert named <= set(ENDPOINTS)


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_about_routing_prints_what_it_says() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "routing.md"
    [config] = (yaml.safe_load(block) for block in blocks(page, "yaml"))
    keys = {f"DEMO_KEY_{name}": f"sk-{name.lower()}-{secrets.token_urlsafe(24)}" for name in ("ADA", "BOB")}
    with ProxyProcess(config, env=keys) as proxy:
        binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        shown = {"PATH": binaries, "HOME": str(proxy.cwd), "COLUMNS": "200", "LITELLM_MASTER_KEY": str(proxy.key)}
        shell = Shell(proxy.cwd, {**shown, **keys})
        try:
            for step in steps(page):
                command = step.command.replace("http://127.0.0.1:4000", proxy.url)
                if command.startswith("llm-orchestration"):
                    command += f" --url {proxy.url}"
                printed = shell.run(command)
                assert matches(step.expected, printed), f"$ {step.command}\n{printed}"
        finally:
            shell.close()
