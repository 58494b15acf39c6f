"""Rules: which of them a request's facts match, and what they say about model groups.

The equalities and ranges that conditions need are an index: each value of a variable has a bit for every rule that it
leaves possible, and only rules that all variables leave possible are looked at.
"""

from bisect import bisect_right
from collections.abc import Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from core.conditions import Condition, ConditionFailed, compile_condition
from core.facts import Facts
from core.settings.models import Match, RoutingRule

if TYPE_CHECKING:
    from cel import Context

_REMEMBERED = 1024
"""Names that a list of names and globs remembers its answer for."""

_FOR_GOOD = 2**63


class Names:
    """A rule's list of model groups, by name or glob."""

    __slots__ = ("_place", "_remembered", "globs", "plain")

    def __init__(self, patterns: Sequence[str]) -> None:
        self._place = {name: index for index, name in reversed(list(enumerate(patterns)))}
        self.plain = tuple(name for name in dict.fromkeys(patterns) if not any(sign in name for sign in "*?["))
        self.globs = tuple(name for name in dict.fromkeys(patterns) if name not in self.plain)
        self._remembered: dict[str, int | None] = {}

    def __bool__(self) -> bool:
        return bool(self._place)

    def __contains__(self, group: str) -> bool:
        return self.place(group) is not None

    def place(self, group: str) -> int | None:
        """Which entry of the list the group stands for, None where it is not in it. An exact name goes before globs."""
        if not self.globs:
            return self._place.get(group)
        if group in self._remembered:
            return self._remembered[group]
        found = self._place.get(group)
        if found is None:
            found = next((self._place[glob] for glob in self.globs if fnmatchcase(group, glob)), None)
        if len(self._remembered) >= _REMEMBERED:
            self._remembered.clear()
        self._remembered[group] = found
        return found


class CompiledRule:
    """A rule, ready to be asked. `added` are the groups that it names in `use`, without globs; `narrows` says whether
    it takes any away."""

    __slots__ = (
        "_exclude",
        "_prefer",
        "_use",
        "added",
        "compare",
        "condition",
        "execute",
        "from_ms",
        "narrows",
        "rule",
        "set",
        "until_ms",
    )

    def __init__(self, rule: RoutingRule) -> None:
        """Raises ConditionError."""
        self.rule = rule
        self.condition: Condition = compile_condition(rule.when)
        program, needs = self.condition.program, self.condition.needs
        self.execute = None if program is None else program.execute
        self.compare = len({reference for reference, _ in needs}) < len(needs)
        """Whether the index, which knows one need of each reference, does not say all of `needs`."""
        self.from_ms = 0 if rule.valid_from is None else _unix_ms(rule.valid_from)
        self.until_ms = _FOR_GOOD if rule.valid_until is None else _unix_ms(rule.valid_until)
        self._use, self._prefer, self._exclude = Names(rule.use), Names(rule.prefer), Names(rule.exclude)
        self.added = self._use.plain
        self.narrows = bool(rule.use or rule.exclude)
        self.set = dict(rule.set)

    def uses(self, group: str) -> bool:
        """Whether the rule leaves the group in; one that does not say which to use leaves all in."""
        return not self._use or group in self._use

    def excludes(self, group: str) -> bool:
        return group in self._exclude

    def takes(self, group: str) -> str | None:
        """How the rule takes the group away, None where it leaves it."""
        if self.excludes(group):
            return "excludes it"
        return None if self.uses(group) else "uses other models"

    def prefers(self, group: str) -> bool:
        return group in self._prefer

    def preferred(self, ranked: Sequence[str]) -> list[str]:
        """The groups with the preferred ones in front, in the order of `prefer`, all else in the order given."""
        if not self._prefer.globs:
            front = [group for group in self._prefer.plain if group in ranked]
            return [*front, *[group for group in ranked if group not in front]] if front else list(ranked)
        last = len(self.rule.prefer)

        def place(group: str) -> int:
            found = self._prefer.place(group)
            return last if found is None else found

        return sorted(ranked, key=place)


