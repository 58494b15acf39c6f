"""`POST /orchestration/budgets/explain`: which budgets apply to a request, and what would happen to it now.

The request is tried out by the very enforcement that real ones meet, on books that keep nothing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from fastapi import Request

from core.budgets import Applying, Balance, BudgetTerms, Charge
from core.budgets.books import Books
from core.budgets.coverage import bare_hash
from core.context import LABEL_LENGTH, Caller, Principal, RequestContext
from core.errors import BadField, BudgetExceeded, CostUnbounded, ModelNotAllowed, RequestRefused
from core.ids import new_request_id
from core.money import format_dollars
from core.runtime import Runtime
from core.settings.finding import shown_name
from core.settings.validation import nearest
from core.snapshot import Snapshot
from core.state.memory import MemoryReservations
from core.state.reservations import Claim, Reserved, Standing, TooLittle, Unopened
from custom_router.decision import Plan
from plugins import compat, route
from plugins.admin.access import ready
from plugins.admin.entries import json_body
from plugins.admin.standing import paused, period_of, service, shown
from plugins.budgets.enforcement import Asked, Enforcement
from plugins.budgets.output_limit import read_output_limit
from plugins.budgets.spending import Spending

_ENDPOINT = "chat_completions"
WHO = ("user_id", "team_id", "key")
_FIELDS = (*WHO, "model", "task_type", "input_tokens", "output_tokens")
INPUT_TOKENS = 1000
"""Of a request that is asked about without saying how many."""

_MOST_TOKENS = 1 << 31
_NO_LIMIT = 1 << 60
_LONGEST = 1024


@dataclass(frozen=True, slots=True)
class Question:
    """Whose request for what: input tokens are taken at their word, no output limit is asked for with None."""

    caller: Caller
    model: str
    task_type: str | None
    input_tokens: int
    output_tokens: int | None


async def explain(runtime: Runtime, auth: Any, request: Request) -> dict[str, Any]:
    """The budgets that apply, what each has left, and whether the request would be admitted, with which limit, by which
    model, or refused by which budget until when.

    The body has `model`, and for administrators `user_id`, `team_id` and `key` (its hash or alias); everybody else asks
    for themselves. Raises BadField, BudgetsUnavailable, and LiteLLM's 403 for who asks about others.
    """
    body = await json_body(request)
    await ready(runtime)
    assert runtime.store is not None
    books = await service().begun()
    await service().look(runtime.store)
    snapshot, now_ms = runtime.snapshot, int(runtime.clock() * 1000)
    question, own = _question(snapshot, auth, body)
    caller = question.caller
    context = RequestContext(
        *(new_request_id(), _ENDPOINT, caller, question.model, question.task_type),
        input_tokens=question.input_tokens,
        output_limit=question.output_tokens,
        time_ms=now_ms,
    )
    plan = (await route.router(snapshot)).decide(context, lambda group: True)
    candidates = [group for group in plan.candidates if not own or await _may_use(auth, plan, group)]
    applying = snapshot.catalog.applying(caller, question.task_type, question.model)
    charges = _charges(applying, candidates, now_ms)
    standings = await books.standings([charge.account for charge, _ in charges])
    trial = Trial(snapshot, question, applying, books, now_ms)

    async def permitted(groups: Iterable[str]) -> list[str]:
        allowed = [group for group in groups if snapshot.access.permits(caller.tiers, group)]
        return [group for group in allowed if not own or await _may_use(auth, plan, group)]

    outcome = await trial.run(candidates, permitted) if candidates else _not_allowed(question, plan)
    reserved = trial.reserved
    return {
        "caller": shown_caller(caller),
        "request": {
            "model": question.model,
            "candidates": candidates,
            "task_type": question.task_type,
            "input_tokens": question.input_tokens,
            "output_tokens": question.output_tokens,
        },
        "budgets": [
            {
                "budget_id": charge.budget.budget_id,
                "name": charge.budget.name,
                "why": why(charge.budget, caller, question, groups),
                "models": list(groups),
                "at_limit": charge.budget.at_limit.value,
                "paused": paused(charge.budget, by=compat.may_read(auth)),
                **period_of(charge.budget, now_ms),
                **shown(charge, standings.get(charge.account.key), now_ms),
                "would_reserve": reserved.get(charge.account.key),
            }
            for charge, groups in charges
        ],
        "outcome": outcome,
    }


def shown_caller(caller: Caller) -> dict[str, Any]:
    """Who asks, as JSON."""
    return {
        "user_id": caller.user_id,
        "team_id": caller.team_id,
        "groups": list(caller.groups),
        "tier": caller.tier,
    }


class Trial:
    """One request, tried out."""

    def __init__(self, snapshot: Snapshot, question: Question, applying: Applying, books: Books, now_ms: int) -> None:
        tier = snapshot.settings.tiers.get(question.caller.tier) if question.caller.tier else None
        body: dict[str, Any] = {"model": question.model}
        if question.output_tokens is not None:
            body["max_tokens"] = question.output_tokens
        # No text at all: what stands for its bytes is the number of tokens.
        self.asked = Asked(
            _ENDPOINT, body, question.input_tokens, question.task_type, tier.max_tokens if tier is not None else None
        )
        self.spending = Spending(new_request_id(), applying, books, now_ms)
        self._least_tokens = snapshot.settings.reservations.min_output_tokens

    @property
    def reserved(self) -> dict[str, str]:
        """Dollars that would be reserved, by account."""
        reservation = self.spending.reservation
        if reservation is None:
            return {}
        amounts = zip(reservation.charges, reservation.amounts, strict=True)
        return {charge.account.key: format_dollars(amount) for charge, amount in amounts}

    async def run(self, candidates: Sequence[str], permitted: Callable[..., Any]) -> dict[str, Any]:  # JSON
        """What would happen."""
        budgets = service()
        enforcement = Enforcement(
            Rehearsal(self.spending.books),
            budgets.expected,
            budgets.group,
            paused=lambda budget_id: budgets.paused.get(budget_id),
            min_output_tokens=self._least_tokens,
        )
        try:
            found = await enforcement.first_attempt(self.spending, self.asked, candidates, permitted)
        except (BudgetExceeded, CostUnbounded) as refusal:
            return _refused(refusal)
        reservation = self.spending.reservation
        terms = {charge.budget.key: charge.budget.budget_id for charge in self.spending.charges(found[0])}
        return {
            "result": "admitted",
            "model": found[0],
            "output_limit": read_output_limit(_ENDPOINT, self.asked.body),
            "clamped": self.asked.clamped,
            "degraded_by": sorted(terms.get(key, key.rpartition("~")[0]) for key in self.spending.degraded),
            "reserved": None if reservation is None else format_dollars(reservation.amount_nano),
        }


class Rehearsal:
    """Books that answer as the real ones would now, and keep nothing."""

    def __init__(self, real: Books) -> None:
        self._real = real

    async def reserve(self, lease: str, claims: Sequence[Claim], *, slack: int = 1) -> Reserved | TooLittle:
        if not claims:
            return Reserved(0, ())
        standings = await self._real.standings([claim.account for claim in claims])
        state = MemoryReservations()
        await state.finish(())
        for claim in claims:
            key = claim.account.key
            now = standings.get(key, Standing())
            await state.put([Balance(key, now.written_nano, now.extra_nano)], {})
            await state.settle(f"settled {key}", [key], now.settled_nano)
            await state.reserve(f"reserved {key}", [Claim(claim.account, _NO_LIMIT, (now.reserved_nano,))])
        outcome = await state.reserve(lease, claims, slack=slack)
        assert not isinstance(outcome, Unopened)
        return outcome

    async def sent(self, lease: str) -> bool:
        return True

    async def release(self, lease: str) -> None:
        return


def why(terms: BudgetTerms, caller: Caller, question: Question, groups: Sequence[str]) -> str:
    """Why a budget applies, in words."""
    coverage = terms.coverage
    parts: list[str] = []
    if coverage.users:
        parts.append(f"the user is {caller.user_id}")
    if coverage.teams:
        parts.append(f"the team is {caller.team_id}")
    if coverage.groups:
        parts.append(f"the user or team is in {', '.join(sorted(coverage.groups.intersection(caller.groups)))}")
    if coverage.keys:
        parts.append("the key is listed")
    if coverage.task_types:
        parts.append(f"the task type is {question.task_type}")
    if coverage.models:
        parts.append(f"the model is {' or '.join(groups)}")
    covers = " and ".join(parts) or "it covers every request"
    return f"{covers}; each {terms.per} has its own" if terms.per is not None else covers


def _charges(applying: Applying, groups: Sequence[str], now_ms: int) -> list[tuple[Charge, list[str]]]:
    """The accounts that some candidate is charged to, with those candidates."""
    found: dict[str, tuple[Charge, list[str]]] = {}
    for group in groups:
        for charge in applying.charges(group, now_ms):
            found.setdefault(charge.account.key, (charge, []))[1].append(group)
    return list(found.values())


def _refused(refusal: RequestRefused) -> dict[str, Any]:  # JSON
    return {
        "result": "refused",
        "status": refusal.status,
        "code": refusal.code,
        "message": refusal.message,
        "budget_id": refusal.details.get("budget_id"),
        "until": refusal.details.get("resets_at"),
        "details": refusal.details,
    }


def _not_allowed(question: Question, plan: Plan) -> dict[str, Any]:  # JSON
    reasons = "; ".join(f"{group}: {reason}" for group, reason in plan.left_out)
    return _refused(
        ModelNotAllowed(f"No model behind {question.model!r} may be used{f' ({reasons})' * bool(reasons)}.")
    )


async def _may_use(auth: Any, plan: Plan, group: str) -> bool:
    """Whether LiteLLM lets the key call the group, or the policy that it lists by name grants it."""
    if plan.policy is not None and plan.grants and compat.lists_by_name(auth, plan.policy):
        return True
    return await compat.may_call(auth, group)


# -- what a body says ------------------------------------------------------------------------------------------------


def _question(snapshot: Snapshot, auth: Any, body: Mapping[str, Any]) -> tuple[Question, bool]:
    """The question, and whether it is about the key that asks."""
    check_fields(body, _FIELDS)
    model = text_of(body, "model")
    if model is None:
        raise BadField("model: say which model or policy is asked for.")
    caller, own = asker(snapshot, auth, body)
    question = Question(
        caller=caller,
        model=model,
        task_type=text_of(body, "task_type", LABEL_LENGTH),
        input_tokens=count_of(body, "input_tokens", 0) if "input_tokens" in body else INPUT_TOKENS,
        output_tokens=count_of(body, "output_tokens", 1) if body.get("output_tokens") is not None else None,
    )
    return question, own


def asker(snapshot: Snapshot, auth: Any, body: Mapping[str, Any]) -> tuple[Caller, bool]:
    """Whom a body asks about, by the fields in `WHO`, and whether that is the key that asks: administrators may ask
    about anybody, everybody else about themselves. Raises BadField, and LiteLLM's 403."""
    asked = {name: text for name in WHO if (text := text_of(body, name)) is not None}
    own = snapshot.directory.caller(compat.principal_of(auth))
    if asked and not compat.may_read(auth):
        known = {"user_id": own.user_id, "team_id": own.team_id}
        if any(known.get(name) != text for name, text in asked.items()):
            raise compat.forbidden("Only the proxy's administrators may ask about others; leave out who it is about.")
        asked = {}
    return (_caller(snapshot, asked) if asked else own), not asked


