"""The proxy that most live tests talk to: ours, with models of the fake provider, tiers, policies and keys."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import httpx

from core.usage import UsageEvent
from tests.support.books import Books
from tests.support.processes import free_port
from tests.support.provider import FakeProvider
from tests.support.proxy import HiddenKey, ProxyProcess

KEYS = {
    name: HiddenKey(f"sk-{name}-{secrets.token_urlsafe(24)}")
    for name in ("ada", "bob", "carl", "dora", "eve", "service", "newcomer")
}
"""Keys of the users of `gateway_config`, by name."""

PRICES = {"small": (1_000, 2_000), "large": (10_000, 30_000), "claude": (3_000, 15_000), "embed": (20, 0)}
"""Nano-dollars for an input and for an output token; models that are not named cost as much as small."""

OURS: dict[str, Any] = {
    "litellm_settings": {"callbacks": ["litellm_orchestration.callback"], "enable_post_custom_auth_checks": True},
    "general_settings": {
        "master_key": "os.environ/LITELLM_MASTER_KEY",
        "custom_auth": "litellm_orchestration.authenticate",
        "custom_auth_run_common_checks": True,
    },
}
"""What a config.yaml has to say besides `model_list` and `orchestration` to load us."""


NO_BREAKERS: dict[str, Any] = {"circuit_breaker": {"failure_threshold": 1_000_000, "failure_ratio": None}}
"""`resilience` where models fail on purpose, so that no test finds a breaker that another has opened."""


def key_environment() -> dict[str, str]:
    """The variables that `keys` of the configurations here refer to."""
    return {f"KEY_{name.upper()}": str(key) for name, key in KEYS.items()}


def model(name: str, api_base: str, *, provider: str = "openai", mode: str = "chat", **params: Any) -> dict[str, Any]:
    """One priced entry of `model_list`, with the id `<name>-id`."""
    return {
        "model_name": name,
        "litellm_params": {"model": f"{provider}/{name}", "api_base": api_base, "api_key": "sk-provider", **params},
        "model_info": {"id": f"{name}-id", "mode": mode, **dollars(name)},
    }


def dollars(name: str) -> dict[str, float]:
    """The prices of a model as LiteLLM takes them."""
    paid, earned = PRICES.get(name, PRICES["small"])
    return {"input_cost_per_token": paid / 1e9, "output_cost_per_token": earned / 1e9}


def cost_nano(name: str, input_tokens: int, output_tokens: int) -> int:
    paid, earned = PRICES.get(name, PRICES["small"])
    return input_tokens * paid + output_tokens * earned


def gateway_config(provider: FakeProvider, nowhere: str | None = None) -> dict[str, Any]:
    """`nowhere` is an address nobody listens on."""
    url = provider.url
    nowhere = nowhere or f"http://127.0.0.1:{free_port()}/v1"
    return {
        **OURS,
        "model_list": [
            model("small", url),
            model("large", url),
            model("claude", provider.origin, provider="anthropic"),
            model("embed", url, mode="embedding"),
            model("hasty", url, timeout=1.0),
            model("nowhere", nowhere),
            model("brittle", url),
            model("leaky", url),
            model("open-mini", url),
            model("balanced", url) | {"model_info": {"id": "balanced-one", "mode": "chat", **dollars("balanced")}},
            model("balanced", url) | {"model_info": {"id": "balanced-two", "mode": "chat", **dollars("balanced")}},
        ],
        "router_settings": {
            "num_retries": 2,
            "retry_after": 0,
            "disable_cooldowns": True,
            "fallbacks": [{"brittle": ["small"]}, {"leaky": ["large"]}],
        },
        "orchestration": {
            "resilience": NO_BREAKERS,
            "keys": [
                {"key": "os.environ/KEY_ADA", "user_id": "ada", "team_id": "research", "tier": "premium"},
                {"key": "os.environ/KEY_BOB", "user_id": "bob", "tier": "free"},
                {"key": "os.environ/KEY_CARL", "user_id": "carl", "tier": "premium", "models": ["small", "sturdy"]},
                {"key": "os.environ/KEY_DORA", "user_id": "dora", "tier": "premium", "models": ["granted", "smart"]},
                {"key": "os.environ/KEY_EVE", "user_id": "eve", "tier": "premium", "models": ["smart"]},
                {"key": "os.environ/KEY_SERVICE", "user_id": "service", "tier": "premium", "trusted": True},
                {"key": "os.environ/KEY_NEWCOMER", "user_id": "newcomer"},
            ],
            "groups": {"scientists": {"teams": ["research"]}, "writers": {"users": ["bob"]}},
            "tiers": {
                "free": {"models": ["small", "leaky", "open-*"], "priority": 3},
                "premium": {"models": ["*"], "priority": 1},
            },
            "default_tier": "free",
            "routing": {
                "policies": {
                    "smart": {"candidates": ["large", "small"]},
                    "granted": {"candidates": ["large", "small"], "grants": True},
                    "sturdy": {"candidates": ["large", "small"], "grants": True},
                    "doomed": {"candidates": ["nowhere", "brittle"]},
                }
            },
            "limits": {"max_body_bytes": 200_000},
        },
    }


class Gateway:
    """A running proxy with `gateway_config`, its provider and its books."""

    def __init__(self, proxy: ProxyProcess, provider: FakeProvider, books: Books) -> None:
        self.proxy = proxy
        self.provider = provider
        self.books = books

    def client(self, who: str = "ada") -> httpx.Client:
        """With the key of one of `KEYS`, or the administrator's for "admin"."""
        return self.proxy.client(None if who == "admin" else KEYS[who])

    def post(
        self, path: str, body: Mapping[str, Any], who: str = "ada", headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """The answer, a stream read to its end."""
        with self.client(who) as client:
            return client.post(path, json=body, headers=headers)

    def chat(self, model: str, who: str = "ada", **more: Any) -> httpx.Response:
        """Ask `model` for an answer to a prompt of four tokens."""
        return self.post("/v1/chat/completions", {"model": model, "messages": MESSAGES, **more}, who)

    def event(self, response: httpx.Response | None = None) -> UsageEvent:
        """The one event recorded since the test began; with `response`, that of this answer."""
        [event] = self.books.recorded()
        if response is not None:
            assert event.request_id == response.headers["x-orchestration-request-id"]
        return event


PROMPT = "one two three four"
MESSAGES = [{"role": "user", "content": PROMPT}]
ANSWER = "the quick brown fox jumps over the lazy"
"""What the fake provider says unless told otherwise: eight tokens."""
