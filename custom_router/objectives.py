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

from core.context import RequestContext
from core.settings.models import Objective, Policy, Stage
from custom_router.candidates import Choice, Live
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
    choice: Choice,
    context: RequestContext,
    live: Live,
    stages: tuple[Stage, ...],
    away: Collection[str],
    *,
    tells: bool = True,
) -> tuple[list[str], str]:
    """The names of all of `choice` in the order in which they are tried, and why in a few words; those may be left out
    where nobody asked for them.

    Those that are `away`, because they take no requests at the moment, come last, in the order given. `objective` is
    one of `Objective`.
    """
    request = _Request(policy, context, live, stages, tells)
    if not away or len(away) == len(choice):
        return _OBJECTIVES[objective](request, choice)
    ordered, why = _OBJECTIVES[objective](request, choice.without(away))
    last = [name for name in choice.names if name in away]
    return ordered + last, f"{why}; {', '.join(last)} last: takes no requests now"


class _Request:
    """What the objectives ask about one request; most of it is worked out only where something ties."""

    __slots__ = ("_seed", "context", "key", "live", "policy", "stages", "tells")

    def __init__(
        self, policy: Policy, context: RequestContext, live: Live, stages: tuple[Stage, ...], tells: bool
    ) -> None:
        self.policy = policy
        self.context = context
        self.live = live
        self.stages = stages
        self.tells = tells
        self.key = sticky_key(policy, context)
        self._seed: int | None = None

    @property
    def seed(self) -> int:
        """Of the unit, or where it is not sticky of the request."""
        if self._seed is None:
            self._seed = seed_of(self.context.asked_model, self.key or self.context.request_id)
        return self._seed

    def costs(self, choice: Choice) -> list[float]:
        """Nano-dollars; infinite where nothing prices it."""
        context = self.context
        limit, tokens = context.output_limit, context.input_tokens
        outputs = self.live.expected_outputs(choice.names, context.task_type)
        if limit is not None:
            outputs = [min(output, limit) for output in outputs]
        paid, earned, priced = choice.prices
        # `Candidate.cost_nano`, without a call for each.
        if priced:
            return [one * tokens + other * output for one, other, output in zip(paid, earned, outputs, strict=True)]
        return [
            inf if one == inf else one * tokens + other * output
            for one, other, output in zip(paid, earned, outputs, strict=True)
        ]

    def draws(self, names: tuple[str, ...]) -> Values:
        return draws(self.seed, names)

    def ranked(self, choice: Choice, values: Values, *decided: Stage) -> list[int]:
        """The places of the candidates, the lowest value first. Of equal ones the stages decide in their order, but for
        those that `decided` the values; then a draw."""
        count = len(values)
        if len(set(values)) == count:
            return sorted(range(count), key=values.__getitem__)
        levels = [values]
        levels += [_LEVELS[stage](self, choice) for stage in _deciding(self.stages) if stage not in decided]
        if all(len(set(level)) < count for level in levels[1:]):
            levels.append(self.draws(choice.names))
        # Sorting is stable: the first level has the last word.
        ranked = list(range(count))
        for level in reversed(levels):
            ranked.sort(key=level.__getitem__)
        return ranked

    def shared(self, names: tuple[str, ...], values: Values, tolerance: float) -> list[int]:
        """The same, but those within the tolerance of the best are shared out by a draw."""
        limit = min(values) * tolerance
        near = [at for at, value in enumerate(values) if value <= limit]
        drawn = self.draws(tuple([names[at] for at in near]))
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


_LEVELS: Mapping[Stage, Callable[[_Request, Choice], Values]] = {
    Stage.PRIORITY: lambda _, choice: choice.priorities[0],
    Stage.COST: lambda request, choice: request.costs(choice),
}


