"""Numbers with intervals as demo and comparison files hold them, and charts that both draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from trimtab.report.charts import Axis, Group, Point, Series, interval_chart, line_chart
from trimtab.report.panels import Panel, panel_chart
from trimtab.report.svg import SERIES_COUNT, bare
from trimtab.report.words import interval

_DOTS = 480  # of a chart


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

    ``base`` is where all start, and lines of several places with it. ``dots`` are further places
    of a name, drawn small behind its line, and evenly thinned where they are very many.
    """
    start_at = None if base is None else _point(base)
    most = _DOTS // max(1, len(lines))
    faint = {
        name: _thinned([_point(one) for one in (dots or {}).get(name, []) if one not in line], most)
        for name, line in lines.items()
    }
    if len(lines) + (base is not None) <= SERIES_COUNT:
        series = [] if base is None else [Series(base.name, [_point(base)], joined=False)]
        series += [
            Series(
                name,
                [_point(one) for one in line],
                joined=len(line) > 1,
                start=start_at if len(line) > 1 else None,
                faint=faint[name],
            )
            for name, line in lines.items()
        ]
        return bare(line_chart(series, title=title, x=Axis(x), y=Axis(y)))
    panels = [Panel(name, [_point(p) for p in line], faint[name]) for name, line in lines.items()]
    note = "Grey: the other methods."
    return bare(panel_chart(panels, title=title, x=Axis(x), y=Axis(y), note=note, start=start_at))


def _thinned(points: list[Point], most: int) -> list[Point]:
    return points[:: max(1, -(-len(points) // most))]


def _point(one: Place) -> Point:
    hint = f"{one.name}: {one.up.words()} at {one.across.words(2)}"
    x, y = one.across, one.up
    return Point(x.mean, y.mean, y.low, y.high, hint, x.low, x.high)
