"""All the budgets of one configuration, and which of them a request is charged to."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase
from operator import itemgetter
from types import MappingProxyType
from typing import Self, TypeAlias, TypeVar

from core.budgets.account import Account
from core.budgets.coverage import Coverage, Per, bare_hash, revision
from core.budgets.periods import Calendar
from core.context import Caller
from core.money import nano_dollars
from core.settings.models import AtLimit, Budget

_K = TypeVar("_K")
_V = TypeVar("_V")
_MOST_ANSWERS = 10_000
"""Names of models and members come from requests, so what is remembered about them is bounded."""
_NO_ALIASES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class BudgetTerms:
    """A budget as requests need it. Nano-dollars.

    `key` is the id with the revision of what it covers (`team_ai~3f9a1c42`). `rollover_nano` is the most that is
    carried into the next period, None where nothing is. `thresholds` are exact shares of the limit.
    """

    budget_id: str
    name: str
    key: str
    total_nano: int
    overrides_nano: Mapping[str, int]
    at_limit: AtLimit
    degrade_to: tuple[str, ...]
    flat_reserve_nano: int | None
    rollover_nano: int | None
    thresholds: tuple[Decimal, ...]
    coverage: Coverage
    calendar: Calendar

    @classmethod
    def of(cls, budget: Budget) -> Self:
        coverage, calendar = Coverage.of(budget), Calendar.of(budget)
        member_of = bare_hash if coverage.per is Per.KEY else str
        return cls(
            budget_id=budget.budget_id,
            name=budget.name or budget.budget_id,
            key=f"{budget.budget_id}~{revision(coverage, calendar.described())}",
            total_nano=nano_dollars(budget.total_budget),
            overrides_nano={member_of(member): nano_dollars(total) for member, total in budget.overrides.items()},
            at_limit=budget.at_limit,
            degrade_to=budget.degrade_to,
            flat_reserve_nano=None if budget.flat_reserve is None else nano_dollars(budget.flat_reserve),
            rollover_nano=None if budget.rollover is None else nano_dollars(budget.rollover.max),
            thresholds=tuple(Decimal(str(share)) for share in budget.alert_thresholds),
            coverage=coverage,
            calendar=calendar,
        )

    @property
    def per(self) -> Per | None:
        return self.coverage.per

    def limit_nano(self, member: str) -> int:
        """What a member may spend a period, apart from what its account has in addition."""
        return self.overrides_nano.get(member, self.total_nano)

    def account(self, member: str, now_ms: int) -> Account:
        """The member's account of the period that `now_ms` lies in; `member` is empty for a shared budget."""
        period = self.calendar.at(now_ms)
        return Account(self.key, period.start_ms, member, period.end_ms)


@dataclass(frozen=True, slots=True)
class Charge:
    """One of the accounts that a request's cost is charged to."""

    budget: BudgetTerms
    account: Account
    limit_nano: int


class Catalog:
    """Budgets, indexed so that finding those that apply costs by how many these are, not by how many there are.

    `models` are the model groups that exist, `aliases` other names of them (alias -> group).
    """

    def __init__(
        self, budgets: Iterable[Budget], models: Iterable[str] = (), aliases: Mapping[str, str] = _NO_ALIASES
    ) -> None:
        self._terms = tuple(BudgetTerms.of(budget) for budget in budgets)
        self._of_id = {terms.budget_id: terms for terms in self._terms}
        self._models, self._aliases = tuple(models), aliases
        self._index = _Index(self._terms)
        self._matches: dict[tuple[BudgetTerms, str, str], bool] = {}
        self._of_models: dict[tuple[str, str], tuple[int, ...]] = {}
        self._charges: dict[tuple[BudgetTerms, str], Charge] = {}

    def __iter__(self) -> Iterator[BudgetTerms]:
        """In the order of the configuration."""
        return iter(self._terms)

    def __len__(self) -> int:
        return len(self._terms)

    def budget(self, budget_id: str) -> BudgetTerms | None:
        return self._of_id.get(budget_id)

    def models_of(self, terms: BudgetTerms) -> tuple[str, ...]:
        """The model groups in the budget's scope, among those that exist; every one where it names none."""
        names: dict[str, list[str]] = {name: [name] for name in (*self._models, *self._aliases.values())}
        for alias, group in self._aliases.items():
            names[group].append(alias)
        return tuple(group for group, known_as in names.items() if terms.coverage.covers_model(known_as))

    def applying(self, caller: Caller, task_type: str | None, asked_model: str) -> "Applying":
        """What can be said before it is known which model serves the request. `asked_model` is a group or a policy."""
        found = self._covering(self._index.of_caller(caller, task_type), caller, task_type)
        return Applying(self, caller, task_type, asked_model, found)

    def charges(
        self, found: "Found", caller: Caller, task_type: str | None, model: str, asked_model: str, now_ms: int
    ) -> tuple[Charge, ...]:
        """`Applying.charges`; `found` are the budgets that the caller leads to, the model may lead to more."""
        group = self._aliases.get(model, model)
        if self._index.has_models and (positions := self._positions_of(model, group, asked_model)):
            found = sorted((*found, *self._covering(positions, caller, task_type)), key=itemgetter(0))
        charges: list[Charge] = []
        for _, terms, member in found:
            coverage = terms.coverage
            if coverage.models and not self._in_scope(terms, model, group, asked_model):
                continue
            charges.append(self._charge(terms, group if coverage.per is Per.MODEL else member, now_ms))
        return tuple(charges)

    def _covering(self, positions: Iterable[int], caller: Caller, task_type: str | None) -> "Found":
        every = ((position, self._terms[position]) for position in positions)
        return [
            (position, terms, terms.coverage.member(caller))
            for position, terms in every
            if terms.coverage.covers_caller(caller, task_type)
        ]

    def _positions_of(self, model: str, group: str, asked_model: str) -> tuple[int, ...]:
        key = (model, asked_model)
        positions = self._of_models.get(key)
        if positions is None:
            positions = self._index.of_models((model, group, asked_model))
            _remember(self._of_models, key, positions)
        return positions

    def _in_scope(self, terms: BudgetTerms, model: str, group: str, asked_model: str) -> bool:
        key = (terms, model, asked_model)
        answer = self._matches.get(key)
        if answer is None:
            answer = terms.coverage.covers_model((model, group, asked_model))
            _remember(self._matches, key, answer)
        return answer

    def _charge(self, terms: BudgetTerms, member: str, now_ms: int) -> Charge:
        # An account is the same one for all requests of its period, and so is its key, which takes longer to write.
        key = (terms, member)
        charge = self._charges.get(key)
        if charge is None or charge.account.start_ms != terms.calendar.at(now_ms).start_ms:
            charge = Charge(terms, terms.account(member, now_ms), terms.limit_nano(member))
            _remember(self._charges, key, charge)
        return charge


