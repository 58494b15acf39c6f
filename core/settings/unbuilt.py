"""Settings that are understood but do nothing yet. Whoever builds a feature removes its row."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from core.settings.environment import OVERRIDES
from core.settings.finding import Finding, Loc
from core.settings.source import SECTION


def _says_something(value: object) -> bool:
    """Not empty, not null: `budgets: []` asks for nothing."""
    return value is not None and value not in ([], {}, "")


@dataclass(frozen=True, slots=True)
class Unbuilt:
    """A place below `orchestration:` (`*` is any name or index), and what does not happen although it is set."""

    path: str
    missing: str
    asked_for: Callable[[object], bool] = _says_something


UNBUILT: tuple[Unbuilt, ...] = (
    Unbuilt("journal.redis", "the journal is written to journal.dir"),
    Unbuilt("analytics.retention_days", "usage is kept for ever"),
)


def unbuilt(section: Mapping[str, Any], variables: Mapping[Loc, str]) -> list[Finding]:
    """A warning for each setting that is set, in the file or by a variable, and does nothing yet.

    `section` is `orchestration:` with the environment put in, `variables` says what came from there.
    """
    ambient: set[Loc] = {(SECTION, *override.loc) for override in OVERRIDES if override.ambient}
    findings: list[Finding] = []
    for row in UNBUILT:
        for loc, value in _places(section, row.path.split(".")):
            place = (SECTION, *loc)
            from_environment = [at for at in variables if at[: len(place)] == place]
            if not row.asked_for(value) or (from_environment and _only_ambient(value, loc, ambient, variables)):
                continue
            variable = variables.get(place) or (variables[from_environment[0]] if from_environment else None)
            findings.append(Finding("warning", place, f"is not built yet: {row.missing}", variable=variable))
    return findings


def _only_ambient(value: object, loc: Loc, ambient: set[Loc], variables: Mapping[Loc, str]) -> bool:
    """Whether all that is set here came from variables that are often set for other reasons."""
    place = (SECTION, *loc)
    if not isinstance(value, dict):
        return place in ambient and place in variables
    items = cast(dict[str, object], value).items()
    return all(_only_ambient(item, (*loc, name), ambient, variables) for name, item in items)


def _places(value: object, path: list[str], loc: Loc = ()) -> Iterator[tuple[Loc, object]]:
    if not path:
        yield loc, value
    elif isinstance(value, dict):
        mapping = cast(dict[str, object], value)
        for name in mapping if path[0] == "*" else [path[0]]:
            if name in mapping:
                yield from _places(mapping[name], path[1:], (*loc, name))
