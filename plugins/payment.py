"""Budgets on the way of a request: paid for before each attempt, or not made."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from core.errors import BudgetExceeded, BudgetsUnavailable, JournalFull
from core.journal import SentAttempt
from core.usage import Attempt
from plugins import compat
from plugins.budgets.enforcement import Asked, Part, Permitted, cap_output
from plugins.budgets.exact import exact_input_tokens
from plugins.exchange import Exchange

if TYPE_CHECKING:
    from core.runtime import Runtime
    from plugins.budgets.service import Budgets

budgets: "Budgets | None" = None
"""Those of this worker."""


async def first_attempt(
    exchange: Exchange, data: dict[str, Any], candidates: list[str], permitted: Permitted, part: Part | None = None
) -> list[str]:
    """Reserve for the first candidate that can be paid; returns it and those behind it, and writes the output limit.
    `part` is what is sent in place of all of `data`.

    Raises `BudgetExceeded`, `CostUnbounded`, `BudgetsUnavailable`, or `BadField` for what would get round a limit.
    """
    context, snapshot = exchange.context, exchange.snapshot
    assert context is not None
    tier = snapshot.settings.tiers.get(context.caller.tier) if context.caller.tier else None
    most_tokens = tier.max_tokens if tier is not None else None
    if budgets is None or (not len(snapshot.catalog) and most_tokens is None):
        return candidates
    if budgets.books is None and len(snapshot.catalog):
        await budgets.begun()
    if not exchange.repeated:
        exchange.spending = budgets.spending(snapshot, exchange.request_id, exchange.time_ms, context)
    exchange.asked = Asked(dialect(exchange.endpoint, data), data, exchange.body_bytes, context.task_type, most_tokens)
    exchange.asked.part = part
    if exchange.spending is None:
        cap_output(exchange.asked)
        return candidates
    try:
        found = await budgets.enforcement.first_attempt(exchange.spending, exchange.asked, candidates, permitted)
    except BudgetExceeded as refusal:
        budgets.notices.refused(refusal, exchange.time_ms)
        raise
    if exchange.asked.clamped is not None:
        budgets.notices.clamped(found[0], exchange.asked.clamped, exchange.time_ms)
    return found


def dialect(endpoint: str, data: Mapping[str, Any]) -> str:
    """The endpoint whose fields `data` has: Cursor sends Responses bodies where others send chat completions, at times
    beside an empty `messages`."""
    messages = data.get("messages")
    talks = isinstance(messages, list) and messages
    return "responses" if endpoint == "chat_completions" and not talks else endpoint


def exact_input(endpoint: str, data: Mapping[str, Any], group: str) -> int:
    """Input tokens where they can be counted exactly, else 0."""
    if budgets is None:
        return 0
    return exact_input_tokens(endpoint, data, budgets.group(group).prices.models) or 0


async def can_pay(exchange: Exchange, group: str) -> bool:
    """Whether the budgets pay for an attempt at `group`; nobody pays once the answer is gone."""
    if exchange.closed:
        return False
    if exchange.spending is None or exchange.asked is None or budgets is None:
        return True
    try:
        paid = await budgets.enforcement.next_attempt(exchange.spending, exchange.asked, group)
        refusal = exchange.spending.refusal
    except BudgetsUnavailable as unknown:
        paid, refusal = False, unknown
    if not paid and not exchange.attempts:
        exchange.unpaid = refusal
    return paid


async def send(runtime: "Runtime", exchange: Exchange, attempt: Attempt, call: dict[str, Any]) -> None:
    """The attempt is about to leave. Raises LiteLLM's 503 where it is not paid for (any more)."""
    if exchange.closed:
        raise compat.cannot_call("The request is over.", call)  # a guardrail refused it while LiteLLM got ready
    if exchange.spending is not None and exchange.asked is not None and budgets is not None:
        try:
            paid = await budgets.enforcement.send(exchange.spending, exchange.asked, attempt, call)
        except BudgetsUnavailable as unknown:
            if attempt.number == 1:
                exchange.unpaid = unknown
            raise compat.cannot_call(unknown.message, call) from unknown
        if not paid:
            if attempt.number == 1:  # what was reserved for it has run out, and others have the money by now
                exchange.unpaid = exchange.spending.refusal
            raise compat.cannot_call(f"The budgets do not pay for another attempt at {attempt.model}.", call)
        exchange.unpaid = None
        if attempt.reserved_nano:
            _write_down(runtime, exchange, call)
    exchange.sent = True


def _write_down(runtime: "Runtime", exchange: Exchange, call: dict[str, Any]) -> None:
    """Have the journal know what is on its way: a process that is killed must not forget it."""
    event = exchange.usage_event(runtime.instance, runtime.price_version)
    if event is None:
        return
    try:
        runtime.journal.sent(SentAttempt(event))
    except JournalFull as error:
        raise compat.cannot_call(str(error), call) from error
