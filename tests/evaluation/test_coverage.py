"""The promise of every interval: it covers the truth in 95 % of 2,000 simulated evaluations.

Between 93 and 97 %: four standard errors of a simulation that covers exactly 95 %. No interval of
a share covers 95 % at every n and p, because the number of successes is whole: the exact coverage
of Wilson's, at every p, is a test of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from trimtab.evaluation.length_control import length_controlled_win_rate
from trimtab.evaluation.statistics import (
    Interval,
    bootstrap_interval,
    cluster_bootstrap,
    cluster_mean,
    clustered_share,
    crossed_mean,
    mean_interval,
    paired_bootstrap,
    ratio,
    weighted_shares,
    wilson_interval,
)
from trimtab.intervals import t_quantile

Draws = np.random.Generator
SIMULATED = 2000
RESAMPLES = 500  # of each bootstrap: what it costs in coverage is below one part in a hundred


def coverage(one: Callable[[Draws], Interval], truth: float, seed: int = 0) -> float:
    """Share of simulated evaluations whose interval holds the truth."""
    draws = np.random.default_rng(seed)
    held = 0
    for _ in range(SIMULATED):
        found = one(draws)
        held += found.low <= truth <= found.high
    return held / SIMULATED


def assert_covers(one: Callable[[Draws], Interval], truth: float, seed: int = 0) -> None:
    assert 0.93 <= coverage(one, truth, seed) <= 0.97


def prompts(draws: Draws, count: int, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Successes and trials of prompts with one to five comparisons that share their difficulty."""
    trials = draws.integers(1, 6, count)
    # Beta(2 p, 2 (1 - p)): a correlation of 1/3 between the comparisons of a prompt.
    chance = draws.beta(2 * rate, 2 * (1 - rate), count)
    return draws.binomial(trials, chance), trials


# ---------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("n", [3, 10, 100])
def test_means(n: int) -> None:
    assert_covers(lambda draws: mean_interval(draws.normal(2.0, 3.0, n)), 2.0)


def test_means_of_skewed_values() -> None:
    assert_covers(lambda draws: mean_interval(draws.exponential(size=100)), 1.0)


def test_a_normal_quantile_would_not_do_for_three_values() -> None:
    """The wrong variant: it covers 81 %, P(|t_2| < 1.96) = 0.81."""

    def normal(draws: Draws) -> Interval:
        found = mean_interval(draws.normal(size=3))
        half = (found.high - found.mean) * 1.959964 / t_quantile(0.95, 2)
        return Interval(found.mean, found.mean - half, found.mean + half, 3)

    assert coverage(normal, 0.0) == pytest.approx(0.811, abs=0.03)


def exact(n: int, p: float) -> float:
    """Coverage of Wilson's interval: a sum over the binomial distribution."""
    return math.fsum(
        math.comb(n, k) * p**k * (1 - p) ** (n - k)
        for k in range(n + 1)
        if wilson_interval(k, n).low <= p <= wilson_interval(k, n).high
    )


@pytest.mark.parametrize("n", [10, 50, 200])
def test_shares(n: int) -> None:
    """On average over p it is 95 %; at a single p it swings, but less than the normal one's."""
    grid = (np.arange(100) + 0.5) / 100
    every = [exact(n, float(p)) for p in grid]
    assert 0.945 <= float(np.mean(every)) <= 0.96
    assert min(every) > 0.85
    middle = [c for c, p in zip(every, grid, strict=True) if n * min(p, 1 - p) >= 10]
    assert all(0.93 <= c <= 0.97 for c in middle)


def test_shares_by_simulation() -> None:
    for n, p in ((20, 0.5), (100, 0.2), (400, 0.97)):
        assert_covers(lambda d, n=n, p=p: wilson_interval(int(d.binomial(n, p)), n), p)


@pytest.mark.parametrize(("count", "rate"), [(30, 0.7), (100, 0.5), (200, 0.95)])
def test_shares_by_prompt(count: int, rate: float) -> None:
    assert_covers(lambda draws: clustered_share(*prompts(draws, count, rate)), rate)


def test_comparisons_taken_for_independent_do_not_cover() -> None:
    def alone(draws: Draws) -> Interval:
        hits, trials = prompts(draws, 100, 0.7)
        return wilson_interval(int(hits.sum()), int(trials.sum()))

    assert coverage(alone, 0.7) < 0.91


