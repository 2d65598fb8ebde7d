"""Resamples over seeds and prompts: closed forms, coverage, corrected p-values."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.evaluation.crossed import Resamples, holm, interval, two_sided_p, value_at


def test_weights_have_mean_one_and_are_reproducible() -> None:
    one, two = Resamples(5, 40, 300, seed=3), Resamples(5, 40, 300, seed=3)
    assert (one.rows == two.rows).all() and (one.columns == two.columns).all()
    assert one.rows.mean(axis=1) == pytest.approx(1) and one.columns.mean(axis=1) == pytest.approx(
        1
    )
    assert (Resamples(1, 40, 10).rows == 1).all(), "one seed is a given"
    assert one.mean(np.full((5, 40), 0.7)) == pytest.approx(0.7)


def test_spread_is_that_of_the_closed_form() -> None:
    """Without prompts' differences: s^2 / S of the seeds; without seeds': that of the prompts."""
    seeds = np.array([[1.0], [2.0], [4.0], [0.0], [3.0]])
    found = Resamples(5, 30, 40_000).mean(np.repeat(seeds, 30, axis=1))
    assert found.var() == pytest.approx(seeds.var(ddof=1) / 5, rel=0.03)
    prompts = np.arange(30.0)[None, :]
    found = Resamples(1, 30, 40_000).mean(prompts)
    assert found.var() == pytest.approx(prompts.var() / 30, rel=0.03)


def test_ratios_and_weights_are_of_the_same_draws() -> None:
    rng = np.random.default_rng(0)
    above, below = rng.random((3, 20)), 1 + rng.random((3, 20))
    draws = Resamples(3, 20, 50)
    weights = draws.weights(50)
    expected = (weights @ above.ravel()) / (weights @ below.ravel())
    assert draws.ratio(above, below) == pytest.approx(expected)


def test_coverage_over_seeds_and_prompts() -> None:
    """2,000 draws of five seeds and 96 prompts, as far apart as methods' are in the world."""
    rng = np.random.default_rng(1)
    draws = Resamples(5, 96, 600)
    hits = 0
    for _ in range(2000):
        cells = rng.normal(0, 0.02, (5, 1)) + rng.normal(0, 0.1, (1, 96))
        cells = cells + rng.normal(0, 0.1, (5, 96))
        found = interval(float(cells.mean()), draws.mean(cells), 480)
        hits += found.low <= 0 <= found.high
    assert 0.93 <= hits / 2000 <= 0.97


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_p_is_the_normal_ones() -> None:
    values = [-1.0, 1.0, np.nan]  # standard deviation 1
    assert two_sided_p(1.959964, values) == pytest.approx(0.05, abs=1e-6)
    assert two_sided_p(2.5, values, null=0.5) == pytest.approx(0.0455, abs=1e-4)
    assert two_sided_p(0.5, [0.5, 0.5], null=0.5) == 1.0
    assert two_sided_p(1.0, [1.0, 1.0], null=0.5) == 0.0
    assert two_sided_p(9.0, values) < 1e-15


def test_two_sided_p_is_uniform_without_a_difference() -> None:
    rng = np.random.default_rng(2)
    draws = Resamples(1, 80, 500)
    cells = [rng.normal(0, 1, (1, 80)) for _ in range(1000)]
    p = np.array([two_sided_p(float(one.mean()), draws.mean(one)) for one in cells])
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.02)


def test_a_curve_is_read_where_it_first_reaches_a_level() -> None:
    x = np.array([[0.0, 2.0, 1.0, 4.0], [0.0, 0.5, 0.8, 0.9]])
    y = np.array([[0.5, 0.7, 0.9, 0.6], [0.5, 0.6, 0.7, 0.8]])
    assert value_at(x, y, 1.0).tolist() == pytest.approx([0.6, np.nan], nan_ok=True)
    assert value_at(x, y, 3.0)[0] == pytest.approx(0.7)
    assert np.isnan(value_at(x[:, :1], y[:, :1], 1.0)).all()
