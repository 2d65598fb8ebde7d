"""How far a measured mean can be trusted: intervals for means, proportions and differences.

numpy only. Every interval is two-sided at ``confidence`` (95 % unless told otherwise), and every
random draw is a function of ``seed``: the same values give the same interval, on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Values drawn at a time by the bootstrap: 2 million indices are 16 MB.
_CHUNK = 2_000_000


class Interval(NamedTuple):
    """An estimate, the ends of its confidence interval, and how many values it comes from."""

    mean: float
    low: float
    high: float
    n: int


def mean_interval(values: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Mean of n values, plus or minus z s / sqrt(n), s the sample standard deviation (n - 1).

    The normal approximation: good from some thirty values on. One value has an unbounded interval.
    """
    sample = _sample(values)
    z = _quantile(confidence)
    mean = float(sample.mean())
    if sample.size == 1:
        return Interval(mean, -np.inf, np.inf, 1)
    half = z * float(sample.std(ddof=1)) / float(np.sqrt(sample.size))
    return Interval(mean, mean - half, mean + half, sample.size)


def wilson_interval(successes: float, n: int, *, confidence: float = 0.95) -> Interval:
    """Interval of a proportion by Wilson's score (1927), which stays within [0, 1] and off ±0.

    ``mean`` is the plain proportion; ``successes`` may count a tie as one half.
    """
    if not (n > 0 and 0 <= successes <= n):
        raise ValueError(f"{successes} successes of {n}: need 0 <= successes <= n and n > 0")
    z = _quantile(confidence)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))) / (1 + z * z / n)
    # The ends are exactly 0 and 1 at p = 0 and p = 1; rounding must not put them outside.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(p, low, high, n)


def bootstrap_interval(
    values: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Percentile bootstrap of a mean (Efron 1979): quantiles of the means of resampled values."""
    sample = _sample(values)
    tail = _tail(confidence)
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: must be at least 1")
    means = np.concatenate(list(_resampled_means(sample, resamples, seed)))
    low, high = np.quantile(means, (tail, 1 - tail))
    return Interval(float(sample.mean()), float(low), float(high), sample.size)


def paired_bootstrap(
    before: ArrayLike,
    after: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of the mean of ``after - before``, values measured on the same rows.

    Rows are resampled whole, so what makes a row hard for both drops out of the difference. The
    change is distinguishable from none where the interval leaves out 0.
    """
    first, second = _sample(before), _sample(after)
    if first.shape != second.shape:
        raise ValueError(f"{first.size} values against {second.size}: pairs need the same rows")
    return bootstrap_interval(second - first, confidence=confidence, resamples=resamples, seed=seed)


def crossed_bootstrap(
    values: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Percentile bootstrap of a mean over seeds and prompts: ``values[s, p]``, one a cell.

    Rows (seeds) and columns (prompts) are resampled whole and independently of each other (Owen's
    pigeonhole bootstrap, 2007; a little wide rather than narrow), because one seed's values share
    a model and one prompt's share their difficulty. Several samples of a cell enter as their mean:
    counted one by one they would make the interval too narrow. With one seed, prompts alone are
    resampled. ``n`` counts cells.
    """
    cells = np.asarray(values, dtype=np.float64)
    if cells.ndim != 2 or cells.size == 0:
        raise ValueError(
            f"values of shape {cells.shape}: need seeds x prompts, one of each or more"
        )
    tail = _tail(confidence)
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: must be at least 1")
    draws = np.random.Generator(np.random.Philox(key=seed))
    rows, columns = (_counts(draws, resamples, size) for size in cells.shape)
    means = ((rows @ cells) * columns).sum(axis=1) / cells.size
    low, high = np.quantile(means, (tail, 1 - tail))
    return Interval(float(cells.mean()), float(low), float(high), cells.size)


def _counts(draws: np.random.Generator, resamples: int, size: int) -> NDArray[np.float64]:
    """[resamples, size] how often each of ``size`` things is drawn in ``size`` draws."""
    drawn = draws.integers(size, size=(resamples, size))
    drawn += size * np.arange(resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=resamples * size)
    return counts.reshape(resamples, size).astype(np.float64)


def _resampled_means(
    sample: NDArray[np.float64], resamples: int, seed: int
) -> Iterator[NDArray[np.float64]]:
    draws = np.random.Generator(np.random.Philox(key=seed))
    rows = max(1, _CHUNK // sample.size)
    for start in range(0, resamples, rows):
        shape = (min(rows, resamples - start), sample.size)
        yield sample[draws.integers(sample.size, size=shape)].mean(axis=1)


def _sample(values: ArrayLike) -> NDArray[np.float64]:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size == 0:
        raise ValueError(f"values of shape {sample.shape}: need a list of at least one number")
    return sample


def _tail(confidence: float) -> float:
    """Probability beyond each end."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: must lie between 0 and 1")
    return (1 - confidence) / 2


def _quantile(confidence: float) -> float:
    """Half-width of the interval in standard deviations: 1.96 for 95 %."""
    return NormalDist().inv_cdf(1 - _tail(confidence))
