"""Which experiments a request's unit is in, and with which variant.

Nothing is remembered about a unit: the same unit, seed and ranges give the same variant on every instance.

- A unit takes part in an experiment that runs, within its dates, if it is not held out, is in the experiment's part of
  its namespace and of the traffic, fits the audience, may have every variant, and is in no earlier experiment of the
  policy that changes the same thing (the model, the system prompt, or the same field of the request).
- Forced units get their variant while the experiment is a draft or runs, whatever else would keep them out except that
  they may not have every variant. They are not counted, and go before all others.
- Paused and stopped experiments have no units; ranges and seed stay, so the same units come back to the same variants.
- A promoted variant goes to the whole audience, uncounted, and gives way to running experiments that change the same.
- An arm that a guardrail closed keeps its units, but they get the control, and are not counted from then on: in the
  arm they would be judged by what they no longer get, and in the control they would bring along what the arm did to
  them, and upset its sample ratio. Everybody else's variant stays. A closed arm is compared with the control as both
  were until it was closed.

Experiments of one seed divide units in the same way. Namespaces keep experiments apart that have the same kind of unit.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum, StrEnum
from fractions import Fraction
from math import ceil
from typing import Final, NamedTuple, Self

from core.conditions import Condition, ConditionFailed, compile_condition
from core.context import RequestContext
from core.facts import Facts
from core.settings.models.experiments import Experiment, ExperimentStatus, Holdout, Unit, Variant
from custom_router.experiments.allocation import Buckets, Ranges, ranges_in_force
from custom_router.experiments.hashing import BUCKETS, DRAWS, Seeds, namespace_hash

_NOBODY: Final = frozenset[str]()


class Why(StrEnum):
    """How a unit comes to its variant."""

    DRAWN = "drawn"
    FORCED = "forced"
    CLOSED = "closed"
    PROMOTED = "promoted"


class Arm:
    """What a unit of an experiment gets, worked out once for all units.

    `variant` is what the request gets; `of` is the variant whose the unit is, which differs where the arm is closed.
    Only those that are `counted` are for the analysis. `label` is `experiment/variant` of what the request gets,
    `set` are the fields that it changes. `takes_part`: the unit is in the experiment, or is forced into it.
    """

    __slots__ = (
        "counted",
        "experiment",
        "label",
        "model",
        "of",
        "set",
        "system_prefix",
        "takes_part",
        "variant",
        "why",
    )

    def __init__(self, experiment: str, variant: Variant, why: Why, of: str) -> None:
        self.experiment = experiment
        self.variant = variant
        self.why = why
        self.of = of
        self.counted = why is Why.DRAWN
        self.takes_part = why in (Why.DRAWN, Why.FORCED)
        self.label = f"{experiment}/{variant.id}"
        self.model = variant.model
        self.set = dict(variant.set)
        self.system_prefix = variant.system_prefix


Assigned = tuple[Arm, str]
"""What a unit of an experiment gets, and the unit. A promoted variant needs no unit: then it is empty."""


@dataclass(frozen=True, slots=True)
class CompiledExperiment:
    """An experiment as assignment reads it. Times are Unix milliseconds.

    `models` are the distinct models of its variants, of the promoted one alone once there is one. `touches` is what
    its variants change. `ramp` has the latest step first, `traffic` the draws below which units take part. `forced` are
    the arms that units are forced into, `promoted` the one that all get. `narrow`: more than the traffic keeps units
    out.
    """

    id: str
    kind: Unit
    settings: Experiment
    models: tuple[str, ...]
    touches: frozenset[str]
    audience: Condition | None
    ranges: Ranges
    buckets: Buckets[Arm]
    start_ms: int | None
    end_ms: int | None
    traffic: int
    ramp: tuple[tuple[int, int], ...]
    namespace: tuple[str, int, int] | None
    forced: Mapping[str, Arm]
    promoted: Arm | None = None
    narrow: bool = False
    dated: bool = False

    def traffic_at(self, now_ms: int) -> int:
        """The draws below which units take part at a moment."""
        for at_ms, traffic in self.ramp:
            if now_ms >= at_ms:
                return traffic
        return self.traffic


Ineligible = Callable[[CompiledExperiment], str | None]
"""Why a request may not have every variant of an experiment, None where it may."""


class Assigner:
    """The experiments of one configuration, with the ranges that are stored for them by the experiment's id, and the
    arms that guardrails closed. Assigning changes nothing but `failures`.

    Raises `core.conditions.ConditionError` for an audience that is no condition.
    """

    def __init__(
        self,
        experiments: Sequence[Experiment],
        holdout: Holdout,
        stored: Mapping[str, Ranges],
        closed: Mapping[str, frozenset[str]] | None = None,
    ) -> None:
        closed = closed or {}
        self.failures = Counter[str]()
        """Evaluations of audiences that failed, by experiment."""
        self._holdout = holdout
        self._compiled = [_compiled(one, stored.get(one.id), closed.get(one.id, _NOBODY)) for one in experiments]
        self._policies = _by_policy(self._compiled, holdout)

    def with_state(self, stored: Mapping[str, Ranges], closed: Mapping[str, frozenset[str]]) -> Self:
        """The same experiments with other stored ranges and closed arms; audiences are not compiled again, and
        failures are counted on."""
        other = copy(self)
        other._compiled = [_with_state(one, stored.get(one.id), closed.get(one.id, _NOBODY)) for one in self._compiled]
        other._policies = _by_policy(other._compiled, self._holdout)
        return other

    @property
    def ranges(self) -> Mapping[str, Ranges]:
        """The ranges in force by experiment: where they differ from the stored ones, they are to be stored."""
        return {one.id: one.ranges for one in self._compiled}

    @property
    def mentions(self) -> frozenset[str]:
        """What the audiences look at."""
        audiences = (one.audience for one in self._compiled)
        return frozenset[str]().union(*(audience.mentions for audience in audiences if audience is not None))

    def assigns_to(self, policy: str) -> bool:
        """Whether requests for a policy can be in an experiment at all."""
        return policy in self._policies and self._policies[policy].assigns

    def assign(
        self, policy: str, context: RequestContext, facts: Facts, now_ms: int, ineligible: Ineligible
    ) -> Sequence[Assigned]:
        """The experiments a request is in: forced ones, running ones, promoted ones, each in the order of the
        configuration. No two of them change the same."""
        here = self._policies.get(policy)
        if here is None or not here.assigns:
            return ()
        return _Assignment(here, context, facts, now_ms, ineligible, self.failures).made()

    def explain(
        self, policy: str, context: RequestContext, facts: Facts, now_ms: int, ineligible: Ineligible
    ) -> list[str]:
        """A line for each experiment of a policy: in which variant the request is, or why it is in none."""
        here = self._policies.get(policy)
        if here is None:
            return []
        # Explaining must not count failures a second time.
        assignment = _Assignment(here, context, facts, now_ms, ineligible, Counter())
        assigned = {arm.experiment: arm for arm, _ in assignment.made()}
        return [
            f"{one.id}: {assigned[one.id].variant.id}, since {_words(assigned[one.id], one.kind)}"
            if one.id in assigned
            else f"{one.id}: not in it, since {assignment.why_not(one)}"
            for one in here.all
        ]


def _words(arm: Arm, kind: Unit) -> str:
    match arm.why:
        case Why.DRAWN:
            return f"the {kind.value} was drawn into it"
        case Why.FORCED:
            return f"the {kind.value} is forced into it"
        case Why.CLOSED:
            return f"a guardrail closed {arm.of}, into which the {kind.value} was drawn"
        case Why.PROMOTED:
            return "it is promoted"


def _by_policy(compiled: Sequence[CompiledExperiment], holdout: Holdout) -> dict[str, "_PolicyExperiments"]:
    found: dict[str, list[CompiledExperiment]] = {}
    for one in compiled:
        found.setdefault(one.settings.policy, []).append(one)
    return {policy: _PolicyExperiments(here, holdout) for policy, here in found.items()}


class _PolicyExperiments:
    """The experiments of one policy. Those of one kind of unit are hashed together, each in its lane, the holdout
    last."""

    __slots__ = ("all", "assigns", "forcing", "held_out", "lanes", "promoting", "running", "seeds")

    def __init__(self, compiled: Sequence[CompiledExperiment], holdout: Holdout) -> None:
        self.all = compiled
        self.running = [one for one in compiled if one.settings.status is ExperimentStatus.RUNNING]
        self.forcing = [one for one in compiled if one.forced and one.settings.status in _FORCES]
        self.promoting = [one for one in compiled if one.promoted is not None]
        self.assigns = bool(self.running or self.forcing or self.promoting)
        self.held_out = _draws_below(holdout.share)
        lanes: dict[str, int] = {}
        self.seeds: dict[Unit, Seeds] = {}
        for kind in {one.kind for one in self.running}:
            drawn = [one for one in self.running if one.kind is kind]
            lanes |= {one.id: lane for lane, one in enumerate(drawn)}
            # No experiment's seed has a colon in it, so none divides units as the holdout does.
            seeds = [*(one.settings.drawn_from for one in drawn), f"{holdout.seed}:holdout"]
            self.seeds[kind] = Seeds(seeds if self.held_out else seeds[:-1])
        changing = Counter(field for one in compiled for field in one.touches)
        self.lanes = [_Lane.of(one, lanes[one.id], changing) for one in self.running]


class _Lane(NamedTuple):
    """A running experiment, with the place of its draw among those of its kind of unit, as the loop over all of them
    reads it. A ramp has a say in `traffic`: then all come through here. `touches` is None where no other changes the
    same; `taking` says of what it changes that it does.
    """

    experiment: CompiledExperiment
    lane: int
    kind: Unit
    forced: Mapping[str, Arm] | None
    touches: frozenset[str] | None
    traffic: int
    narrow: bool
    models: bool
    taking: Mapping[str, str]
    starts: Sequence[int]
    arms: Sequence[Arm]

    @classmethod
    def of(cls, one: CompiledExperiment, lane: int, others: Counter[str]) -> Self:
        """`others` counts how many experiments change each field."""
        return cls(
            one,
            lane,
            one.kind,
            one.forced or None,
            one.touches if any(others[field] > 1 for field in one.touches) else None,
            DRAWS if one.ramp else one.traffic,
            one.narrow,
            bool(one.models),
            dict.fromkeys(one.touches, one.id),
            one.buckets.starts,
            one.buckets.owners,
        )


_FORCES = (ExperimentStatus.DRAFT, ExperimentStatus.RUNNING)


class _Drawn:
    """A unit with what is drawn for it."""

    __slots__ = ("_hash", "_places", "draws", "held_out", "unit")

    def __init__(self, unit: str, seeds: Seeds, held_out: int) -> None:
        self.unit = unit
        self.draws, self._hash = seeds.draws(unit)
        self.held_out = held_out > 0 and self.draws[-1] < held_out
        self._places: dict[str, int] = {}

    def place(self, namespace: str) -> int:
        """Where in a namespace the unit is."""
        place = self._places.get(namespace)
        if place is None:
            place = self._places[namespace] = namespace_hash(namespace, self._hash)
        return place


class _Bar(Enum):
    """What keeps a unit out of an experiment. Put into words only for those who ask."""

    EARLY = "it has not started"
    LATE = "it has ended"
    TAKEN = "another experiment has the request"
    NO_UNIT = "the request has no unit"
    HELD_OUT = "the unit is held out"
    TRAFFIC = "the unit is not in the traffic"
    NAMESPACE = "the unit is elsewhere in the namespace"
    AUDIENCE = "the request is not of its audience"


class _Assignment:
    """One request's assignments in the making. `taken` says which experiment changes a field already."""

    __slots__ = ("_barred", "_context", "_drawn", "_facts", "_failures", "_here", "_ineligible", "_now_ms", "_taken")

    def __init__(
        self,
        here: _PolicyExperiments,
        context: RequestContext,
        facts: Facts,
        now_ms: int,
        ineligible: Ineligible,
        failures: Counter[str],
    ) -> None:
        self._here = here
        self._context = context
        self._facts = facts
        self._now_ms = now_ms
        self._ineligible = ineligible
        self._failures = failures
        self._drawn: dict[Unit, _Drawn | None] = {}
        self._taken: dict[str, str] = {}
        self._barred: dict[str, _Bar | str] = {}

    def made(self) -> list[Assigned]:
        here = self._here
        if not here.forcing and not here.promoting:
            return self._of_units()
        forced = [assigned for one in here.forcing if (assigned := self._forced(one)) is not None]
        drawn = self._of_units()
        promoted = [assigned for one in here.promoting if (assigned := self._promoted(one)) is not None]
        return forced + drawn + promoted

    # -- ways to be assigned ---------------------------------------------------------------------------------------

    def _forced(self, experiment: CompiledExperiment) -> Assigned | None:
        unit = unit_of(experiment.kind, self._context)
        arm = experiment.forced.get(unit) if unit else None
        if not unit or arm is None:
            return None
        bar = self._taken_or_ineligible(experiment)
        if bar is not None:
            self._barred[experiment.id] = bar
            return None
        return self._assigned(experiment, arm, unit)

    def _of_units(self) -> list[Assigned]:
        """What was drawn for the units. All in one loop: there may be many experiments, and calls are what it costs."""
        found: list[Assigned] = []
        taken, barred, ineligible = self._taken, self._barred, self._ineligible
        known, last, drawn = self._drawn, None, None
        for experiment, lane, kind, forced, touches, traffic, narrow, models, taking, starts, arms in self._here.lanes:
            if kind is not last:
                drawn, last = known[kind] if kind in known else self._draw(kind), kind
            if drawn is None:
                barred[experiment.id] = _Bar.NO_UNIT
                continue
            if forced is not None and drawn.unit in forced:
                continue
            if touches is not None and not touches.isdisjoint(taken):
                barred[experiment.id] = _Bar.TAKEN
                continue
            draw = drawn.draws[lane]
            if draw >= traffic:
                barred[experiment.id] = _Bar.TRAFFIC
                continue
            bar = self._narrower(experiment, drawn, lane) if narrow or drawn.held_out else None
            if bar is None and models:
                bar = ineligible(experiment)
            if bar is not None:
                barred[experiment.id] = bar
                continue
            if touches is not None:
                taken.update(taking)
            found.append((arms[bisect_right(starts, draw % BUCKETS) - 1], drawn.unit))
        return found

    def _promoted(self, experiment: CompiledExperiment) -> Assigned | None:
        arm = experiment.promoted
        bar = self._outside(experiment) or self._taken_or_ineligible(experiment)
        if bar is not None or arm is None:
            self._barred[experiment.id] = bar or ""
            return None
        return self._assigned(experiment, arm, unit_of(experiment.kind, self._context) or "")

    def _assigned(self, experiment: CompiledExperiment, arm: Arm, unit: str) -> Assigned:
        for field in experiment.touches:
            self._taken[field] = experiment.id
        return arm, unit

    def _draw(self, kind: Unit) -> _Drawn | None:
        unit = unit_of(kind, self._context)
        drawn = self._drawn[kind] = _Drawn(unit, self._here.seeds[kind], self._here.held_out) if unit else None
        return drawn

    # -- what keeps a request out ----------------------------------------------------------------------------------

    def _narrower(self, experiment: CompiledExperiment, drawn: _Drawn, lane: int) -> _Bar | str | None:
        """What only some experiments ask; the cheap questions come first."""
        if experiment.dated:
            if experiment.start_ms is not None and self._now_ms < experiment.start_ms:
                return _Bar.EARLY
            if experiment.end_ms is not None and self._now_ms >= experiment.end_ms:
                return _Bar.LATE
        if drawn.held_out:
            return _Bar.HELD_OUT
        if experiment.ramp and drawn.draws[lane] >= experiment.traffic_at(self._now_ms):
            return _Bar.TRAFFIC
        if experiment.namespace is not None:
            name, low, high = experiment.namespace
            if not low <= drawn.place(name) < high:
                return _Bar.NAMESPACE
        return None if experiment.audience is None else self._outside(experiment)

    def _taken_or_ineligible(self, experiment: CompiledExperiment) -> _Bar | str | None:
        if not experiment.touches.isdisjoint(self._taken):
            return _Bar.TAKEN
        return self._ineligible(experiment)

    def _outside(self, experiment: CompiledExperiment) -> _Bar | str | None:
        if experiment.audience is None:
            return None
        try:
            return None if experiment.audience.matches(self._facts) else _Bar.AUDIENCE
        except ConditionFailed as failed:
            self._failures[experiment.id] += 1
            return f"whether the request is of its audience cannot be told: {failed}"

    def why_not(self, experiment: CompiledExperiment) -> str:
        """Why the request, once its assignments are `made`, is not in an experiment."""
        kind = experiment.kind.value
        match self._barred.get(experiment.id):
            case None:
                status = experiment.settings.status
                return "it is a draft" if status is ExperimentStatus.DRAFT else f"it is {status.value}"
            case _Bar.EARLY:
                return f"it starts at {_iso(experiment.start_ms)}"
            case _Bar.LATE:
                return f"it ended at {_iso(experiment.end_ms)}"
            case _Bar.TAKEN:
                others = sorted({self._taken[field] for field in experiment.touches & self._taken.keys()})
                return f"{' and '.join(others)} changes the same and has the request"
            case _Bar.NO_UNIT:
                return f"the request has no {kind}"
            case _Bar.HELD_OUT:
                return f"the {kind} is held out of all experiments"
            case _Bar.TRAFFIC:
                share = experiment.traffic_at(self._now_ms) / DRAWS
                return f"the {kind} is not in the {share:.6g} of the traffic that takes part"
            case _Bar.NAMESPACE:
                name = experiment.namespace[0] if experiment.namespace else ""
                return f"the {kind} is in another part of the namespace {name}"
            case _Bar.AUDIENCE:
                return "the request is not of its audience"
            case str() as words:
                return words


