"""Which variants surely do more harm than an experiment allows."""

from collections.abc import Sequence
from math import sqrt

from core.settings.models.experiments import Experiment
from custom_router.experiments.estimates import Estimate, compare
from custom_router.experiments.metrics import Kind, Metric, Period, metric
from custom_router.experiments.sequential import GUARDRAIL_TUNING, boundary


def broken(experiment: Experiment, periods: Sequence[Period]) -> dict[str, str]:
    """The variants that are worse than the control by more than `guardrail_limit`, each with the reason.

    For a metric that should be low, variant - (1 + limit) control must be above 0 beyond doubt: a one-sided bound that
    holds at all times, so that one may look every second, with alpha divided by the number of variants and guardrails.
    In at most alpha of the experiments a variant is ever closed that is no worse than the limit. Nothing is divided by
    the control's value, so that a control that never fails is one to compare with. Needs neither numpy nor gbstats.
    """
    metrics, control = experiment.metrics, experiment.variants[0].id
    guardrails = [metric(name, metrics.lower_is_better) for name in dict.fromkeys(metrics.guardrails)]
    found: dict[str, str] = {}
    for variant in experiment.variants[1:]:
        for guardrail in guardrails:
            pair = compare(guardrail, periods, control, variant.id)
            if pair.control is None or pair.variant is None or pair.lacking is not None:
                continue
            alpha = metrics.alpha / (len(guardrails) * (len(experiment.variants) - 1))
            if _harm(guardrail, pair.control, pair.variant, metrics.guardrail_limit, alpha) > 0:
                found[variant.id] = _reason(guardrail, pair.control, pair.variant, metrics.guardrail_limit)
                break
    return found


def _harm(guardrail: Metric, control: Estimate, variant: Estimate, limit: float, alpha: float) -> float:
    """The lower bound of how much the variant is worse than the limit allows, in the metric's own measure."""
    if guardrail.lower_is_better:
        allowed = control.value + limit * abs(control.value)
    else:
        allowed = control.value - limit * abs(control.value)
    slope = allowed / control.value if control.value else 1 + limit
    beyond = (variant.value - allowed) * (1 if guardrail.lower_is_better else -1)
    error = sqrt(variant.error_squared + slope * slope * control.error_squared)
    # The bound has two sides of which harm is one.
    return beyond - boundary(control.units + variant.units, min(2 * alpha, 0.5), GUARDRAIL_TUNING) * error


def _reason(guardrail: Metric, control: Estimate, variant: Estimate, limit: float) -> str:
    return (
        f"{guardrail.name} is {_shown(guardrail, variant.value)} after the control's "
        f"{_shown(guardrail, control.value)}, surely more than {limit:.0%} worse "
        f"({variant.units} and {control.units} units)"
    )


def _shown(guardrail: Metric, value: float) -> str:
    if guardrail.kind is Kind.PROPORTION:
        return f"{value:.2%}"
    return f"{value:.4g} {guardrail.measured_in}".rstrip()
