"""An estimate with its interval, and that of a share: for every package, imports nothing of ours.

Means, differences and bootstraps are in ``evaluation/statistics.py``, which needs more than this.
"""

from __future__ import annotations

import functools
import math
from statistics import NormalDist
from typing import NamedTuple


class Interval(NamedTuple):
    """An estimate, the ends of its confidence interval, and how many values it comes from."""

    mean: float
    low: float
    high: float
    n: int


def wilson_interval(successes: float, n: int, *, confidence: float = 0.95) -> Interval:
    """Interval of a proportion by Wilson's score (1927), which stays within [0, 1] and off ±0.

    ``mean`` is the plain proportion; ``successes`` may count a tie as one half.
    """
    if not (n > 0 and 0 <= successes <= n):
        raise ValueError(f"{successes} successes of {n}: need 0 <= successes <= n and n > 0")
    z = normal_quantile(confidence)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # The ends are exactly 0 and 1 at p = 0 and p = 1; rounding must not put them outside.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(p, low, high, n)


def tail(confidence: float) -> float:
    """Probability beyond each end."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: must lie between 0 and 1")
    return (1 - confidence) / 2


def normal_quantile(confidence: float) -> float:
    """Half-width of the interval in standard deviations: 1.96 for 95 %."""
    return NormalDist().inv_cdf(1 - tail(confidence))


@functools.lru_cache(maxsize=1024)
def t_quantile(confidence: float, degrees: float) -> float:
    """The same of Student's t with so many degrees of freedom: 2.776 for 95 % and 4.

    Newton's method on the probability beyond it, which is convex: from the normal quantile, which
    lies below, every step stays below. From 10,000 degrees on it is the normal one, which differs
    by less than one part in 10,000.
    """
    outside = tail(confidence)
    if not degrees > 0:
        raise ValueError(f"degrees={degrees}: must be above 0")
    found = normal_quantile(confidence)
    if degrees >= 10_000:
        return found
    front = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
    front -= math.log(degrees * math.pi) / 2
    for _ in range(500):
        density = math.exp(front - (degrees + 1) / 2 * math.log1p(found * found / degrees))
        step = (t_beyond(found, degrees) - outside) / density
        found += step
        if abs(step) <= 1e-12 * found:
            break
    return found


def t_beyond(value: float, degrees: float) -> float:
    """Probability that Student's t with so many degrees of freedom exceeds ``value`` >= 0.

    Half the regularised incomplete beta function I_x(degrees / 2, 1 / 2) at x = degrees / (degrees
    + value^2), by its continued fraction (Abramowitz and Stegun 26.5.8 and 26.7.1).
    """
    x = degrees / (degrees + value * value)
    a, b = degrees / 2, 0.5
    if x > (a + 1) / (a + b + 2):  # where the fraction of the complement is the one that converges
        return 0.5 - _incomplete_beta(1 - x, b, a) / 2
    return _incomplete_beta(x, a, b) / 2


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """I_x(a, b) for x below (a + 1) / (a + b + 2)."""
    if x <= 0:
        return 0.0
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(front + a * math.log(x) + b * math.log1p(-x)) / a
    tiny = 1e-300
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 500):  # Lentz's method: an even and an odd term at a time
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        change = 1.0
        for term in (even, odd):
            d = 1 / (1 + term * d or tiny)
            c = 1 + term / c or tiny
            change = c * d
            fraction *= change
        if abs(change - 1) < 1e-15:
            break
    return front * fraction
