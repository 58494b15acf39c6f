"""Batches and background responses under budgets, by the provider's own bill."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import orjson
import pytest

from core.usage import UsageEvent
from tests.support.books import Books
from tests.support.eventually import eventually_sync
from tests.support.gateway import KEYS, MESSAGES, OURS, PROMPT, cost_nano, key_environment, model
from tests.support.provider.batches import BatchProvider
from tests.support.proxy import ProxyProcess
from tests.support.secret_proxy import MANAGER

pytestmark = pytest.mark.live

CHAT = "/v1/chat/completions"


def config(provider: BatchProvider) -> dict[str, Any]:
    unpriced = model("unpriced", provider.url)
    unpriced["model_info"] = {"id": "unpriced-id", "mode": "chat"}
    return {
        **OURS,
        "general_settings": {**OURS["general_settings"], **MANAGER},
        "model_list": [
            model("small", provider.url),
            model("large", provider.url),
            model("vaulted", provider.url, api_key="os.environ/env://VAULTED_KEY"),
            model("claude", provider.origin, provider="anthropic"),
            unpriced,
        ],
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        "orchestration": {
            "keys": [
                {"key": "os.environ/KEY_ADA", "user_id": "ada", "tier": "premium"},
                {"key": "os.environ/KEY_BOB", "user_id": "bob", "tier": "free"},
                {"key": "os.environ/KEY_SERVICE", "user_id": "service", "tier": "premium", "trusted": True},
            ],
            "tiers": {"free": {"models": ["small"], "max_tokens": 20}, "premium": {"models": ["*"]}},
            "default_tier": "free",
            "routing": {"policies": {"smart": {"candidates": ["large", "small"]}}},
            "budgets": [{"budget_id": "each", "per": "user", "total_budget": 0.002, "reset_period": "TOTAL"}],
        },
    }


@dataclass
class Batching:
    proxy: ProxyProcess
    provider: BatchProvider
    books: Books
    users: int = 0

    def client(self, who: str = "service", user: str | None = None) -> httpx.Client:
        client = self.proxy.client(None if who == "admin" else KEYS[who])
        if user is not None:
            client.headers["x-user-id"] = user
        return client

    def new_user(self) -> str:
        self.users += 1
        return f"user-{self.users}"

    def event(self, request_id: str) -> UsageEvent:
        return self.books.event(request_id)

    def settled(self, request_id: str) -> UsageEvent:
        """The event, once it is no longer charged what was reserved."""

        def found() -> UsageEvent | None:
            event = self.books.event(request_id)
            return event if event.usage == "reported" else None

        event = eventually_sync(found, within=30, what="the batch being settled")
        assert event is not None
        return event


@pytest.fixture(scope="module")
def running() -> Iterator[Batching]:
    env = {**key_environment(), "VAULTED_KEY": "sk-from-the-vault"}
    with BatchProvider() as provider, ProxyProcess(config(provider), env=env) as proxy:
        yield Batching(proxy, provider, Books(proxy))


@pytest.fixture
def gateway(running: Batching) -> Batching:
    running.provider.reset()
    running.books.mark()
    return running


def line(number: int, model: str = "small", url: str = CHAT, **more: Any) -> dict[str, Any]:
    body = {"model": model, "messages": MESSAGES, "max_tokens": 50, **more}
    return {"custom_id": f"line-{number}", "method": "POST", "url": url, "body": body}


def jsonl(*lines: dict[str, Any]) -> bytes:
    return b"\n".join(orjson.dumps(one) for one in lines)


def upload(client: httpx.Client, content: bytes, **fields: str) -> httpx.Response:
    files = {"file": ("lines.jsonl", content, "application/jsonl")}
    return client.post("/v1/files", data={"purpose": "batch", **fields}, files=files)


def create(client: httpx.Client, file_id: str, **more: Any) -> httpx.Response:
    asked = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h", **more}
    return client.post("/v1/batches", json=asked)


def begin(client: httpx.Client, *lines: dict[str, Any]) -> httpx.Response:
    file = upload(client, jsonl(*lines))
    assert file.status_code == 200, file.text
    return create(client, file.json()["id"])


def test_a_batch_is_charged_its_bound_until_it_is_over_and_then_what_it_cost(gateway: Batching):
    with gateway.client(user=gateway.new_user()) as client:
        answer = begin(client, line(1), line(2), line(3))
        assert answer.status_code == 200, answer.text
        request_id = answer.headers["x-orchestration-request-id"]
        event = gateway.event(request_id)
        [attempt] = event.attempts
        assert (event.endpoint, event.usage, event.asked_model) == ("batches", "unknown", "small")
        assert event.cost_nano == event.unknown_nano == attempt.reserved_nano > 3 * cost_nano("small", 4, 50)
        assert attempt.accounts[0].startswith("each~")

        [sent] = gateway.provider.book.batches.values()
        lines = gateway.provider.book.files[sent["input_file_id"]].splitlines()
        assert [orjson.loads(one)["body"]["max_tokens"] for one in lines] == [50] * 3

        gateway.provider.app.finish(sent["id"], output_tokens=10)
        settled = gateway.settled(request_id)
        assert settled.cost_nano == 3 * cost_nano("small", 4, 10) // 2
        assert (settled.input_tokens, settled.output_tokens, settled.unknown_nano) == (12, 30, 0)

        batch = client.get(f"/v1/batches/{answer.json()['id']}").json()
        assert batch["status"] == "completed"
        content = client.get(f"/v1/files/{batch['output_file_id']}/content")
        assert len(content.text.splitlines()) == 3


def creations(gateway: Batching) -> int:
    return gateway.provider.book.asked.count("POST /batches")


def running_batch(gateway: Batching) -> str:
    """The provider's id of the newest batch."""
    return list(gateway.provider.book.batches)[-1]


