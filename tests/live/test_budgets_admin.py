"""Budgets seen and steered while the proxy runs: by administrators, by callers, from the command line."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from click.testing import CliRunner

from core.cli.alerts import command as alerts_command
from core.cli.budgets import command as budgets_command
from tests.support.eventually import eventually_sync
from tests.support.gateway import KEYS, MESSAGES, OURS, key_environment, model
from tests.support.postgres import PostgresServer
from tests.support.provider import FakeProvider
from tests.support.proxy import ProxyProcess
from tests.support.redis import RedisServer
from tests.support.transcript import Shell, blocks, matches, steps

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

COST = Decimal("0.00002")
"""What `small` bills for the prompt and the answer of these tests: 4 and 8 tokens."""


def config_of(provider: FakeProvider, **more: Any) -> dict[str, Any]:
    """A budget of each kind, chosen by task type; `more` goes into `orchestration:`."""
    each: dict[str, Any] = {"per": "user", "reset_period": "DAILY"}
    degrades: dict[str, Any] = {"at_limit": "degrade", "degrade_to": ["small"]}
    return {
        **OURS,
        "model_list": [model("small", provider.url), model("large", provider.url)],
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        "orchestration": {
            "keys": [
                {"key": "os.environ/KEY_ADA", "user_id": "ada", "team_id": "research", "tier": "premium"},
                {"key": "os.environ/KEY_BOB", "user_id": "bob", "tier": "free"},
                {"key": "os.environ/KEY_SERVICE", "user_id": "service", "tier": "premium", "trusted": True},
            ],
            "tiers": {
                "free": {"models": ["small"], "requests_per_minute": 100},
                "premium": {"models": ["*"]},
            },
            "default_tier": "free",
            "routing": {"policies": {"smart": {"candidates": ["large", "small"]}}},
            "budgets": [
                {"budget_id": "research", "teams": ["research"], "total_budget": 1},
                {"budget_id": "each", "task_types": ["chat"], "total_budget": 0.01, **each},
                {"budget_id": "nothing", "task_types": ["nothing"], "total_budget": 0, **each},
                {"budget_id": "loud", "task_types": ["loud"], "total_budget": 0, "at_limit": "warn"},
                {"budget_id": "cheap", "task_types": ["cheap"], "total_budget": 0.001, **each, **degrades},
            ],
            "alerts": {
                "channels": {"nowhere": "os.environ/NOWHERE"},
                "rules": [{"on": ["budget_refused"], "to": ["nowhere"]}],
            },
            **more,
        },
    }


ENVIRON = {**key_environment(), "NOWHERE": "json://127.0.0.1:9/alerts"}
_users = itertools.count(1)


class Desk:
    """An administrator's, at a proxy, with callers at hand."""

    def __init__(self, proxy: ProxyProcess) -> None:
        self.proxy = proxy
        self.admin = proxy.client()

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        return self.admin.get(f"/orchestration/{path}", params=query).raise_for_status().json()

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.admin.post(f"/orchestration/{path}", json=body)

    def chat(self, task: str, user: str, model: str = "small", **more: Any) -> httpx.Response:
        return self.ask(KEYS["service"], task, model, {"x-user-id": user}, **more)

    def ask(
        self, key: str, task: str, model: str = "small", headers: dict[str, str] | None = None, **more: Any
    ) -> httpx.Response:
        with self.proxy.client(key) as client:
            body = {"model": model, "messages": MESSAGES, "max_tokens": 50, **more}
            return client.post("/v1/chat/completions", json=body, headers={"x-task-type": task, **(headers or {})})

    def me(self, key: str, **headers: str) -> dict[str, Any]:
        with self.proxy.client(key) as client:
            return client.get("/orchestration/me", headers=headers).raise_for_status().json()

    def explain(self, **body: Any) -> dict[str, Any]:
        answer = self.post("budgets/explain", **body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def member(self, budget: str, member: str) -> dict[str, Any]:
        [found] = self.get(f"budgets/{budget}/members", member=member)["members"]
        return found

    def audited(self, action: str, budget: str, member: str | None = None) -> list[dict[str, Any]]:
        found = self.get("audit", subject=f"budgets/{budget}", action=action)["records"]
        return [one for one in found if one["detail"].get("member") == member]


@pytest.fixture(scope="module")
def running(shared_provider: FakeProvider) -> Iterator[ProxyProcess]:
    with ProxyProcess(config_of(shared_provider), env=ENVIRON) as proxy:
        yield proxy


@pytest.fixture
def desk(running: ProxyProcess, provider: FakeProvider) -> Desk:
    return Desk(running)


@pytest.fixture
def user() -> str:
    """One nobody has heard of."""
    return f"user-{next(_users)}"


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


class TestSeen:
    def test_a_budget_says_how_it_stands(self, desk: Desk) -> None:
        before = desk.get("budgets/research")["standing"]
        assert desk.ask(KEYS["ada"], "other").status_code == 200
        after = desk.get("budgets/research")["standing"]
        assert Decimal(after["spent"]) - Decimal(before["spent"]) == COST
        assert Decimal(after["left"]) == 1 - Decimal(after["spent"])
        assert (after["reserved"], after["period"], after["paused"]) == ("0.000000000", "MONTHLY", None)
        assert after["started_at"] < after["resets_at"]

    def test_one_that_each_has_by_itself_says_what_is_the_same_for_all(self, desk: Desk) -> None:
        standing = desk.get("budgets/each")["standing"]
        assert (standing["per"], standing["total"]) == ("user", "0.010000000")
        assert "spent" not in standing

    def test_members_stand_in_the_order_of_what_they_spent(self, desk: Desk) -> None:
        few, many = f"few-{next(_users)}", f"many-{next(_users)}"
        for name in (few, many, many):
            assert desk.chat("chat", name).status_code == 200
        members: list[dict[str, Any]] = []
        query: dict[str, Any] = {"limit": 1}
        while True:
            page = desk.get("budgets/each/members", **query)
            members += page["members"]
            if page["next_cursor"] is None:
                break
            query["cursor"] = page["next_cursor"]
        spent = {one["member"]: Decimal(one["spent"]) for one in members}
        assert (spent[few], spent[many]) == (COST, 2 * COST)
        assert list(spent.values()) == sorted(spent.values(), reverse=True)
        assert desk.member("each", many)["left"] == "0.009960000"
        assert desk.member("each", "somebody-who-never-asked")["left"] == "0.010000000"

    def test_past_periods_and_adjustments_are_in_the_history(self, desk: Desk, user: str) -> None:
        desk.chat("chat", user)
        desk.post("budgets/each/grant", member=user, amount=2, reason="a long week").raise_for_status()
        found = desk.get("budgets/each/history", member=user)
        assert [(one["spent"], one["extra"]) for one in found["periods"]] == [("0.000020000", "2.000000000")]
        [adjustment] = found["adjustments"]
        assert (adjustment["kind"], adjustment["amount"], adjustment["reason"]) == (
            *("grant", "2.000000000"),
            "a long week",
        )

    @pytest.mark.parametrize("path", ["budgets/none/members", "budgets/none/history"])
    def test_a_budget_that_is_not_there_is_not_found(self, desk: Desk, path: str) -> None:
        assert code_of(desk.admin.get(f"/orchestration/{path}")) == (404, "not_found")

    @pytest.mark.parametrize("query", [{"limit": "0"}, {"cursor": "nonsense"}, {"member": ""}])
    def test_a_query_that_makes_no_sense_is_refused(self, desk: Desk, query: dict[str, str]) -> None:
        assert code_of(desk.admin.get("/orchestration/budgets/each/members", params=query)) == (400, "invalid_field")


class TestSteered:
    def test_a_grant_is_in_force_at_once_and_made_once(self, desk: Desk, user: str) -> None:
        assert code_of(desk.chat("nothing", user)) == (429, "budget_exceeded")
        grant = {"member": user, "amount": "0.01", "reason": "a demo", "id": f"grant-of-{user}"}
        for _ in range(2):
            granted = desk.post("budgets/nothing/grant", **grant)
            assert granted.status_code == 200, granted.text
            assert granted.json()["standing"]["left"] == "0.010000000"
        assert code_of(desk.post("budgets/nothing/grant", **grant | {"amount": 5})) == (409, "id_taken")
        assert code_of(desk.post("budgets/nothing/grant", **grant | {"member": "another"})) == (409, "id_taken")
        answer = desk.chat("nothing", user)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-orchestration-budget-remaining"] == "0.009980000"
        [record] = desk.audited("budget.grant", "nothing", user)
        assert record["detail"]["reason"] == "a demo"
        assert record["detail"]["before"] == {"spent": "0.000000000", "extra": "0.000000000"}
        assert record["detail"]["after"] == {"spent": "0.000000000", "extra": "0.010000000"}

    def test_a_reset_forgives_what_was_spent(self, desk: Desk, user: str) -> None:
        for _ in range(3):
            desk.chat("chat", user)
        answer = desk.post("budgets/each/reset", member=user, reason="a loop of ours").json()
        assert (answer["amount"], answer["standing"]["left"]) == ("0.000060000", "0.010000000")
        assert answer["standing"]["spent"] == "0.000060000", "what was spent stays in the books"
        assert desk.post("budgets/each/reset", member=user, reason="again").json()["amount"] == "0.000000000"
        assert desk.chat("chat", user).headers["x-orchestration-budget-remaining"] == "0.009980000"
        assert len(desk.audited("budget.reset", "each", user)) == 2

    @pytest.mark.parametrize("budget", ["each", "loud", "cheap"])
    def test_a_paused_budget_admits_nothing_whatever_it_does_at_its_limit(
        self, desk: Desk, user: str, provider: FakeProvider, budget: str
    ) -> None:
        task = "chat" if budget == "each" else budget
        assert desk.chat(task, user).status_code == 200
        asked = len(provider.attempts)
        paused = desk.post(f"budgets/{budget}/pause", reason="an audit").json()
        try:
            assert (paused["changed"], paused["paused"]["reason"]) == (True, "an audit")
            assert not desk.post(f"budgets/{budget}/pause", reason="another").json()["changed"]
            refused = desk.chat(task, user)
            assert code_of(refused) == (429, "budget_exceeded")
            assert "is paused: an audit" in refused.json()["error"]["message"]
            assert desk.get(f"budgets/{budget}")["standing"]["paused"]["reason"] == "an audit"
            outcome = desk.explain(user_id=user, task_type=task, model="small")["outcome"]
            assert (outcome["result"], outcome["budget_id"]) == ("refused", budget)
            assert len(provider.attempts) == asked
        finally:
            resumed = desk.post(f"budgets/{budget}/resume").json()
        assert (resumed["changed"], resumed["paused"]) == (True, None)
        assert desk.chat(task, user).status_code == 200
        assert desk.audited("budget.pause", budget) and desk.audited("budget.resume", budget)

    @pytest.mark.parametrize(
        ("path", "body", "complaint"),
        [
            ("each/grant", {"amount": 1, "reason": "x"}, "member: say whose"),
            ("research/grant", {"amount": 1, "reason": "x", "member": "ada"}, "is shared"),
            ("research/grant", {"amount": 0, "reason": "x"}, "amount"),
            ("research/grant", {"amount": "NaN", "reason": "x"}, "amount"),
            ("research/grant", {"amount": "1e-12", "reason": "x"}, "nine decimals"),
            ("research/grant", {"amount": 1}, "reason: say why"),
            ("research/grant", {"amount": 1, "reason": "x", "ammount": 1}, "did you mean 'amount'"),
            ("research/reset", {"reason": "  "}, "reason: say why"),
            ("research/pause", {}, "reason: say why"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, desk: Desk, path: str, body: dict[str, Any], complaint: str) -> None:
        answer = desk.post(f"budgets/{path}", **body)
        assert code_of(answer) == (400, "invalid_field")
        assert complaint in answer.json()["error"]["message"]

    def test_ordinary_keys_may_do_none_of_this(self, desk: Desk) -> None:
        with desk.proxy.client(KEYS["ada"]) as client:
            for word in ("grant", "reset", "pause", "resume"):
                body = {"amount": 1, "reason": "mine"}
                assert client.post(f"/orchestration/budgets/research/{word}", json=body).status_code == 403
            for path in ("budgets/each/members", "budgets/research/history", "alerts/dead"):
                assert client.get(f"/orchestration/{path}").status_code == 403
            assert client.post("/orchestration/alerts/test", json={"channel": "nowhere"}).status_code == 403


class TestExplained:
    def test_it_foretells_what_is_reserved_and_keeps_nothing(self, desk: Desk, user: str) -> None:
        asked = {"user_id": user, "task_type": "chat", "model": "small", "input_tokens": 100, "output_tokens": 50}
        first, again = desk.explain(**asked), desk.explain(**asked)
        [budget] = first["budgets"]
        assert first == again
        assert (budget["budget_id"], budget["member"], budget["left"]) == ("each", user, "0.010000000")
        assert budget["why"] == "the task type is chat; each user has its own"
        assert first["outcome"]["result"] == "admitted"
        assert Decimal(budget["would_reserve"]) >= Decimal(100 * 1_000 + 50 * 2_000) / 10**9

    def test_a_refusal_is_the_one_that_the_client_would_get(self, desk: Desk, user: str) -> None:
        outcome = desk.explain(user_id=user, task_type="nothing", model="small", output_tokens=50)["outcome"]
        refused = desk.chat("nothing", user)
        error = refused.json()["error"]
        assert (outcome["status"], outcome["code"]) == code_of(refused)
        assert outcome["until"] == error["details"]["resets_at"]
        assert outcome["budget_id"] == error["details"]["budget_id"] == "nothing"

    def test_a_cheaper_model_that_would_answer_instead_is_named(self, desk: Desk, user: str) -> None:
        asked = {"key": "service", "user_id": user, "task_type": "cheap", "output_tokens": 50}
        outcome = desk.explain(model="large", **asked)["outcome"]
        answer = desk.chat("cheap", user, "large")
        assert outcome["model"] == answer.headers["x-orchestration-model"] == "small"
        assert outcome["degraded_by"] == ["cheap"]

    def test_a_limit_that_would_be_set_is_told(self, desk: Desk, user: str) -> None:
        outcome = desk.explain(user_id=user, task_type="chat", model="small")["outcome"]
        assert outcome["clamped"] == outcome["output_limit"] == 2048

    def test_a_user_is_asked_about_with_the_key_that_the_configuration_has(self, desk: Desk) -> None:
        found = desk.explain(user_id="ada", model="smart")
        assert found["caller"] == {"user_id": "ada", "team_id": "research", "groups": [], "tier": "premium"}
        assert [one["budget_id"] for one in found["budgets"]] == ["research"]
        assert desk.explain(key="bob", model="large")["outcome"]["code"] == "model_not_allowed"

    def test_callers_may_ask_about_themselves_alone(self, desk: Desk) -> None:
        with desk.proxy.client(KEYS["bob"]) as client:
            own = client.post("/orchestration/budgets/explain", json={"model": "small", "task_type": "chat"})
            assert [one["member"] for one in own.json()["budgets"]] == ["bob"]
            named = client.post("/orchestration/budgets/explain", json={"model": "small", "user_id": "bob"})
            assert named.status_code == 200
            for other in ({"user_id": "ada"}, {"team_id": "research"}, {"key": "ada"}):
                answer = client.post("/orchestration/budgets/explain", json={"model": "small", **other})
                assert answer.status_code == 403

    @pytest.mark.parametrize(
        "body", [{}, {"model": 1}, {"model": "small", "output_tokens": 0}, {"model": "small", "modle": "x"}, []]
    )
    def test_a_question_that_makes_no_sense_is_refused(self, desk: Desk, body: Any) -> None:
        assert code_of(desk.admin.post("/orchestration/budgets/explain", json=body)) == (400, "invalid_field")


class TestMe:
    def test_a_key_sees_its_own_tier_models_limits_budgets_and_usage(self, desk: Desk) -> None:
        assert desk.ask(KEYS["bob"], "chat").status_code == 200
        found = desk.me(KEYS["bob"])
        assert (found["user_id"], found["tier"], found["team_id"]) == ("bob", "free", None)
        assert found["models"] == ["smart", "small"]
        [limit] = found["limits"]
        assert (limit["limit"], limit["allowed"], limit["scope"]) == ("requests_per_minute", 100, "tier")
        assert limit["used"] >= 1
        budgets = {one["budget_id"]: one for one in found["budgets"]}
        assert budgets.keys() == {"each", "nothing", "loud", "cheap"}
        assert budgets["each"]["member"] == "bob"
        assert Decimal(budgets["each"]["left"]) == Decimal("0.01") - Decimal(budgets["each"]["spent"])
        assert budgets["each"]["task_types"] == ["chat"]
        assert found["usage"]["today"]["requests"] >= 1

    def test_it_says_nothing_of_others(self, desk: Desk) -> None:
        desk.ask(KEYS["ada"], "chat").raise_for_status()
        desk.ask(KEYS["bob"], "chat").raise_for_status()
        with desk.proxy.client(KEYS["bob"]) as client:
            text = client.get("/orchestration/me").text
        assert "ada" not in text and "research" not in text
        assert {one["budget_id"] for one in desk.me(KEYS["ada"])["budgets"]} >= {"research", "each"}

    def test_a_trusted_key_asks_for_whom_it_speaks(self, desk: Desk, user: str) -> None:
        desk.chat("chat", user)
        spent = {one["budget_id"]: one["spent"] for one in desk.me(KEYS["service"], **{"x-user-id": user})["budgets"]}
        assert spent["each"] == "0.000020000"
        assert desk.me(KEYS["bob"], **{"x-user-id": user})["user_id"] == "bob"

    def test_nobody_is_told_without_a_key(self, desk: Desk) -> None:
        for headers in ({}, {"authorization": "Bearer sk-nobody"}):
            answer = httpx.get(f"{desk.proxy.url}/orchestration/me", headers=headers, trust_env=False)
            assert answer.status_code == 401


class TestAlerts:
    def test_a_message_that_was_given_up_is_seen_and_sent_again(self, desk: Desk, user: str) -> None:
        assert desk.chat("nothing", user).status_code == 429

        def given_up() -> list[dict[str, Any]]:
            dead = desk.get("alerts/dead", limit=1000)["dead"]
            return [one for one in dead if one["subject"] == f"nothing/{user}"]

        [one] = eventually_sync(given_up, within=30)
        assert (one["event"], one["channel"]) == ("budget_refused", "nowhere")
        assert "127.0.0.1" in one["error"]
        again = desk.post(f"alerts/dead/{one['id']}/resend")
        assert again.json() == {"id": one["id"], "resent": True}
        assert eventually_sync(given_up, within=30), "it fails for the same reason"
        assert code_of(desk.post("alerts/dead/nothing:nowhere/resend")) == (404, "not_found")
        assert desk.get("audit", action="alert.resend")["records"]

    def test_a_channel_is_tried_out(self, desk: Desk) -> None:
        answer = desk.post("alerts/test", channel="nowhere")
        assert code_of(answer) == (502, "alert_not_sent")
        assert "127.0.0.1" in answer.json()["error"]["message"]
        missing = desk.post("alerts/test", channel="nowehre")
        assert code_of(missing) == (404, "not_found")
        assert "did you mean 'nowhere'" in missing.json()["error"]["message"]


@pytest.fixture
def run(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`run("budgets", "list")` prints what the command prints, which must end with `code`."""
    monkeypatch.setenv("LITELLM_MASTER_KEY", str(desk.proxy.key))

    def run(group: str, *arguments: str, code: int = 0) -> str:
        command = {"budgets": budgets_command, "alerts": alerts_command}[group]
        result = CliRunner().invoke(command, [*arguments, "--url", desk.proxy.url])
        assert result.exit_code == code, result.output
        assert str(desk.proxy.key) not in result.output
        return result.output

    return run


class TestCommandLine:
    def test_budgets_are_listed_and_shown(self, desk: Desk, run: Callable[..., str], user: str) -> None:
        desk.chat("chat", user)
        listed = run("budgets", "list")
        assert all(name in listed for name in ("research", "each user", "DAILY", "$0.01", "degrade"))
        assert {one["id"] for one in json.loads(run("budgets", "list", "--json"))} >= {"research", "each"}
        shown = run("budgets", "show", "each", "--member", user)
        assert user in shown and "$0.00002" in shown and "task_types: chat, each user by itself" in shown
        assert "There is no budget 'eahc'; did you mean 'each'?" in run("budgets", "show", "eahc", code=1)

    def test_a_user_s_request_is_explained(self, run: Callable[..., str], user: str) -> None:
        admitted = run("budgets", "explain", user, "--model", "small", "--tokens", "50", "--task-type", "chat")
        assert "Admitted, answered by small" in admitted and "the task type is chat" in admitted
        refused = run("budgets", "explain", user, "--model", "small", "--task-type", "nothing")
        assert "Refused with 429 (budget_exceeded): Your part of the budget 'nothing'" in refused
        assert "No budget applies." in run("budgets", "explain", user, "--model", "small")

    def test_a_budget_is_topped_up_reset_paused_and_resumed(self, run: Callable[..., str], user: str) -> None:
        why = ("--member", user, "--reason", "a demo")
        assert "each: $1.50 granted; $1.51 of it is left" in run("budgets", "grant", "each", "--amount", "1.5", *why)
        assert "each: $0.00 forgiven; $1.51 of it is left" in run("budgets", "reset", "each", *why)
        assert run("budgets", "pause", "each", "--reason", "a demo") == "each: paused\n"
        assert "was paused already" in run("budgets", "pause", "each", "--reason", "a demo")
        assert "paused since" in run("budgets", "list")
        assert run("budgets", "resume", "each") == "each: resumed\n"
        assert run("budgets", "resume", "each") == "each: was not paused\n"

    def test_alerts_are_tried_out_and_sent_again(self, desk: Desk, run: Callable[..., str], user: str) -> None:
        assert "127.0.0.1" in run("alerts", "test", "nowhere", code=1)
        desk.chat("nothing", user)
        eventually_sync(lambda: f"nothing/{user}" in json.dumps(desk.get("alerts/dead", limit=1000)), within=30)
        assert f"nothing/{user}" in run("alerts", "dead", "--limit", "1000", code=1)
        assert "sent again" in run("alerts", "resend", "--all")


def test_what_an_administrator_does_reaches_the_other_instances_at_once(
    provider: FakeProvider, redis_server: RedisServer, postgres_server: PostgresServer, postgres_url: str, user: str
) -> None:
    config = config_of(provider, store={"url": postgres_url}, shared_state={"url": redis_server.url})
    with ExitStack() as stack:
        proxies = [ProxyProcess(config, env=ENVIRON) for _ in range(2)]
        for proxy in proxies:
            proxy.spawn()
            stack.callback(proxy.close)
        for proxy in proxies:
            proxy.wait_until_ready()
        one, other = (Desk(proxy) for proxy in proxies)
        for desk in (one, other):
            eventually_sync(lambda desk=desk: desk.get("status")["shared_state"]["connected"])
        eventually_sync(lambda: code_of(other.chat("nothing", user)) == (429, "budget_exceeded"), within=20)
        grant = one.post("budgets/nothing/grant", member=user, amount=1, reason="a demo")
        assert grant.status_code == 200, grant.text
        assert other.chat("nothing", user).status_code == 200
        one.post("budgets/nothing/pause", reason="stop").raise_for_status()
        eventually_sync(lambda: other.chat("nothing", user).status_code == 429, within=2)
        other.post("budgets/nothing/resume").raise_for_status()
        eventually_sync(lambda: one.chat("nothing", user).status_code == 200, within=2)
        spent = Decimal(other.member("nothing", user)["spent"])
        eventually_sync(
            lambda: Decimal(one.get("budgets/nothing/history", member=user)["periods"][0]["spent"]) == spent
        )
        assert (
            one.post("budgets/nothing/reset", member=user, reason="again").json()["standing"]["left"] == "1.000000000"
        )
        assert other.member("nothing", user)["left"] == "1.000000000"

        redis_server.stop()
        away = one.get("budgets/research")["standing"]
        assert (away["spent"], away["left"]) == (None, None)
        assert "not known" in away["trouble"]
        granted = one.post("budgets/nothing/grant", member=user, amount=1, reason="while Redis is away")
        assert granted.status_code == 200, granted.text
        redis_server.start()
        eventually_sync(lambda: other.member("nothing", user)["left"] == "2.000000000", within=30)


def test_the_commands_of_the_page_print_what_it_says(provider: FakeProvider) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "budgets.md"
    budgets = yaml.safe_load(blocks(page, "yaml")[0])["orchestration"]
    config = {
        **OURS,
        "model_list": [model("small", provider.url), model("large", provider.url)],
        "orchestration": {
            **budgets,
            "keys": [{"key": "os.environ/KEY_ADA", "user_id": "ada", "team_id": "research"}],
        },
    }
    with ProxyProcess(config, env=key_environment()) as proxy:
        environ = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(proxy.cwd),
            "LITELLM_MASTER_KEY": str(proxy.key),
        }
        shell = Shell(proxy.cwd, environ)
        try:
            for step in steps(page):
                printed = shell.run(f"{step.command} --url {proxy.url}")
                assert matches(step.expected, printed), f"$ {step.command}\n{printed}"
        finally:
            shell.close()
