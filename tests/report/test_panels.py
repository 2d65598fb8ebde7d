"""Small multiples: every series in a panel of its own, on the same axes."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from trimtab.report.charts import Point
from trimtab.report.panels import Panel, panel_chart
from trimtab.report.svg import WIDTH, Axis

START = Point(0.0, 0.5, 0.45, 0.55)


def drawn(panels: list[Panel], start: Point | None = START) -> str:
    return panel_chart(
        panels, title="A & B", x=Axis("KL, nats", 0.0), y=Axis("gold"), note="a note", start=start
    )


def marks(svg: str) -> list[tuple[float, float]]:
    """Places of the tooltipped marks."""
    found = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="4.5" class="f0"><title>', svg)
    return [(float(x), float(y)) for x, y in found]


@pytest.mark.parametrize("count", [1, 2, 11])
def test_panels_stand_side_by_side_within_the_chart(count: int) -> None:
    point = Point(2.0, 0.7, 0.65, 0.75, "here")
    svg = drawn([Panel(f"method {i}", [point]) for i in range(count)])
    root = ElementTree.fromstring(svg)
    height = float(root.attrib["height"])
    places = marks(svg)
    assert len(places) == count == len(set(places))
    assert all(0 < x < WIDTH and 0 < y < height for x, y in places)
    # The same value has the same place in every panel: columns and rows are one distance apart.
    assert len({x for x, _ in places}) == min(count, 2)
    assert len({y for _, y in places}) == -(-count // 2)
    assert all(f"method {i}</text>" in svg for i in range(count))
    assert "across: KL, nats" in svg and "upright: gold" in svg


def test_higher_is_higher_and_further_is_further() -> None:
    low, high = Point(1.0, 0.6, hint="low"), Point(3.0, 0.8, hint="high")
    (x0, y0), (x1, y1) = marks(drawn([Panel("one", [low, high])]))
    assert x1 > x0 and y1 < y0


def test_others_are_grey_behind_and_faint_points_are_small() -> None:
    own = [Point(1.0, 0.6, hint="a"), Point(2.0, 0.7, hint="b")]
    svg = drawn([Panel("one", own, faint=[Point(1.5, 0.5, hint="seen")]), Panel("two", own)])
    (name,) = re.findall(r'<path id="([^"]+)" d="[^"]*" class="a" fill="none"', svg)
    assert svg.count(f'<use href="#{name}"') == 1, "the second panel has the lines of the first"
    right, down = re.findall(r'<use [^>]* x="([\d.]+)" y="([\d.]+)" class="a"/>', svg)[0]
    (x0, y0), *_, (x1, y1) = marks(svg)[1::2]
    assert (x1 - x0, y1 - y0) == pytest.approx((float(right), float(down)), abs=0.11)
    assert svg.count('r="2.2"') == 1 and "seen" in svg


def test_what_is_missing_is_said_and_what_is_not_finite_left_out() -> None:
    svg = drawn(
        [Panel("none", []), Panel("bad", [Point(math.nan, 0.5), Point(1.0, 0.6, hint="x")])]
    )
    assert svg.count("no values") == 1
    assert "nan" not in svg
    assert len(marks(svg)) == 1
    ElementTree.fromstring(drawn([Panel("none", [])], start=None))
