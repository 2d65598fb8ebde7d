"""Pieces of an SVG chart: scales, ticks, text, axes, legends, and the style all charts share.

Every function is pure and returns markup. A chart is readable in light and in dark and printed:
colours are CSS variables inside the SVG that follow ``prefers-color-scheme`` (a page may set the
``--tt-*`` variables itself), and series differ in marker and dash as well as in colour. Lengths are
in CSS pixels; the natural width is small enough for text to stay legible on a phone.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from xml.sax.saxutils import escape

WIDTH = 440
TEXT = 13  # font size
_GLYPH = 0.6  # mean width of a character, in font sizes
_LINE = 18

# Hues apart for colour-blind readers (Okabe and Ito 2008), with a lighter set for dark pages.
_STYLE = """
.tt-chart{--ink:var(--tt-ink,#1b1f24);--muted:var(--tt-muted,#59636e);--grid:var(--tt-grid,#e2e6ea);
--paper:var(--tt-paper,#ffffff);--s0:var(--tt-s0,#0060a8);--s1:var(--tt-s1,#c24e00);
--s2:var(--tt-s2,#00785a);--s3:var(--tt-s3,#8a4a86);--s4:var(--tt-s4,#8f6b00);
--s5:var(--tt-s5,#b3123d);--s6:var(--tt-s6,#007f9e);--s7:var(--tt-s7,#5b636b);
font:13px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
@media (prefers-color-scheme:dark){.tt-chart{--ink:var(--tt-ink,#e6edf3);
--muted:var(--tt-muted,#9aa4af);--grid:var(--tt-grid,#30363d);--paper:var(--tt-paper,#0d1117);--s0:var(--tt-s0,#6cb6ff);
--s1:var(--tt-s1,#ffa657);--s2:var(--tt-s2,#56d4a8);--s3:var(--tt-s3,#d2a8ff);
--s4:var(--tt-s4,#e3c04b);--s5:var(--tt-s5,#ff8f9c);--s6:var(--tt-s6,#7ce5f2);--s7:var(--tt-s7,#b8c2cc)}}
@media print{.tt-chart{--ink:#000;--muted:#444;--grid:#ccc;--paper:#fff;
--s0:#0060a8;--s1:#c24e00;--s2:#00785a;--s3:#8a4a86;--s4:#8f6b00;--s5:#b3123d;--s6:#007f9e;
--s7:#5b636b}}
.tt-chart text{fill:var(--ink)}.tt-chart .m{fill:var(--muted)}.tt-chart .b{font-weight:600}
.tt-chart .g{stroke:var(--grid)}.tt-chart .a{stroke:var(--muted)}
.tt-chart .r{stroke:var(--muted);stroke-dasharray:5 4;fill:none}
.tt-chart .p{fill:var(--paper)}.tt-chart .k{fill:var(--s2);fill-opacity:.13}
.tt-chart .d{fill-opacity:.6}
"""
_SERIES = "".join(
    f".tt-chart .l{i}{{stroke:var(--s{i});fill:none;stroke-width:2}}"
    f".tt-chart .f{i}{{fill:var(--s{i})}}.tt-chart .h{i}{{fill:var(--s{i});fill-opacity:.22}}"
    for i in range(8)
)
STYLE = f"<style>{_STYLE}{_SERIES}</style>"
"""What every chart carries; a page of charts takes it once (``bare``)."""
SERIES_COUNT = 8
_DASHES = tuple(
    f' stroke-dasharray="{dash}"' if dash else ""
    for dash in ("", "7 4", "2 3", "9 3 2 3", "14 4", "1 4", "6 2 1 2 1 2", "12 3 4 3")
)
# Corners of the marks of series 1 to 7: square, triangle, diamond, the triangle upside down, plus,
# cross, hourglass.
_CORNERS = (
    ((-4, -4), (4, -4), (4, 4), (-4, 4)),
    ((0, -5.5), (5, 4), (-5, 4)),
    ((0, -6), (6, 0), (0, 6), (-6, 0)),
    ((0, 5.5), (5, -4), (-5, -4)),
    (
        *((-1.7, -5.5), (1.7, -5.5), (1.7, -1.7), (5.5, -1.7), (5.5, 1.7), (1.7, 1.7)),
        *((1.7, 5.5), (-1.7, 5.5), (-1.7, 1.7), (-5.5, 1.7), (-5.5, -1.7), (-1.7, -1.7)),
    ),
    (
        *((-5, -2.7), (-2.7, -5), (0, -2.3), (2.7, -5), (5, -2.7), (2.3, 0)),
        *((5, 2.7), (2.7, 5), (0, 2.3), (-2.7, 5), (-5, 2.7), (-2.3, 0)),
    ),
    ((-5, -5), (5, -5), (-5, 5), (5, 5)),
)
_ILLEGAL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


@dataclasses.dataclass(frozen=True)
class Axis:
    """A linear axis: its label with the unit, the ends (None: from the data), how ticks are said.

    ``percent`` writes 0.25 as 25%. ``ticks`` gives the places themselves, for whole numbers say.
    ``log2`` spaces doublings evenly (values above 0).
    """

    label: str
    low: float | None = None
    high: float | None = None
    percent: bool = False
    ticks: Sequence[float] | None = None
    log2: bool = False


@dataclasses.dataclass(frozen=True)
class Scale:
    """A value to a place: linear between two ends, or in doublings."""

    low: float
    high: float
    start: float
    end: float
    log2: bool = False

    def __call__(self, value: float) -> float:
        """The place of ``value``, kept within a little of the ends."""
        low, high, at = (math.log2(v) if self.log2 else v for v in (self.low, self.high, value))
        share = (at - low) / (high - low)
        return self.start + min(max(share, -0.01), 1.01) * (self.end - self.start)


def scale(axis: Axis, values: Sequence[float], start: float, end: float) -> Scale:
    """The scale of an axis over finite ``values``: its own ends, or the data's with some room."""
    usable = [v for v in values if math.isfinite(v) and (v > 0 or not axis.log2)] or [0.0, 1.0]
    low = min(usable) if axis.low is None else axis.low
    high = max(usable) if axis.high is None else axis.high
    if axis.log2:
        return Scale(low, high if high > low else 2 * low, start, end, log2=True)
    if not high > low:
        room = max(abs(low), 1.0) / 2
        low, high = (low - room if axis.low is None else low), max(low, high) + room
    room = 0.06 * (high - low)
    return Scale(
        low - room if axis.low is None else low,
        high + room if axis.high is None else high,
        start,
        end,
    )


def ticks_of(axis: Axis, span: Scale, most: int = 6) -> list[float]:
    """Places of ticks within the scale: multiples of 1, 2, 2.5 or 5 times a power of ten."""
    if axis.ticks is not None:
        return [t for t in axis.ticks if span.low <= t <= span.high]
    if span.log2:
        return [2.0**i for i in range(math.ceil(math.log2(span.low)), 64) if 2.0**i <= span.high]
    wide = (span.high - span.low) / most
    size = 10.0 ** math.floor(math.log10(wide))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= wide * (1 - 1e-9))
    first, last = math.ceil(span.low / step - 1e-9), math.floor(span.high / step + 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, last + 1)]


def spoken(axis: Axis, ticks: Sequence[float]) -> list[str]:
    """The ticks in words, all with as many decimals as the finest of them needs."""
    values = [100 * t if axis.percent else t for t in ticks]
    largest = max(map(abs, values), default=0.0)
    if largest >= 1e5 or 0 < largest < 1e-3:
        return [f"{v:g}" for v in values]
    places = next(d for d in range(7) if d == 6 or all(math.isclose(v, round(v, d), abs_tol=1e-9)
                                                       for v in values))  # fmt: skip
    sign = "%" if axis.percent else ""
    return [f"{v:.{places}f}{sign}".replace("-", "\N{MINUS SIGN}") for v in values]


# ---------------------------------------------------------------------- markup


def plain(text: str) -> str:
    """Any text as XML character data: escaped, without what XML cannot hold, on one line."""
    return escape(legal(" ".join(text.split())), {'"': "&quot;"})


def legal(text: str) -> str:
    """Any text without the characters that neither XML nor HTML can hold, nor UTF-8 encode."""
    return _ILLEGAL.sub("\N{REPLACEMENT CHARACTER}", text)


def text_width(text: str) -> float:
    """About how wide a text is; wide scripts count double."""
    return TEXT * sum(2 * _GLYPH if ord(c) > 0x2E80 else _GLYPH for c in text)


def shorten(text: str, width: float) -> str:
    """The text, or as much of its start as fits, with an ellipsis."""
    text = " ".join(text.split())
    if text_width(text) <= width:
        return text
    while text and text_width(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def wrap(text: str, width: float) -> list[str]:
    """The words of a text in lines of at most ``width``; a longer word has a line of its own."""
    lines: list[str] = []
    for word in text.split():
        if lines and text_width(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def label(x: float, y: float, text: str, *, anchor: str = "start", kind: str = "") -> str:
    """A text; ``kind`` is m (muted) or b (bold)."""
    named = f' class="{kind}"' if kind else ""
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{_n(x)}" y="{_n(y)}"{place}{named}>{plain(text)}</text>'


def patch(x: float, y: float, width: float, height: float, kind: str) -> str:
    """A filled rectangle of class ``kind``."""
    return (
        f'<rect class="{kind}" x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}"/>'
    )


def blank(x: float, y: float, width: float, height: float) -> str:
    """A patch of background."""
    return patch(x, y, width, height, "p")


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line of class ``kind``."""
    return f'<line x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}" class="{kind}"/>'


def path(points: Sequence[tuple[float, float]], series: int, *, closed: bool = False) -> str:
    """Points joined by a series' line, or filled to a shape."""
    joined = "L".join(f"{_n(x)} {_n(y)}" for x, y in points)
    if closed:
        return f'<path d="M{joined}Z" class="h{series}"/>'
    return f'<path d="M{joined}" class="l{series}"{_DASHES[series]}/>'


def marker(x: float, y: float, series: int, hint: str = "", *, small: bool = False) -> str:
    """A series' own mark, with a tooltip; ``small`` ones, of clouds of points, let others show."""
    inside = f"<title>{plain(hint)}</title>" if hint else ""
    kind, size = (f"f{series} d", 0.6) if small else (f"f{series}", 1.0)
    if series == 0:
        head = f'circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(4.5 * size)}"'
        return f'<{head} class="{kind}">{inside}</circle>'
    corners = _CORNERS[series - 1]
    places = " ".join(f"{_n(x + size * dx)},{_n(y + size * dy)}" for dx, dy in corners)
    return f'<polygon points="{places}" class="{kind}">{inside}</polygon>'


def whisker(at: float, low: float, high: float, series: int, *, upright: bool) -> str:
    """An interval as an error bar with caps."""
    a, b = _n(low), _n(high)
    c, d, e = _n(at), _n(at - 3), _n(at + 3)
    if upright:
        drawn = f"M{c} {a}V{b}M{d} {a}H{e}M{d} {b}H{e}"
    else:
        drawn = f"M{a} {c}H{b}M{a} {d}V{e}M{b} {d}V{e}"
    return f'<path d="{drawn}" class="l{series}" style="stroke-width:1.5"/>'


def legend(
    entries: Sequence[tuple[str, str]], left: float, top: float, width: float
) -> tuple[str, float]:
    """Entries (mark drawn around 0, 0; text) in as many lines as they need, and their height."""
    parts: list[str] = []
    x, y = left, top
    for mark, text in entries:
        text = shorten(text, width - 28)
        wide = 28 + text_width(text) + 14
        if x > left and x + wide - 14 > left + width:
            x, y = left, y + _LINE
        parts.append(f'<g transform="translate({_n(x + 10)} {_n(y + 9)})">{mark}</g>')
        parts.append(label(x + 26, y + 13, text, kind="m"))
        x += wide
    return "".join(parts), (y + _LINE - top) if entries else 0.0


def frame(x: Axis, y: Axis, across: Scale, up: Scale, *, grid: bool = True) -> str:
    """Grid, ticks and labels of a chart with two axes; ``up`` runs from the bottom to the top."""
    parts: list[str] = []
    most = max(2, int(abs(across.end - across.start) / 52))
    ticks = ticks_of(x, across, most)
    last = -math.inf
    for at, said in zip(ticks, spoken(x, ticks), strict=True):
        place = across(at)
        if grid:
            parts.append(line(place, up.start, place, up.end, "g"))
        if place - last < text_width(said) + 4:
            continue  # no room: the grid line stays
        parts.append(label(place, up.start + 17, said, anchor="middle", kind="m"))
        last = place
    ticks = ticks_of(y, up)
    for at, said in zip(ticks, spoken(y, ticks), strict=True):
        parts.append(line(across.start, up(at), across.end, up(at), "g"))
        parts.append(label(across.start - 7, up(at) + 4.5, said, anchor="end", kind="m"))
    parts.append(line(across.start, up.start, across.end, up.start, "a"))
    parts.append(line(across.start, up.start, across.start, up.end, "a"))
    parts.append(below(x, across, up.start))
    return "".join(parts)


def below(x: Axis, across: Scale, bottom: float) -> str:
    """The label of the axis at the bottom, in the middle of it but within the chart."""
    text = shorten(x.label, WIDTH - 16)
    half = text_width(text) / 2 + 8
    middle = min(max((across.start + across.end) / 2, half), WIDTH - half)
    return label(middle, bottom + 36, text, anchor="middle")


def document(title: str, about: str, body: str, width: float, height: float) -> str:
    """A whole SVG, to be put into a page or saved as a file."""
    wide, high = _n(width), _n(height)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="tt-chart" viewBox="0 0 {wide} {high}" '
        f'width="{wide}" height="{high}" role="img" aria-label="{plain(title)}" '
        f'style="max-width:100%;height:auto"><title>{plain(title)}</title><desc>{plain(about)}</desc>'
        f"{STYLE}"
        f'<rect class="p" width="{wide}" height="{high}"/>{body}</svg>\n'
    )


def bare(chart: str) -> str:
    """A chart without its style, for a page that has ``STYLE`` once."""
    return chart.replace(STYLE, "", 1)


def _n(value: float) -> str:
    """A coordinate with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")
