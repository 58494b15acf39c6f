"""Budgets and what goes wrong: each attempt is paid for before it is made, and charged what the provider bills."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from textwrap import dedent
from typing import Any

import httpx
import pytest
import yaml

from core.money import to_dollars
from core.usage import UsageEvent
from tests.support.budgeted import GENERATING, Budgeted, Call, bill_nano, budgeted_config, remaining
from tests.support.eventually import eventually_sync
from tests.support.gateway import MESSAGES, PROMPT, key_environment
from tests.support.provider import FakeProvider
from tests.support.proxy import ProxyProcess

pytestmark = pytest.mark.live

CHAT = "/v1/chat/completions"
Body = Callable[..., dict[str, Any]]
"""Makes one of a model, an output limit and further fields."""
STREAMS = {name: GENERATING[f"{name}-stream"] for name in ("chat", "completion", "response", "message")}
every_stream = pytest.mark.parametrize("call", STREAMS.values(), ids=STREAMS.keys())


@pytest.fixture
def gateway(
    shared_provider: FakeProvider, shared_proxy: Callable[..., ProxyProcess], provider: FakeProvider
) -> Budgeted:
    return Budgeted.begin(shared_proxy(budgeted_config(shared_provider), env=key_environment()), provider)


def chat(model: str, limit: int = 50, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": MESSAGES, "max_tokens": limit, **more}


def all_paid_for(event: UsageEvent) -> UsageEvent:
    """Every attempt was reserved for, and none cost more than that."""
    for attempt in event.attempts:
        assert attempt.accounts and attempt.reserved_nano >= attempt.cost_nano, attempt
        assert attempt.reserved_nano > 0
        if attempt.usage == "unknown":
            assert attempt.cost_nano == attempt.reserved_nano
    return event


class TestRetries:
    def test_attempts_that_fail_are_reserved_for_and_cost_nothing(self, gateway: Budgeted):
        gateway.provider.script(model="small", statuses=(500, 503, 200))
        user = gateway.new_user()
        answer = gateway.ask(CHAT, chat("small"), "roomy", user)
        assert answer.status_code == 200
        event = all_paid_for(gateway.event(answer))
        assert [attempt.cost_nano for attempt in event.attempts] == [0, 0, gateway.billed_nano]
        assert gateway.accounts.spent("roomy", user) == event.cost_nano
        assert remaining(answer) == to_dollars(gateway.total_nano("roomy") - event.cost_nano)

    def test_of_a_budget_for_one_attempt_any_number_that_fail_can_be_made_one_after_the_other(self, gateway: Budgeted):
        gateway.provider.script(model="small", statuses=(500, 500, 200))
        user = gateway.new_user()
        answer = gateway.ask(CHAT, chat("small", 200), "small-change", user)
        assert answer.status_code == 200
        event = all_paid_for(gateway.event(answer))
        reserved = [attempt.reserved_nano for attempt in event.attempts]
        assert len(reserved) == 3 and sum(reserved[:2]) > gateway.total_nano("small-change")

    def test_a_timeout_is_charged_what_was_reserved(self, gateway: Budgeted):
        gateway.provider.script(model="hasty", hang=True)
        user = gateway.new_user()
        answer = gateway.ask(CHAT, chat("hasty", num_retries=0), "roomy", user)
        gateway.provider.release()
        assert answer.status_code in (408, 504)
        event = all_paid_for(gateway.event(answer))
        assert [attempt.usage for attempt in event.attempts] == ["unknown"]
        assert gateway.accounts.spent("roomy", user) == event.cost_nano >= gateway.billed_nano
        assert gateway.reserved_nano("roomy", user) == 0

    def test_each_of_several_timeouts_is_charged(self, gateway: Budgeted):
        gateway.provider.script(model="hasty", hang=True)
        user = gateway.new_user()
        answer = gateway.ask(CHAT, chat("hasty", num_retries=1), "roomy", user)
        gateway.provider.release()
        event = all_paid_for(gateway.event(answer))
        assert [attempt.usage for attempt in event.attempts] == ["unknown"] * 2
        assert len(gateway.provider.attempts) == 2
        assert gateway.accounts.spent("roomy", user) == event.cost_nano >= gateway.billed_nano

    def test_a_retry_that_no_longer_fits_is_left_out(self, gateway: Budgeted):
        gateway.provider.script(model="hasty", hang=True)
        user = gateway.new_user()
        answer = gateway.ask(CHAT, chat("hasty", 200), "small-change", user)
        gateway.provider.release()
        assert answer.status_code >= 400
        assert answer.json()["error"]["message"]
        assert len(gateway.provider.attempts) == 1
        event = all_paid_for(gateway.event(answer))
        assert gateway.accounts.spent("small-change", user) == event.cost_nano <= gateway.total_nano("small-change")
        assert event.cost_nano >= gateway.billed_nano

    @every_stream
    def test_a_stream_that_fails_before_its_first_event_costs_nothing_more(self, call: Call, gateway: Budgeted):
        gateway.provider.script(model="small", statuses=(503, 200))
        user = gateway.new_user()
        answer = gateway.ask(call.path, call.limited(), "roomy", user)
        # LiteLLM opens streams of text completions when its router is done: its own retries do not reach them.
        assert answer.status_code == (503 if call.path == "/v1/completions" else 200)
        event = all_paid_for(gateway.event(answer))
        assert (event.attempts[0].status, event.attempts[0].usage) == (503, "none")
        assert gateway.accounts.spent("roomy", user) == event.cost_nano == gateway.billed_nano
        assert gateway.reserved_nano("roomy", user) == 0

    def test_a_connection_that_is_refused_costs_nothing(self, gateway: Budgeted):
        user = gateway.new_user()
        assert gateway.ask(CHAT, chat("nowhere", num_retries=0), "roomy", user).status_code >= 500
        event = all_paid_for(gateway.event())
        assert (event.cost_nano, gateway.accounts.spent("roomy", user)) == (0, 0)
        assert gateway.reserved_nano("roomy", user) == 0

    def test_an_answer_that_cannot_be_read_is_charged_what_was_reserved(self, gateway: Budgeted):
        gateway.provider.script(model="small", malformed=True)
        user = gateway.new_user()
        assert gateway.ask(CHAT, chat("small", num_retries=0), "roomy", user).status_code >= 400
        event = all_paid_for(gateway.event())
        assert event.usage == "unknown"
        assert gateway.accounts.spent("roomy", user) == event.cost_nano >= gateway.billed_nano > 0


def completion(model: str, limit: int = 50, **more: Any) -> dict[str, Any]:
    """A stream of text completions, of whose failures LiteLLM's router does not learn."""
    return {"model": model, "prompt": PROMPT, "max_tokens": limit, "stream": True, **more}


