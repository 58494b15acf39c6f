"""Budgets on the way of a request: what an attempt can cost at most is reserved before it, or it is not made."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from core.budgets import Charge
from core.errors import BudgetExceeded, RequestRefused
from core.settings.models import AtLimit
from core.state.reservations import Claim, Reserved, Standing, TooLittle
from core.usage import Attempt
from plugins.budgets import refusals
from plugins.budgets.bound import Bound, bound
from plugins.budgets.exact import exact_input_tokens
from plugins.budgets.expected import ExpectedOutput
from plugins.budgets.extra_body import merge_extra_body
from plugins.budgets.output_limit import copies, count, read_output_limit, set_output_limit
from plugins.budgets.prices import GroupPrices
from plugins.budgets.spending import Reservation, Spending

if TYPE_CHECKING:
    from core.store.budgets import Pause

Permitted = Callable[[Iterable[str]], Awaitable[list[str]]]
"""Those of some groups that the request may be served by."""

GENEROUS = 256
"""A model's whole output is only reserved where this many times as much is free: most of it comes back unused, and
until then it keeps others out."""
NEAR = 64
"""A budget is near its limit when it has less than this many times what a request may cost: its input is then counted,
which takes longer than to look at its size."""
_LONG = 32_768
"""Bytes that are not counted on the event loop."""
_MOST_LEFTS = 100_000


@dataclass(frozen=True, slots=True)
class Group:
    """What budgets need to know of a model group. `limit_names` are those of an output limit that all its deployments
    take; with none, only the models' own maximum bounds an answer."""

    prices: GroupPrices
    limit_names: frozenset[str]

    @property
    def takes_limit(self) -> bool:
        return bool(self.limit_names)


@dataclass(frozen=True, slots=True)
class Part:
    """What of a request is sent to one group, where the rest of the answer is there already."""

    group: str
    body: Mapping[str, Any]
    body_bytes: int


@dataclass(slots=True)
class Asked:
    """One request as budgets see it. `body` is what LiteLLM will be given; limits are written into it."""

    endpoint: str
    body: dict[str, Any]
    body_bytes: int
    task_type: str | None
    most_tokens: int | None = None
    """The tier's own limit of output tokens."""
    clamped: int | None = None
    """The output limit that was set where the client gave none, or a higher one; tokens for each answer."""
    part: Part | None = None

    def sent_to(self, group: str) -> tuple[Mapping[str, Any], int]:
        """The body that goes to a group, and its bytes."""
        part = self.part
        return (self.body, self.body_bytes) if part is None or part.group != group else (part.body, part.body_bytes)


def cap_output(asked: Asked) -> None:
    """Lower the output limit to the tier's, or set it."""
    if asked.most_tokens is None or asked.endpoint not in GENERATING:
        return
    merge_extra_body(asked.endpoint, asked.body)
    given = read_output_limit(asked.endpoint, asked.body)
    if given is None or given > asked.most_tokens:
        set_output_limit(asked.endpoint, asked.body, asked.most_tokens)
        asked.clamped = asked.most_tokens


GENERATING = frozenset({"chat_completions", "completions", "responses", "messages", "generate_content"})
"""Endpoints whose answers have an output limit."""


class Reserving(Protocol):
    """What enforcement needs of `Books`."""

    async def reserve(self, lease: str, claims: Sequence[Claim], *, slack: int = 1) -> Reserved | TooLittle: ...
    async def sent(self, lease: str) -> bool: ...
    async def release(self, lease: str) -> None: ...