class RuleSet:
    """The rules of one configuration.

    `hits` counts how often each was followed, `failures` how often its condition could not be answered, which skips it;
    `last_failure` says why, without the request's values. All by the rule's id.
    """

    def __init__(self, rules: Sequence[RoutingRule], match: Match) -> None:
        """Raises ConditionError."""
        enabled = (rule for rule in rules if rule.enabled)
        self.rules = tuple(CompiledRule(rule) for rule in sorted(enabled, key=lambda rule: rule.priority))
        self.first_only = match is Match.FIRST
        self.hits = dict.fromkeys((rule.rule.id for rule in self.rules), 0)
        self.failures = dict.fromkeys(self.hits, 0)
        self.last_failure: dict[str, str] = {}
        self.references = frozenset[str]().union(*(rule.condition.references for rule in self.rules))
        """What expressions of the rules look at."""
        possible = [rule.condition.never is None for rule in self.rules]
        self._possible = sum(1 << index for index, is_possible in enumerate(possible) if is_possible)
        conditions = [rule.condition for rule in self.rules]
        self._index, self._limits = _index(conditions), _limits(conditions)

    def matching(self, facts: Facts, now_ms: int, *, counting: bool = True) -> list[CompiledRule]:
        """The rules to follow, the one to be tried first in front: all that match, or the first alone. Without
        `counting` it is only asked what would be."""
        left, values = self._possible, facts.values
        for reference, table, otherwise in self._index:
            # Most are there, and every decision comes by here for each reference: the call is what takes time.
            value = values[reference] if reference in values else facts.value(reference)
            if value.__class__ is bool:
                left &= table.get((value,), otherwise)
            elif value.__class__ is tuple or value.__class__ is list:
                several = otherwise
                for one in value:
                    several |= table.get(one, 0)
                left &= several
            else:
                left &= table.get(value, otherwise)
            if not left:
                return []
        for reference, steps, tables, absent in self._limits:
            number = values[reference]
            left &= absent if number is None else tables[bisect_right(steps, number)]
        found: list[CompiledRule] = []
        context: Context | None = None
        while left:
            lowest = left & -left
            left ^= lowest
            rule = self.rules[lowest.bit_length() - 1]
            if not rule.from_ms <= now_ms < rule.until_ms:
                continue
            if rule.compare and not rule.condition.compare(facts):
                continue
            if rule.execute is not None:
                context = context or facts.cel(self.references)
                try:
                    answer = rule.execute(context)
                except Exception as error:
                    answer = self._unanswered(rule, facts, error, counting)
                if answer is not True and (answer is False or not self._unanswered(rule, facts, None, counting)):
                    continue
            self.hits[rule.rule.id] += counting
            found.append(rule)
            if self.first_only:
                break
        return found

    def _unanswered(self, rule: CompiledRule, facts: Facts, error: Exception | None, counting: bool) -> bool:
        try:
            return rule.condition.unanswered(facts, error)
        except ConditionFailed as failed:
            self.failures[rule.rule.id] += counting
            self.last_failure[rule.rule.id] = str(failed)
            return False


def _index(conditions: Sequence[Condition]) -> list[tuple[str, dict[Any, int], int]]:
    """For each reference: the rules that each value leaves possible, and those that any other leaves possible."""
    needed: dict[str, dict[int, frozenset[Any]]] = {}
    for index, condition in enumerate(conditions):
        for reference, values in condition.needs:
            needed.setdefault(reference, {}).setdefault(index, values)
    rows: list[tuple[str, dict[Any, int], int]] = []
    for reference, wanted in needed.items():
        otherwise = sum(1 << index for index in range(len(conditions)) if index not in wanted)
        table: dict[Any, int] = {}
        for index, values in wanted.items():
            for value in values:
                table[value] = table.get(value, otherwise) | 1 << index
        rows.append((reference, table, otherwise))
    for reference in frozenset[str]().union(*(condition.present for condition in conditions)):
        absent = sum(1 << index for index, condition in enumerate(conditions) if reference not in condition.present)
        rows.append((reference, {None: absent}, (1 << len(conditions)) - 1))
    # The reference that most rules need leaves the fewest to be looked at.
    return sorted(rows, key=lambda row: row[2].bit_count())


def _limits(conditions: Sequence[Condition]) -> list[tuple[str, list[int], list[int], int]]:
    """For each number: where it begins or ceases to be in a range; the rules that it leaves possible below the first
    such step, from each on, and where there is no number."""
    wanted: dict[str, dict[int, tuple[int, int]]] = {}
    for index, condition in enumerate(conditions):
        for reference, low, high in condition.ranges:
            wanted.setdefault(reference, {})[index] = low, high
    rows: list[tuple[str, list[int], list[int], int]] = []
    for reference, ranges in wanted.items():
        absent = sum(1 << index for index in range(len(conditions)) if index not in ranges)
        steps = sorted({step for low, high in ranges.values() for step in (low, high + 1)})
        inside = [
            sum(1 << index for index, (low, high) in ranges.items() if low <= step <= high)
            for step in (steps[0] - 1, *steps)
        ]
        rows.append((reference, steps, [absent | mask for mask in inside], absent))
    return rows


def _unix_ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