either = pytest.mark.parametrize(
    ("path", "body"), [(CHAT, chat), ("/v1/completions", completion)], ids=["chat", "completion-stream"]
)


class TestFallbacks:
    def test_a_policys_second_candidate_answers_where_the_first_does_not_fit(self, gateway: Budgeted):
        user = gateway.new_user()
        answer = gateway.ask(CHAT, chat("smart"), "small-change", user)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-orchestration-model"] == "small"
        assert "x-orchestration-degraded" not in answer.headers
        event = all_paid_for(gateway.event(answer))
        assert [attempt.model for attempt in event.attempts] == ["small"]
        assert gateway.accounts.spent("small-change", user) == gateway.billed_nano == event.cost_nano

    def test_one_none_of_whose_candidates_fits_is_refused(self, gateway: Budgeted):
        answer = gateway.ask(CHAT, chat("smart"), "tight")
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "budget_exceeded"
        assert gateway.provider.attempts == []

    @either
    def test_each_candidate_is_reserved_for_at_its_own_price(self, path: str, body: Body, gateway: Budgeted):
        gateway.provider.script(model="large", status=500)
        user = gateway.new_user()
        answer = gateway.ask(path, body("smart"), "roomy", user)
        assert answer.headers["x-orchestration-model"] == "small"
        event = all_paid_for(gateway.event(answer))
        reserved = {attempt.model: attempt.reserved_nano for attempt in event.attempts}
        assert reserved["large"] > 9 * reserved["small"]
        assert gateway.accounts.spent("roomy", user) == event.cost_nano == gateway.billed_nano
        assert gateway.reserved_nano("roomy", user) == 0

    @either
    def test_a_timeout_before_it_is_charged_beside_the_answer(self, path: str, body: Body, gateway: Budgeted):
        gateway.provider.script(model="hasty", hang=True)
        user = gateway.new_user()
        answer = gateway.ask(path, body("patient", num_retries=0), "roomy", user)
        gateway.provider.release()
        assert answer.status_code == 200, answer.text
        event = all_paid_for(gateway.event(answer))
        assert [(attempt.model, attempt.usage) for attempt in event.attempts] == [
            ("hasty", "unknown"),
            ("small", "reported"),
        ]
        assert gateway.accounts.spent("roomy", user) == event.cost_nano >= gateway.billed_nano

    @either
    def test_one_that_no_longer_fits_is_left_out(self, path: str, body: Body, gateway: Budgeted):
        gateway.provider.script(model="hasty", hang=True)
        user = gateway.new_user()
        answer = gateway.ask(path, body("patient", 200, num_retries=0), "small-change", user)
        gateway.provider.release()
        assert answer.status_code >= 400
        assert [billed.model for billed in gateway.provider.attempts] == ["hasty"]
        event = all_paid_for(gateway.event())
        assert gateway.accounts.spent("small-change", user) == event.cost_nano <= gateway.total_nano("small-change")

    def test_the_routers_own_fallbacks_are_paid_for(self, gateway: Budgeted):
        gateway.provider.script(model="brittle", status=500)
        user = gateway.new_user()
        answer = gateway.ask(CHAT, chat("brittle", num_retries=0), "roomy", user)
        assert answer.headers["x-orchestration-model"] == "small"
        event = all_paid_for(gateway.event(answer))
        assert [attempt.model for attempt in event.attempts] == ["brittle", "small"]
        assert gateway.accounts.spent("roomy", user) == event.cost_nano == gateway.billed_nano

    def test_what_a_client_names_is_paid_for_or_left_out(self, gateway: Budgeted):
        gateway.provider.script(model="small", status=500)
        user = gateway.new_user()
        answer = gateway.ask(CHAT, chat("small", fallbacks=["large"], num_retries=0), "small-change", user)
        assert answer.status_code >= 400, "large costs more than there is"
        assert {billed.model for billed in gateway.provider.attempts} == {"small"}
        answer = gateway.ask(CHAT, chat("small", fallbacks=["large"], num_retries=0), "roomy", user)
        assert answer.headers["x-orchestration-model"] == "large"
        gateway.books.recorded(2)
        assert gateway.accounts.spent("roomy", user) == gateway.billed_nano

    @pytest.mark.parametrize("models", ["small,large", ["small", "large"]], ids=str)
    def test_a_list_of_models_is_refused(self, models: Any, gateway: Budgeted):
        """LiteLLM would ask all of them at once."""
        answer = gateway.ask(CHAT, chat(models), "roomy")
        assert answer.status_code == 400, answer.text
        if isinstance(models, str):
            assert answer.json()["error"]["code"] == "invalid_field"
            assert gateway.event(answer).attempts == []
        assert gateway.provider.attempts == []


