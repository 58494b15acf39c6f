"""Experiments on running proxies: who gets which variant, on every endpoint and instance, and what is said of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.eventually import eventually_sync
from tests.support.gateway import KEYS, MESSAGES, OURS, key_environment, model
from tests.support.postgres import PostgresServer
from tests.support.provider import FakeProvider
from tests.support.proxy import ProxyProcess
from tests.support.redis import RedisServer
from tests.support.transcript import Shell, blocks, matches, steps

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

USERS = [f"user-{number}" for number in range(40)]
MODELS = {"control": "large", "b": "small"}


def variants(**of: str) -> list[dict[str, Any]]:
    return [{"id": name, "model": model} for name, model in of.items()]


def config_of(provider: FakeProvider, **more: Any) -> dict[str, Any]:
    """A policy with an experiment that runs, one of embeddings, and one whose second arm has a model of its own."""
    running: dict[str, Any] = {"status": "running", "metrics": {"guardrails": ["error_rate"]}}
    forced = {"forced": {"tester": "b"}}
    return {
        **OURS,
        "model_list": [
            model("large", provider.url),
            model("small", provider.url),
            model("brittle", provider.url),
            model("embed", provider.url, mode="embedding"),
            model("embed-two", provider.url, mode="embedding"),
        ],
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        "orchestration": {
            "keys": [
                {"key": "os.environ/KEY_SERVICE", "user_id": "service", "tier": "premium", "trusted": True},
                {"key": "os.environ/KEY_BOB", "user_id": "bob", "tier": "free"},
            ],
            "tiers": {"free": {"models": ["small"]}, "premium": {"models": ["*"]}},
            "default_tier": "free",
            # An open breaker would hide how an arm fails.
            "resilience": {"circuit_breaker": {"failure_threshold": 100_000, "failure_ratio": None}},
            "routing": {
                "policies": {
                    "smart": {"candidates": ["large", "small"]},
                    "risky": {"candidates": ["large"]},
                    "vectors": {"candidates": ["embed", "embed-two"]},
                },
                "experiments": [
                    {"id": "ab", "policy": "smart", "variants": variants(**MODELS), **forced, **running},
                    {"id": "vectors", "policy": "vectors", "variants": variants(a="embed", b="embed-two"), **running},
                    {"id": "risk", "policy": "risky", "variants": variants(control="large", b="brittle"), **running},
                ],
            },
            **more,
        },
    }


ENDPOINTS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": MESSAGES}),
    "stream": ("/v1/chat/completions", {"messages": MESSAGES, "stream": True}),
    "completions": ("/v1/completions", {"prompt": "one two three four"}),
    "responses": ("/v1/responses", {"input": "one two three four"}),
    "messages": ("/v1/messages", {"messages": MESSAGES, "max_tokens": 20}),
}


class Desk:
    """An administrator's, at a proxy, with callers at hand."""

    def __init__(self, proxy: ProxyProcess) -> None:
        self.proxy = proxy
        self.admin = proxy.client()
        self.callers = proxy.client(KEYS["service"])

    def ask(self, user: str, policy: str = "smart", endpoint: str = "chat", **more: Any) -> httpx.Response:
        path, body = ENDPOINTS[endpoint]
        return self.callers.post(path, json={"model": policy, **body, **more}, headers={"x-user-id": user})

    def variant(self, user: str, policy: str = "smart", **more: Any) -> str:
        """The variant of a user, as the answer's header has it."""
        answer = self.ask(user, policy, **more)
        return answer.headers.get("x-orchestration-experiment", "").partition("/")[2]

    def assigned(self, policy: str = "smart", users: Sequence[str] = USERS, **more: Any) -> dict[str, str]:
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(lambda user: self.variant(user, policy, **more), users)
            return dict(zip(users, found, strict=True))

    def step(self, name: str, word: str, **body: Any) -> httpx.Response:
        return self.admin.post(f"/orchestration/experiments/{name}/{word}", json=body)

    def entry(self, name: str) -> httpx.Response:
        return self.admin.get(f"/orchestration/experiments/{name}").raise_for_status()

    def reweighted(self, name: str, **weights: float) -> None:
        there = self.entry(name)
        body = there.json()["entry"]
        body["variants"] = [{**one, "weight": weights[one["id"]]} for one in body["variants"]]
        path, headers = f"/orchestration/experiments/{name}", {"if-match": there.headers["etag"]}
        self.admin.put(path, json=body, headers=headers).raise_for_status()

    def results(self, name: str) -> dict[str, Any]:
        return self.admin.get(f"/orchestration/experiments/{name}/results").raise_for_status().json()

    def audited(self, name: str) -> list[str]:
        query = {"subject": f"experiments/{name}"}
        records = self.admin.get("/orchestration/audit", params=query).raise_for_status().json()["records"]
        return [one["action"] for one in reversed(records)]


