"""Intervals against numbers known from elsewhere, and against their own promise: coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trimtab.evaluation import statistics
from trimtab.evaluation.statistics import (
    Interval,
    bootstrap_interval,
    crossed_mean,
    mean_interval,
    paired_bootstrap,
    weighted_shares,
    wilson_interval,
)
from trimtab.intervals import normal_quantile, t_quantile


def test_mean_interval_of_five_numbers() -> None:
    """Mean 3, sample variance 2.5, t_4 = 2.776445, 2.776445 sqrt(2.5 / 5) = 1.963243."""
    found = mean_interval([1, 2, 3, 4, 5])
    assert found == Interval(
        3.0, pytest.approx(1.0367568, abs=1e-6), pytest.approx(4.9632432, abs=1e-6), 5
    )
    population = 2.776445 * math.sqrt(2.0 / 5)
    assert found.high - 3 != pytest.approx(population, abs=1e-2), "n - 1, not n"


def test_mean_interval_at_other_confidences() -> None:
    """t_4 beyond which 5 % and 0.5 % lie: 2.131847 and 4.604095 (printed tables)."""
    for confidence, t in [(0.9, 2.131847), (0.99, 4.604095)]:
        found = mean_interval([1, 2, 3, 4, 5], confidence=confidence)
        assert found.high - found.mean == pytest.approx(t * math.sqrt(0.5), abs=1e-6)


def test_quantiles_of_t() -> None:
    """Printed tables, and closed forms: tan of an eighth of a turn, and normal at last."""
    known = {1: 12.706205, 2: 4.302653, 3: 3.182446, 10: 2.228139, 30: 2.042272, 120: 1.979930}
    for degrees, value in known.items():
        assert t_quantile(0.95, degrees) == pytest.approx(value, abs=1e-6)
    assert t_quantile(0.5, 1) == pytest.approx(math.tan(math.pi / 4))
    assert t_quantile(0.95, 9_999) == pytest.approx(normal_quantile(0.95), rel=2e-4)
    assert t_quantile(0.95, 10_000) == normal_quantile(0.95)
    assert t_quantile(0.95, 2.5) < t_quantile(0.95, 2)
    with pytest.raises(ValueError, match="degrees=0"):
        t_quantile(0.95, 0)


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
    assert resampled.mean == pytest.approx(normal.mean)
    assert abs(resampled.low - normal.low) < 0.1 * width
    assert abs(resampled.high - normal.high) < 0.1 * width


def test_bootstrap_follows_the_skew_of_the_values() -> None:
    """One of twenty is 10: k of them in a resample, k of Binomial(20, 1/20).

    Below the estimate lie 0.358 + 0.377 / 2 of the resamples, so the bias is 0.119; the skew is 855
    / (6 95^1.5) = 0.154; the reach sqrt(20 / 19) t_19 = 2.147. Levels 0.077 and 0.9998 are k = 0
    and k = 6; plain percentiles would end at k = 3.
    """
    found = bootstrap_interval([0.0] * 19 + [10.0], resamples=40_000)
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 3.0)


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


def test_crossed_mean_of_one_seed_is_a_bootstrap_over_prompts() -> None:
    values = np.random.default_rng(5).exponential(size=300)
    assert crossed_mean(values[None], seed=4) == bootstrap_interval(values, seed=4)


def test_crossed_mean_sees_what_a_seed_shares() -> None:
    draws = np.random.default_rng(6)
    seeds, prompts = draws.normal(size=(8, 1)), draws.normal(size=(1, 200))
    cells = seeds + prompts
    found = crossed_mean(cells)
    # Without noise in the cells, each factor has its own sample variance; t with some 7 degrees.
    error = np.sqrt(seeds.var(ddof=1) / 8 + prompts.var(ddof=1) / 200)
    assert (found.high - found.low) / 2 == pytest.approx(t_quantile(0.95, 7) * error, rel=0.02)
    assert found.n == 1600
    assert bootstrap_interval(cells.ravel()).high - found.mean < 0.3 * error, "cells by themselves"


def test_crossed_mean_by_hand() -> None:
    """Rows differ by 2, columns by 1, no noise: mean squares 4 and 1, so (4 + 1) / 4 and df 25/17.

    A cell moved by 1 makes the mean squares 2.25, 0.25 and 0.25.
    """
    found = crossed_mean([[1.0, 2.0], [3.0, 4.0]])
    assert found.mean == 2.5
    assert found.high - 2.5 == pytest.approx(t_quantile(0.95, 25 / 17) * math.sqrt(5 / 4))
    found = crossed_mean([[1.0, 2.0], [3.0, 3.0]])
    degrees = 2.25**2 / (2.25**2 + 0.25**2 + 0.25**2)
    assert found.high - 2.25 == pytest.approx(
        t_quantile(0.95, max(1, degrees)) * math.sqrt(2.25 / 4)
    )
    with pytest.raises(ValueError, match="seeds x prompts"):
        crossed_mean([1.0, 2.0])


def test_weighted_shares_by_hand() -> None:
    """Half of [0.4, 0.6, 0.7] and half of 1: ends at distances of half of 0.2 and 0.1."""
    one, other = Interval(0.6, 0.4, 0.7, 20), Interval(1.0, 1.0, 1.0, 9)
    found = weighted_shares([one, other], [3, 3])
    assert found == Interval(0.8, pytest.approx(0.7), pytest.approx(0.85), 29)
    both = weighted_shares([one, one], [1, 1])
    assert both.mean - both.low == pytest.approx(0.2 / math.sqrt(2)), "independent: by the root"
    certain = weighted_shares([wilson_interval(9, 9), wilson_interval(5, 5)], [1, 2])
    assert certain.mean == certain.high == 1 and certain.low < 0.8
    with pytest.raises(ValueError, match="1 shares and 2 weights"):
        weighted_shares([one], [1, 2])


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
