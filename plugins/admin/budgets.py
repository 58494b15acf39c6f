"""`/orchestration/budgets/…` beside their configuration: how they stand, and what administrators do to them."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from core.audit import AuditRecord
from core.budgets import Account, Balance, BudgetTerms, Charge, Per
from core.budgets.coverage import bare_hash
from core.errors import BadField, BudgetsUnavailable, IdTaken, NotFound, StoreUnavailable
from core.ids import new_request_id
from core.money import format_dollars, nano_dollars, to_dollars
from core.runtime import Runtime
from core.settings.finding import shown_name
from core.settings.validation import nearest
from core.state.reservations import Standing, StateAway
from plugins.admin.access import AnyKey, Changer, Reader, actor_of, answered, ready
from plugins.admin.entries import json_body
from plugins.admin.explain import explain
from plugins.admin.paging import limit_of
from plugins.admin.standing import Standings, charge_of, paused, period_of, service, shown
from plugins.budgets.refusals import moment

if TYPE_CHECKING:
    from core.store import Store

BUDGETS = "budgets"
"""The signal by which an instance tells the others that something about budgets was changed."""

_FRESH_SECONDS = 2.0
_FLUSH_SECONDS = 10.0
_LONGEST_MEMBER = 1024
_LONGEST_REASON = 500
_LONGEST_ID = 128
_MOST_DOLLARS = 1_000_000_000

Action = Callable[["Budgets", str, dict[str, Any], str], Awaitable[dict[str, Any]]]


def budgets_router(runtime: Runtime) -> APIRouter:
    """To be included before the routes of entries, whose addresses these go on from."""
    router = APIRouter()
    budgets = Budgets(runtime)

    @router.post("/budgets/explain", summary="Which budgets apply to a request, and what would happen to it")
    async def explain_request(auth: AnyKey, request: Request) -> Response:
        return await answered(explain(runtime, auth, request))

    @router.get("/budgets/{budget_id}/members", summary="What each member has spent this period, most spent first")
    async def get_members(_: Reader, budget_id: str, request: Request) -> Response:
        return await answered(budgets.members(budget_id, dict(request.query_params)))

    @router.get("/budgets/{budget_id}/history", summary="Past periods, and what was adjusted in this one")
    async def get_history(_: Reader, budget_id: str, request: Request) -> Response:
        return await answered(budgets.history(budget_id, dict(request.query_params)))

    for word, action in _ACTIONS.items():
        _add_action(router, budgets, word, action)
    return router


def _add_action(router: APIRouter, budgets: "Budgets", word: str, action: Action) -> None:
    @router.post(f"/budgets/{{budget_id}}/{word}", summary=_SUMMARIES[word], name=f"{word}_budget")
    async def act(auth: Changer, budget_id: str, request: Request) -> Response:
        async def done() -> dict[str, Any]:
            return await action(budgets, budget_id, await json_body(request, optional=True), actor_of(auth))

        return await answered(done())


@dataclass(slots=True)
class Budgets:
    """The budgets in force, as administrators see and change them. Every method raises NotFound for a budget that
    is not there, BadField for what cannot be understood, and StoreError while the store does not answer."""

    runtime: Runtime
    _telling: asyncio.Task[bool] | None = None

    # -- seen ------------------------------------------------------------------------------------------------------

    async def standing(self, budget_id: str) -> dict[str, Any]:
        """How a budget stands now; of one that is given to each member, only what is the same for all."""
        terms = self._terms(budget_id)
        now_ms = self._now_ms()
        told = {**period_of(terms, now_ms), "paused": paused(terms), "per": terms.per}
        if terms.per is not None:
            return told | {"total": format_dollars(terms.total_nano)}
        charge = charge_of(terms, "", now_ms)
        found = await Standings.of([charge.account])
        return told | shown(charge, found.by_key.get(charge.account.key), now_ms) | _trouble(found.trouble)

    async def members(self, budget_id: str, query: Mapping[str, str]) -> dict[str, Any]:
        """A page of members that have spent in this period, or with `member` the one: `{"members": [...],
        "next_cursor": str | null}`."""
        limit = limit_of(query)
        await ready(self.runtime)
        terms = self._terms(budget_id)
        now_ms = self._now_ms()
        cursor: str | None = None
        if "member" in query:
            charge = charge_of(terms, _member(terms, query["member"]), now_ms)
            found = await Standings.of([charge.account])
            charges, balances = [charge], dict[str, Balance]()
        else:
            assert self.runtime.ledger is not None
            await self.runtime.ledger.flush(within=_FRESH_SECONDS)
            start_ms = terms.calendar.at(now_ms).start_ms
            try:
                page = await self._store.budgets.spend(terms.key, start_ms, limit, query.get("cursor") or None)
            except ValueError as error:
                raise BadField(f"cursor: {error}.") from None
            balances, cursor = {balance.key: balance for balance in page.balances}, page.cursor
            charges = [charge_of(terms, Account.parse(key).member, now_ms) for key in balances]
            found = await Standings.of([charge.account for charge in charges], opening=False)

        def known(charge: Charge) -> Standing | None:
            balance = balances.get(charge.account.key)
            in_store = None if balance is None else Standing(balance.spent_nano, extra_nano=balance.extra_nano)
            return found.by_key.get(charge.account.key, in_store)

        shown_members = [shown(charge, known(charge), now_ms) for charge in charges]
        return {
            **period_of(terms, now_ms),
            "members": shown_members,
            "next_cursor": cursor,
            **_trouble(found.trouble),
        }

    async def history(self, budget_id: str, query: Mapping[str, str]) -> dict[str, Any]:
        """What was spent in each period, newest first, and what was adjusted in the present one."""
        limit = limit_of(query)
        await ready(self.runtime)
        terms = self._terms(budget_id)
        member = _member(terms, query.get("member"))
        assert self.runtime.ledger is not None
        await self.runtime.ledger.flush(within=_FRESH_SECONDS)
        periods = await self._store.budgets.history(terms.key, member, limit)
        account = terms.account(member, self._now_ms())
        adjustments = await self._store.budgets.adjustments(account)
        return {
            "member": member or None,
            "periods": [_past(terms, balance) for balance in periods],
            "adjustments": [
                {
                    "kind": one.kind.value,
                    "amount": format_dollars(one.amount_nano),
                    "at": moment(one.time_ms),
                    "by": one.actor,
                    "reason": one.reason,
                }
                for one in adjustments
            ],
        }

    # -- changed ---------------------------------------------------------------------------------------------------

    async def grant(self, budget_id: str, body: dict[str, Any], actor: str) -> dict[str, Any]:
        """Top up the present period of an account, once for each `id`. Raises IdTaken."""
        _check_fields(body, "member", "amount", "reason", "id")
        amount, reason, name = _amount(body), _reason(body), _id(body)
        return await self._adjust(budget_id, "grant", body, reason, actor, amount, name)

    async def reset(self, budget_id: str, body: dict[str, Any], actor: str) -> dict[str, Any]:
        """Forgive what an account has spent in the present period."""
        _check_fields(body, "member", "reason")
        reason = _reason(body)
        await ready(self.runtime)
        assert self.runtime.ledger is not None
        if not await self.runtime.ledger.flush(within=_FLUSH_SECONDS):
            raise StoreUnavailable(
                "Not all that was spent is in the store yet, and a reset forgives what is there; try again."
            )
        return await self._adjust(budget_id, "reset", body, reason, actor)

    async def pause(self, budget_id: str, body: dict[str, Any], actor: str) -> dict[str, Any]:
        """Have a budget admit nothing until it is resumed."""
        _check_fields(body, "reason")
        reason, now_ms = _reason(body), self._now_ms()
        await ready(self.runtime)
        self._terms(budget_id)
        changed = await self._store.budgets.pause(budget_id, actor, reason, now_ms)
        return await self._switched(budget_id, "pause", changed, reason, actor)

    async def resume(self, budget_id: str, body: dict[str, Any], actor: str) -> dict[str, Any]:
        """End a pause."""
        _check_fields(body, "reason")
        reason = _reason(body) if body.get("reason") is not None else ""
        await ready(self.runtime)
        self._terms(budget_id)
        changed = await self._store.budgets.resume(budget_id)
        return await self._switched(budget_id, "resume", changed, reason, actor)

    async def _switched(self, budget_id: str, word: str, changed: bool, reason: str, actor: str) -> dict[str, Any]:
        await service().begun()
        await service().look(self._store)
        if changed:
            self._tell()
            await self._note(budget_id, word, actor, {"reason": reason})
        return {"id": budget_id, "changed": changed, "paused": paused(self._terms(budget_id))}

    async def _adjust(
        self,
        budget_id: str,
        kind: str,
        body: dict[str, Any],
        reason: str,
        actor: str,
        amount_nano: int = 0,
        name: str | None = None,
    ) -> dict[str, Any]:
        from core.store import Adjustment, AdjustmentKind, RecordRefused

        await ready(self.runtime)
        books = await service().begun()
        await service().look(self._store)
        terms, now_ms = self._terms(budget_id), self._now_ms()
        charge = charge_of(terms, _member(terms, body.get("member")), now_ms)
        account = charge.account
        try:
            # Opens it as a request would: with what was spent before and what was carried over.
            [before] = await service().balances([account])
        except StateAway as error:
            raise BudgetsUnavailable(f"Shared state is away: {error}", headers={"retry-after": "5"}) from error
        ours = f"{kind}|{budget_id}|{name or new_request_id()}"
        wanted = Adjustment(ours, account, AdjustmentKind(kind), now_ms, actor, reason, amount_nano)
        try:
            after = await self._store.budgets.adjust(wanted)
        except RecordRefused:
            raise _taken(name) from None
        [made] = [one for one in await self._store.budgets.adjustments(account) if one.id == ours]
        if kind == "grant" and made.amount_nano != amount_nano:
            raise _taken(name)
        await books.told(account, after)
        self._tell()
        if made == wanted or kind == "reset":
            detail = {
                "member": account.member or None,
                "amount": format_dollars(made.amount_nano),
                "reason": reason,
                "before": _balance(before),
                "after": _balance(after),
            }
            await self._note(budget_id, kind, actor, detail)
        found = await Standings.of([account])
        return {
            "id": budget_id,
            "amount": format_dollars(made.amount_nano),
            "standing": shown(charge, found.by_key.get(account.key), now_ms) | _trouble(found.trouble),
        }

    # -- details ---------------------------------------------------------------------------------------------------

    @property
    def _store(self) -> "Store":
        assert self.runtime.store is not None
        return self.runtime.store

    def _now_ms(self) -> int:
        return int(self.runtime.clock() * 1000)

    def _terms(self, budget_id: str) -> BudgetTerms:
        catalog = self.runtime.snapshot.catalog
        terms = catalog.budget(budget_id)
        if terms is None:
            hint = nearest(budget_id, tuple(one.budget_id for one in catalog))
            raise NotFound(f"There is no budget {shown_name(budget_id[:_LONGEST_ID])!r}{hint}.")
        return terms

    def _tell(self) -> None:
        if self.runtime.signals is not None:
            self._telling = asyncio.create_task(self.runtime.signals.tell(BUDGETS, {}))

    async def _note(self, budget_id: str, word: str, actor: str, detail: dict[str, Any]) -> None:
        text = json.dumps(detail, ensure_ascii=False)
        await self.runtime.note(
            AuditRecord(self._now_ms(), actor, f"budget.{word}", f"budgets/{budget_id}", detail=text)
        )


_ACTIONS: dict[str, Action] = {
    "grant": Budgets.grant,
    "reset": Budgets.reset,
    "pause": Budgets.pause,
    "resume": Budgets.resume,
}
_SUMMARIES = {
    "grant": "Top up the present period of a budget, or of one of its members",
    "reset": "Forgive what was spent in the present period",
    "pause": "Have a budget admit nothing until it is resumed",
    "resume": "End the pause of a budget",
}


def _past(terms: BudgetTerms, balance: Balance) -> dict[str, Any]:
    start_ms = Account.parse(balance.key).start_ms
    period = terms.calendar.at(start_ms)
    ends = period.end_ms is not None
    return {
        "started_at": moment(start_ms) if ends else None,
        "ended_at": moment(period.end_ms) if period.end_ms is not None else None,
        **_balance(balance),
    }


def _balance(balance: Balance) -> dict[str, str]:
    return {"spent": format_dollars(balance.spent_nano), "extra": format_dollars(balance.extra_nano)}


def _trouble(trouble: str | None) -> dict[str, str]:
    return {} if trouble is None else {"trouble": trouble}


def _taken(name: str | None) -> IdTaken:
    return IdTaken(f"The id {name!r} was used for another adjustment; give this one an id of its own.")


# -- what a body says ------------------------------------------------------------------------------------------------


def _check_fields(body: Mapping[str, Any], *valid: str) -> None:
    for name in body:
        if name not in valid:
            raise BadField(f"{shown_name(name)}: unknown field{nearest(name, valid)}", details={"valid": valid})


def _member(terms: BudgetTerms, given: object) -> str:
    if terms.per is None:
        if given is not None:
            raise BadField(f"member: the budget {terms.budget_id!r} is shared by all it covers; leave it out.")
        return ""
    if not isinstance(given, str) or not 0 < len(given) <= _LONGEST_MEMBER or "\0" in given:
        raise BadField(f"member: say whose; the budget {terms.budget_id!r} is given to each {terms.per}.")
    return bare_hash(given) if terms.per is Per.KEY else given


def _reason(body: Mapping[str, Any]) -> str:
    given = body.get("reason")
    if not isinstance(given, str) or not given.strip() or len(given) > _LONGEST_REASON or not given.isprintable():
        raise BadField(f"reason: say why, in a line of at most {_LONGEST_REASON} characters; it is kept in the audit.")
    return given.strip()


def _id(body: Mapping[str, Any]) -> str | None:
    given = body.get("id")
    if given is None:
        return None
    if not isinstance(given, str) or not 0 < len(given) <= _LONGEST_ID or not given.isprintable():
        raise BadField(f"id: a text of 1 to {_LONGEST_ID} printable characters.")
    return given


def _amount(body: Mapping[str, Any]) -> int:
    given = body.get("amount")
    try:
        dollars = Decimal(str(given)) if isinstance(given, int | float | str) and not isinstance(given, bool) else None
    except InvalidOperation:
        dollars = None
    if dollars is None or not dollars.is_finite() or not 0 < dollars <= _MOST_DOLLARS:
        raise BadField(f"amount: US dollars, more than 0 and at most {_MOST_DOLLARS:,}.")
    nano = nano_dollars(dollars)
    if to_dollars(nano) != dollars:
        raise BadField("amount: US dollars with at most nine decimals.")
    return nano
