"""What a request leaves behind for the garbage collector: nothing of ours, and nothing that hangs on it."""

from __future__ import annotations

import asyncio
import gc
import json
import secrets
from collections import Counter
from typing import Any

import httpx
import pytest

from tests.support.gateway import OURS, model
from tests.support.in_process import in_a_fresh_process, proxy_in_process
from tests.support.provider import FakeProvider
from tests.support.proxy import HiddenKey

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]

KEY = HiddenKey(f"sk-ada-{secrets.token_urlsafe(24)}")
MESSAGES = [{"role": "user", "content": "one two three four"}]
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("chat/completions", {"messages": MESSAGES}),
    "chat stream": ("chat/completions", {"messages": MESSAGES, "stream": True}),
    "completions": ("completions", {"prompt": "one two"}),
    "completions stream": ("completions", {"prompt": "one two", "stream": True}),
    "embeddings": ("embeddings", {"model": "embed", "input": ["one", "two"]}),
    "responses": ("responses", {"input": "one two"}),
    "responses stream": ("responses", {"input": "one two", "stream": True}),
    "messages": ("messages", {"messages": MESSAGES, "max_tokens": 50}),
}
"""But for streams of the Messages dialect: LiteLLM's own task for their pings is left in a circle, with its context."""
ASKED = 20


async def left_behind() -> None:
    """Print what is left of requests of each kind, by type and for each request, until somebody collects garbage."""
    with FakeProvider() as provider:
        url = provider.url
        config = {
            **OURS,
            "model_list": [model("small", url), model("large", url), model("embed", url, mode="embedding")],
            "orchestration": {
                "keys": [{"key": "os.environ/KEY_ADA", "user_id": "ada"}],
                "tiers": {"all": {"models": ["*"], "requests_per_minute": 100_000}},
                "default_tier": "all",
                "routing": {"policies": {"smart": {"candidates": ["large", "small"]}}},
                "budgets": [{"budget_id": "all", "per": "user", "total_budget": 100, "reset_period": "DAILY"}],
                "caching": {"enabled": True},
            },
        }
        async with proxy_in_process(config, env={"KEY_ADA": str(KEY)}) as client:
            print(json.dumps({kind: await _left(client, *asked) for kind, asked in REQUESTS.items()}))


async def _left(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, float]:
    async def ask(number: int) -> None:
        # Each a new question, of whose answer no other is left waiting; the user is part of no key of the cache.
        whole = {"model": "smart", **body, "temperature": number / 1000}
        if path == "embeddings":
            whole = {**body, "input": [f"{number} one", f"{number} two"]}
        answer = await client.post(f"/v1/{path}", json=whole, headers={"authorization": f"Bearer {KEY}"})
        assert answer.status_code == 200, answer.text

    for number in range(5):
        await ask(number)
    await asyncio.sleep(0.5)
    gc.collect()
    gc.disable()
    try:
        for number in range(100, 100 + ASKED):
            await ask(number)
        await asyncio.sleep(0.5)  # what LiteLLM does when an answer is over
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found = Counter(f"{type(one).__module__}.{type(one).__name__}" for one in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    ours = {name: count / ASKED for name, count in found.items() if name.startswith(_OUR_MODULES)}
    return {name: each for name, each in ours.items() if not name.startswith(_OF_ARGUMENTS)}


_OF_ARGUMENTS = ("plugins.secrets.RetryWith", "plugins.resilience.retries.", "core.retries.Deadline")
"""What LiteLLM is told of retries: the arguments of a stream are in a circle that it leaves."""
_OUR_MODULES = ("plugins.", "core.", "custom_router.", "secrets_manager.", "litellm_orchestration.")


def test_requests_are_freed_when_they_are_over():
    left = json.loads(in_a_fresh_process(left_behind).splitlines()[-1])
    assert left == {kind: {} for kind in REQUESTS}
