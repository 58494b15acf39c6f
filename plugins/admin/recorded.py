"""`GET /orchestration/routing/requests/{request_id}`: why a recorded request went where it went.

What was written down is told as it is. How the decision came about is found by making it again, with what was recorded
of the request and the configuration that was in force then.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import orjson
from pydantic import ValidationError

from core.access import TierAccess
from core.errors import NotFound, OrchestrationError, StoreError
from core.money import format_dollars
from core.runtime import Runtime
from core.settings import Settings
from core.settings.finding import shown_name
from core.settings.models import Objective
from core.usage import UsageEvent
from custom_router.candidates import Candidate
from custom_router.decision import Plan
from custom_router.experiments.allocation import Ranges, from_json
from custom_router.experiments.assignment import Assigner
from custom_router.replay import Measured, context_of_event, left_out_of
from custom_router.router import Router
from plugins import compat
from plugins.admin.access import ready
from plugins.admin.plan import shown
from plugins.budgets.refusals import moment
from plugins.routing.candidates import candidate_of

if TYPE_CHECKING:
    from core.store import Store

_FRESH_SECONDS = 1.0
_LONGEST_ID = 128
_STEADY = (Objective.PRIORITY, Objective.WEIGHTED)
"""Objectives that look at nothing that changes from second to second."""


async def explain_recorded(runtime: Runtime, auth: Any, request_id: str) -> dict[str, Any]:
    """What is recorded of the request, and the decision made again.

    Administrators may ask about every request, others about those of their key and their user. Raises NotFound and
    StoreError.
    """
    await ready(runtime)
    event = await _event(runtime, auth, request_id)
    assert runtime.store is not None
    notes: list[str] = []
    remade = await _remade(runtime.store, event, notes)
    plan = None if remade is None else remade[1]
    if remade is not None:
        notes += _differences(event, *remade)
    return {
        "request_id": event.request_id,
        "at": moment(event.time_ms),
        "recorded": _recorded(event),
        "settings": {"digest": event.settings, "kept": remade is not None},
        "decision": None if plan is None else shown(plan),
        "agrees": None if plan is None else _went_to(event) == next(iter(plan.candidates), None),
        "notes": notes,
    }


async def _event(runtime: Runtime, auth: Any, request_id: str) -> UsageEvent:
    assert runtime.store is not None
    assert runtime.ledger is not None
    event = None
    if 0 < len(request_id) <= _LONGEST_ID:
        event = await runtime.store.usage.get(request_id)
        if event is None:
            await runtime.ledger.flush(within=_FRESH_SECONDS)
            event = await runtime.store.usage.get(request_id)
    if event is None or not _may_see(runtime, auth, event):
        of = "" if compat.may_read(auth) else " of this key or its user"
        raise NotFound(f"There is no request {shown_name(request_id[:_LONGEST_ID])!r}{of}.")
    return event


def _may_see(runtime: Runtime, auth: Any, event: UsageEvent) -> bool:
    if compat.may_read(auth):
        return True
    own = runtime.snapshot.directory.caller(compat.principal_of(auth))
    same_key = own.key_hash is not None and own.key_hash == event.key_hash
    return same_key or (own.user_id is not None and own.user_id == event.user_id)


def _recorded(event: UsageEvent) -> dict[str, Any]:
    return {
        "endpoint": event.endpoint,
        "status": event.status,
        "error": event.error_class,
        "user_id": event.user_id,
        "team_id": event.team_id,
        "groups": list(event.groups),
        "tier": event.tier,
        "task_type": event.task_type,
        "priority": event.priority,
        "session_id": event.session_id,
        "asked_model": event.asked_model,
        "used_model": event.used_model,
        "policy": event.policy,
        "variant": event.variant,
        "route": event.route,
        "left_out": list(left_out_of(event.route)),
        "looked_at": None if event.traits is None else orjson.loads(event.traits),
        "attempts": [
            {
                "number": attempt.number,
                "model": attempt.model,
                "deployment": attempt.deployment,
                "status": attempt.status,
                "error": attempt.error_class,
                "latency_ms": attempt.latency_ms,
            }
            for attempt in event.attempts
        ],
        "cache": event.cache,
        "fallbacks": event.fallbacks,
        "degraded": event.degraded,
        "clamped": event.clamped,
        "streamed": event.streamed,
        "latency_ms": event.latency_ms,
        "cost": format_dollars(event.cost_nano),
    }


# -- made again --------------------------------------------------------------------------------------------------------


async def _remade(store: "Store", event: UsageEvent, notes: list[str]) -> tuple[Router, Plan] | None:
    """The decision made again, and by what; None, with the reason in `notes`, where that cannot be."""
    if event.settings is None:
        notes.append("It was recorded by a version that did not say which configuration was in force.")
        return None
    document = await store.routing_versions.of(event.settings)
    if document is None:
        notes.append("The configuration that was in force then is not kept, so the decision cannot be made again.")
        return None
    try:
        router = await _router_of(store, event, orjson.loads(document))
        context = context_of_event(event)
    except StoreError:
        raise
    except (ValueError, OrchestrationError) as error:  # ValidationError is a ValueError
        why = f"{error.error_count()} of its fields" if isinstance(error, ValidationError) else str(error)
        notes.append(f"The configuration that was in force then cannot be read by this version ({why}).")
        return None
    plan = router.decide(context, lambda _: True, trace=True)
    unexplained = [name for name in left_out_of(event.route) if name in plan.candidates]
    if unexplained:
        notes.append(
            f"{', '.join(unexplained)} was left out then, for a reason that is not recorded: most likely the key was "
            "not allowed to use it."
        )
        plan = router.decide(context, lambda group: group not in unexplained, trace=True)
    return router, plan


async def _router_of(store: "Store", event: UsageEvent, document: Mapping[str, Any]) -> Router:
    """Routing as it was when the request came."""
    settings = Settings.model_validate(document["orchestration"])
    policy = settings.routing.policies.get(event.asked_model or "")
    entries: dict[str, list[Any]] = {}
    for entry in cast("Sequence[Mapping[str, Any]]", document["model_list"]):
        entries.setdefault(str(entry.get("model_name")), []).append(entry)
    places = frozenset(policy.regions if policy is not None else ())
    known: dict[str, Candidate] = {}

    def candidate(name: str) -> Candidate:
        found = known.get(name)
        if found is None:
            found = candidate_of(name, entries.get(name, ()))
            # Where a deployment is stands in its parameters, of which nothing else is kept.
            found = known[name] = found if found.regions else replace(found, regions=places)
        return found

    routing_then = settings.routing
    ranges: dict[str, Ranges] = {}
    for one in routing_then.experiments:
        if one.policy == event.asked_model:
            stored = [
                version
                for version in await store.allocations.history(one.id)
                if version.time_ms <= event.time_ms and version.seed == one.drawn_from
            ]
            if stored:
                ranges[one.id] = from_json(stored[-1].ranges)
    closed = {
        name: frozenset(variant for variant, closure in arms.items() if closure.time_ms <= event.time_ms)
        for name, arms in (await store.allocations.closed()).items()
    }
    assigner = Assigner(routing_then.experiments, routing_then.holdout, ranges, closed)
    return Router(settings, TierAccess(settings.tiers), candidate, Measured(), assigner)


def _went_to(event: UsageEvent) -> str | None:
    return event.attempts[0].model if event.attempts else None


def _differences(event: UsageEvent, router: Router, plan: Plan) -> list[str]:
    """What the decision made again cannot know, and where it came out otherwise."""
    notes = [
        "The decision was made again from what is recorded; which models took requests, how long they took and how "
        "busy they were at that moment is not."
    ]
    policy = None if plan.policy is None else router.policies[plan.policy]
    if plan.strategy is not None:
        notes.append(f"The strategy {plan.strategy} had its say then; it was not asked again.")
    elif policy is not None and policy.objective not in _STEADY and len(plan.candidates) > 1:
        notes.append(f"Objective {policy.objective} looks at such things, so the order may have been another one.")
    went, first = _went_to(event), next(iter(plan.candidates), None)
    if went is None and first is not None:
        what = f"was refused ({event.error_class})" if event.error_class else "was answered without any model"
        notes.append(f"By routing it could have gone to {first}; it {what}.")
    elif went != first:
        notes.append(f"It went to {went} first, and the decision made again says {first or 'nobody'}.")
    if event.attempts and event.used_model != went:
        notes.append(f"{event.used_model} was used in the end, since what came before failed.")
    if (event.variant or "") != plan.variants and went is not None:
        notes.append(
            f"It was assigned to {event.variant or 'no experiment'} then, and now to {plan.variants or 'none'}."
        )
    return notes