@cache
def _deciding(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """Those of the stages that decide between candidates that are equal otherwise."""
    return tuple(stage for stage in stages if stage in _LEVELS)


# -- objectives --------------------------------------------------------------------------------------------------------


def _by_priority(request: _Request, choice: Choice) -> tuple[list[str], str]:
    first = _deciding(request.stages)[:1]
    if first == (Stage.COST,) and Stage.PRIORITY in request.stages:
        return _by_cost(request, choice)  # `routing.order` has the two the other way round
    names = choice.names
    priorities, given = choice.priorities
    if not first or not given:
        return list(names), "no candidate has a priority, so the order of the policy"
    ranked = request.ranked(choice, priorities, Stage.PRIORITY)
    why = f"{names[ranked[0]]} has priority {priorities[ranked[0]]}" if request.tells else ""
    return [names[at] for at in ranked], why


def _by_cost(request: _Request, choice: Choice) -> tuple[list[str], str]:
    costs = request.costs(choice)
    priced, unpriced = choice, list[str]()
    if inf in costs:
        unpriced = [name for name, cost in zip(choice.names, costs, strict=True) if cost == inf]
        priced, costs = choice.without(unpriced), [cost for cost in costs if cost != inf]
    names = priced.names
    if not names:
        return unpriced, "no candidate has a price, so the order of the policy"
    if request.key is None:
        ranked = request.ranked(priced, costs, Stage.COST)
    else:
        ranked = request.shared(names, costs, request.tolerance)
    ordered = [names[at] for at in ranked] + unpriced
    if not request.tells:
        return ordered, ""
    return ordered, request.stays(f"{ordered[0]} is expected to cost ${costs[ranked[0]] / 1e9:.7f}")


def _by_latency(request: _Request, choice: Choice) -> tuple[list[str], str]:
    latency, stream = request.live.latency_ms, request.context.stream
    names, new = choice.names, list[str]()
    times = [latency(name, stream) for name in names]
    if None in times:
        unmeasured = choice.without([name for name, time in zip(names, times, strict=True) if time is not None])
        ranked = request.ranked(unmeasured, [0] * len(unmeasured), *_LEVELS)
        new = [unmeasured.names[at] for at in ranked]
        names = tuple([name for name, time in zip(names, times, strict=True) if time is not None])
    if not names:
        return new, "none was measured yet, so they share the requests"
    took = [max(time, _NO_TIME_MS) for time in times if time is not None]
    ranked = request.shared(names, took, _NEAR if request.key is None else request.tolerance)
    ordered = [names[at] for at in ranked] + new
    for name in new:
        if request.tries(name):
            rest = [other for other in ordered if other != name]
            return [name, *rest], f"{name} was not measured yet, and this request tries it"
    why = f"{ordered[0]} took {took[ranked[0]]:.0f} ms lately, the fastest {min(took):.0f}"
    return ordered, request.stays(why)


def _by_balance(request: _Request, choice: Choice) -> tuple[list[str], str]:
    balance, names = request.policy.balance, choice.names
    scores = [0.0] * len(names)
    if balance.cost:
        scores = _added(scores, balance.cost, _costs_at_most(request, choice))
    if balance.latency:
        scores = _added(scores, balance.latency, _times_at_most(request, choice))
    if balance.priority:
        scores = _added(scores, balance.priority, choice.priorities[0])
    if balance.load:
        scores = _added(scores, balance.load, _loads(request, choice, 1))
    own = request.key is not None
    ranked = request.shared(names, scores, request.tolerance) if own else request.ranked(choice, scores)
    why = f"{names[ranked[0]]} has {scores[ranked[0]]:.2f}, the best {min(scores):.2f}"
    return [names[at] for at in ranked], request.stays(why)


def _added(scores: Values, weight: float, values: Values) -> list[float]:
    """The scores with the weight times each value divided by the best."""
    best = min(values)
    if best > 0:
        factor = weight / best
        return [score + factor * value for score, value in zip(scores, values, strict=True)]
    return [score + weight * (_TIMES_FREE if value > 0 else 1.0) for score, value in zip(scores, values, strict=True)]


def _costs_at_most(request: _Request, choice: Choice) -> list[float]:
    """What has no price is taken for the dearest."""
    costs = request.costs(choice)
    dearest = max((cost for cost in costs if cost != inf), default=1.0)
    return [dearest if cost == inf else cost for cost in costs]


def _times_at_most(request: _Request, choice: Choice) -> list[float]:
    """What was not measured yet is taken for the slowest, or for the fastest where the request tries it."""
    latency, stream, names = request.live.latency_ms, request.context.stream, choice.names
    times = [latency(name, stream) for name in names]
    known = [max(time, _NO_TIME_MS) for time in times if time is not None]
    if len(known) == len(names):
        return known
    fastest, slowest = min(known, default=_NO_TIME_MS), max(known, default=_NO_TIME_MS)
    return [
        (fastest if request.tries(name) else slowest) if time is None else max(time, _NO_TIME_MS)
        for name, time in zip(names, times, strict=True)
    ]


def _by_weight(request: _Request, choice: Choice) -> tuple[list[str], str]:
    names, given = choice.names, request.policy.weights
    weights = [given.get(name, 1.0) for name in names]
    drawn = weighted_draws(request.seed, names, weights)
    ranked = sorted(range(len(names)), key=drawn.__getitem__)
    who = "this request" if request.key is None else f"this {request.policy.sticky}"
    return [names[at] for at in ranked], f"{who} drew {names[ranked[0]]}, whose weight is {weights[ranked[0]]:g}"


def _by_load(request: _Request, choice: Choice) -> tuple[list[str], str]:
    names, loads = choice.names, _loads(request, choice)
    if request.key is None:
        ranked = request.ranked(choice, loads)
        return [names[at] for at in ranked], f"{names[ranked[0]]} has the fewest requests under way, by weight"
    running = [request.live.in_flight(name) for name in names]
    weights = [max(one.weight, _NO_WEIGHT) for one in choice.candidates]
    share = _MOST_LOAD * (sum(running) + 1) / sum(weights)
    crowded = [
        0 if count < ceil(share * one.weight) else 1 + load
        for one, count, load in zip(choice.candidates, running, loads, strict=True)
    ]
    keys = list(zip(crowded, request.draws(names), strict=True))
    ranked = sorted(range(len(names)), key=keys.__getitem__)
    at = ranked[0]
    why = f"{names[at]} has {running[at]} requests under way; its {request.policy.sticky} stays within its share"
    return [names[at] for at in ranked], why


def _in_turn(request: _Request, choice: Choice) -> tuple[list[str], str]:
    names = choice.names
    if request.key is not None:
        ordered = [names[at] for at in request.ranked(choice, [0] * len(names), *_LEVELS)]
        return ordered, f"this {request.policy.sticky} has {ordered[0]}"
    first = request.live.turn(request.context.asked_model) % len(names)
    return [*names[first:], *names[:first]], f"it is the turn of {names[first]}"


def _loads(request: _Request, choice: Choice, more: int = 0) -> list[float]:
    """Requests under way and so many more, by weight."""
    in_flight = request.live.in_flight
    return [(in_flight(one.name) + more) / max(one.weight, _NO_WEIGHT) for one in choice.candidates]


_OBJECTIVES: Mapping[str, Callable[[_Request, Choice], tuple[list[str], str]]] = {
    Objective.PRIORITY: _by_priority,
    Objective.COST: _by_cost,
    Objective.LATENCY: _by_latency,
    Objective.BALANCED: _by_balance,
    Objective.WEIGHTED: _by_weight,
    Objective.LEAST_BUSY: _by_load,
    Objective.ROUND_ROBIN: _in_turn,
}
