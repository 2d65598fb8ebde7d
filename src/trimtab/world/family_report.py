"""What ``family`` found: a table of losses, each at the best setting of its grid.

Intervals are 95 %, by a bootstrap over requests; differences are paired by request. So many losses
against one reference are so many chances to differ by luck: a difference from dpo is marked only
where its interval at 1 - 0.05 / (number of such comparisons) excludes 0 (Bonferroni).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from trimtab.evaluation.statistics import Interval, mean_interval, paired_bootstrap
from trimtab.world.examiner import Point, apart

BASE = "dpo"
_RESAMPLES = 20_000  # tails of a thousandth want more than the usual


@dataclasses.dataclass(frozen=True)
class Found:
    """A loss: the cells of its grid, which of them is the best, and what that is worth.

    ``point`` is None where no setting trained to its end.
    """

    name: str
    cells: list[dict[str, Any]]
    best: int
    point: Point | None

    @property
    def chosen(self) -> str:
        """The best setting in words."""
        cell = self.cells[self.best]
        return ", ".join([*(f"{k} {v:g}" for k, v in cell["keys"].items()), f"{cell['rate']:g}"])


def differs(one: Sequence[float], other: Sequence[float], comparisons: int) -> bool:
    """Whether the mean difference of the same requests is off 0 for one of many comparisons."""
    found = paired_bootstrap(other, one, confidence=1 - 0.05 / comparisons, resamples=_RESAMPLES)
    return found.low > 0 or found.high < 0


def report(start: Point, found: Sequence[Found]) -> tuple[str, dict[str, Any]]:
    """The table as Markdown, best first, and every number as JSON types."""
    base = next((one.point for one in found if one.name == BASE), None)
    trained = [(one, one.point) for one in found if one.point is not None]
    trained.sort(key=lambda pair: -float(np.mean(pair[1].gold)))
    others = sum(one.name != BASE for one, _ in trained)
    heads = ["loss", "its best setting, rate", "gold reward", "gain over sft", f"less {BASE}"]
    heads += ["learned reward", "KL to sft, nats", "tokens", "loss on text", "CPU s"]
    lines = [_row(heads), "|---" * len(heads) + "|"]
    lines.append(_line("sft", "-", start, start, None, marked=False))
    for one, point in trained:
        mark = base is not None and one.name != BASE and differs(point.gold, base.gold, others)
        against = None if one.name == BASE else base
        lines.append(_line(f"`{one.name}`", one.chosen, point, start, against, marked=mark))
    for one in found:
        if one.point is None:
            cells = [f"`{one.name}`", "no setting trained to its end"] + ["-"] * (len(heads) - 2)
            lines.append(_row(cells))
    record = {
        "intervals": "95 %, bootstrap over requests, one training seed",
        "sft": _record(start),
        "losses": {
            one.name: {
                "cells": [_cell_record(cell) for cell in one.cells],
                "best": one.best,
                "point": None if one.point is None else _record(one.point),
            }
            for one in found
        },
    }
    return "\n".join(lines) + "\n", record


def _line(
    name: str, chosen: str, point: Point, start: Point, base: Point | None, *, marked: bool
) -> str:
    same = point is start
    less = "-"
    if base is not None:
        less = _cell(apart(point.gold, base.gold), 3, sign=True) + " *" * marked
    cells = [
        name,
        chosen,
        _cell(mean_interval(point.gold), 3),
        "-" if same else _cell(apart(point.gold, start.gold), 3, sign=True),
        less,
        f"{np.mean(point.learned):.2f}",
        "0" if same else _cell(mean_interval(point.kl), 1),
        f"{np.mean(point.length):.1f}",
        f"{point.text_loss():.3f}",
        "-" if same else f"{point.cpu_seconds:.0f}",
    ]
    return _row(cells)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(found: Interval, decimals: int, *, sign: bool = False) -> str:
    how = f"{'+' if sign else ''}.{decimals}f"
    return f"{found.mean:{how}} [{found.low:{how}}, {found.high:{how}}]"


def _cell_record(cell: dict[str, Any]) -> dict[str, Any]:
    gold = cell["gold"]
    return {
        **cell,
        "cpu_seconds": round(cell["cpu_seconds"], 1),
        "gold": None if gold is None else _ends(mean_interval(gold)),
    }


def _record(point: Point) -> dict[str, Any]:
    ends = {name: _ends(mean_interval(getattr(point, name))) for name in _MEASURES}
    return {**ends, "text_loss": point.text_loss(), "cpu_seconds": round(point.cpu_seconds, 1)}


_MEASURES = ("gold", "learned", "kl", "length")


def _ends(found: Interval) -> dict[str, float]:
    return {"mean": found.mean, "low": found.low, "high": found.high}
