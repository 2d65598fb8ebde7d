"""Scales, ticks and text of charts."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from trimtab.report.svg import (
    Axis,
    Scale,
    document,
    label,
    legend,
    plain,
    scale,
    shorten,
    spoken,
    text_width,
    ticks_of,
    wrap,
)


def test_a_scale_is_linear_or_in_doublings() -> None:
    linear = Scale(0.0, 10.0, 100.0, 200.0)
    assert [linear(v) for v in (0, 5, 10)] == [100, 150, 200]
    assert linear(1e9) == pytest.approx(201), "what lies outside stays at the edge"
    upwards = Scale(0.0, 1.0, 300.0, 100.0)
    assert upwards(0.25) == 250
    doubling = Scale(1.0, 64.0, 0.0, 60.0, log2=True)
    assert [doubling(v) for v in (1, 2, 8, 64)] == [0, 10, 30, 60]


def test_ends_come_from_the_data_with_some_room() -> None:
    found = scale(Axis("x"), [0.0, 10.0, float("nan")], 0, 1)
    assert (found.low, found.high) == pytest.approx((-0.6, 10.6))
    fixed = scale(Axis("x", 0, 1), [0.2, 0.4], 0, 1)
    assert (fixed.low, fixed.high) == (0, 1)
    flat = scale(Axis("x"), [3.0, 3.0], 0, 1)
    assert flat.low < 3 < flat.high
    assert scale(Axis("x"), [], 0, 1).high > scale(Axis("x"), [], 0, 1).low


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (-3, 7, ["−2", "0", "2", "4", "6"]),
        (0, 1200, ["0", "200", "400", "600", "800", "1000", "1200"]),
        (0.61, 0.68, ["0.62", "0.64", "0.66", "0.68"]),
        (0, 1e-5, ["0", "2e-06", "4e-06", "6e-06", "8e-06", "1e-05"]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[str]) -> None:
    axis = Axis("x")
    assert spoken(axis, ticks_of(axis, Scale(low, high, 0, 1))) == expected


def test_ticks_of_other_axes() -> None:
    percent = Axis("x", percent=True)
    assert spoken(percent, ticks_of(percent, Scale(0, 1, 0, 1))) == [
        "0%", "20%", "40%", "60%", "80%", "100%",
    ]  # fmt: skip
    doubling = Axis("n", log2=True)
    assert ticks_of(doubling, Scale(1, 20, 0, 1, log2=True)) == [1, 2, 4, 8, 16]
    whole = Axis("n", ticks=[1, 2, 3, 9])
    assert spoken(whole, ticks_of(whole, Scale(1, 4, 0, 1))) == ["1", "2", "3"]


def test_text_is_escaped() -> None:
    wicked = '<script>alert("a&b")</script>\x00\x0b\ud800\nnext'
    assert plain('a < "b" & c') == "a &lt; &quot;b&quot; &amp; c"
    whole = document(wicked, wicked, label(0, 0, wicked), 100, 100)
    root = ElementTree.fromstring(whole)
    assert not [e for e in root.iter() if e.tag.endswith("script")]
    texts = [e.text for e in root.iter() if e.tag.endswith("text")]
    assert texts == ['<script>alert("a&b")</script>\ufffd \ufffd next']


def test_long_text_is_cut_or_wrapped() -> None:
    assert shorten("short", 200) == "short"
    cut = shorten("a very long name of a source", 100)
    assert cut.endswith("…") and text_width(cut) <= 100 and cut.startswith("a very")
    lines = wrap("one two three four five six", 90)
    assert " ".join(lines) == "one two three four five six" and len(lines) > 1
    assert all(text_width(line) <= 90 for line in lines)
    assert text_width("漢字") == 2 * text_width("ab")


def test_a_legend_takes_as_many_lines_as_it_needs() -> None:
    entries = [("<g/>", "chosen by the model"), ("<g/>", "chosen by gold")]
    assert legend(entries, 0, 0, 1000)[1] * 2 == legend(entries, 0, 0, 200)[1]
    assert legend([], 0, 0, 100) == ("", 0.0)


def test_a_document_follows_the_colours_of_its_reader() -> None:
    found = document("Title", "About", "", 100, 50)
    assert "prefers-color-scheme:dark" in found and "@media print" in found
    root = ElementTree.fromstring(found)
    assert root.get("viewBox") == "0 0 100 50" and root.get("role") == "img"
    assert root.get("aria-label") == "Title"
