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


def _true(value: object) -> bool:
    return str(value).lower() in {"true", "yes", "on", "1", "y", "t"}


@dataclass(frozen=True, slots=True)
class Unbuilt:
    """A place below `orchestration:` (`*` is any name or index), and what does not happen although it is set."""

    path: str
    missing: str
    asked_for: Callable[[object], bool] = _says_something


UNBUILT: tuple[Unbuilt, ...] = (
    Unbuilt("journal.redis", "the journal is written to journal.dir"),
    Unbuilt("routing.order", "a policy is answered by its first candidate"),
    Unbuilt(
        "routing.policies.*.objective", "a policy is answered by its first candidate", lambda value: value != "priority"
    ),
    Unbuilt("routing.policies.*.sticky", "a policy is answered by its first candidate"),
    Unbuilt("routing.policies.*.regions", "deployments of every region are used"),
    Unbuilt("routing.policies.*.fallback_response", "clients get an error when every candidate fails"),
    Unbuilt("routing.rules", "rules are not applied"),
    Unbuilt("routing.experiments", "nobody is assigned to a variant"),
    Unbuilt("routing.strategies", "custom strategies are not asked"),
    Unbuilt("caching.enabled", "answers are not cached", _true),
    Unbuilt("caching.default_ttl", "answers are not cached"),
    Unbuilt("caching.cache_strategies", "answers are not cached"),
    Unbuilt("resilience.circuit_breaker", "there is no circuit breaker"),
    Unbuilt("resilience.retries", "LiteLLM's own retries apply"),
    Unbuilt("resilience.health_checks", "deployments are not checked"),
    Unbuilt("analytics.retention_days", "usage is kept for ever"),
    Unbuilt("analytics.metrics", "no metrics are served", _true),
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
