"""Conditions of rules and experiments: compiled once, then asked whether a request's facts match.

A condition is a mapping of fields to a value or a list of values, or an expression (core/expressions.py). A mapping,
and an expression that says no more than a mapping could, is answered by comparing alone.

Absent values are null. What cannot be said of null (`output_limit > 1000` where there is no limit) is neither true nor
false: it does not match, and is no failure. `a || b` is still true where one side is.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from core.context import Caller, RequestContext
from core.errors import OrchestrationError
from core.expressions import (
    HAS,
    UNLIMITED,
    ConditionError,
    Equality,
    Range,
    check_header,
    checked,
    requirements_of,
    tokens_of,
    unknown_variable,
)
from core.facts import MAPS, VARIABLES, Facts, Kind

if TYPE_CHECKING:
    from cel import Program

__all__ = ["Condition", "ConditionError", "ConditionFailed", "compile_condition"]

Needs = tuple[tuple[str, frozenset[Any]], ...]
Ranges = tuple[tuple[str, int, int], ...]


class ConditionFailed(OrchestrationError):
    """A condition that cannot be answered for a request; says why without the request's values."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A compiled condition.

    `needs` must hold for it to match: each reference has one of the values (`groups`: has one in common). True and
    False stand in them as `(True,)` and `(False,)`, which no number equals. So must `ranges`, from a lowest to a
    highest number, and what is `present` is not null. Where `program` is None that is all there is. `references` is
    what the program looks at. `never` says why it cannot match, where that is plain.
    """

    source: str | Mapping[str, Any]
    needs: Needs = ()
    ranges: Ranges = ()
    present: frozenset[str] = frozenset()
    references: frozenset[str] = frozenset()
    program: "Program | None" = None
    never: str | None = None

    def matches(self, facts: Facts) -> bool:
        """Whether the request is meant. Raises ConditionFailed where that cannot be said."""
        if self.never is not None or not self.compare(facts):
            return False
        return self.program is None or self.evaluate(facts)

    def compare(self, facts: Facts) -> bool:
        """Whether `needs`, `ranges` and `present` hold."""
        values = facts.values
        for reference, wanted in self.needs:
            # Most are texts that are there: audiences of experiments are asked for every request.
            value = values[reference] if reference in values else facts.value(reference)
            if not (value in wanted if value.__class__ is str else _holds(value, wanted)):
                return False
        for reference, low, high in self.ranges:
            if not _within(facts.value(reference), low, high):
                return False
        return not self.present or all(facts.value(reference) is not None for reference in self.present)

    def evaluate(self, facts: Facts) -> bool:
        """What the program says, whatever `needs` are; only where there is one. Raises as `matches`."""
        assert self.program is not None
        try:
            answer = self.program.execute(facts.cel(self.references))
        except Exception as error:
            return self.unanswered(facts, error)
        return answer is True or (answer is not False and self.unanswered(facts, None))

    def unanswered(self, facts: Facts, error: Exception | None) -> bool:
        """False where the program gave no answer because a value is absent. Raises ConditionFailed where all are
        there."""
        if any(facts.value(reference) is None for reference in self.references):
            return False
        raise ConditionFailed(_NO_ANSWER if error is None else _reason(error))

    @property
    def mentions(self) -> frozenset[str]:
        """Every reference in it."""
        return self.references | {reference for reference, *_ in (*self.needs, *self.ranges)}


def compile_condition(value: str | Mapping[str, Any]) -> Condition:
    """The condition that the configuration has as an expression or a mapping; its values are any that YAML has.

    Raises ConditionError.
    """
    return _of_text(value) if isinstance(value, str) else _of_mapping(value)


def _holds(value: Any, values: frozenset[Any]) -> bool:
    if value.__class__ is bool:
        return (value,) in values
    if value.__class__ is tuple or value.__class__ is list:
        return not values.isdisjoint(value)
    return value in values


def _within(value: int | None, low: int, high: int) -> bool:
    return value is not None and low <= value <= high


def _of_mapping(fields: Mapping[str, Any]) -> Condition:
    if not fields:
        raise ConditionError("is empty; write true for every request")
    equalities: list[Equality] = []
    for name, wanted in fields.items():
        head, dot, key = name.partition(".")
        if (head not in VARIABLES) or (head in MAPS) != bool(key) or (dot and head not in MAPS):
            if head in MAPS and not key:
                raise ConditionError(f"{head} takes a name: {head}.app")
            raise ConditionError(unknown_variable(name))
        values = tuple(cast("list[Any]", wanted)) if isinstance(wanted, (list, tuple)) else (wanted,)
        equalities.append(Equality(name, values, 0, member=head == "groups"))
    needs, never = _needs(equalities)
    return Condition(dict(fields), needs, never=never)


def _of_text(text: str) -> Condition:
    tokens = tokens_of(text)
    required = requirements_of(tokens)
    needs, never = _needs(required.equalities)
    ranges, empty = _ranges(required.ranges)
    never = never or empty
    if required.whole:
        return Condition(text, needs, ranges, never=never)
    _compiled(text)
    expression = checked(text, tokens)
    program = _compiled(expression.text)
    if dotted := next((name for name in program.variables() if name.startswith(".")), None):
        raise ConditionError(f"write {dotted[1:]} without a dot before it", max(text.find(dotted), 0))
    _tried(program, expression.references)
    return Condition(text, needs, ranges, required.present, expression.references, program, never)


def _needs(equalities: Iterable[Equality]) -> tuple[Needs, str | None]:
    """What must hold, one entry a reference (`groups`: one a group that is asked for), and why it never does."""
    single: dict[str, frozenset[Any]] = {}
    several: list[tuple[str, frozenset[Any]]] = []
    never: str | None = None
    for equality in equalities:
        reference = equality.reference
        if not reference:
            never = never or "it is false"
            continue
        _check(equality)
        values = frozenset((value,) if isinstance(value, bool) else value for value in equality.values)
        if not values:
            never = never or f"the list for {reference} is empty"
        if equality.member:
            several.append((reference, values))
            continue
        both = single[reference] & values if reference in single else values
        if not both and values:
            never = never or f"{reference} cannot have two values"
        single[reference] = both
    return (*single.items(), *several), never


def _ranges(limits: Iterable[Range]) -> tuple[Ranges, str | None]:
    """What numbers must be within, one entry a reference, and why they never are."""
    found: dict[str, tuple[int, int]] = {}
    never: str | None = None
    for limit in limits:
        reference = limit.reference
        low, high = found.get(reference, (limit.low, limit.high))
        found[reference] = low, high = max(low, limit.low), min(high, limit.high)
        valid = VARIABLES[reference].values
        first, last = (valid[0], valid[-1]) if isinstance(valid, range) else (0, UNLIMITED)
        if max(low, first) > min(high, last):
            never = never or f"no {reference} is in the range"
    return tuple((reference, low, high) for reference, (low, high) in found.items()), never


def _check(equality: Equality) -> None:
    """Raises ConditionError for a value that the reference can never have."""
    reference, position = equality.reference, equality.start
    name = reference.partition(".")[0]
    variable = VARIABLES[name]
    check_header(reference, position)
    if variable.kind is Kind.TIME:
        raise ConditionError("time is compared in an expression: time > timestamp('2026-03-01T00:00:00Z')", position)
    if variable.kind is Kind.LIST and not equality.member:
        raise ConditionError(f"{name} is a list; write 'value' in {name}", position)
    for value in equality.values:
        if not _may_be(variable.kind, value):
            hint = "; put it in quotes" if variable.kind in (Kind.TEXT, Kind.LIST) and _is_plain(value) else ""
            if variable.kind is Kind.NUMBER and isinstance(value, str):
                hint = f"; an expression can compare: {name} > 1000"
            raise ConditionError(f"{reference} is a {variable.kind}, never {_shown(value)}{hint}", position)
        if variable.values is not None and value is not None and value not in variable.values:
            valid = variable.values
            listed = f"{valid[0]} to {valid[-1]}" if isinstance(valid, range) else ", ".join(valid)
            raise ConditionError(f"{reference} is one of {listed}, never {_shown(value)}", position)


def _is_plain(value: object) -> bool:
    return isinstance(value, (bool, int, float))


def _may_be(kind: Kind, value: object) -> bool:
    if kind is Kind.LIST:
        return isinstance(value, str)
    if value is None:
        return True
    if kind is Kind.TEXT:
        return isinstance(value, str)
    if kind is Kind.FLAG:
        return isinstance(value, bool)
    if kind is Kind.NUMBER:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, (str, bool, int, float))


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return str({None: "null", True: "true", False: "false"}[value])
    return repr(value)[:80] if isinstance(value, (str, int, float)) else "a list or mapping"


# -- the engine --------------------------------------------------------------------------------------------------------


def _compiled(text: str) -> "Program":
    """Raises ConditionError in our words for what the engine cannot read."""
    import cel  # takes 10 MB

    try:
        return cel.compile(text)
    except ValueError as error:
        message, position = _syntax(str(error), text)
        raise ConditionError(message, position) from None


def _syntax(error: str, text: str) -> tuple[str, int]:
    """The first complaint of the engine, `ERROR: <input>:LINE:COLUMN: what`, and its offset in the text."""
    _, _, complaint = error.partition("<input>:")
    line, _, rest = complaint.partition(":")
    column, _, what = rest.partition(": ")
    what = what.partition("\n")[0].partition(" expecting ")[0].removeprefix("Syntax error: ")
    what = re.sub("^(mismatched|extraneous) input ", "unexpected ", what).replace("'<EOF>'", "end")
    try:
        lines = text.split("\n")[: int(line) - 1]
        position = sum(len(one) + 1 for one in lines) + int(column) - 1
    except ValueError:
        return "cannot be read as an expression", 0
    if what.startswith("invalid argument to has"):
        return HAS, position
    return f"cannot be read as an expression at character {position + 1}: {what}", min(position, len(text))


_SAMPLE = RequestContext(
    "sample",
    "chat_completions",
    Caller("h", "alias", "user", "team", ("group",), "tier", ("tier",)),
    "model",
    task_type="task",
    priority=2,
    session_id="session",
    input_bytes=1777,
    output_limit=977,
    input_tokens=443,
    time_ms=1_772_355_907_000,
)


def _tried(program: "Program", references: frozenset[str]) -> None:
    """Raises ConditionError for what cannot be said of values of any request: `hour > 'x'`, `size(task_type)`."""
    facts = Facts(_SAMPLE)
    try:
        answer = program.execute(facts.cel(references))
    except (TypeError, RuntimeError, ValueError) as error:
        known = all(facts.value(reference) is not None for reference in references)
        if _REGEX in str(error):
            raise ConditionError(
                "the pattern of matches is not a regular expression (RE2's, which has no look-ahead)"
            ) from None
        if known and (isinstance(error, TypeError) or _NO_FUNCTION in str(error)):
            raise ConditionError(f"never works: {_reason(error)}") from None
    except Exception:  # noqa: S110  # such as a division by zero: it depends on the values
        pass
    else:
        if not isinstance(answer, bool) and answer is not None:
            raise ConditionError(f"{_NO_ANSWER}; compare it with something")


_NO_ANSWER = "gives something else than true or false"
_NO_FUNCTION = "Undefined variable or function"
_REGEX = "not a valid regex"


def _reason(error: Exception) -> str:
    """What went wrong, without the values."""
    if isinstance(error, TypeError):
        return "it compares or combines values of different kinds"
    if isinstance(error, ZeroDivisionError):
        return "it divides by zero"
    if isinstance(error, OverflowError):
        return "a number is too large"
    if isinstance(error, LookupError):
        return "there is nothing of this name or index"
    return "a function does not take this value"
