"""Small multiples: one panel a series, all with the same axes, the others' lines behind in grey.

For more series than can be told apart in one chart. Nothing here knows what the numbers mean.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import NamedTuple

from trimtab.report.charts import Point
from trimtab.report.svg import (
    WIDTH,
    Axis,
    Scale,
    document,
    label,
    line,
    marker,
    path,
    plain,
    scale,
    shorten,
    spoken,
    text_width,
    ticks_of,
    whisker,
    wrap,
)

_COLUMNS = 2
_HIGH = 118.0  # of a panel's plot
_HEAD, _FOOT, _GAP = 20.0, 22.0, 12.0


class Panel(NamedTuple):
    """A named series; ``faint`` are points without a line, drawn small behind it."""

    name: str
    points: Sequence[Point]
    faint: Sequence[Point] = ()


def panel_chart(
    panels: Sequence[Panel], *, title: str, x: Axis, y: Axis, note: str = "", start: Point | None
) -> str:
    """Every panel's series with error bars both ways over the others' in grey.

    ``start`` is where all series begin, and is drawn in every panel. ``note`` stands below the
    title. A panel without points says so.
    """
    begin = [] if start is None else [start]
    lines = [
        [p for p in [*begin, *one.points] if math.isfinite(p.x) and math.isfinite(p.y)]
        for one in panels
    ]
    faint = [p for one in panels for p in one.faint]
    ends = _ends([*(p for own in lines for p in own), *faint])
    wide = [
        *(v for own in lines for p in own for v in (p.x, p.left, p.right)),
        *(p.x for p in faint),
    ]
    spans = [v for v in wide if v is not None and math.isfinite(v)]
    left = 14.0 + max(
        (text_width(said) for said in spoken(y, ticks_of(y, scale(y, ends, 1, 0), 4))),
        default=20.0,
    )
    width = (WIDTH - left - 14 - (_COLUMNS - 1) * (_GAP + 4)) / _COLUMNS
    parts, top = _heads(title, note, x, y)
    behind = ""
    for number, (panel, points) in enumerate(zip(panels, lines, strict=True)):
        row, column = divmod(number, _COLUMNS)
        right, down = column * (width + _GAP + 4), row * (_HEAD + _HIGH + _FOOT)
        x0, y0 = left + right, top + down + _HEAD
        across = scale(x, spans, x0, x0 + width)
        up = scale(y, ends, y0 + _HIGH, y0)
        parts.append(_axes(x, y, across, up, ticks=column == 0))
        parts.append(label(x0, y0 - 6, shorten(panel.name, width), kind="b"))
        if number:
            parts.append(_again(behind, right, down))
        elif len(panels) > 1:
            behind, grey = _grey(lines, across, up)
            parts.append(grey)
        parts += [_dot(p, across, up) for p in panel.faint if math.isfinite(p.x + p.y)]
        parts.append(_drawn(points, across, up, skip=len(begin)))
    rows = -(-len(panels) // _COLUMNS)
    height = top + rows * (_HEAD + _HIGH + _FOOT) + 8
    about = f"{y.label} over {x.label}, a panel each: " + ", ".join(one.name for one in panels)
    return document(title, about, "".join(parts), WIDTH, height)


def _heads(title: str, note: str, x: Axis, y: Axis) -> tuple[list[str], float]:
    """What stands above the panels, and where they begin."""
    parts = [
        label(8, 20 + 18 * i, text, kind="b") for i, text in enumerate(wrap(title, WIDTH - 24))
    ]
    top = 12.0 + 18 * len(parts)
    below = wrap(note, WIDTH - 24)
    parts += [label(8, top + 12 + 18 * i, text, kind="m") for i, text in enumerate(below)]
    top += 18 * len(below)
    parts.append(label(8, top + 14, shorten(f"upright: {y.label}", WIDTH - 16)))
    parts.append(label(8, top + 32, shorten(f"across: {x.label}", WIDTH - 16)))
    return parts, top + 42


def _ends(points: Sequence[Point]) -> list[float]:
    """Values and the ends of their intervals, as far as they are finite."""
    found = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    return [v for v in found if math.isfinite(v)] or [0.0, 1.0]


def _axes(x: Axis, y: Axis, across: Scale, up: Scale, *, ticks: bool) -> str:
    parts: list[str] = []
    places = ticks_of(y, up, 4)
    for at, said in zip(places, spoken(y, places), strict=True):
        parts.append(line(across.start, up(at), across.end, up(at), "g"))
        if ticks:
            parts.append(label(across.start - 6, up(at) + 4.5, said, anchor="end", kind="m"))
    places = ticks_of(x, across, 4)
    for at, said in zip(places, spoken(x, places), strict=True):
        parts.append(line(across(at), up.start, across(at), up.end, "g"))
        parts.append(label(across(at), up.start + 15, said, anchor="middle", kind="m"))
    parts.append(line(across.start, up.start, across.end, up.start, "a"))
    parts.append(line(across.start, up.start, across.start, up.end, "a"))
    return "".join(parts)


def _joined(points: Sequence[Point], across: Scale, up: Scale) -> list[tuple[float, float]]:
    return [(across(p.x), up(p.y)) for p in points]


def _grey(lines: Sequence[Sequence[Point]], across: Scale, up: Scale) -> tuple[str, str]:
    """All lines as one path, and its name: drawn once, other panels use it.

    A panel's own line lies over its grey one.
    """
    d = "".join(
        "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in _joined(own, across, up))
        for own in lines
        if len(own) > 1
    )
    if not d:
        return "", ""
    # Charts of one page share its names: that of the lines is made of them.
    name = f"tt-{zlib.crc32(d.encode()):08x}"
    return name, f'<path id="{name}" d="{d}" class="a" fill="none" stroke-opacity=".3"/>'


def _again(name: str, right: float, down: float) -> str:
    # With the class: rules of a chart do not reach what is drawn again, it inherits.
    place = f'x="{right:.1f}" y="{down:.1f}"'
    return f'<use href="#{name}" {place} class="a"/>' if name else ""


def _dot(point: Point, across: Scale, up: Scale) -> str:
    inside = f"<title>{plain(point.hint)}</title>" if point.hint else ""
    place = f'cx="{across(point.x):.1f}" cy="{up(point.y):.1f}"'
    return f'<circle {place} r="2.2" class="h0" style="fill-opacity:.55">{inside}</circle>'


def _drawn(points: Sequence[Point], across: Scale, up: Scale, skip: int) -> str:
    if len(points) <= skip:
        middle = (across.start + across.end) / 2
        return label(middle, (up.start + up.end) / 2, "no values", anchor="middle", kind="m")
    parts = [path(_joined(points, across, up), 0)] if len(points) > 1 else []
    for place, point in enumerate(points):
        at = across(point.x)
        if (
            point.low is not None
            and point.high is not None
            and math.isfinite(point.high - point.low)
        ):
            parts.append(whisker(at, up(point.low), up(point.high), 0, upright=True))
        if (
            point.left is not None
            and point.right is not None
            and math.isfinite(point.right - point.left)
        ):
            ends = across(point.left), across(point.right)
            parts.append(whisker(up(point.y), *ends, 0, upright=False))
        if place >= skip:
            parts.append(marker(at, up(point.y), 0, point.hint))
    return "".join(parts)
