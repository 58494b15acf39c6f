"""`/orchestration/routing`: how a request would be routed, how one was, and what another configuration would do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from fastapi import APIRouter, Request
from fastapi.responses import Response

from core.context import LABEL_LENGTH, Caller, Claims, Need, RequestContext, read_claims
from core.errors import BadField
from core.ids import new_request_id
from core.money import format_dollars
from core.runtime import Runtime
from core.settings.finding import shown_name
from core.settings.models import Policy
from core.settings.validation import nearest
from core.snapshot import Snapshot
from custom_router.decision import Plan
from custom_router.router import Router
from plugins import compat, route
from plugins.admin.access import AnyKey, Reader, answered, ready
from plugins.admin.entries import json_body
from plugins.admin.explain import INPUT_TOKENS, WHO, asker, check_fields, count_of, shown_caller, text_of
from plugins.admin.plan import shown
from plugins.admin.recorded import explain_recorded
from plugins.admin.simulation import Simulations
from plugins.admission import priority_of

_FIELDS = (
    *("model", *WHO, "tier", "task_type", "priority", "session_id", "input_tokens", "output_tokens", "needs"),
    *("metadata", "headers", "stream", "endpoint", "at", "candidates"),
)
_AD_HOC = "candidates"
"""What stands for the policy where candidates are given and none is named."""
_ENDPOINT = "chat_completions"
ENDPOINTS = (
    *("chat_completions", "responses", "messages", "completions", "generate_content", "embeddings", "rerank"),
    *("images", "audio", "moderations", "batches"),
)
_MOST_ENTRIES = 100
_LONGEST_VALUE = 4096


def routing_router(runtime: Runtime) -> APIRouter:
    router = APIRouter()
    simulations = Simulations(runtime)

    @router.post("/routing/explain", summary="Which models a request would come to, in which order, and why")
    async def explain_request(auth: AnyKey, request: Request) -> Response:
        return await answered(explain(runtime, auth, request))

    @router.get("/routing/requests/{request_id}", summary="Why a recorded request went where it went")
    async def explain_past_request(auth: AnyKey, request_id: str) -> Response:
        return await answered(explain_recorded(runtime, auth, request_id))

    @router.post("/routing/simulate", summary="What another configuration would do with the recorded requests")
    async def simulate(_: Reader, request: Request) -> Response:
        return await answered(simulations.simulate(request))

    return router


async def explain(runtime: Runtime, auth: Any, request: Request) -> dict[str, Any]:
    """The plan for a request that is described, with the steps that led to it; nothing is sent and nothing counted.

    Everybody asks for their own key, administrators also for a `user_id`, `team_id` or `key` (its hash or alias).
    Raises BadField, and LiteLLM's 403 for who asks about others.
    """
    body = await json_body(request)
    await ready(runtime)
    snapshot = runtime.snapshot
    router = await route.router(snapshot)
    if "candidates" in body:
        router = _among(snapshot, router, body)
    question = _question(snapshot, router, auth, body, int(runtime.clock() * 1000))
    context = question.context
    may_use, known = await _permissions(snapshot, router, auth, question)
    plan = router.decide(context, may_use, trace=True)
    return {
        "caller": shown_caller(context.caller),
        "request": {
            "model": context.asked_model,
            "endpoint": context.endpoint,
            "task_type": context.task_type,
            "priority": context.priority,
            "session_id": context.session_id,
            "stream": context.stream,
            "input_tokens": context.input_tokens,
            "output_tokens": context.output_limit,
            "needs": sorted(context.needs),
            "metadata": dict(context.metadata),
            "headers": dict(context.headers),
            "at_ms": context.time_ms,
        },
        **shown(plan),
        "models": [_standing(router, context, name) for name in plan.candidates],
        "notes": [*_ignored(router, body), *([] if known else [_KEYS_OF_LITELLM]), *_strategy_note(plan)],
    }


def _among(snapshot: Snapshot, router: Router, body: Mapping[str, Any]) -> Router:
    """The router as it would be if the policy that is asked for, or one without a name, had the candidates of `body`.
    Raises BadField."""
    given = body["candidates"]
    names = tuple(cast("list[Any]", given)) if isinstance(given, list) else ()
    if not 0 < len(names) <= _MOST_ENTRIES or not all(isinstance(name, str) for name in names):
        raise BadField(f"candidates must be a list of 1 to {_MOST_ENTRIES} names of models.")
    for name in names:
        if not router.candidate_of(name).deployments:
            raise BadField(f"candidates: there is no model {shown_name(name)}{nearest(name, compat.model_groups())}")
    routing = snapshot.settings.routing
    asked = body.get("model", _AD_HOC)
    policy = routing.policies.get(asked) if isinstance(asked, str) else None
    if policy is None and asked != _AD_HOC:
        raise BadField(f"model: {shown_name(str(asked))} is no policy, so candidates cannot stand in for its own.")
    changed = Policy(candidates=names) if policy is None else policy.model_copy(update={"candidates": names})
    policies = {**routing.policies, str(asked): changed}
    settings = snapshot.settings.model_copy(update={"routing": routing.model_copy(update={"policies": policies})})
    return Router(settings, snapshot.access, router.candidate_of, router.live, router.assigner)


_KEYS_OF_LITELLM = (
    "Which models a key of LiteLLM's database may call is known only when it asks: here every model counts as allowed."
)


def _standing(router: Router, context: RequestContext, name: str) -> dict[str, Any]:
    """What routing knows of a model, at this moment, for this request."""
    candidate, live = router.candidate_of(name), router.live
    [expected] = live.expected_outputs((name,), context.task_type)
    if context.output_limit is not None:
        expected = min(expected, context.output_limit)
    cost = candidate.cost_nano(context.input_tokens, expected)
    return {
        "model": name,
        "available": live.available(name),
        "priority": candidate.priority,
        "expected_output_tokens": expected,
        "expected_cost": None if cost is None else format_dollars(round(cost)),
        "latency_ms": live.latency_ms(name, context.stream),
        "in_flight": live.in_flight(name),
        "context_window": candidate.context_window,
        "regions": sorted(candidate.regions),
    }


def _strategy_note(plan: Plan) -> list[str]:
    if plan.strategy is None:
        return []
    return [f"The strategy {plan.strategy} says which of its models comes first; it was not asked."]


def _ignored(router: Router, body: Mapping[str, Any]) -> list[str]:
    """What of the description no condition looks at."""
    names = [
        f"{kind}.{name}"
        for kind, looked_at in (("metadata", router.metadata), ("headers", router.headers))
        for name in cast("Mapping[str, Any]", body.get(kind) or {})
        if _folded(kind, name) not in looked_at
    ]
    return [f"No rule or experiment looks at {', '.join(map(shown_name, names))}."] if names else []


# -- who may use what --------------------------------------------------------------------------------------------------


async def _permissions(
    snapshot: Snapshot, router: Router, auth: Any, question: "Question"
) -> tuple[Callable[[str], bool], bool]:
    """Whether the key may use a group, as far as that can be told, and whether it can."""
    asked = question.context.asked_model
    policy = router.policies.get(asked)
    grants = policy is not None and policy.grants
    if question.own:
        if grants and compat.lists_by_name(auth, asked):
            return (lambda _: True), True
        answers = {group: await compat.may_call(auth, group) for group in {asked, *router.groups(asked)}}
        return (lambda group: answers.get(group, False)), True
    entry = snapshot.directory.entries.get(question.context.caller.key_hash or "")
    if entry is None:
        return (lambda _: True), False
    names = snapshot.directory.models_of(entry)
    if names is None or (grants and asked in names):
        return (lambda _: True), True
    return (lambda group: group in names), True


# -- what a body says --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Question:
    """A request that is asked about; `own`: it is the asking key's."""

    context: RequestContext
    own: bool


