"""Whether a request may run, and on which model groups."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.context import NOTHING_CLAIMED, Caller, Claims, Need, RequestContext, output_limit, read_claims
from core.errors import BadField, ModelNotAllowed, NoCapableModel
from core.settings.models import Tier
from custom_router.decision import Plan
from custom_router.router import Router
from plugins import compat, payment, route
from plugins.batches import background
from plugins.budgets.enforcement import Part
from plugins.caching import inputs, namespaces
from plugins.caching import service as caching
from plugins.exchange import Exchange
from plugins.listing import permitted_policies
from plugins.routing.fields import put_in_front, set_fields
from plugins.routing.needs import input_tokens_of, needs_of

if TYPE_CHECKING:
    from core.runtime import Runtime, Snapshot


async def admit(runtime: "Runtime", exchange: Exchange, auth: Any, data: dict[str, Any]) -> None:
    """Work out the request's context, rank its candidates and write them into `data`.

    Raises `BadField` for a claim of the wrong form and `ModelNotAllowed` where no candidate may be used.
    """
    exchange.principal = auth
    exchange.call = data.get("litellm_logging_obj")
    exchange.call_id = data.get("litellm_call_id")
    if exchange.repeated:
        await _admit_again(runtime, exchange, data)
        return
    snapshot = runtime.snapshot
    exchange.snapshot = snapshot
    router = exchange.router = await route.router(snapshot)
    exchange.loads = route.loads()
    caller = snapshot.directory.caller(compat.principal_of(auth))
    try:
        claims = read_claims(exchange.headers, _own_metadata(data))
        caller = snapshot.directory.claimed(caller, claims)
    except BadField:
        # Refused, but with an owner in the books.
        exchange.context = _context(exchange, caller, data, NOTHING_CLAIMED)
        raise
    context = exchange.context = _context(exchange, caller, data, claims, router)
    background.check(snapshot, exchange.endpoint, data)
    _check_one_model(snapshot, exchange.endpoint, data)
    plan = exchange.plan = await _planned(exchange, router, context)
    allowed = list(plan.candidates)
    if not allowed:
        raise _refusal(context, plan)
    if plan.policy is None:
        _check_fallbacks(snapshot, context, router, plan, data)
    if exchange.arrival is not None:
        exchange.arrival.accepted(auth, context.asked_model)
    await caching.look(exchange)
    part = inputs.part_of(exchange, data)
    await _enter(exchange, context, data if part is None else part.body, allowed)
    # Whatever else LiteLLM or a budget comes up with is asked about when it does: no tier or rule has had a say in it.
    exchange.permits = dict.fromkeys(allowed, True) | dict.fromkeys((name for name, _ in plan.left_out), False)
    exchange.granted = exchange.granted.intersection(allowed)
    _write(exchange, plan, data)
    paid = await _paid(runtime, exchange, data, allowed, part=part)
    exchange.admitted = True
    if plan.policy is not None or paid != allowed:
        _go_to(data, paid)


async def _admit_again(runtime: "Runtime", exchange: Exchange, data: dict[str, Any]) -> None:
    """An attempt has failed of which LiteLLM's router does not learn: the request comes by again, for what its course
    has left to try."""
    context, plan, course = exchange.context, exchange.plan, exchange.course
    assert context is not None
    assert plan is not None
    assert course is not None
    _write(exchange, plan, data)
    paid = await _paid(runtime, exchange, data, course.left(), frozenset(course.tried))
    if paid != [context.asked_model]:
        _go_to(data, paid)
        data["max_fallbacks"] = len(paid)


async def _paid(
    runtime: "Runtime",
    exchange: Exchange,
    data: dict[str, Any],
    groups: list[str],
    tried: frozenset[str] = frozenset(),
    part: Part | None = None,
) -> list[str]:
    """The first of the groups that is paid for, and those behind it; in `data` is what they have to be told. `part` is
    what is sent of it where that is not all."""

    async def permitted_of(others: Iterable[str]) -> list[str]:
        return [one for one in others if one not in tried and await permitted(runtime, exchange, one)]

    paid = await payment.first_attempt(exchange, data, groups, permitted_of, part)
    _ask_for_usage(exchange, data, paid)
    namespaces.separate(exchange, data)
    return paid


def _go_to(data: dict[str, Any], groups: list[str]) -> None:
    """Have LiteLLM ask these groups, and no others."""
    for name in _FALLBACKS:
        data.pop(name, None)
    data["model"] = groups[0]
    data["fallbacks"] = groups[1:]


async def foresee(runtime: "Runtime", exchange: Exchange, auth: Any, body: Mapping[str, Any]) -> bool:
    """Context and plan of a request from its body as it was sent, for a caller whom LiteLLM has accepted a moment ago.

    False where that is for LiteLLM's pipeline to find out, and for `admit` to refuse.
    """
    metadata, model = body.get("metadata"), body.get("model")
    if isinstance(metadata, dict) and "requester_metadata" in metadata:
        return False
    if not isinstance(model, str) or "," in model or any(name in body for name in _FALLBACKS):
        return False
    snapshot = exchange.snapshot = runtime.snapshot
    exchange.principal = auth
    router = await route.router(snapshot)
    try:
        claims = read_claims(exchange.headers, metadata if isinstance(metadata, dict) else None)
        caller = snapshot.directory.claimed(snapshot.directory.caller(compat.principal_of(auth)), claims)
    except BadField:
        return False
    exchange.context = _context(exchange, caller, body, claims, router)
    exchange.plan = await _planned(exchange, router, exchange.context)
    return bool(exchange.plan.candidates)


async def _planned(exchange: Exchange, router: Router, context: RequestContext) -> Plan:
    """The plan, with what LiteLLM says of each group that the request may come to."""
    asked = context.asked_model
    groups = router.groups(asked)
    policy = router.policies.get(asked)
    if policy is not None and policy.grants and compat.lists_by_name(exchange.principal, asked):
        exchange.granted = frozenset(groups)
    permits = exchange.permits = {group: await _key_may_use(exchange, group) for group in groups}
    if exchange.arrival is not None and exchange.context is not None:
        plan = exchange.arrival.plan_for(exchange.snapshot, exchange.context, permits)
        if plan is not None:
            return plan
    return await route.plan(router, context, permits.__getitem__)


def _write(exchange: Exchange, plan: Plan, data: dict[str, Any]) -> None:
    """What rules and variants set, before anything is reserved for it; once, though a request may come by twice."""
    if exchange.written or not (plan.set or plan.system_prefix):
        return
    exchange.written = True
    dialect = payment.dialect(exchange.endpoint, data)
    set_fields(dialect, data, plan.set)
    if plan.system_prefix is not None:
        added = put_in_front(dialect, data, plan.system_prefix)
        exchange.body_bytes += 0 if exchange.repeated else added


def _check_one_model(snapshot: "Snapshot", endpoint: str, data: Mapping[str, Any]) -> None:
    """Refuse a list of models: LiteLLM asks all of them, and only one would be decided about and paid for."""
    model = data.get("model")
    if not snapshot.counts_spending or model is None or model in snapshot.policies:
        return
    if not isinstance(model, str) or (endpoint == "chat_completions" and "," in model):
        raise BadField("model must be the name of one model while tiers or budgets are configured, not a list of them.")


async def _enter(exchange: Exchange, context: RequestContext, data: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Rates, parallel requests, a place inside; once, though a request may come by twice."""
    if exchange.visit is None and exchange.entrance is not None:
        exchange.visit = await exchange.entrance.enter(
            context,
            count_input=lambda: payment.exact_input(exchange.endpoint, data, allowed[0]),
            left=exchange.left,
        )


