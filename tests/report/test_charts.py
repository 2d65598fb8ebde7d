"""Charts: the places of marks are those of the numbers, and nothing leaves the picture."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from trimtab.report.charts import (
    Axis,
    Group,
    Point,
    Series,
    histogram,
    interval_chart,
    line_chart,
)
from trimtab.report.svg import text_width

SPACE = "{http://www.w3.org/2000/svg}"


def parsed(chart: str) -> Any:
    return ElementTree.fromstring(chart)


def circles(chart: str) -> list[tuple[float, float]]:
    """Marks of the first series, without the one in the legend."""
    found = list(parsed(chart).iter(f"{SPACE}circle"))
    return [(float(e.get("cx")), float(e.get("cy"))) for e in found if e.get("cx") != "0"]


def texts(chart: str) -> list[str]:
    return [e.text for e in parsed(chart).iter(f"{SPACE}text")]


def require_inside(chart: str) -> None:
    """No text that is drawn where it stands leaves the picture, and no two of a line overlap."""
    root = parsed(chart)
    width, height = (float(x) for x in root.get("viewBox").split()[2:])
    spans: dict[float, list[tuple[float, float]]] = {}
    for text in root.iter(f"{SPACE}text"):
        x, y, size = float(text.get("x")), float(text.get("y")), text_width(text.text)
        start = {"start": x, "middle": x - size / 2, "end": x - size}[
            text.get("text-anchor", "start")
        ]
        assert start >= -2 and start + size <= width + 2, text.text
        assert 0 < y <= height, text.text
        spans.setdefault(y, []).append((start, start + size))
    for line in spans.values():
        line.sort()
        assert all(a[1] <= b[0] + 3 for a, b in itertools.pairwise(line)), line


def reliability(count: int = 5) -> str:
    points = [Point(i / (count - 1), i / (count - 1), max(0, i / 4 - 0.1), 1) for i in range(count)]
    return line_chart(
        [Series("bins", points, joined=False)],
        title="Reliability",
        x=Axis("predicted", 0, 1, percent=True),
        y=Axis("observed", 0, 1, percent=True),
        diagonal="exactly right",
    )


def test_points_on_the_diagonal_lie_on_it() -> None:
    chart = reliability()
    require_inside(chart)
    (diagonal,) = [
        e
        for e in parsed(chart).iter(f"{SPACE}line")
        if e.get("class") == "r" and e.get("x1") != "-9"
    ]
    x1, y1, x2, y2 = (float(diagonal.get(k)) for k in ("x1", "y1", "x2", "y2"))
    found = circles(chart)
    assert found[0] == (x1, y1) and found[-1] == (x2, y2) and y1 > y2 and x1 < x2
    assert found[2] == pytest.approx(((x1 + x2) / 2, (y1 + y2) / 2), abs=0.1)


def test_error_bars_span_their_interval() -> None:
    chart = line_chart(
        [Series("a", [Point(0, 1, 0, 2), Point(1, 1)])], title="t", x=Axis("x"), y=Axis("y", 0, 2)
    )
    bars = re.findall(r"M[\d.]+ ([\d.]+)V([\d.]+)M", chart)
    assert len(bars) == 1, "a point without an interval has no bar"
    low, high = map(float, bars[0])
    assert circles(chart)[0][1] == pytest.approx((low + high) / 2, abs=0.1)


def test_series_differ_in_more_than_colour() -> None:
    points = [Point(1, 1), Point(2, 2)]
    chart = line_chart(
        [Series(name, points) for name in "abcd"], title="t", x=Axis("x"), y=Axis("y")
    )
    require_inside(chart)
    paths = list(parsed(chart).iter(f"{SPACE}path"))
    dashes = {e.get("stroke-dasharray") for e in paths if e.get("class", "").startswith("l")}
    assert len(dashes) == 4
    assert set("abcd") <= set(texts(chart))


def test_intervals_lie_where_they_belong() -> None:
    groups = [
        Group("all", 0.5, 0.4, 0.6, "1,000"),
        Group("a source with a very long name <&> indeed", 1.0, 0.8, 1.0, "7", head="by source"),
    ]
    chart = interval_chart(
        groups, title="Accuracy", x=Axis("share", 0, 1, percent=True), reference=(0.5, "chance")
    )
    require_inside(chart)
    reference = [e for e in parsed(chart).iter(f"{SPACE}line") if e.get("class") == "r"][-1]
    assert circles(chart)[0][0] == float(reference.get("x1"))
    assert circles(chart)[1][0] > circles(chart)[0][0]
    assert {"by source", "1,000", "chance"} <= set(texts(chart))
    assert "a source with a very long name &lt;&amp;&gt; indeed: 1" in chart, "whole in the tooltip"


def test_a_histogram_counts_every_value() -> None:
    chart = histogram(
        {"a": [0.5, 1.5, 1.5, 3.5], "b": [2.5] * 4}, title="Scores", x=Axis("score"), bins=4
    )
    require_inside(chart)
    outlines = [
        e.get("d") for e in parsed(chart).iter(f"{SPACE}path")
        if e.get("class") in ("l0", "l1") and e.get("d").count("L") == 7
    ]  # fmt: skip
    heights = [[float(p.split()[1]) for p in d.removeprefix("M").split("L")[::2]] for d in outlines]
    base = max(max(h) for h in heights)
    shares = [[base - y for y in h] for h in heights]
    # Range 0.5 to 3.5 in four bins: one, two, none and one of four; and all in the third.
    unit = shares[0][0]
    assert shares[0] == pytest.approx([unit, 2 * unit, 0, unit], abs=0.2)
    assert shares[1] == pytest.approx([0, 0, 4 * unit, 0], abs=0.2)


def test_one_far_value_does_not_flatten_a_histogram() -> None:
    values = [i / 100 for i in range(400)]
    near = histogram({"a": values}, title="t", x=Axis("x"))
    far = histogram({"a": [*values, 1e6]}, title="t", x=Axis("x"))
    assert "1000000" not in far and texts(near)[-1] == texts(far)[-1]


@pytest.mark.parametrize(
    "chart",
    [
        line_chart([], title="Nothing", x=Axis("x"), y=Axis("y")),
        line_chart([Series("a", [Point(1, float("nan"))])], title="t", x=Axis("x"), y=Axis("y")),
        line_chart([Series("a", [Point(1, 1)])], title="t", x=Axis("x", log2=True), y=Axis("y")),
        interval_chart([], title="Nothing", x=Axis("x")),
        interval_chart([Group("a", 0.5)], title="t", x=Axis("x" * 200)),
        histogram({}, title="Nothing", x=Axis("x")),
        histogram({"a": []}, title="Nothing", x=Axis("x")),
        histogram({"a": [1.0]}, title="One", x=Axis("x")),
    ],
)
def test_little_or_nothing_to_draw(chart: str) -> None:
    require_inside(chart)
    assert "nan" not in chart and "inf" not in chart
