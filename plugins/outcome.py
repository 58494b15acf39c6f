"""What became of a request: attempts that failed, answers, and LiteLLM's own account of them afterwards."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx

from core.money import nano_dollars
from core.usage import UsageState
from plugins.exchange import Exchange, current
from plugins.receipt import Receipt
from plugins.resilience import service as resilience

if TYPE_CHECKING:
    from core.runtime import Runtime


def provider_answered(exchange: Exchange, response: Any) -> None:
    """A provider answered in full. Kept at once, because a guardrail may yet refuse what has already been paid for."""
    exchange.answer = response


def answered(exchange: Exchange, data: dict[str, Any], response: Any) -> None:
    """LiteLLM has an answer in hand, or a stream that is about to start."""
    exchange.answer = response
    exchange.call = data.get("litellm_logging_obj") or exchange.call


def attempt_failed(exchange: Exchange, exception: Exception) -> None:
    """Note it."""
    status = status_of(exception)
    usage = _usage_after(exception, status) if exchange.sent else UsageState.NONE
    outcome = resilience.outcome(exchange, exception, status)
    said = resilience.of_deployment(exchange, outcome, status)
    attempt = exchange.end_attempt(status, type(exception).__name__, usage, said)
    if attempt is not None:
        resilience.failed(exchange, exception, attempt, outcome)


def ends_attempt(exchange: Exchange, exception: Exception) -> bool:
    """Whether a request fails because an attempt has that no other hook learned of: streams of text completions are
    opened when the router is done."""
    return exchange.under_way and exchange.first_byte is None and _from_provider(exception)


def request_failed(exchange: Exchange, exception: Exception) -> None:
    """The request as a whole failed."""
    if ends_attempt(exchange, exception):
        attempt_failed(exchange, exception)
    exchange.error_class = exchange.error_class or _name(exception)


def reported_later(runtime: "Runtime", kwargs: dict[str, Any]) -> None:
    """LiteLLM's log event. It matters only where the books had to say that the usage is unknown or estimated."""
    call_id = kwargs.get("litellm_call_id")
    exchange = current.get()
    if exchange is not None and exchange.call_id == call_id and not exchange.closed:
        # A client left: LiteLLM bills what it had received before the edge has closed its books.
        exchange.reported = _report(kwargs)
        return
    waiting = _unsure.pop(call_id, None) if call_id else None
    if waiting is None:
        return
    request_id, charged_nano = waiting
    found = _report(kwargs)
    # To LiteLLM, what nothing prices costs nothing: no reason to give back a flat reserve.
    if found and (found.cost_nano or not charged_nano):
        runtime.journal.amend(
            request_id,
            {
                "usage": found.usage,
                "input_tokens": found.input_tokens,
                "output_tokens": found.output_tokens,
                "cost_nano": found.cost_nano or 0,
            },
        )


def _report(kwargs: dict[str, Any]) -> Receipt | None:
    report = kwargs.get("standard_logging_object") or {}
    tokens = report.get("prompt_tokens") or 0, report.get("completion_tokens") or 0
    if not any(tokens):
        return None
    return Receipt(UsageState.ESTIMATED, *tokens, cost_nano=nano_dollars(report.get("response_cost") or 0))


def remember_unsure(exchange: Exchange) -> None:
    """Keep in mind that LiteLLM's log event may know better about the last attempt than the books do."""
    last = exchange.attempts[-1] if exchange.attempts else None
    if last is None or exchange.call_id is None or last.usage != UsageState.UNKNOWN:
        return
    _unsure[exchange.call_id] = exchange.request_id, last.cost_nano
    if len(_unsure) > _MOST_UNSURE:
        _unsure.popitem(last=False)


_MOST_UNSURE = 4096
_unsure: OrderedDict[str, tuple[str, int]] = OrderedDict()
"""Request id and nano-dollars charged for the last attempt, by LiteLLM's call id."""


def status_of(exception: Exception) -> int:
    """The status that a provider answered with, 0 where it gave none."""
    status = getattr(exception, "status_code", None)
    return status if isinstance(status, int) else 0


def _name(exception: Exception) -> str:
    """The class of an error, or for LiteLLM's own refusals, which are all of one class, what they call themselves."""
    name = type(exception).__name__
    return str(getattr(exception, "type", name)) if name == "ProxyException" else name


def _from_provider(exception: Exception) -> bool:
    """Whether it is about a call to a model; LiteLLM's errors of these are those of OpenAI's client."""
    return any(base.__module__.startswith("openai") for base in type(exception).__mro__)


def _usage_after(exception: Exception, status: int) -> str:
    """Whether a failed attempt can have been billed.

    A provider that answers with an error status bills nothing, and neither does one that was never reached. Whatever
    else went wrong after the request was sent, it may have run to its end: a timeout, a connection that broke off, an
    answer nobody could read.
    """
    if 400 <= status < 500 and status != _TIMED_OUT:
        return UsageState.NONE
    for cause in _causes(exception):
        if isinstance(cause, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
            return UsageState.NONE if _never_connected(cause) else UsageState.UNKNOWN
        if isinstance(cause, httpx.HTTPStatusError) or (
            type(cause).__module__.startswith("openai") and hasattr(cause, "status_code")
        ):
            return UsageState.NONE
    return UsageState.UNKNOWN


_TIMED_OUT = 408


def _never_connected(error: Exception) -> bool:
    """LiteLLM's aiohttp transport calls every error of the socket a failure to connect; what it came from tells them
    apart."""
    causes = [cause for cause in _causes(error) if type(cause).__module__.startswith("aiohttp")]
    names = {base.__name__ for cause in causes for base in type(cause).__mro__}
    return not causes or not names.isdisjoint({"ClientConnectorError", "ConnectionTimeoutError"})


def _causes(exception: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while exception is not None and id(exception) not in seen:
        seen.add(id(exception))
        yield exception
        exception = exception.__cause__ or exception.__context__