class Enforcement:
    """`group_of` knows a model group by its name, `paused` a budget that is paused, by its id; `min_output_tokens` is
    how low a limit that we set may go."""

    def __init__(
        self,
        books: Reserving,
        expected: ExpectedOutput,
        group_of: Callable[[str], Group],
        *,
        paused: Callable[[str], "Pause | None"] = lambda budget_id: None,
        min_output_tokens: int | None = None,
    ) -> None:
        self._paused = paused
        self._books = books
        self._expected = expected
        self._group_of = group_of
        self._least_tokens = min_output_tokens
        self._lefts: dict[str, int] = {}

    async def first_attempt(
        self,
        spending: Spending,
        asked: Asked,
        candidates: Sequence[str],
        permitted: Permitted,
    ) -> list[str]:
        """Reserve for the first candidate that the budgets can pay; returns it and those behind it.

        Writes the output limit into the body. Where only budgets that degrade are used up, their `degrade_to` takes the
        candidates' place, as far as `permitted`. Raises `BudgetExceeded`, `CostUnbounded` or `BudgetsUnavailable`.
        """
        merge_extra_body(asked.endpoint, asked.body)
        queue, refused = list(candidates), list[RequestRefused]()
        while queue:
            outcome = await self._reserve_first(spending, asked, queue[0])
            if outcome is None:
                return queue
            if isinstance(outcome, _Degrade):
                spending.degraded |= outcome.budgets
                queue = [group for group in queue if group in outcome.to] or await permitted(outcome.to)
                if not queue:
                    refused.append(outcome.refusal)
                continue
            refused.append(outcome)
            del queue[0]
        raise _clearest(refused)

    async def next_attempt(self, spending: Spending, asked: Asked, group: str) -> bool:
        """Whether an attempt at `group` is paid for: the first one is already, every other is reserved for now, with
        the limit that is set by then. `spending.refusal` says why not."""
        reservation = spending.reservation
        if reservation is not None and not reservation.sent:
            if reservation.group == group:
                return True
            await self._books.release(reservation.lease)
            spending.reservation = None
        spending.refusal = self._stopped(spending, group)
        if spending.refusal is not None:
            return False
        charges = spending.enforced(group)
        if not charges:
            return True
        found = self._bound(spending, asked, group)
        limit = read_output_limit(asked.endpoint, asked.body)
        tokens = limit if limit is not None and self._group_of(group).takes_limit else _most(found)
        short = await self._reserve(spending, asked, group, charges, found, [tokens])
        if short is None:
            return True
        outcome = short.outcome(spending.time_ms)
        spending.refusal = outcome.refusal if isinstance(outcome, _Degrade) else outcome
        return False

    async def send(
        self, spending: Spending, asked: Asked, attempt: Attempt, call: Mapping[str, Any] | None = None
    ) -> bool:
        """The attempt is about to be sent: whether it is still paid for, or can be again. Notes what it is charged
        to.

        `call` is what LiteLLM sends, which has fields of its own where a fallback in the configuration brings some: one
        that asks for more than was reserved for is not paid for.
        """
        group = attempt.model
        attempt.accounts = tuple(charge.account.key for charge in spending.charges(group))
        for _ in range(2):
            if not await self.next_attempt(spending, asked, group):
                return False
            reservation = spending.reservation
            if reservation is None:
                return True
            if call is not None and _asks_for_more(asked.endpoint, call, reservation):
                return False
            if await self._books.sent(reservation.lease):
                reservation.sent = True
                attempt.reserved_nano = reservation.amount_nano
                return True
            spending.reservation = None  # it ran out, and somebody else may have the money by now
        return False

    # -- the first attempt ----------------------------------------------------------------------------------------

    async def _reserve_first(self, spending: Spending, asked: Asked, group: str) -> "RequestRefused | _Degrade | None":
        if (stopped := self._stopped(spending, group)) is not None:
            return stopped
        charges = spending.enforced(group)
        if not charges:
            cap_output(asked)
            return None
        found = self._bound(spending, asked, group)
        limits = self._limits(asked, group, found)
        if self._is_near(charges, found.cost(limits[-1] or 0)):
            found = await self._counted(spending, asked, group, found)
        refusal = await self._reserve(spending, asked, group, charges, found, limits)
        if refusal is not None and refusal.worth_counting:
            counted = await self._counted(spending, asked, group, found)
            if counted is not found:
                found = counted
                refusal = await self._reserve(spending, asked, group, charges, found, limits)
        if refusal is not None and self._least_tokens is not None and asked_nothing(found):
            refusal = await self._what_is_left(spending, asked, group, charges, found, refusal)
        if refusal is None:
            self._write_limit(asked, group, found, limits[spending.level])
            return None
        return refusal.outcome(spending.time_ms)

    async def _what_is_left(
        self,
        spending: Spending,
        asked: Asked,
        group: str,
        charges: tuple[Charge, ...],
        found: Bound,
        refusal: "_Refusal",
    ) -> "_Refusal | None":
        """Go as low as the configuration allows: set the limit to what the budgets still pay for."""
        assert self._least_tokens is not None
        if not self._group_of(group).takes_limit or found.unbounded or not refusal.standings:
            return refusal
        tokens = found.tokens_for(refusal.left_nano)
        if tokens < self._least_tokens:
            return refusal
        again = await self._reserve(spending, asked, group, charges, found, [tokens])
        if again is None:
            asked.clamped = tokens
        return again

    def _limits(self, asked: Asked, group: str, found: Bound) -> list[int | None]:
        """Output limits from the one that is wanted to the least that will do; None for none that is known."""
        if not found.output_atto or not self._group_of(group).takes_limit:
            return [_most(found)]
        if found.asked is not None:
            return [_least(found.asked, asked.most_tokens)]
        most = _least(found.maximum, asked.most_tokens)
        expected = self._expected.limit(group, asked.task_type)
        if most is None:
            return [expected]
        return [most, expected] if expected < most else [most]

    def _write_limit(self, asked: Asked, group: str, found: Bound, reserved: int | None) -> None:
        """Have the limit sent that is reserved."""
        tokens, names = asked.clamped or reserved, self._group_of(group).limit_names
        # The client of OpenAI's would try again within one attempt, unseen and unpaid.
        asked.body.pop("max_retries", None)
        if not tokens or not found.output_atto or not names:
            return
        set_output_limit(asked.endpoint, asked.body, tokens, taken=names)
        if tokens != (found.maximum if found.asked is None else found.asked):
            asked.clamped = tokens

    # -- any attempt ------------------------------------------------------------------------------------------------

    async def _reserve(
        self,
        spending: Spending,
        asked: Asked,
        group: str,
        charges: tuple[Charge, ...],
        found: Bound,
        limits: Sequence[int | None],
    ) -> "_Refusal | None":
        """Reserve the cost at one of these limits, at the first that all budgets have; None when it is done."""
        unbounded = found.unbounded or (("nothing limits the answer",) if None in limits else ())
        if unbounded:
            for charge in charges:
                if charge.budget.flat_reserve_nano is None and charge.budget.at_limit is AtLimit.BLOCK:
                    return _Refusal(charges, (), (), stopped=(charge, refusals.unbounded(charge, group, unbounded)))
            # What it is charged, should its cost stay unknown, is the same in all accounts.
            flat = max(charge.budget.flat_reserve_nano or 0 for charge in charges)
            amounts = (flat,) * len(limits)
        else:
            least = _RAISED_TO if asked.endpoint in _RAISED else 0
            amounts = tuple(found.cost(max(limit or 0, least)) for limit in limits)
        claims = [Claim(charge.account, charge.limit_nano, amounts) for charge in charges]
        lease = spending.next_lease()
        outcome = await self._books.reserve(lease, claims, slack=GENEROUS)
        self._remember(charges, outcome.standings)
        if isinstance(outcome, TooLittle):
            return _Refusal(charges, outcome.standings, tuple(claim.amounts[-1] for claim in claims))
        amounts = tuple(claim.amounts[outcome.level] for claim in claims)
        priced = self._group_of(group).prices.priced
        reservation = Reservation(lease, group, charges, amounts, outcome.standings, priced)
        if not unbounded:
            if found.output_atto and self._group_of(group).takes_limit:
                reservation.tokens = limits[outcome.level]
            preset = count(self._group_of(group).prices.preset.get("n"))
            reservation.copies = max(found.copies, copies(asked.body), preset)
        spending.reserved(reservation, outcome.level)
        return None

    def _stopped(self, spending: Spending, group: str) -> RequestRefused | None:
        """The refusal of a budget that is paused: it admits nothing, whatever it does at its limit."""
        for charge in spending.charges(group):
            if (pause := self._paused(charge.budget.budget_id)) is not None:
                return refusals.paused(charge, pause)
        return None

    def _bound(self, spending: Spending, asked: Asked, group: str) -> Bound:
        found = spending.bounds.get(group)
        if found is None:
            found = spending.bounds[group] = self._bound_of(asked, group)
        return found

    async def _counted(self, spending: Spending, asked: Asked, group: str, found: Bound) -> Bound:
        """The bound with the input's tokens counted instead of its bytes, where that is possible and lower."""
        if group in spending.counted:
            return found
        spending.counted.add(group)
        models, (body, body_bytes) = self._group_of(group).prices.models, asked.sent_to(group)
        if body_bytes > _LONG:
            tokens = await asyncio.to_thread(exact_input_tokens, asked.endpoint, body, models)
        else:
            tokens = exact_input_tokens(asked.endpoint, body, models)
        if tokens is not None and tokens < found.input_tokens:
            found = spending.bounds[group] = self._bound_of(asked, group, tokens)
        return found

    def _is_near(self, charges: Sequence[Charge], amount_nano: int) -> bool:
        """Whether one of the accounts was near its limit when it was last looked at."""
        lefts = (self._lefts.get(charge.account.key) for charge in charges)
        return any(left is not None and left < amount_nano * NEAR for left in lefts)

    def _remember(self, charges: Sequence[Charge], standings: Sequence[Standing]) -> None:
        if len(self._lefts) >= _MOST_LEFTS:
            self._lefts.clear()
        for charge, standing in zip(charges, standings, strict=False):
            self._lefts[charge.account.key] = standing.left_of(charge.limit_nano)

    def _bound_of(self, asked: Asked, group: str, exact: int | None = None) -> Bound:
        prices = self._group_of(group).prices
        return bound(asked.endpoint, *asked.sent_to(group), prices, input_tokens=exact)


