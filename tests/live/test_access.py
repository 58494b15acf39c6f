"""Who may use what: unknown keys, limited keys, tiers, policies, fallbacks, and the ways round them that we know."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.support.eventually import eventually_sync
from tests.support.gateway import KEYS, MESSAGES, PROMPT, Gateway, cost_nano

pytestmark = pytest.mark.live

CHAT = {"model": "small", "messages": MESSAGES}
MODEL_ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": PROMPT},
    "/v1/embeddings": {"input": PROMPT},
    "/v1/responses": {"input": PROMPT},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 50},
    "/engines/{model}/chat/completions": {"messages": MESSAGES},
    "/openai/deployments/{model}/chat/completions": {"messages": MESSAGES},
}


def refused(answer: httpx.Response, gateway: Gateway) -> None:
    """The answer is a refusal and no provider was asked."""
    assert answer.status_code in (400, 401, 403), answer.text
    assert gateway.provider.attempts == []


class TestUnknownKeys:
    @pytest.mark.parametrize("path", [*MODEL_ROUTES])
    def test_no_model_answers_one(self, path: str, gateway: Gateway):
        body = {"model": "small", **MODEL_ROUTES[path]}
        with gateway.proxy.client("sk-unknown-0123456789") as client:
            answer = client.post(path.format(model="small"), json=body)
        assert answer.status_code == 401, answer.text
        assert gateway.provider.attempts == []
        assert "sk-unknown-0123456789" not in answer.text

    @pytest.mark.parametrize(
        "path", ["/v1/models", "/v1/models/small", "/orchestration/status", "/key/info", "/health"]
    )
    def test_nothing_is_shown_to_one(self, path: str, gateway: Gateway):
        with gateway.proxy.client("sk-unknown-0123456789") as client:
            assert client.get(path).status_code == 401

    @pytest.mark.parametrize("path", ["/v1/models", "/orchestration/status", "/v1/chat/completions"])
    def test_no_key_at_all_is_refused(self, path: str, gateway: Gateway):
        answer = httpx.request(
            "POST" if "chat" in path else "GET",
            gateway.proxy.url + path,
            json=CHAT if "chat" in path else None,
            trust_env=False,
        )
        assert answer.status_code == 401

    @pytest.mark.parametrize("header", ["x-api-key", "api-key", "x-goog-api-key"])
    def test_a_known_key_is_known_in_the_headers_of_other_dialects(self, header: str, gateway: Gateway):
        answer = httpx.post(
            f"{gateway.proxy.url}/v1/messages",
            json={**CHAT, "max_tokens": 50},
            headers={header: KEYS["bob"]},
            trust_env=False,
        )
        assert answer.status_code == 200, answer.text
        assert gateway.event(answer).user_id == "bob"

    def test_what_an_unknown_key_asked_is_in_nobodys_books(self, gateway: Gateway):
        with gateway.proxy.client("sk-unknown-0123456789") as client:
            client.post("/v1/chat/completions", json=CHAT)
        gateway.chat("small")
        assert gateway.event().user_id == "ada"


class TestStatus:
    def test_an_administrator_sees_how_the_worker_is_doing(self, gateway: Gateway):
        status = gateway.books.status()
        assert status["version"] and status["config"]["errors"] == [] and status["config"]["version"] >= 1
        assert status["store"]["reachable"] is True and status["shared_state"]["kind"] == "memory"
        assert status["journal"]["healthy"] is True
        text = json.dumps(status)
        assert not any(key in text for key in KEYS.values())

    @pytest.mark.parametrize("who", ["ada", "bob", "service"])
    def test_an_ordinary_key_does_not(self, who: str, gateway: Gateway):
        with gateway.client(who) as client:
            answer = client.get("/orchestration/status")
        assert answer.status_code == 403
        assert answer.json()["error"]["type"] == "permission_error"


class TestKeysAndTiers:
    @pytest.mark.parametrize("path", [*MODEL_ROUTES])
    def test_a_key_is_limited_to_its_models_everywhere(self, path: str, gateway: Gateway):
        answer = gateway.post(path.format(model="large"), {"model": "large", **MODEL_ROUTES[path]}, who="carl")
        refused(answer, gateway)

    @pytest.mark.parametrize("path", [*MODEL_ROUTES])
    def test_a_tier_is_limited_to_its_models_everywhere(self, path: str, gateway: Gateway):
        answer = gateway.post(path.format(model="large"), {"model": "large", **MODEL_ROUTES[path]}, who="bob")
        refused(answer, gateway)

    def test_a_tier_names_models_by_pattern(self, gateway: Gateway):
        assert gateway.chat("open-mini", who="bob").status_code == 200

    def test_a_key_without_a_tier_has_the_default_one(self, gateway: Gateway):
        answer = gateway.chat("small", who="newcomer")
        assert answer.headers["x-orchestration-tier"] == "free"
        assert gateway.chat("large", who="newcomer").status_code == 403

    def test_the_administrator_has_no_tier_and_may_use_everything(self, gateway: Gateway):
        answer = gateway.chat("large", who="admin")
        assert answer.status_code == 200
        assert "x-orchestration-tier" not in answer.headers

    @pytest.mark.parametrize("who", ["bob", "carl"])
    @pytest.mark.parametrize(
        "name", ["large-id", "openai/large", "*", "large/../large", " large", "LARGE", "smart/large"]
    )
    def test_no_other_name_of_a_model_gets_round_a_limit(self, name: str, who: str, gateway: Gateway):
        answer = gateway.chat(name, who=who)
        assert answer.status_code != 200, answer.text
        assert gateway.provider.attempts == []

    @pytest.mark.parametrize("who", ["bob", "carl"])
    @pytest.mark.parametrize("names", [["large"], ["small", "large"], ["large", "small"], "small,large", "large,small"])
    def test_several_models_at_once_do_not_get_round_a_limit(self, names: Any, who: str, gateway: Gateway):
        gateway.post("/v1/chat/completions", {**CHAT, "model": names}, who=who)
        assert "large" not in {attempt.model for attempt in gateway.provider.attempts}

    def test_the_deployments_id_works_for_those_who_may_use_its_group_or_for_nobody(self, gateway: Gateway):
        answer = gateway.chat("large-id", who="ada")
        if answer.status_code == 200:
            event = gateway.event(answer)
            assert (event.deployment, event.cost_nano) == ("large-id", cost_nano("large", 4, 8))
        else:
            refused(answer, gateway)


class TestPolicies:
    def test_a_tier_leaves_out_the_candidates_it_does_not_permit(self, gateway: Gateway):
        answer = gateway.chat("smart", who="bob")
        assert answer.headers["x-orchestration-model"] == "small"
        assert {attempt.model for attempt in gateway.provider.attempts} == {"small"}

    def test_so_does_a_key(self, gateway: Gateway):
        """Carl's key lists the policy, but of its candidates only small; sturdy grants its candidates."""
        answer = gateway.chat("sturdy", who="carl")
        assert answer.headers["x-orchestration-model"] == "large", "a granting policy brings its candidates along"
        answer = gateway.chat("smart", who="carl")
        refused_only = {attempt.model for attempt in gateway.provider.attempts}
        assert answer.status_code != 200 and refused_only == {"large"}, "smart is not on the list of the key"

    def test_a_policy_that_does_not_grant_is_worth_nothing_to_a_key_without_its_candidates(self, gateway: Gateway):
        answer = gateway.chat("smart", who="eve")
        refused(answer, gateway)
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("permission_error", "model_not_allowed")
        assert "/v1/models" in error["message"]

    def test_one_that_grants_opens_its_candidates_to_those_who_list_it_by_name(self, gateway: Gateway):
        assert gateway.chat("granted", who="dora").status_code == 200
        assert gateway.chat("large", who="dora").status_code in (401, 403), "only through the policy"

    def test_a_granting_policy_grants_nothing_to_a_key_that_lists_it_not(self, gateway: Gateway):
        refused(gateway.chat("granted", who="eve"), gateway)

    def test_granting_does_not_raise_a_tier(self, gateway: Gateway):
        answer = gateway.chat("granted", who="bob")
        assert answer.headers["x-orchestration-model"] == "small"

    def test_failing_over_stays_within_what_is_permitted(self, gateway: Gateway):
        gateway.provider.script(model="small", status=500)
        answer = gateway.chat("smart", who="bob", num_retries=0)
        assert answer.status_code >= 500
        assert {attempt.model for attempt in gateway.provider.attempts} == {"small"}