def test_a_batch_that_does_not_fit_is_refused_and_the_provider_is_never_asked(gateway: Batching):
    with gateway.client(user=gateway.new_user()) as client:
        before = creations(gateway)
        answer = begin(client, *(line(number) for number in range(5)))
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "budget_exceeded"
        assert creations(gateway) == before
        event = gateway.event(answer.headers["x-orchestration-request-id"])
        assert (event.endpoint, event.cost_nano, event.attempts) == ("batches", 0, [])


def test_what_a_batch_has_reserved_is_gone_until_it_is_known_what_it_cost(gateway: Batching):
    with gateway.client(user=gateway.new_user()) as client:
        first = begin(client, line(1), line(2), line(3))
        assert begin(client, line(1), line(2), line(3)).status_code == 429
        gateway.provider.app.finish(running_batch(gateway), output_tokens=1)
        gateway.settled(first.headers["x-orchestration-request-id"])
        second = eventually_sync(
            lambda: answer if (answer := begin(client, line(1), line(2), line(3))).status_code == 200 else None,
            within=10,
            what="the money being free again",
        )
        assert second is not None


def test_of_many_batches_at_once_only_those_are_created_that_the_budget_pays(gateway: Batching):
    user = gateway.new_user()
    with gateway.client(user=user) as client:
        file_id = upload(client, jsonl(line(1), line(2), line(3))).json()["id"]
        before = creations(gateway)
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda _: create(client, file_id).status_code, range(12)))
    assert sorted(answers) == [200] + [429] * 11
    assert creations(gateway) == before + 1


@pytest.mark.parametrize(("status", "answered"), [("cancelled", 2), ("expired", 1), ("failed", 0), ("completed", 0)])
def test_of_a_batch_that_ends_early_only_what_was_answered_is_charged(status: str, answered: int, gateway: Batching):
    with gateway.client(user=gateway.new_user()) as client:
        answer = begin(client, line(1), line(2), line(3))
        gateway.provider.app.finish(running_batch(gateway), status, answered=answered, output_tokens=10)
        event = gateway.settled(answer.headers["x-orchestration-request-id"])
        assert event.cost_nano == answered * cost_nano("small", 4, 10) // 2
        assert event.unknown_nano == 0


def test_a_creation_that_fails_is_not_tried_again_and_costs_nothing(gateway: Batching):
    with gateway.client(user=gateway.new_user()) as client:
        gateway.provider.book.refusals[:] = [500]
        before = creations(gateway)
        answer = begin(client, line(1), line(2), line(3))
        assert answer.status_code == 500, answer.text
        assert creations(gateway) == before + 1, "the client that LiteLLM uses must not try again by itself"
        assert gateway.event(answer.headers["x-orchestration-request-id"]).cost_nano == 0
        assert begin(client, line(1), line(2), line(3)).status_code == 200, "the reservation was given back"