def check_fields(body: Mapping[str, Any], valid: tuple[str, ...]) -> None:
    """Raises BadField for a field that is not one of `valid`."""
    for name in body:
        if name not in valid:
            raise BadField(f"{shown_name(name)}: unknown field{nearest(name, valid)}", details={"valid": valid})


def _caller(snapshot: Snapshot, asked: Mapping[str, str]) -> Caller:
    """Whoever an administrator asks about; a user with one key in the configuration is asked about with that key."""
    directory = snapshot.directory
    user_id, key = asked.get("user_id"), asked.get("key")
    known = directory.entries
    if key is not None:
        named = bare_hash(key)
        is_hash = named in known or (len(named) == _HASH and set(named) <= set("0123456789abcdef"))
        principal = Principal(key_hash=named if is_hash else None, key_alias=None if is_hash else key)
        of_alias = [key_hash for key_hash, entry in known.items() if not is_hash and entry.user_id == key]
    else:
        principal = Principal()
        of_alias = [key_hash for key_hash, entry in known.items() if user_id is not None and entry.user_id == user_id]
    if len(of_alias) == 1 and "team_id" not in asked:
        principal = replace(principal, key_hash=of_alias[0])
    return directory.caller(replace(principal, user_id=user_id, team_id=asked.get("team_id")))


_HASH = 64


def text_of(body: Mapping[str, Any], name: str, longest: int = _LONGEST) -> str | None:
    """A text of the body, None where it is not there. Raises BadField."""
    given = body.get(name)
    if given is None:
        return None
    if not isinstance(given, str) or not 0 < len(given) <= longest or not given.isprintable():
        raise BadField(f"{name}: must be a text of 1 to {longest} printable characters.")
    return given


def count_of(body: Mapping[str, Any], name: str, least: int) -> int:
    """A number of tokens of the body. Raises BadField."""
    given = cast("object", body[name])
    if not isinstance(given, int) or isinstance(given, bool) or not least <= given <= _MOST_TOKENS:
        raise BadField(f"{name}: must be a whole number of tokens from {least}.")
    return given