class TestFallbacks:
    @pytest.mark.parametrize(
        "fallbacks", [["large"], [{"model": "large"}], ["large-id"], [{"model": "large-id"}], [{"small": ["large"]}]]
    )
    @pytest.mark.parametrize("who", ["bob", "carl"])
    def test_the_clients_cannot_lead_out_of_its_limits(self, fallbacks: list[Any], who: str, gateway: Gateway):
        gateway.provider.script(model="small", status=500)
        answer = gateway.chat("small", who=who, fallbacks=fallbacks, num_retries=0)
        assert answer.status_code != 200, answer.text
        assert "large" not in {attempt.model for attempt in gateway.provider.attempts}

    @pytest.mark.parametrize("name", ["context_window_fallbacks", "content_policy_fallbacks", "default_fallbacks"])
    def test_neither_can_their_relatives(self, name: str, gateway: Gateway):
        gateway.provider.script(model="small", status=400)
        gateway.chat("small", who="bob", num_retries=0, **{name: [{"small": ["large"]}]})
        assert "large" not in {attempt.model for attempt in gateway.provider.attempts}

    def test_the_routers_are_not_taken_into_a_forbidden_group(self, gateway: Gateway):
        gateway.provider.script(model="leaky", status=500)
        assert gateway.chat("leaky", who="ada", num_retries=0).headers["x-orchestration-model"] == "large"
        gateway.provider.reset()
        gateway.provider.script(model="leaky", status=500)
        answer = gateway.chat("leaky", who="bob", num_retries=0)
        assert answer.status_code >= 400
        assert {attempt.model for attempt in gateway.provider.attempts} == {"leaky"}

    def test_a_forbidden_one_is_refused_before_anything_is_spent(self, gateway: Gateway):
        answer = gateway.chat("small", who="bob", fallbacks=["large"])
        refused(answer, gateway)
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("permission_error", "model_not_allowed")
        assert "'large'" in error["message"]


