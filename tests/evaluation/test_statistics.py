"""Intervals against numbers known from elsewhere, and against their own promise: coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trimtab.evaluation import statistics
from trimtab.evaluation.statistics import (
    Interval,
    bootstrap_interval,
    crossed_bootstrap,
    mean_interval,
    paired_bootstrap,
    wilson_interval,
)


def test_mean_interval_of_five_numbers() -> None:
    """Mean 3, sample variance 2.5, 1.959964 sqrt(2.5 / 5) = 1.385904."""
    found = mean_interval([1, 2, 3, 4, 5])
    assert found == Interval(
        3.0, pytest.approx(1.6140962, abs=1e-6), pytest.approx(4.3859038, abs=1e-6), 5
    )
    population = 1.959964 * math.sqrt(2.0 / 5)
    assert found.high - 3 != pytest.approx(population, abs=1e-2), "n - 1, not n"


def test_mean_interval_at_other_confidences() -> None:
    values = [1, 2, 3, 4, 5]
    for confidence, z in [(0.68268949, 1.0), (0.9, 1.6448536), (0.99, 2.5758293)]:
        found = mean_interval(values, confidence=confidence)
        assert found.high - found.mean == pytest.approx(z * math.sqrt(0.5), abs=1e-6)


def test_mean_interval_of_one_or_equal_values() -> None:
    assert mean_interval([7.0]) == Interval(7.0, -math.inf, math.inf, 1)
    assert mean_interval([7.0, 7.0]) == Interval(7.0, 7.0, 7.0, 2)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # The first four: Newcombe 1998 (Statistics in Medicine 17:857), Wilson without correction.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson_interval(successes: int, n: int, low: float, high: float) -> None:
    found = wilson_interval(successes, n)
    assert found.mean == successes / n
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)
    assert found.n == n


def test_wilson_interval_is_not_the_normal_one() -> None:
    flags = np.array([1.0] * 1 + [0.0] * 28)
    assert mean_interval(flags).low < 0 < wilson_interval(1, 29).low


def test_wilson_interval_is_symmetric_and_takes_halves_for_ties() -> None:
    left, right = wilson_interval(3.5, 10), wilson_interval(6.5, 10)
    assert left.low == pytest.approx(1 - right.high)
    assert left.high == pytest.approx(1 - right.low)
    assert left.mean == 0.35


def test_wilson_covers_the_true_share() -> None:
    """Exact coverage at n = 50, p = 0.1 is 97.0 % (a sum over the binomial distribution)."""
    n, p = 50, 0.1
    covered = sum(
        math.comb(n, k) * p**k * (1 - p) ** (n - k)
        for k in range(n + 1)
        if wilson_interval(k, n).low <= p <= wilson_interval(k, n).high
    )
    assert covered == pytest.approx(0.9703, abs=1e-3)


def test_bootstrap_agrees_with_the_normal_interval_on_many_values() -> None:
    values = np.random.Generator(np.random.Philox(key=1)).normal(2.0, 3.0, 400)
    normal, resampled = mean_interval(values), bootstrap_interval(values, resamples=4000)
    width = normal.high - normal.low
    assert resampled.mean == normal.mean
    assert abs(resampled.low - normal.low) < 0.1 * width
    assert abs(resampled.high - normal.high) < 0.1 * width


def test_bootstrap_follows_the_skew_of_the_values() -> None:
    found = bootstrap_interval([0.0] * 19 + [10.0], resamples=4000)
    assert found.mean == 0.5
    # Binomial(20, 1/20) draws of the large value: its 2.5 % and 97.5 % quantiles are 0 and 3.
    assert (found.low, found.high) == (0.0, 1.5)


def test_bootstrap_is_a_function_of_the_seed_and_of_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = np.linspace(0, 1, 37) ** 2
    first = bootstrap_interval(values, seed=3)
    np.random.seed(0)
    assert bootstrap_interval(values, seed=3) == first
    assert bootstrap_interval(values, seed=4) != first
    monkeypatch.setattr(statistics, "_CHUNK", 37 * 10)
    assert bootstrap_interval(values, seed=3) == first, "nor of how many are drawn at a time"


def test_paired_bootstrap_sees_what_unpaired_intervals_hide() -> None:
    draws = np.random.Generator(np.random.Philox(key=2))
    before = draws.normal(0.0, 10.0, 200)
    after = before + 0.5 + draws.normal(0.0, 0.5, 200)
    change = paired_bootstrap(before, after)
    assert change.mean == pytest.approx(float((after - before).mean()))
    assert 0.4 < change.low < change.mean < change.high < 0.65
    assert mean_interval(before).high > mean_interval(after).low, "overlapping on their own"
    shuffled = paired_bootstrap(before, np.roll(after, 1))
    assert shuffled.low < 0 < shuffled.high, "its twin: rows that do not belong together"


def test_crossed_bootstrap_of_one_seed_is_a_bootstrap_over_prompts() -> None:
    values = np.random.default_rng(5).exponential(size=300)
    one = crossed_bootstrap(values[None], resamples=4000)
    plain = bootstrap_interval(values, resamples=4000)
    assert one.mean == plain.mean
    assert (one.low, one.high) == pytest.approx((plain.low, plain.high), abs=0.02)
    assert one.n == 300


def test_crossed_bootstrap_sees_what_a_seed_shares() -> None:
    draws = np.random.default_rng(6)
    seeds, prompts = draws.normal(size=(8, 1)), draws.normal(size=(1, 200))
    cells = seeds + prompts
    found = crossed_bootstrap(cells, resamples=4000)
    # The variance of the mean of a crossed design, each factor by its own sample variance.
    half = 1.96 * np.sqrt(seeds.var() / 8 + prompts.var() / 200)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)
    assert bootstrap_interval(cells.ravel()).high - found.mean < 0.3 * half, "cells by themselves"


def test_crossed_bootstrap_by_hand() -> None:
    assert crossed_bootstrap([[1.0, 2.0], [3.0, 4.0]]).mean == 2.5
    found = crossed_bootstrap([[0.0], [1.0]], resamples=4000, confidence=0.4)
    # The mean of two draws is 0, 1/2 or 1 with probabilities 1/4, 1/2 and 1/4.
    assert (found.low, found.high) == (0.5, 0.5)
    assert crossed_bootstrap([[1.0, 5.0]], seed=3) == crossed_bootstrap([[1.0, 5.0]], seed=3)
    with pytest.raises(ValueError, match="seeds x prompts"):
        crossed_bootstrap([1.0, 2.0])
    with pytest.raises(ValueError, match="resamples=0"):
        crossed_bootstrap([[1.0, 2.0]], resamples=0)


def test_paired_bootstrap_has_a_direction() -> None:
    assert paired_bootstrap([1.0, 2.0], [2.0, 3.0]) == Interval(1.0, 1.0, 1.0, 2)


def test_errors_name_the_value() -> None:
    with pytest.raises(ValueError, match=r"values of shape \(0,\)"):
        mean_interval([])
    with pytest.raises(ValueError, match=r"values of shape \(2, 1\)"):
        bootstrap_interval([[1.0], [2.0]])
    with pytest.raises(ValueError, match="3 values against 2"):
        paired_bootstrap([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="confidence=95"):
        mean_interval([1, 2], confidence=95)
    with pytest.raises(ValueError, match="resamples=0"):
        bootstrap_interval([1, 2], resamples=0)
    for successes, n in [(3, 2), (-1, 2), (0, 0)]:
        with pytest.raises(ValueError, match=f"{successes} successes of {n}"):
            wilson_interval(successes, n)
