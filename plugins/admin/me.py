"""`GET /orchestration/me`: what a key may use, how much of it is left, and what was used; never about anybody else."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from core.budgets import BudgetTerms, Charge, Per
from core.context import Caller, read_claims
from core.errors import StoreError
from core.runtime import Runtime
from core.snapshot import Snapshot
from plugins import admission, compat
from plugins.admin.access import AnyKey, answered, ready
from plugins.admin.explain import shown_caller
from plugins.admin.standing import Standings, charge_of, paused, period_of, shown
from plugins.limits import Entrance

_USAGE_FOR = 30.0
_FRESH_SECONDS = 1.0
_MOST_KNOWN = 1000


def me_router(runtime: Runtime, entrance: Callable[[], Entrance | None]) -> APIRouter:
    """`entrance` gives the way in of this worker, which counts requests."""
    router = APIRouter()
    page = OwnPage(runtime, entrance)

    @router.get("/me", summary="What this key may use, and how much of it is left")
    async def get_me(auth: AnyKey, request: Request) -> Response:
        return await answered(page.of(auth, request.headers.raw))

    return router


@dataclass(slots=True)
class OwnPage:
    """What callers are told about themselves."""

    runtime: Runtime
    entrance: Callable[[], Entrance | None]
    _usage: dict[tuple[str, str], tuple[float, dict[str, Any]]] = field(
        default_factory=dict[tuple[str, str], tuple[float, dict[str, Any]]]
    )
    """Today's usage by caller, with when it has to be looked up again."""

    async def of(self, auth: Any, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
        """Tier, models, limits, budgets and usage of a caller; with a trusted key, of the user that the headers name.

        Raises BadField for a claim of the wrong form.
        """
        await ready(self.runtime)
        snapshot = self.runtime.snapshot
        caller = snapshot.directory.claimed(
            snapshot.directory.caller(compat.principal_of(auth)), read_claims(headers, None)
        )
        models = await self._models(auth, snapshot, caller)
        return {
            **shown_caller(caller),
            "models": models,
            "limits": await self._limits(caller),
            **await self._budgets(snapshot, caller, models),
            "usage": {"today": await self._today(caller)},
        }

    async def _models(self, auth: Any, snapshot: Snapshot, caller: Caller) -> list[str]:
        """As `/v1/models` lists them."""
        names = [*snapshot.policies, *compat.model_groups()]
        callable_ = [name for name in dict.fromkeys(names) if await compat.may_call(auth, name)]
        listed = await admission.listed(self.runtime, auth, callable_)
        # Of a tier that a trusted key claims, not its own.
        tiers = caller.tiers
        return [name for name in listed if name in snapshot.policies or snapshot.access.permits(tiers, name)]

    async def _limits(self, caller: Caller) -> list[dict[str, Any]]:
        entrance = self.entrance()
        if entrance is None:
            return []
        return [
            {
                "limit": quota.kind.value,
                "scope": quota.scope.value,
                "name": quota.name,
                "allowed": quota.most,
                "used": level.used,
                "left": max(0, quota.most - level.used),
                "reset_seconds": round(level.reset, 2),
            }
            for quota, level in await entrance.limiter.standing(caller)
        ]

    async def _budgets(self, snapshot: Snapshot, caller: Caller, models: list[str]) -> dict[str, Any]:
        now_ms = int(self.runtime.clock() * 1000)
        charges = [
            charge_of(terms, member, now_ms)
            for terms in snapshot.catalog
            if _covers(terms, caller)
            for member in _own_members(snapshot, terms, caller, models)
        ]
        found = await Standings.of([charge.account for charge in charges])
        told = [self._told(charge, found, now_ms) for charge in charges]
        return {"budgets": told} | ({} if found.trouble is None else {"trouble": found.trouble})

    @staticmethod
    def _told(charge: Charge, found: Standings, now_ms: int) -> dict[str, Any]:
        terms = charge.budget
        scopes = {"models": sorted(terms.coverage.models), "task_types": sorted(terms.coverage.task_types)}
        return {
            "budget_id": terms.budget_id,
            "name": terms.name,
            "at_limit": terms.at_limit.value,
            "paused": paused(terms, by=False),
            **{name: names for name, names in scopes.items() if names},
            **period_of(terms, now_ms),
            **shown(charge, found.by_key.get(charge.account.key), now_ms),
        }

    async def _today(self, caller: Caller) -> dict[str, Any] | None:
        """Requests, tokens and cost since midnight (UTC), up to half a minute old; null where it is not known."""
        kind, name = ("user", caller.user_id) if caller.user_id is not None else ("key", caller.key_hash)
        if name is None:
            return None
        known = self._usage.get((kind, name))
        if known is None or known[0] <= time.monotonic():
            if len(self._usage) >= _MOST_KNOWN:
                self._usage.clear()
            known = self._usage[kind, name] = (time.monotonic() + _USAGE_FOR, await self._read_today(kind, name))
        return known[1] or None

    async def _read_today(self, kind: str, name: str) -> dict[str, Any]:
        from core.reports import as_json

        assert self.runtime.store is not None
        assert self.runtime.ledger is not None
        await self.runtime.ledger.flush(within=_FRESH_SECONDS)
        now = self.runtime.clock()
        midnight = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        start_ms, end_ms = int(midnight.timestamp() * 1000), int(now * 1000) + 1000
        try:
            report = await self.runtime.store.usage.usage_report(start_ms, end_ms, (), {kind: name})
        except StoreError:
            return {}
        totals = as_json(report)["totals"]
        return {name: totals[name] for name in ("requests", "errors", "input_tokens", "output_tokens", "cost")}


def _covers(terms: BudgetTerms, caller: Caller) -> bool:
    """Whether some request of the caller is covered."""
    task_types = terms.coverage.task_types or frozenset({None})
    return any(terms.coverage.covers_caller(caller, task_type) for task_type in task_types)


def _own_members(snapshot: Snapshot, terms: BudgetTerms, caller: Caller, models: list[str]) -> list[str]:
    """Whose accounts of a budget are the caller's: its own, or those of the models it may use; none where it may use
    none of the models in scope."""
    coverage = terms.coverage
    reached = [group for group in snapshot.catalog.models_of(terms) if group in models] if coverage.models else models
    if coverage.models and not reached and not any(coverage.covers_model((name,)) for name in models):
        return []
    if terms.per is Per.MODEL:
        return [name for name in reached if name not in snapshot.policies]
    return [coverage.member(caller)]
