"""What became of a request: attempts that failed, answers, and LiteLLM's own account of them afterwards."""

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from core.money import nano_dollars
from core.usage import UsageState
from plugins.exchange import Exchange, current
from plugins.failures import from_provider, name_of, status_of, usage_after
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
    usage = usage_after(exception, status) if exchange.sent else UsageState.NONE
    outcome = resilience.outcome(exchange, exception, status)
    said = resilience.of_deployment(exchange, outcome, status)
    attempt = exchange.end_attempt(status, type(exception).__name__, usage, said)
    if attempt is not None:
        resilience.failed(exchange, exception, attempt, outcome)


def ends_attempt(exchange: Exchange, exception: Exception) -> bool:
    """Whether a request fails because an attempt has that no other hook learned of: streams of text completions are
    opened when the router is done."""
    return exchange.under_way and exchange.first_byte is None and from_provider(exception)


def request_failed(exchange: Exchange, exception: Exception) -> None:
    """The request as a whole failed."""
    if ends_attempt(exchange, exception):
        attempt_failed(exchange, exception)
    exchange.error_class = exchange.error_class or name_of(exception)


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
