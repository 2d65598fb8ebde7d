"""Charts of a report card's numbers (report_card.json, ``trimtab evaluate``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.report.charts import Axis, Group, Point, Series, interval_chart, line_chart

SCORING_NAMES = {
    "reward": "reward",
    "log_prob": "summed log-probability",
    "log_prob_per_token": "log-probability per token",
}
MOST_GROUPS = 12


def accuracy_chart(name: str, scoring: Mapping[str, Any]) -> str:
    """Accuracy overall, by source, by K and by which answer is the longer, beside chance."""
    accuracy, length = scoring["accuracy"], scoring["length"]
    groups = [
        group("all comparisons", accuracy["overall"]),
        group("longer wins", length["longer_wins"]),
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
        for index, one in enumerate(found[:MOST_GROUPS]):
            groups.append(group(one["name"], one, head=head if index == 0 else ""))
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


def group(name: str, found: Mapping[str, Any], head: str = "") -> Group:
    """A number of a card with its interval and how many comparisons it is over."""
    note = f"{found['n']:,}"
    return Group(str(name), found["value"], found["low"], found["high"], note, head)
