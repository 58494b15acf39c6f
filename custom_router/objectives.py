"""A policy's objective: in which order the candidates that may serve a request are tried.

The objectives, where the lowest value comes first:

`priority`     the candidates' priority, 2 where others have one; where none has one, the order of the policy.
`cost`         the expected cost of this request: its input tokens, and the output that such answers have on average.
`latency`      what they took lately; those within 20 % of the fastest share the requests. A candidate that was not
               measured yet gets one request (or unit) in ten, and none while one is under way at it.
`balanced`     sum of weight times value / best value over cost, latency, priority and load (requests under way + 1, by
               weight). What has no price counts as the dearest; what was not measured yet as the slowest, but for one
               request in ten as the fastest. Where the best is free, whatever costs something counts as ten times it.
`weighted`     a draw by the policy's weights.
`least_busy`   requests under way, by weight.
`round_robin`  each in turn.

Of equal ones, the next of `priority` and `cost` in `routing.order` decides, and then a draw by unit or request.

Where the policy is sticky and the request has its unit, `cost`, `latency` and `balanced` have a unit stay with its own
candidate while that is within the unit's tolerance of the best, which is between 10 % and 30 %: so values that go up
and down move few units. `least_busy` leaves it there while it has no more than 1.25 times its share of all requests
under way (Mirrokni et al., "Consistent hashing with bounded loads", 2018), `round_robin` deals units, not requests.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from math import ceil, inf
from typing import cast

from core.context import RequestContext
from core.settings.models import Objective, Policy, Stage
from custom_router.candidates import MEDIUM, Candidate, Live
from custom_router.sticky import draws, seed_of, share_drawn, sticky_key, weighted_draws

_NEAR = 1.2
_LEAST_TOLERANCE, _MOST_TOLERANCE = 1.1, 1.3
_TRIED = 0.1
"""Share of the requests that try what was not measured yet."""
_TIMES_FREE = 10.0
_MOST_LOAD = 1.25
_NO_WEIGHT = 1e-9
_NO_TIME_MS = 10.0
"""Shorter times are as good as none: what differs there is noise."""

Values = Sequence[float]
"""A value for each candidate; the lowest comes first."""


def order(
    objective: str,
    policy: Policy,
    groups: Sequence[Candidate],
    names: tuple[str, ...],
    context: RequestContext,
    live: Live,
    stages: tuple[Stage, ...],
    away: Collection[str],
    *,
    tells: bool = True,
) -> tuple[list[Candidate], str]:
    """All of `groups`, whose `names` are these, in the order in which they are tried, and why in a few words; those
    may be left out where nobody asked for them.

    Those that are `away`, because they take no requests at the moment, come last, in the order given. `objective` is
    one of `Objective`.
    """
    request = _Request(policy, context, live, stages, groups, names, tells)
    if not away or len(away) == len(groups):
        return _OBJECTIVES[objective](request, groups)
    ordered, why = _OBJECTIVES[objective](request, [group for group in groups if group.name not in away])
    last = [group for group in groups if group.name in away]
    return ordered + last, f"{why}; {', '.join(group.name for group in last)} last: takes no requests now"


class _Request:
    """What the objectives ask about one request; most of it is worked out only where something ties."""

    __slots__ = ("_groups", "_names", "_seed", "context", "key", "live", "policy", "stages", "tells")

    def __init__(
        self,
        policy: Policy,
        context: RequestContext,
        live: Live,
        stages: tuple[Stage, ...],
        groups: Sequence[Candidate],
        names: tuple[str, ...],
        tells: bool,
    ) -> None:
        self.policy = policy
        self.context = context
        self.live = live
        self.stages = stages
        self._groups = groups
        self._names = names
        self.tells = tells
        self.key = sticky_key(policy, context)
        self._seed: int | None = None

    @property
    def seed(self) -> int:
        """Of the unit, or where it is not sticky of the request."""
        if self._seed is None:
            self._seed = seed_of(self.context.asked_model, self.key or self.context.request_id)
        return self._seed

    def costs(self, groups: Sequence[Candidate]) -> list[float]:
        """Nano-dollars; infinite where nothing prices it."""
        context = self.context
        limit, tokens = context.output_limit, context.input_tokens
        outputs = self.live.expected_outputs(self.names(groups), context.task_type)
        if limit is not None:
            outputs = [min(output, limit) for output in outputs]
        # `Candidate.cost_nano`, without a call for each.
        return [
            inf
            if (paid := group.input_nano) is None or (earned := group.output_nano) is None
            else paid * tokens + earned * output
            for group, output in zip(groups, outputs, strict=True)
        ]

    def draws(self, groups: Sequence[Candidate]) -> Values:
        return draws(self.seed, self.names(groups))

    def names(self, groups: Sequence[Candidate]) -> tuple[str, ...]:
        return self._names if groups is self._groups else tuple([group.name for group in groups])

    def ranked(self, groups: Sequence[Candidate], values: Values, *decided: Stage) -> list[int]:
        """The places of the candidates, the lowest value first. Of equal ones the stages decide in their order, but for
        those that `decided` the values; then a draw."""
        found, count = range(len(groups)), len(groups)
        if len(set(values)) == count:
            return sorted(found, key=values.__getitem__)
        levels = [values]
        levels += [_LEVELS[stage](self, groups) for stage in _deciding(self.stages) if stage not in decided]
        if all(len(set(level)) < count for level in levels[1:]):
            levels.append(self.draws(groups))
        # Sorting is stable: the first level has the last word.
        ranked = list(found)
        for level in reversed(levels):
            ranked.sort(key=level.__getitem__)
        return ranked

    def shared(self, groups: Sequence[Candidate], values: Values, tolerance: float) -> list[int]:
        """The same, but those within the tolerance of the best are shared out by a draw."""
        limit = min(values) * tolerance
        near = [at for at, value in enumerate(values) if value <= limit]
        drawn = self.draws([groups[at] for at in near])
        ranked = [at for _, at in sorted(zip(drawn, near, strict=True))]
        return ranked + sorted([at for at, value in enumerate(values) if value > limit], key=values.__getitem__)

    @property
    def tolerance(self) -> float:
        """How much more than the best a unit's own candidate may have."""
        return _LEAST_TOLERANCE + (_MOST_TOLERANCE - _LEAST_TOLERANCE) * share_drawn(self.seed, "tolerance")

    def tries(self, name: str) -> bool:
        """Whether this request is one of the few that try what was not measured yet."""
        return share_drawn(self.seed, f"try\0{name}") < _TRIED and self.live.in_flight(name) == 0

    def stays(self, why: str) -> str:
        return why if self.key is None else f"{why}; its {self.policy.sticky} stays while that is near the best"


