"""Many statistics over the same seeds and prompts, all from the same resamples.

``Resamples`` draws once how often each seed and each prompt counts; every mean, difference, ratio
and win rate is then computed under the same draws, so that anything derived from several of them
(a difference of curves, say) is paired, and costs a product of matrices.

Seeds and prompts are drawn whole and independently of each other (Owen's pigeonhole bootstrap,
2007). Of S seeds S - 1 are drawn and count S / (S - 1) each: that makes the variance between seeds
that of s^2 / S, where drawing S of them loses a fifth of it with five seeds. One seed is a given:
prompts alone are resampled then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trimtab.evaluation.statistics import resample_counts
from trimtab.intervals import Interval, tail

Floats = NDArray[np.float64]


class Resamples:
    """Weights of seeds [B, S] and of prompts [B, P], whose mean is 1 in every resample."""

    def __init__(self, seeds: int, prompts: int, resamples: int = 2000, seed: int = 0) -> None:
        assert seeds >= 1 and prompts >= 1 and resamples >= 1, (seeds, prompts, resamples)
        self.count = resamples
        self.rows: Floats = np.ones((resamples, seeds))
        if seeds > 1:
            drawn = np.random.Generator(np.random.Philox(key=seed + 1)).integers(
                seeds, size=(resamples, seeds - 1)
            )
            counts = np.zeros((resamples, seeds))
            np.add.at(counts, (np.arange(resamples)[:, None], drawn), 1.0)
            self.rows = counts * (seeds / (seeds - 1))
        self.columns: Floats = resample_counts(resamples, prompts, seed)

    def mean(self, cells: ArrayLike) -> Floats:
        """[B] means of ``cells`` [S, P]."""
        table = np.asarray(cells, dtype=np.float64)
        assert table.shape == (self.rows.shape[1], self.columns.shape[1]), table.shape
        return ((self.rows @ table) * self.columns).sum(axis=1) / table.size

    def ratio(self, above: ArrayLike, below: ArrayLike) -> Floats:
        """[B] sums of one table by those of another: nats by tokens, say."""
        return self.mean(above) / self.mean(below)

    def weights(self, most: int) -> Floats:
        """[B, S * P] how much each cell counts in the first ``most`` resamples."""
        rows, columns = self.rows[:most], self.columns[:most]
        return (rows[:, :, None] * columns[:, None, :]).reshape(len(rows), -1)


def interval(
    estimate: float, resampled: ArrayLike, n: int, *, confidence: float = 0.95
) -> Interval:
    """Percentile interval; resamples in which a statistic is undefined (NaN) are left out."""
    values = np.asarray(resampled, dtype=np.float64)
    values = values[~np.isnan(values)]
    outside = tail(confidence)
    if not values.size:
        return Interval(estimate, np.nan, np.nan, n)
    low, high = np.quantile(values, (outside, 1 - outside))
    return Interval(estimate, float(low), float(high), n)


def two_sided_p(estimate: float, resampled: ArrayLike, null: float = 0.0) -> float:
    """p-value of ``estimate`` against ``null`` by the standard deviation of its resamples.

    Normal, so that it goes on where counting resamples ends: of B none is smaller than 1 / B, which
    no correction for hundreds of comparisons would survive.
    """
    values = np.asarray(resampled, dtype=np.float64)
    spread = float(np.std(values[~np.isnan(values)])) if np.isfinite(values).any() else math.nan
    away = abs(estimate - null)
    if not spread > 1e-12:
        return 1.0 if away < 1e-12 or math.isnan(spread) else 0.0
    return math.erfc(away / spread / math.sqrt(2))


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979): the k-th smallest of m times m - k + 1.

    The chance that any true null hypothesis is rejected at a level is at most that level, however
    the comparisons depend on each other.
    """
    adjusted = [0.0] * len(p)
    highest = 0.0
    for place, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, p[index] * (len(p) - place)))
        adjusted[index] = highest
    return adjusted


def value_at(x: Floats, y: Floats, level: float) -> Floats:
    """[B] value of curves through points [B, C] where they first reach ``x`` = level.

    Linear between neighbouring points; NaN where a curve never gets there. Curves begin below.
    """
    left, right = x[:, :-1], x[:, 1:]
    crosses = (left < level) & (right >= level)
    first = crosses.argmax(axis=1) if crosses.shape[1] else np.zeros(len(x), dtype=np.int64)
    rows = np.arange(len(x))
    if not crosses.shape[1]:
        return np.full(len(x), np.nan)
    a, b = left[rows, first], right[rows, first]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (level - a) / (b - a)
        found = y[rows, first] + share * (y[rows, first + 1] - y[rows, first])
    return np.where(crosses.any(axis=1), found, np.nan)
