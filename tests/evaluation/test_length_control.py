"""The length-controlled win rate against its model, its symmetries and plain win rates."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.evaluation.length_control import (
    PSEUDO,
    controlled_rates,
    length_controlled_win_rate,
    length_terms,
)


def drawn(n: int, theta: float, phi: float, seed: int, drift: float = 0.0):
    """Wins drawn from the model itself, with lengths of mean ``drift`` standard deviations."""
    rng = np.random.default_rng(seed)
    d = rng.normal(drift, 1.0, n) * 30
    p = 1 / (1 + np.exp(-(theta + phi * length_terms(d))))
    return (rng.random(n) < p).astype(float), d


def test_without_length_differences_it_is_the_win_rate():
    wins = [1.0] * 30 + [0.5] * 4 + [0.0] * 16
    found = length_controlled_win_rate(wins, np.zeros(50))
    # The pseudo-comparison of weight 0.01 draws the rate to one half by that much.
    assert found.mean == pytest.approx((32 + PSEUDO / 2) / (50 + PSEUDO), abs=1e-8)
    assert found.low < 0.64 < found.high


def test_swapping_the_two_gives_one_minus_it():
    wins, d = drawn(200, 0.4, 1.5, seed=1)
    one = length_controlled_win_rate(wins, d)
    other = length_controlled_win_rate(1 - wins, -d)
    assert (1 - one.mean, 1 - one.high, 1 - one.low) == pytest.approx(other[:3], abs=1e-7)


def test_a_win_by_length_alone_is_no_win():
    """a is longer and wins 69 %; at equal length it would win one half."""
    wins, d = drawn(4000, 0.0, 2.0, seed=2, drift=1.0)
    found = length_controlled_win_rate(wins, d, resamples=300)
    assert wins.mean() > 0.66
    assert found.low < 0.5 < found.high
    assert found.mean == pytest.approx(0.5, abs=0.04)


def test_the_fit_is_where_the_likelihood_is_flat():
    wins, d = drawn(300, -0.5, 1.0, seed=3)
    x = length_terms(d)
    rate = controlled_rates(wins, x, np.ones(300))[0]
    theta = np.log(rate / (1 - rate))

    def likelihood(t: float) -> float:
        """Penalised, at the best phi."""
        phis = np.linspace(-1, 3, 4001)[:, None]
        z = t + phis * x
        values = (wins * z - np.logaddexp(0, z)).sum(1) - 0.05 * phis[:, 0] ** 2
        return values.max() + PSEUDO * (0.5 * t - np.logaddexp(0, t))

    assert likelihood(theta) > likelihood(theta + 0.02)
    assert likelihood(theta) > likelihood(theta - 0.02)


def test_separated_wins_stay_finite():
    d = np.array([*range(1, 21), *range(-20, 0)], dtype=float)
    found = length_controlled_win_rate(d > 0, d, resamples=200)
    assert found.mean == pytest.approx(0.5, abs=1e-6)
    assert 0 <= found.low < 0.5 < found.high <= 1


@pytest.mark.slow
def test_coverage():
    """95 % intervals hold the true value in 2,000 draws of the model; clusters are single."""
    truth = 1 / (1 + np.exp(-0.5))
    hits = 0
    for seed in range(2000):
        wins, d = drawn(250, 0.5, 1.0, seed=seed)
        found = length_controlled_win_rate(wins, d, resamples=400, seed=seed)
        hits += found.low <= truth <= found.high
    assert 0.93 <= hits / 2000 <= 0.97


def test_clusters_are_resampled_whole():
    """Each comparison four times over says nothing new: the interval stays as wide."""
    wins, d = drawn(80, 0.3, 0.5, seed=5)
    once = length_controlled_win_rate(wins, d)
    again = length_controlled_win_rate(
        np.repeat(wins, 4), np.repeat(d, 4), list(np.repeat(np.arange(80), 4))
    )
    assert again.high - again.low == pytest.approx(once.high - once.low, rel=0.1)
    alone = length_controlled_win_rate([1.0], [3.0])
    assert (alone.low, alone.high) == (-np.inf, np.inf)


@pytest.mark.parametrize(
    ("wins", "difference"), [([], []), ([1.0], [1.0, 2.0]), ([1.2], [0.0]), ([1.0], [np.nan])]
)
def test_what_is_no_comparison_is_refused(wins: list[float], difference: list[float]):
    with pytest.raises(ValueError, match="need"):
        length_controlled_win_rate(wins, difference)