def _priorities(groups: Sequence[Candidate]) -> list[int]:
    found = [group.priority for group in groups]
    if None in found:
        return [MEDIUM if priority is None else priority for priority in found]
    return cast("list[int]", found)


_LEVELS: Mapping[Stage, Callable[[_Request, Sequence[Candidate]], Values]] = {
    Stage.PRIORITY: lambda _, groups: _priorities(groups),
    Stage.COST: lambda request, groups: request.costs(groups),
}


@cache
def _deciding(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """Those of the stages that decide between candidates that are equal otherwise."""
    return tuple(stage for stage in stages if stage in _LEVELS)


# -- objectives --------------------------------------------------------------------------------------------------------


def _by_priority(request: _Request, groups: Sequence[Candidate]) -> tuple[list[Candidate], str]:
    first = _deciding(request.stages)[:1]
    if first == (Stage.COST,) and Stage.PRIORITY in request.stages:
        return _by_cost(request, groups)  # `routing.order` has the two the other way round
    if not first or all(group.priority is None for group in groups):
        return list(groups), "no candidate has a priority, so the order of the policy"
    priorities = _priorities(groups)
    ranked = request.ranked(groups, priorities, Stage.PRIORITY)
    why = f"{groups[ranked[0]].name} has priority {priorities[ranked[0]]}" if request.tells else ""
    return [groups[at] for at in ranked], why


def _by_cost(request: _Request, groups: Sequence[Candidate]) -> tuple[list[Candidate], str]:
    every = request.costs(groups)
    priced, costs = groups, every
    unpriced = [group for group, cost in zip(groups, every, strict=True) if cost == inf]
    if unpriced:
        priced = [group for group, cost in zip(groups, every, strict=True) if cost != inf]
        costs = [cost for cost in every if cost != inf]
    if not priced:
        return list(groups), "no candidate has a price, so the order of the policy"
    if request.key is None:
        ranked = request.ranked(priced, costs, Stage.COST)
    else:
        ranked = request.shared(priced, costs, request.tolerance)
    ordered = [priced[at] for at in ranked] + unpriced
    if not request.tells:
        return ordered, ""
    return ordered, request.stays(f"{ordered[0].name} is expected to cost ${costs[ranked[0]] / 1e9:.7f}")


def _by_latency(request: _Request, groups: Sequence[Candidate]) -> tuple[list[Candidate], str]:
    latency, stream = request.live.latency_ms, request.context.stream
    times = [latency(group.name, stream) for group in groups]
    measured, new = groups, list[Candidate]()
    if None in times:
        measured = [group for group, time in zip(groups, times, strict=True) if time is not None]
        new = [group for group, time in zip(groups, times, strict=True) if time is None]
        new = [new[at] for at in request.ranked(new, [0] * len(new), *_LEVELS)]
    if not measured:
        return new, "none was measured yet, so they share the requests"
    took = [max(time, _NO_TIME_MS) for time in times if time is not None]
    ranked = request.shared(measured, took, _NEAR if request.key is None else request.tolerance)
    ordered = [measured[at] for at in ranked] + new
    for group in new:
        if request.tries(group.name):
            rest = [other for other in ordered if other is not group]
            return [group, *rest], f"{group.name} was not measured yet, and this request tries it"
    why = f"{ordered[0].name} took {took[ranked[0]]:.0f} ms lately, the fastest {min(took):.0f}"
    return ordered, request.stays(why)


def _by_balance(request: _Request, groups: Sequence[Candidate]) -> tuple[list[Candidate], str]:
    balance, live = request.policy.balance, request.live
    scores = [0.0] * len(groups)
    if balance.cost:
        scores = _added(scores, balance.cost, _costs_at_most(request, groups))
    if balance.latency:
        scores = _added(scores, balance.latency, _times_at_most(request, groups))
    if balance.priority:
        scores = _added(scores, balance.priority, _priorities(groups))
    if balance.load:
        scores = _added(scores, balance.load, [_load(group, live.in_flight(group.name) + 1) for group in groups])
    if request.key is None:
        ranked = request.ranked(groups, scores)
    else:
        ranked = request.shared(groups, scores, request.tolerance)
    why = f"{groups[ranked[0]].name} has {scores[ranked[0]]:.2f}, the best {min(scores):.2f}"
    return [groups[at] for at in ranked], request.stays(why)


def _added(scores: Values, weight: float, values: Values) -> list[float]:
    """The scores with the weight times each value divided by the best."""
    best = min(values)
    if best > 0:
        factor = weight / best
        return [score + factor * value for score, value in zip(scores, values, strict=True)]
    return [score + weight * (_TIMES_FREE if value > 0 else 1.0) for score, value in zip(scores, values, strict=True)]


def _costs_at_most(request: _Request, groups: Sequence[Candidate]) -> list[float]:
    """What has no price is taken for the dearest."""
    costs = request.costs(groups)
    dearest = max((cost for cost in costs if cost != inf), default=1.0)
    return [dearest if cost == inf else cost for cost in costs]


def _times_at_most(request: _Request, groups: Sequence[Candidate]) -> list[float]:
    """What was not measured yet is taken for the slowest, or for the fastest where the request tries it."""
    latency, stream = request.live.latency_ms, request.context.stream
    times = [latency(group.name, stream) for group in groups]
    known = [max(time, _NO_TIME_MS) for time in times if time is not None]
    if len(known) == len(groups):
        return known
    fastest, slowest = min(known, default=_NO_TIME_MS), max(known, default=_NO_TIME_MS)
    return [
        (fastest if request.tries(group.name) else slowest) if time is None else max(time, _NO_TIME_MS)
        for group, time in zip(groups, times, strict=True)
    ]


def _by_weight(request: _Request, groups: Sequence[Candidate]) -> tuple[list[Candidate], str]:
    names = request.names(groups)
    given = request.policy.weights
    weights = [given.get(name, 1.0) for name in names]
    drawn = weighted_draws(request.seed, names, weights)
    ranked = sorted(range(len(groups)), key=drawn.__getitem__)
    who = "this request" if request.key is None else f"this {request.policy.sticky}"
    return [groups[at] for at in ranked], f"{who} drew {names[ranked[0]]}, whose weight is {weights[ranked[0]]:g}"


def _by_load(request: _Request, groups: Sequence[Candidate]) -> tuple[list[Candidate], str]:
    in_flight = request.live.in_flight
    running = [in_flight(group.name) for group in groups]
    loads = [_load(group, count) for group, count in zip(groups, running, strict=True)]
    if request.key is None:
        ranked = request.ranked(groups, loads)
        return [groups[at] for at in ranked], f"{groups[ranked[0]].name} has the fewest requests under way, by weight"
    share = _MOST_LOAD * (sum(running) + 1) / sum([max(group.weight, _NO_WEIGHT) for group in groups])
    crowded = [
        0 if count < ceil(share * group.weight) else 1 + load
        for group, count, load in zip(groups, running, loads, strict=True)
    ]
    keys = list(zip(crowded, request.draws(groups), strict=True))
    ranked = sorted(range(len(groups)), key=keys.__getitem__)
    first = groups[ranked[0]]
    why = (
        f"{first.name} has {running[ranked[0]]} requests under way; its {request.policy.sticky} stays within its share"
    )
    return [groups[at] for at in ranked], why


def _in_turn(request: _Request, groups: Sequence[Candidate]) -> tuple[list[Candidate], str]:
    if request.key is not None:
        ordered = [groups[at] for at in request.ranked(groups, [0] * len(groups), *_LEVELS)]
        return ordered, f"this {request.policy.sticky} has {ordered[0].name}"
    first = request.live.turn(request.context.asked_model) % len(groups)
    return [*groups[first:], *groups[:first]], f"it is the turn of {groups[first].name}"


def _load(group: Candidate, running: int) -> float:
    return running / max(group.weight, _NO_WEIGHT)


_OBJECTIVES: Mapping[str, Callable[[_Request, Sequence[Candidate]], tuple[list[Candidate], str]]] = {
    Objective.PRIORITY: _by_priority,
    Objective.COST: _by_cost,
    Objective.LATENCY: _by_latency,
    Objective.BALANCED: _by_balance,
    Objective.WEIGHTED: _by_weight,
    Objective.LEAST_BUSY: _by_load,
    Objective.ROUND_ROBIN: _in_turn,
}
