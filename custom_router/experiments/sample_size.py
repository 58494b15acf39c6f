"""How many units a comparison takes."""

from collections.abc import Callable
from math import ceil, sqrt
from statistics import NormalDist

from custom_router.experiments.sequential import TUNING, boundary

POWER = 0.8
_MOST = 1 << 53


def units_needed(
    variances: tuple[float, float],
    difference: float,
    *,
    share: float = 0.5,
    alpha: float = 0.05,
    power: float = POWER,
    sequential: bool = True,
) -> int:
    """Units of both arms together with which a difference of the means is found with probability `power`.

    `variances` are those of one unit, of the control and of the variant, which has `share` of the units.
    N = (z(1 - alpha/2) + z(power))^2 (variance_c / (1 - share) + variance_v / share) / difference^2: Chow, Shao, Wang
    and Lokhnygina, Sample Size Calculations in Clinical Research, 3rd ed., section 3.2.1, variances not pooled.
    Of a sequential test, z(1 - alpha/2) is its boundary at N; with earlier looks the power is higher.

    Raises ValueError for a difference of 0 or a share that leaves an arm without units.
    """
    if not difference or not 0 < share < 1:
        raise ValueError(f"needs a difference and a share between 0 and 1, not {difference:g} and {share:g}")
    normal = NormalDist()
    spread = variances[0] / (1 - share) + variances[1] / share
    wanted = normal.inv_cdf(power)
    if not sequential:
        return max(2, ceil((normal.inv_cdf(1 - alpha / 2) + wanted) ** 2 * spread / difference**2))
    # The signal grows with the root of N, the boundary for large N with the root of its logarithm.
    return _first(lambda units: abs(difference) * sqrt(units / spread) >= boundary(units, alpha, TUNING) + wanted)


def _first(enough: Callable[[int], bool]) -> int:
    high = 2
    while not enough(high) and high < _MOST:
        high *= 2
    low = high // 2
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
