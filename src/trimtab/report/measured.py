"""Numbers with intervals as demo and comparison files hold them, and charts that both draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from trimtab.report.charts import Axis, Group, Point, Series, interval_chart, line_chart
from trimtab.report.panels import Panel, panel_chart
from trimtab.report.svg import SERIES_COUNT, bare
from trimtab.report.words import interval

_DOTS = 24  # of a panel


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
    """A model between two measures, each with its interval."""

    name: str
    across: Measured
    up: Measured


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
    base: Place | None = None,
    dots: Mapping[str, Sequence[Place]] | None = None,
) -> str:
    """Every name's places through one chart; a panel each where they are more than it holds.

    ``base`` is where all start. ``dots`` are further places of a name, which only panels have room
    for.
    """
    if len(lines) + (base is not None) <= SERIES_COUNT:
        start = {} if base is None else {base.name: [base]}
        series = [
            Series(name, [_point(one) for one in line], joined=len(line) > 1)
            for name, line in [*start.items(), *lines.items()]
        ]
        return bare(line_chart(series, title=title, x=Axis(x), y=Axis(y)))
    panels = [
        Panel(
            name,
            [_point(one) for one in line],
            [_point(one) for one in (dots or {}).get(name, [])[:_DOTS] if one not in line],
        )
        for name, line in lines.items()
    ]
    start_at = None if base is None else _point(base)
    note = "Grey: the other methods."
    return bare(panel_chart(panels, title=title, x=Axis(x), y=Axis(y), note=note, start=start_at))


def _point(one: Place) -> Point:
    hint = f"{one.name}: {one.up.words()} at {one.across.words(2)}"
    x, y = one.across, one.up
    return Point(x.mean, y.mean, y.low, y.high, hint, x.low, x.high)
