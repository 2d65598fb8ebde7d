from __future__ import annotations

from typing import Any

import pytest
from tests.evaluation.simulated import pair, ranking

from trimtab.evaluation.agreement import NONE, agreement, votes_of


def voted(
    votes: Any, *, row: int = 1, scores: tuple[float, float] = (1.0, 0.0), **keys: Any
) -> Any:
    return pair(*scores, row=row, extras={"votes": votes, **keys})


def test_votes_by_hand() -> None:
    found = agreement([voted([3, 1]), voted([2, 2], row=2), voted([1, 0], row=3)])
    assert (found["pairs"], found["votes"]) == (2, 8), "one vote is no agreement"
    assert found["majority"]["value"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert found["pairwise"]["value"] == pytest.approx((6 / 12 + 4 / 12) / 2)
    # 3 to 1: each of the three sees 2 to 1 for them, the one sees 3 to 0 against; 2 to 2: all
    # see 1 to 2 against them.
    assert found["leave_one_out"]["value"] == pytest.approx((3 / 4 + 0) / 2)
    assert found["model"]["value"] == pytest.approx((3 / 4 + 1 / 2) / 2)


def test_the_majority_of_coin_flips_flatters_and_leave_one_out_does_not() -> None:
    """Three annotators who flip coins: 3 to 0 in a quarter of the pairs, 2 to 1 in the rest."""
    rows = [voted([3, 0] if i % 4 == 0 else [2, 1], row=i) for i in range(40)]
    found = agreement(rows)
    assert found["majority"]["value"] == pytest.approx(0.75)
    assert found["pairwise"]["value"] == pytest.approx(0.5)
    assert found["leave_one_out"]["value"] == pytest.approx(0.5)


def test_rows_that_compare_the_same_two_are_votes() -> None:
    one = {"prompt": "p", "responses": ("x", "y")}
    other = {"prompt": "p", "responses": ("y", "x")}
    rows = [
        pair(1.0, 0.0, row=1, **one),
        pair(1.0, 0.0, row=2, **one),
        pair(0.0, 1.0, row=3, **other),
        ranking([0.0, 1.0, 2.0], [2, 1, 3], row=4, prompt="p", responses=("y", "x", "z")),
        pair(5.0, 0.0, row=5, prompt="q", responses=("x", "y")),
    ]
    found = agreement(rows)
    assert (found["pairs"], found["votes"]) == (1, 4), "x over y three times, y over x once"
    assert found["majority"]["value"] == found["model"]["value"] == 0.75


def test_nobody_twice() -> None:
    assert agreement([pair(1.0, 0.0)]) == {"pairs": 0, "note": NONE}
    twice = ranking([0.0, 1.0, 1.0], [1, 2, 3], responses=("x", "y", "y"))
    assert agreement([twice]) == {"pairs": 0, "note": NONE}, "one annotator, the same answer twice"


@pytest.mark.parametrize(
    ("extras", "expected"),
    [
        ({"votes": [2, 1]}, (2, 1, 0)),
        ({"votes": [2, 1, 4]}, (2, 1, 4)),
        ({"votes": {"chosen": 2, "tie": 1}}, (2, 0, 1)),
        ({"annotators": ["chosen", "rejected", "tie", "chosen"]}, (2, 1, 1)),
        ({"votes": 3}, None),
        ({"votes": [2, -1]}, None),
        ({"votes": [0.5, 0.5]}, None),
        ({"votes": [0, 0]}, None),
        ({"votes": {"A": 2, "B": 1}}, None),
        ({"annotators": ["alice", "bob"]}, None),
        ({"annotators": 3}, None),
        ({}, None),
    ],
)
def test_what_is_read_as_votes(extras: dict[str, Any], expected: Any) -> None:
    row = pair(1.0, 0.0, extras=extras)
    assert votes_of(row) == expected
    assert agreement([row]).get("unread_rows", 0) == int(bool(extras) and expected is None)
