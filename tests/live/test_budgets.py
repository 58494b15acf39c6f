"""Budgets on every endpoint, by the provider's own bill: what fits is let through, what does not is never sent."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from core.money import to_dollars
from tests.support.budgeted import (
    CALLS,
    GENERATING,
    LARGEST,
    LIMIT,
    Budgeted,
    Call,
    bill_nano,
    budgeted_config,
    limits_received,
    remaining,
    worst_nano,
)
from tests.support.gateway import MESSAGES, PROMPT, key_environment
from tests.support.provider import FakeProvider
from tests.support.proxy import ProxyProcess

pytestmark = pytest.mark.live

every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
every_generating_call = pytest.mark.parametrize("call", GENERATING.values(), ids=GENERATING.keys())

CHAT = GENERATING["chat"]
OPEN_ENDED = {name: call for name, call in GENERATING.items() if call.path != "/v1/messages"}
"""Those that need no output limit: a message without max_tokens is not valid."""


@pytest.fixture
def gateway(
    shared_provider: FakeProvider, shared_proxy: Callable[..., ProxyProcess], provider: FakeProvider
) -> Budgeted:
    return Budgeted.begin(shared_proxy(budgeted_config(shared_provider), env=key_environment()), provider)


class TestRoom:
    @every_call
    def test_what_fits_is_let_through_and_store_header_and_bill_agree(self, call: Call, gateway: Budgeted):
        user = gateway.new_user()
        answer = gateway.ask(call.path, call.limited(), "roomy", user)
        assert answer.status_code == 200, answer.text
        [billed] = gateway.provider.attempts
        bill = bill_nano([billed])
        assert bill > 0

        event = gateway.event(answer)
        [attempt] = event.attempts
        assert (event.usage, event.cost_nano, event.unknown_nano) == ("reported", bill, 0)
        assert gateway.accounts.spent("roomy", user) == bill
        kept = attempt.reserved_nano if call.streamed else bill
        assert remaining(answer) == to_dollars(gateway.total_nano("roomy") - kept), (
            "of a stream: besides what it may cost"
        )
        assert attempt.reserved_nano >= worst_nano(billed) >= bill
        [account] = attempt.accounts
        assert account.startswith("roomy~") and account.endswith(f"|{user}")
        assert "x-orchestration-clamped" not in answer.headers

    @every_call
    def test_the_next_request_finds_what_the_one_before_has_left(self, call: Call, gateway: Budgeted):
        user = gateway.new_user()
        assert gateway.ask(call.path, call.limited(), "roomy", user).status_code == 200
        whole = CHAT.limited()
        answer = gateway.ask(CHAT.path, whole, "roomy", user)
        assert remaining(answer) == to_dollars(gateway.total_nano("roomy") - gateway.billed_nano)

    def test_of_answers_that_run_to_their_limit_nothing_is_spent_beyond_what_was_reserved(self, gateway: Budgeted):
        gateway.provider.script(output_tokens=1 << 20)
        for call in GENERATING.values():
            assert gateway.ask(call.path, call.limited(), "roomy").status_code == 200
        for event in gateway.books.recorded(len(GENERATING)):
            [attempt] = event.attempts
            assert 0 < attempt.cost_nano <= attempt.reserved_nano
        assert {billed.completion_tokens for billed in gateway.provider.attempts} == {LIMIT}


class TestNoRoom:
    @every_call
    def test_what_does_not_fit_is_refused_and_the_provider_is_never_asked(self, call: Call, gateway: Budgeted):
        user = gateway.new_user()
        answer = gateway.ask(call.path, call.limited(), "tight", user)
        assert answer.status_code == 429, answer.text
        assert gateway.provider.attempts == []

        body = answer.json()
        error = body["error"]
        assert (error["type"], error["code"]) == ("insufficient_quota", "budget_exceeded")
        assert (body.get("type") == "error") == (call.path == "/v1/messages"), "Anthropic's clients look for it"
        assert "'tight'" in error["message"] and "$0.0000001" in error["message"]
        details = error["details"]
        assert details["budget_id"] == "tight" and details["member"] == user
        assert (details["spent"], details["reserved"], details["total"]) == ("0.000000000",) * 2 + ("0.000000100",)
        assert Decimal(details["needed"]) > Decimal(details["total"])
        assert details["resets_at"].endswith("Z")
        assert answer.headers["x-should-retry"] == "false"
        assert 0 < int(answer.headers["retry-after"]) <= 31 * 86_400
        assert answer.headers["x-orchestration-request-id"]

        event = gateway.event(answer)
        assert (event.status, event.error_class, event.attempts) == (429, "BudgetExceeded", [])
        assert (event.cost_nano, gateway.accounts.spent("tight", user)) == (0, 0)

    def test_a_budget_that_never_begins_anew_names_no_time_to_come_back(self, gateway: Budgeted):
        answer = gateway.ask(CHAT.path, CHAT.limited(), "tight-for-ever")
        assert answer.status_code == 429
        assert "retry-after" not in answer.headers and answer.headers["x-should-retry"] == "false"
        assert answer.json()["error"]["details"]["resets_at"] is None

    def test_a_warning_refuses_nothing_and_counts_everything(self, gateway: Budgeted):
        user = gateway.new_user()
        for _ in range(3):
            assert gateway.ask(CHAT.path, CHAT.limited(), "warning", user).status_code == 200
        gateway.books.recorded(3)
        assert gateway.accounts.spent("warning", user) == gateway.billed_nano > gateway.total_nano("warning")

    def test_a_request_that_no_budget_covers_is_not_touched(self, gateway: Budgeted):
        answer = gateway.ask(CHAT.path, CHAT.limited(None), "anything-else")
        assert answer.status_code == 200
        assert "x-orchestration-budget-remaining" not in answer.headers
        [billed] = gateway.provider.attempts
        assert limits_received(billed) == {}


BYPASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "extra_body": ("/v1/chat/completions", {"max_tokens": 5, "extra_body": {"max_tokens": 900}}),
    "extra_body alone": ("/v1/chat/completions", {"extra_body": {"max_tokens": 900}}),
    "extra_body under another name": (
        "/v1/chat/completions",
        {"max_tokens": 5, "extra_body": {"max_completion_tokens": 900}},
    ),
    "extra_body's copies": ("/v1/chat/completions", {"max_tokens": 50, "extra_body": {"n": 8}}),
    "copies": ("/v1/chat/completions", {"max_tokens": 50, "n": 8}),
    "several names": ("/v1/chat/completions", {"max_tokens": 5, "max_completion_tokens": 900}),
    "names of others": ("/v1/chat/completions", {"max_tokens": 5, "max_output_tokens": 900}),
    "a limit dropped": (
        "/v1/chat/completions",
        {"max_tokens": 50, "additional_drop_params": ["max_tokens"]},
    ),
    "a stream's copies": ("/v1/chat/completions", {"max_tokens": 50, "n": 8, "stream": True}),
    "best_of": ("/v1/completions", {"max_tokens": 50, "best_of": 6}),
    "extra_body of a completion": ("/v1/completions", {"max_tokens": 5, "extra_body": {"max_tokens": 900}}),
    "extra_body of a response": (
        "/v1/responses",
        {"max_output_tokens": 50, "extra_body": {"max_output_tokens": 900}},
    ),
    "a chat limit in a response": ("/v1/responses", {"max_output_tokens": 50, "max_tokens": 900}),
    "a fallback's limit": (
        "/v1/chat/completions",
        {"max_tokens": 50, "fallbacks": [{"model": "large", "max_tokens": 900}]},
    ),
    "Cursor's dialect": ("/cursor/chat/completions", {}),
    "Cursor's dialect with a limit": ("/cursor/chat/completions", {"max_tokens": 900, "max_output_tokens": 50}),
    "thinking": (
        "/v1/messages",
        {"model": "claude", "max_tokens": 50, "thinking": {"type": "enabled", "budget_tokens": 2000}},
    ),
    "extra_body of a message": ("/v1/messages", {"max_tokens": 50, "extra_body": {"max_tokens": 900}}),
}


class TestLimits:
    """The limit that is sent is the limit that is reserved, whoever set it and whatever it is called."""

    @pytest.mark.parametrize("call", OPEN_ENDED.values(), ids=OPEN_ENDED.keys())
    def test_who_gives_none_is_told_which_one_was_set(self, call: Call, gateway: Budgeted):
        gateway.provider.script(output_tokens=1 << 20)
        user = gateway.new_user()
        answer = gateway.ask(call.path, call.limited(None), "roomy", user)
        assert answer.status_code == 200, answer.text
        clamped = int(answer.headers["x-orchestration-clamped"])
        [billed] = gateway.provider.attempts
        assert limits_received(billed) == {call.received: clamped}
        event = gateway.event(answer)
        assert event.clamped == clamped
        [attempt] = event.attempts
        assert billed.completion_tokens == clamped
        assert attempt.reserved_nano >= worst_nano(billed) == gateway.billed_nano == event.cost_nano
        assert gateway.accounts.spent("roomy", user) == gateway.billed_nano

    @every_generating_call
    def test_who_gives_one_keeps_it(self, call: Call, gateway: Budgeted):
        assert gateway.ask(call.path, call.limited(), "roomy").status_code == 200
        [billed] = gateway.provider.attempts
        assert limits_received(billed) == {call.received: LIMIT}

    def test_a_models_own_maximum_is_set_where_there_is_plenty_for_it(self, gateway: Budgeted):
        answer = gateway.ask(CHAT.path, {"model": "measured", "messages": MESSAGES}, "roomy")
        [billed] = gateway.provider.attempts
        assert answer.status_code == 200 and limits_received(billed) == {"max_tokens": LARGEST}
        assert "x-orchestration-clamped" not in answer.headers, "the model gives no longer answers anyway"

    @pytest.mark.parametrize(("path", "more"), BYPASSES.values(), ids=BYPASSES.keys())
    def test_what_the_provider_receives_is_what_was_reserved_for(
        self, path: str, more: dict[str, Any], gateway: Budgeted
    ):
        gateway.provider.script(output_tokens=1 << 20)
        content = {
            "/v1/completions": {"prompt": PROMPT},
            "/v1/responses": {"input": PROMPT},
            "/cursor/chat/completions": {"input": PROMPT},
        }
        body = {"model": "small", **content.get(path, {"messages": MESSAGES}), **more}
        user = gateway.new_user()
        answer = gateway.ask(path, body, "roomy", user)
        if answer.status_code == 400:
            assert gateway.provider.attempts == [], answer.text
            return
        assert answer.status_code == 200, answer.text
        [billed] = gateway.provider.attempts
        assert limits_received(billed), "nothing limits the answer"
        event = gateway.event(answer)
        [attempt] = event.attempts
        assert attempt.reserved_nano >= worst_nano(billed)
        assert gateway.accounts.spent("roomy", user) == event.cost_nano == gateway.billed_nano <= attempt.reserved_nano

    @pytest.mark.parametrize("more", [{"n": 12}, {"extra_body": {"n": 12}}, {"extra_body": {"max_tokens": 4000}}])
    def test_what_would_get_round_a_limit_does_not_fit_either(self, more: dict[str, Any], gateway: Budgeted):
        """A request that fits on its face, and would not if it were sent as meant."""
        user = gateway.new_user()
        assert gateway.ask(CHAT.path, CHAT.limited(), "small-change", user).status_code == 200
        answer = gateway.ask(CHAT.path, CHAT.limited() | more, "small-change", user)
        assert answer.status_code == 429, answer.text
        assert len(gateway.provider.attempts) == 1

    @every_generating_call
    def test_a_tier_caps_the_limit_with_budgets_and_without(self, call: Call, gateway: Budgeted):
        gateway.provider.script(output_tokens=1 << 20)
        asked = [LIMIT] if call.path == "/v1/messages" else [LIMIT, None]
        for limit in asked:
            for task in ("roomy", "anything-else"):
                answer = gateway.ask(call.path, call.limited(limit), task, tier="brief")
                assert answer.status_code == 200, answer.text
                assert answer.headers["x-orchestration-clamped"] == "20"
                billed = gateway.provider.attempts[-1]
                assert limits_received(billed) == {call.received: 20}
                assert billed.completion_tokens == 20

    def test_a_tier_leaves_a_lower_limit_alone(self, gateway: Budgeted):
        answer = gateway.ask(CHAT.path, CHAT.limited(7), "roomy", tier="brief")
        [billed] = gateway.provider.attempts
        assert limits_received(billed) == {"max_tokens": 7}
        assert "x-orchestration-clamped" not in answer.headers


UNBOUNDED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a model without a price": (
        "/v1/chat/completions",
        {"model": "unpriced", "messages": MESSAGES, "max_tokens": LIMIT},
        "input_cost_per_token",
    ),
    "an earlier response": (
        "/v1/responses",
        {"model": "small", "input": PROMPT, "max_output_tokens": LIMIT, "previous_response_id": "resp_123"},
        "previous_response_id",
    ),
    "a file by its id": (
        "/v1/chat/completions",
        {
            "model": "small",
            "max_tokens": LIMIT,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": PROMPT},
                        {"type": "file", "file": {"file_id": "file-abc"}},
                    ],
                }
            ],
        },
        "file",
    ),
    "a stream in the background": (
        "/v1/responses",
        {"model": "small", "input": PROMPT, "max_output_tokens": LIMIT, "background": True, "stream": True},
        "background",
    ),
    "a stored prompt": (
        "/v1/responses",
        {"model": "small", "input": PROMPT, "max_output_tokens": LIMIT, "prompt": {"id": "pmpt_1"}},
        "prompt",
    ),
    "a tool that the provider runs": (
        "/v1/responses",
        {"model": "small", "input": PROMPT, "max_output_tokens": LIMIT, "tools": [{"type": "web_search"}]},
        "web_search",
    ),
}
unbounded = pytest.mark.parametrize(("path", "body", "why"), UNBOUNDED.values(), ids=UNBOUNDED.keys())


class TestUnbounded:
    @unbounded
    def test_it_is_refused_and_says_what_to_configure(
        self, path: str, body: dict[str, Any], why: str, gateway: Budgeted
    ):
        answer = gateway.ask(path, body, "roomy")
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert error["code"] == "cost_unbounded"
        assert why in error["message"] and "flat_reserve" in error["message"]
        assert error["details"]["budget_id"] == "roomy" and error["details"]["reasons"]
        assert gateway.provider.attempts == []
        event = gateway.event(answer)
        assert (event.error_class, event.attempts, event.cost_nano) == ("CostUnbounded", [], 0)

    @unbounded
    def test_with_a_flat_reserve_it_is_admitted_as_long_as_that_fits(
        self, path: str, body: dict[str, Any], why: str, gateway: Budgeted
    ):
        user = gateway.new_user()
        flat = 5_000_000
        answer = gateway.ask(path, body, "flat", user)
        assert answer.status_code == 200, answer.text
        event = gateway.event(answer)
        [attempt] = event.attempts
        assert attempt.reserved_nano == flat
        if body["model"] == "unpriced":
            assert (event.usage, event.cost_nano, event.unknown_nano) == ("unknown", flat, flat)
            assert gateway.ask(path, body, "flat", user).status_code == 200
            third = gateway.ask(path, body, "flat", user)
            assert third.status_code == 429 and third.json()["error"]["details"]["needed"] == "0.005000000"
            gateway.books.recorded(3)
            assert gateway.accounts.spent("flat", user) == 2 * flat
        else:
            assert event.cost_nano == gateway.billed_nano == gateway.accounts.spent("flat", user)

    def test_a_warning_does_not_refuse_it(self, gateway: Budgeted):
        path, body, _ = UNBOUNDED["an earlier response"]
        assert gateway.ask(path, body, "warning").status_code == 200


class TestWhoPays:
    def test_each_user_team_key_and_model_has_an_own_account_and_one_request_is_charged_to_all(self, gateway: Budgeted):
        user = gateway.new_user()
        before = {(kind, who): gateway.accounts.spent(f"each-{kind}", who) for kind, who in _members(gateway)}
        assert gateway.ask(CHAT.path, CHAT.limited(), "members", user, who="ada").status_code == 200
        assert gateway.ask(CHAT.path, {**CHAT.limited(), "model": "large"}, "members", who="bob").status_code == 200
        ada, bob = sorted(gateway.books.recorded(2), key=lambda event: str(event.user_id))
        [one, other] = gateway.provider.attempts
        paid = {"ada": bill_nano([one]), "bob": bill_nano([other])}
        assert (ada.cost_nano, bob.cost_nano) == (paid["ada"], paid["bob"])
        for kind, (mine, theirs) in {
            "user": ("ada", "bob"),
            "team": ("research", "sales"),
            "key": (str(ada.key_hash), str(bob.key_hash)),
            "model": ("small", "large"),
        }.items():
            assert gateway.accounts.spent(f"each-{kind}", mine) - before.get((kind, mine), 0) == paid["ada"], kind
            assert gateway.accounts.spent(f"each-{kind}", theirs) - before.get((kind, theirs), 0) == paid["bob"], kind
        assert gateway.accounts.spent("each-user", user) == 0, "only trusted keys speak for somebody"
        assert {len(event.attempts[0].accounts) for event in (ada, bob)} == {4}

    def test_a_group_pays_for_its_members_only(self, gateway: Budgeted):
        before = gateway.accounts.spent("of-scientists"), gateway.accounts.spent("of-writers")
        assert gateway.ask(CHAT.path, CHAT.limited(), "grouped", who="ada").status_code == 200
        gateway.books.recorded()
        after = gateway.accounts.spent("of-scientists"), gateway.accounts.spent("of-writers")
        assert after == (before[0] + gateway.billed_nano, before[1])

    def test_a_request_that_two_budgets_cover_is_charged_to_both(self, gateway: Budgeted):
        user = gateway.new_user()
        before = gateway.accounts.spent("twofold-too")
        answer = gateway.ask(CHAT.path, CHAT.limited(), "twofold", user)
        assert remaining(answer) == to_dollars(gateway.total_nano("twofold") - gateway.billed_nano), "the tightest"
        gateway.books.recorded()
        assert gateway.accounts.spent("twofold", user) == gateway.billed_nano
        assert gateway.accounts.spent("twofold-too") - before == gateway.billed_nano


def _members(gateway: Budgeted) -> list[tuple[str, str]]:
    return [
        ("user", "ada"),
        ("user", "bob"),
        ("team", "research"),
        ("team", "sales"),
        ("model", "small"),
        ("model", "large"),
    ]