def test_a_creation_that_nobody_heard_the_end_of_is_charged_what_was_reserved(gateway: Batching):
    with gateway.client(user=gateway.new_user()) as client:
        gateway.provider.book.refusals[:] = [504]
        answer = begin(client, line(1), line(2), line(3))
        assert answer.status_code >= 500 or answer.status_code == 408, answer.text
        event = gateway.event(answer.headers["x-orchestration-request-id"])
        assert (event.usage, event.cost_nano) == ("unknown", event.attempts[0].reserved_nano)
        assert event.cost_nano > 0
        assert begin(client, line(1), line(2), line(3)).status_code == 429


def test_a_batch_of_a_model_whose_key_is_in_a_vault_is_made_asked_about_and_read_with_that_key(gateway: Batching):
    gateway.provider.book.api_keys.clear()
    with gateway.client(user=gateway.new_user()) as client:
        answer = begin(client, line(1, "vaulted", max_tokens=1))
        assert answer.status_code == 200, answer.text
        gateway.provider.app.finish(running_batch(gateway), output_tokens=1)
        gateway.settled(answer.headers["x-orchestration-request-id"])
    assert gateway.provider.book.api_keys - {"sk-provider"} == {"sk-from-the-vault"}


class TestWhoMay:
    def test_a_tier_s_models_and_output_limit_hold_for_every_line(self, gateway: Batching):
        with gateway.client("bob") as client:
            refused = upload(client, jsonl(line(1, "large")))
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")
            unlimited = line(2)
            del unlimited["body"]["max_tokens"]
            answer = begin(client, line(1), unlimited)
            assert answer.status_code == 200, answer.text
        sent = gateway.provider.book.batches[running_batch(gateway)]
        lines = [orjson.loads(one)["body"] for one in gateway.provider.book.files[sent["input_file_id"]].splitlines()]
        assert [body["max_completion_tokens"] for body in lines] == [20, 20]
        assert not any("max_tokens" in body for body in lines)

    def test_files_and_batches_are_there_for_their_owner_and_administrators_alone(self, gateway: Batching):
        with gateway.client("ada") as ada, gateway.client("bob") as bob, gateway.client("admin") as admin:
            file_id = upload(ada, jsonl(line(1))).json()["id"]
            batch_id = create(ada, file_id).json()["id"]
            gateway.provider.app.finish(running_batch(gateway))
            output_id = ada.get(f"/v1/batches/{batch_id}").json()["output_file_id"]
            paths = [f"/v1/files/{file_id}", f"/v1/files/{file_id}/content", f"/v1/batches/{batch_id}"]
            paths += [f"/v1/files/{output_id}/content", f"/files/{file_id}", f"/batches/{batch_id}"]
            for path in paths:
                assert ada.get(path).status_code == 200, path
                assert admin.get(path).status_code == 200, path
                assert bob.get(path).status_code == 404, path
            assert create(bob, file_id).status_code == 404
            assert bob.post(f"/v1/batches/{batch_id}/cancel").status_code == 404
            assert bob.delete(f"/v1/files/{file_id}").status_code == 404
            assert [one["id"] for one in ada.get("/v1/batches").json()["data"]] == [batch_id]
            assert {one["id"] for one in ada.get("/v1/files").json()["data"]} == {file_id, output_id}
            assert batch_id not in bob.get("/v1/batches").text
            provider_id = gateway.provider.book.batches[running_batch(gateway)]["input_file_id"]
            assert ada.get(f"/v1/files/{provider_id}").status_code == 404, "only the ids that we have given out"

    def test_nobody_without_a_key_gets_anywhere(self, gateway: Batching):
        with httpx.Client(base_url=gateway.proxy.url, headers={"Authorization": "Bearer sk-wrong"}) as client:
            assert upload(client, jsonl(line(1))).status_code == 401
            assert create(client, "file-1").status_code == 401
            assert client.get("/v1/batches/batch_1").status_code == 401


