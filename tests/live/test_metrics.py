"""Prometheus metrics of a proxy that was asked a handful of things."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from plugins.metrics.catalog import CATALOG, PREFIX
from tests.support.books import Books
from tests.support.eventually import eventually_sync
from tests.support.gateway import KEYS, MESSAGES, OURS, Gateway, key_environment, model
from tests.support.provider import FakeProvider
from tests.support.proxy import MASTER_KEY, ProxyProcess

pytestmark = pytest.mark.live


def config(provider: FakeProvider) -> dict[str, Any]:
    return {
        **OURS,
        "model_list": [model("small", provider.url), model("large", provider.url)],
        "orchestration": {
            "keys": [{"key": "os.environ/KEY_ADA", "user_id": "ada", "team_id": "research", "tier": "all"}],
            "tiers": {"all": {"models": ["*"]}},
            "routing": {
                "policies": {"smart": {"candidates": ["large", "small"]}},
                "rules": [
                    {"id": "chats", "when": {"task_type": "chat"}, "use": ["small"]},
                    {"id": "never", "when": "task_type == 'nothing'", "use": ["large"]},
                ],
            },
            "budgets": [
                {"budget_id": "all", "name": "all", "total_budget": 5, "reset_period": "MONTHLY"},
                {"budget_id": "each", "name": "each", "per": "user", "total_budget": 5, "reset_period": "MONTHLY"},
            ],
            "caching": {"enabled": True},
            "resilience": {"health_checks": {"interval": 0}},
        },
    }


class Scrape:
    """One answer of `GET /orchestration/metrics`."""

    def __init__(self, gateway: Gateway) -> None:
        with gateway.client("admin") as client:
            response = client.get("/orchestration/metrics").raise_for_status()
        assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        self.text = response.text
        self.families = [*text_string_to_metric_families(response.text)]

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name with these labels."""
        found = [
            sample.value
            for family in self.families
            for sample in family.samples
            if sample.name == PREFIX + name and labels.items() <= sample.labels.items()
        ]
        assert found, f"no {name} with {labels}"
        return sum(found)


@pytest.fixture(scope="module")
def gateway(shared_provider: FakeProvider, shared_proxy: Callable[..., ProxyProcess]) -> Gateway:
    proxy = shared_proxy(config(shared_provider), env=key_environment())
    return Gateway(proxy, shared_provider, Books(proxy))


def test_a_scrape_says_what_was_asked_what_it_cost_and_how_the_worker_is(gateway: Gateway) -> None:
    chat = {"messages": MESSAGES, "metadata": {"task_type": "chat"}}
    first = gateway.post("/v1/chat/completions", {"model": "smart", **chat})
    again = gateway.post("/v1/chat/completions", {"model": "smart", **chat})
    assert [first.status_code, again.headers["x-orchestration-cache"]] == [200, "hit"]
    assert first.headers["x-orchestration-model"] == "small"
    gateway.chat("large", stream=True)
    assert gateway.chat("sk-mistaken-for-a-model").status_code >= 400
    eventually_sync(lambda: gateway.books.backlog() == 0, what="everything in the store")

    scrape = Scrape(gateway)
    chats = {"endpoint": "chat_completions", "status": "2xx"}
    assert scrape.value("requests_total", **chats, model="small", cache="none") == 1
    assert scrape.value("requests_total", **chats, model="small", cache="hit") == 1
    assert scrape.value("requests_total", **chats, model="large", cache="none") == 1
    assert scrape.value("attempts_total", status="2xx") == 2
    assert scrape.value("tokens_total", model="small", direction="input") == 4
    cost = float(first.headers["x-orchestration-cost"])
    assert scrape.value("cost_dollars_total", model="small") == pytest.approx(cost)
    assert scrape.value("request_duration_seconds_count") == 2
    assert scrape.value("first_token_seconds_count", model="large") == 1
    assert scrape.value("cache_hits_total", task_type="chat", model="small") == 1
    assert scrape.value("cache_saved_dollars_total", task_type="chat") == pytest.approx(cost)
    assert scrape.value("cache_entries") >= 1
    assert scrape.value("rule_hits_total", rule="chats") >= 1
    assert scrape.value("rule_hits_total", rule="never") == 0
    assert scrape.value("breaker_state", deployment="small-id", model="small") == 0
    assert scrape.value("budget_limit_dollars", budget="all") == 5
    assert scrape.value("budget_spent_dollars") == pytest.approx(scrape.value("cost_dollars_total"))
    assert scrape.value("store_up") == scrape.value("journal_accepting") == scrape.value("workers") == 1
    assert scrape.value("ledger_written_total") >= 3
    assert scrape.value("requests_in_progress") == 0

    served = {family.name for family in scrape.families}
    assert served == {(PREFIX + metric.name).removesuffix("_total") for metric in CATALOG}
    for secret in (MASTER_KEY, *KEYS.values(), "sk-", "research", "ada"):
        assert secret not in scrape.text

    routing = Books(gateway.proxy).status()["routing"]
    assert [(rule["id"], rule["hits"] > 0, rule["failures"]) for rule in routing["rules"]] == [
        ("chats", True, 0),
        ("never", False, 0),
    ]


def test_metrics_are_for_administrators_and_can_be_switched_off(gateway: Gateway) -> None:
    with gateway.client("ada") as client:
        assert client.get("/orchestration/metrics").status_code == 403
    path = gateway.proxy.config
    before = path.read_text()
    changed = yaml.safe_load(before)
    changed["orchestration"]["analytics"] = {"metrics": False}
    path.write_text(yaml.safe_dump(changed))
    try:
        with gateway.client("admin") as client:
            eventually_sync(
                lambda: client.get("/orchestration/metrics").status_code == 404, what="metrics being switched off"
            )
            assert "analytics.metrics" in client.get("/orchestration/metrics").json()["error"]["message"]
    finally:
        path.write_text(before)
