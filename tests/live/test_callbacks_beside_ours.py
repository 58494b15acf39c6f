"""A user's own callback and guardrails run beside ours, and neither spoils the other's work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import httpx
import pytest
import yaml

from tests.support.books import Books
from tests.support.eventually import eventually_sync
from tests.support.gateway import ANSWER, KEYS, MESSAGES, OURS, Gateway, cost_nano, key_environment, model
from tests.support.provider import FakeProvider
from tests.support.proxy import ProxyProcess

pytestmark = pytest.mark.live

THEIRS = '''
    """What a team has beside its config.yaml."""

    import json
    from pathlib import Path

    from fastapi import HTTPException
    from litellm.integrations.custom_guardrail import CustomGuardrail
    from litellm.integrations.custom_logger import CustomLogger

    DIARY = Path(__file__).with_name("diary.jsonl")


    def note(**words):
        with DIARY.open("a") as diary:
            diary.write(json.dumps(words) + "\\n")


    class Diary(CustomLogger):
        async def async_pre_call_hook(self, user_api_key_dict, cache, data, call_type):
            if "lose the context" in str(data.get("messages")):
                from plugins.exchange import current

                current.set(None)
            data["temperature"] = 0.123
            return data

        async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
            note(event="success", model=kwargs["model"], cost=kwargs.get("response_cost"))

        async def async_log_failure_event(self, kwargs, response_obj, start_time, end_time):
            note(event="failure", model=kwargs["model"])

        async def async_post_call_response_headers_hook(
            self, data, user_api_key_dict, response, request_headers=None, litellm_call_info=None
        ):
            return {"x-theirs": "yes"}


    diary = Diary()


    class Masking(CustomGuardrail):
        """Hides a word from the provider."""

        async def async_pre_call_hook(self, user_api_key_dict, cache, data, call_type):
            for message in data.get("messages", []):
                message["content"] = message["content"].replace("secret", "[masked]")
            return data


    class Blocking(CustomGuardrail):
        """Refuses a word before the call."""

        async def async_pre_call_hook(self, user_api_key_dict, cache, data, call_type):
            if "forbidden" in str(data.get("messages")):
                raise HTTPException(400, {"error": "their guardrail refuses this"})
            return data


    class BlockingAnswers(CustomGuardrail):
        """Refuses an answer that has been paid for."""

        async def async_post_call_success_hook(self, data, user_api_key_dict, response):
            raise HTTPException(400, {"error": "their guardrail refuses the answer"})


    class Asking(CustomGuardrail):
        """Asks a model of the same proxy what it thinks of the prompt."""

        async def async_pre_call_hook(self, user_api_key_dict, cache, data, call_type):
            from litellm.proxy.proxy_server import llm_router

            verdict = await llm_router.acompletion(model="judge", messages=[{"role": "user", "content": "ok or not"}])
            note(event="judged", verdict=verdict.choices[0].message.content)
            return data


    class AskingMeanwhile(CustomGuardrail):
        """Asks a model while the call runs."""

        async def async_moderation_hook(self, data, user_api_key_dict, call_type):
            import litellm

            from litellm.proxy.proxy_server import llm_router

            await llm_router.acompletion(model="judge", messages=[{"role": "user", "content": "ok or not"}])
            note(event="judged meanwhile")
            return data
'''

GUARDRAILS = {
    "masking": ("Masking", "pre_call"),
    "blocking": ("Blocking", "pre_call"),
    "blocking-answers": ("BlockingAnswers", "post_call"),
    "asking": ("Asking", "pre_call"),
    "asking-meanwhile": ("AskingMeanwhile", "during_call"),
}


@pytest.fixture(scope="module")
def theirs(shared_provider: FakeProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A proxy in a team's folder: their callback before ours, their guardrails, our books."""
    folder = tmp_path_factory.mktemp("team")
    (folder / "theirs.py").write_text(dedent(THEIRS))
    url = shared_provider.url
    config = {
        **OURS,
        "litellm_settings": {
            **OURS["litellm_settings"],
            "callbacks": ["theirs.diary", "litellm_orchestration.callback"],
        },
        "model_list": [model("small", url), model("large", url), model("judge", url)],
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        "guardrails": [
            {"guardrail_name": name, "litellm_params": {"guardrail": f"theirs.{kind}", "mode": mode}}
            for name, (kind, mode) in GUARDRAILS.items()
        ],
        "orchestration": {
            "keys": [
                {"key": "os.environ/KEY_ADA", "user_id": "ada", "tier": "premium"},
                {"key": "os.environ/KEY_BOB", "user_id": "bob", "tier": "free"},
            ],
            # The guardrail's own call is the proxy's, not bob's: bob may not use the judge.
            "tiers": {"free": {"models": ["small"]}, "premium": {"models": ["*"]}},
            "default_tier": "free",
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(config))))
    with ProxyProcess(path, env=key_environment(), cwd=folder) as proxy:
        yield Gateway(proxy, shared_provider, Books(proxy))


@pytest.fixture
def gateway(theirs: Gateway, provider: FakeProvider) -> Gateway:
    theirs.books.mark()
    (theirs.proxy.cwd / "diary.jsonl").unlink(missing_ok=True)
    return theirs


