"""Best of n: the gold reward of the response that a score picks among n, for every n up to K."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from trimtab.evaluation.comparisons import Floats, ScoredRow
from trimtab.evaluation.reward_statistics import entry
from trimtab.evaluation.statistics import cluster_bootstrap

LEAST_ROWS = 10
_ALL_UP_TO = 10  # every n up to here, powers of two beyond


def expected_best(by: Sequence[float], values: Sequence[float], n: int) -> float:
    """Expected value of what ``by`` ranks first among n of these, drawn without replacement.

    The k-th lowest of N is the best of the n drawn with probability C(k - 1, n - 1) / C(N, n)
    (the unbiased estimator of Nakano et al. 2021, arXiv:2112.09332, appendix I). Among equals each
    is equally likely to be taken.
    """
    total = math.comb(len(by), n)
    order = sorted(range(len(by)), key=lambda index: by[index])
    expected = 0.0
    place = 0
    for _, group in itertools.groupby(order, key=lambda index: by[index]):
        equals = [values[index] for index in group]
        ways = sum(math.comb(place + i, n - 1) for i in range(len(equals)))
        expected += ways * sum(equals) / len(equals)
        place += len(equals)
    return expected / total


def kl_bound(n: int) -> float:
    """log n - (n - 1) / n nats: the most by which the best of n departs from what was sampled.

    KL(best of n || one sample) for a score without ties in a continuum of responses, where every
    place of the ranking is equally likely; less where responses have probability of their own
    (arXiv:2401.01879).
    """
    return math.log(n) - (n - 1) / n


def best_of_n(rows: Sequence[ScoredRow], seed: int = 0) -> dict[str, Any] | None:
    """Gold reward chosen by the model, chosen by the gold reward itself, and on average.

    ``captured`` is the share of the possible gain over the average that the model's choice brings.
    Each n takes the rows with at least n responses, so along the curve the rows may change: all
    columns of one n are of the same rows. None where no row has gold scores.
    """
    known = [row for row in rows if row.gold]
    if not known:
        return None
    most = max(len(row.gold) for row in known)
    curve = [_at(n, known, seed) for n in _sizes(most)]
    return {
        "rows": len(known),
        "curve": [point for point in curve if point["rows"] >= min(LEAST_ROWS, len(known))],
    }


def _sizes(most: int) -> list[int]:
    if most <= _ALL_UP_TO:
        return list(range(1, most + 1))
    return sorted({2**i for i in range(most.bit_length())} | {most})


def _at(n: int, known: Sequence[ScoredRow], seed: int) -> dict[str, Any]:
    rows = [row for row in known if len(row.gold) >= n]
    prompts = [row.prompt for row in rows]
    columns = np.array(
        [
            (
                expected_best(row.scores, row.gold, n),
                expected_best(row.gold, row.gold, n),
                sum(row.gold) / len(row.gold),
                1.0,
            )
            for row in rows
        ]
    )

    def interval(statistic: Callable[[Floats], Floats]) -> dict[str, Any]:
        found = cluster_bootstrap(statistic, columns, prompts, seed=seed)
        return entry(found, len(set(prompts)))

    return {
        "n": n,
        "rows": len(rows),
        "model": interval(lambda t: t[:, 0] / t[:, 3]),
        "gold": interval(lambda t: t[:, 1] / t[:, 3]),
        "mean": interval(lambda t: t[:, 2] / t[:, 3]),
        "captured": interval(_captured) if n > 1 else None,
    }


def _captured(totals: Floats) -> Floats:
    possible = totals[:, 1] - totals[:, 2]
    return (totals[:, 0] - totals[:, 2]) / np.where(possible > 0, possible, np.nan)
