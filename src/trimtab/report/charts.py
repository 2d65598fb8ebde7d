"""Charts from plain numbers: lines with error bars, groups with intervals, histograms.

Each function takes values and words and returns one SVG; nothing here knows what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from trimtab.report.svg import (
    SERIES_COUNT,
    WIDTH,
    Axis,
    Scale,
    below,
    blank,
    document,
    frame,
    label,
    legend,
    line,
    marker,
    patch,
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

__all__ = ["Axis", "Band", "Group", "Point", "Series", "histogram", "interval_chart", "line_chart"]

_ROW = 30  # height of a group
_RIGHT = 24


class Point(NamedTuple):
    """A value with the ends of its interval (None: not drawn) and a tooltip.

    ``left`` and ``right`` are the ends of an interval of x.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    hint: str = ""
    left: float | None = None
    right: float | None = None


class Series(NamedTuple):
    """Points of one name; ``joined`` draws a line through them.

    ``marks`` says how points are marked: "all" of them, as "small" ones (a cloud), or "none".
    ``start`` is where the line begins, without a mark; ``faint`` are further points, drawn small
    and without intervals.
    """

    name: str
    points: Sequence[Point]
    joined: bool = True
    marks: Literal["all", "small", "none"] = "all"
    start: Point | None = None
    faint: Sequence[Point] = ()


class Band(NamedTuple):
    """A range of y that is shaded and named; an end that is None is that of the chart."""

    low: float | None
    high: float | None
    name: str


