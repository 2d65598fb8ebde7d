"""How far a measured mean can be trusted: intervals for means, proportions and differences.

numpy only. Every interval is two-sided at ``confidence`` (95 % unless told otherwise), and every
random draw is a function of ``seed``: the same values give the same interval, on every machine.
How often each covers the truth is simulated in tests/evaluation/test_coverage.py and
test_coverage_scores.py, and told in docs/evaluation.md.

Bootstraps but ``centred_bootstrap`` are BCa (bias-corrected and accelerated; Efron 1987, equations
2.3 and 6.6), which follows the skew of what is measured, at levels that are widened for the number
of things drawn (Hesterberg 2015, 3.3): the plain percentiles of few values are narrow by
sqrt((n - 1) / n) and know no more of the spread than a normal quantile. A share near 0 or 1 has no
spread that a bootstrap could see: those are ``clustered_share``'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trimtab.intervals import Interval, t_quantile, tail, wilson_interval

Ends = tuple[float, float]  # of an interval

# Values drawn at a time by the bootstrap: 2 million indices are 16 MB.
_CHUNK = 2_000_000


def mean_interval(values: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Mean of n values, plus or minus t s / sqrt(n), s the sample standard deviation (n - 1).

    Student's t with n - 1 degrees of freedom: exact for normal values; of skewed ones some fifty
    are needed. One value has an unbounded interval.
    """
    sample = _sample(values)
    tail(confidence)  # which refuses what is no probability
    mean = float(sample.mean())
    if sample.size == 1:
        return Interval(mean, -np.inf, np.inf, 1)
    half = (
        t_quantile(confidence, sample.size - 1)
        * float(sample.std(ddof=1))
        / float(np.sqrt(sample.size))
    )
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


def weighted_shares(shares: Sequence[Interval], weights: Sequence[float]) -> Interval:
    """Weighted mean of independent shares, each with its interval; weights add up to what they may.

    The ends keep their distances in squares (MOVER: Zou and Donner 2008), so that they lie within
    [0, 1] and are no point where all shares are 0 or 1, as with ``clustered_share``'s intervals.
    """
    total = float(sum(weights))
    if len(shares) != len(weights) or not shares or not total > 0:
        raise ValueError(f"{len(shares)} shares and {len(weights)} weights: need one each")
    parts = [weight / total for weight in weights]
    mean = math.fsum(w * one.mean for w, one in zip(parts, shares, strict=True))
    below, above = (
        math.sqrt(
            math.fsum(
                (w * (one.mean - one[end])) ** 2 for w, one in zip(parts, shares, strict=True)
            )
        )
        for end in (1, 2)
    )
    return Interval(mean, mean - below, mean + above, sum(one.n for one in shares))


