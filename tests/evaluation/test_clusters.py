"""The cluster bootstrap against numbers known from elsewhere, and against its own promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trimtab.evaluation import statistics
from trimtab.evaluation.statistics import (
    bootstrap_interval,
    centred_bootstrap,
    cluster_bootstrap,
    cluster_mean,
    cluster_numbers,
)


def test_two_clusters_by_hand() -> None:
    """Drawing two of two: both of one (0 or 2 a piece), or one of each (1), 1/4, 1/2, 1/4.

    The levels are those of sqrt(2) t_1: 0.32 at a confidence of 0.2, 0.15 at 0.4.
    """
    found = cluster_mean([0.0, 0.0, 2.0, 2.0], ["a", "a", "b", "b"], confidence=0.2)
    assert (found.mean, found.low, found.high, found.n) == (1.0, 1.0, 1.0, 4)
    wide = cluster_mean([0.0, 0.0, 2.0, 2.0], ["a", "a", "b", "b"], confidence=0.4)
    assert (wide.low, wide.high) == (0.0, 2.0)


def test_clusters_of_one_are_a_plain_bootstrap() -> None:
    values = np.random.default_rng(1).exponential(size=300)
    one = cluster_mean(values, np.arange(300), resamples=4000)
    plain = bootstrap_interval(values, resamples=4000)
    assert one.mean == pytest.approx(plain.mean)
    assert (one.low, one.high) == pytest.approx((plain.low, plain.high), abs=0.02)


def test_a_size_keeps_its_place_in_its_interval() -> None:
    """|mean| of -1 and 3 is 1; drawn again -1 -> 1, 1 twice, 3 with mean 3/2, whose ends turn."""

    def size(totals: np.ndarray) -> np.ndarray:
        return np.abs(totals[:, 0]) / totals[:, 1]

    columns = [[-1.0, 1.0], [3.0, 1.0]]
    found = centred_bootstrap(size, columns, "ab", confidence=0.6, resamples=4000)
    assert found.mean == 1.0 and found.n == 2
    # Quantiles 0.2 and 0.8: 1 and 3.
    assert found.low == pytest.approx(1 - (3 - 1.5), abs=0.05)
    assert found.high == pytest.approx(1 - (1 - 1.5), abs=0.05)
    alone = centred_bootstrap(size, columns, "aa")
    assert (alone.mean, alone.low, alone.high) == (1.0, -math.inf, math.inf)
    nothing = centred_bootstrap(size, [[0.0, 0.0]] * 2, "ab")
    assert all(map(math.isnan, nothing[:3]))


def test_coverage_where_observations_of_a_cluster_are_alike() -> None:
    """Clusters of five equal values: taken one by one they cover the mean far too seldom."""
    draws = np.random.default_rng(2)
    clusters = np.repeat(np.arange(40), 5)
    covered = {"clusters": 0, "one by one": 0}
    for seed in range(200):
        values = np.repeat(draws.normal(size=40), 5)
        whole = cluster_mean(values, clusters, resamples=400, seed=seed)
        alone = bootstrap_interval(values, resamples=400, seed=seed)
        covered["clusters"] += whole.low <= 0 <= whole.high
        covered["one by one"] += alone.low <= 0 <= alone.high
    assert 0.90 <= covered["clusters"] / 200 <= 0.98, covered
    assert covered["one by one"] / 200 < 0.75, "the wrong variant is rejected"


def test_a_ratio_of_totals_has_its_linearised_error() -> None:
    draws = np.random.default_rng(3)
    sizes = draws.integers(1, 6, 400).astype(float)
    sums = sizes * draws.normal(2.0, 1.0, 400)
    found = cluster_bootstrap(
        lambda t: t[:, 0] / t[:, 1], np.column_stack((sums, sizes)), range(400), resamples=4000
    )
    share = sums.sum() / sizes.sum()
    error = np.sqrt(np.square(sums - share * sizes).sum()) / sizes.sum()
    assert found.mean == pytest.approx(share)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.06)


def test_it_is_a_function_of_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    values, clusters = np.linspace(0, 1, 60) ** 2, [i // 3 for i in range(60)]
    first = cluster_mean(values, clusters, seed=3)
    assert cluster_mean(values, clusters, seed=3) == first
    assert cluster_mean(values, clusters, seed=4) != first
    assert cluster_mean(values, [f"name {c}" for c in clusters], seed=3) == first
    monkeypatch.setattr(statistics, "_CHUNK", 20 * 7)
    assert cluster_mean(values, clusters, seed=3) == first, "nor of how many are drawn at a time"


def test_one_cluster_says_nothing_of_the_spread() -> None:
    found = cluster_mean([1.0, 2.0], ["a", "a"])
    assert (found.mean, found.low, found.high) == (1.5, -math.inf, math.inf)


def test_undefined_resamples_are_left_out() -> None:
    """A ratio whose divisor is only in one of three clusters: 8 of 27 resamples miss it."""
    columns = [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    found = cluster_bootstrap(lambda t: t[:, 0] / t[:, 1], columns, "abc")
    assert (found.low, found.high) == (1.0, 1.0)
    nothing = cluster_bootstrap(lambda t: t[:, 0] / t[:, 1], [[0.0, 0.0]] * 2, "ab")
    assert all(map(math.isnan, nothing[:3]))


def test_numbers_and_errors() -> None:
    assert cluster_numbers(["b", "a", "b"]).tolist() == [0, 1, 0]
    assert cluster_numbers(np.array([7, 7, 3])).tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match=r"columns of shape \(2, 2\) and 3 clusters"):
        cluster_bootstrap(lambda t: t[:, 0], [[1.0, 1.0]] * 2, "abc")
    with pytest.raises(ValueError, match="resamples=0"):
        cluster_mean([1.0, 2.0], "ab", resamples=0)