@pytest.fixture(scope="module")
def running(shared_provider: FakeProvider) -> Iterator[ProxyProcess]:
    with ProxyProcess(config_of(shared_provider), env=key_environment()) as proxy:
        yield proxy


@pytest.fixture
def desk(running: ProxyProcess, provider: FakeProvider) -> Desk:
    return Desk(running)


def test_a_user_has_the_same_variant_on_every_endpoint(desk: Desk, provider: FakeProvider) -> None:
    for user in USERS[:6]:
        of_chat = desk.variant(user)
        assert of_chat in MODELS
        for endpoint in ENDPOINTS:
            before = len(provider.attempts)
            answer = desk.ask(user, endpoint=endpoint)
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-orchestration-experiment"] == f"ab/{of_chat}", endpoint
            assert [one.model for one in provider.attempts[before:]] == [MODELS[of_chat]], endpoint


def test_embeddings_take_part_too(desk: Desk) -> None:
    path, body = "/v1/embeddings", {"model": "vectors", "input": "one two"}

    def variant(user: str) -> str:
        answer = desk.callers.post(path, json=body, headers={"x-user-id": user})
        assert answer.status_code == 200, answer.text
        return answer.headers["x-orchestration-experiment"]

    first = [variant(user) for user in USERS[:12]]
    assert set(first) == {"vectors/a", "vectors/b"}
    assert [variant(user) for user in USERS[:12]] == first


def test_a_forced_user_gets_the_variant_and_is_not_counted(desk: Desk) -> None:
    before = sum(one["units"] for one in desk.results("ab")["variants"])
    assert [desk.variant("tester") for _ in range(2)] == ["b", "b"]
    assert sum(one["units"] for one in desk.results("ab")["variants"]) == before


def test_a_caller_that_may_not_have_every_variant_is_in_none(desk: Desk) -> None:
    with desk.proxy.client(KEYS["bob"]) as bob:
        answer = bob.post("/v1/chat/completions", json={"model": "smart", "messages": MESSAGES})
    assert answer.status_code == 200, answer.text
    assert "x-orchestration-experiment" not in answer.headers


def test_a_restart_and_new_weights_move_the_fewest_and_results_say_who_is_better(
    desk: Desk, running: ProxyProcess
) -> None:
    first = desk.assigned()
    assert {list(first.values()).count(variant) >= 10 for variant in MODELS} == {True}

    running.restart()
    desk = Desk(running)
    assert desk.assigned() == first

    given: list[dict[str, Any]] = []
    for number, (user, variant) in enumerate(first.items()):
        request_id = desk.ask(user).headers["x-orchestration-request-id"]
        rating = (1 if variant == "control" else 4) + number % 2
        given.append({"request_id": request_id, "metric": "rating", "value": rating})
    received = desk.callers.post("/orchestration/feedback", json=given[:1])
    assert received.status_code in (200, 202), received.text
    received = desk.admin.post("/orchestration/feedback", json=given)
    assert {one["status"] for one in received.json()["feedback"]} == {"recorded"}, received.text
    found = desk.results("ab")
    assert (found["split"]["mismatch"], found["weights_changed"]) == (False, False)
    [rating] = [one for one in found["comparisons"] if one["metric"] == "rating"]
    assert (rating["verdict"], rating["variant"]) == ("better", "b"), rating
    assert rating["estimate"] - rating["control"] == pytest.approx(3, abs=0.5)

    desk.reweighted("ab", control=75, b=25)
    moved = {user: (first[user], now) for user, now in desk.assigned().items() if now != first[user]}
    assert set(moved.values()) == {("b", "control")}
    assert 3 <= len(moved) <= 17, "a quarter of the units, of forty"
    found = desk.results("ab")
    assert (found["weights_changed"], found["periods"]) == (True, 2)
    assert [one["share"] for one in found["variants"]] == [0.75, 0.25]
    desk.reweighted("ab", control=50, b=50)
    eventually_sync(lambda: desk.assigned() == first, within=5, what="everybody back")


