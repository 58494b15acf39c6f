"""What a simulation found, before and after, for people and programs."""

from collections.abc import Iterable, Sequence
from typing import Any

from core.budgets.catalog import Catalog
from core.money import format_dollars
from core.settings import Settings
from custom_router.recordings import Span
from custom_router.simulation import Tally

_BUDGET_REFUSALS = ("BudgetExceeded", "CostUnbounded")
_ROUTING_REFUSALS = ("ModelNotAllowed", "NoCapableModel")
_WORST = 20
_NOTABLE = 0.1
"""The difference between recorded and listed cost, as a share, from which on it is pointed out."""
_MOST_MOVES = 100

Json = dict[str, Any]  # JSON


def compared(tally: Tally, settings: Settings, spans: Sequence[Span], sample: float = 1.0) -> Json:
    """The tally as JSON: dollars as exact text, shares from 0 to 1. `settings` are those that were tried out.

    All counts and costs are those of the sample; what budgets would have spent is scaled up to all requests.
    """
    return {
        "period": {
            "since_ms": spans[0].since_ms if spans else None,
            "until_ms": spans[-1].until_ms if spans else None,
            "recorded": sum(span.requests for span in spans),
        },
        "requests": tally.requests,
        "sample": sample,
        "cost": _costs(tally),
        "models": _models(tally),
        "moved": _moved(tally),
        "refused": {
            "by_routing_then": _refused(tally, _ROUTING_REFUSALS),
            "by_routing_now": sum(count for count, _ in tally.refused.values()),
            "admitted_now": tally.admitted,
            "by_budgets_then": _refused(tally, _BUDGET_REFUSALS),
            "otherwise_then": _refused(tally, tally.refused_then)
            - _refused(tally, (*_ROUTING_REFUSALS, *_BUDGET_REFUSALS)),
            "now": [
                {"tier": tier, "model": model, "why": why, "requests": count, "not_refused_then": new}
                for (tier, model, why), (count, new) in _largest(tally.refused.items())
            ],
        },
        "rules": [{"id": rule.id, "requests": _first(tally.rules.get(rule.id))} for rule in settings.routing.rules],
        "experiments": _experiments(tally, settings),
        "budgets": _budgets(tally, settings, sample),
        "notes": _notes(tally, settings, spans, sample),
    }


def _refused(tally: Tally, errors: Iterable[str]) -> int:
    return sum(_first(tally.refused_then.get(name)) for name in errors)


def _costs(tally: Tally) -> Json:
    recorded = sum(cost for _, cost, _ in tally.before.values())
    before = sum(cost for _, _, cost in tally.before.values())
    after = sum(cost for _, cost in tally.after.values())
    return {
        "recorded": format_dollars(recorded),
        "before": format_dollars(before),
        "after": format_dollars(after),
        "change": None if not before else round(after / before - 1, 6),
    }


def _models(tally: Tally) -> list[Json]:
    """Each model that answered or would answer, the one with most requests first."""
    requests_before = sum(count for count, _, _ in tally.before.values())
    requests_after = sum(count for count, _ in tally.after.values())
    names = sorted(
        tally.before.keys() | tally.after.keys(),
        key=lambda name: (-max(_first(tally.before.get(name)), _first(tally.after.get(name))), name),
    )
    found: list[Json] = []
    for name in names:
        before, recorded, expected = tally.before.get(name, [0, 0, 0])
        after, cost = tally.after.get(name, [0, 0])
        found.append(
            {
                "model": name,
                "before": {
                    "requests": before,
                    "share": _share(before, requests_before),
                    "recorded_cost": format_dollars(recorded),
                    **_cost_and_mean(before, expected),
                },
                "after": {
                    "requests": after,
                    "share": _share(after, requests_after),
                    **_cost_and_mean(after, cost),
                },
            }
        )
    return found


def _cost_and_mean(requests: int, cost: int) -> Json:
    return {
        "cost": format_dollars(cost),
        "mean_cost": format_dollars(round(cost / requests)) if requests else None,
    }


def _moved(tally: Tally) -> list[Json]:
    return [
        {
            "task_type": task,
            "from": before,
            "to": after,
            "requests": count,
            "cost_before": format_dollars(then),
            "cost_after": format_dollars(now),
        }
        for (task, before, after), (count, then, now) in _largest(tally.moved.items())[:_MOST_MOVES]
    ]