def _ask_for_usage(exchange: Exchange, data: dict[str, Any], groups: list[str]) -> None:
    """Have a completion stream report its usage, as LiteLLM does for chat streams; the edge hides it from who did not
    ask."""
    if exchange.endpoint != "completions" or data.get("stream") is not True:
        return
    options = data.get("stream_options")
    options = options if isinstance(options, dict) else {}
    if "include_usage" not in options and compat.reports_stream_usage(groups):
        data["stream_options"] = {**options, "include_usage": True}
        exchange.hides_usage = True


def refused_before_us(runtime: "Runtime", exchange: Exchange, auth: Any, data: Mapping[str, Any]) -> None:
    """A request that LiteLLM refused to a known key before our hook ran: enough context for the books to name its
    owner."""
    directory = runtime.snapshot.directory
    if exchange.context is not None or not (auth.token or directory.knows(auth.api_key)):
        return  # LiteLLM hashes whatever was presented into `api_key`; that alone makes nobody known
    exchange.snapshot = runtime.snapshot
    exchange.context = _context(exchange, directory.caller(compat.principal_of(auth)), data, NOTHING_CLAIMED)


async def permitted(runtime: "Runtime", exchange: Exchange, group: str) -> bool:
    """Whether the group LiteLLM is about to try may serve the exchange; answers are remembered for its duration."""
    snapshot: Snapshot = exchange.snapshot or runtime.snapshot
    context = exchange.context
    if context is None:
        return True
    answer = exchange.permits.get(group)
    if answer is None:
        answer = not _barred(exchange, group) and (
            not snapshot.enforces_access
            or (snapshot.access.permits(context.caller.tiers, group) and await _key_may_use(exchange, group))
        )
        exchange.permits[group] = answer
    return answer


