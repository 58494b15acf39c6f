"""A proxy with budgets of every kind, each of which a request chooses by its task type and has for itself.

A budget of `BUDGETS` covers one task type and is given to each user: a test that asks with `Budgeted.ask` as a new
user, in the name of the trusted key, has a budget that nobody has spent anything of.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import httpx

from core.money import nano_dollars
from tests.support.books import Books
from tests.support.eventually import eventually_sync
from tests.support.gateway import MESSAGES, NO_BREAKERS, OURS, PROMPT, Gateway, cost_nano, model
from tests.support.processes import free_port
from tests.support.provider import Attempt, FakeProvider
from tests.support.proxy import ProxyProcess

LIMIT = 50
"""The output limit of the requests below that give one."""


@dataclass(frozen=True)
class Call:
    """One way to ask for an answer; `limit` is the name of its output limit at the endpoint, empty where it has none,
    `received` the name under which the provider gets it."""

    path: str
    body: Mapping[str, Any]
    limit: str = ""
    received: str = ""

    @property
    def streamed(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def model(self) -> str:
        return self.body["model"]

    def limited(self, tokens: int | None = LIMIT) -> dict[str, Any]:
        """The body with an output limit; with None, without."""
        return {**self.body, self.limit: tokens} if self.limit and tokens is not None else dict(self.body)


def _both(name: str, path: str, body: dict[str, Any], limit: str, received: str) -> dict[str, Call]:
    return {
        name: Call(path, body, limit, received),
        f"{name}-stream": Call(path, {**body, "stream": True}, limit, received),
    }


GENERATING = {
    **_both("chat", "/v1/chat/completions", {"model": "small", "messages": MESSAGES}, "max_tokens", "max_tokens"),
    **_both(
        "chat-of-claude", "/v1/chat/completions", {"model": "claude", "messages": MESSAGES}, "max_tokens", "max_tokens"
    ),
    **_both("completion", "/v1/completions", {"model": "small", "prompt": PROMPT}, "max_tokens", "max_tokens"),
    **_both("response", "/v1/responses", {"model": "small", "input": PROMPT}, "max_output_tokens", "max_output_tokens"),
    **_both(
        "response-of-claude", "/v1/responses", {"model": "claude", "input": PROMPT}, "max_output_tokens", "max_tokens"
    ),
    **_both("message", "/v1/messages", {"model": "small", "messages": MESSAGES}, "max_tokens", "max_output_tokens"),
    **_both("message-of-claude", "/v1/messages", {"model": "claude", "messages": MESSAGES}, "max_tokens", "max_tokens"),
}
"""Every endpoint whose answers have an output limit, in each of its ways."""

CALLS = {**GENERATING, "embedding": Call("/v1/embeddings", {"model": "embed", "input": PROMPT})}

BUDGETS: dict[str, dict[str, Any]] = {
    "roomy": {"total_budget": 1},
    "tight": {"total_budget": 0.0000001},
    "tight-for-ever": {"total_budget": 0.0000001, "reset_period": "TOTAL"},
    "twofold": {"total_budget": 1},
    "warning": {"total_budget": 0.000001, "at_limit": "warn"},
    "flat": {"total_budget": 0.012, "flat_reserve": 0.005},
    "degrading": {"total_budget": 0.001, "at_limit": "degrade", "degrade_to": ["small"]},
    "stopped": {"total_budget": 1},
    "small-change": {"total_budget": 0.001},
}
"""What is said of each budget besides its id, its task type and that it is `per: user`. US dollars."""

LARGEST = 1000
"""The most output tokens that the model `measured` says it gives."""


@functools.cache
def _nowhere() -> str:
    """An address nobody listens on, the same for all who share a proxy."""
    return f"http://127.0.0.1:{free_port()}/v1"


def budgeted_config(provider: FakeProvider, **settings: Any) -> dict[str, Any]:
    """`settings` are further sections under `orchestration:`."""
    url = provider.url
    budgets = [
        {"budget_id": name, "per": "user", "task_types": [name], "reset_period": "MONTHLY", **terms}
        for name, terms in BUDGETS.items()
    ]
    budgets.append({"budget_id": "twofold-too", "task_types": ["twofold"], "total_budget": 1000})
    for member in ("user", "team", "key", "model"):
        budgets.append({"budget_id": f"each-{member}", "task_types": ["members"], "per": member, "total_budget": 1})
    budgets += [
        {"budget_id": "of-scientists", "task_types": ["grouped"], "user_groups": ["scientists"], "total_budget": 1},
        {"budget_id": "of-writers", "task_types": ["grouped"], "user_groups": ["writers"], "total_budget": 1},
    ]
    unpriced = model("unpriced", url)
    unpriced["model_info"] = {"id": "unpriced-id", "mode": "chat"}
    measured = model("measured", url)
    measured["model_info"]["max_output_tokens"] = LARGEST
    return {
        **OURS,
        # Or LiteLLM refuses what refers to responses that it has not made.
        "general_settings": {**OURS["general_settings"], "allow_unmanaged_response_ids": True},
        "model_list": [
            model("small", url),
            model("large", url),
            measured,
            model("claude", provider.origin, provider="anthropic"),
            model("embed", url, mode="embedding"),
            model("hasty", url, timeout=1.0),
            model("nowhere", _nowhere()),
            model("brittle", url),
            unpriced,
        ],
        "router_settings": {
            "num_retries": 2,
            "retry_after": 0,
            "disable_cooldowns": True,
            "fallbacks": [{"brittle": ["small"]}],
        },
        "orchestration": {
            "resilience": NO_BREAKERS,
            "keys": [
                {"key": "os.environ/KEY_ADA", "user_id": "ada", "team_id": "research", "tier": "premium"},
                {"key": "os.environ/KEY_BOB", "user_id": "bob", "team_id": "sales", "tier": "premium"},
                {"key": "os.environ/KEY_SERVICE", "user_id": "service", "tier": "premium", "trusted": True},
            ],
            "groups": {"scientists": {"teams": ["research"]}, "writers": {"users": ["bob"]}},
            "tiers": {"premium": {"models": ["*"]}, "brief": {"models": ["*"], "max_tokens": 20}},
            "default_tier": "premium",
            "routing": {
                "policies": {
                    "smart": {"candidates": ["large", "small"]},
                    "patient": {"candidates": ["hasty", "small"]},
                }
            },
            "budgets": budgets,
            **settings,
        },
    }


_users = itertools.count(1)


class Budgeted(Gateway):
    """A running proxy with `budgeted_config`."""

    def __init__(self, proxy: ProxyProcess, provider: FakeProvider) -> None:
        self.accounts = AccountBooks(proxy)
        super().__init__(proxy, provider, self.accounts)

    @classmethod
    def begin(cls, proxy: ProxyProcess, provider: FakeProvider) -> Budgeted:
        """Its books begin now."""
        gateway = cls(proxy, provider)
        gateway.books.mark()
        return gateway

    def new_user(self) -> str:
        return f"user-{next(_users)}"

    def ask(
        self,
        path: str,
        body: Mapping[str, Any],
        task: str,
        user: str | None = None,
        tier: str | None = None,
        who: str = "service",
    ) -> httpx.Response:
        """The answer to a request that the budget of this task type covers; of a user nobody has heard of, if none is
        named."""
        headers = {"x-task-type": task, "x-user-id": user or self.new_user()}
        if tier is not None:
            headers["x-user-tier"] = tier
        return self.post(path, body, who, headers)

    def reserved_nano(self, budget_id: str, user: str) -> int:
        """What is reserved of this user's budget, found out by asking: an answer says what is left besides."""
        left = remaining(self.ask("/v1/embeddings", CALLS["embedding"].body, budget_id, user))
        return self.total_nano(budget_id) - nano_dollars(left) - self.accounts.spent(budget_id, user)

    @property
    def billed_nano(self) -> int:
        """What the provider bills for everything since the test began."""
        return bill_nano(self.provider.attempts)

    def total_nano(self, budget_id: str) -> int:
        return nano_dollars(Decimal(str(BUDGETS[budget_id]["total_budget"])))