class TestAtTheLimit:
    @pytest.mark.parametrize("stream", [False, True])
    def test_a_cheaper_model_answers_when_the_budget_would_rather_degrade(self, stream: bool, gateway: Budgeted):
        user = gateway.new_user()
        answer = gateway.ask(CHAT, chat("large", stream=stream), "degrading", user)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-orchestration-degraded"] == "true"
        assert answer.headers["x-orchestration-model"] == "small"
        event = gateway.event(answer)
        assert (event.degraded, event.asked_model, event.used_model) == (True, "large", "small")
        assert [billed.model for billed in gateway.provider.attempts] == ["small"]
        assert gateway.accounts.spent("degrading", user) == event.cost_nano == gateway.billed_nano

    def test_a_budget_that_degrades_goes_on_when_it_is_used_up(self, gateway: Budgeted):
        gateway.provider.script(model="small", output_tokens=1 << 20)
        user = gateway.new_user()
        answers = [gateway.ask(CHAT, chat("small", 300), "degrading", user) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200] * 3
        assert answers[-1].headers["x-orchestration-degraded"] == "true"
        gateway.books.recorded(3)
        assert gateway.accounts.spent("degrading", user) == gateway.billed_nano > gateway.total_nano("degrading")

    def test_what_fits_is_not_degraded(self, gateway: Budgeted):
        answer = gateway.ask(CHAT, chat("small"), "degrading")
        assert answer.status_code == 200 and "x-orchestration-degraded" not in answer.headers

    def test_a_paused_budget_refuses_until_it_is_resumed(self, gateway: Budgeted):
        user = gateway.new_user()

        def ask() -> httpx.Response:
            return gateway.ask(CHAT, chat("small"), "stopped", user)

        assert ask().status_code == 200
        with pausing(gateway, "stopped", "an audit"):
            eventually_sync(lambda: ask().status_code == 429, within=15, what="the budget paused")
            asked = len(gateway.provider.attempts)
            answer = ask()
            error = answer.json()["error"]
            assert (error["type"], error["code"]) == ("insufficient_quota", "budget_exceeded")
            assert "paused" in error["message"] and "an audit" in error["message"]
            assert answer.headers["x-should-retry"] == "false"
            assert gateway.ask(CHAT, chat("small"), "roomy").status_code == 200, "others go on"
            assert len(gateway.provider.attempts) == asked + 1
        eventually_sync(lambda: ask().status_code == 200, within=15, what="the budget resumed")


