"""From a request's context to the ranked list of model groups that may serve it, with the reason for each that may
not."""

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from typing import Any

from core.access import TierAccess
from core.context import RequestContext
from core.facts import Facts
from core.settings import Settings
from core.settings.models import Objective, Policy, Stage
from custom_router.candidates import Candidate, Choice, Live
from custom_router.decision import NOTHING, Plan, Step
from custom_router.experiments.assignment import Assigned, Assigner, CompiledExperiment
from custom_router.field import Field, Fields, Standing
from custom_router.objectives import order
from custom_router.rules import CompiledRule, RuleSet

MayUse = Callable[[str], bool]
"""Whether LiteLLM lets the caller's key call a group."""


class Router:
    """Routing as one configuration has it. Deciding changes nothing but counters.

    `candidate_of` knows the model groups by name; `assigner` is made of the configuration's experiments where it is
    not given.
    """

    def __init__(
        self,
        settings: Settings,
        access: TierAccess,
        candidate_of: Callable[[str], Candidate],
        live: Live,
        assigner: Assigner | None = None,
    ) -> None:
        routing = settings.routing
        stages = routing.order
        self.policies = routing.policies
        self.access = access
        self.candidate_of = candidate_of
        self.live = live
        self.stages = stages
        self.rules = RuleSet(routing.rules if Stage.RULES in stages else (), routing.match)
        experiments = routing.experiments if Stage.EXPERIMENTS in stages else ()
        self.assigner = Assigner(experiments, routing.holdout, {}) if assigner is None else assigner
        self.has_experiments = Stage.EXPERIMENTS in stages
        self.has_prefixes = any(one.system_prefix is not None for each in experiments for one in each.variants)
        self.promoting = tuple(one is Stage.EXPERIMENTS for one in reversed(stages) if one in _PROMOTES)
        """Experiments, True, and rules, False: which stages prefer models, the last one first."""
        self.rules_first = _before(stages, Stage.RULES, Stage.EXPERIMENTS)
        self.has_rules = bool(routing.rules) and Stage.RULES in stages
        self.has_conditions = self.has_rules or any(one.audience is not None for one in experiments)
        mentions = self.assigner.mentions.union(*(rule.condition.mentions for rule in self.rules.rules))
        self.metadata = frozenset(name.removeprefix(_METADATA) for name in mentions if name.startswith(_METADATA))
        """Names in a client's metadata that conditions look at."""
        self.headers = frozenset(routing.headers)
        self._groups = {name: _groups_of(name, policy, settings) for name, policy in self.policies.items()}
        self._rule_of = {rule.rule.id: rule for rule in self.rules.rules}
        self.fields = Fields(access, candidate_of)
        self._plans: dict[str, Plan] = {}

    def with_assigner(self, assigner: Assigner) -> "Router":
        """The same router, its counters and what it remembers shared, with the experiments as they are now."""
        other = copy(self)
        other.assigner = assigner
        return other

    def groups(self, asked: str) -> tuple[str, ...]:
        """The groups that a request for `asked` may come to, before anything is known about it."""
        return self._groups.get(asked, (asked,))

    def looks_into(self, asked: str) -> bool:
        """Whether a decision looks at what is in the request's body."""
        groups = self._groups.get(asked, ())
        return self.has_conditions or len(groups) > 1 or any(map(self._is_choosy, groups))

    def _is_choosy(self, group: str) -> bool:
        """Whether there is anything that the group does not take."""
        candidate = self.candidate_of(group)
        return bool(candidate.lacks) or candidate.context_window is not None

    def decide(self, context: RequestContext, may_use: MayUse, *, trace: bool = False) -> Plan:
        """The plan for a request; with `trace`, with the steps that led to it."""
        if not trace and not self.has_rules and (plan := self._plain(context, may_use)) is not None:
            return plan
        return _Decision(self, context, may_use, [] if trace else None).made()

    def _plain(self, context: RequestContext, may_use: MayUse) -> Plan | None:
        """The plan for a model that is asked for by its own name and may be used, where nothing else is to be decided:
        the same one each time."""
        asked = context.asked_model
        if asked in self.policies or not self.access.permits(context.caller.tiers, asked) or not may_use(asked):
            return None
        plan = self._plans.get(asked)
        if plan is None:
            plan = Plan(None, (asked,), reason="asked")
            if len(self._plans) < _REMEMBERED:
                self._plans[asked] = plan
        return plan

    def bars(self, plan: Plan, group: str) -> bool:
        """Whether the rules that a plan follows keep the request from a group that is not in the plan: LiteLLM has
        fallbacks of its own, and budgets have models that they degrade to."""
        rules = [self._rule_of[one] for one in plan.rules if one in self._rule_of]
        return any(rule.excludes(group) or (plan.policy is not None and not rule.uses(group)) for rule in rules)


