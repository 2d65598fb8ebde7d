"""RewardBench (Lambert et al. 2024, arXiv:2403.13787): accuracy by subset, section and in all.

RewardBench 2, whose rows are rankings of right and wrong answers, is in ``rewardbench2.py``.

A section is the mean of its subsets by the number of their examples in the benchmark (math-prm
counts 984, as much as all code together), whatever part of them is in the rows. The score is the
mean of the sections; the leaderboard's fifth one, of older preference sets, is not in the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trimtab.evaluation.comparisons import Comparisons, ScoredRow
from trimtab.evaluation.reward_statistics import entry
from trimtab.evaluation.rewardbench2 import best_of_scores, is_best_of
from trimtab.evaluation.statistics import (
    Interval,
    cluster_numbers,
    clustered_share,
    weighted_shares,
)

SECTIONS: dict[str, dict[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
}
"""Subsets of every section with the number of their examples."""


def subset_scores(rows: Sequence[ScoredRow], seed: int = 0) -> dict[str, Any] | None:
    """Accuracy by the rows' ``subset``; None where most rows have none.

    version   1, or 2 where the rows are of RewardBench 2
    subsets   in the order in which they appear
    sections  those of which a subset is there, with the subsets that are not
    score     the mean of the sections, where all four are there
    """
    names = [row.extras.get("subset") for row in rows]
    if sum(isinstance(name, str) for name in names) * 2 <= len(rows):
        return None
    if is_best_of(rows):
        return best_of_scores(rows, seed)
    shares: dict[str, tuple[Interval, int]] = {}
    for name in dict.fromkeys(name for name in names if isinstance(name, str)):
        part = [row for row, own in zip(rows, names, strict=True) if own == name and row.pairs]
        if not part:
            continue
        table = Comparisons.of(part)
        numbers = cluster_numbers(table.prompt)
        hits = np.bincount(numbers, weights=table.right.astype(np.float64))
        shares[name] = clustered_share(hits, np.bincount(numbers)), len(hits)
    found: dict[str, Any] = {
        "version": 1,
        "subsets": [{"name": name, **entry(one, n)} for name, (one, n) in shares.items()],
        "sections": [],
        "score": None,
    }
    means: list[Interval] = []
    for section, sizes in SECTIONS.items():
        there = {name: size for name, size in sizes.items() if name in shares}
        if not there:
            continue
        mean = weighted_shares([shares[name][0] for name in there], list(there.values()))
        means.append(mean)
        prompts = sum(shares[name][1] for name in there)
        missing = [name for name in sizes if name not in there]
        found["sections"].append({"name": section, **entry(mean, prompts), "missing": missing})
    if len(means) == len(SECTIONS):
        prompts = sum(one["prompts"] for one in found["sections"])
        found["score"] = entry(weighted_shares(means, [1] * len(means)), prompts)
    return found