def _experiments(tally: Tally, settings: Settings) -> list[Json]:
    found: list[Json] = []
    for experiment in settings.routing.experiments:
        counts = {one.id: _first(tally.arms.get((experiment.id, one.id))) for one in experiment.variants}
        total = sum(counts.values())
        found += [
            {
                "experiment": experiment.id,
                "variant": one.id,
                "model": one.model,
                "requests": counts[one.id],
                "share": _share(counts[one.id], total),
            }
            for one in experiment.variants
        ]
    return found


def _budgets(tally: Tally, settings: Settings, sample: float) -> list[Json]:
    """For each budget: how much was and would be spent in all, and in how many accounts more than there is."""
    accounts: dict[str, list[tuple[int, str, int, int]]] = {}
    for (budget, start_ms, member), (before, after) in tally.accounts.items():
        accounts.setdefault(budget, []).append((start_ms, member, round(before / sample), round(after / sample)))
    found: list[Json] = []
    for terms in Catalog(settings.budgets):
        own = accounts.get(terms.budget_id, [])
        limits = [terms.limit_nano(member) for _, member, _, _ in own]
        over = [
            {
                "member": member or None,
                "period_start_ms": start_ms,
                "total": format_dollars(limit),
                "before": format_dollars(before),
                "after": format_dollars(after),
            }
            for limit, (start_ms, member, before, after) in sorted(
                zip(limits, own, strict=True), key=lambda one: (-max(one[1][2:]) / max(one[0], 1), one[1][:2])
            )
            if max(before, after) > limit
        ]
        found.append(
            {
                "budget_id": terms.budget_id,
                "per": None if terms.per is None else terms.per.value,
                "at_limit": terms.at_limit.value,
                "total": format_dollars(terms.total_nano),
                "accounts": len(own),
                "before": {
                    "spent": format_dollars(sum(before for _, _, before, _ in own)),
                    "over": sum(one[2] > limit for limit, one in zip(limits, own, strict=True)),
                },
                "after": {
                    "spent": format_dollars(sum(after for _, _, _, after in own)),
                    "over": sum(one[3] > limit for limit, one in zip(limits, own, strict=True)),
                },
                "worst": over[:_WORST],
            }
        )
    return found


def _notes(tally: Tally, settings: Settings, spans: Sequence[Span], sample: float) -> list[str]:
    """What has to be known to read the figures right; the assumptions that always hold are in docs/simulate.md."""
    notes: list[str] = []
    if sample < 1:
        notes.append(f"A sample of {sample:.2%} of the requests was looked at; budgets are scaled up to all of them.")
    recorded = sum(cost for _, cost, _ in tally.before.values())
    before = sum(cost for _, _, cost in tally.before.values())
    if abs(before - recorded) > _NOTABLE * recorded:
        notes.append(
            f"At the proposal's prices, what was recorded as ${format_dollars(recorded)} costs "
            f"${format_dollars(before)}; budgets count what was recorded, and how much moving requests changes that."
        )
    if tally.unpriced:
        notes.append(f"{tally.unpriced} prices of requests were not known; for these the recorded cost stands.")
    if tally.cached:
        notes.append(f"{tally.cached} requests were answered by a cache and cost nothing, before and after.")
    if tally.unreadable:
        notes.append(f"{tally.unreadable} requests were recorded in a form that this version cannot read.")
    if tally.lost_tiers:
        lost = ", ".join(sorted(tally.lost_tiers))
        default = settings.default_tier if settings.tiers else None
        notes.append(f"Callers of tiers that are gone ({lost}) have {default or 'no tier'}.")
    for name, (count,) in sorted(tally.strategies.items()):
        notes.append(f"The strategy {name} was not asked about {count} requests; the first candidate stands for it.")
    notes += _later(settings, spans)
    return notes


def _later(settings: Settings, spans: Sequence[Span]) -> list[str]:
    """What the proposal has that begins only after what was recorded."""
    if not spans:
        return []
    begins = [(f"The rule {rule.id}", rule.valid_from) for rule in settings.routing.rules]
    begins += [(f"The experiment {one.id}", one.start) for one in settings.routing.experiments]
    end = spans[-1].until_ms
    return [
        f"{what} begins at {moment.isoformat()}, after all of these requests, and was not tried out."
        for what, moment in begins
        if moment is not None and moment.timestamp() * 1000 >= end
    ]


def _largest(table: Iterable[tuple[Any, list[int]]]) -> list[tuple[Any, list[int]]]:
    return sorted(table, key=lambda one: (-one[1][0], str(one[0])))


def _first(sums: list[int] | None) -> int:
    return 0 if sums is None else sums[0]


def _share(part: int, total: int) -> float:
    return round(part / total, 6) if total else 0.0
