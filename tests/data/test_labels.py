"""The classes of a run: known beforehand or learnt from rows, by their texts."""

from __future__ import annotations

import re

import pytest

from trimtab.data.labels import ClassName, Labels, place_of, shown
from trimtab.data.quarantine import BadRow
from trimtab.data.rows import LabelledExample, TextExample
from trimtab.data.trees import Origin
from trimtab.errors import DataError


def rows(*labels: ClassName) -> list[LabelledExample]:
    return [
        LabelledExample(origin=Origin("rows.jsonl", i), text="a", label=label)
        for i, label in enumerate(labels, 1)
    ]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ((10, 2, -1, 2), (-1, 2, 10)),
        (("b", "a", "B"), ("B", "a", "b")),
        (("10", "2"), ("10", "2")),
    ],
)
def test_numbers_go_by_size_and_names_by_the_alphabet(
    given: tuple[ClassName, ...], names: tuple[ClassName, ...]
) -> None:
    labels = Labels()
    (line,) = labels.learn(rows(*given))
    assert labels.names == names
    assert line.startswith(f"{len(names)} classes: {names[0]} (1), ")
    for place, name in enumerate(names):
        assert place_of(name, names) == place == place_of(str(name), names)


def test_classes_are_known_by_their_text() -> None:
    labels = Labels((1, 0))
    assert labels.learn(rows("0", "1", 1)) == ["2 classes: 1 (2), 0 (1)"]
    assert labels.names == (1, 0)
    for row in rows(0, "1"):
        labels.check(row)
    with pytest.raises(BadRow) as caught:
        labels.check(rows("01")[0])
    assert caught.value.text == "label: not one of the labels: '01' in 1, 0"


def test_nothing_is_checked_before_the_classes_are_known() -> None:
    labels = Labels()
    for row in rows("a", 1):
        labels.check(row)
    labels.learn(rows("a", "b"))
    with pytest.raises(BadRow):
        labels.check(rows("c")[0])
    labels.check(TextExample(origin=Origin("x", 1), text="of another kind"))


def test_numbers_beside_names_are_refused_by_line() -> None:
    expected = "rows.jsonl:3: label: 'x' is text, and 5 in rows.jsonl:1 is a number"
    with pytest.raises(DataError, match=f"^{re.escape(expected)}"):
        Labels().learn(rows(5, 6, "x"))
    assert Labels(("5", "6", "x")).learn(rows(5, 6, "x"))  # named, they are what they are


@pytest.mark.parametrize("labels", [Labels(), Labels(("a", "b"))])
def test_a_single_class_is_refused(labels: Labels) -> None:
    with pytest.raises(DataError, match=r"^rows\.jsonl:1: label: all 3 training rows are 'a'"):
        labels.learn(rows("a", "a", "a"))


def test_many_classes_and_absent_ones_are_told_in_short() -> None:
    labels = Labels(range(20))
    first, second = labels.learn(rows(3, 4, 4))
    assert first.startswith("20 classes: 0 (0), 1 (0), ") and first.endswith(" and 12 more")
    assert second == "no training row is 0, 1, 2, 5, 6, 7, 8, 9"
    assert shown(labels) == "0, 1, 2, 3, 4, 5, 6, 7, ..."