def test_one_is_paused_taken_up_again_stopped_and_promoted(desk: Desk, provider: FakeProvider) -> None:
    first = desk.assigned(users=USERS[:10])
    assert desk.step("ab", "pause").json()["entry"]["status"] == "paused"
    assert set(desk.assigned(users=USERS[:10]).values()) == {""}
    assert desk.step("ab", "start").status_code == 200
    assert desk.assigned(users=USERS[:10]) == first
    stopped = desk.step("ab", "stop", promote="b")
    assert stopped.json()["entry"] | {"variants": None, "forced": None, "metrics": None} == {
        "id": "ab",
        "policy": "smart",
        "status": "stopped",
        "promote": "b",
        "variants": None,
        "forced": None,
        "metrics": None,
    }
    provider.reset()
    for user in USERS[:10]:
        assert desk.ask(user).status_code == 200
    assert {one.model for one in provider.attempts} == {"small"}
    assert desk.step("ab", "start").status_code == 400
    assert desk.step("ab", "start", again=True).status_code == 200
    assert desk.assigned(users=USERS[:10]) == first
    words = [action.rpartition(".")[2] for action in desk.audited("ab")][-5:]
    assert words[-5:] == ["put", "pause", "start", "stop", "start"] or words[-4:] == ["pause", "start", "stop", "start"]


def test_two_instances_agree_and_close_an_arm_that_fails_within_a_minute(
    provider: FakeProvider, redis_server: RedisServer, postgres_server: PostgresServer, postgres_url: str
) -> None:
    config = config_of(provider, store={"url": postgres_url}, shared_state={"url": redis_server.url})
    with ExitStack() as stack:
        proxies = [ProxyProcess(config, env=key_environment()) for _ in range(2)]
        for proxy in proxies:
            proxy.spawn()
            stack.callback(proxy.close)
        for proxy in proxies:
            proxy.wait_until_ready()
        one, other = (Desk(proxy) for proxy in proxies)
        assert one.assigned() == other.assigned()
        one.reweighted("ab", control=20, b=80)
        after = one.assigned()
        eventually_sync(lambda: other.assigned() == after, within=5, what="the other's agreement")

        provider.script(model="brittle", status=500)
        alone = {"disable_fallbacks": True}
        users = [f"brave-{number}" for number in range(80)]
        with ThreadPoolExecutor(8) as pool:
            asked = zip((one, other) * 40, users, strict=True)
            answers = list(pool.map(lambda ask: ask[0].ask(ask[1], "risky", **alone), asked))
        failing = [user for user, answer in zip(users, answers, strict=True) if answer.status_code >= 500]
        assert 20 <= len(failing) <= 60, [answer.text for answer in answers]

        def closed() -> Any:
            return next(one["closed"] for one in other.results("risk")["variants"] if one["id"] == "b")

        eventually_sync(closed, within=60, what="the failing arm closed")
        assert "error_rate is 100.00%" in closed()["reason"]
        for desk in (one, other):
            answered = {user: desk.ask(user, "risky", **alone) for user in users}
            assert {answer.status_code for answer in answered.values()} == {200}
            assert {answered[user].headers["x-orchestration-model"] for user in failing} == {"large"}
        found = one.results("risk")
        assert not found["split"]["mismatch"]
        assert sum(variant["units"] for variant in found["variants"]) == len(users)

        provider.reset()
        assert one.step("risk", "reopen", variant="b").status_code == 200
        eventually_sync(
            lambda: other.ask(failing[0], "risky").headers.get("x-orchestration-model") == "brittle",
            within=3,
            what="the other's opening",
        )
        assert other.audited("risk") == ["experiment.close_arm", "experiment.reopen_arm"]


def test_the_first_experiment_goes_as_the_page_says(provider: FakeProvider) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "experiments.md"
    section = yaml.safe_load(blocks(page, "yaml")[0])["orchestration"]
    config = {
        **OURS,
        "model_list": [model("small", provider.url), model("large", provider.url)],
        "orchestration": {
            **section,
            "keys": [{"key": "os.environ/KEY_SERVICE", "user_id": "service", "trusted": True}],
        },
    }
    (program,) = blocks(page, "python")
    with ProxyProcess(config, env=key_environment()) as proxy:
        environ = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(proxy.cwd),
            "LITELLM_MASTER_KEY": str(proxy.key),
            "SERVICE_KEY": str(KEYS["service"]),
        }
        (proxy.cwd / "traffic.py").write_text(program.replace("http://127.0.0.1:4000", proxy.url))
        shell = Shell(proxy.cwd, environ)
        try:
            for step in steps(page):
                ours = step.command.startswith("llm-orchestration")
                printed = shell.run(f"{step.command} --url {proxy.url}" if ours else step.command)
                assert matches(step.expected, printed), f"$ {step.command}\n{printed}"
        finally:
            shell.close()
