"""The Python API: the same proxy, without a network in between or at a distance, through the same path as any HTTP
client.

gateway = get_gateway()                                  # in this process, from config.yaml
gateway = get_gateway(base_url="https://…", api_key=…)   # a proxy that runs elsewhere
response = await gateway.process_request(GatewayRequest(prompt="…", user_id="ada", task_type="explanation"))
"""

import importlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import IntEnum
from typing import Any, Protocol, Self, cast
from urllib.parse import quote

import httpx
import orjson

from core.errors import OrchestrationError
from core.settings.reference import LATEST, PREFIX, KeyVaultProvider, SecretReference

__all__ = [
    "Gateway",
    "GatewayError",
    "GatewayRequest",
    "GatewayResponse",
    "KeyVaultClientService",
    "KeyVaultProvider",
    "ModelPriority",
    "RoutingEngine",
    "SecretReference",
    "get_gateway",
]

_TIMEOUT = httpx.Timeout(600.0, connect=10.0)


class KeyVaultClientService:
    """Names of secrets for configurations and the admin API; values are for the proxy alone."""

    @staticmethod
    def create_secret_reference(
        provider: str, secret_identifier: str, version: str = LATEST, field: str | None = None
    ) -> SecretReference:
        """A reference to a secret of `provider`: azure, aws, hashicorp, local. Raises MalformedReference, a ValueError,
        for one that its vault cannot have."""
        return SecretReference(provider, secret_identifier, version, field)


class ModelPriority(IntEnum):
    """Which of several models is preferred; 1 comes first."""

    HIGH = 1
    MEDIUM = 2
    LOW = 3


class GatewayError(OrchestrationError):
    """The proxy refused a request or could not serve it."""

    def __init__(
        self, status: int, message: str, type: str | None, code: str | None, details: Mapping[str, Any]
    ) -> None:
        super().__init__(f"{status} {code or type or 'error'}: {message}")
        self.status = status
        self.message = message
        self.type = type
        self.code = code
        self.details = dict(details)


@dataclass
class GatewayRequest:
    """What to ask, on whose behalf. `model` is a policy or a model group; by default the proxy's first policy.

    `user_id` and `user_tier` count only where the gateway's key is trusted, as the master key is.
    """

    prompt: str = ""
    user_id: str | None = None
    task_type: str | None = None
    user_tier: str | None = None
    model: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    session_id: str | None = None
    priority: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    stream: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Further fields of the chat completion body, sent as they are."""


@dataclass(frozen=True)
class GatewayResponse:
    """An answer. `cost_estimate` is what the request cost, in dollars; `cached` whether no provider was called."""

    content: str
    model_used: str
    cost_estimate: Decimal
    cached: bool
    request_id: str
    finish_reason: str | None
    input_tokens: int
    output_tokens: int
    degraded: bool
    raw: Mapping[str, Any]


class Backend(Protocol):
    """Where a gateway's requests go."""

    async def open(self) -> httpx.AsyncClient: ...
    async def close(self) -> None: ...


