"""The charts of a report card, by file name; those of its numbers alone are report/'s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.evaluation.comparisons import ScoredRow
from trimtab.report.card_charts import (
    MOST_GROUPS,
    SCORING_NAMES,
    accuracy_chart,
    best_chart,
    group,
    reliability_chart,
)
from trimtab.report.charts import Axis, histogram, interval_chart

_CHARTS = ("accuracy", "reliability", "scores", "best_of_n")

FILES = (
    *(f"{scoring}_{chart}.svg" for scoring in SCORING_NAMES for chart in _CHARTS),
    "loss_by_source.svg",
)
"""All names that a card may have."""


def comparison_charts(
    card: Mapping[str, Any], rows: Mapping[str, Sequence[ScoredRow]]
) -> dict[str, str]:
    """Accuracy by group, reliability, scores, and best of n where gold scores are known."""
    charts: dict[str, str] = {}
    for name, scoring in card["scorings"].items():
        charts[f"{name}_accuracy.svg"] = accuracy_chart(name, scoring)
        charts[f"{name}_reliability.svg"] = reliability_chart(name, scoring["calibration"])
        charts[f"{name}_scores.svg"] = score_chart(name, rows[name])
        if scoring["best_of_n"] is not None and len(scoring["best_of_n"]["curve"]) > 1:
            charts[f"{name}_best_of_n.svg"] = best_chart(name, scoring["best_of_n"], card)
    return charts


def text_charts(card: Mapping[str, Any]) -> dict[str, str]:
    """Loss by source, where there are several."""
    found = card["text"].get("by_source")
    if not found:
        return {}
    groups = [group("all rows", card["text"]["loss"])]
    groups += [group(one["name"], one["loss"]) for one in found[:MOST_GROUPS]]
    chart = interval_chart(
        groups, title="Held-out loss by source, 95 % intervals", x=Axis("nats per token; n rows")
    )
    return {"loss_by_source.svg": chart}


def score_chart(name: str, rows: Sequence[ScoredRow]) -> str:
    """Scores of preferred answers and of the others, a value for every comparison."""
    values = {
        "preferred": [row.scores[w] for row in rows for w, _ in row.pairs],
        "other": [row.scores[b] for row in rows for _, b in row.pairs],
    }
    unit = {"reward": "reward", "log_prob": "nats", "log_prob_per_token": "nats per token"}[name]
    title = f"Distribution of the {SCORING_NAMES[name]}"
    return histogram(values, title=title, x=Axis(unit))
