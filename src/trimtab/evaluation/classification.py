"""How well classes are told apart: accuracy, recall, confusion, macro-F1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trimtab.evaluation.statistics import wilson_interval


def confusion(truth: ArrayLike, predicted: ArrayLike, classes: int) -> NDArray[np.int64]:
    """[C, C] how many rows of class i were taken for class j, from class numbers [N] and [N]."""
    flat = np.asarray(truth, np.int64) * classes + np.asarray(predicted, np.int64)
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def macro_f1(counts: NDArray[np.int64]) -> float:
    """Mean over classes of 2 TP / (2 TP + FP + FN), from ``confusion``.

    Over the classes that occur, as rows or as predictions, as scikit-learn takes them.
    """
    right = np.diag(counts)
    among = counts.sum(0) + counts.sum(1)
    return float((2 * right[among > 0] / among[among > 0]).mean())


def class_report(truth: ArrayLike, predicted: ArrayLike, names: Sequence[str]) -> dict[str, Any]:
    """Metrics of N >= 1 rows by name, as JSON types.

    accuracy, accuracy_ci95   share of rows that were right, with Wilson's 95 % interval
    macro_f1                  see above
    recall                    by class: share of its rows that were right (without rows: left out)
    confusion                 by class of the row: counts of the predicted classes, in their order
    """
    counts = confusion(truth, predicted, len(names))
    right, rows = np.diag(counts), counts.sum(1)
    accuracy = wilson_interval(int(right.sum()), int(rows.sum()))
    return {
        "accuracy": accuracy.mean,
        "accuracy_ci95": [accuracy.low, accuracy.high],
        "macro_f1": macro_f1(counts),
        "recall": {n: float(r / k) for n, r, k in zip(names, right, rows, strict=True) if k},
        "confusion": {name: row.tolist() for name, row in zip(names, counts, strict=True)},
    }
