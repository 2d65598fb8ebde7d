"""The tables of docs/metrics.md, from the entries of ``trimtab explain``.

python scripts/metrics_page.py            # say what is out of date (exit code 1)
python scripts/metrics_page.py --write    # write the tables into docs/metrics.md
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from generated import between, write_or_compare

from trimtab.catalogue.metric import Metric
from trimtab.catalogue.metrics import METRICS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
BEGIN, END = "<!-- from the table of metrics: scripts/metrics_page.py -->", "<!-- to here -->"
_PAPER = re.compile(r"arXiv:(\d{4}\.\d{4,5})")

# Title -> the beginnings of ``Metric.of`` that belong to it; the first that fits.
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Every run": ("every verb", "with mix"),
    "Language models and classes": ("pretrain", "classify"),
    "Reward models": ("reward",),
    "Preferences": ("dpo", "with nll_weight", "beta_dpo"),
    "Rollouts": ("ppo, grpo, rloo, online_dpo", "with an ensemble", "raft", "on-policy", "online"),
    "PPO and groups": ("ppo", "grpo"),
}


def section_of(metric: Metric) -> str:
    """The title that a metric stands under."""
    return next(t for t, starts in SECTIONS.items() if metric.of.startswith(starts))


def row(one: Metric) -> str:
    """A line of a table: name, what, formula and unit, what is healthy, who logs it."""
    paper = "".join(f" ([paper](https://arxiv.org/abs/{p}))" for p in _PAPER.findall(one.paper))
    formula = f"`{one.formula}`" if one.formula else ""
    formula = ", ".join(filter(None, (formula, one.unit)))
    cells = (f"`{one.name}`", f"{one.what}{paper}", formula, one.healthy, one.of)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def sections() -> str:
    """Every metric once, in the order of ``trimtab explain``."""
    lines: list[str] = []
    for title in SECTIONS:
        lines += [f"## {title}", "", "| metric | what it is | formula, unit | healthy | of |"]
        lines += ["|---|---|---|---|---|"]
        lines += [row(one) for one in METRICS if section_of(one) == title] + [""]
    return "\n".join(lines)


def page() -> str:
    """The page as it ought to be."""
    return between(PAGE, BEGIN, END, sections())


if __name__ == "__main__":
    sys.exit(write_or_compare(PAGE, page(), "metrics_page"))
