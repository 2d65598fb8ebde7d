"""What ``compare`` found: curves over KL, gains at equal KL, what the ptx term saves.

A curve is a run's points in the order of its steps, from sft (KL 0) on. Its value at a KL between
two points is interpolated where it first crosses that KL. Intervals are 95 %, by a bootstrap over
requests (gold, learned, KL; all runs on the same ones, so that their differences are paired) or
over documents (text loss); one training seed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.evaluation.statistics import Interval, cluster_bootstrap, mean_interval, ratio
from trimtab.report import charts as draw

Array = NDArray[np.float64]

LEVELS = (1.0, 2.0, 3.0, 4.0)  # nats
METHODS = ("ppo", "grpo", "rloo", "dpo beta=0.1")  # whose curves are compared; the last with all
WITHOUT = " without ptx"


@dataclasses.dataclass(frozen=True)
class Point:
    """A model on the way: a mean of each request; (nats, tokens) of each document."""

    step: int
    cpu_seconds: float
    gold: list[float]
    learned: list[float]
    kl: list[float]
    length: list[float]
    text: list[tuple[float, int]]

    def text_loss(self) -> float:
        """Nats a token over all documents."""
        return sum(nats for nats, _ in self.text) / sum(tokens for _, tokens in self.text)


@dataclasses.dataclass(frozen=True)
class Run:
    """The points of a run in the order of their steps, without sft."""

    name: str
    points: list[Point]

    def record(self) -> dict[str, Any]:
        """JSON types, for ``read``."""
        return dataclasses.asdict(self)

    @classmethod
    def read(cls, path: Path) -> Run:
        """From a file of ``record``."""
        found = json.loads(path.read_text(encoding="utf-8"))
        return cls(found["name"], [Point(**point) for point in found["points"]])


# ---------------------------------------------------------------------- at equal KL


def value_at(kl: Array, value: Array, level: float) -> Array:
    """[B] value of curves [B, C] where they first reach a KL; NaN where they never do.

    Linear between neighbouring points. Curves begin below ``level``.
    """
    left, right = kl[:, :-1], kl[:, 1:]
    crosses = (left < level) & (right >= level)
    first = crosses.argmax(axis=1)
    rows = np.arange(len(kl))
    a, b = left[rows, first], right[rows, first]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (level - a) / (b - a)
        found = value[rows, first] + share * (value[rows, first + 1] - value[rows, first])
    return np.where(crosses.any(axis=1), found, np.nan)


def gain_at(start: Point, run: Run, level: float, other: Run | None = None) -> Interval:
    """Gold reward above sft's at a KL, or above ``other``'s there.

    NaN where a curve does not reach the level for sure, with the lower end of a point's interval:
    resamples that do not are left out, and with many of them the others would be a choice.
    """
    runs = [run] if other is None else [run, other]
    if not all(any(mean_interval(p.kl).low >= level for p in one.points) for one in runs):
        return Interval(np.nan, np.nan, np.nan, len(start.gold))
    columns = [
        column
        for one in runs
        for point in [start, *one.points]
        for column in (point.kl, point.gold)
    ]
    sizes = [1 + len(one.points) for one in runs]
    requests = len(start.gold)

    def statistic(totals: Array) -> Array:
        means, found, place = totals / totals[:, -1:], [], 0
        for size in sizes:
            curve = means[:, place : place + 2 * size].reshape(len(means), size, 2)
            found.append(value_at(curve[:, :, 0], curve[:, :, 1], level))
            place += 2 * size
        # Column 1 is sft's gold.
        return found[0] - (found[1] if other is not None else means[:, 1])

    table = np.column_stack([*columns, np.ones(requests)])
    return cluster_bootstrap(statistic, table, range(requests))


# ---------------------------------------------------------------------- differences


def apart(one: Sequence[float], other: Sequence[float]) -> Interval:
    """Mean of one - other on the same requests."""
    table = np.column_stack([np.subtract(one, other), np.ones(len(one))])
    return cluster_bootstrap(ratio, table, range(len(one)))


def text_apart(one: Point, other: Point) -> Interval:
    """Loss on text, in nats a token, of one less that of the other."""
    nats = [a - b for (a, _), (b, _) in zip(one.text, other.text, strict=True)]
    tokens = [count for _, count in one.text]
    return cluster_bootstrap(ratio, np.column_stack([nats, tokens]), range(len(tokens)))


def text_interval(point: Point) -> Interval:
    """Loss on text in nats a token."""
    return cluster_bootstrap(ratio, point.text, range(len(point.text)))


# ---------------------------------------------------------------------- tables


def report(start: Point, runs: Sequence[Run]) -> tuple[str, dict[str, Any]]:
    """The tables as Markdown, and every number as JSON types."""
    named = {run.name: run for run in runs}
    lines = [*_ends(start, runs), "", *_levels(start, named), "", *_ptx(start, named)]
    base = named[METHODS[-1]]
    record = {
        "intervals": "95 %, bootstrap over requests (text_loss: over documents), one seed",
        "sft": _point(start),
        "curves": {run.name: [_point(point) for point in run.points] for run in runs},
        "gold_gain_at_kl": {
            f"{level:g}": {
                name: {
                    "over sft": _ends_of(gain_at(start, run, level)),
                    f"over {base.name}": _ends_of(gain_at(start, run, level, base)),
                }
                for name, run in named.items()
            }
            for level in LEVELS
        },
    }
    return "\n".join(lines) + "\n", record


def _ends(start: Point, runs: Sequence[Run]) -> list[str]:
    """The last point of every run."""
    lines = _header(
        "",
        "CPU s",
        "gold reward",
        "gain over sft",
        "learned reward",
        "KL to sft, nats",
        "tokens",
        "loss on text",
    )
    for name, point in [("sft", start), *((run.name, run.points[-1]) for run in runs)]:
        same = point is start
        cells = [
            name,
            "-" if same else f"{point.cpu_seconds:.0f}",
            _cell(mean_interval(point.gold), 3),
            "-" if same else _cell(apart(point.gold, start.gold), 3, sign=True),
            _cell(mean_interval(point.learned), 2),
            "0" if same else _cell(mean_interval(point.kl), 1),
            f"{np.mean(point.length):.1f}",
            _cell(text_interval(point), 3),
        ]
        lines.append(_row(cells))
    return lines


def _levels(start: Point, runs: dict[str, Run]) -> list[str]:
    """Gold reward gained at equal KL, and the gap to the last of METHODS."""
    methods = [runs[name] for name in METHODS]
    base = methods[-1]
    heads = [run.name for run in methods] + [f"{run.name} less dpo" for run in methods[:-1]]
    lines = _header("KL, nats", *heads)
    for level in LEVELS:
        found = [gain_at(start, run, level) for run in methods]
        found += [gain_at(start, run, level, base) for run in methods[:-1]]
        lines.append(_row([f"{level:g}", *(_cell(one, 3, sign=True) for one in found)]))
    return lines


def _ptx(start: Point, runs: dict[str, Run]) -> list[str]:
    """The last points with the ptx term less those without it; loss above sft's for both."""
    lines = _header(
        "",
        "loss on text above sft's, with ptx",
        "without",
        "with less without",
        "gold reward, with less without",
    )
    for name, run in runs.items():
        if name + WITHOUT in runs:
            on, off = run.points[-1], runs[name + WITHOUT].points[-1]
            found = [text_apart(on, start), text_apart(off, start), text_apart(on, off)]
            found.append(apart(on.gold, off.gold))
            lines.append(_row([name, *(_cell(one, 3, sign=True) for one in found)]))
    return lines


