"""Win rates by hand: ties, prompts with several comparisons, what nobody can decide, length."""

from __future__ import annotations

import pytest

from trimtab.evaluation.statistics import clustered_share
from trimtab.evaluation.win_rate import Contest, outcome_of, win_rate


def test_outcomes_of_scores() -> None:
    assert [outcome_of(2.0, 1.0), outcome_of(1.0, 1.0), outcome_of(0.0, 1.0)] == [1.0, 0.5, 0.0]
    assert outcome_of(None, 1.0) is None and outcome_of(1.0, None) is None


def test_ties_are_halves_and_the_undecided_are_left_out() -> None:
    outcomes = [(0, 1.0), (0, 0.5), (1, 0.0), (1, None), (2, 1.0), (3, None)]
    found = win_rate([Contest(p, o, 0) for p, o in outcomes])
    assert found["win_rate"]["value"] == 2.5 / 4
    assert (found["win_rate"]["n"], found["win_rate"]["prompts"]) == (4, 3)
    assert [found[k] for k in ("wins", "ties", "losses", "undecided")] == [2, 1, 1, 2]
    by_hand = clustered_share([1.5, 0.0, 1.0], [2, 1, 1])
    assert (found["win_rate"]["low"], found["win_rate"]["high"]) == (by_hand.low, by_hand.high)
    assert found["bootstrap"]["value"] == 2.5 / 4
    assert win_rate([Contest(0, None, 3)])["win_rate"] is None


def test_all_won_is_no_certainty() -> None:
    found = win_rate([Contest(i, 1.0, 1) for i in range(20)])
    assert found["win_rate"]["low"] == pytest.approx(0.8389, abs=1e-4), "Wilson, 20 of 20"
    assert found["bootstrap"]["low"] == 1.0, "what a bootstrap would say"


def test_a_win_by_length_is_none_at_equal_length() -> None:
    """The longer one wins six times of seven, and the model is the longer one of three in four."""
    longer = [100 if i % 4 else -100 for i in range(400)]
    wins = [float((d > 0) != (i % 7 == 0)) for i, d in enumerate(longer)]
    found = win_rate([Contest(i, w, d) for i, (w, d) in enumerate(zip(wins, longer, strict=True))])
    assert found["win_rate"]["value"] > 0.65 and found["win_rate"]["low"] > 0.6
    controlled = found["length_controlled"]
    assert controlled["low"] < 0.5 < controlled["high"]
    fair = win_rate([Contest(i, float(i % 3 > 0), d) for i, d in enumerate(longer)])
    assert fair["length_controlled"]["value"] == pytest.approx(2 / 3, abs=0.03)
