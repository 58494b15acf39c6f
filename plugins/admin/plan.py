"""A plan as the admin API shows it."""

from typing import Any

from custom_router.decision import Plan


def shown(plan: Plan) -> dict[str, Any]:
    """A plan as JSON. Of text that is put in front of prompts only that there is some: it is the operator's."""
    return {
        "policy": plan.policy,
        "candidates": list(plan.candidates),
        "left_out": _reasons(plan.left_out),
        "denied": None if plan.denied is None else {"rule": plan.denied_by, "message": plan.denied},
        "steps": [
            {
                "stage": step.stage,
                "removed": _reasons(step.removed),
                "promoted": list(step.promoted),
                "why": step.why,
            }
            for step in plan.steps
        ],
        "rules": list(plan.rules),
        "assignments": [
            {"experiment": one.experiment, "variant": one.variant, "unit": one.unit, "counted": one.counted}
            for one in plan.assignments
        ],
        "set": dict(plan.set),
        "system_prefix": plan.system_prefix is not None,
        "strategy": None if plan.strategy is None else {"name": plan.strategy, "chooses_among": list(plan.tied)},
        "regions": list(plan.regions),
        "reason": plan.reason,
    }


def _reasons(left_out: tuple[tuple[str, str], ...]) -> list[dict[str, str]]:
    return [{"model": model, "reason": reason} for model, reason in left_out]
