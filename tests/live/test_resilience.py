"""Providers that fail, slow down, hang up or vanish, and what clients see of it: as little as can be."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from core.usage import UsageEvent
from tests.support.books import Books
from tests.support.eventually import eventually_sync
from tests.support.gateway import KEYS, MESSAGES, OURS, PROMPT, Gateway, key_environment, model
from tests.support.json_server import JsonServer, Request
from tests.support.processes import free_port
from tests.support.provider import FakeProvider
from tests.support.proxy import ProxyProcess
from tests.support.redis import RedisServer

pytestmark = pytest.mark.live

THRESHOLD = 3
OPEN_FOR = 1.0
SORRY = "We are {reason} at the moment, please try again."
TALKING = {
    "chat": ("/v1/chat/completions", {"messages": MESSAGES}),
    "completion": ("/v1/completions", {"prompt": PROMPT}),
    "response": ("/v1/responses", {"input": PROMPT}),
    "message": ("/v1/messages", {"messages": MESSAGES, "max_tokens": 50}),
}
talking = pytest.mark.parametrize(("path", "body"), TALKING.values(), ids=TALKING.keys())


def config(provider: FakeProvider) -> dict[str, Any]:
    url = provider.url
    pairs = [(f"{kind}-{place}", kind) for kind in ("duo", "sorry", "plain") for place in ("one", "two")]
    return {
        **OURS,
        "model_list": [
            *(model(name, url, timeout=2.0) for name, _ in pairs),
            *(model(name, url) for name in ("lonely", "retried", "slow-one", "slow-two", "hurried", "vec-two")),
            model("vec-one", url, mode="embedding"),
            model("nameless", "http://no.such.host.invalid/v1", timeout=3.0),
            model("loris", f"http://127.0.0.1:{LORIS_PORT}/v1", timeout=0.7),
            model("twins", url) | {"model_info": {"id": "twin-one", "mode": "chat"}},
            model("twins", url) | {"model_info": {"id": "twin-two", "mode": "chat"}},
        ],
        "orchestration": {
            "keys": [{"key": "os.environ/KEY_ADA", "user_id": "ada", "tier": "all"}],
            "tiers": {"all": {"models": ["*"]}},
            "routing": {
                "policies": {
                    "duo": {"candidates": ["duo-one", "duo-two"]},
                    "sorry": {"candidates": ["sorry-one", "sorry-two"], "fallback_response": SORRY},
                    "plain": {"candidates": ["plain-one", "plain-two"]},
                    "vectors": {"candidates": ["vec-one"], "fallback_response": SORRY},
                    "broken": {"candidates": ["nameless", "loris", "hurried"]},
                    "pair": {"candidates": ["twins"]},
                }
            },
            "resilience": {
                "circuit_breaker": {
                    "failure_threshold": THRESHOLD,
                    "failure_ratio": None,
                    "open_for": OPEN_FOR,
                    "max_open_for": OPEN_FOR,
                },
                "health_checks": {"interval": 0},
            },
            "alerts": {
                "channels": {"ops": "os.environ/ALERT_URL"},
                "rules": [{"on": ["breaker_open", "breaker_closed"], "to": ["ops"]}],
                "allow_private_addresses": True,
            },
        },
    }


LORIS_PORT = free_port()


@pytest.fixture(scope="module")
def loris() -> Iterator[None]:
    """A server that says a byte of its answer's head a second, and does not come to its end."""
    server = socket.create_server(("127.0.0.1", LORIS_PORT))
    over = threading.Event()

    def drip(connection: socket.socket) -> None:
        with connection:
            try:
                for byte in b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-slow: " + b"a" * 1000:
                    connection.sendall(bytes([byte]))
                    if over.wait(1.0):
                        return
            except OSError:
                return

    def listen() -> None:
        while not over.is_set():
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=drip, args=(connection,), daemon=True).start()

    threading.Thread(target=listen, daemon=True).start()
    yield
    over.set()
    server.close()


