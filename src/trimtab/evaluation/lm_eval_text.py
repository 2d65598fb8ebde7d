"""The card of lm-eval's tasks for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.evaluation.verdict import interval


def verdict(card: Mapping[str, Any]) -> list[str]:
    """The first metric of every task."""
    said: list[str] = []
    seen: set[str] = set()
    for one in card["tasks"]:
        if one["task"] not in seen:
            seen.add(one["task"])
            said.append(f"{one['task']}: {one['metric']} {interval(one)} (n = {one['n']:,}).")
    return said or ["No task has a number."]


def summary(card: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of name, value and count."""
    return [
        (f"{one['task']} {one['metric']} ({one['filter']})", interval(one), f"n = {one['n']:,}")
        for one in card["tasks"]
    ]


def markdown(card: Mapping[str, Any], plain: Any) -> list[str]:
    """A table of all metrics, and what they were measured with."""
    lines = ["| task | metric | filter | value | n | shots |", "|---|---|---|---|---|---|"]
    for one in card["tasks"]:
        cells = [plain(one["task"]), plain(one["metric"]), plain(one["filter"]), interval(one)]
        cells += [f"{one['n']:,}", str(card["shots"].get(one["task"], "-"))]
        lines.append("| " + " | ".join(cells) + " |")
    limit = "" if card["limit"] is None else f" The first {card['limit']:,} documents of each task."
    return [
        *lines,
        "",
        f"lm-eval {card['lm_eval']}, seed {card['seed']}.{limit} Brackets are 95 % intervals.",
    ]
