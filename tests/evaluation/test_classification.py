"""Accuracy, recall, confusion and macro-F1 of a few rows, by hand."""

from __future__ import annotations

import json

import pytest

from trimtab.evaluation.classification import class_report, confusion, macro_f1
from trimtab.evaluation.statistics import wilson_interval

TRUTH = [0, 0, 0, 1, 1, 2]
PREDICTED = [0, 0, 1, 1, 0, 1]


def test_confusion_has_the_truth_in_its_rows() -> None:
    counts = confusion(TRUTH, PREDICTED, 4)
    assert counts.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert counts.tolist() != confusion(PREDICTED, TRUTH, 4).tolist()


def test_macro_f1_is_over_the_classes_that_occur() -> None:
    # class 0: TP 2, FP 1, FN 1; class 1: TP 1, FP 2, FN 1; class 2: TP 0, FN 1; class 3: nothing
    expected = (4 / 6 + 2 / 5 + 0) / 3
    found = macro_f1(confusion(TRUTH, PREDICTED, 4))
    assert found == pytest.approx(expected, abs=1e-15)
    assert found != pytest.approx(expected * 3 / 4)  # over all classes
    assert found != pytest.approx(3 / 6)  # micro: the accuracy


def test_the_report() -> None:
    report = class_report(TRUTH, PREDICTED, ["a", "b", "c", "d"])
    accuracy = wilson_interval(3, 6)
    assert report == {
        "accuracy": 0.5,
        "accuracy_ci95": [accuracy.low, accuracy.high],
        "macro_f1": pytest.approx((4 / 6 + 2 / 5) / 3),
        "recall": {"a": pytest.approx(2 / 3), "b": 0.5, "c": 0.0},  # no row is d
        "confusion": {"a": [2, 1, 0, 0], "b": [1, 1, 0, 0], "c": [0, 1, 0, 0], "d": [0, 0, 0, 0]},
    }
    assert json.loads(json.dumps(report))["recall"]["b"] == 0.5
