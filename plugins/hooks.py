"""The one callback LiteLLM knows: each of its hooks, in the order of a request, in a few lines that call a service.

LiteLLM looks for `async_pre_call_hook` and `async_post_call_response_headers_hook` on the leaf class only, so they
stand here and not in a base.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException
from litellm.integrations.custom_logger import CustomLogger

from core.errors import ModelNotAllowed, NotRecordable, RequestRefused
from plugins import admission, compat, outcome, payment, route, second_try, secrets
from plugins.batches import background
from plugins.batches import service as batches
from plugins.caching import inputs
from plugins.caching import service as caching
from plugins.exchange import Exchange, current
from plugins.failures import status_of
from plugins.resilience import service as resilience
from plugins.routes import ROUTES, Handling

if TYPE_CHECKING:
    from core.runtime import Runtime

_LOG = logging.getLogger("orchestration")


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
            _refuse_unseen(user_api_key_dict)
            return None
        try:
            if exchange.endpoint == "batches":
                batches.begun(exchange, user_api_key_dict, data)
                return data
            await admission.admit(self._runtime, exchange, user_api_key_dict, data)
        except caching.Found:
            raise HTTPException(_ANSWERED, "The answer to this request was there already.") from None
        except caching.ClientLeft:
            raise HTTPException(_LEFT, "The client left while its request waited.") from None
        except RequestRefused as refusal:
            if not exchange.repeated:  # else the client is told of the attempt that failed
                exchange.refused(refusal)
            raise HTTPException(refusal.status, refusal.message) from None
        secrets.give_retry(exchange, data)
        try:
            resilience.begin(exchange, data)
        except RequestRefused as refusal:
            exchange.refused(refusal)
            raise HTTPException(refusal.status, refusal.message) from None
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
        go, and of one that the budgets do not pay for or that is not to be tried again, and those that are disabled, in
        another region, left alone because they fail, or whose secrets cannot be read."""
        healthy_deployments = admission.enabled(self._runtime, healthy_deployments)
        exchange = _exchange_of(request_kwargs or {})
        if exchange is None:
            return secrets.usable(healthy_deployments)
        if not await admission.permitted(self._runtime, exchange, model):
            return []
        if not resilience.may_try(exchange, model):
            # LiteLLM makes a 429 of whatever went wrong where nothing is left to try.
            raise compat.cannot_call(f"{model} is not tried again.", {"model": model})
        usable = secrets.usable(route.in_regions(exchange, healthy_deployments))
        usable = await resilience.usable(exchange, usable)
        if resilience.left_alone(exchange):
            raise compat.cannot_call(f"{model} is left alone for a while, because it fails.", {"model": model})
        return usable if usable and await payment.can_pay(exchange, model) else []

    async def async_pre_call_deployment_hook(self, kwargs: dict[str, Any], call_type: Any) -> dict[str, Any] | None:
        """An attempt begins: it gets the secrets it needs, and from now on it may be billed."""
        exchange = _exchange_of(kwargs)
        if exchange is not None and not exchange.under_way and (named := compat.asked_by_id(kwargs)) is not None:
            await self._filter_named(exchange, *named, kwargs)
        attempt = exchange and exchange.begin_attempt(kwargs, getattr(call_type, "value", None))
        resilience.clean(kwargs)
        await secrets.put_in(kwargs, exchange)
        if exchange is not None and attempt is not None:
            inputs.narrow(exchange, attempt, kwargs)
            await payment.send(self._runtime, exchange, attempt, kwargs)
        return kwargs

    async def _filter_named(
        self, exchange: Exchange, deployment: str, group: str, entry: dict[str, Any], call: dict[str, Any]
    ) -> None:
        """What `async_filter_deployments` does, for a deployment of which LiteLLM does not ask."""
        try:
            await admission.check_named(self._runtime, exchange, deployment, group)
        except ModelNotAllowed as refusal:
            if not exchange.attempts:  # else the client is told of what it asked for
                exchange.refused(refusal)
            raise compat.cannot_call(refusal.message, call) from refusal
        if not await self.async_filter_deployments(group, [entry], None, call):
            raise compat.cannot_call(f"The deployment {deployment} may not be called now.", call)

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
            await secrets.refused(exchange, request_data, status_of(exception))
            outcome.attempt_failed(exchange, exception)
            if resilience.replaces_cooldown(exchange, request_data):
                compat.spare_cooldown(request_data)
            await resilience.decide(exchange)

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
            if exchange.endpoint in second_try.ENDPOINTS and outcome.ends_attempt(exchange, original_exception):
                await secrets.refused(exchange, request_data, status_of(original_exception))
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


def _refuse_unseen(auth: Any) -> None:
    """A request that the edge has let in has its exchange here: without one it would be served by the alias of its
    policy, and nobody would account for it. Other calls of this hook have none."""
    path = getattr(auth, "request_route", None)  # for some of its own calls LiteLLM has no identity
    if path and ROUTES.of("POST", path).handling is Handling.ENFORCED:
        _LOG.error("a request for %s has lost its context and is refused: nobody would account for it", path)
        raise HTTPException(NotRecordable.status, "This request could not be accounted for; try it again.")


_ANSWERED, _LEFT = 409, 499
"""No client sees them: the edge sends the answer in place of the one, and nobody is there for the other."""


def _exchange_of(call: Mapping[str, Any]) -> Exchange | None:
    """The exchange a call to a model serves, None for any other call made meanwhile: a guardrail may ask models too, on
    the proxy's account and not on the key's."""
    exchange = current.get()
    return exchange if exchange is not None and call.get("litellm_call_id") == exchange.call_id else None
