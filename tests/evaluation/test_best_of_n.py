from __future__ import annotations

import itertools
import random
from statistics import mean

import pytest
from tests.evaluation.simulated import pair, ranking

from trimtab.evaluation.best_of_n import best_of_n, expected_best


def enumerated(by: list[float], values: list[float], n: int) -> float:
    """The slow twin: all draws of n, a tie split evenly."""
    found: list[float] = []
    for draw in itertools.combinations(range(len(by)), n):
        top = max(by[i] for i in draw)
        found.append(mean(values[i] for i in draw if by[i] == top))
    return mean(found)


def test_expected_best_is_the_mean_over_all_draws() -> None:
    draws = random.Random(0)
    for _ in range(20):
        size = draws.randint(1, 7)
        by = [float(draws.randint(0, 3)) for _ in range(size)]  # with ties
        values = [draws.random() for _ in range(size)]
        for n in range(1, size + 1):
            assert expected_best(by, values, n) == pytest.approx(enumerated(by, values, n))


def test_the_order_of_equals_does_not_matter() -> None:
    assert expected_best([1.0, 1.0], [0.0, 1.0], 2) == 0.5
    assert expected_best([1.0, 1.0], [1.0, 0.0], 2) == 0.5


def test_curve_by_hand() -> None:
    rows = [
        ranking([3.0, 1.0, 2.0], [1, 2, 3], row=1, gold=(0.9, 0.6, 0.0)),
        ranking([1.0, 2.0], [1, 2], row=2, gold=(1.0, 0.5)),
        pair(1.0, 0.0, row=3),
    ]
    found = best_of_n(rows)
    assert found is not None and found["rows"] == 2
    one, two = found["curve"]
    assert (one["n"], one["rows"], one["captured"]) == (1, 2, None)
    means = (0.5 + 0.75) / 2
    assert [one[key]["value"] for key in ("model", "gold", "mean")] == pytest.approx([means] * 3)
    # Best of two of the first row: 0.9, 0.9, 0.0 by the model; 0.9, 0.9, 0.6 by gold.
    model, gold = (0.6 + 0.5) / 2, (0.8 + 1.0) / 2
    assert two["model"]["value"] == pytest.approx(model)
    assert two["gold"]["value"] == pytest.approx(gold)
    assert two["captured"]["value"] == pytest.approx((model - means) / (gold - means))
    # n = 3 has one row of the two, and is left out.


def test_many_responses_are_taken_in_doublings() -> None:
    draws = random.Random(1)
    rows = [
        ranking(golds := [draws.random() for _ in range(24)], range(24), row=i, gold=tuple(golds))
        for i in range(12)
    ]
    found = best_of_n(rows)
    assert found is not None
    assert [point["n"] for point in found["curve"]] == [1, 2, 4, 8, 16, 24]
    for point in found["curve"][1:]:
        assert point["captured"]["value"] == pytest.approx(1.0), "the model is the gold reward"
    assert found["curve"][-1]["gold"]["value"] == pytest.approx(mean(max(row.gold) for row in rows))


def test_no_gold_no_curve() -> None:
    assert best_of_n([pair(1.0, 0.0)]) is None
