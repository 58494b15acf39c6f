"""A proposed configuration, tried out on the requests that were recorded: where they would go, and what that costs.

- Prompts are not recorded, so what is known of a request is what the configuration of then looked at: metadata that no
  condition asked about is not there.
- A request that a model served goes to the first model that the proposal ranks. It costs its recorded tokens at that
  model's price; where nothing was billed by tokens, or nothing prices them, what was recorded.
- A request that tiers or rules had refused, and which the proposal admits, costs what such requests are expected to.
- What budgets, limits or errors of the caller had refused stays refused, what a cache had answered stays free.
- Budgets are added up and not enforced; grants and what is carried over are left out. What was paid counts for them,
  and after the change so much more or less as the prices of the two models differ.
- Times are those of the recording: a rule or experiment that begins later is not in force.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from core.access import TierAccess
from core.budgets.catalog import Applying, Catalog
from core.context import RequestContext
from core.settings import Settings
from custom_router.candidates import Candidate
from custom_router.decision import Plan
from custom_router.experiments.allocation import Ranges
from custom_router.experiments.assignment import Assigner
from custom_router.replay import Callers, Measured, Recorded, context_of
from custom_router.router import Router

SECTIONS = ("routing", "tiers", "default_tier", "groups", "budgets")
"""What of `orchestration:` is tried out."""

_ROUTING_REFUSALS = frozenset({"ModelNotAllowed", "NoCapableModel"})
_REFUSED = 400


@dataclass(frozen=True, slots=True)
class Proposal:
    """A configuration as it is tried out; it can be pickled.

    `sections` are those of `orchestration:` in `SECTIONS`, as they are written (Any because that is YAML), and fit.
    `candidates` are the model groups. `ranges` and `closed` are what instances have agreed on about experiments, by
    experiment. `latency_ms` and `output_tokens` are as in `Measured`. `had_tiers` says whether callers had tiers when
    the requests were recorded.
    """

    sections: Mapping[str, Any]
    candidates: Mapping[str, Candidate]
    ranges: Mapping[str, Ranges] = field(default_factory=dict[str, Ranges])
    closed: Mapping[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])
    latency_ms: Mapping[tuple[str, bool], float] = field(default_factory=dict[tuple[str, bool], float])
    output_tokens: Mapping[tuple[str, str | None], int] = field(default_factory=dict[tuple[str, str | None], int])
    had_tiers: bool = True

    @property
    def settings(self) -> Settings:
        return Settings.model_validate(self.sections)


Sums = list[int]


@dataclass(slots=True)
class Tally:
    """What came of some requests. Money in nano-dollars. The values of the tables are sums, one for each meaning:

    `refused_then` by the class of the error: requests. `lost_tiers` are those that the proposal does not have.
    `before` by the model that was used: requests, recorded cost, cost at the proposal's prices.
    `after` by the model that would be used: requests, cost.
    `refused` by tier, model asked for and reason: requests, and how many of them were not refused then.
    `arms` by experiment and variant, `rules` by id, `strategies` by name: requests.
    `moved` by task type, model then and model now: requests, cost of both at the proposal's prices.
    `accounts` by budget, begin of the period (Unix milliseconds) and member: what was and what would be spent.
    """

    requests: int = 0
    admitted: int = 0
    """Refused by tiers or rules then, and admitted now."""
    cached: int = 0
    unpriced: int = 0
    unreadable: int = 0
    refused_then: dict[str, Sums] = field(default_factory=dict[str, Sums])
    lost_tiers: dict[str, Sums] = field(default_factory=dict[str, Sums])
    before: dict[str, Sums] = field(default_factory=dict[str, Sums])
    after: dict[str, Sums] = field(default_factory=dict[str, Sums])
    refused: dict[tuple[str | None, str, str], Sums] = field(default_factory=dict[tuple[str | None, str, str], Sums])
    arms: dict[tuple[str, str], Sums] = field(default_factory=dict[tuple[str, str], Sums])
    rules: dict[str, Sums] = field(default_factory=dict[str, Sums])
    strategies: dict[str, Sums] = field(default_factory=dict[str, Sums])
    moved: dict[tuple[str | None, str, str], Sums] = field(default_factory=dict[tuple[str | None, str, str], Sums])
    accounts: dict[tuple[str, int, str], Sums] = field(default_factory=dict[tuple[str, int, str], Sums])

    def add(self, other: "Tally") -> None:
        """Have what came of other requests in it as well."""
        for each in fields(self):
            mine, its = getattr(self, each.name), getattr(other, each.name)
            if isinstance(mine, int):
                setattr(self, each.name, mine + its)
            else:
                for key, sums in its.items():
                    _add(mine, key, *sums)


def _add(table: dict[Any, Sums], key: Any, *amounts: int) -> None:
    known = table.get(key)
    if known is None:
        table[key] = [*amounts]
        return
    for place, amount in enumerate(amounts):
        known[place] += amount


def _count(table: dict[Any, Sums], key: Any) -> None:
    known = table.get(key)
    if known is None:
        table[key] = [1]
    else:
        known[0] += 1


class Simulator:
    """A proposal, ready to be asked about recorded requests."""

    def __init__(self, proposal: Proposal) -> None:
        settings = proposal.settings
        routing = settings.routing
        self._callers = Callers(settings, had_tiers=proposal.had_tiers)
        self._known = dict(proposal.candidates)
        self._live = Measured(proposal.latency_ms, proposal.output_tokens)
        assigner = Assigner(routing.experiments, routing.holdout, proposal.ranges, proposal.closed)
        self._router = Router(settings, TierAccess(settings.tiers), self._candidate, self._live, assigner)
        self._catalog = Catalog(settings.budgets, proposal.candidates)

    def tally(self, rows: Iterable[Sequence[Any]]) -> Tally:
        """What comes of `rows` of `UsageRepository.replay`."""
        found = Tally()
        for number, values in enumerate(rows):
            row = Recorded._make(values)
            found.requests += 1
            self._decide(row, f"{row.time_ms}-{number}", found)
        found.lost_tiers |= {tier: [1] for tier in self._callers.lost}
        return found

    def _candidate(self, name: str) -> Candidate:
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = Candidate(name)
        return known

    def _decide(self, row: Recorded, request_id: str, found: Tally) -> None:
        served = row.used_model is not None
        refused = not served and row.status >= _REFUSED
        if refused:
            _count(found.refused_then, row.error_class or str(row.status))
        before = 0
        if row.used_model is not None:
            before = self._cost(row, row.used_model, found)
            _add(found.before, row.used_model, 1, row.cost_nano, before)
        try:
            context = context_of(row, self._callers.of(row), request_id)
        except ValueError:
            found.unreadable += 1
            return
        plan = self._router.decide(context, _anything)
        for one in plan.rules:
            _count(found.rules, one)
        by_routing = row.error_class in _ROUTING_REFUSALS
        if not plan.candidates:
            key = (context.caller.tier, context.asked_model, _why(plan))
            _add(found.refused, key, 1, not (refused and by_routing))
            if served:
                self._charge(row, context, None, 0, found)
            return
        for one in plan.assignments:
            _count(found.arms, (one.experiment, one.variant))
        if plan.strategy is not None:
            _count(found.strategies, plan.strategy)
        if served:
            self._served(row, context, plan.candidates[0], before, found)
        elif not refused:
            found.cached += 1
        elif by_routing:
            found.admitted += 1
            self._admitted(row, context, plan.candidates[0], found)

    def _served(self, row: Recorded, context: RequestContext, model: str, before: int, found: Tally) -> None:
        """`before` is what it cost at the proposal's prices."""
        cost = before if model == row.used_model else self._cost(row, model, found)
        _add(found.after, model, 1, cost)
        if model != row.used_model:
            _add(found.moved, (row.task_type, row.used_model or "", model), 1, before, cost)
        # Budgets were charged what was really paid, with discounts and retries: that is what changes by so much.
        self._charge(row, context, model, row.cost_nano * cost // before if before else cost, found)

    def _admitted(self, row: Recorded, context: RequestContext, model: str, found: Tally) -> None:
        [expected] = self._live.expected_outputs((model,), row.task_type)
        if context.output_limit is not None:
            expected = min(expected, context.output_limit)
        price = self._candidate(model).cost_nano(context.input_tokens, expected)
        cost = 0 if price is None else round(price)
        found.unpriced += price is None
        _add(found.after, model, 1, cost)
        self._charge(row, context, model, cost, found)

    def _cost(self, row: Recorded, model: str, found: Tally) -> int:
        """Of the recorded tokens at a model's price."""
        if not row.input_tokens and not row.output_tokens:
            return row.cost_nano
        price = self._candidate(model).cost_nano(row.input_tokens, row.output_tokens)
        if price is None:
            found.unpriced += 1
            return row.cost_nano
        return round(price)

    def _charge(self, row: Recorded, context: RequestContext, model: str | None, cost: int, found: Tally) -> None:
        if not len(self._catalog):
            return
        applying = self._catalog.applying(context.caller, row.task_type, context.asked_model)
        if model is not None and row.used_model == model:
            _charge(applying, model, row.time_ms, (row.cost_nano, cost), found)
            return
        if row.used_model is not None and row.cost_nano:
            _charge(applying, row.used_model, row.time_ms, (row.cost_nano, 0), found)
        if model is not None and cost:
            _charge(applying, model, row.time_ms, (0, cost), found)


def _charge(applying: Applying, model: str, time_ms: int, amounts: tuple[int, int], found: Tally) -> None:
    for charge in applying.charges(model, time_ms):
        account = charge.account
        _add(found.accounts, (charge.budget.budget_id, account.start_ms, account.member), *amounts)


def _anything(_: str) -> bool:
    return True


def _why(plan: Plan) -> str:
    """Why a plan has nobody, in words that are the same for all such requests."""
    if plan.denied_by is not None:
        return f"rule {plan.denied_by} denies it"
    if plan.incapable:
        return "no model can serve it"
    kinds = {"a rule" if reason.startswith("rule ") else "the tier" for _, reason in plan.left_out}
    return f"{' and '.join(sorted(kinds, reverse=True))} leaves no model" if kinds else "there is no model"
