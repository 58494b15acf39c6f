"""Whether an experiment's units were divided among its variants as was meant."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import erfc, exp, lgamma, log, sqrt

from custom_router.experiments.metrics import Period

SPLIT_ALPHA = 0.01
"""The chi-square test's p-value below which the split is taken for wrong and no difference is called one.

A split of 550 to 450 where half and half was meant has 0.0016: the usual 0.001 would let it pass. Where units really
come 55 to 45, it is found in 73 % of experiments at 1,000 units and in 98 % by 2,000. The price is that at a given look
one right split of a hundred is doubted, until more units show it to be right: 8 % of experiments at some look of 50.
"""

SURE_SPLIT_ALPHA = 0.01
"""The same for the test that holds however often one looks: of a hundred experiments with the right split, one is ever
called surely wrong. That is what is worth waking somebody for."""

PRIOR_UNITS = 100
"""How close to the meant split the sequential test thinks a wrong one is; found soonest at some ten times as many
units."""


@dataclass(frozen=True, slots=True)
class Split:
    """Whether units were divided as the weights say. `srm`: they were not (a sample-ratio mismatch).

    `p_value` is the chi-square test's. `always_valid` is that of Lindon and Malek, "Anytime-valid inference for
    multinomial count data", https://arxiv.org/abs/2011.03567; where it is low too the mismatch is `sure`.
    """

    p_value: float
    always_valid: float
    srm: bool
    sure: bool


def split_of(periods: Sequence[Period]) -> Split:
    """Whether the units of each period were divided by its weights; the periods' evidence is added up."""
    statistic, freedom, evidence = 0.0, 0, 0.0
    for period in periods:
        weights = {variant: weight for variant, weight in period.weights.items() if weight > 0}
        counts = [period.arms[variant].units if variant in period.arms else 0 for variant in weights]
        units, shares = sum(counts), [weight / sum(weights.values()) for weight in weights.values()]
        # Below five expected units the chi-square distribution is too far from the truth.
        if len(counts) < 2 or units * min(shares) < 5:
            continue
        statistic += sum((n - units * share) ** 2 / (units * share) for n, share in zip(counts, shares, strict=True))
        freedom += len(counts) - 1
        evidence += _evidence(counts, shares)
    p_value = _chi_square_tail(statistic, freedom) if freedom else 1.0
    always_valid = min(1.0, exp(-evidence))
    return Split(p_value, always_valid, srm=p_value < SPLIT_ALPHA, sure=always_valid < SURE_SPLIT_ALPHA)


def _evidence(counts: Sequence[int], shares: Sequence[float]) -> float:
    """Logarithm of the Bayes factor of any split, Dirichlet distributed around the meant one, against the meant one."""
    prior = [PRIOR_UNITS * share for share in shares]
    found = lgamma(PRIOR_UNITS) - lgamma(PRIOR_UNITS + sum(counts))
    for n, share, start in zip(counts, shares, prior, strict=True):
        found += lgamma(start + n) - lgamma(start) - n * log(share)
    return found


def _chi_square_tail(statistic: float, freedom: int) -> float:
    """The probability of a chi-square variable above the statistic.

    By the recurrence Q(k + 2) = Q(k) + (x/2)^(k/2) exp(-x/2) / Gamma(k/2 + 1), Abramowitz and Stegun 26.4.8, from the
    closed forms for one and two degrees of freedom.
    """
    half = statistic / 2
    if half <= 0:
        return 1.0
    at, tail = (1, erfc(sqrt(half))) if freedom % 2 else (2, exp(-half))
    while at < freedom:
        tail += exp(at / 2 * log(half) - half - lgamma(at / 2 + 1))
        at += 2
    return min(1.0, tail)
