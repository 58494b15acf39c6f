"""The edge with its cache, round an app that admits and answers as LiteLLM does with our hook, in no time."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx

from core.asgi_transport import StreamingASGITransport
from core.context import Caller, RequestContext
from core.journal import Journal, decode_lines
from core.settings import Settings
from core.settings.models.experiments import Variant
from core.usage import Attempt, UsageEvent
from custom_router.decision import Plan
from custom_router.experiments.assignment import Arm, Why
from plugins.caching import service
from plugins.edge import Edge
from plugins.exchange import Exchange, current
from plugins.identities import Identities

TEAMS = {"ada": "red", "dora": "red", "bob": "blue", "carl": "blue", "eve": None, "fay": None}
"""Of each user; without one, nobody shares."""
ARMS = {"dora": "a", "carl": "b"}
"""Of those who are in the experiment."""
GUARDED = {"fay"}
"""Whose key has a guardrail of its own."""


class Auth(SimpleNamespace):
    """As much of LiteLLM's identity as is looked at."""


class Proxy:
    """An edge with the cache round an app that admits as the hook does and answers with whom it answered."""

    def __init__(self, folder: Path, clock: Callable[[], float], **caching: Any) -> None:
        ready = asyncio.Event()
        ready.set()
        settings = Settings.model_validate(
            {"caching": {"enabled": True, **caching}, "tiers": {"all": {"models": ["*"]}}, "default_tier": "all"}
        )
        snapshot = SimpleNamespace(
            directory=SimpleNamespace(entries={}), settings=settings, policies={}, digest="d", version=1
        )
        self.journal = Journal(folder, "test")
        self.runtime: Any = SimpleNamespace(
            ready=ready,
            failure=None,
            settings=settings,
            snapshot=snapshot,
            shared_url=None,
            signals=None,
            journal=self.journal,
            counts_spending=False,
            instance="here",
            price_version="p1",
            clock=clock,
        )
        self.calls: list[str] = []
        self.revoked: set[str] = set()
        self.expires: Any = None
        self.refused: list[str] = []
        """Who is refused, once for each time that he stands here."""
        self.gate: asyncio.Event | None = None
        self.status = 200
        self.cache = service.caching = service.Caching(self.runtime, self.foresee, lambda _: None)
        self.cache.identities = Identities(lambda: settings.caching.identity_ttl, clock)
        self.edge = Edge(self.app, self.runtime)

    async def foresee(self, runtime: Any, exchange: Exchange, auth: Any, body: Any) -> bool:
        self._plan(exchange, auth, body)
        return True

    def _plan(self, exchange: Exchange, auth: Any, body: Any) -> None:
        exchange.snapshot, exchange.principal = self.runtime.snapshot, auth
        caller = Caller(key_hash=auth.user_id, user_id=auth.user_id, team_id=auth.team_id, tier="all", tiers=("all",))
        exchange.context = RequestContext(
            exchange.request_id,
            exchange.endpoint,
            caller,
            body["model"],
            stream=body.get("stream") is True,
            time_ms=exchange.time_ms,
        )
        exchange.permits = {body["model"]: True}
        arm = None if auth.arm is None else Arm("sizes", Variant(id=auth.arm), Why.DRAWN, auth.arm)
        exchange.plan = Plan(None, (body["model"],), assigned=() if arm is None else ((arm, auth.user_id),))
        asking = exchange.asking
        if asking is not None:
            found = asking.plan_for(exchange.snapshot, exchange.context, exchange.permits)
            exchange.plan = found or exchange.plan

    def auth(self, user: str) -> Auth:
        metadata = {"guardrails": ["polite"]} if user in GUARDED else {}
        return Auth(user_id=user, team_id=TEAMS[user], metadata=metadata, arm=ARMS.get(user), expires=self.expires)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        body = json.loads((await receive())["body"])
        exchange = current.get()
        if exchange is None:
            await _say(send, 200, b"{}")
            return
        key = dict(scope["headers"]).get(b"authorization", b"").decode()
        user = key.removeprefix("Bearer ")
        if user not in TEAMS or user in self.revoked:
            await _say(send, 401, b'{"error":"who are you"}')
            return
        auth = self.auth(user)
        self._plan(exchange, auth, body)
        if exchange.arrival is not None:
            exchange.arrival.accepted(auth, body["model"])
        try:
            await service.look(exchange)
        except service.Found:
            await _say(send, 409, b"{}")
            return
        exchange.admitted = True
        self.calls.append(user)
        number = len(self.calls)
        if self.gate is not None:
            await self.gate.wait()
        if user in self.refused:
            self.refused.remove(user)
            await _say(send, 403, b'{"error":"not you, not now"}')
            return
        attempt = Attempt(1, body["model"], cost_nano=1000, status=self.status)
        exchange.attempts.append(attempt)
        text = json.dumps({"said": said(user, scope["path"], body), "call": number}).encode()
        if body.get("stream"):
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", _EVENTS)]})
            for part in (b"data: " + text, b"data: [DONE]"):
                await send({"type": "http.response.body", "body": part + b"\n\n", "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        else:
            await _say(send, self.status, text)

    async def ask(self, user: str, path: str, body: Mapping[str, Any]) -> tuple[str, list[Any]]:
        """What the cache had, and what the answer is about; without an HTTP client, which takes most of the time."""
        text = json.dumps(body).encode()
        length = str(len(text)).encode()
        headers = [(b"authorization", f"Bearer {user}".encode()), (b"content-length", length)]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": text, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.edge(scope, receive, send)
        told = dict(sent[0]["headers"]).get(b"x-orchestration-cache", b"").decode()
        answer = b"".join(message.get("body", b"") for message in sent[1:])
        return told, json.loads(answer.removeprefix(b"data: ").partition(b"\n")[0])["said"]

    def forget_books(self) -> None:
        """Write no books from now on: for millions of requests."""
        books: Any = SimpleNamespace(accepting=True, append=lambda event: None)
        self.edge.runtime.journal = books

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=StreamingASGITransport(self.edge), base_url="http://proxy")

    def books(self) -> list[UsageEvent]:
        return [e for segment in self.journal.segments for e in decode_lines(segment.path.read_bytes(), 0).events]


_EVENTS = b"text/event-stream; charset=utf-8"


def said(user: str, path: str, body: Mapping[str, Any]) -> list[Any]:
    """What an answer is about: it may be told to whoever asks the same."""
    asked = {name: value for name, value in body.items() if name not in ("metadata", "user")}
    return [TEAMS[user] or user, ARMS.get(user), user in GUARDED, path, asked]


async def _say(send: Any, status: int, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})