Found: TypeAlias = list[tuple[int, BudgetTerms, str]]
"""Budgets that cover a caller: place in the configuration, terms, member."""


class Applying:
    """The budgets of one request, up to the choice of the model."""

    __slots__ = ("_asked", "_caller", "_catalog", "_found", "_task_type")

    def __init__(self, catalog: Catalog, caller: Caller, task_type: str | None, asked_model: str, found: Found) -> None:
        self._catalog, self._caller, self._task_type, self._asked = catalog, caller, task_type, asked_model
        self._found = found

    def charges(self, model: str, now_ms: int) -> tuple[Charge, ...]:
        """The accounts that an attempt at `model` (a group or an alias of one) is charged to, in the order of the
        configuration."""
        return self._catalog.charges(self._found, self._caller, self._task_type, model, self._asked, now_ms)


def _remember(answers: dict[_K, _V], key: _K, answer: _V) -> None:
    if len(answers) >= _MOST_ANSWERS:
        answers.clear()
    answers[key] = answer


class _Index:
    """Positions of budgets by names in their scopes; each budget stands under its most selective scope only: the one
    whose names the fewest budgets share."""

    def __init__(self, budgets: tuple[BudgetTerms, ...]) -> None:
        shared = Counter(place for terms in budgets for place in _places(terms.coverage))
        self._by_name: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        self._everyone: list[int] = []
        for position, terms in enumerate(budgets):
            scopes: dict[str, list[tuple[str, str]]] = defaultdict(list)
            for place in _places(terms.coverage):
                scopes[place[0]].append(place)
            if not scopes:
                self._everyone.append(position)
                continue
            for place in min(scopes.values(), key=lambda places: max(shared[place] for place in places)):
                self._by_name[place].append(position)
        self._patterns = {name for kind, name in self._by_name if kind == "models" and _is_glob(name)}
        self.has_models = any(kind == "models" for kind, _ in self._by_name)

    def of_caller(self, caller: Caller, task_type: str | None) -> list[int]:
        """Those that may apply whatever the model is, rising."""
        by_name = self._by_name
        if not by_name:
            return self._everyone
        found = self._everyone.copy()
        for kind, name in (
            ("keys", caller.key_hash),
            ("keys", caller.key_alias),
            ("users", caller.user_id),
            ("teams", caller.team_id),
            ("task_types", task_type),
            *(("groups", group) for group in caller.groups),
        ):
            if name is not None and (positions := by_name.get((kind, name))):
                found += positions
        return sorted(set(found))

    def of_models(self, names: Iterable[str]) -> tuple[int, ...]:
        """Those that stand under a model which goes by these names, rising."""
        found: set[int] = set()
        for name in set(names):
            found.update(self._by_name.get(("models", name), ()))
            for pattern in self._patterns:
                if fnmatchcase(name, pattern):
                    found.update(self._by_name["models", pattern])
        return tuple(sorted(found))


def _places(coverage: Coverage) -> Iterator[tuple[str, str]]:
    """Kind and name of everything in scope, the kinds that usually select best first."""
    for kind, names in (
        ("keys", coverage.keys),
        ("users", coverage.users),
        ("teams", coverage.teams),
        ("groups", coverage.groups),
        ("task_types", coverage.task_types),
        ("models", coverage.models),
    ):
        for name in names:
            yield kind, name


def _is_glob(name: str) -> bool:
    return any(sign in name for sign in "*?[")