class AccountBooks(Books):
    """The books with what budgets have spent in them."""

    def spent(self, budget_id: str, member: str = "") -> int:
        """Nano-dollars, once nothing waits outside the store."""
        eventually_sync(lambda: self.backlog() == 0, what="nothing waiting outside the store")
        return sum(
            row["spent_nano"] + row["base_nano"]
            for row in self._rows("budget_spend")
            if row["budget"].rpartition("~")[0] == budget_id and row["member"] == member
        )


def remaining(answer: httpx.Response) -> Decimal:
    """Dollars that the answer says the tightest budget has left."""
    return Decimal(answer.headers["x-orchestration-budget-remaining"])


def bill_nano(attempts: Iterable[Attempt]) -> int:
    """What the provider bills for these, in nano-dollars."""
    return sum(cost_nano(one.model, one.prompt_tokens, one.completion_tokens) for one in attempts)


_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


def limits_received(attempt: Attempt) -> dict[str, int]:
    """Every output limit that the provider received, by name."""
    return {name: attempt.body[name] for name in _LIMITS if attempt.body.get(name) is not None}


def worst_nano(attempt: Attempt) -> int:
    """The highest bill that the request the provider received could have come to, in nano-dollars: the largest of its
    limits, in as many answers as it asks for."""
    limit = max(limits_received(attempt).values(), default=0)
    copies = max(attempt.body.get("n") or 1, attempt.body.get("best_of") or 1)
    return cost_nano(attempt.model, attempt.prompt_tokens, copies * limit)
