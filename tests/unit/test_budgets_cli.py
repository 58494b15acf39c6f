"""`llm-orchestration budgets` and `alerts`: what they ask a proxy's admin API, and what they make of its answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from core.cli.alerts import command as alerts
from core.cli.budgets import command as budgets
from core.cli.budgets import outcome_in_words
from tests.support.json_server import Answer, JsonServer, Request

STANDING: dict[str, Any] = {
    "period": "MONTHLY",
    "started_at": "2026-03-01T00:00:00Z",
    "resets_at": "2026-04-01T00:00:00Z",
    "paused": None,
    "per": None,
    "member": None,
    "total": "100.000000000",
    "extra": "20.000000000",
    "spent": "60.500000000",
    "reserved": "3.000000000",
    "left": "56.500000000",
    "used_up_at": "2026-03-20T10:00:00Z",
}
EACH = {"period": "DAILY", "resets_at": "2026-03-02T00:00:00Z", "paused": None, "per": "user", "total": "5.000000000"}
ENTRIES: dict[str, dict[str, Any]] = {
    "team": {
        "id": "team",
        "entry": {"budget_id": "team", "name": "The team", "total_budget": 100, "teams": ["research"]},
        "standing": STANDING,
    },
    "each": {"id": "each", "entry": {"budget_id": "each", "auto_disable_at_limit": False}, "standing": EACH},
}


@dataclass
class Api:
    """A double of the admin API with two budgets; it remembers what it was asked for."""

    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)

    def __call__(self, request: Request) -> Answer:
        path = request.path.removeprefix("/orchestration/")
        body = json.loads(request.body) if request.body else None
        self.asked.append((request.command, path, body))
        if request.headers["Authorization"] != "Bearer sk-test-admin":
            return 401, {}, {"error": {"message": "no"}}
        bare = path.partition("?")[0]
        if bare in self.answers:
            status, content = self.answers[bare]
            return status, {}, content
        if bare == "budgets":
            cursor = request.query.get("cursor")
            name, following = ("each", None) if cursor == "team" else ("team", "team")
            return 200, {}, {"budgets": [{"id": name}], "next_cursor": following}
        found = ENTRIES.get(bare.removeprefix("budgets/"))
        if found is not None:
            return 200, {}, found
        return 404, {}, {"error": {"message": f"There is no {bare}."}}


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def url(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("LITELLM_MASTER_KEY", "sk-test-admin")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    server = JsonServer(0, api)
    yield f"http://127.0.0.1:{server.port}"
    server.stop()


def run(command: click.Command, *arguments: str) -> Result:
    result = CliRunner().invoke(command, arguments)
    assert "sk-test-admin" not in result.output
    return result


def test_all_budgets_are_listed_with_how_they_stand(url: str) -> None:
    result = run(budgets, "list", "--url", url)
    assert result.exit_code == 0, result.output
    header, team, each = (line.split() for line in result.stdout.splitlines())
    assert header[:3] == ["budget", "for", "period"]
    assert team[:8] == ["team", "all", "together", "MONTHLY", "$100.00", "$60.50", "$56.50", "block"]
    assert team[-7:] == ["used", "up", "by", "2026-03-20T10:00:00Z", "at", "this", "pace"]
    assert each == ["each", "each", "user", "DAILY", "$5.00", "warn", "2026-03-02T00:00:00Z"]
    found = json.loads(run(budgets, "list", "--url", url, "--json").stdout)
    assert [one["id"] for one in found] == ["team", "each"]


def test_a_budget_is_shown_with_its_adjustments_and_past_periods(url: str, api: Api) -> None:
    adjustment = {"at": "2026-03-05T00:00:00Z", "kind": "grant", "amount": "20.0", "by": "ada", "reason": "a [demo]"}
    periods = [
        {"started_at": start, "ended_at": end, "spent": spent, "extra": "0.0"}
        for start, end, spent in (("March", "April", "60.5"), ("February", "March", "1234.000001"))
    ]
    api.answers["budgets/team/history"] = (200, {"adjustments": [adjustment], "periods": periods})
    shown = run(budgets, "show", "team", "--url", url)
    assert shown.exit_code == 0, shown.output
    for part in ("team (The team)", "teams: research", "$56.50", "a [demo]", "$1,234.000001", "forecast  used up by"):
        assert part in shown.stdout, part


def test_members_are_asked_for_where_each_has_its_own(url: str, api: Api) -> None:
    member = {"member": "ada", **dict.fromkeys(("total", "extra", "spent", "reserved", "left"), "1.5")}
    api.answers["budgets/each/members"] = (200, {"members": [member | {"left": None}], "next_cursor": None})
    shown = run(budgets, "show", "each", "--members", "3", "--url", url)
    assert shown.stdout.splitlines()[-1].split() == ["ada", "$1.50", "$1.50", "$1.50", "$1.50", "-"]
    assert ("GET", "budgets/each/members?limit=3", None) in api.asked


@pytest.mark.parametrize(
    ("arguments", "path", "body"),
    [
        (
            ["grant", "team", "--amount", "0.10", "--reason", "x", "--id", "n"],
            "budgets/team/grant",
            {"amount": "0.10", "reason": "x", "id": "n"},
        ),
        (
            ["reset", "a b/c", "--member", "ada", "--reason", "x"],
            "budgets/a%20b%2Fc/reset",
            {"member": "ada", "reason": "x"},
        ),
        (["pause", "team", "--reason", "x"], "budgets/team/pause", {"reason": "x"}),
        (["resume", "team"], "budgets/team/resume", {}),
        (
            ["explain", "ada", "--model", "large", "--tokens", "5", "--task-type", "chat"],
            "budgets/explain",
            {"user_id": "ada", "model": "large", "task_type": "chat", "input_tokens": 1000, "output_tokens": 5},
        ),
    ],
)
def test_a_command_asks_for_what_it_is_told(
    url: str, api: Api, arguments: list[str], path: str, body: dict[str, Any]
) -> None:
    api.answers[path] = (200, {})
    run(budgets, *arguments, "--url", url, "--json")
    assert api.asked[-1] == ("POST", path, body)


def test_what_the_proxy_says_against_it_ends_with_one(url: str) -> None:
    result = run(budgets, "show", "none", "--url", url)
    assert (result.exit_code, "answered 404: There is no budgets/none." in result.output) == (1, True)


@pytest.mark.parametrize(
    "arguments", [["grant", "team", "--reason", "x"], ["pause", "team"], ["explain", "ada"], ["show"], ["list", "x"]]
)
def test_a_command_that_lacks_something_ends_with_two(url: str, arguments: list[str]) -> None:
    assert run(budgets, *arguments, "--url", url).exit_code == 2


def test_a_key_is_needed_and_may_stand_in_a_file(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LITELLM_MASTER_KEY")
    without = run(budgets, "list", "--url", url)
    assert (without.exit_code, "LITELLM_MASTER_KEY" in without.output) == (2, True)
    (tmp_path / "key").write_text("sk-test-admin\n")
    assert run(budgets, "list", "--url", url, "--key-file", str(tmp_path / "key")).exit_code == 0


def test_a_proxy_that_does_not_answer_is_named(url: str) -> None:
    result = run(budgets, "list", "--url", "http://127.0.0.1:1")
    assert (result.exit_code, "http://127.0.0.1:1 does not answer" in result.output) == (1, True)


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (
            {"clamped": None, "degraded_by": [], "reserved": "0.020000000"},
            "Admitted, answered by small, $0.02 reserved.",
        ),
        (
            {"clamped": 80, "degraded_by": ["cheap"], "reserved": None},
            "Admitted, answered by small, its output limited to 80 tokens, degraded by cheap.",
        ),
        (
            {"result": "refused", "status": 429, "code": "budget_exceeded", "message": "No."},
            "Refused with 429 (budget_exceeded): No.",
        ),
    ],
)
def test_an_outcome_is_said_in_a_line(outcome: dict[str, Any], words: str) -> None:
    assert outcome_in_words({"result": "admitted", "model": "small", **outcome}) == words


def test_messages_that_were_given_up_are_sent_again_oldest_first(url: str, api: Api) -> None:
    dead = [
        {"id": f"{name}:ops", "time": "t", "event": "e", "subject": "s", "attempts": 60, "error": "away"}
        for name in ("new", "old")
    ]
    api.answers["alerts/dead"] = (200, {"dead": dead})
    api.answers |= {f"alerts/dead/{name}%3Aops/resend": (200, {}) for name in ("new", "old")}
    shown = run(alerts, "dead", "--url", url)
    assert (shown.exit_code, "new:ops" in shown.stdout) == (1, True)
    assert run(alerts, "resend", "--all", "--url", url).exit_code == 0
    assert [path for method, path, _ in api.asked if method == "POST"] == [
        "alerts/dead/old%3Aops/resend",
        "alerts/dead/new%3Aops/resend",
    ]
    assert run(alerts, "resend", "--url", url).exit_code == 2
    assert run(alerts, "resend", "x", "--all", "--url", url).exit_code == 2


def test_a_channel_is_tried_out(url: str, api: Api) -> None:
    api.answers["alerts/test"] = (200, {"channel": "ops", "sent": True})
    assert run(alerts, "test", "ops", "--url", url).stdout == "ops: sent\n"
    api.answers["alerts/test"] = (502, {"error": {"message": "ops: it is away."}})
    failed = run(alerts, "test", "ops", "--url", url)
    assert (failed.exit_code, "it is away" in failed.output) == (1, True)