def bootstrap_interval(
    values: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """BCa bootstrap of a mean over values; one value has an unbounded interval."""
    sample = _sample(values)
    return cluster_mean(
        sample, np.arange(sample.size), confidence=confidence, resamples=resamples, seed=seed
    )


def paired_bootstrap(
    before: ArrayLike,
    after: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """BCa bootstrap of the mean of ``after - before``, values measured on the same rows.

    Rows are resampled whole, so what makes a row hard for both drops out of the difference. The
    change is distinguishable from none where the interval leaves out 0.
    """
    first, second = _sample(before), _sample(after)
    if first.shape != second.shape:
        raise ValueError(f"{first.size} values against {second.size}: pairs need the same rows")
    return bootstrap_interval(second - first, confidence=confidence, resamples=resamples, seed=seed)


def crossed_mean(values: ArrayLike, *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Mean over seeds and prompts, ``values[s, p]``, one a cell, with a t interval.

    One seed's values share a model and one prompt's share their difficulty: the variance of the
    mean is that of crossed rows and columns (Cornfield and Tukey 1956), from the analysis of
    variance, with Satterthwaite's degrees of freedom. From three seeds on it covers as it says; two
    that differ more than prompts do cover 88 %. Several samples of a cell enter as their mean:
    counted one by one they would make the interval too narrow. With one seed it is the bootstrap
    over prompts, whose draws are those of ``seed``. ``n`` counts cells.
    """
    cells = np.asarray(values, dtype=np.float64)
    if cells.ndim != 2 or cells.size == 0:
        raise ValueError(
            f"values of shape {cells.shape}: need seeds x prompts, one of each or more"
        )
    tail(confidence)  # which refuses what is no probability
    if min(cells.shape) == 1:
        return bootstrap_interval(cells.ravel(), confidence=confidence, seed=seed)
    mean = float(cells.mean())
    error, degrees = _crossed_error(cells)
    half = t_quantile(confidence, degrees) * error
    return Interval(mean, mean - half, mean + half, cells.size)


def _crossed_error(cells: NDArray[np.float64]) -> tuple[float, float]:
    """Standard error of the mean of crossed rows and columns, and its degrees of freedom.

    The mean squares of two factors less that of the cells' noise, which both have in them, are the
    variance of the mean times the number of cells; degrees of freedom by Satterthwaite (1946). A
    sum below the noise is the noise.
    """
    rows, columns = cells.shape
    mean = cells.mean()
    by_row, by_column = cells.mean(axis=1, keepdims=True), cells.mean(axis=0, keepdims=True)
    noise = float(np.square(cells - by_row - by_column + mean).sum())
    squares = (
        (columns * float(np.square(by_row - mean).sum()) / (rows - 1), rows - 1),
        (rows * float(np.square(by_column - mean).sum()) / (columns - 1), columns - 1),
        (noise / ((rows - 1) * (columns - 1)), (rows - 1) * (columns - 1)),
    )
    total = squares[0][0] + squares[1][0] - squares[2][0]
    if total <= squares[2][0]:
        return math.sqrt(squares[2][0] / cells.size), float(squares[2][1])
    degrees = total**2 / sum(square**2 / known for square, known in squares)
    return math.sqrt(total / cells.size), max(1.0, degrees)


def cluster_bootstrap(
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    columns: ArrayLike,
    clusters: Sequence[Hashable] | NDArray[np.int64],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """BCa bootstrap over whole clusters of anything that is a function of column totals.

    ``columns`` [n, m] has a row an observation; ``clusters`` [n] says which of them belong together
    (the comparisons of one prompt share its difficulty, so prompts are drawn, not comparisons:
    Davison and Hinkley 1997, 3.8). ``statistic`` takes totals [B, m], one row a resample, and gives
    [B]: a mean is ``totals[:, 0] / totals[:, 1]`` with a second column of ones. Resamples in which
    it is undefined (NaN) are left out. One cluster has an unbounded interval; ``n`` counts
    observations.
    """

    def ends(values: NDArray[np.float64], estimate: float, without: NDArray[np.float64]) -> Ends:
        low, high = np.quantile(values, bca_levels(values, estimate, without, confidence))
        return float(low), float(high)

    return _bootstrap(statistic, columns, clusters, ends, confidence, resamples, seed)


def centred_bootstrap(
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    columns: ArrayLike,
    clusters: Sequence[Hashable] | NDArray[np.int64],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """``cluster_bootstrap`` for a statistic that noise moves to one side, as it does sizes.

    Resamples have the noise of the data and their own, so that they lie beside the estimate, which
    BCa takes for a bias of the estimate. Here the estimate keeps its place: the lower end is as far
    below it as the resamples' upper quantile is above their mean, and the other way round (the
    basic bootstrap: Davison and Hinkley 1997, 5.2.1). What is covered is the mean over data sets of
    as many clusters, noise included.
    """
    outside = tail(confidence)

    def ends(values: NDArray[np.float64], estimate: float, _: NDArray[np.float64]) -> Ends:
        below, above = np.quantile(values, (outside, 1 - outside)) - values.mean()
        return estimate - float(above), estimate - float(below)

    return _bootstrap(statistic, columns, clusters, ends, confidence, resamples, seed)


def _bootstrap(
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    columns: ArrayLike,
    clusters: Sequence[Hashable] | NDArray[np.int64],
    ends: Callable[[NDArray[np.float64], float, NDArray[np.float64]], Ends],
    confidence: float,
    resamples: int,
    seed: int,
) -> Interval:
    """``ends`` makes two of resamples [B], the estimate, and it without each cluster [n]."""
    table = np.asarray(columns, dtype=np.float64)
    if table.ndim != 2 or table.size == 0 or len(clusters) != len(table):
        raise ValueError(
            f"columns of shape {table.shape} and {len(clusters)} clusters: need one each a row"
        )
    tail(confidence)  # which refuses what is no probability
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: must be at least 1")
    numbers = cluster_numbers(clusters)
    totals = np.zeros((int(numbers.max()) + 1, table.shape[1]))
    np.add.at(totals, numbers, table)
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = float(statistic(totals.sum(axis=0, keepdims=True))[0])
        without = statistic(totals.sum(axis=0) - totals)
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
    return Interval(estimate, *ends(values, estimate, without), len(table))


def bca_levels(
    values: NDArray[np.float64], estimate: float, without: NDArray[np.float64], confidence: float
) -> tuple[float, float]:
    """The quantiles of bootstrap ``values`` [B] that are the ends of the interval.

    ``without`` [n] has the estimate without each of the n things that are drawn: its skew is the
    acceleration. The bias is how far the estimate lies from the middle of the values.
    """
    normal = NormalDist()
    n = len(without)
    # sqrt(n / (n - 1)) t in place of the normal quantile (Hesterberg 2015).
    reach = math.sqrt(n / (n - 1)) * t_quantile(confidence, n - 1)
    below = float((values < estimate).mean() + (values == estimate).mean() / 2)
    inside = 1 / (2 * values.size)
    bias = normal.inv_cdf(min(max(below, inside), 1 - inside))
    known = without[np.isfinite(without)]
    gaps = known.mean() - known if known.size else np.zeros(1)
    size = float(np.square(gaps).sum())
    skew = float((gaps**3).sum()) / (6 * size**1.5) if size > 0 else 0.0

    def level(z: float) -> float:
        shifted = bias + z
        shrink = 1 - skew * shifted
        return normal.cdf(bias + shifted / shrink) if shrink > 0 else float(z > 0)

    return level(-reach), level(reach)


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


def _sample(values: ArrayLike) -> NDArray[np.float64]:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size == 0:
        raise ValueError(f"values of shape {sample.shape}: need a list of at least one number")
    return sample
