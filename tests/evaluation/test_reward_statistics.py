"""Numbers of a reward model's card against hand computation and simulated truths."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from tests.evaluation.simulated import bradley_terry, pair, ranking, table

from trimtab.evaluation.comparisons import Comparisons, comes_first
from trimtab.evaluation.reward_statistics import (
    accuracy,
    against_gold,
    calibration,
    calibration_slope,
    confidence_curve,
    difference,
    equal_mass,
    expected_error,
    length_bias,
    partial_correlation,
    sigmoid,
)
from trimtab.evaluation.statistics import wilson_interval

# ---------------------------------------------------------------------- accuracy


def test_accuracy_by_hand() -> None:
    rows = [
        pair(2.0, 1.0, row=1, source="a"),
        pair(1.0, 1.0, row=2, source="a"),  # a tie is not right
        pair(0.0, 1.0, row=3, source="b"),
        ranking([3.0, 2.0, 1.0], [1, 2, 2], row=4, source="b"),  # two comparisons, both right
    ]
    found = accuracy(Comparisons.of(rows))
    assert (found["overall"]["value"], found["overall"]["n"], found["score_ties"]) == (0.6, 5, 1)
    assert found["overall"]["prompts"] == 4
    assert found["per_prompt"]["value"] == 0.5, "the ranking counts once"
    assert [(g["name"], g["value"], g["n"]) for g in found["by_source"]] == [
        ("b", pytest.approx(2 / 3), 3),
        ("a", 0.5, 2),
    ]
    assert [(g["name"], g["value"]) for g in found["by_k"]] == [
        ("2", pytest.approx(1 / 3)),
        ("3", 1.0),
    ]


def test_accuracy_by_margin() -> None:
    rows = [
        pair(float(i), 0.0 if i % 4 else float(i) + 1, row=i + 1, margin=float(i % 5) or None)
        for i in range(100)
    ]
    found = accuracy(Comparisons.of(rows))
    bins = found["by_data_margin"]
    assert [(b["from"], b["to"], b["n"]) for b in bins] == [(m, m, 20) for m in (1, 2, 3, 4)]
    assert found["without_data_margin"] == 20
    assert sum(b["n"] for b in found["by_score_difference"]) == 100
    # The gaps are i where the model is right and 1 in the 25 rows where it is wrong: equal gaps
    # stay together, so that the first bin has two fifths of all rows, and all of the wrong ones.
    values = [(b["value"], b["n"]) for b in found["by_score_difference"]]
    assert values == [(pytest.approx(15 / 40), 40), (1.0, 20), (1.0, 20), (1.0, 20)]


def test_margins_come_from_scores_where_a_row_has_no_margin() -> None:
    row = ranking([3.0, 2.0, 1.0], [1, 2, 3], gold=(0.9, 0.5, 0.4))
    assert table(row).margin.tolist() == pytest.approx([0.4, 0.5, 0.1])
    assert np.isnan(table(pair(1.0, 0.0)).margin).all()


def test_accuracy_covers_the_truth_where_comparisons_of_a_prompt_hang_together() -> None:
    """Every prompt has ten comparisons that are right together with probability 0.7."""
    draws = np.random.default_rng(0)
    covered, narrow = 0, 0
    for _ in range(100):
        rows = [
            pair(*((1.0, 0.0) if right else (0.0, 1.0)), row=10 * p + i, prompt=str(p))
            for p, right in enumerate(draws.random(50) < 0.7)
            for i in range(10)
        ]
        found = accuracy(Comparisons.of(rows))["overall"]
        covered += found["low"] <= 0.7 <= found["high"]
        alone = wilson_interval(round(found["value"] * found["n"]), found["n"])
        narrow += alone.low <= 0.7 <= alone.high
    assert 0.9 <= covered / 100 <= 0.99
    assert narrow / 100 < 0.65, "the wrong variant: comparisons as if they were independent"


# ---------------------------------------------------------------------- calibration


def test_calibration_by_hand() -> None:
    """Two pairs with a difference of ln 3: predicted 3/4 for what is preferred, once wrongly."""
    rows = [pair(math.log(3), 0.0, row=1), pair(0.0, math.log(3), row=2)]
    found = calibration(Comparisons.of(rows))
    assert found["brier"]["value"] == pytest.approx((0.25**2 + 0.75**2) / 2)
    assert found["log_loss"]["value"] == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)
    assert found["slope"]["value"] == pytest.approx(0.0, abs=1e-9)


def test_expected_error_by_hand() -> None:
    predicted = np.array([0.1, 0.2, 0.7, 0.9])
    outcome = np.array([0.0, 1.0, 1.0, 1.0])
    bins = equal_mass(predicted, 2)
    assert bins.tolist() == [0, 0, 1, 1]
    found = expected_error(predicted, outcome, bins, range(4))
    assert found.mean == pytest.approx((abs(0.3 - 1.0) + abs(1.6 - 2.0)) / 4)


def test_a_calibrated_model_is_found_so_and_one_with_doubled_scores_is_not() -> None:
    exact = calibration(Comparisons.of(bradley_terry(4000, seed=1)))
    double = calibration(Comparisons.of(bradley_terry(4000, seed=1, factor=2.0)))
    assert (
        exact["ece"]["value"] < 0.025 and exact["ece"]["value"] < exact["ece_if_calibrated"]["high"]
    )
    assert (
        double["ece"]["value"] > 0.07 and double["ece"]["low"] > double["ece_if_calibrated"]["high"]
    )
    assert exact["slope"]["low"] < 1 < exact["slope"]["high"]
    assert double["slope"]["low"] < 0.5 < double["slope"]["high"] < 0.6
    assert double["brier"]["value"] > exact["brier"]["value"]
    assert double["log_loss"]["value"] > exact["log_loss"]["value"]


def test_scores_that_are_as_often_right_as_they_are_sure() -> None:
    found = Comparisons.of(bradley_terry(4000, seed=3))
    for factor, too_sure in ((1.0, False), (3.0, True)):
        curve = confidence_curve(factor * found.gap, found.prompt)
        assert [one["predicted"] for one in curve] == sorted(one["predicted"] for one in curve)
        assert curve[0]["predicted"] >= 0.5 and sum(one["n"] for one in curve) == len(found)
        worse = [one["predicted"] > one["high"] for one in curve]
        assert sum(worse) >= 5 if too_sure else sum(worse) <= 1
    (one,) = confidence_curve(np.array([math.log(3), -math.log(3)]), np.array([0, 1]))
    assert one["predicted"] == pytest.approx(0.75) and one["value"] == 0.5


def test_the_preferred_one_always_first_would_condemn_a_calibrated_model() -> None:
    """The variant without a neutral order: the outcome is constant, so the error is 1 - E[p]."""
    found = Comparisons.of(bradley_terry(4000, seed=2))
    assert 0.47 < found.first.mean() < 0.53
    assert calibration(found)["ece"]["value"] < 0.03
    wrong = dataclasses.replace(found, first=np.ones_like(found.first))
    assert calibration(wrong)["ece"]["value"] > 0.25


def test_the_order_of_two_knows_nothing_of_their_label() -> None:
    row = pair(1.0, 0.0, responses=("x", "y"))
    turned = pair(0.0, 1.0, responses=("y", "x"))
    assert comes_first(row, 0, 1) == comes_first(turned, 1, 0)
    assert comes_first(row, 0, 1) != comes_first(row, 1, 0)


def test_intervals_over_prompts_are_wider_than_over_comparisons() -> None:
    rows = bradley_terry(60, seed=3)
    copies = [
        dataclasses.replace(row, origin=row.origin._replace(row=i * 10 + c))
        for i, row in enumerate(rows)
        for c in range(10)
    ]
    clustered = calibration(Comparisons.of(copies))["brier"]
    alone = [dataclasses.replace(row, prompt=str(i)) for i, row in enumerate(copies)]
    wrong = calibration(Comparisons.of(alone))["brier"]
    assert clustered["value"] == pytest.approx(wrong["value"])
    width, narrow = (one["high"] - one["low"] for one in (clustered, wrong))
    assert width == pytest.approx(math.sqrt(10) * narrow, rel=0.15)


def test_the_error_of_calibration_is_within_its_interval() -> None:
    """BCa takes the noise for a bias of the estimate, and leaves the estimate out."""
    found = calibration(Comparisons.of(bradley_terry(200, seed=1)))["ece"]
    assert 0 <= found["low"] < found["value"] < found["high"]


def test_slope_by_hand_and_not_defined_without_mistakes() -> None:
    """Three right and one wrong by 2: sigmoid(2 s) = 3/4. Its error: sum x^2 (y - p)^2 / I^2."""
    gap = np.array([2.0, 2.0, 2.0, -2.0])
    found = calibration_slope(gap, np.arange(4))
    assert found is not None and found["value"] == pytest.approx(math.log(3) / 2)
    spread = 4 / 3 * 4 * (3 / 4**2 + 9 / 4**2) / (4 * 4 * 3 / 16) ** 2
    half = 3.182446 * math.sqrt(spread)  # t of 3 degrees of freedom
    assert found["high"] - found["value"] == pytest.approx(half, rel=1e-6)
    assert found["value"] - found["low"] == pytest.approx(half, rel=1e-6)
    assert calibration_slope(np.array([1.0, 2.0]), np.arange(2)) is None
    assert calibration_slope(np.array([-1.0, -2.0]), np.arange(2)) is None


def test_far_scores_do_not_overflow() -> None:
    assert sigmoid(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 0.5, 1.0]
    found = calibration(table(pair(1e4, -1e4, row=1), pair(-1e4, 1e4, row=2)))
    assert found["log_loss"]["value"] == pytest.approx(1e4)


# ---------------------------------------------------------------------- length


def test_partial_correlation_of_pairs_is_that_of_differences() -> None:
    draws = np.random.default_rng(5)
    rows = [
        pair(*draws.normal(size=2), row=i, lengths=tuple(draws.integers(1, 50, 2).tolist()))
        for i in range(200)
    ]
    gaps = [r.scores[0] - r.scores[1] for r in rows]
    lengths = [r.lengths[0] - r.lengths[1] for r in rows]
    found = partial_correlation(rows)
    assert found["value"] == pytest.approx(np.corrcoef(gaps, lengths)[0, 1])


def test_partial_correlation_of_rankings_is_that_of_residuals() -> None:
    draws = np.random.default_rng(6)
    rows = [
        ranking(
            draws.normal(size=4),
            (1 + draws.permutation(4)).tolist(),
            row=i,
            lengths=tuple(draws.integers(1, 50, 4).tolist()),
        )
        for i in range(60)
    ]
    centred = [
        np.array((r.scores, r.lengths, [-rank for rank in r.ranks])) for r in rows
    ]  # the share of comparisons won is linear in the rank where there is no tie
    score, length, label = np.concatenate(
        [part - part.mean(axis=1, keepdims=True) for part in centred], axis=1
    )

    def residual(values: np.ndarray) -> np.ndarray:
        return values - label * (values @ label) / (label @ label)

    a, b = residual(score), residual(length)
    expected = (a @ b) / math.sqrt((a @ a) * (b @ b))
    assert partial_correlation(rows)["value"] == pytest.approx(expected)


def test_length_that_only_follows_the_label_is_no_bias() -> None:
    """Score and length both rise with the label alone: correlated, but not given the label."""
    draws = np.random.default_rng(7)
    rows = [
        pair(draws.normal(2, 1), draws.normal(), row=i,
             lengths=(int(draws.integers(60, 80)), int(draws.integers(10, 30))))
        for i in range(400)
    ]  # fmt: skip
    found = partial_correlation(rows)
    assert found["low"] < 0 < found["high"] and abs(found["value"]) < 0.1
    scores, lengths = np.array([r.scores for r in rows]), np.array([r.lengths for r in rows])
    centred = [x - x.mean(axis=1, keepdims=True) for x in (scores, lengths)]
    plain = np.corrcoef(*(x.ravel() for x in centred))[0, 1]
    assert plain > 0.7, "the wrong variant, which leaves the label out"


def test_length_groups_by_hand() -> None:
    rows = [
        pair(1.0, 0.0, row=1, lengths=(9, 2)),
        pair(0.0, 1.0, row=2, lengths=(2, 9)),
        pair(1.0, 0.0, row=3, lengths=(2, 9)),
        pair(1.0, 0.0, row=4, lengths=(4, 4)),
    ]
    found = length_bias(Comparisons.of(rows), rows)
    values = {key: found[key]["value"] for key in ("shorter", "longer", "equal", "longer_wins")}
    assert values == {"shorter": 0.5, "longer": 1.0, "equal": 1.0, "longer_wins": 0.25}
    assert found["over_longer_wins"]["value"] == 0.5
    alike = [pair(float(i), 0.0, row=i) for i in range(3)]
    assert partial_correlation(alike)["value"] is None, "all lengths are equal"


# ---------------------------------------------------------------------- gold and baselines


def test_gold_accuracy_by_hand() -> None:
    rows = [
        pair(1.0, 0.0, row=1, gold=(0.9, 0.1)),
        pair(1.0, 0.0, row=2, gold=(0.1, 0.9)),  # a noisy choice: the other one is better
        pair(0.0, 1.0, row=3, gold=(0.2, 0.6)),
        pair(1.0, 0.0, row=4, gold=(0.5, 0.5)),
        pair(1.0, 0.0, row=5),
    ]
    found = against_gold(Comparisons.of(rows))
    assert found is not None
    assert (found["accuracy"]["value"], found["accuracy"]["n"]) == (pytest.approx(2 / 3), 3)
    assert found["choices_agree"]["value"] == pytest.approx(1 / 3) and found["ties"] == 1
    assert against_gold(table(pair(1.0, 0.0))) is None


def test_differences_are_paired() -> None:
    """Two models that agree on hard rows: their intervals overlap, the difference is clear."""
    draws = np.random.default_rng(8)
    before, after = [], []
    for i in range(300):
        hard = draws.random() < 0.4
        gain = draws.random() < 0.1
        before.append(pair(0.0 if hard else 1.0, 0.5, row=i))
        after.append(pair(1.0 if gain or not hard else 0.0, 0.5, row=i))
    first, second = Comparisons.of(before), Comparisons.of(after)
    found = difference(first, second)
    assert found["difference"]["value"] == pytest.approx(second.right.mean() - first.right.mean())
    assert found["difference"]["low"] > 0
    assert accuracy(first)["overall"]["high"] > accuracy(second)["overall"]["low"]
    assert found["only_baseline"] == 0
    assert sum(found[k] for k in ("both_right", "only_model", "only_baseline", "both_wrong")) == 300