def unit_of(kind: Unit, context: RequestContext) -> str | None:
    """What of a request an experiment assigns, None where the request has no such thing."""
    match kind:
        case Unit.USER:
            return context.caller.user_id
        case Unit.TEAM:
            return context.caller.team_id
        case Unit.KEY:
            return context.caller.key_hash
        case Unit.SESSION:
            return context.session_id


def _compiled(experiment: Experiment, stored: Ranges | None, closed: frozenset[str]) -> CompiledExperiment:
    promoted = next((variant for variant in experiment.variants if variant.id == experiment.promote), None)
    ranges = ranges_in_force(experiment, stored)
    ramp = [(_ms(step.at), _draws_below(step.traffic)) for step in reversed(experiment.ramp)]
    namespace = experiment.namespace
    variants = (promoted,) if promoted is not None else experiment.variants
    variants_by_id = {variant.id: variant for variant in experiment.variants}
    return CompiledExperiment(
        id=experiment.id,
        kind=experiment.unit,
        settings=experiment,
        models=tuple(dict.fromkeys(variant.model for variant in variants if variant.model is not None)),
        touches=_touched(variants),
        audience=None if experiment.audience is None else compile_condition(experiment.audience),
        ranges=ranges,
        buckets=_drawn_arms(experiment, ranges, closed),
        start_ms=None if experiment.start is None else _ms(experiment.start),
        end_ms=None if experiment.end is None else _ms(experiment.end),
        traffic=_draws_below(experiment.traffic),
        ramp=tuple(ramp),
        namespace=None
        if namespace is None
        else (namespace.id, _ceil(namespace.range[0], 1000), _ceil(namespace.range[1], 1000)),
        forced={
            unit: Arm(experiment.id, variants_by_id[variant], Why.FORCED, variant)
            for unit, variant in experiment.forced.items()
        },
        promoted=None if promoted is None else Arm(experiment.id, promoted, Why.PROMOTED, promoted.id),
        dated=experiment.start is not None or experiment.end is not None,
        narrow=any(
            one is not None
            for one in (experiment.start, experiment.end, experiment.audience, namespace, *experiment.ramp)
        ),
    )


