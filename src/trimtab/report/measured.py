"""Numbers with intervals as demo and comparison files hold them, and charts that both draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from trimtab.report.blocks import Figure
from trimtab.report.charts import Axis, Group, Point, Series, interval_chart, line_chart
from trimtab.report.svg import SERIES_COUNT, bare, scale
from trimtab.report.words import interval


class Lenient(BaseModel):
    """Known keys are checked, others are nobody's business here."""

    model_config = ConfigDict(extra="ignore")


class Measured(Lenient):
    """A mean with its 95 % interval."""

    mean: float
    low: float | None = None
    high: float | None = None
    n: int | None = None

    def words(self, places: int = 3) -> str:
        """``0.670 [0.659, 0.682]``."""
        return interval(self.mean, self.low, self.high, places)

    def above(self, other: Measured) -> bool:
        """Whether the two intervals lie apart, this one higher."""
        return self.low is not None and other.high is not None and self.low > other.high


class Place(NamedTuple):
    """A model between two measures, each with its interval.

    ``line`` names the line that it is a point of, where a name has several.
    """

    name: str
    across: Measured
    up: Measured
    line: str = ""


def by_name(
    found: Mapping[str, Measured],
    *,
    title: str,
    unit: str,
    reference: tuple[float, str] | None = None,
    places: int = 3,
) -> str:
    """A row a name: its mean and interval."""
    groups = [Group(name, one.mean, one.low, one.high) for name, one in found.items()]
    return bare(interval_chart(groups, title=title, x=Axis(unit), reference=reference))


def plane(
    lines: Mapping[str, Sequence[Place]],
    *,
    title: str,
    x: str,
    y: str,
    caption: str,
    base: Place | None = None,
) -> list[Figure]:
    """Every name's places through one chart; several with the same axes where they are too many.

    ``base`` is in each of them.
    """
    start = {} if base is None else {base.name: [base]}
    every = list(lines.items())
    count = -(-len(every) // (SERIES_COUNT - len(start)))
    places = [*(one for line in lines.values() for one in line), *([base] if base else [])]
    across = _axis(x, [one.across for one in places])
    up = _axis(y, [one.up for one in places])
    drawn: list[Figure] = []
    for part in range(count):
        some = every[len(every) * part // count : len(every) * (part + 1) // count]
        series = [
            Series(name, _points(line), joined=len(line) > 1)
            for name, line in [*start.items(), *some]
        ]
        named = title if count == 1 else f"{title} ({part + 1} of {count})"
        chart = line_chart(series, title=named, x=across, y=up)
        drawn.append(Figure(bare(chart), caption if part == 0 else "More methods, the same axes."))
    return drawn


def _axis(label: str, measured: Sequence[Measured]) -> Axis:
    """An axis over all that is drawn, intervals included."""
    values = [v for one in measured for v in (one.mean, one.low, one.high) if v is not None]
    span = scale(Axis(label), values, 0, 1)
    return Axis(label, span.low, span.high)


def _points(line: Sequence[Place]) -> list[Point]:
    points: list[Point] = []
    for place, one in enumerate(line):
        hint = f"{one.name}: {one.up.words()} at {one.across.words(2)}"
        x, y = one.across, one.up
        apart = place > 0 and one.line != line[place - 1].line
        points.append(Point(x.mean, y.mean, y.low, y.high, hint, x.low, x.high, apart))
    return points