def _question(snapshot: Snapshot, router: Router, auth: Any, body: Mapping[str, Any], now_ms: int) -> Question:
    check_fields(body, _FIELDS)
    caller, own = asker(snapshot, auth, body)
    caller = _of_tier(snapshot, auth, caller, text_of(body, "tier", LABEL_LENGTH))
    tier = snapshot.settings.tiers.get(caller.tier) if caller.tier else None
    model = text_of(body, "model") or (_AD_HOC if "candidates" in body else tier and tier.default_policy)
    if model is None:
        raise BadField("model: say which model or policy is asked for.")
    named = {name: body[name] for name in ("task_type", "priority", "session_id") if body.get(name) is not None}
    try:
        claims: Claims = read_claims([], named)
    except BadField as error:
        raise BadField(error.message.replace("metadata.", "", 1)) from None
    metadata, headers = _plain(body, "metadata"), _plain(body, "headers")
    return Question(
        RequestContext(
            request_id=new_request_id(),
            endpoint=_endpoint(body),
            caller=caller,
            asked_model=model,
            task_type=claims.task_type,
            priority=priority_of(tier, caller, claims.priority),
            session_id=claims.session_id,
            stream=_flag(body, "stream"),
            output_limit=count_of(body, "output_tokens", 1) if body.get("output_tokens") is not None else None,
            input_tokens=count_of(body, "input_tokens", 0) if "input_tokens" in body else INPUT_TOKENS,
            needs=_needs(body),
            metadata={name: value for name, value in metadata.items() if name in router.metadata},
            headers={name.lower(): str(value) for name, value in headers.items() if name.lower() in router.headers},
            time_ms=_at(body, now_ms),
        ),
        own,
    )