def _with_state(one: CompiledExperiment, stored: Ranges | None, closed: frozenset[str]) -> CompiledExperiment:
    ranges = ranges_in_force(one.settings, stored)
    return replace(one, ranges=ranges, buckets=_drawn_arms(one.settings, ranges, closed))


def _drawn_arms(experiment: Experiment, ranges: Ranges, closed: frozenset[str]) -> Buckets[Arm]:
    """What the units of each bucket get; the control is never closed."""
    control = experiment.variants[0]
    arms = {variant.id: Arm(experiment.id, variant, Why.DRAWN, variant.id) for variant in experiment.variants}
    for of in closed & arms.keys() - {control.id}:
        arms[of] = Arm(experiment.id, control, Why.CLOSED, of)
    return Buckets(ranges, arms)


def _touched(variants: Iterable[Variant]) -> frozenset[str]:
    found: set[str] = set()
    for variant in variants:
        found |= variant.set.keys()
        if variant.model is not None:
            found.add("model")
        if variant.system_prefix is not None:
            found.add("system_prefix")
    return frozenset(found)


def _ceil(share: float, of: int) -> int:
    """The least whole number that is not below a share, as it is written, of `of`."""
    return ceil(Fraction(repr(share)) * of)


def _draws_below(share: float) -> int:
    return _ceil(share, DRAWS)


def _ms(moment: datetime) -> int:
    return ceil(moment.timestamp() * 1000)


def _iso(time_ms: int | None) -> str:
    return "" if time_ms is None else datetime.fromtimestamp(time_ms / 1000, UTC).isoformat()
