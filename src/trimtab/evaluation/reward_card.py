"""The report card of a model on comparisons, or on texts, as one JSON object.

docs/evaluation.md says what every number means. ``card_text.py`` and ``card_charts.py`` show it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trimtab.evaluation.agreement import agreement
from trimtab.evaluation.best_of_n import best_of_n
from trimtab.evaluation.comparisons import Comparisons, ScoredRow
from trimtab.evaluation.held_out_text import TextRow, text_difference, text_statistics
from trimtab.evaluation.reward_statistics import (
    accuracy,
    against_gold,
    calibration,
    difference,
    entry,
    length_bias,
)
from trimtab.evaluation.rewardbench import subset_scores
from trimtab.evaluation.rows_to_judge import common
from trimtab.evaluation.statistics import cluster_mean
from trimtab.evaluation.verdict import comparison_verdict, text_verdict


def comparison_card(
    rows: Mapping[str, Sequence[ScoredRow]],
    *,
    model: Mapping[str, Any],
    gold_source: str | None,
    baseline: tuple[Mapping[str, Any], Mapping[str, Sequence[ScoredRow]]] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The card of scored comparisons; ``rows`` has them once for every way of scoring.

    ``baseline`` is another model's facts and its scores of the same rows.
    """
    first = next(iter(rows.values()))
    table = Comparisons.of(first)
    known = gold_source is not None
    card: dict[str, Any] = {
        "task": "comparisons",
        "model": dict(model),
        "seed": seed,
        "counts": {
            "rows": len(first),
            "comparisons": len(table),
            "prompts": table.prompts,
            "responses": sum(len(row.scores) for row in first),
            "response_tokens": sum(sum(row.lengths) for row in first),
            "tied_pairs": sum(_pairs(len(r.scores)) - len(r.pairs) for r in first),
        },
        "gold_source": gold_source,
        "scorings": {name: _scoring(found, known, seed) for name, found in rows.items()},
        "agreement": agreement(first, seed),
    }
    if baseline is not None:
        card["baseline"] = _against(rows, baseline, seed)
    card["verdict"] = comparison_verdict(card)
    return card


def text_card(
    rows: Sequence[TextRow],
    *,
    model: Mapping[str, Any],
    baseline: tuple[Mapping[str, Any], Sequence[TextRow]] | None = None,
    same_tokens: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """The card of texts as a language model predicts them."""
    card: dict[str, Any] = {
        "task": "text",
        "model": dict(model),
        "seed": seed,
        "counts": {"rows": len(rows), "tokens": sum(row.tokens for row in rows)},
        "text": text_statistics(rows, seed),
    }
    if baseline is not None:
        facts, theirs = baseline
        others = {(row.source_file, row.row): row for row in theirs}
        both = [(r, others[r.source_file, r.row]) for r in rows if (r.source_file, r.row) in others]
        ours, theirs = [r for r, _ in both], [r for _, r in both]
        card["baseline"] = {
            "model": dict(facts),
            "rows": len(both),
            "text": text_statistics(theirs, seed),
            "difference": text_difference(theirs, ours, same_tokens=same_tokens, seed=seed),
        }
    card["verdict"] = text_verdict(card)
    return card


def _scoring(rows: Sequence[ScoredRow], gold: bool, seed: int) -> dict[str, Any]:
    table = Comparisons.of(rows)
    return {
        "accuracy": accuracy(table, seed),
        "calibration": calibration(table, seed),
        "length": length_bias(table, rows, seed),
        "gold": against_gold(table) if gold else None,
        "best_of_n": best_of_n(rows, seed) if gold else None,
        "margin": entry(cluster_mean(table.gap, table.prompt, seed=seed), table.prompts),
        "rewardbench": subset_scores(rows, seed),
        "scores": {
            "preferred": _spread(table.winner, table.prompt, seed),
            "other": _spread(table.loser, table.prompt, seed),
        },
    }


def _spread(values: Any, prompts: Any, seed: int) -> dict[str, Any]:
    """The mean with its interval; standard deviation and quantiles as they are in these rows."""
    quantiles = np.quantile(values, (0.05, 0.5, 0.95))
    names = ("p05", "p50", "p95")
    mean = entry(cluster_mean(values, prompts, seed=seed))
    return {"mean": mean, "sd": float(values.std())} | {
        name: float(q) for name, q in zip(names, quantiles, strict=True)
    }


def _pairs(count: int) -> int:
    return count * (count - 1) // 2


def _against(
    rows: Mapping[str, Sequence[ScoredRow]],
    baseline: tuple[Mapping[str, Any], Mapping[str, Sequence[ScoredRow]]],
    seed: int,
) -> dict[str, Any]:
    """Differences of accuracy: by the way of scoring where both have the same, else all of them."""
    facts, theirs = baseline
    same = rows.keys() & theirs.keys()
    named = [
        (ours, other) for ours in rows for other in theirs if (ours == other if same else True)
    ]
    differences: list[dict[str, Any]] = []
    for ours, other in named:
        left, right = common(rows[ours], theirs[other])
        if not left:
            continue
        after, before = Comparisons.of(left), Comparisons.of(right)
        differences.append(
            {
                "scoring": ours,
                "baseline_scoring": other,
                "accuracy": accuracy(before)["overall"],
                **difference(before, after, seed),
            }
        )
    return {"model": dict(facts), "differences": differences}
