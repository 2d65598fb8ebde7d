"""The charts of a report card, by file name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.evaluation.comparisons import ScoredRow
from trimtab.report.charts import (
    Axis,
    Group,
    Point,
    Series,
    histogram,
    interval_chart,
    line_chart,
)

SCORING_NAMES = {
    "reward": "reward",
    "log_prob": "summed log-probability",
    "log_prob_per_token": "log-probability per token",
}
_MOST_GROUPS = 12
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
    groups = [_group("all rows", card["text"]["loss"])]
    groups += [_group(one["name"], one["loss"]) for one in found[:_MOST_GROUPS]]
    chart = interval_chart(
        groups, title="Held-out loss by source, 95 % intervals", x=Axis("nats per token; n rows")
    )
    return {"loss_by_source.svg": chart}


def accuracy_chart(name: str, scoring: Mapping[str, Any]) -> str:
    """Accuracy overall, by source, by K and by which answer is the longer, beside chance."""
    accuracy, length = scoring["accuracy"], scoring["length"]
    groups = [
        _group("all comparisons", accuracy["overall"]),
        _group("longer wins", length["longer_wins"]),
    ]
    sections = {
        "by source": accuracy["by_source"],
        "by number of answers": [{**g, "name": f"K = {g['name']}"} for g in accuracy["by_k"]],
        "the preferred answer is the": [
            {**length[side], "name": side} for side in ("shorter", "longer") if length[side]
        ],
    }
    for head, found in sections.items():
        if len(found) < 2:
            continue
        for index, one in enumerate(found[:_MOST_GROUPS]):
            groups.append(_group(one["name"], one, head=head if index == 0 else ""))
    lowest = min(g.value if g.low is None else g.low for g in groups)
    return interval_chart(
        groups,
        title=f"Accuracy by {SCORING_NAMES[name]}, 95 % intervals",
        x=Axis("preferred answer scores higher; n at the right", min(0.4, lowest), 1, percent=True),
        reference=(0.5, "chance"),
    )


def reliability_chart(name: str, found: Mapping[str, Any]) -> str:
    """Observed share over predicted probability, in bins of equal mass."""
    points = [
        Point(
            one["predicted"],
            one["value"],
            one["low"],
            one["high"],
            f"predicted {one['predicted']:.3f}, observed {one['value']:.3f}, n = {one['n']}",
        )
        for one in found["curve"]
    ]
    bins = f"{len(points)} bins of equal mass" if len(points) > 1 else "all comparisons"
    return line_chart(
        [Series(bins, points, joined=False)],
        title=f"Reliability of σ(difference) by {SCORING_NAMES[name]}",
        x=Axis("predicted probability that the first is preferred", 0, 1, percent=True),
        y=Axis("observed share", 0, 1, percent=True),
        diagonal="exactly right",
    )


def score_chart(name: str, rows: Sequence[ScoredRow]) -> str:
    """Scores of preferred answers and of the others, a value for every comparison."""
    values = {
        "preferred": [row.scores[w] for row in rows for w, _ in row.pairs],
        "other": [row.scores[b] for row in rows for _, b in row.pairs],
    }
    unit = {"reward": "reward", "log_prob": "nats", "log_prob_per_token": "nats per token"}[name]
    title = f"Distribution of the {SCORING_NAMES[name]}"
    return histogram(values, title=title, x=Axis(unit))


def best_chart(name: str, found: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    """Gold reward of the best of n by the model, by the gold reward, and of the mean answer."""
    names = {
        "model": "chosen by the model" if name == "reward" else f"by the {SCORING_NAMES[name]}",
        "gold": "chosen by the gold reward",
        "mean": "mean of the rows' answers",
    }
    curve = found["curve"]
    series = [
        Series(text, [Point(p["n"], p[k]["value"], p[k]["low"], p[k]["high"]) for p in curve])
        for k, text in names.items()
    ]
    largest = curve[-1]["n"]
    ticks = [p["n"] for p in curve] if largest <= 10 else None
    return line_chart(
        series,
        title=f"Best of n, gold: {card['gold_source']}",
        x=Axis("n, answers to choose from", ticks=ticks, log2=largest > 10),
        y=Axis("gold reward"),
    )


def _group(name: str, found: Mapping[str, Any], head: str = "") -> Group:
    note = f"{found['n']:,}"
    return Group(str(name), found["value"], found["low"], found["high"], note, head)
