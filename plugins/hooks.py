"""The one callback LiteLLM knows: each of its hooks, in the order of a request, in a few lines that call a service.

LiteLLM looks for `async_pre_call_hook` and `async_post_call_response_headers_hook` on the leaf class only, so they
stand here and not in a base.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException
from litellm.integrations.custom_logger import CustomLogger

from core.errors import RequestRefused
from plugins import admission, outcome, payment, secrets
from plugins.batches import background
from plugins.batches import service as batches
from plugins.exchange import Exchange, current

if TYPE_CHECKING:
    from core.runtime import Runtime


class Orchestration(CustomLogger):
    def __init__(self, runtime: "Runtime") -> None:
        super().__init__()
        self._runtime = runtime

    async def async_filter_listed_models(self, user_api_key_dict: Any, model_names: Sequence[str]) -> Sequence[str]:
        """`/v1/models` shows a key exactly the policies and models it may use."""
        return await admission.listed(self._runtime, user_api_key_dict, model_names)

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: Any
    ) -> dict[str, Any] | None:
        """Once per request, after authentication: who asks for what, and which groups may serve it."""
        exchange = current.get()
        if exchange is None:
            return None
        try:
            if exchange.endpoint == "batches":
                batches.begun(exchange, user_api_key_dict, data)
                return data
            await admission.admit(self._runtime, exchange, user_api_key_dict, data)
        except RequestRefused as refusal:
            exchange.refused(refusal)
            raise HTTPException(refusal.status, refusal.message) from refusal
        secrets.give_retry(exchange, data)
        return data

    async def async_filter_deployments(
        self,
        model: str,
        healthy_deployments: list[Any],
        messages: Any,
        request_kwargs: dict[str, Any] | None = None,
        parent_otel_span: Any = None,
    ) -> list[Any]:
        """Every attempt and every fallback, LiteLLM's own included: the deployments of a group that is not permitted
        go, and of one that the budgets do not pay for, and those that are disabled or whose secrets cannot be read."""
        healthy_deployments = admission.enabled(self._runtime, healthy_deployments)
        exchange = _exchange_of(request_kwargs or {})
        if exchange is None or (
            await admission.permitted(self._runtime, exchange, model) and await payment.can_pay(exchange, model)
        ):
            return secrets.usable(healthy_deployments)
        return []

    async def async_pre_call_deployment_hook(self, kwargs: dict[str, Any], call_type: Any) -> dict[str, Any] | None:
        """An attempt begins: it gets the secrets it needs, and from now on it may be billed."""
        exchange = _exchange_of(kwargs)
        attempt = exchange and exchange.begin_attempt(kwargs, getattr(call_type, "value", None))
        await secrets.put_in(kwargs, exchange)
        if exchange is not None and attempt is not None:
            await payment.send(self._runtime, exchange, attempt, kwargs)
        return kwargs

    async def async_post_call_success_deployment_hook(self, request_data: Any, response: Any, call_type: Any) -> None:
        """An attempt was answered in full; streams do not come by here."""
        exchange = _exchange_of(request_data)
        if exchange is not None:
            outcome.provider_answered(exchange, response)
            await background.begun(self._runtime, exchange, response)

    async def async_post_call_failure_deployment_hook(
        self,
        request_data: Mapping[str, Any],
        exception: Exception,
        call_type: Any,
        fallback_depth: int | None = None,
    ) -> None:
        """An attempt failed; with a key that its provider refused it is made again with the vault's newest."""
        exchange = _exchange_of(request_data)
        if exchange is not None:
            status = outcome.attempt_failed(exchange, exception)
            await secrets.refused(exchange, request_data, status)

    async def async_post_call_failure_hook(
        self,
        request_data: dict[str, Any],
        original_exception: Exception,
        user_api_key_dict: Any,
        traceback_str: str | None = None,
    ) -> None:
        """The request failed, before or after any attempt."""
        exchange = current.get()
        if exchange is not None:
            admission.refused_before_us(self._runtime, exchange, user_api_key_dict, request_data)
            outcome.request_failed(exchange, original_exception)

    async def async_post_call_response_headers_hook(
        self,
        data: dict[str, Any],
        user_api_key_dict: Any,
        response: Any,
        request_headers: dict[str, str] | None = None,
        litellm_call_info: dict[str, Any] | None = None,
    ) -> None:
        """An answer exists, complete or as a stream about to start; the edge writes the headers."""
        exchange = current.get()
        if exchange is not None and response is not None:
            outcome.answered(exchange, data, response)

    async def async_log_success_event(
        self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """LiteLLM's own account, later: it only improves what the books could not know in time."""
        outcome.reported_later(self._runtime, kwargs)

    async def async_log_failure_event(
        self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        outcome.reported_later(self._runtime, kwargs)


def _exchange_of(call: Mapping[str, Any]) -> Exchange | None:
    """The exchange a call to a model serves, None for any other call made meanwhile: a guardrail may ask models too, on
    the proxy's account and not on the key's."""
    exchange = current.get()
    return exchange if exchange is not None and call.get("litellm_call_id") == exchange.call_id else None