class TestModelLists:
    @pytest.mark.parametrize(
        ("who", "names"),
        [
            ("bob", {"small", "leaky", "open-mini", "smart", "granted", "sturdy"}),
            ("newcomer", {"small", "leaky", "open-mini", "smart", "granted", "sturdy"}),
            ("carl", {"small", "sturdy"}),
            ("dora", {"granted"}),
            ("eve", set[str]()),
        ],
    )
    def test_a_key_sees_exactly_what_it_may_use(self, who: str, names: set[str], gateway: Gateway):
        with gateway.client(who) as client:
            listed = {model["id"] for model in client.get("/v1/models").raise_for_status().json()["data"]}
            everything = ["small", "large", "leaky", "open-mini", "smart", "granted", "sturdy", "doomed", "brittle"]
            singly = {name for name in everything if client.get(f"/v1/models/{name}").status_code == 200}
        assert listed == singly == names
        answered = {name for name in everything if gateway.chat(name, who=who).status_code == 200}
        assert answered == names

    @pytest.mark.parametrize("who", ["ada", "admin"])
    def test_those_who_may_use_everything_see_everything(self, who: str, gateway: Gateway):
        with gateway.client(who) as client:
            listed = {model["id"] for model in client.get("/v1/models").raise_for_status().json()["data"]}
        assert listed >= {"small", "large", "claude", "embed", "smart", "granted", "sturdy", "doomed"}