async def check_named(runtime: "Runtime", exchange: Exchange, deployment: str, group: str) -> None:
    """LiteLLM is about to call a deployment that was asked for by its id, as a client may, or a fallback in its
    configuration: that is to ask for its group. Raises `ModelNotAllowed`."""
    context = exchange.context
    if context is not None and context.asked_model == deployment:
        exchange.granted |= {group}  # LiteLLM lets the key call it by this name
    if not await permitted(runtime, exchange, group):
        tier = context.caller.tier if context is not None else None
        message = f"{deployment!r} is a deployment of {group!r}, which may not serve this request; GET /v1/models lists"
        raise ModelNotAllowed(
            f"{message} what this key may use.", details={"model": group, "deployment": deployment, "tier": tier}
        )


def _barred(exchange: Exchange, group: str) -> bool:
    """Whether the rules that the request follows keep it from a group that is not in its plan."""
    plan, router = exchange.plan, exchange.router
    return plan is not None and router is not None and router.bars(plan, group)


def enabled(runtime: "Runtime", deployments: list[Any]) -> list[Any]:
    """The deployments that administrators have not switched off."""
    disabled = runtime.disabled_deployments
    return (
        [one for one in deployments if (one.get("model_info") or {}).get("id") not in disabled]
        if disabled
        else deployments
    )


async def listed(runtime: "Runtime", auth: Any, names: Sequence[str]) -> list[str]:
    """Those of `names` the key may use: LiteLLM has already left out what it would not let the key call.

    Also notes for the edge which policies the key may use, named or not.
    """
    snapshot = runtime.snapshot
    caller = snapshot.directory.caller(compat.principal_of(auth))
    policies = permitted_policies.get()
    usable = {name: await _may_use_policy(snapshot, caller, auth, name) for name in snapshot.policies}
    if policies is not None:
        for name, permitted in usable.items():
            if permitted and (name in names or await compat.may_call(auth, name)):
                policies.append(name)
    return [name for name in names if (usable[name] if name in usable else snapshot.access.permits(caller.tiers, name))]


async def _may_use_policy(snapshot: "Snapshot", caller: Caller, auth: Any, name: str) -> bool:
    policy = snapshot.policies[name]
    for group in policy.candidates:
        granted = policy.grants and compat.lists_by_name(auth, name)
        if snapshot.access.permits(caller.tiers, group) and (granted or await compat.may_call(auth, group)):
            return True
    return False


def _context(
    exchange: Exchange, caller: Caller, data: Mapping[str, Any], claims: Claims, router: Router | None = None
) -> RequestContext:
    """`router` says what has to be known: to look into a request takes time."""
    asked = data.get("model")
    if not asked and exchange.snapshot is not None and (tier := _tier(exchange, caller)) is not None:
        asked = tier.default_policy
    asked = asked if isinstance(asked, str) else ""
    looks = router is not None and router.looks_into(asked)
    return RequestContext(
        request_id=exchange.request_id,
        endpoint=exchange.endpoint,
        caller=caller,
        asked_model=asked,
        task_type=claims.task_type,
        priority=priority_of(_tier(exchange, caller), caller, claims.priority),
        session_id=claims.session_id,
        stream=data.get("stream") is True,
        input_bytes=exchange.body_bytes,
        output_limit=output_limit(data),
        input_tokens=input_tokens_of(exchange.endpoint, data, exchange.body_bytes) if looks else 0,
        needs=needs_of(exchange.endpoint, data) if looks else _NO_NEEDS,
        metadata=_plain(_own_metadata(data), router.metadata) if router is not None else _NOTHING,
        headers=_told(exchange.headers, router.headers) if router is not None else _NOTHING,
        time_ms=exchange.time_ms,
    )