def _header(*names: str) -> list[str]:
    return [_row(names).replace("|  |", "| |"), "|---" * len(names) + "|"]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(found: Interval, decimals: int, *, sign: bool = False) -> str:
    if np.isnan(found.mean):
        return "-"
    how = f"{'+' if sign else ''}.{decimals}f"
    return f"{found.mean:{how}} [{found.low:{how}}, {found.high:{how}}]"


def _ends_of(found: Interval) -> dict[str, float] | None:
    if np.isnan(found.mean):
        return None
    return {"mean": found.mean, "low": found.low, "high": found.high}


def _point(point: Point) -> dict[str, Any]:
    return {
        "step": point.step,
        "cpu_seconds": round(point.cpu_seconds, 1),
        "gold": _ends_of(mean_interval(point.gold)),
        "learned": _ends_of(mean_interval(point.learned)),
        "kl": _ends_of(mean_interval(point.kl)),
        "length": _ends_of(mean_interval(point.length)),
        "text_loss": _ends_of(text_interval(point)),
    }


# ---------------------------------------------------------------------- charts


def charts(start: Point, runs: Sequence[Run]) -> dict[str, str]:
    """Gold reward over KL, and loss on text over gold reward, as SVG by their names."""
    named = {run.name: run for run in runs}
    kl = draw.Axis("KL to sft, nats a story", 0.0)
    return {
        "gold-over-kl": draw.line_chart(
            [_gold_series(start, named[name]) for name in METHODS],
            title="Gold reward gained over the distance from sft",
            x=kl,
            y=draw.Axis("gold reward"),
        ),
        "text-over-gold": draw.line_chart(
            [
                _text_series(start, named[name])
                for name in (METHODS[0], METHODS[0] + WITHOUT, METHODS[1], METHODS[1] + WITHOUT)
            ],
            title="What it costs: loss on text of pretraining",
            x=draw.Axis("gold reward"),
            y=draw.Axis("loss on text, nats a token"),
        ),
    }


def _gold_series(start: Point, run: Run) -> draw.Series:
    found = [(mean_interval(p.kl).mean, mean_interval(p.gold), p) for p in [start, *run.points]]
    points = [draw.Point(x, y.mean, y.low, y.high, f"step {p.step}") for x, y, p in found]
    return draw.Series(run.name, points)


def _text_series(start: Point, run: Run) -> draw.Series:
    found = [(mean_interval(p.gold).mean, p.text_loss(), p) for p in [start, *run.points]]
    return draw.Series(run.name, [draw.Point(x, y, hint=f"step {p.step}") for x, y, p in found])