async def fuzz(proxy: Proxy, requests: int, seed: int) -> dict[str, int]:
    """Ask at random, as anybody, for anything, and check that each answer is the one to the question of whoever asked.
    Returns how often the cache had what. Raises AssertionError for an answer that was another's."""
    draw = random.Random(seed)
    had: dict[str, int] = {}
    users = list(TEAMS)
    for _ in range(requests):
        user = draw.choice(users)
        path = draw.choice(("/v1/chat/completions", "/chat/completions", "/v1/completions", "/v1/messages"))
        body: dict[str, Any] = {"model": draw.choice(("small", "large")), "messages": draw.choice(_MESSAGES)}
        for name, values in _PARAMETERS.items():
            if draw.random() < 0.15:
                body[name] = draw.choice(values)
        if draw.random() < 0.1:
            body = dict(sorted(body.items(), reverse=True))
        told, answer = await proxy.ask(user, path, body)
        had[told] = had.get(told, 0) + 1
        expected = said(user, path, body)
        assert answer == expected, (user, path, body, answer, told)
    return had


_MESSAGES = ("a", "b", [{"role": "user", "content": "a"}], [{"role": "user", "content": "A"}], [])
_PARAMETERS: dict[str, tuple[Any, ...]] = {
    "stream": (True,),
    "temperature": (0.1, 1.5),
    "max_tokens": (1, 2),
    "n": (2, 3),
    "user": ("x", "y"),
    "metadata": ({"session_id": "s"}, {"user_id": "u"}),
    "stop": (["x"], "x"),
    "seed": (1, "1"),
}
