"""An estimate with its interval, and that of a share: for every package, imports nothing of ours.

Means, differences and bootstraps are in ``evaluation/statistics.py``, which needs more than this.
"""

from __future__ import annotations

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
