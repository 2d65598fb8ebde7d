"""How far a measured mean can be trusted: intervals for means, proportions and differences.

numpy only. Every interval is two-sided at ``confidence`` (95 % unless told otherwise), and every
random draw is a function of ``seed``: the same values give the same interval, on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trimtab.intervals import Interval, normal_quantile, tail, wilson_interval

# Values drawn at a time by the bootstrap: 2 million indices are 16 MB.
_CHUNK = 2_000_000


def mean_interval(values: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Mean of n values, plus or minus z s / sqrt(n), s the sample standard deviation (n - 1).

    The normal approximation: good from some thirty values on. One value has an unbounded interval.
    """
    sample = _sample(values)
    z = normal_quantile(confidence)
    mean = float(sample.mean())
    if sample.size == 1:
        return Interval(mean, -np.inf, np.inf, 1)
    half = z * float(sample.std(ddof=1)) / float(np.sqrt(sample.size))
    return Interval(mean, mean - half, mean + half, sample.size)


def clustered_share(
    successes: ArrayLike, counts: ArrayLike, *, confidence: float = 0.95
) -> Interval:
    """Share of successes among trials that come in clusters (the comparisons of one prompt, say).

    ``successes[g]`` of ``counts[g]`` trials of cluster g; empty clusters are left out. Trials of a
    cluster are not independent, so the variance is that of the ratio of two sums over clusters
    (linearised; Cochran 1977, 6.4); it is turned into an effective number of trials for Wilson's
    interval, which stays within [0, 1]. ``n`` is the number of trials.
    """
    hits, trials = _sample(successes), _sample(counts)
    if hits.shape != trials.shape or np.any(hits > trials) or np.any(hits < 0):
        raise ValueError("need 0 <= successes <= counts, one of each a cluster")
    hits, trials = hits[trials > 0], trials[trials > 0]
    clusters, total = trials.size, float(trials.sum())
    if clusters == 0:
        raise ValueError("no trials")
    share = float(hits.sum()) / total
    spread = 0.0
    if clusters > 1:
        squares = float(np.square(hits - share * trials).sum())
        spread = clusters / (clusters - 1) * squares / total**2
    # Without any spread (all right, say) the clusters themselves are what can be counted.
    effective = min(total, share * (1 - share) / spread) if spread > 0 else float(clusters)
    effective = max(1, round(effective))
    interval = wilson_interval(share * effective, effective, confidence=confidence)
    return Interval(share, interval.low, interval.high, int(total))


def bootstrap_interval(
    values: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Percentile bootstrap of a mean (Efron 1979): quantiles of the means of resampled values."""
    sample = _sample(values)
    outside = tail(confidence)
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: must be at least 1")
    means = np.concatenate(list(_resampled_means(sample, resamples, seed)))
    low, high = np.quantile(means, (outside, 1 - outside))
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
    outside = tail(confidence)
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: must be at least 1")
    draws = np.random.Generator(np.random.Philox(key=seed))
    rows, columns = (_counts(draws, resamples, size) for size in cells.shape)
    means = ((rows @ cells) * columns).sum(axis=1) / cells.size
    low, high = np.quantile(means, (outside, 1 - outside))
    return Interval(float(cells.mean()), float(low), float(high), cells.size)


def cluster_bootstrap(
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    columns: ArrayLike,
    clusters: Sequence[Hashable] | NDArray[np.int64],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over whole clusters of anything that is a function of column totals.

    ``columns`` [n, m] has a row an observation; ``clusters`` [n] says which of them belong together
    (the comparisons of one prompt share its difficulty, so prompts are drawn, not comparisons:
    Davison and Hinkley 1997, 3.8). ``statistic`` takes totals [B, m], one row a resample, and gives
    [B]: a mean is ``totals[:, 0] / totals[:, 1]`` with a second column of ones. Resamples in which
    it is undefined (NaN) are left out. One cluster has an unbounded interval; ``n`` counts
    observations.
    """
    table = np.asarray(columns, dtype=np.float64)
    if table.ndim != 2 or table.size == 0 or len(clusters) != len(table):
        raise ValueError(
            f"columns of shape {table.shape} and {len(clusters)} clusters: need one each a row"
        )
    outside = tail(confidence)
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: must be at least 1")
    numbers = cluster_numbers(clusters)
    totals = np.zeros((int(numbers.max()) + 1, table.shape[1]))
    np.add.at(totals, numbers, table)
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = float(statistic(totals.sum(axis=0, keepdims=True))[0])
        if len(totals) == 1:
            return Interval(estimate, -np.inf, np.inf, len(table))
        draws = np.random.Generator(np.random.Philox(key=seed))
        rows = max(1, _CHUNK // len(totals))
        found: list[NDArray[np.float64]] = []
        for start in range(0, resamples, rows):
            # Philox fills in order: the draws are the same however many are made at a time.
            counts = _counts(draws, min(rows, resamples - start), len(totals))
            found.append(statistic(counts @ totals))
    values = np.concatenate(found)
    values = values[~np.isnan(values)]
    if not values.size:
        return Interval(estimate, np.nan, np.nan, len(table))
    low, high = np.quantile(values, (outside, 1 - outside))
    return Interval(estimate, float(low), float(high), len(table))


def cluster_mean(
    values: ArrayLike,
    clusters: Sequence[Hashable] | NDArray[np.int64],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """``cluster_bootstrap`` of the mean over observations.

    Of differences measured on the same rows it is the paired cluster bootstrap.
    """
    sample = _sample(values)
    return cluster_bootstrap(
        ratio,
        np.column_stack((sample, np.ones_like(sample))),
        clusters,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )


def ratio(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """First column by the second: the statistic of a mean."""
    return totals[:, 0] / totals[:, 1]


def cluster_numbers(clusters: Sequence[Hashable] | NDArray[np.int64]) -> NDArray[np.int64]:
    """[n] clusters numbered from 0 in the order in which they appear."""
    names: dict[Hashable, int] = {}
    keys = clusters.tolist() if isinstance(clusters, np.ndarray) else clusters
    return np.array([names.setdefault(key, len(names)) for key in keys], dtype=np.int64)


def resample_counts(resamples: int, size: int, seed: int = 0) -> NDArray[np.float64]:
    """[resamples, size] how often each of ``size`` things is in each bootstrap resample."""
    return _counts(np.random.Generator(np.random.Philox(key=seed)), resamples, size)


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