def _asks_for_more(endpoint: str, call: Mapping[str, Any], reservation: Reservation) -> bool:
    """Whether a call has a higher output limit, or is for more answers, than is reserved for."""
    limit = read_output_limit(endpoint, call)
    if reservation.tokens is not None and limit is not None and limit > reservation.tokens:
        return True
    return reservation.copies is not None and copies(call) > reservation.copies


def asked_nothing(found: Bound) -> bool:
    """Whether the client left the length of the answer to us."""
    return found.asked is None and found.output_atto > 0


@dataclass(frozen=True, slots=True)
class _Degrade:
    """Only these budgets are in the way, and they would rather have a cheaper model answer."""

    budgets: frozenset[str]
    to: tuple[str, ...]
    refusal: RequestRefused


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A reservation that was not made. `amounts` is the least that was wanted of each account."""

    charges: tuple[Charge, ...]
    standings: tuple[Standing, ...]
    amounts: tuple[int, ...]
    stopped: tuple[Charge, RequestRefused] | None = None
    """The budget that refuses whatever the amount is."""

    @property
    def worth_counting(self) -> bool:
        """Whether a lower amount could have been reserved."""
        return self.stopped is None

    @property
    def left_nano(self) -> int:
        """The least that any account has left."""
        return min(
            standing.left_of(charge.limit_nano) for charge, standing in zip(self.charges, self.standings, strict=True)
        )

    def outcome(self, now_ms: int) -> RequestRefused | _Degrade:
        """The error, or what to do instead."""
        if self.stopped is not None:
            charge, refusal = self.stopped
            return _instead_of([charge], refusal)
        short = [
            (charge, standing, amount)
            for charge, standing, amount in zip(self.charges, self.standings, self.amounts, strict=True)
            if standing.left_of(charge.limit_nano) < amount
        ]
        if not short:  # something was given back since then
            short = list(zip(self.charges, self.standings, self.amounts, strict=True))[:1]
        refusal = refusals.exceeded(*min(short, key=lambda one: one[1].left_of(one[0].limit_nano)), now_ms)
        return _instead_of([charge for charge, _, _ in short], refusal)


def _instead_of(short: Sequence[Charge], refusal: RequestRefused) -> RequestRefused | _Degrade:
    """The refusal, unless a budget in the way would rather degrade: what answers then may be cheap enough for the
    others too."""
    degrading = [charge.budget for charge in short if charge.budget.at_limit is AtLimit.DEGRADE]
    if not degrading:
        return refusal
    shared = tuple(group for group in degrading[0].degrade_to if all(group in one.degrade_to for one in degrading))
    return _Degrade(frozenset(budget.key for budget in degrading), shared, refusal)


def _most(found: Bound) -> int | None:
    """What bounds the answer of a model that ignores limits: its own maximum."""
    return found.maximum if found.output_atto else 0


_RAISED = frozenset({"responses", "messages"})
_RAISED_TO = 16
"""LiteLLM sends OpenAI's Responses API no lower limit, whatever was asked for; messages may be translated into it."""


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _clearest(refused: Sequence[RequestRefused]) -> RequestRefused:
    """Of the refusals of several candidates, the one that says most about when it will be different."""
    exceeded = [one for one in refused if isinstance(one, BudgetExceeded)]
    return min(exceeded, key=lambda one: one.needed_nano) if exceeded else refused[0]
