"""Names in the settings that must exist elsewhere: models, tiers, policies, groups, channels."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from importlib.metadata import entry_points
from typing import Any, cast

from core.settings.finding import Finding, Loc, Severity, shown_name
from core.settings.models import AtLimit, Budget, BudgetPer, Objective, Settings
from core.settings.source import SECTION
from core.settings.validation import nearest

_SHOWN = 20
"""Valid names that a finding lists at most."""


def cross_check(
    settings: Settings, model_names: Collection[str], *, models_may_come_later: bool = False
) -> list[Finding]:
    """What the settings refer to and does not exist.

    `model_names` are the groups of model_list and the router's aliases; `openai/*` stands for every such model.
    With `models_may_come_later` (LiteLLM keeps models in its database) unknown models are warnings. The findings have
    no line: `Source.locate` knows it.
    """
    names = _Names(settings, frozenset(model_names), "warning" if models_may_come_later else "error")
    return [*_identity(settings, names), *_routing(settings, names), *_budgets(settings, names), *_alerts(settings)]


def model_names_of(document: Mapping[str, Any]) -> set[str]:
    """The model names that a config.yaml defines: groups, aliases and routing groups."""
    section: object = document.get("router_settings")
    router: dict[str, object] = cast(dict[str, object], section) if isinstance(section, dict) else {}
    names = {_text(entry, "model_name") for entry in _list(document.get("model_list"))}
    names |= {_text(entry, "group_name") for entry in _list(router.get("routing_groups"))}
    aliases = router.get("model_group_alias")
    names |= {str(alias) for alias in cast(dict[object, object], aliases)} if isinstance(aliases, dict) else set()
    return names - {""}


class _Names:
    """The models and policies there are, and what to say when a name is not among them."""

    def __init__(self, settings: Settings, models: frozenset[str], severity: Severity) -> None:
        self.models, self.policies = models, frozenset(settings.routing.policies)
        self.severity: Severity = severity
        self.wildcards = tuple(name for name in models if "*" in name)

    def is_model(self, name: str) -> bool:
        return name in self.models or any(fnmatchcase(name, wildcard) for wildcard in self.wildcards)

    def matches(self, pattern: str, *, policies: bool) -> bool:
        """Whether a name or glob stands for at least one model (or policy)."""
        if self.is_model(pattern) or (policies and pattern in self.policies):
            return True
        if not _is_glob(pattern):
            return False
        known = self.models | self.policies if policies else self.models
        return any(fnmatchcase(name, pattern) or _overlap(name, pattern) for name in known)

    def models_only(self, loc: Loc, names: Iterable[str], *, globs: bool = False) -> Iterator[Finding]:
        for index, name in enumerate(names):
            if not (self.matches(name, policies=False) if globs else self.is_model(name)):
                yield self._unknown((*loc, index), name, self.models, "model")

    def models_or_policies(self, loc: Loc, names: Iterable[str]) -> Iterator[Finding]:
        for index, name in enumerate(names):
            # `*` is everything there is, also while there is nothing.
            if name != "*" and not self.matches(name, policies=True):
                yield self._unknown((*loc, index), name, self.models | self.policies, "model or policy")

    def model(self, loc: Loc, name: str) -> Iterator[Finding]:
        if not self.is_model(name):
            yield self._unknown(loc, name, self.models, "model")

    def _unknown(self, loc: Loc, name: str, valid: Collection[str], kind: str) -> Finding:
        if kind == "model" and name in self.policies:
            message = f"'{shown_name(name)}' is a policy; only models of model_list can stand here"
            return Finding("error", (SECTION, *loc), message, shown_name(name), _sorted(valid))
        what = "matches no" if _is_glob(name) else "is not a"
        message = f"'{shown_name(name)}' {what} {kind}{nearest(name, tuple(valid))}"
        if self.severity == "warning":
            message += " (it may be in LiteLLM's database)"
        return Finding(self.severity, (SECTION, *loc), message, shown_name(name), _sorted(valid))


def _identity(settings: Settings, names: _Names) -> Iterator[Finding]:
    tiers = settings.tiers
    if settings.default_tier is not None and settings.default_tier not in tiers:
        yield _missing(("default_tier",), settings.default_tier, tiers, "tier")
    for index, key in enumerate(settings.keys):
        if key.tier is not None and key.tier not in tiers:
            yield _missing(("keys", index, "tier"), key.tier, tiers, "tier")
        yield from names.models_or_policies(("keys", index, "models"), key.models)
    yield from _repeated("keys", [key.key or key.key_hash or "" for key in settings.keys], "key", "key")
    for name, tier in tiers.items():
        yield from names.models_or_policies(("tiers", name, "models"), tier.models)
        if tier.default_policy is not None and tier.default_policy not in names.policies:
            yield _missing(("tiers", name, "default_policy"), tier.default_policy, names.policies, "policy")
    for name, group in settings.groups.items():
        for field, members in (("users", group.users), ("teams", group.teams)):
            for index, member in enumerate(members):
                if member in members[:index]:
                    message = f"'{shown_name(member)}' is in the group twice"
                    yield Finding("warning", (SECTION, "groups", name, field, index), message, shown_name(member))


def _routing(settings: Settings, names: _Names) -> Iterator[Finding]:
    routing = settings.routing
    objectives = {*Objective, *routing.strategies}
    if any(policy.objective not in objectives for policy in routing.policies.values()):
        objectives |= entry_points(group="litellm_orchestration.strategies").names
    for name, policy in routing.policies.items():
        if name in names.models:
            message = f"'{shown_name(name)}' is also a model of model_list; give the policy another name"
            yield Finding("error", (SECTION, "routing", "policies", name), message)
        yield from names.models_only(("routing", "policies", name, "candidates"), policy.candidates)
        for candidate in policy.weights:
            if candidate not in policy.candidates:
                loc = ("routing", "policies", name, "weights", candidate)
                yield _missing(loc, candidate, policy.candidates, "candidate of the policy")
        if policy.objective not in objectives:
            loc = ("routing", "policies", name, "objective")
            yield _missing(loc, policy.objective, objectives, "objective or custom strategy")
    for index, rule in enumerate(routing.rules):
        for field, listed in (("use", rule.use), ("prefer", rule.prefer), ("exclude", rule.exclude)):
            yield from names.models_only(("routing", "rules", index, field), listed, globs=True)
    yield from _repeated("routing.rules", [rule.id for rule in routing.rules], "id", "id")
    for index, experiment in enumerate(routing.experiments):
        place = ("routing", "experiments", index)
        if experiment.policy not in routing.policies:
            yield _missing((*place, "policy"), experiment.policy, routing.policies, "policy")
        for number, variant in enumerate(experiment.variants):
            if variant.model is not None:
                yield from names.model((*place, "variants", number, "model"), variant.model)
    yield from _repeated("routing.experiments", [one.id for one in routing.experiments], "id", "id")
    for index, experiment in enumerate(routing.experiments):
        for earlier in routing.experiments[:index]:
            if earlier.policy == experiment.policy and earlier.drawn_from == experiment.drawn_from:
                message = f"divides units in the same way as '{earlier.id}', whose seed is the same"
                yield Finding("warning", (SECTION, "routing", "experiments", index), message)


_SCOPES = ("users", "teams", "user_groups", "models", "keys", "task_types")


def _budgets(settings: Settings, names: _Names) -> Iterator[Finding]:
    for index, budget in enumerate(settings.budgets):
        place = ("budgets", index)
        yield from names.models_only((*place, "degrade_to"), budget.degrade_to)
        yield from names.models_or_policies((*place, "models"), budget.models)
        for field in _SCOPES:
            if field in budget.model_fields_set and not getattr(budget, field):
                message = "is empty, which does not narrow: the budget covers every request; leave it out"
                yield Finding("warning", (SECTION, *place, field), message)
        yield from _groups_of(budget, settings, place)
        yield from _overrides_of(budget, names, place)
        largest = max((budget.total_budget, *budget.overrides.values()))
        if budget.flat_reserve is not None and budget.flat_reserve > largest and budget.at_limit is not AtLimit.WARN:
            message = f"is more than the whole budget ({largest:f}): a request whose cost cannot be bounded never fits"
            yield Finding("warning", (SECTION, *place, "flat_reserve"), message)
    yield from _repeated("budgets", [one.budget_id for one in settings.budgets], "budget_id", "budget_id")


def _groups_of(budget: Budget, settings: Settings, place: Loc) -> Iterator[Finding]:
    for number, name in enumerate(budget.user_groups):
        loc = (SECTION, *place, "user_groups", number)
        group = settings.groups.get(name)
        if group is None:
            hint = nearest(name, tuple(settings.groups))
            message = f"'{shown_name(name)}' is not a group{hint} (it may come from a team's metadata)"
            yield Finding("warning", loc, message, shown_name(name), _sorted(settings.groups))
        elif not group.users and not group.teams:
            message = f"group '{shown_name(name)}' has no members, so it adds nothing to the budget"
            yield Finding("warning", loc, message, shown_name(name))


def _overrides_of(budget: Budget, names: _Names, place: Loc) -> Iterator[Finding]:
    for member in budget.overrides:
        loc = (*place, "overrides", member)
        if budget.per is BudgetPer.MODEL:
            yield from names.model(loc, member)
            covered = not budget.models or any(
                pattern in names.policies or fnmatchcase(member, pattern) for pattern in budget.models
            )
        else:
            scope = (
                budget.users if budget.per is BudgetPer.USER else budget.teams if budget.per is BudgetPer.TEAM else ()
            )
            covered = not scope or member in scope
        if not covered:
            message = f"'{shown_name(member)}' is not in the budget's scope, so its override does nothing"
            yield Finding("warning", (SECTION, *loc), message, shown_name(member))


def _alerts(settings: Settings) -> Iterator[Finding]:
    channels = settings.alerts.channels
    for index, rule in enumerate(settings.alerts.rules):
        for number, channel in enumerate(rule.to):
            if channel not in channels:
                yield _missing(("alerts", "rules", index, "to", number), channel, channels, "channel")


def _missing(loc: Loc, name: str, valid: Collection[str], kind: str) -> Finding:
    hint = nearest(name, tuple(valid)) or ("" if valid else f"; no {kind} is defined")
    return Finding(
        "error", (SECTION, *loc), f"'{shown_name(name)}' is not a {kind}{hint}", shown_name(name), _sorted(valid)
    )


def _repeated(where: str, ids: list[str], field: str, what: str) -> Iterator[Finding]:
    for name, times in Counter(ids).items():
        if times > 1:
            last = len(ids) - 1 - ids[::-1].index(name)
            message = f"the same {what} is used {times} times; the first is {where}[{ids.index(name)}]"
            yield Finding("error", (SECTION, *where.split("."), last, field), message)


def _sorted(names: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted(str(name) for name in names))[:_SHOWN]


def _is_glob(name: str) -> bool:
    return any(character in name for character in "*?[")


def _overlap(wildcard: str, pattern: str) -> bool:
    """Whether a wildcard model such as `openai/*` could serve a name that the pattern matches."""
    if "*" not in wildcard:
        return False
    one, other = wildcard.partition("*")[0], pattern.partition("*")[0]
    return one.startswith(other) or other.startswith(one)


def _list(value: object) -> list[Any]:
    return cast(list[Any], value) if isinstance(value, list) else []


def _text(entry: object, name: str) -> str:
    value = cast(dict[str, object], entry).get(name) if isinstance(entry, dict) else None
    return value if isinstance(value, str) else ""