class Group(NamedTuple):
    """A named value with its interval; ``note`` stands at the right, ``head`` starts a section."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""
    head: str = ""


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x: Axis,
    y: Axis,
    diagonal: str | None = None,
    band: Band | None = None,
    height: float = 330,
) -> str:
    """Series over a number, with error bars; at most eight.

    ``diagonal`` names the line y = x, for charts that compare like with like. ``band`` is drawn
    where it meets what the values span: they alone say how far the chart reaches.
    """
    assert len(series) <= SERIES_COUNT, "more series than can be told apart"
    kept = [one._replace(points=_known(one.points), faint=_known(one.faint)) for one in series]
    entries = [(_mark(i, one), one.name) for i, one in enumerate(kept)]
    if diagonal is not None:
        entries.append((line(-9, 0, 9, 0, "r"), diagonal))
    if band is not None:
        entries.append((patch(-9, -6, 18, 12, "k"), band.name))
    top, head = _head(title, entries, y.label)
    bottom = height + top - 60
    every = [p for one in kept for p in one.points]
    every += [Point(p.x, p.y) for one in kept for p in one.faint]
    values = [v for p in every for v in (p.y, p.low, p.high) if _finite(v)]
    up = scale(y, values, bottom, top)  # type: ignore[arg-type]
    left = _left(y, up)
    wide = [v for p in every for v in (p.x, p.left, p.right) if _finite(v)]
    across = scale(x, wide, left, WIDTH - _RIGHT)  # type: ignore[arg-type]
    parts = [head, *_shade(band, across, up), frame(x, y, across, up)]
    if diagonal is not None:
        low, high = max(across.low, up.low), min(across.high, up.high)
        parts.append(line(across(low), up(low), across(high), up(high), "r"))
    for index, one in enumerate(kept):
        parts += _drawn(one, index, across, up)
    if not values:
        parts.append(label((left + WIDTH) / 2, (top + bottom) / 2, "no values", anchor="middle"))
    about = f"{y.label} over {x.label}: " + ", ".join(one.name for one in kept)
    return document(title, about, "".join(parts), WIDTH, bottom + 46)


def _known(points: Sequence[Point]) -> list[Point]:
    return [p for p in points if _finite(p.x, p.y)]


def _drawn(one: Series, index: int, across: Scale, up: Scale) -> list[str]:
    """A series: its line, its faint points, and its points with their intervals."""
    places = [(across(p.x), up(p.y)) for p in one.points]
    begin = [] if one.start is None else [(across(one.start.x), up(one.start.y))]
    parts: list[str] = []
    if one.joined and len(begin + places) > 1:
        parts.append(path(begin + places, index))
    parts += [marker(across(p.x), up(p.y), index, p.hint, small=True) for p in one.faint]
    for point, (px, py) in zip(one.points, places, strict=True):
        if _finite(point.low, point.high):
            parts.append(whisker(px, up(point.low), up(point.high), index, upright=True))  # type: ignore[arg-type]
        if _finite(point.left, point.right):
            ends = across(point.left), across(point.right)  # type: ignore[arg-type]
            parts.append(whisker(py, *ends, index, upright=False))
        if one.marks != "none":
            parts.append(marker(px, py, index, point.hint, small=one.marks == "small"))
    return parts


def _shade(band: Band | None, across: Scale, up: Scale) -> list[str]:
    """A band as far as the chart reaches."""
    if band is None:
        return []
    low = up.low if band.low is None else max(band.low, up.low)
    high = up.high if band.high is None else min(band.high, up.high)
    if not low < high:
        return []
    top = up(high)
    return [patch(across.start, top, across.end - across.start, up(low) - top, "k")]


def interval_chart(
    groups: Sequence[Group],
    *,
    title: str,
    x: Axis,
    reference: tuple[float, str] | None = None,
) -> str:
    """One row a group: its name, a dot with its interval, a note; ``reference`` is a named line."""
    entries = [] if reference is None else [(line(0, -8, 0, 8, "r"), reference[1])]
    top, head = _head(title, entries, None)
    widest = max((text_width(g.name) for g in groups), default=0.0)
    noted = max((text_width(g.note) for g in groups), default=0.0)
    left = min(max(widest + 12, 60), 0.42 * WIDTH)
    right = WIDTH - (max(noted + 18, _RIGHT) if noted else _RIGHT)
    values = [v for g in groups for v in (g.value, g.low, g.high) if _finite(v)]
    values += [] if reference is None else [reference[0]]
    across = scale(x, values, left, right)  # type: ignore[arg-type]
    rows, y = [], top + 4
    for group in groups:
        if group.head:
            head_text = shorten(group.head, WIDTH - 16)
            # The grid stops behind it: a line through words is hard to read.
            rows.append(blank(4, y + 5, text_width(head_text) + 12, 19))
            rows.append(label(8, y + 19, head_text, kind="b"))
            y += 26
        rows.append(_group(group, across, y + _ROW / 2, left, right))
        y += _ROW
    if not groups:
        rows.append(label((left + right) / 2, y + 19, "no values", anchor="middle"))
        y += _ROW
    bottom = y + 6
    parts = [head, _sideways(x, across, top, bottom)]
    if reference is not None and across.low <= reference[0] <= across.high:
        place = across(reference[0])
        parts.append(line(place, top, place, bottom, "r"))
    return document(title, x.label, "".join([*parts, *rows]), WIDTH, bottom + 46)


def _group(group: Group, across: Scale, y: float, left: float, right: float) -> str:
    name = shorten(group.name, left - 12)
    parts = [label(left - 8, y + 4.5, name, anchor="end")]
    if _finite(group.low, group.high):
        parts.append(whisker(y, across(group.low), across(group.high), 0, upright=False))  # type: ignore[arg-type]
    if _finite(group.value):
        parts.append(marker(across(group.value), y, 0))
    if group.note:
        parts.append(label(right + 10, y + 4.5, group.note, kind="m"))
    return f"<g><title>{plain(f'{group.name}: {group.value:.4g}')}</title>{''.join(parts)}</g>"


def _sideways(x: Axis, across: Scale, top: float, bottom: float) -> str:
    """Grid and labels of a chart whose rows have names instead of an axis."""
    ticks = ticks_of(x, across, max(2, int((across.end - across.start) / 52)))
    parts = [line(across.start, bottom, across.end, bottom, "a")]
    for at, said in zip(ticks, spoken(x, ticks), strict=True):
        parts.append(line(across(at), top, across(at), bottom, "g"))
        parts.append(label(across(at), bottom + 17, said, anchor="middle", kind="m"))
    parts.append(below(x, across, bottom))
    return "".join(parts)


def histogram(
    values: Mapping[str, Sequence[float]],
    *,
    title: str,
    x: Axis,
    bins: int | None = None,
    height: float = 300,
) -> str:
    """Shares of each series' own values in equal bins of the range that all share.

    ``bins`` None takes twice the cube root of the number of values, 8 to 24 (Rice's rule). The
    range leaves out the outermost 0.5 % on either side, which are counted in the end bins: one far
    value would flatten everything else.
    """
    assert len(values) <= SERIES_COUNT, "more series than can be told apart"
    found = {name: [v for v in one if _finite(v)] for name, one in values.items()}
    low, high = _range([v for one in found.values() for v in one])
    count = _bins(found.values()) if bins is None else bins
    shares = {name: _shares(one, low, high, count) for name, one in found.items()}
    entries = [(_block(i), name) for i, name in enumerate(found)]
    share = Axis("share of each", 0.0, percent=True)
    top, head = _head(title, entries, share.label)
    bottom = height + top - 60
    up = scale(share, [s for one in shares.values() for s in one], bottom, top)
    left = _left(share, up)
    across = Scale(low, high, left, WIDTH - _RIGHT)
    parts = [head, frame(x, share, across, up, grid=False)]
    for index, one in enumerate(shares.values()):
        outline = _outline(one, across, up, low, high)
        parts.append(path([(left, up(0)), *outline, (across.end, up(0))], index, closed=True))
        parts.append(path(outline, index))
    about = f"share of values over {x.label}: " + ", ".join(found)
    return document(title, about, "".join(parts), WIDTH, bottom + 46)


def _range(every: list[float]) -> tuple[float, float]:
    every = sorted(every) or [0.0, 1.0]
    cut = len(every) // 200
    low, high = every[cut], every[-1 - cut]
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _bins(values: Iterable[Sequence[float]]) -> int:
    return min(max(round(2 * max(map(len, values), default=0) ** (1 / 3)), 8), 24)


def _shares(values: Sequence[float], low: float, high: float, bins: int) -> list[float]:
    counts = [0] * bins
    for value in values:
        place = math.floor((value - low) / (high - low) * bins)
        counts[min(max(place, 0), bins - 1)] += 1
    return [count / max(len(values), 1) for count in counts]


def _outline(
    shares: Sequence[float], across: Scale, up: Scale, low: float, high: float
) -> list[tuple[float, float]]:
    """The steps of a histogram."""
    edges = [across(low + (high - low) * i / len(shares)) for i in range(len(shares) + 1)]
    return [
        (edge, up(share)) for i, share in enumerate(shares) for edge in (edges[i], edges[i + 1])
    ]


# ---------------------------------------------------------------------- what all have


def _head(title: str, entries: Sequence[tuple[str, str]], upright: str | None) -> tuple[float, str]:
    """Where the plot begins, and title, legend and the label of the upright axis above it.

    That label lies flat at the top left: turned text is hard to read, and costs width on a phone.
    """
    lines = wrap(title, WIDTH - 24)
    parts = [label(8, 20 + 18 * i, text, kind="b") for i, text in enumerate(lines)]
    top = 12.0 + 18 * len(lines)
    drawn, height = legend(entries, 8, top, WIDTH - 16)
    parts.append(drawn)
    top += height + 8
    if upright:
        parts.append(label(8, top + 10, upright))
        top += 18
    return top + 6, "".join(parts)


def _left(axis: Axis, up: Scale) -> float:
    """Room for the ticks of an upright axis."""
    said = spoken(axis, ticks_of(axis, up))
    return 16 + max(map(text_width, said), default=20.0)


def _mark(series: int, one: Series) -> str:
    drawn = path([(-9, 0), (9, 0)], series) if one.joined else ""
    return drawn + ("" if one.marks == "none" else marker(0, 0, series))


def _block(series: int) -> str:
    return path([(-8, 5), (-8, -5), (8, -5), (8, 5)], series, closed=True) + path(
        [(-8, 5), (-8, -5), (8, -5), (8, 5)], series
    )


def _finite(*values: float | None) -> bool:
    return all(value is not None and math.isfinite(value) for value in values)
