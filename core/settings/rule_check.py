"""Rules and audiences that cannot be used, can never match, or are hidden by an earlier rule."""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, cast

from core.conditions import Condition, ConditionError, compile_condition
from core.facts import VARIABLES
from core.settings.finding import Finding, Loc, shown, shown_name
from core.settings.models import Match, RoutingRule, Settings
from core.settings.source import SECTION
from core.settings.validation import nearest


def rule_findings(settings: Settings, now: datetime | None = None) -> list[Finding]:
    """What is wrong with the rules' and experiments' conditions, and with the fields that they set.

    `now` is when it is asked, the present where left out.
    """
    routing = settings.routing
    findings: list[Finding] = []
    compiled: list[Condition | None] = []
    for index, rule in enumerate(routing.rules):
        loc: Loc = (SECTION, "routing", "rules", index)
        condition = _compiled(rule.when, (*loc, "when"), findings)
        compiled.append(condition)
        findings += _set(rule.set, (*loc, "set"))
        if condition is not None:
            findings += _mentions(condition, settings, (*loc, "when"))
            findings += _never(rule, condition, loc, now or datetime.now(UTC))
    if routing.match is Match.FIRST:
        findings += _shadowed(routing.rules, compiled)
    for index, experiment in enumerate(routing.experiments):
        loc = (SECTION, "routing", "experiments", index)
        if experiment.audience is not None:
            place = (*loc, "audience")
            audience = _compiled(experiment.audience, place, findings)
            if audience is not None:
                findings += _mentions(audience, settings, place)
                if audience.never is not None:
                    findings.append(Finding("warning", place, f"nobody takes part: {audience.never}"))
        for number, variant in enumerate(experiment.variants):
            findings += _set(variant.set, (*loc, "variants", number, "set"))
    return findings


def _compiled(value: str | Mapping[str, Any], loc: Loc, findings: list[Finding]) -> Condition | None:
    try:
        return compile_condition(value)
    except ConditionError as error:
        findings.append(
            Finding("error", loc, str(error), valid=_valid(str(error)), offset=error.position)
            if isinstance(value, str)
            else Finding("error", loc, str(error), valid=_valid(str(error)))
        )
        return None


def _valid(message: str) -> tuple[str, ...]:
    return tuple(VARIABLES) if message.startswith("there is no variable") else ()


# -- what conditions mention -------------------------------------------------------------------------------------------


def _mentions(condition: Condition, settings: Settings, loc: Loc) -> Iterator[Finding]:
    for reference in sorted(condition.mentions):
        name = reference.removeprefix("headers.")
        if name != reference and name not in settings.routing.headers:
            message = f"header '{shown_name(name)}' is not among routing.headers; add it there to look at it"
            yield Finding("error", loc, message, valid=settings.routing.headers)
    known: Mapping[str, tuple[tuple[str, ...], str, str]] = {
        "user_tier": (tuple(settings.tiers), "tier", ""),
        "groups": (tuple(settings.groups), "group", " (it may come from a team's metadata)"),
    }
    for reference, values in condition.needs:
        if reference not in known:
            continue
        names, what, remark = known[reference]
        for value in sorted(value for value in values if isinstance(value, str) and value not in names):
            hint = nearest(value, names) or ("" if names else f"; no {what} is defined")
            yield Finding("warning", loc, f"'{shown_name(value)}' is not a {what}{hint}{remark}", valid=names)


# -- rules that do nothing ---------------------------------------------------------------------------------------------


def _never(rule: RoutingRule, condition: Condition, loc: Loc, now: datetime) -> Iterator[Finding]:
    if condition.never is not None:
        yield Finding("warning", (*loc, "when"), f"never matches: {condition.never}")
    if rule.enabled and rule.valid_until is not None and rule.valid_until <= now:
        yield Finding("warning", (*loc, "valid_until"), "has passed, so the rule is not tried any more")


def _shadowed(rules: tuple[RoutingRule, ...], compiled: list[Condition | None]) -> Iterator[Finding]:
    """Rules that an earlier one hides: whenever they match, it does too, and only the first is followed."""
    tried = sorted((index for index, rule in enumerate(rules) if rule.enabled), key=lambda index: rules[index].priority)
    for position, later in enumerate(tried):
        condition = compiled[later]
        if condition is None or condition.never is not None:
            continue
        for earlier in tried[:position]:
            other = compiled[earlier]
            if other is not None and _lasts(rules[earlier], rules[later]) and covers(other, condition):
                message = f"is never followed: whenever it matches, rule '{rules[earlier].id}' does and is tried first"
                yield Finding("warning", (SECTION, "routing", "rules", later, "when"), message)
                break


def _lasts(one: RoutingRule, other: RoutingRule) -> bool:
    """Whether `one` is valid whenever `other` is."""
    begins = one.valid_from is None or (other.valid_from is not None and one.valid_from <= other.valid_from)
    return begins and (
        one.valid_until is None or (other.valid_until is not None and one.valid_until >= other.valid_until)
    )


def covers(one: Condition, other: Condition) -> bool:
    """Whether it is plain that `one` matches whenever `other` does."""
    if one.never is not None:
        return False
    if one.source == other.source:
        return True
    if one.program is not None:
        return False
    return all(
        any(name == reference and other_values <= values for name, other_values in other.needs)
        for reference, values in one.needs
    ) and all(
        any(name == reference and low <= lowest and highest <= high for name, lowest, highest in other.ranges)
        for reference, low, high in one.ranges
    )


# -- fields that are set -----------------------------------------------------------------------------------------------


def _number(low: float, high: float) -> Callable[[object], bool]:
    return lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _whole(low: int, high: int = 2**53) -> Callable[[object], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _texts(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(one, str) and one for one in cast("list[object]", value))


_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
_LONGEST_TIMEOUT = 86_400

SETTABLE: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "temperature": (_number(0, 2), "a number from 0 to 2"),
    "top_p": (_number(0, 1), "a number from 0 to 1"),
    "max_tokens": (_whole(1), "a whole number from 1"),
    "timeout": (
        lambda value: _number(0, _LONGEST_TIMEOUT)(value) and value != 0,
        f"seconds, more than 0 and at most {_LONGEST_TIMEOUT}",
    ),
    "tags": (_texts, "a list of texts"),
    "reasoning_effort": (lambda value: value in _EFFORTS, f"one of {', '.join(_EFFORTS)}"),
    "seed": (_whole(-(2**53)), "a whole number"),
}
"""Fields of a request that rules and variants may set: whether a value may stand there, and what may."""


def _set(fields: Mapping[str, Any], loc: Loc) -> Iterator[Finding]:
    for name, value in fields.items():
        place = (*loc, name)
        if name not in SETTABLE:
            message = f"unknown field{nearest(name, tuple(SETTABLE))}; what can be set: {', '.join(SETTABLE)}"
            yield Finding("error", place, message, valid=tuple(SETTABLE))
            continue
        may_be, valid = SETTABLE[name]
        if not may_be(value):
            yield Finding("error", place, f"must be {valid}", value=shown(place, value))