class TestRefused:
    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            ([line(1, "claude")], "Batches of anthropic cannot be bounded"),
            ([line(1, "smart")], "is a policy"),
            ([line(1, "small-id")], "not permitted, or there is none"),
            ([line(1), line(2, "large")], "Line 2 asks 'large'"),
            ([line(1), line(2) | {"url": "/v1/videos"}], "Line 2: url must be one of"),
        ],
    )
    def test_lines_that_cannot_be_paid_for_in_advance(self, lines: Any, message: str, gateway: Batching):
        uploads = gateway.provider.book.asked.count("POST /files")
        with gateway.client("ada") as client:
            answer = upload(client, jsonl(*lines))
            assert answer.status_code in (400, 403), answer.text
            assert message in answer.json()["error"]["message"]
        assert gateway.provider.book.asked.count("POST /files") == uploads

    def test_lines_of_a_model_without_a_price(self, gateway: Batching):
        with gateway.client("ada") as client:
            answer = begin(client, line(1, "unpriced"))
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "cost_unbounded")
            assert "line 1" in answer.json()["error"]["message"]

    def test_what_would_send_a_file_or_a_batch_elsewhere(self, gateway: Batching):
        with gateway.client("ada") as client:
            content = jsonl(line(1))
            for field in ({"purpose": "assistants"}, {"target_storage": "s3"}, {"custom_llm_provider": "azure"}):
                assert upload(client, content, **field).status_code == 400, field
            assert upload(client, content, target_model_names="large").status_code == 400
            file_id = upload(client, content).json()["id"]
            for extra in ({"model": "large"}, {"custom_llm_provider": "openai"}, {"extra_body": {}}, {"api_base": "x"}):
                assert create(client, file_id, **extra).status_code == 400, extra
            assert create(client, file_id, endpoint="/v1/embeddings").status_code == 400
            before = creations(gateway)
            steered = client.post(
                "/v1/batches?model=large",
                json={"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"},
                headers={"x-litellm-model": "large", "custom-llm-provider": "azure"},
            )
            assert (steered.status_code, creations(gateway)) == (200, before + 1), steered.text
            event = gateway.event(steered.headers["x-orchestration-request-id"])
            assert (event.used_model, event.deployment) == ("small", "small-id")


class TestInTheBackground:
    def ask(self, client: httpx.Client, **more: Any) -> httpx.Response:
        asked = {"model": "small", "input": PROMPT, "max_output_tokens": 50, "background": True, **more}
        return client.post("/v1/responses", json=asked)

    def test_a_response_is_charged_its_bound_until_it_is_over_and_then_what_it_cost(self, gateway: Batching):
        with gateway.client(user=gateway.new_user()) as client:
            answer = self.ask(client)
            assert (answer.status_code, answer.json()["status"]) == (200, "queued"), answer.text
            request_id = answer.headers["x-orchestration-request-id"]
            event = gateway.event(request_id)
            assert (event.usage, event.cost_nano) == ("unknown", event.attempts[0].reserved_nano)
            assert event.cost_nano > cost_nano("small", 4, 50)
            [response_id] = list(gateway.provider.book.responses)[-1:]
            gateway.provider.app.finish_response(response_id, output_tokens=10)
            settled = gateway.settled(request_id)
            assert settled.cost_nano == cost_nano("small", 4, 10)
            assert (settled.input_tokens, settled.output_tokens) == (4, 10)
            assert client.get(f"/v1/responses/{answer.json()['id']}").json()["status"] == "completed"

    def test_a_stream_in_the_background_is_refused(self, gateway: Batching):
        with gateway.client("ada") as client:
            answer = self.ask(client, stream=True)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "cost_unbounded")


def test_a_proxy_that_is_killed_has_charged_the_batch_and_settles_it_when_it_is_back(gateway: Batching):
    with gateway.client(user=gateway.new_user()) as client:
        answer = begin(client, line(1), line(2), line(3))
    gateway.proxy.kill()
    gateway.provider.app.finish(running_batch(gateway), output_tokens=10)
    gateway.proxy.start()
    event = gateway.settled(answer.headers["x-orchestration-request-id"])
    assert event.cost_nano == 3 * cost_nano("small", 4, 10) // 2
