"""Secrets on the way of a request: put into each attempt, and the attempt made again when its provider refuses one."""

from collections.abc import Iterator, Mapping
from typing import Any
from weakref import ref

from plugins import compat
from plugins.exchange import Exchange, another_key_of
from plugins.resilience.retries import RETRY_POLICY
from secrets_manager.provider import SecretUnavailable
from secrets_manager.proxy import secrets
from secrets_manager.service import Put

REFUSED = (401, 403)
"""How a provider says that it does not take a key."""


async def put_in(call: dict[str, Any], exchange: Exchange | None) -> None:
    """Put the current values where LiteLLM has placeholders. Raises LiteLLM's 503 where there is none, so that it goes
    on to the next candidate."""
    # The router has read it; what LiteLLM does not know in a call, it sends to the provider.
    call.pop(RETRY_POLICY, None)
    model = _model(call)
    service = secrets()
    compat.spread_credential(call)
    try:
        try:
            put = service.put_into(call, model)
        except SecretUnavailable:
            # Models of LiteLLM's database are in no configuration that was read before.
            await service.read_missing(call, model)
            put = service.put_into(call, model)
    except SecretUnavailable as error:
        raise compat.cannot_call(str(error), call) from None
    if put and exchange is not None:  # an inner call of the same attempt finds them put in
        exchange.secrets = put


async def refused(exchange: Exchange, call: Mapping[str, Any], status: int) -> None:
    """An attempt failed: if its provider refused the key, have the vault asked at once whether there is another."""
    if status in REFUSED and await another(exchange):
        exchange.has_another_key = True
        compat.spare_cooldown(call)


async def another(exchange: Exchange) -> bool:
    """The provider refused what was put into the last attempt: whether something else would be put in now."""
    put: tuple[Put, ...] = exchange.secrets
    exchange.secrets = ()
    return bool(put) and await secrets().rejected(put)


def usable(deployments: list[Any]) -> list[Any]:
    """The deployments whose secrets have values now."""
    service = secrets()
    if not service.anything_broken:
        return deployments
    return [one for one in deployments if service.usable(one.get("litellm_params") or {})]


def give_retry(exchange: Exchange, data: dict[str, Any]) -> None:
    """Let the request be made again with another key, should its provider refuse the first."""
    data[RETRY_POLICY] = RetryWithAnotherKey(exchange, data.get(RETRY_POLICY) or compat.retry_policy())


class RetryWithAnotherKey(Mapping[str, Any]):
    """A `model_group_retry_policy` for one request.

    LiteLLM looks into it when an attempt has failed. It says what the configured one says, and one retry for any group
    where the attempt failed because of a key and there is another one now: LiteLLM itself gives up at once on a refused
    key unless the group has other deployments.
    """

    def __init__(self, exchange: Exchange, configured: Mapping[str, Any] | None) -> None:
        self._exchange = ref(exchange)  # as for `another_key_of`
        self._has_another_key = another_key_of(exchange)
        self._configured = configured or {}

    def __contains__(self, group: object) -> bool:
        return self._has_another_key() or group in self._configured

    def __getitem__(self, group: str) -> Any:
        exchange = self._exchange()
        if exchange is not None and exchange.has_another_key:
            exchange.has_another_key = False
            return _ONE_MORE
        return self._configured[group]

    def __iter__(self) -> Iterator[str]:
        return iter(self._configured)

    def __len__(self) -> int:
        return len(self._configured)

    def __copy__(self) -> "RetryWithAnotherKey":
        return self

    def __deepcopy__(self, memo: Any) -> "RetryWithAnotherKey":
        return self


_ONE_MORE = {"AuthenticationErrorRetries": 1, "BadRequestErrorRetries": 1, "DefaultRetries": 1}


def _model(call: Mapping[str, Any]) -> str | None:
    """The group of the deployment that is about to be called, None for a call that did not come by the router."""
    metadata = call.get("litellm_metadata") or call.get("metadata") or {}
    return metadata.get("deployment_model_name") or metadata.get("model_group")
