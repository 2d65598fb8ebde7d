"""Length-controlled win rate: what would be won if both responses were equally long.

Judges, and reward models above all, like long responses. After AlpacaEval 2 (Dubois et al. 2024,
arXiv:2404.04475) the win is modelled by a logistic regression on the difference of lengths,

    P(a beats b) = sigmoid(theta + phi tanh(d / s)),   d = length of a - length of b,

s the root mean square of d, and read where d is 0: sigmoid(theta). Unlike there the model has no
term for the difficulty of each instruction, which wants a table of many models' results.

Swapping a and b gives one minus it, with the same ends of the interval; where lengths never differ
it is the plain win rate. A win that length explains altogether (no overlap) leaves theta to the
ridge on phi: the interval is then wide, and says so.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trimtab.evaluation.statistics import bca_levels, cluster_numbers, resample_counts
from trimtab.intervals import Interval, tail

Floats = NDArray[np.float64]

RIDGE = 0.1  # on phi: keeps it finite where length alone separates wins from losses
PSEUDO = 0.01  # half a win and half a loss at no difference in length, of this weight
_STEPS = 40


def length_terms(difference: ArrayLike) -> Floats:
    """[n] tanh(d / s) of length differences, s their root mean square; 0 where none differs."""
    d = np.asarray(difference, dtype=np.float64)
    scale = float(np.sqrt(np.mean(np.square(d)))) if d.size else 0.0
    return np.tanh(d / scale) if scale > 0 else np.zeros_like(d)


def controlled_rates(wins: ArrayLike, terms: ArrayLike, weights: ArrayLike) -> Floats:
    """[B] sigmoid(theta) of fits to the same n comparisons under B sets of weights [B, n].

    ``wins`` [n] are shares won, a tie one half; ``terms`` [n] as ``length_terms`` gives them.
    """
    return _sigmoid(_fits(wins, terms, weights)[0])


def _fits(wins: ArrayLike, terms: ArrayLike, weights: ArrayLike) -> tuple[Floats, Floats]:
    """theta [B] and phi [B], by Newton steps on both, shortened where they overshoot."""
    y, x = np.asarray(wins, dtype=np.float64), np.asarray(terms, dtype=np.float64)
    w = np.atleast_2d(np.asarray(weights, dtype=np.float64))
    assert y.shape == x.shape == w.shape[1:], (y.shape, x.shape, w.shape)
    theta, phi = np.zeros(len(w)), np.zeros(len(w))
    for _ in range(_STEPS):
        p = _sigmoid(theta[:, None] + phi[:, None] * x)
        centre = _sigmoid(theta)
        slope_t = (w * (y - p)).sum(1) + PSEUDO * (0.5 - centre)
        slope_p = (w * (y - p)) @ x - RIDGE * phi
        v = w * p * (1 - p)
        tt = v.sum(1) + PSEUDO * centre * (1 - centre) + 1e-12
        tp, pp = v @ x, v @ np.square(x) + RIDGE
        det = tt * pp - np.square(tp)
        step_t = (pp * slope_t - tp * slope_p) / det
        step_p = (tt * slope_p - tp * slope_t) / det
        # The curvature vanishes far out; a bounded step never leaves the concave likelihood's path.
        shrink = 2.0 / np.maximum(2.0, np.maximum(np.abs(step_t), np.abs(step_p)))
        theta, phi = theta + shrink * step_t, phi + shrink * step_p
        if np.max(np.abs(shrink * step_t), initial=0.0) < 1e-10:
            break
    return theta, phi


def _rates_without(
    y: Floats, x: Floats, numbers: NDArray[np.int64], theta: float, phi: float
) -> Floats:
    """[G] the rate without each cluster: one Newton step from the fit to all, its influence."""
    p = _sigmoid(theta + phi * x)
    v, centre = p * (1 - p), float(_sigmoid(np.array(theta)))
    tt, tp = v.sum() + PSEUDO * centre * (1 - centre) + 1e-12, v @ x
    pp = v @ np.square(x) + RIDGE
    moved = (pp * (y - p) - tp * (y - p) * x) / (tt * pp - tp**2)
    return _sigmoid(theta - np.bincount(numbers, weights=moved).astype(np.float64))


def length_controlled_win_rate(
    wins: ArrayLike,
    difference: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """The length-controlled win rate of a over b, with a BCa bootstrap over clusters.

    ``wins[i]`` is what a won of comparison i (1, 0, or one half for a tie; a share where several
    are taken together), ``difference[i]`` its length less b's, ``clusters[i]`` the prompt (None:
    each comparison its own). One cluster has an unbounded interval. ``n`` counts comparisons.
    """
    y, d = np.asarray(wins, dtype=np.float64), np.asarray(difference, dtype=np.float64)
    if y.ndim != 1 or y.size == 0 or y.shape != d.shape:
        raise ValueError(f"wins of shape {y.shape}, differences of {d.shape}: need one of each")
    if not (np.isfinite(d).all() and ((y >= 0) & (y <= 1)).all()):
        raise ValueError("need finite differences, and wins between 0 and 1")
    tail(confidence)  # which refuses what is no probability
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: must be at least 1")
    terms = length_terms(d)
    theta, phi = (float(found[0]) for found in _fits(y, terms, np.ones(y.size)))
    estimate = float(_sigmoid(np.array(theta)))
    numbers = cluster_numbers(list(range(y.size)) if clusters is None else list(clusters))
    if len(numbers) != y.size:
        raise ValueError(f"{y.size} comparisons and {len(numbers)} clusters: need one of each")
    size = int(numbers.max()) + 1
    if size == 1:
        return Interval(estimate, -np.inf, np.inf, y.size)
    counts = resample_counts(resamples, size, seed)
    values = controlled_rates(y, terms, counts[:, numbers])
    without = _rates_without(y, terms, numbers, theta, phi)
    low, high = np.quantile(values, bca_levels(values, estimate, without, confidence))
    return Interval(estimate, float(low), float(high), y.size)


def _sigmoid(value: Floats) -> Floats:
    return 1 / (1 + np.exp(-np.clip(value, -40, 40)))
