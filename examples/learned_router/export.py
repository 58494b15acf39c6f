"""Write what requests were like, which model answered and how it was rated: one JSON object a line.

    python export.py --policy smart --metric rating --since 30d > feedback.jsonl

Neither who asked nor what was said is in it.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import click
from sqlalchemy import select

from core.cli.store import chosen_store
from core.context import Caller, RequestContext
from core.errors import OrchestrationError, StoreError
from core.facts import facts_of
from core.report_query import moment_ms
from core.store import Store, open_store
from core.store.tables import feedback, usage_events
from custom_router.traits import with_traits

SEEN = (
    *("task_type", "user_tier", "input_tokens", "hour"),
    *("has_images", "has_audio", "has_documents", "has_tools", "wants_json", "stream"),
)
"""What the strategy looks at."""


async def rows(store: Store, policy: str, metric: str, since_ms: int) -> AsyncIterator[dict[str, Any]]:
    """The rated requests of a policy that were answered as they had been routed: not from a cache, and not by another
    model because the first one failed."""
    event = usage_events.c
    chosen = (
        select(usage_events, feedback.c.value.label("rating"))
        .join(feedback, feedback.c.request_id == event.request_id)
        .where(
            feedback.c.metric == metric,
            event.time_ms >= since_ms,
            event.policy == policy,
            event.status < 400,
            event.cache.is_(None),
            event.fallbacks == 0,
            event.used_model.is_not(None),
        )
        .order_by(event.time_ms)
    )
    async with store.reading() as connection:
        async for some in connection.partitions(chosen, 1000):
            for row in some:
                context = with_traits(
                    RequestContext(
                        row.request_id,
                        row.endpoint,
                        Caller(tier=row.tier),
                        policy,
                        task_type=row.task_type,
                        stream=row.streamed,
                        time_ms=row.time_ms,
                    ),
                    row.traits,
                )
                facts = facts_of(context)
                yield {
                    "context": {name: facts[name] for name in SEEN},
                    "model": row.used_model,
                    "rating": row.rating,
                    "cost": row.cost_nano / 1e9,
                }


async def _written(url: str, policy: str, metric: str, since_ms: int) -> int:
    store, count = open_store(url), 0
    try:
        # Reading must not make a database where there is none.
        if (store.url.file is not None and not store.url.file.exists()) or await store.version() is None:
            raise StoreError(f"there is nothing at {store.url} yet: the proxy makes its tables when it first starts")
        async for row in rows(store, policy, metric, since_ms):
            click.echo(json.dumps(row))
            count += 1
    finally:
        await store.close()
    return count


@click.command()
@click.option("--policy", required=True, help="Only requests that asked for this.")
@click.option("--metric", default="rating", show_default=True, help="The feedback to learn from.")
@click.option("--since", default="30d", show_default=True, help="24h, 7d ago, or an ISO date (UTC).")
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="The proxy's config.yaml.")
@click.option("--store", help="The store's URL, in place of the configured one.")
def main(policy: str, metric: str, since: str, config: Path | None, store: str | None) -> None:
    """Export rated requests to standard output."""
    try:
        count = asyncio.run(_written(chosen_store(store, config), policy, metric, moment_ms(since, time.time())))
    except (OrchestrationError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{count} rated requests", err=True)


if __name__ == "__main__":
    main()