def test_win_rates_with_ties() -> None:
    """Outcomes 1, 1/2 and 0 of one to five answers to a prompt."""

    def one(draws: Draws) -> Interval:
        trials = draws.integers(1, 6, 60)
        taste = draws.dirichlet((3.0, 2.0, 2.0), 60)
        wins = [draws.multinomial(n, p) for n, p in zip(trials, taste, strict=True)]
        return clustered_share([w + t / 2 for w, t, _ in wins], trials)

    assert_covers(one, 3 / 7 + 1 / 7)


def test_weighted_shares() -> None:
    """Sections of a benchmark: subsets of unequal sizes, some nearly all right."""
    sizes, rates, weights = (28, 95, 47, 164), (0.98, 0.9, 0.6, 0.75), (100, 95, 47, 984)

    def one(draws: Draws) -> Interval:
        hits = draws.binomial(sizes, rates)
        found = [wilson_interval(int(h), n) for h, n in zip(hits, sizes, strict=True)]
        return weighted_shares(found, weights)

    assert_covers(one, float(np.average(rates, weights=weights)))


# ---------------------------------------------------------------------- bootstraps


def test_bootstrap() -> None:
    def normal(draws: Draws) -> Interval:
        return bootstrap_interval(draws.normal(size=20), resamples=RESAMPLES)

    assert_covers(normal, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "least"), [(20, 0.92), (50, 0.93), (100, 0.93)])
def test_bootstrap_of_skewed_values(n: int, least: float) -> None:
    def one(draws: Draws) -> Interval:
        return bootstrap_interval(draws.exponential(size=n), resamples=2000)

    assert least <= coverage(one, 1.0) <= 0.97


def test_paired_differences() -> None:
    """What is hard for both drops out: pairs of 40 prompts with noise ten times the change."""

    def one(draws: Draws) -> Interval:
        hard = draws.normal(0, 5.0, 40)
        before, after = hard + draws.normal(size=40), hard + 0.3 + draws.normal(size=40)
        return paired_bootstrap(before, after, resamples=RESAMPLES)

    assert_covers(one, 0.3)


def test_means_by_prompt() -> None:
    clusters = np.repeat(np.arange(30), 4)

    def one(draws: Draws) -> Interval:
        values = np.repeat(draws.normal(size=30), 4) + draws.normal(size=120)
        return cluster_mean(values, clusters, resamples=RESAMPLES)

    assert_covers(one, 0.0)


def test_ratios_by_row() -> None:
    """Loss per token: rows of unequal lengths, longer ones easier."""

    def one(draws: Draws) -> Interval:
        tokens = draws.integers(5, 100, 50)
        nll = tokens * draws.gamma(4.0, 1 / 4, 50) * (2 - tokens / 100)
        return cluster_bootstrap(ratio, np.column_stack((nll, tokens)), range(50),
                                 resamples=RESAMPLES)  # fmt: skip

    sizes = np.arange(5, 100)
    assert_covers(one, float((sizes * (2 - sizes / 100)).sum() / sizes.sum()))


@pytest.mark.parametrize(
    ("seeds", "by_seed", "by_prompt", "noise"),
    [(5, 0.5, 1.0, 1.0), (5, 1.0, 0.5, 0.5), (3, 0.3, 1.0, 1.0)],
)
def test_seeds_and_prompts(seeds: int, by_seed: float, by_prompt: float, noise: float) -> None:
    def one(draws: Draws) -> Interval:
        cells = by_seed * draws.normal(size=(seeds, 1)) + by_prompt * draws.normal(size=(1, 40))
        return crossed_mean(cells + noise * draws.normal(size=(seeds, 40)))

    assert_covers(one, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("theta", [0.0, 1.5])
def test_length_controlled_win_rates(theta: float) -> None:
    """Wins that follow quality and length, as the regression has them."""
    terms = np.tanh(np.linspace(-2, 2, 80) / np.sqrt(np.mean(np.linspace(-2, 2, 80) ** 2)))

    def one(draws: Draws) -> Interval:
        wins = draws.random(80) < 1 / (1 + np.exp(-(theta + 1.0 * terms)))
        return length_controlled_win_rate(wins.astype(float), np.linspace(-2, 2, 80), resamples=300)

    assert_covers(one, 1 / (1 + math.exp(-theta)))