def _of_tier(snapshot: Snapshot, auth: Any, caller: Caller, tier: str | None) -> Caller:
    """The caller in another tier, which only those may ask about who may also ask in it."""
    if tier is None or tier == caller.tier:
        return caller
    tiers = snapshot.settings.tiers
    if tier not in tiers:
        valid = ", ".join(sorted(tiers)) or "none are configured"
        raise BadField(f"tier: there is no tier {shown_name(tier)!r}{nearest(tier, tuple(tiers))}; valid: {valid}.")
    if not caller.trusted and not compat.may_read(auth):
        raise compat.forbidden("Only the proxy's administrators may ask about another tier; leave out `tier`.")
    return Caller(
        key_hash=caller.key_hash,
        key_alias=caller.key_alias,
        user_id=caller.user_id,
        team_id=caller.team_id,
        groups=caller.groups,
        tier=tier,
        tiers=(tier,),
        trusted=caller.trusted,
        is_admin=caller.is_admin,
    )


def _endpoint(body: Mapping[str, Any]) -> str:
    endpoint = text_of(body, "endpoint", LABEL_LENGTH) or _ENDPOINT
    if endpoint not in ENDPOINTS:
        hint = nearest(endpoint, ENDPOINTS)
        raise BadField(f"endpoint: {shown_name(endpoint)!r} is none{hint}; valid: {', '.join(ENDPOINTS)}.")
    return endpoint


def _needs(body: Mapping[str, Any]) -> frozenset[Need]:
    given = body.get("needs") or []
    valid = tuple(need.value for need in Need)
    if not isinstance(given, list):
        raise BadField(f"needs: must be a list of {', '.join(valid)}.")
    for one in cast("list[Any]", given):
        if one not in valid:
            said = f"{shown_name(one)!r} is none{nearest(one, valid)}" if isinstance(one, str) else "that is no text"
            raise BadField(f"needs: {said}; valid: {', '.join(valid)}.")
    return frozenset(Need(one) for one in cast("list[str]", given))


def _plain(body: Mapping[str, Any], name: str) -> Mapping[str, str | int | float | bool]:
    given = body.get(name)
    if given is None:
        return {}
    if not isinstance(given, dict) or len(cast("dict[str, Any]", given)) > _MOST_ENTRIES:
        raise BadField(f"{name}: must be a mapping of at most {_MOST_ENTRIES} names.")
    for key, value in cast("dict[str, Any]", given).items():
        if not isinstance(value, str | int | float | bool) or len(str(value)) > _LONGEST_VALUE:
            raise BadField(f"{name}.{shown_name(key)}: must be a text, a number, true or false.")
    return cast("Mapping[str, str | int | float | bool]", given)


def _folded(kind: str, name: str) -> str:
    return name.lower() if kind == "headers" else name


def _flag(body: Mapping[str, Any], name: str) -> bool:
    given = body.get(name, False)
    if not isinstance(given, bool):
        raise BadField(f"{name}: must be true or false.")
    return given


def _at(body: Mapping[str, Any], now_ms: int) -> int:
    text = text_of(body, "at", LABEL_LENGTH)
    if text is None:
        return now_ms
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError
        return max(0, int(moment.timestamp() * 1000))
    except (ValueError, OverflowError):
        raise BadField(
            f"at: must be a time with its zone, such as 2026-03-01T09:00:00Z, not {shown_name(text)!r}."
        ) from None