@contextlib.contextmanager
def pausing(gateway: Budgeted, budget_id: str, reason: str) -> Iterator[None]:
    def execute(statement: str, *values: object) -> None:
        store = sqlite3.connect(gateway.proxy.cwd / "orchestration.db", timeout=10)
        with contextlib.closing(store), store:
            store.execute(statement, values)

    execute("INSERT INTO budget_pauses VALUES (?, ?, ?, ?)", budget_id, int(time.time() * 1000), "root", reason)
    try:
        yield
    finally:
        execute("DELETE FROM budget_pauses WHERE budget_id = ?", budget_id)


class TestBrokenStreams:
    @every_stream
    def test_one_that_is_cut_is_charged_no_less_than_the_bill_and_no_more_than_was_reserved(
        self, call: Call, gateway: Budgeted
    ):
        gateway.provider.script(model="small", cut_after_chunks=6, chunk_delay=0.05)
        user = gateway.new_user()
        with contextlib.suppress(httpx.RemoteProtocolError):
            gateway.ask(call.path, call.limited(), "roomy", user)
        event = all_paid_for(gateway.event())
        assert event.usage in ("estimated", "unknown")
        assert gateway.accounts.spent("roomy", user) == event.cost_nano >= gateway.billed_nano > 0
        gateway.provider.reset()
        assert gateway.reserved_nano("roomy", user) == 0

    @every_stream
    def test_a_client_that_leaves_is_charged_what_was_used(self, call: Call, gateway: Budgeted):
        gateway.provider.script(model="small", hang_after_chunks=7)
        user = gateway.new_user()
        headers = {"x-task-type": "roomy", "x-user-id": user}
        with (
            gateway.client("service") as client,
            client.stream("POST", call.path, json=call.limited(), headers=headers) as answer,
        ):
            lines = answer.iter_lines()  # to be kept: the connection is closed with it
            assert any("quick" in line for line in lines)
            eventually_sync(lambda: gateway.provider.held == 1, what="the provider waiting")
        eventually_sync(lambda: gateway.provider.attempts[0].outcome == "abandoned", what="the provider left alone")
        event = all_paid_for(gateway.event())
        assert event.disconnected and event.usage == "estimated"
        assert gateway.accounts.spent("roomy", user) == event.cost_nano >= gateway.billed_nano > 0
        gateway.provider.reset()
        assert gateway.reserved_nano("roomy", user) == 0

    def test_while_a_stream_runs_what_it_may_cost_is_reserved(self, gateway: Budgeted):
        gateway.provider.script(model="small", hang_after_chunks=5)
        user = gateway.new_user()
        call = STREAMS["chat"]
        headers = {"x-task-type": "small-change", "x-user-id": user}
        body = call.limited(200)
        with (
            gateway.client("service") as client,
            client.stream("POST", call.path, json=body, headers=headers) as answer,
        ):
            eventually_sync(lambda: gateway.provider.held == 1, what="the stream running")
            refused = gateway.ask(CHAT, chat("small", 200), "small-change", user)
            assert refused.status_code == 429, refused.text
            assert refused.headers["retry-after"] == "5" and "x-should-retry" not in refused.headers, "it may fit soon"
            assert float(refused.json()["error"]["details"]["reserved"]) > 0
            gateway.provider.release()
            answer.read()
        gateway.provider.reset()
        assert gateway.ask(CHAT, chat("small", 200), "small-change", user).status_code == 200

    def test_a_client_that_leaves_before_a_whole_answer_is_charged_its_cost_or_what_was_reserved(
        self, gateway: Budgeted
    ):
        gateway.provider.script(model="small", hang=True)
        user = gateway.new_user()
        headers = {"x-task-type": "roomy", "x-user-id": user}
        with gateway.client("service") as client, pytest.raises(httpx.ReadTimeout):
            body = chat("small", num_retries=0)
            client.post(CHAT, json=body, headers=headers, timeout=httpx.Timeout(10, read=0.5))
        eventually_sync(lambda: gateway.provider.attempts, what="the provider asked")
        gateway.provider.release()
        event = all_paid_for(gateway.event())
        assert gateway.accounts.spent("roomy", user) == event.cost_nano >= gateway.billed_nano > 0
        gateway.provider.reset()
        assert gateway.reserved_nano("roomy", user) == 0


