"""Responses in the background: charged what was reserved when their request ends, settled when they are over."""

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from core.errors import CostUnbounded, StoreError
from core.store.batches import Job, JobKind, Owner
from plugins import compat, receipt
from plugins.exchange import Exchange

if TYPE_CHECKING:
    from core.runtime import Runtime, Snapshot

_LOG = logging.getLogger("orchestration.batches")


def check(snapshot: "Snapshot", endpoint: str, data: Mapping[str, Any]) -> None:
    """Refuse what LiteLLM would do in the background itself: it calls the model when the request is over, which is too
    late to reserve for it."""
    if endpoint != "responses" or not _in_background(data) or not compat.answers_by_polling():
        return
    if snapshot.counts_spending:
        raise CostUnbounded(
            "background: true cannot be used while budgets or tiers are configured and LiteLLM answers such requests "
            "from its cache: switch polling_via_cache off, or ask in the foreground."
        )


async def begun(runtime: "Runtime", exchange: Exchange, response: Any) -> None:
    """A provider has answered; where it goes on in the background, it will be asked what became of it."""
    context = exchange.context
    if exchange.endpoint != "responses" or context is None or not receipt.goes_on(response) or not exchange.attempts:
        return
    attempt = exchange.attempts[-1]
    now = time.time_ns() // 1_000_000
    job = Job(
        id=str(response.id),
        kind=JobKind.RESPONSE,
        request_id=exchange.request_id,
        owner=Owner.of(context.caller),
        model=attempt.model,
        deployment=attempt.deployment,
        provider_model=attempt.provider_model or "",
        endpoint="/v1/responses",
        input_file=None,
        reserved_nano=attempt.reserved_nano,
        status=str(response.status),
        created_ms=now,
        next_ms=now,
    )
    try:
        assert runtime.store is not None
        await runtime.store.batches.keep_job(job)
    except StoreError as error:
        _LOG.error("response %s of request %s will not be settled: %s", job.id, exchange.request_id, error)


def _in_background(data: Mapping[str, Any]) -> bool:
    extra = data.get("extra_body")
    return bool(data.get("background") or (isinstance(extra, dict) and extra.get("background")))