def diary(gateway: Gateway) -> list[dict[str, Any]]:
    path = Path(gateway.proxy.cwd, "diary.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def noted(gateway: Gateway, event: str) -> dict[str, Any]:
    """Their entry of this kind, when it comes; LiteLLM calls loggers some time after the answer."""
    return eventually_sync(
        lambda: next((entry for entry in diary(gateway) if entry["event"] == event), None), what=f"{event} in the diary"
    ) or {}  # fmt: skip


def ask(gateway: Gateway, words: str = "one two three four", who: str = "ada", **more: Any) -> httpx.Response:
    body = {"model": "small", "messages": [{"role": "user", "content": words}], **more}
    return gateway.post("/v1/chat/completions", body, who)


class TestCallback:
    @pytest.mark.parametrize("stream", [False, True])
    def test_theirs_and_ours_both_see_a_request(self, stream: bool, gateway: Gateway):
        answer = ask(gateway, stream=stream)
        assert answer.status_code == 200
        assert answer.headers["x-theirs"] == "yes"
        assert gateway.provider.attempts[0].body["temperature"] == 0.123
        assert gateway.event(answer).cost_nano == cost_nano("small", 4, 8)
        entry = noted(gateway, "success")
        assert entry["cost"] == pytest.approx(cost_nano("small", 4, 8) / 1e9)

    def test_a_request_that_nobody_would_account_for_is_refused(self, gateway: Gateway):
        answer = ask(gateway, "lose the context")
        assert answer.status_code == 503, answer.text
        assert "try it again" in answer.text
        assert gateway.provider.attempts == []

    def test_a_failure_reaches_both(self, gateway: Gateway):
        gateway.provider.script(model="small", status=500)
        answer = ask(gateway)
        assert answer.status_code >= 500
        assert gateway.event(answer).attempts[0].status == 500
        assert noted(gateway, "failure")

    def test_our_refusal_reaches_theirs_as_a_failure(self, gateway: Gateway):
        answer = ask(gateway, who="bob", model="large")
        assert answer.status_code == 403
        assert gateway.event(answer).error_class == "ModelNotAllowed"


class TestGuardrails:
    def test_one_that_masks_changes_what_the_provider_sees_and_bills(self, gateway: Gateway):
        answer = ask(gateway, "my secret is secret", guardrails=["masking"])
        assert answer.json()["choices"][0]["message"]["content"] == ANSWER
        [billed] = gateway.provider.attempts
        assert billed.body["messages"][0]["content"] == "my [masked] is [masked]"
        event = gateway.event(answer)
        assert (event.status, event.input_tokens, event.cost_nano) == (200, 4, cost_nano("small", 4, 8))

    @pytest.mark.parametrize("stream", [False, True])
    def test_one_that_blocks_is_recorded_without_an_attempt(self, stream: bool, gateway: Gateway):
        answer = ask(gateway, "a forbidden word", guardrails=["blocking"], stream=stream)
        assert answer.status_code == 400
        assert "their guardrail refuses this" in answer.text
        event = gateway.event(answer)
        assert (event.status, event.attempts, event.cost_nano, event.usage) == (400, [], 0, "none")
        assert event.error_class
        assert (event.user_id, event.asked_model) == ("ada", "small")
        assert gateway.provider.attempts == []

    def test_what_it_lets_through_is_answered(self, gateway: Gateway):
        answer = ask(gateway, guardrails=["blocking"])
        assert answer.status_code == 200
        assert gateway.event(answer).cost_nano == cost_nano("small", 4, 8)

    def test_an_answer_that_is_refused_after_the_call_was_still_paid_for(self, gateway: Gateway):
        answer = ask(gateway, guardrails=["blocking-answers"])
        assert answer.status_code == 400
        event = gateway.event(answer)
        [attempt] = event.attempts
        assert (attempt.status, attempt.usage) == (200, "reported")
        assert (event.status, event.cost_nano) == (400, cost_nano("small", 4, 8))
        assert event.error_class

    @pytest.mark.parametrize("guardrail", ["asking", "asking-meanwhile"])
    @pytest.mark.parametrize("who", ["ada", "bob"])
    def test_a_model_that_a_guardrail_asks_is_not_an_attempt_of_the_request(
        self, guardrail: str, who: str, gateway: Gateway
    ):
        answer = ask(gateway, who=who, guardrails=[guardrail])
        assert answer.status_code == 200, answer.text
        event = gateway.event(answer)
        assert [attempt.model for attempt in event.attempts] == ["small"]
        assert (event.used_model, event.cost_nano) == ("small", cost_nano("small", 4, 8))
        assert sorted(attempt.model for attempt in gateway.provider.attempts) == ["judge", "small"]

    def test_two_at_once_with_retries_keep_their_requests_apart(self, gateway: Gateway):
        gateway.provider.script(model="small", statuses=(500, 200))
        answer = ask(gateway, "my secret word is", guardrails=["masking", "asking"], num_retries=1)
        assert answer.status_code == 200, answer.text
        event = gateway.event(answer)
        assert [(attempt.model, attempt.status) for attempt in event.attempts] == [("small", 500), ("small", 200)]
        assert event.cost_nano == cost_nano("small", 4, 8)


def test_no_key_is_in_the_log(gateway: Gateway):
    text = gateway.proxy.log.read_text()
    assert not any(key in text for key in KEYS.values())
    assert MESSAGES[0]["content"] not in text, "prompts are not logged"
