"""From pydantic's errors to findings that say what would be valid."""

import copy
import difflib
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from core.settings.finding import Finding, Loc, shown
from core.settings.models import Section, Settings
from core.settings.source import SECTION


def validated(section: Mapping[str, Any]) -> tuple[Settings | None, list[Finding]]:
    """The settings and no findings; or all errors, and the settings as they are without the fields that are wrong.

    The second kind of settings serves only to look for more errors; None when too much is missing for that.
    """
    try:
        return Settings.model_validate(section), []
    except ValidationError as error:
        details = error.errors(include_url=False)
    findings: list[Finding] = []
    rest: Any = copy.deepcopy(dict(section))
    comparable = True
    for detail in details:
        loc = _existing(section, detail)
        finding = _finding(detail, loc)
        if all(other.loc != finding.loc for other in findings):
            findings.append(finding)
        comparable = comparable and _removed(rest, loc, detail["type"])
    # A list with a wrong item is also said to be too short.
    places = [finding.loc for finding in findings]
    findings = [f for f in findings if not any(p[: len(f.loc)] == f.loc and len(p) > len(f.loc) for p in places)]
    if not comparable:
        return None, findings
    try:
        return Settings.model_validate(rest), findings
    except ValidationError:
        return None, findings


def nearest(name: str, valid: tuple[str, ...]) -> str:
    """`; did you mean 'x'?`, or nothing when no valid name is near."""
    near = difflib.get_close_matches(name, valid, n=1) or [
        one for one in valid if len(name) > 2 and one.lower().startswith(name.lower())
    ]
    return f"; did you mean '{near[0]}'?" if near else ""


def _finding(detail: ErrorDetails, loc: Loc) -> Finding:
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    place = (SECTION, *loc)
    if kind == "extra_forbidden":
        fields = _fields_at(loc[:-1])
        message = f"unknown field{nearest(str(loc[-1]), fields)}"
        # The value of a field we do not know may be anything, a key included.
        return Finding("error", place, message, valid=fields)
    if kind == "missing":
        return Finding("error", place, f"'{detail['loc'][-1]}' is required")
    if kind in {"enum", "literal_error"}:
        expected = str(context.get("expected", "")).replace(" or ", ", ")
        valid = tuple(part.strip().strip("'") for part in expected.split(","))
        text = shown(place, value)
        message = f"must be one of {', '.join(valid)}{nearest(text or '', valid)}"
        return Finding("error", place, message, value=text, valid=valid)
    if kind == "value_error":
        message = str(context.get("error", "is not valid"))
    elif kind == "too_short":
        message = f"needs at least {context.get('min_length', 1)} item(s)"
    elif kind == "model_type":
        message = "must be a mapping of fields"
    elif len(detail["loc"]) > len(loc) and loc[-1:] in {("when",), ("audience",)}:
        message = "must be an expression, or a mapping of fields"
    else:
        message = detail["msg"].replace("Input should", "must")
        for pythonic, plain in (("a valid tuple", "a list"), ("a valid dictionary", "a mapping")):
            message = message.replace(pythonic, plain)
        message = message[:1].lower() + message[1:]
    if kind == "string_type" and isinstance(value, (bool, int, float)):
        message += "; put it in quotes"
    return Finding("error", place, message, value=shown(place, value))


def _existing(section: Mapping[str, Any], detail: ErrorDetails) -> Loc:
    """The part of the error's place that is really in the file; pydantic adds names of union members to it."""
    loc: list[str | int] = []
    value: Any = section
    for part in detail["loc"]:
        try:
            value = value[part]
        except (LookupError, TypeError):
            break
        loc.append(part)
    return tuple(loc)


def _removed(rest: Any, loc: Loc, kind: str) -> bool:
    """Take a wrong field out; False where that would take out names that others refer to."""
    annotation = _annotation_at(loc)
    if not loc or not isinstance(loc[-1], str) or kind == "missing":
        return False
    if kind != "extra_forbidden" and (
        annotation is None or _section_in(annotation) or _section_in(_annotation_at(loc[:-1])) is None
    ):
        return False
    holder = rest
    for part in loc[:-1]:
        try:
            holder = holder[part]
        except (LookupError, TypeError):
            return True
    holder.pop(loc[-1], None)
    return True


def _fields_at(loc: Loc) -> tuple[str, ...]:
    section = _section_in(_annotation_at(loc))
    return section.names() if section else ()


def _annotation_at(loc: Loc) -> Any:
    """The type of the settings at a place; Any because types are values here. None where there is none."""
    annotation: Any = Settings
    for part in loc:
        if isinstance(annotation, type) and issubclass(annotation, Section):
            known = annotation.model_fields.get(str(part))
            annotation = known.annotation if known else None
        else:
            annotation = _section_in(annotation)
    return annotation


def _section_in(annotation: Any) -> type[Section] | None:
    """The one model that a field's type holds, itself or in a list, a mapping or beside None."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for argument in get_args(annotation):
        if found := _section_in(argument):
            return found
    return None