_NO_NEEDS = frozenset[Need]()
_NOTHING: dict[str, Any] = {}


def _plain(metadata: Mapping[str, Any] | None, wanted: frozenset[str]) -> Mapping[str, str | int | float | bool]:
    """What conditions look at and can compare."""
    if not metadata or not wanted:
        return _NOTHING
    return {name: value for name in wanted if isinstance(value := metadata.get(name), str | int | float | bool)}


def _told(headers: list[tuple[bytes, bytes]], wanted: frozenset[str]) -> Mapping[str, str]:
    if not wanted:
        return _NOTHING
    names = [(name.decode("latin-1"), value) for name, value in headers]
    return {name: value.decode("latin-1") for name, value in names if name in wanted}


def _tier(exchange: Exchange, caller: Caller) -> Any:
    return exchange.snapshot.settings.tiers.get(caller.tier) if exchange.snapshot and caller.tier else None


def priority_of(tier: Tier | None, caller: Caller, asked: int | None) -> int | None:
    """A request may put itself behind its tier's priority; only a trusted key may put it ahead."""
    own = tier.priority if tier is not None else None
    if asked is None or own is None or caller.trusted:
        return own if asked is None else asked
    return max(own, asked)


def _own_metadata(data: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The `metadata` the client sent: LiteLLM keeps a copy where it mixes its own into the same field."""
    metadata = data.get("metadata")
    if not isinstance(metadata, dict):
        return None
    sent = metadata.get("requester_metadata", metadata)
    return sent if isinstance(sent, dict) else None


async def _key_may_use(exchange: Exchange, group: str) -> bool:
    context = exchange.context
    if context is not None and group == context.asked_model:
        return True  # LiteLLM's authentication has just said so
    return group in exchange.granted or await compat.may_call(exchange.principal, group)


_FALLBACKS = ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks")


def _check_fallbacks(
    snapshot: "Snapshot", context: RequestContext, router: Router, plan: Plan, data: Mapping[str, Any]
) -> None:
    """Fallbacks that the client names are refused rather than skipped, so that it learns of it. LiteLLM takes the id of
    a deployment as well, and then asks nobody which deployments may serve."""
    if not snapshot.enforces_access and not plan.rules:
        return
    if data.keys().isdisjoint(_FALLBACKS):
        return
    for group in (name for field in _FALLBACKS if field in data for name in _named(data[field])):
        tier = context.caller.tier
        if not snapshot.access.permits(context.caller.tiers, group):
            reason = f"is not permitted to tier {tier}"
        elif router.bars(plan, group):
            reason = "is excluded by a rule"
        elif not router.candidate_of(group).deployments:
            reason = "is no model"
        else:
            continue
        message = f"The fallback {group!r} {reason}; GET /v1/models lists what this key may use."
        raise ModelNotAllowed(message, details={"model": group, "tier": tier})


def _named(fallbacks: Any) -> Iterator[str]:
    """The names in a list of models, of mappings that name one, or of mappings from a model to its fallbacks."""
    if isinstance(fallbacks, str):
        yield fallbacks
    elif isinstance(fallbacks, list):
        for one in fallbacks:
            yield from _named(one)
    elif isinstance(fallbacks, dict):
        for one in [fallbacks["model"]] if "model" in fallbacks else fallbacks.values():
            yield from _named(one)


def _refusal(context: RequestContext, plan: Plan) -> Exception:
    asked, tier = context.asked_model, context.caller.tier
    details: dict[str, Any] = {"model": asked, "tier": tier}
    if plan.denied is not None:
        return ModelNotAllowed(plan.denied, details={**details, "rule": plan.denied_by})
    reasons = dict(plan.left_out)
    if plan.policy is None:
        message = f"{asked!r} cannot be used: {reasons[asked]}; GET /v1/models lists what this key may use."
        return ModelNotAllowed(message, details=details)
    told = "; ".join(f"{name}: {reason}" for name, reason in plan.left_out)
    if plan.incapable:
        return NoCapableModel(f"No model behind {asked!r} can serve this request ({told}).", details=details)
    message = f"None of the models behind {asked!r} may be used ({told}); GET /v1/models lists what this key may use."
    return ModelNotAllowed(message, details=details)
