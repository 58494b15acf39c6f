"""Whether a request may run, and on which model groups."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.context import NOTHING_CLAIMED, Caller, Claims, RequestContext, output_limit, read_claims
from core.errors import BadField, ModelNotAllowed
from custom_router.router import Plan, rank
from plugins import compat, payment
from plugins.batches import background
from plugins.exchange import Exchange
from plugins.listing import permitted_policies

if TYPE_CHECKING:
    from core.runtime import Runtime, Snapshot


async def admit(runtime: "Runtime", exchange: Exchange, auth: Any, data: dict[str, Any]) -> None:
    """Work out the request's context, rank its candidates and write them into `data`.

    Raises `BadField` for a claim of the wrong form and `ModelNotAllowed` where no candidate may be used.
    """
    snapshot = runtime.snapshot
    exchange.snapshot = snapshot
    exchange.principal = auth
    exchange.call = data.get("litellm_logging_obj")
    exchange.call_id = data.get("litellm_call_id")
    caller = snapshot.directory.caller(compat.principal_of(auth))
    try:
        claims = read_claims(exchange.headers, _own_metadata(data))
        caller = snapshot.directory.claimed(caller, claims)
    except BadField:
        # Refused, but with an owner in the books.
        exchange.context = _context(exchange, caller, data, NOTHING_CLAIMED)
        raise
    context = exchange.context = _context(exchange, caller, data, claims)
    background.check(snapshot, exchange.endpoint, data)
    _check_one_model(snapshot, exchange.endpoint, data)
    plan = rank(context, snapshot.policies, snapshot.access)
    allowed = [group for group in plan.candidates if await _key_may_use(exchange, group, plan)]
    if not allowed:
        raise ModelNotAllowed(
            _why_not(context, plan), details={"model": context.asked_model, "tier": context.caller.tier}
        )
    exchange.plan = plan
    await _enter(exchange, context, data, allowed)
    exchange.permits = dict.fromkeys(allowed, True)
    asked = allowed

    async def permitted_of(groups: Iterable[str]) -> list[str]:
        return [group for group in groups if await permitted(runtime, exchange, group)]

    allowed = await payment.first_attempt(exchange, data, allowed, permitted_of)
    _ask_for_usage(exchange, data, allowed)
    if plan.policy is not None or allowed != asked:
        data["model"] = allowed[0]
        data["fallbacks"] = allowed[1:]
    elif snapshot.enforces_access and data.get("fallbacks"):
        await _check_fallbacks(exchange, data["fallbacks"])


def _check_one_model(snapshot: "Snapshot", endpoint: str, data: Mapping[str, Any]) -> None:
    """Refuse a list of models: LiteLLM asks all of them, and only one would be decided about and paid for."""
    model = data.get("model")
    if not snapshot.counts_spending or model is None or model in snapshot.policies:
        return
    if not isinstance(model, str) or (endpoint == "chat_completions" and "," in model):
        raise BadField("model must be the name of one model while tiers or budgets are configured, not a list of them.")


async def _enter(exchange: Exchange, context: RequestContext, data: dict[str, Any], allowed: Sequence[str]) -> None:
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
    if context is None or not snapshot.enforces_access:
        return True
    answer = exchange.permits.get(group)
    if answer is None:
        answer = snapshot.access.permits(context.caller.tiers, group) and await _key_may_use(
            exchange, group, exchange.plan
        )
        exchange.permits[group] = answer
    return answer


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
        if snapshot.access.permits(caller.tiers, group) and (
            _granted(auth, name, policy.grants) or await compat.may_call(auth, group)
        ):
            return True
    return False


def _context(exchange: Exchange, caller: Caller, data: Mapping[str, Any], claims: Claims) -> RequestContext:
    asked = data.get("model")
    return RequestContext(
        request_id=exchange.request_id,
        endpoint=exchange.endpoint,
        caller=caller,
        asked_model=asked if isinstance(asked, str) else "",
        task_type=claims.task_type,
        priority=_priority(exchange, caller, claims.priority),
        session_id=claims.session_id,
        stream=data.get("stream") is True,
        input_bytes=exchange.body_bytes,
        output_limit=output_limit(data),
    )


def _priority(exchange: Exchange, caller: Caller, asked: int | None) -> int | None:
    """A request may put itself behind its tier's priority; only a trusted key may put it ahead."""
    tier = exchange.snapshot.settings.tiers.get(caller.tier) if exchange.snapshot and caller.tier else None
    own: int | None = tier.priority if tier else None
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


async def _key_may_use(exchange: Exchange, group: str, plan: Plan | None) -> bool:
    context = exchange.context
    if context is not None and group == context.asked_model:
        return True  # LiteLLM's authentication has just said so
    if (
        plan is not None
        and plan.policy is not None
        and group in plan.candidates
        and _granted(exchange.principal, plan.policy, plan.grants)
    ):
        return True
    return await compat.may_call(exchange.principal, group)


def _granted(auth: Any, policy: str, grants: bool) -> bool:
    return grants and compat.lists_by_name(auth, policy)


async def _check_fallbacks(exchange: Exchange, fallbacks: Any) -> None:
    """Fallbacks that the client names are refused rather than skipped, so that it learns of it."""
    snapshot = exchange.snapshot
    context = exchange.context
    assert snapshot is not None
    assert context is not None
    for fallback in fallbacks if isinstance(fallbacks, list) else [fallbacks]:
        group = fallback.get("model") if isinstance(fallback, dict) else fallback
        if isinstance(group, str) and not snapshot.access.permits(context.caller.tiers, group):
            message = f"The fallback {group!r} is not permitted to tier {context.caller.tier}."
            raise ModelNotAllowed(message, details={"model": group, "tier": context.caller.tier})


def _why_not(context: RequestContext, plan: Plan) -> str:
    asked = context.asked_model
    if plan.candidates:
        names = ", ".join(plan.candidates)
        return f"This key may use none of the models behind {asked!r} ({names}); GET /v1/models lists what it may use."
    return f"{asked!r} is not permitted to tier {context.caller.tier}; GET /v1/models lists what this key may use."