THEIRS = '''
    """Guardrails of a team."""

    import asyncio

    from fastapi import HTTPException
    from litellm.integrations.custom_guardrail import CustomGuardrail


    class Before(CustomGuardrail):
        async def async_pre_call_hook(self, user_api_key_dict, cache, data, call_type):
            raise HTTPException(400, {"error": "refused before the call"})


    class Meanwhile(CustomGuardrail):
        async def async_moderation_hook(self, data, user_api_key_dict, call_type):
            await asyncio.sleep(0.2)
            raise HTTPException(400, {"error": "refused meanwhile"})


    class After(CustomGuardrail):
        async def async_post_call_success_hook(self, data, user_api_key_dict, response):
            raise HTTPException(400, {"error": "refused after the call"})
'''
MODES = {"before": ("Before", "pre_call"), "meanwhile": ("Meanwhile", "during_call"), "after": ("After", "post_call")}


@pytest.fixture(scope="module")
def guarded_proxy(shared_provider: FakeProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    """A proxy with guardrails that refuse, and LiteLLM's own cache."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "theirs.py").write_text(dedent(THEIRS))
    config = budgeted_config(shared_provider)
    config["litellm_settings"] = {
        **config["litellm_settings"],
        "cache": True,
        "cache_params": {"type": "local", "supported_call_types": ["acompletion", "aembedding", "atext_completion"]},
    }
    config["guardrails"] = [
        {"guardrail_name": name, "litellm_params": {"guardrail": f"theirs.{kind}", "mode": mode}}
        for name, (kind, mode) in MODES.items()
    ]
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(config))))
    with ProxyProcess(path, env=key_environment(), cwd=folder) as proxy:
        yield proxy


@pytest.fixture
def guarded(guarded_proxy: ProxyProcess, provider: FakeProvider) -> Budgeted:
    return Budgeted.begin(guarded_proxy, provider)


def words(*more: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": " ".join(("one", "two", *more))}]}


class TestGuardrails:
    def test_one_that_refuses_after_we_reserved_gives_it_all_back(self, guarded: Budgeted):
        user = guarded.new_user()
        answer = guarded.ask(CHAT, chat("small", guardrails=["before"]) | words("before"), "roomy", user)
        assert answer.status_code == 400 and "refused before" in answer.text
        assert guarded.provider.attempts == []
        event = guarded.event(answer)
        assert (event.attempts, event.cost_nano, guarded.accounts.spent("roomy", user)) == ([], 0, 0)
        assert guarded.reserved_nano("roomy", user) == 0

    def test_one_that_refuses_an_answer_does_not_make_it_free(self, guarded: Budgeted):
        user = guarded.new_user()
        answer = guarded.ask(CHAT, chat("small", guardrails=["after"]) | words("after"), "roomy", user)
        assert answer.status_code == 400 and "refused after" in answer.text
        event = all_paid_for(guarded.event(answer))
        assert guarded.accounts.spent("roomy", user) == event.cost_nano == guarded.billed_nano > 0
        assert guarded.reserved_nano("roomy", user) == 0

    @pytest.mark.parametrize("hang", [False, True])
    def test_one_that_refuses_while_the_call_runs_does_not_make_it_free(self, hang: bool, guarded: Budgeted):
        guarded.provider.script(model="small", hang=hang)
        user = guarded.new_user()
        body = chat("small", guardrails=["meanwhile"], num_retries=0) | words("meanwhile", str(hang))
        answer = guarded.ask(CHAT, body, "roomy", user)
        assert answer.status_code == 400 and "refused meanwhile" in answer.text
        guarded.provider.release()
        request_id = guarded.event(answer).request_id

        def agree() -> bool:
            # What was reserved, until LiteLLM tells what became of the call.
            event = all_paid_for(guarded.books.event(request_id))
            return guarded.accounts.spent("roomy", user) == event.cost_nano >= guarded.billed_nano > 0

        eventually_sync(agree, what="the books and the bill agreeing")
        guarded.provider.reset()
        assert guarded.reserved_nano("roomy", user) == 0


class TestLiteLLMsCache:
    @pytest.mark.parametrize("stream", [False, True])
    def test_an_answer_from_it_is_charged_nothing(self, stream: bool, guarded: Budgeted):
        user = guarded.new_user()
        body = chat("small", stream=stream) | words("cached", str(stream))
        first = guarded.ask(CHAT, body, "roomy", user)
        assert first.status_code == 200

        def hit() -> bool:
            # LiteLLM fills its cache after the answer.
            return guarded.ask(CHAT, body, "roomy", user).headers.get("x-orchestration-cache") == "hit"

        if not stream:
            eventually_sync(hit, what="an answer from the cache")
        eventually_sync(lambda: guarded.books.backlog() == 0, what="everything written")
        before, asked = guarded.accounts.spent("roomy", user), len(guarded.provider.attempts)
        again = guarded.ask(CHAT, body, "roomy", user)
        assert again.status_code == 200
        event = guarded.books.event(again.headers["x-orchestration-request-id"])
        assert (event.cache, event.attempts, event.cost_nano) == ("hit", [], 0)
        assert len(guarded.provider.attempts) == asked
        assert guarded.accounts.spent("roomy", user) == before == guarded.billed_nano
        assert guarded.reserved_nano("roomy", user) == 0


@pytest.fixture(scope="module")
def lasting_proxy(shared_provider: FakeProvider) -> Iterator[ProxyProcess]:
    """A proxy that is edited, stopped and killed."""
    with ProxyProcess(budgeted_config(shared_provider), env=key_environment()) as proxy:
        yield proxy


@pytest.fixture
def lasting(lasting_proxy: ProxyProcess, provider: FakeProvider) -> Budgeted:
    return Budgeted.begin(lasting_proxy, provider)


class TestWhatLasts:
    def test_a_budget_that_is_added_in_mid_period_counts_what_was_spent_before(self, lasting: Budgeted):
        for _ in range(3):
            assert lasting.ask(CHAT, chat("small"), "added-later", "ida").status_code == 200
        assert lasting.ask(CHAT, chat("small"), "added-later", "somebody else").status_code == 200
        lasting.books.recorded(4)
        bill = bill_nano(lasting.provider.attempts[:3])

        config = yaml.safe_load(lasting.proxy.config.read_text())
        budget = {"budget_id": "added-later", "task_types": ["added-later"], "per": "user", "total_budget": 1}
        config["orchestration"]["budgets"].append(budget)
        lasting.proxy.config.write_text(yaml.safe_dump(config, sort_keys=False))

        def covered() -> bool:
            answer = lasting.ask(CHAT, chat("small"), "added-later", "somebody else")
            return "x-orchestration-budget-remaining" in answer.headers

        eventually_sync(covered, within=15, what="the new budget holding")
        answer = lasting.ask(CHAT, chat("small"), "added-later", "ida")
        spent = bill + bill_nano(lasting.provider.attempts[-1:])
        assert remaining(answer) == to_dollars(10**9 - spent)
        assert lasting.accounts.spent("added-later", "ida") == spent

    def test_a_restart_forgets_nothing(self, lasting: Budgeted):
        user = lasting.new_user()
        for _ in range(2):
            assert lasting.ask(CHAT, chat("small"), "roomy", user).status_code == 200
        lasting.proxy.stop()
        lasting.proxy.start()
        answer = lasting.ask(CHAT, chat("small"), "roomy", user)
        assert answer.status_code == 200
        assert remaining(answer) == to_dollars(lasting.total_nano("roomy") - lasting.billed_nano)

    def test_what_was_on_its_way_when_the_proxy_was_killed_is_charged(self, lasting: Budgeted):
        user = lasting.new_user()
        assert lasting.ask(CHAT, chat("small"), "roomy", user).status_code == 200
        lasting.books.recorded()
        settled = lasting.billed_nano
        lasting.provider.script(model="small", hang=True)

        def ask() -> None:
            with contextlib.suppress(httpx.HTTPError):
                lasting.ask(CHAT, chat("small", num_retries=0), "roomy", user)

        clients = [threading.Thread(target=ask) for _ in range(3)]
        for client in clients:
            client.start()
        eventually_sync(lambda: lasting.provider.held == 3, what="three requests at the provider")
        lasting.proxy.kill()
        lasting.provider.release()
        for client in clients:
            client.join(10)
        lasting.provider.script(model="small")
        lasting.proxy.start()
        killed = [event for event in lasting.books.recorded(4) if event.error_class == "ProcessKilled"]
        assert len(killed) == 3
        charged = sum(all_paid_for(event).cost_nano for event in killed)
        assert lasting.accounts.spent("roomy", user) == settled + charged >= lasting.billed_nano
        answer = lasting.ask(CHAT, chat("small"), "roomy", user)
        last = bill_nano(lasting.provider.attempts[-1:])
        assert remaining(answer) == to_dollars(lasting.total_nano("roomy") - settled - charged - last)