class TestClaims:
    def test_a_trusted_key_speaks_for_its_users(self, gateway: Gateway):
        headers = {"x-user-id": "bob", "x-user-tier": "free"}
        answer = gateway.post("/v1/chat/completions", CHAT, who="service", headers=headers)
        assert answer.headers["x-orchestration-tier"] == "free"
        event = gateway.event(answer)
        assert (event.user_id, event.tier, event.groups) == ("bob", "free", ("writers",))
        answer = gateway.post("/v1/chat/completions", CHAT | {"model": "large"}, who="service", headers=headers)
        assert answer.status_code == 403

    def test_so_it_does_in_the_body(self, gateway: Gateway):
        answer = gateway.chat("small", who="service", metadata={"user_id": "zoe", "user_tier": "free"})
        event = gateway.event(answer)
        assert (event.user_id, event.tier) == ("zoe", "free")

    def test_a_tier_that_does_not_exist_is_refused(self, gateway: Gateway):
        answer = gateway.chat("small", who="service", metadata={"user_tier": "platinum"})
        assert answer.status_code == 400
        assert "free, premium" in answer.json()["error"]["message"]

    @pytest.mark.parametrize("where", ["headers", "metadata"])
    def test_another_key_claims_in_vain(self, where: str, gateway: Gateway):
        headers = {"x-user-id": "ada", "x-user-tier": "premium"} if where == "headers" else {}
        metadata = {"user_id": "ada", "user_tier": "premium"} if where == "metadata" else {}
        answer = gateway.post("/v1/chat/completions", CHAT | {"metadata": metadata}, who="bob", headers=headers)
        event = gateway.event(answer)
        assert (event.user_id, event.tier) == ("bob", "free")
        body = CHAT | {"model": "large", "metadata": metadata}
        assert gateway.post("/v1/chat/completions", body, who="bob", headers=headers).status_code == 403