class People:
    """Those whom alerts go to."""

    def __init__(self) -> None:
        self.told: list[bytes] = []
        self.server = JsonServer(0, self.answer)

    def answer(self, request: Request) -> tuple[int, dict[str, str], object]:
        self.told.append(request.body)
        return 200, {}, {}


@pytest.fixture(scope="module")
def people() -> Iterator[People]:
    found = People()
    yield found
    found.server.stop()


@pytest.fixture(scope="module")
def shared(
    loris: None, people: People, shared_provider: FakeProvider, shared_proxy: Callable[..., ProxyProcess]
) -> Gateway:
    env = {**key_environment(), "ALERT_URL": f"webhook+http://127.0.0.1:{people.server.port}/?secret=key"}
    proxy = shared_proxy(config(shared_provider), env=env)
    return Gateway(proxy, shared_provider, Books(proxy))


@pytest.fixture
def gateway(shared: Gateway, provider: FakeProvider) -> Gateway:
    """The shared one, with breakers that know of no trouble."""
    with shared.client("admin") as admin:
        for name in breakers(shared):
            admin.post(f"/orchestration/breakers/{name}/close").raise_for_status()
            admin.post(f"/orchestration/breakers/{name}/auto").raise_for_status()
    shared.books.mark()
    return shared


def breakers(gateway: Gateway) -> dict[str, str]:
    """The state of each breaker that is not as good as new."""
    states = gateway.books.status()["breakers"]
    return {name: one["state"] for name, one in states.items()}


def tries(event: UsageEvent) -> list[tuple[str, int]]:
    return [(attempt.model, attempt.status) for attempt in event.attempts]


class TestFailover:
    @pytest.mark.parametrize(("kind", "stream"), [("chat", False), ("completion", True)])
    def test_a_candidate_is_tried_twice_and_then_the_next(self, kind: str, stream: bool, gateway: Gateway):
        gateway.provider.script(model="duo-one", status=500)
        path, body = TALKING[kind]
        answer = gateway.post(path, {"model": "duo", "stream": stream, **body})
        assert answer.status_code == 200, answer.text
        assert tries(gateway.event(answer)) == [("duo-one", 500), ("duo-one", 500), ("duo-two", 200)]

    @talking
    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
    def test_no_client_sees_a_provider_that_is_down_while_another_is_well(
        self, stream: bool, path: str, body: dict[str, Any], gateway: Gateway
    ):
        gateway.provider.script(model="duo-one", status=503)
        for _ in range(4):
            answer = gateway.post(path, {"model": "duo", "stream": stream, **body})
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-orchestration-model"] == "duo-two"
        wasted = [attempt for attempt in gateway.provider.attempts if attempt.model == "duo-one"]
        assert len(wasted) <= THRESHOLD + 2, "those that open the breaker, and probes"
        assert not any(
            key.startswith("_") or "fallback" in key for one in gateway.provider.attempts for key in one.body
        )

    def test_a_probe_finds_out_that_it_is_well_again(self, gateway: Gateway):
        gateway.provider.script(model="duo-one", status=503)
        for _ in range(3):
            gateway.chat("duo")
        gateway.provider.script(model="duo-one")
        since = time.monotonic()
        eventually_sync(
            lambda: gateway.chat("duo").headers["x-orchestration-model"] == "duo-one", within=10, what="a probe"
        )
        assert time.monotonic() - since < OPEN_FOR + 1

    @pytest.mark.parametrize(
        "trouble",
        [
            {"reset_connection": True},
            {"status": 429, "retry_after": 30},
            {"status": 401},
            {"malformed": True},
            {"hang": True},
            {"cut_after_chunks": 0},
        ],
        ids=lambda trouble: next(iter(trouble.items()))[0] + str(next(iter(trouble.values()))),
    )
    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
    def test_whatever_goes_wrong_the_next_answers(self, stream: bool, trouble: dict[str, Any], gateway: Gateway):
        gateway.provider.script(model="plain-one", **trouble)
        answer = gateway.chat("plain", stream=stream)
        gateway.provider.release()
        assert answer.status_code == 200, answer.text
        assert "lazy" in answer.text
        assert answer.headers["x-orchestration-model"] == (
            "plain-two" if stream or "cut" not in str(trouble) else "plain-one"
        )

    def test_a_name_that_does_not_resolve_and_a_server_that_drips_are_failures(self, gateway: Gateway):
        answer = gateway.chat("broken")
        assert answer.status_code == 200, answer.text
        event = gateway.event(answer)
        assert [attempt.model for attempt in event.attempts] == ["nameless", "loris", "hurried"]
        assert [attempt.error_class for attempt in event.attempts[:2]] == ["InternalServerError", "Timeout"]

    def test_of_two_deployments_the_one_that_has_not_failed_is_tried_next(self, gateway: Gateway):
        gateway.provider.script(model="twins", statuses=(500, 200))
        event = gateway.event(gateway.chat("pair"))
        assert {attempt.deployment for attempt in event.attempts} == {"twin-one", "twin-two"}


