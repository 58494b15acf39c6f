"""Routing on the way of a request: the router in force, and the plan it makes."""

from typing import TYPE_CHECKING, Any

from core.context import RequestContext
from custom_router.decision import Plan
from custom_router.router import MayUse, Router
from plugins.routing.candidates import deployments_in
from plugins.routing.live import Loads

if TYPE_CHECKING:
    from core.snapshot import Snapshot
    from plugins.exchange import Exchange
    from plugins.routing.service import Routing

routing: "Routing | None" = None
"""That of this worker."""


async def router(snapshot: "Snapshot") -> Router:
    """The router of these settings."""
    assert routing is not None
    return await routing.router(snapshot)


def loads() -> Loads | None:
    """How the models are doing, to be told of each attempt."""
    return None if routing is None else routing.loads


async def plan(router: Router, context: RequestContext, may_use: MayUse) -> Plan:
    """What is decided about a request; a custom strategy has been asked."""
    assert routing is not None
    return await routing.plan(router, context, may_use)


def in_regions(exchange: "Exchange | None", deployments: list[Any]) -> list[Any]:
    """Those of LiteLLM's deployments that are where the request has to stay."""
    plan = exchange.plan if exchange is not None else None
    return deployments if plan is None or not plan.regions else deployments_in(plan.regions, deployments)