class TestSmuggling:
    def test_our_headers_mean_nothing_when_a_client_sends_them(self, gateway: Gateway):
        forged = {
            "x-orchestration-request-id": "00000000-0000-0000-0000-000000000000",
            "x-orchestration-tier": "premium",
            "x-orchestration-model": "large",
            "x-orchestration-cost": "0",
        }
        answer = gateway.post("/v1/chat/completions", CHAT, who="bob", headers=forged)
        assert answer.headers.get_list("x-orchestration-tier") == ["free"]
        assert answer.headers.get_list("x-orchestration-model") == ["small"]
        assert len(answer.headers.get_list("x-orchestration-request-id")) == 1
        assert gateway.event(answer).cost_nano == cost_nano("small", 4, 8)
        assert answer.headers["x-orchestration-request-id"] != forged["x-orchestration-request-id"]

    def test_a_clients_call_id_does_not_merge_two_requests(self, gateway: Gateway):
        headers = {"x-litellm-call-id": "00000000-0000-0000-0000-000000000001"}
        answers = [gateway.post("/v1/chat/completions", CHAT, headers=headers) for _ in range(2)]
        events = gateway.books.recorded(2)
        assert {event.request_id for event in events} == {a.headers["x-orchestration-request-id"] for a in answers}
        assert [event.cost_nano for event in events] == [cost_nano("small", 4, 8)] * 2

    @pytest.mark.parametrize("name", ["api_base", "base_url"])
    def test_a_request_does_not_say_where_it_goes(self, name: str, gateway: Gateway):
        refused(gateway.chat("small", who="bob", **{name: f"{gateway.provider.origin}/elsewhere"}), gateway)

    def test_a_mock_response_of_the_client_is_not_charged_as_a_call(self, gateway: Gateway):
        """LiteLLM lets a request bring its own answer. Nobody bills that, whatever its invented usage says."""
        answer = gateway.chat("small", who="bob", mock_response="mine")
        event = gateway.event(answer)
        billed = gateway.provider.totals
        assert event.cost_nano == cost_nano("small", billed.prompt_tokens, billed.completion_tokens)

    @pytest.mark.parametrize(
        "more",
        [
            {"user_config": {"model_list": [{"model_name": "large", "litellm_params": {"model": "openai/large"}}]}},
            {"extra_body": {"model": "large"}},
            {"extra_body": {"fallbacks": ["large"]}},
            {"specific_deployment": True},
            {"model_group": "large"},
            {"litellm_metadata": {"model_group": "large"}},
            {"metadata": {"model_group": "large", "user_api_key_metadata": {"tier": "premium"}}},
            {"litellm_params": {"model": "openai/large"}},
            {"tags": ["premium"]},
        ],
    )
    def test_no_field_of_the_body_reaches_a_forbidden_model(self, more: dict[str, Any], gateway: Gateway):
        gateway.chat("small", who="bob", **more)
        assert "large" not in {attempt.model for attempt in gateway.provider.attempts}

    def test_the_model_in_the_path_and_the_model_in_the_body_are_not_two_models(self, gateway: Gateway):
        for path_model, body_model in (("small", "large"), ("large", "small")):
            path = f"/openai/deployments/{path_model}/chat/completions"
            answer = gateway.post(path, {"model": body_model, "messages": MESSAGES}, who="bob")
            if answer.status_code == 200:
                assert answer.headers["x-orchestration-model"] == "small"
        assert "large" not in {attempt.model for attempt in gateway.provider.attempts}

    def test_a_model_in_the_query_reaches_no_forbidden_one(self, gateway: Gateway):
        gateway.post("/v1/chat/completions?model=large", CHAT, who="bob")
        gateway.post("/v1/chat/completions?model=large", {"messages": MESSAGES}, who="bob")
        assert "large" not in {attempt.model for attempt in gateway.provider.attempts}


class TestRefusedRoutes:
    @pytest.mark.parametrize(
        "path",
        [
            "/openai_passthrough/v1/chat/completions",
            "/openai/v1/threads",
            "/anthropic/v1/messages",
            "/openai/v1/batches",
            "/vllm/x",
        ],
    )
    @pytest.mark.parametrize("who", ["ada", "admin"])
    def test_they_are_closed_while_there_are_tiers(self, path: str, who: str, gateway: Gateway):
        answer = gateway.post(path, CHAT, who=who)
        assert answer.status_code == 403
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("permission_error", "route_refused")
        assert path in error["message"]
        assert gateway.provider.attempts == []

    @pytest.mark.parametrize("path", ["/v1/realtime?model=small", "/v1/responses", "/openai_passthrough/v1/realtime"])
    def test_so_are_websockets(self, path: str, gateway: Gateway):
        async def visit() -> None:
            url = gateway.proxy.url.replace("http", "ws") + path
            headers = {"Authorization": f"Bearer {KEYS['ada']}"}
            async with connect(url, additional_headers=headers, proxy=None):
                pass

        with pytest.raises(InvalidStatus, match="403"):
            asyncio.run(visit())
        assert gateway.provider.attempts == []

    @pytest.mark.parametrize("path", ["/v1/chat/completions/", "//v1/chat/completions", "/v1//chat/completions"])
    def test_other_spellings_of_a_path_do_not_slip_past_the_books(self, path: str, gateway: Gateway):
        with gateway.client("bob") as client:
            client.post(path, json=CHAT | {"model": "large"}, follow_redirects=True)
            answer = client.post(path, json=CHAT, follow_redirects=True)
        assert "large" not in {attempt.model for attempt in gateway.provider.attempts}
        calls = len(gateway.provider.attempts)
        what = f"an event for each of {calls} calls (the answer was {answer.status_code})"
        eventually_sync(lambda: len([event for event in gateway.books.new() if event.attempts]) == calls, what=what)