class TestNobodyAnswers:
    @talking
    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
    def test_the_client_is_told_in_one_form_when_to_come_again(
        self, stream: bool, path: str, body: dict[str, Any], gateway: Gateway
    ):
        for name in ("plain-one", "plain-two"):
            gateway.provider.script(model=name, status=503)
        answer = gateway.post(path, {"model": "plain", "stream": stream, **body})
        assert answer.status_code == 503, answer.text
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("service_unavailable", "all_models_failed")
        assert error["details"]["reason"] == "unavailable"
        assert 1 <= int(answer.headers["retry-after"]) <= OPEN_FOR + 1
        event = gateway.event(answer)
        assert (event.status, event.error_class, event.cost_nano) == (503, "AllModelsFailed", 0)

    @talking
    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
    def test_the_policys_own_words_are_the_answer(
        self, stream: bool, path: str, body: dict[str, Any], gateway: Gateway
    ):
        for name in ("sorry-one", "sorry-two"):
            gateway.provider.script(model=name, status=429, retry_after=0.5)
        answer = gateway.post(path, {"model": "sorry", "stream": stream, **body})
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-orchestration-degraded"] == "true"
        assert "x-orchestration-model" not in answer.headers
        said = text_of(path, answer, stream)
        assert said == SORRY.format(reason="rate_limited")
        event = gateway.event(answer)
        assert (event.status, event.degraded, event.cost_nano, event.streamed) == (200, True, 0, stream)
        assert event.usage == "none"

    def test_clients_of_openai_read_them(self, gateway: Gateway):
        import openai

        for name in ("sorry-one", "sorry-two"):
            gateway.provider.script(model=name, status=500)
        words = SORRY.format(reason="unavailable")
        key = str(KEYS["ada"])
        client = openai.OpenAI(base_url=f"{gateway.proxy.url}/v1", api_key=key, max_retries=0)
        whole = client.chat.completions.create(model="sorry", messages=MESSAGES)
        assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (words, "content_filter")
        chunks = client.chat.completions.create(model="sorry", messages=MESSAGES, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == words
        assert client.responses.create(model="sorry", input=PROMPT).output_text == words
        with client.responses.stream(model="sorry", input=PROMPT) as stream:
            assert stream.get_final_response().output_text == words
        assert client.completions.create(model="sorry", prompt=PROMPT).choices[0].text == words

    def test_an_endpoint_that_answers_with_no_text_says_503(self, gateway: Gateway):
        gateway.provider.script(model="vec-one", status=500)
        answer = gateway.post("/v1/embeddings", {"model": "vectors", "input": "x"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "all_models_failed")

    def test_with_open_breakers_nobody_is_asked(self, gateway: Gateway):
        for name in ("sorry-one", "sorry-two"):
            gateway.provider.script(model=name, status=500)
        for _ in range(3):
            gateway.chat("sorry")
        asked = len(gateway.provider.attempts)
        answer = gateway.chat("sorry")
        assert answer.headers["x-orchestration-degraded"] == "true"
        assert len(gateway.provider.attempts) - asked <= 1, "none but a probe"

    @talking
    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
    def test_a_caller_litellm_knows_has_the_words_before_its_pipeline_and_probes_go_through(
        self, stream: bool, path: str, body: dict[str, Any], gateway: Gateway
    ):
        for name in ("sorry-one", "sorry-two"):
            gateway.provider.script(model=name, status=500)
        answers = [gateway.post(path, {"model": "sorry", "stream": stream, **body}) for _ in range(10)]
        assert {text_of(path, answer, stream) for answer in answers} == {SORRY.format(reason="unavailable")}

        def in_the_books() -> list[UsageEvent]:
            found = [event for event in gateway.books.new() if event.endpoint != "health"]
            return found if len(found) == len(answers) else []

        events = eventually_sync(in_the_books, what="an event of each")
        at_the_edge = [one for one in events if one.litellm_call_id is None]
        assert at_the_edge
        found = {(one.user_id, one.tier, one.policy, one.status, one.error_class) for one in events}
        assert found == {("ada", "all", "sorry", 200, "AllModelsFailed")}
        assert all(one.degraded and one.streamed is stream and not one.attempts for one in at_the_edge)
        gateway.provider.reset()

        def well() -> bool:
            answer = gateway.post(path, {"model": "sorry", "stream": stream, **body})
            return answer.headers.get("x-orchestration-model") == "sorry-one"

        eventually_sync(well, within=OPEN_FOR + 2, what="a probe")

    def test_a_model_asked_for_by_name_is_left_alone_too(self, gateway: Gateway):
        gateway.provider.script(model="lonely", status=500)
        for _ in range(THRESHOLD):
            told = gateway.chat("lonely", num_retries=0)
            assert told.json()["error"].get("code") != "all_models_failed", "LiteLLM's own error"
        answer = gateway.chat("lonely")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "all_models_failed")
        asked = [attempt for attempt in gateway.provider.attempts if attempt.model == "lonely"]
        assert len(asked) == THRESHOLD

    def test_a_mistake_of_the_client_is_told_as_it_is_and_opens_nothing(self, gateway: Gateway):
        for name in ("plain-one", "plain-two"):
            gateway.provider.script(model=name, status=400)
        for _ in range(THRESHOLD + 1):
            told = gateway.chat("plain")
            assert told.status_code == 400, (told.text, breakers(gateway))
        gateway.provider.reset()
        assert gateway.chat("plain").headers["x-orchestration-model"] == "plain-one"

    def test_a_client_that_does_not_wait_opens_nothing(self, gateway: Gateway):
        gateway.provider.script(model="lonely", first_byte_delay=0.5)
        for _ in range(THRESHOLD + 1):
            assert gateway.chat("lonely", num_retries=0, timeout=0.05).status_code in (408, 504)
        gateway.provider.reset()
        assert gateway.chat("lonely").status_code == 200


def text_of(path: str, answer: httpx.Response, stream: bool) -> str:
    """What an answer says, whole or as a stream that ends as its dialect wants."""
    if not stream:
        body = answer.json()
        return {
            "/v1/chat/completions": lambda: body["choices"][0]["message"]["content"],
            "/v1/completions": lambda: body["choices"][0]["text"],
            "/v1/responses": lambda: body["output"][0]["content"][0]["text"],
            "/v1/messages": lambda: body["content"][0]["text"],
        }[path]()
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    if path.endswith("completions"):
        assert lines.pop() == "[DONE]"
    events = [json.loads(line) for line in lines]
    if path == "/v1/chat/completions":
        assert events[-1]["choices"][0]["finish_reason"] == "content_filter"
        return "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
    if path == "/v1/completions":
        return events[0]["choices"][0]["text"]
    if path == "/v1/responses":
        assert events[-1]["type"] == "response.completed"
        return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert events[-1]["type"] == "message_stop"
    return "".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta")


class TestAdministration:
    def test_status_shows_how_each_deployment_is_doing(self, gateway: Gateway):
        gateway.provider.script(model="duo-one", status=503)
        for _ in range(THRESHOLD):
            gateway.chat("duo")
        status = gateway.books.status()
        [ill] = [one for one in status["deployments"] if one["id"] == "duo-one-id"]
        assert ill["group"] == "duo-one" and ill["breaker"]["state"] in ("open", "half_open")
        assert ill["breaker"]["why"] and ill["breaker"]["since"]
        assert ill["last_errors"][-1]["status"] == 503 and ill["failing"] > 0
        [well] = [one for one in status["deployments"] if one["id"] == "duo-two-id"]
        assert well["breaker"]["state"] == "closed" and well["p95_ms"] > 0 and 0 < well["share"] <= 1
        assert status["resilience"]["openings"] >= 1 and status["resilience"]["retries"] >= 1

    def test_an_administrator_keeps_one_open_and_lets_it_go(self, gateway: Gateway):
        with gateway.client("admin") as admin:
            held = admin.post("/orchestration/breakers/duo-one-id/open", json={"why": "maintenance"}).json()
            assert (held["state"], held["hold"], held["why"]) == ("open", "open", "maintenance")
            assert gateway.chat("duo").headers["x-orchestration-model"] == "duo-two"
            assert admin.post("/orchestration/breakers/duo-one-id/auto").json()["state"] == "closed"
            eventually_sync(
                lambda: gateway.chat("duo").headers["x-orchestration-model"] == "duo-one", within=2, what="use again"
            )
            query = {"subject": "breakers/duo-one-id", "action": "breaker.open"}
            [record] = admin.get("/orchestration/audit", params=query).json()["records"]
            assert "maintenance" in json.dumps(record)
            assert admin.post("/orchestration/breakers/duo-one/open").status_code == 404
            assert admin.post("/orchestration/breakers/duo-one-id/open", json={"for": 3}).status_code == 400
        assert gateway.post("/orchestration/breakers/duo-one-id/open", {}).status_code == 403

    def test_people_are_told_and_the_audit_has_it(self, gateway: Gateway, people: People):
        gateway.provider.script(model="duo-two", status=503)
        gateway.provider.script(model="duo-one", status=503)
        for _ in range(THRESHOLD):
            gateway.chat("duo")

        def told() -> bool:
            return any(b"breaker_open" in one and b"duo-one-id" in one for one in people.told)

        eventually_sync(told, within=20, what="an alert")
        with gateway.client("admin") as admin:
            query = {"subject": "breakers/duo-one-id", "action": "breaker.opened"}
            found = eventually_sync(
                lambda: admin.get("/orchestration/audit", params=query).json()["records"], what="a record"
            )
        assert found[0]["outcome"] == "ok"


class TestBrokenStreams:
    @talking
    def test_a_stream_that_breaks_off_is_not_repeated_and_ends_in_a_well_formed_event(
        self, path: str, body: dict[str, Any], gateway: Gateway
    ):
        gateway.provider.script(model="duo-one", cut_after_chunks=5, chunk_delay=0.05)
        answer = gateway.post(path, {"model": "duo", "stream": True, **body})
        asked = [attempt for attempt in gateway.provider.attempts if attempt.model == "duo-one"]
        assert len(asked) == 1 and answer.status_code == 200
        last = [part for part in answer.text.split("\n\n") if part.strip() and part.strip() != "data: [DONE]"][-1]
        data = json.loads(last[last.index("data: ") + 6 :])
        assert "error" in data or data.get("type") in ("response.failed", "error"), last
        assert gateway.event(answer).error_class

    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
    def test_streams_that_break_off_open_the_breaker(self, path: str, gateway: Gateway):
        gateway.provider.script(model="duo-one", cut_after_chunks=5, chunk_delay=0.02)
        for _ in range(THRESHOLD):
            gateway.post(path, {"model": "duo", "stream": True, "messages": MESSAGES, "max_tokens": 50})
        assert breakers(gateway)["duo-one-id"] == "open"


def test_deployments_without_traffic_are_asked_and_the_books_say_what_it_cost(provider: FakeProvider):
    section = {"resilience": {"health_checks": {"interval": 1, "timeout": 5}}}
    models = [model("idle", provider.url), model("vector", provider.url, mode="embedding")]
    file = {**OURS, "model_list": models, "orchestration": section}
    with ProxyProcess(file, env=key_environment()) as proxy:
        books = Books(proxy)
        eventually_sync(lambda: "idle" in healthy(books) and "vector" in healthy(books), within=30, what="checks")
        provider.script(model="idle", status=500)
        eventually_sync(lambda: state_of(books, "idle-id")["breaker"]["state"] == "open", within=30, what="an open one")
        assert state_of(books, "vector-id")["checked"]["ok"] and not state_of(books, "idle-id")["checked"]["ok"]
        asked = [attempt for attempt in provider.attempts if attempt.model == "idle"]
        assert asked[0].body["max_tokens"] == 1 and not {"no-log", "model_info"} & asked[0].body.keys()
        events = [event for event in books.all() if event.user_id == "health-checks"]
        assert events and {event.endpoint for event in events} == {"health"}
        paid = next(event for event in events if event.used_model == "idle" and event.status == 200)
        assert paid.cost_nano == 1_000 * paid.input_tokens + 2_000 * paid.output_tokens > 0


def healthy(books: Books) -> set[str | None]:
    """The models that health checks have found in order."""
    return {one.used_model for one in books.all() if one.user_id == "health-checks" and one.status == 200}


def state_of(books: Books, deployment: str) -> dict[str, Any]:
    return next(one for one in books.status()["deployments"] if one["id"] == deployment)


def test_two_instances_share_breakers_and_their_probes(
    provider: FakeProvider, redis_server: RedisServer, postgres_url: str
):
    section = config(provider)["orchestration"] | {
        "shared_state": {"url": redis_server.url},
        "store": {"url": postgres_url},
        "alerts": {},
    }
    section["resilience"]["circuit_breaker"] |= {"open_for": 5, "max_open_for": 5}
    models = [model(name, provider.url) for name in ("duo-one", "duo-two")]
    section["routing"] = {"policies": {"duo": {"candidates": ["duo-one", "duo-two"]}}}
    file = {**OURS, "model_list": models, "orchestration": section}
    with ProxyProcess(file, env=key_environment()) as one, ProxyProcess(file, env=key_environment()) as two:
        provider.script(model="duo-one", status=503)
        gateways = [Gateway(proxy, provider, Books(proxy, postgres_url)) for proxy in (one, two)]
        for _ in range(THRESHOLD):
            assert gateways[0].chat("duo").status_code == 200
        eventually_sync(lambda: breakers(gateways[1]).get("duo-one-id") == "open", within=3, what="the other's view")
        asked = len(provider.attempts)
        answer = gateways[1].chat("duo")
        assert answer.headers["x-orchestration-model"] == "duo-two"
        assert len(provider.attempts) == asked + 1
        with gateways[1].client("admin") as admin:
            admin.post("/orchestration/breakers/duo-two-id/open").raise_for_status()
        eventually_sync(lambda: breakers(gateways[0]).get("duo-two-id") == "open", within=3, what="a hold everywhere")
        assert gateways[0].chat("duo").status_code == 503


def test_retries_that_are_written_down_hold_for_models_asked_for_by_name(provider: FakeProvider):
    section = {
        "keys": [{"key": "os.environ/KEY_ADA", "user_id": "ada"}],
        "resilience": {
            "retries": {"max_attempts": 3, "base_delay": 0.01},
            "circuit_breaker": {"failure_threshold": 50},
        },
    }
    file = {**OURS, "model_list": [model("small", provider.url)], "orchestration": section}
    with ProxyProcess(file, env=key_environment()) as proxy:
        gateway = Gateway(proxy, provider, Books(proxy))
        for asked, statuses, tried in (
            ({}, (500, 503, 200), 3),
            ({}, (500, 500, 500, 200), 3),
            ({"num_retries": 1}, (500, 500, 200), 2),
            ({}, (400, 200), 1),
        ):
            provider.reset()
            provider.script(model="small", statuses=statuses)
            assert gateway.chat("small", **asked).status_code == statuses[tried - 1]
            assert len(provider.attempts) == tried, (asked, statuses)