class Gateway:
    """A proxy to talk to. Opened on first use; close it, or use it as an async context manager."""

    def __init__(self, backend: Backend, *, model: str | None = None) -> None:
        self._backend = backend
        self._model = model
        self._client: httpx.AsyncClient | None = None

    async def process_request(self, request: GatewayRequest) -> GatewayResponse:
        """Ask and wait for the whole answer. Raises `GatewayError` where the proxy refuses or fails."""
        client = await self._open()
        answer = await client.post("/v1/chat/completions", json=await self._body(client, request, stream=False))
        _raise_for(answer.status_code, answer.content)
        return _response(answer)

    async def process_stream(self, request: GatewayRequest) -> AsyncIterator[str]:
        """Ask and give the text of the answer as it arrives. Raises `GatewayError`, also in the middle of an answer."""
        client = await self._open()
        body = await self._body(client, request, stream=True)
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code >= 400:
                _raise_for(answer.status_code, await answer.aread())
            async for line in answer.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event: dict[str, Any] = orjson.loads(line[6:])
                if "error" in event:
                    _raise_error(500, event["error"])
                for choice in cast("list[dict[str, Any]]", event.get("choices") or []):
                    delta: dict[str, Any] = choice.get("delta") or {}
                    if text := delta.get("content"):
                        yield str(text)

    async def get_usage_report(
        self,
        start_date: datetime,
        end_date: datetime,
        user_id: str | None = None,
        by: Sequence[str] = ("user", "model"),
    ) -> dict[str, Any]:
        """Requests, errors, tokens, cost and latency from `start_date` to before `end_date`; naive times are UTC."""
        client = await self._open()
        query = {"start": start_date.isoformat(), "end": end_date.isoformat(), "by": ",".join(by)}
        if user_id is not None:
            query["user"] = user_id
        answer = await client.get("/orchestration/reports/usage", params=query)
        _raise_for(answer.status_code, answer.content)
        return cast("dict[str, Any]", answer.json())

    async def status(self) -> dict[str, Any]:
        """What `GET /orchestration/status` says."""
        client = await self._open()
        answer = await client.get("/orchestration/status")
        _raise_for(answer.status_code, answer.content)
        return cast("dict[str, Any]", answer.json())

    async def get_provider_status(self) -> dict[str, dict[str, Any]]:
        """How each deployment is doing, by its id: breaker, last errors, times, requests in flight, its share of them.
        `GatewayError` for a key that is no administrator's."""
        deployments = cast("list[dict[str, Any]]", (await self.status()).get("deployments") or [])
        return {str(one["id"]): one for one in deployments}

    @property
    def routing_engine(self) -> "RoutingEngine":
        """What the proxy would choose, without asking a model."""
        return RoutingEngine(self)

    async def explain_routing(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What `POST /orchestration/routing/explain` says of a request: its candidates, and the steps that led to them.
        Raises `GatewayError`."""
        client = await self._open()
        answer = await client.post("/orchestration/routing/explain", json=dict(request))
        _raise_for(answer.status_code, answer.content)
        return cast("dict[str, Any]", answer.json())

    async def admin_add_model(
        self,
        model_id: str,
        provider: str,
        model_name: str,
        api_key_secret_ref: SecretReference | None = None,
        priority: ModelPriority | int | None = None,
        cost_per_token: Decimal | float | None = None,
        max_tokens: int | None = None,
        *,
        output_cost_per_token: Decimal | float | None = None,
        api_base: str | None = None,
    ) -> bool:
        """Have the proxy serve a model of `provider` under the name `model_id`, from now on and after a restart.

        `model_name` is what the provider calls it. `cost_per_token` is US dollars for an input token, and for an output
        token too unless that is given; without it the prices are LiteLLM's. `max_tokens` is how many it can take. True;
        raises `GatewayError` where the proxy refuses: no administrator's key, a model of this id, a bad reference.
        """
        output_cost = cost_per_token if output_cost_per_token is None else output_cost_per_token
        info = {
            "priority": None if priority is None else int(priority),
            "max_tokens": max_tokens,
            "input_cost_per_token": None if cost_per_token is None else float(cost_per_token),
            "output_cost_per_token": None if output_cost is None else float(output_cost),
        }
        parameters = {
            "model": f"{provider}/{model_name}",
            "api_key": None if api_key_secret_ref is None else f"{PREFIX}{api_key_secret_ref.uri}",
            "api_base": api_base,
        }
        client = await self._open()
        answer = await client.put(
            f"/orchestration/models/{quote(model_id, safe='')}",
            headers={"if-none-match": "*"},
            json={
                "model_name": model_id,
                "litellm_params": {name: value for name, value in parameters.items() if value is not None},
                "model_info": {name: value for name, value in info.items() if value is not None},
            },
        )
        _raise_for(answer.status_code, answer.content)
        return True

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None
        await self._backend.close()

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _open(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = await self._backend.open()
        return self._client

    async def _body(self, client: httpx.AsyncClient, request: GatewayRequest, *, stream: bool) -> dict[str, Any]:
        claims = {
            name: value
            for name in ("user_id", "user_tier", "task_type", "session_id", "priority")
            if (value := getattr(request, name)) is not None
        }
        body: dict[str, Any] = {
            "model": request.model or self._model or await self._first_model(client),
            "messages": list(request.messages or [{"role": "user", "content": request.prompt}]),
            **({"max_tokens": request.max_tokens} if request.max_tokens is not None else {}),
            **({"temperature": request.temperature} if request.temperature is not None else {}),
            **request.extra,
        }
        body["metadata"] = {**(body.get("metadata") or {}), **claims}
        if stream:
            body["stream"] = True
        return body

    async def _first_model(self, client: httpx.AsyncClient) -> str:
        answer = await client.get("/v1/models")
        _raise_for(answer.status_code, answer.content)
        models = cast("dict[str, Any]", answer.json())["data"]
        if not models:
            raise GatewayError(404, "The gateway's key may use no model.", "invalid_request_error", "no_model", {})
        self._model = models[0]["id"]
        return models[0]["id"]


class RoutingEngine:
    """The proxy's routing for programs that call models themselves."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def select_model(self, context: Mapping[str, Any], models: Sequence[str]) -> str:
        """The one of `models` that a request of this `context` would come to first, by rules, tiers, priority and cost.

        `context` has what `explain_routing` takes: user_id, user_tier, task_type, priority, input_tokens and the like;
        with `model`, the name of a policy, that policy's experiments and objective count too. Raises `GatewayError`:
        403 where none may be used.
        """
        described = {("tier" if name == "user_tier" else name): value for name, value in context.items()}
        plan = await self._gateway.explain_routing({**described, "candidates": list(models)})
        if not plan["candidates"]:
            reasons = "; ".join(f"{one['model']}: {one['reason']}" for one in plan["left_out"])
            denied = cast("dict[str, str] | None", plan["denied"])
            message = denied["message"] if denied else f"None of the models may be used ({reasons})."
            raise GatewayError(403, message, "permission_error", "model_not_allowed", {"models": list(models)})
        return str(plan["candidates"][0])


class _Remote:
    def __init__(self, base_url: str, api_key: str | None, transport: httpx.AsyncBaseTransport | None) -> None:
        self._base_url = base_url
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._transport = transport

    async def open(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self._base_url, headers=self._headers, timeout=_TIMEOUT, transport=self._transport
        )

    async def close(self) -> None:
        return None


_local: Gateway | None = None


def get_gateway(
    config: str | os.PathLike[str] | None = None,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    model: str | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> Gateway:
    """The gateway of this process, started from `config` (default: config.yaml) on first use; with `base_url`, a
    remote one.

    There is one in a process, because LiteLLM keeps its proxy in module globals: a second call gives the same one.
    """
    global _local
    if base_url is not None:
        return Gateway(_Remote(base_url, api_key, transport), model=model)
    if _local is None:
        # The only place where core names the LiteLLM side, and only when a proxy has to run in this very process.
        backend: Backend = importlib.import_module("plugins.in_process").InProcess(config, api_key)
        _local = Gateway(backend, model=model)
    return _local


@asynccontextmanager
async def gateway(config: str | os.PathLike[str] | None = None, **options: Any) -> AsyncGenerator[Gateway]:
    """`get_gateway` as a context that closes it again."""
    global _local
    opened = get_gateway(config, **options)
    try:
        async with opened:
            yield opened
    finally:
        if opened is _local:
            _local = None


def _response(answer: httpx.Response) -> GatewayResponse:
    body = cast("dict[str, Any]", answer.json())
    choice: dict[str, Any] = body["choices"][0]
    usage: dict[str, Any] = body.get("usage") or {}
    headers = answer.headers
    return GatewayResponse(
        content=choice["message"].get("content") or "",
        model_used=headers.get("x-orchestration-model") or body.get("model", ""),
        cost_estimate=Decimal(headers.get("x-orchestration-cost", "0")),
        cached=headers.get("x-orchestration-cache") in ("hit", "shared"),
        request_id=headers.get("x-orchestration-request-id", ""),
        finish_reason=choice.get("finish_reason"),
        input_tokens=usage.get("prompt_tokens") or 0,
        output_tokens=usage.get("completion_tokens") or 0,
        degraded=headers.get("x-orchestration-degraded") == "true",
        raw=body,
    )


def _raise_for(status: int, content: bytes) -> None:
    if status < 400:
        return
    try:
        body: object = orjson.loads(content)
    except orjson.JSONDecodeError:
        body = content[:500].decode(errors="replace")
    _raise_error(status, cast("dict[str, Any]", body).get("error", body) if isinstance(body, dict) else body)


def _raise_error(status: int, error: object) -> None:
    fields: dict[str, Any] = cast("dict[str, Any]", error) if isinstance(error, dict) else {"message": str(error)}
    code = fields.get("code")
    raise GatewayError(
        status,
        str(fields.get("message") or fields.get("detail") or "no message"),
        fields.get("type"),
        str(code) if code is not None else None,
        fields.get("details") or {},
    )