class _Decision:
    """One decision in the making. `barred` remembers why a group may not serve the request, None where it may."""

    __slots__ = (
        *("_facts", "assigned", "barred", "context", "field", "forbidden", "may_use", "narrowing", "policy", "router"),
        *("rules", "steps", "too_long"),
    )

    def __init__(self, router: Router, context: RequestContext, may_use: MayUse, steps: list[Step] | None) -> None:
        self.router = router
        self.context = context
        self.may_use = may_use
        self.steps = steps
        self.policy = router.policies.get(context.asked_model)
        self.rules: Sequence[CompiledRule] = ()
        self.narrowing: Sequence[CompiledRule] = ()
        self.assigned: Sequence[Assigned] = ()
        self.barred: dict[str, str | None] = {}
        self.field: Field | None = None
        self.forbidden: set[str] = set()
        self.too_long: list[str] = []
        self._facts: Facts | None = None

    def made(self) -> Plan:
        context, router, policy = self.context, self.router, self.policy
        if router.has_rules:
            self.rules = router.rules.matching(self.facts, context.time_ms, counting=self.steps is None)
            for rule in self.rules:
                if rule.rule.deny is not None:
                    return self._denied(rule)
            self.narrowing = [rule for rule in self.rules if rule.narrows]
        if policy is None:
            return self._as_asked()
        asked, caller = context.asked_model, context.caller
        self.field = router.fields.of(asked, policy, router.groups(asked), caller.tiers, caller.tier, context.needs)
        if router.has_experiments and router.assigner.assigns_to(asked):
            self.assigned = router.assigner.assign(asked, context, self.facts, context.time_ms, self._ineligible)
        return self._ranked(policy)

    @property
    def facts(self) -> Facts:
        if self._facts is None:
            self._facts = Facts(self.context)
        return self._facts

    # -- which may not ---------------------------------------------------------------------------------------------

    def _why_not(self, group: str) -> str | None:
        """Why the group may not serve this request, whatever else is decided; None where it may."""
        barred = self.barred
        if group in barred:
            return barred[group]
        field = self.field
        reason = field.barred.get(group) if field is not None else self._why_no_tier(group)
        if reason is not None:
            if field is None or group in field.standing.forbidden:
                self.forbidden.add(group)
        elif not self.may_use(group):
            reason = "this key may not use it"
            self.forbidden.add(group)
        elif (
            self.narrowing and (rule := next((one for one in self.narrowing if one.excludes(group)), None)) is not None
        ):
            reason = f"rule {rule.rule.id} excludes it"
            self.forbidden.add(group)
        elif field is not None:
            reason = self._too_long(field.known[group])
        barred[group] = reason
        return reason

    def _why_no_tier(self, group: str) -> str | None:
        caller = self.context.caller
        return None if self.router.access.permits(caller.tiers, group) else f"tier {caller.tier} does not permit it"

    def _too_long(self, candidate: Candidate) -> str | None:
        tokens, window = self.context.input_tokens, candidate.context_window
        if window is None or tokens <= window:
            return None
        self.too_long.append(candidate.name)
        return f"about {tokens} input tokens do not fit its window of {window}"

    def _ineligible(self, experiment: CompiledExperiment) -> str | None:
        """Why a unit that asks this cannot have every variant; then it has none, so that arms stay comparable."""
        for group in experiment.models:
            reason = self._why_not(group)
            if reason is None and self.router.rules_first and not self._used(group):
                reason = "a rule leaves it out"
            if reason is not None:
                return f"{group}: {reason}"
        return None

    def _used(self, group: str) -> bool:
        """Whether the rules that say which models are used leave this one in."""
        return not self.narrowing or all(rule.uses(group) for rule in self.narrowing)

    # -- plans -----------------------------------------------------------------------------------------------------

    def _denied(self, rule: CompiledRule) -> Plan:
        asked = self.context.asked_model
        self._note("rules", removed=((asked, f"rule {rule.rule.id} denies the request"),), why=rule.rule.deny or "")
        return Plan(
            asked if self.policy is not None else None,
            (),
            denied=rule.rule.deny,
            denied_by=rule.rule.id,
            rules=(rule.rule.id,),
            reason=f"rule={rule.rule.id} denied",
            steps=tuple(self.steps or ()),
        )

    def _as_asked(self) -> Plan:
        """A name that is no policy stands for itself; rules may refuse it or set fields."""
        asked = self.context.asked_model
        reason = self._why_not(asked)
        left_out = () if reason is None else ((asked, reason),)
        why = f"{asked} is a model, not a policy"
        self._note("tiers", removed=left_out, why=why if left_out else f"{why}: it is served as asked")
        return Plan(
            None,
            (asked,) if reason is None else (),
            left_out,
            rules=tuple([rule.rule.id for rule in self.rules]),
            set=self._set(),
            reason=self._reason("asked", left_out),
            steps=tuple(self.steps or ()),
        )

    def _ranked(self, policy: Policy) -> Plan:
        router, context = self.router, self.context
        arm: str | None = None
        for one, _ in self.assigned:
            if one.model is not None:
                arm = one.model
                break
        choice, left_out, forbidden = self._standing(policy, arm)
        custom = policy.objective not in _OBJECTIVES
        objective = Objective.PRIORITY if custom else policy.objective
        away: Collection[str] = ()
        if len(choice) > 1:
            away = router.live.away(choice.names)
            tells = self.steps is not None
            ranked, why = order(objective, policy, choice, context, router.live, router.stages, away, tells=tells)
        else:
            ranked, why = list(choice.names), "there is no other"
        if self.steps is not None:
            self._trace(policy, arm, left_out, why)
        tied = ranked = self._promoted(ranked, arm)
        if away and len(away) < len(ranked):
            last = [name for name in ranked if name in away]
            self._note("availability", why=f"{', '.join(last)}: no deployment takes requests now, so it comes last")
            tied = [name for name in ranked if name not in away]
            ranked = tied + last
        return Plan(
            context.asked_model,
            tuple(ranked),
            tuple(left_out),
            policy.grants,
            rules=tuple([rule.rule.id for rule in self.rules]),
            assigned=tuple([one for one in self.assigned if one[0].takes_part]),
            set=self._set(),
            system_prefix=self._prefix() if router.has_prefixes else None,
            strategy=policy.objective if custom and len(tied) > 1 and not self._decided(tied[0], arm) else None,
            tied=tuple(tied) if custom else (),
            regions=policy.regions,
            incapable=not ranked and any(name not in forbidden for name, _ in left_out),
            reason=self._reason(policy.objective, left_out),
            steps=tuple(self.steps or ()),
        )

    def _standing(self, policy: Policy, arm: str | None) -> Standing:
        field = self.field
        assert field is not None
        kept = None if self.router.rules_first else arm
        if self.context.input_tokens > field.shortest or not all(map(self.may_use, field.names)):
            return self._one_by_one(policy, field, arm, kept)
        # Most requests: what the tiers and abilities leave, less what rules take away.
        found = field.standing
        if self.narrowing:
            if not all(field.holds(rule.added) for rule in self.narrowing):
                return self._one_by_one(policy, field, arm, kept)
            found = field.left_by(self.narrowing, kept)
        if arm is not None and arm not in field.names:
            return found._replace(choice=Choice([*found.choice.candidates, field.known[arm]]))
        return found

    def _one_by_one(self, policy: Policy, field: Field, arm: str | None, kept: str | None) -> Standing:
        names = dict.fromkeys(policy.candidates)
        for rule in self.rules:
            names |= dict.fromkeys(rule.added)
        if arm is not None:
            names[arm] = None
        groups, left_out = list[Candidate](), list[tuple[str, str]]()
        for name in names:
            reason = self._why_not(name)
            if reason is None and name != kept and not self._used(name):
                reason = f"rule {next(rule.rule.id for rule in self.rules if not rule.uses(name))} uses other models"
                self.forbidden.add(name)
            if reason is None:
                groups.append(field.known[name])
            else:
                left_out.append((name, reason))
        if not groups and self.too_long:
            groups, left_out = self._longest(names, left_out)
        return Standing(Choice(groups), left_out, frozenset(self.forbidden))

    def _longest(
        self, names: Collection[str], left_out: list[tuple[str, str]]
    ) -> tuple[list[Candidate], list[tuple[str, str]]]:
        """Where nothing is left for want of room, the group with the most: input tokens are an estimate."""
        # Models of variants have been looked at as well.
        assert self.field is not None
        known = self.field.known
        fitting = [known[name] for name in self.too_long if name in names and self._used(name)]
        if not fitting:
            return [], left_out
        longest = max(fitting, key=lambda candidate: candidate.context_window or 0)
        return [longest], [(name, reason) for name, reason in left_out if name != longest.name]

    def _promoted(self, ranked: list[str], arm: str | None) -> list[str]:
        """The objective's order, with what earlier stages prefer in front; the earliest stage has the last word."""
        for by_experiments in self.router.promoting:
            if not by_experiments:
                for rule in reversed(self.rules):
                    if rule.rule.prefer:
                        ranked = rule.preferred(ranked)
            elif arm is not None and arm in ranked:
                at = ranked.index(arm)
                ranked = [arm, *ranked[:at], *ranked[at + 1 :]]
        return ranked

    def _decided(self, first: str, arm: str | None) -> bool:
        """Whether an experiment or a rule has put the first candidate where it is."""
        return first == arm or any(rule.prefers(first) for rule in self.rules)

    def _set(self) -> Mapping[str, Any]:
        """Fields that rules and variants set. Where two set the same, the earlier stage has the last word, and of two
        rules the one tried first."""
        if not self.rules and not self.assigned:
            return NOTHING
        of_rules: dict[str, Any] = {}
        for rule in reversed(self.rules):
            of_rules.update(rule.set)
        of_variants: dict[str, Any] = {}
        for arm, _ in self.assigned:  # no two of them change the same
            of_variants.update(arm.set)
        if not of_rules or not of_variants:
            return of_rules or of_variants
        return of_variants | of_rules if self.router.rules_first else of_rules | of_variants

    def _prefix(self) -> str | None:
        texts = [arm.system_prefix for arm, _ in self.assigned if arm.system_prefix is not None]
        return "\n\n".join(texts) if texts else None

    def _reason(self, objective: str, left_out: Sequence[tuple[str, str]]) -> str:
        """A line that says in short how it was decided; `steps` say it at length."""
        parts = [arm.label for arm, _ in self.assigned]
        parts += [f"rule={rule.rule.id}" for rule in self.rules]
        parts.append(objective)
        if left_out:
            parts.append("not " + ",".join(name for name, _ in left_out))
        return " ".join(parts)

    # -- steps -----------------------------------------------------------------------------------------------------

    def _note(self, stage: str, **step: Any) -> None:
        if self.steps is not None:
            self.steps.append(Step(stage, **step))

    def _trace(self, policy: Policy, arm: str | None, left_out: Sequence[tuple[str, str]], why: str) -> None:
        router = self.router
        for stage in router.stages:
            if stage is Stage.EXPERIMENTS:
                lines = router.assigner.explain(
                    self.context.asked_model, self.context, self.facts, self.context.time_ms, self._ineligible
                )
                told = "; ".join(lines) or "no experiment is about this policy"
                self._note("experiments", promoted=(arm,) if arm else (), why=told)
            elif stage is Stage.RULES:
                self._note(
                    "rules",
                    removed=tuple(one for one in left_out if one[1].startswith("rule ")),
                    promoted=tuple(dict.fromkeys(name for rule in self.rules for name in rule.rule.prefer)),
                    why=", ".join(f"rule {rule.rule.id} matches" for rule in self.rules) or "no rule matches",
                )
            elif stage is Stage.TIERS:
                removed = tuple(one for one in left_out if not one[1].startswith("rule "))
                tier = self.context.caller.tier
                self._note("tiers", removed=removed, why=f"tier {tier}" if tier else "no tier")
        self._note("objective", why=f"{policy.objective}: {why}")


_METADATA = "metadata."
_PROMOTES = (Stage.EXPERIMENTS, Stage.RULES)
_OBJECTIVES = frozenset(Objective)
_REMEMBERED = 1000
"""Plans for models asked for by name, which may be any text."""


def _groups_of(name: str, policy: Policy, settings: Settings) -> tuple[str, ...]:
    found = dict.fromkeys(policy.candidates)
    for experiment in settings.routing.experiments:
        if experiment.policy == name:
            found |= dict.fromkeys(variant.model for variant in experiment.variants if variant.model is not None)
    for rule in settings.routing.rules:
        found |= dict.fromkeys(group for group in rule.use if not any(sign in group for sign in "*?["))
    return tuple(found)


def _before(stages: Sequence[Stage], one: Stage, other: Stage) -> bool:
    return one in stages and other in stages and stages.index(one) < stages.index(other)
