"""Which responses are compared, ranked or kept: counted by hand."""

from __future__ import annotations

import math

import pytest

from trimtab.algorithms.experience import response_tree
from trimtab.algorithms.pairing import Chosen, Judged, best, compared, unused
from trimtab.data.batch import pack
from trimtab.data.trees import Origin


def judged(
    scores: list[float], ids: list[int] | None = None, order: list[float] | None = None
) -> Judged:
    """Responses of one token each; NaN scores are those that nobody could judge."""
    names = ids or list(range(10, 10 + len(scores)))
    tree = response_tree((1, 2), [(i,) for i in names], Origin("prompts", 3))
    return Judged(tree, scores, order or scores, [not math.isnan(s) for s in scores])


def tokens(chosen: Chosen | None) -> list[int]:
    assert chosen is not None
    return [branch.ids[0] for branch in chosen.tree.branches]


def pairs(chosen: Chosen | None) -> list[tuple[int, int, float]]:
    """(token of the winner, token of the loser, margin)."""
    assert chosen is not None
    names = tokens(chosen)
    return [(names[c.winner], names[c.loser], c.margin) for c in chosen.tree.comparisons]


NAN = math.nan


def test_best_against_worst() -> None:
    found = compared(judged([0.5, 2.0, -1.0, 2.0]), "pair", every=False)
    assert pairs(found) == [(11, 12, 3.0)]  # of two best ones, the first
    assert found is not None and found.places == (1, 2)
    assert found.tree.comparisons[0].weight == 1.0 and found.tree.labels == ()
    wanted = compared(judged([0.5, 2.0, -1.0]), "unpaired", every=False)
    assert wanted is not None and wanted.tree.labels == (True, False) and tokens(wanted) == [11, 12]


def test_all_pairs_without_ties() -> None:
    found = compared(judged([1.0, 3.0, 1.0]), "pair", every=True)
    assert sorted(pairs(found)) == [(11, 10, 2.0), (11, 12, 2.0)]
    four = compared(judged([4.0, 3.0, 2.0, 1.0]), "pair", every=True)
    assert len(pairs(four)) == 6 and all(w < l for w, l, _ in pairs(four))  # noqa: E741


def test_a_response_that_came_twice_is_one_branch_with_the_pairs_of_both() -> None:
    found = compared(judged([1.0, 2.0, 1.0], ids=[10, 11, 10]), "pair", every=True)
    assert tokens(found) == [10, 11] and pairs(found) == [(11, 10, 1.0)] * 2
    same = judged([1.0, 1.0 + 1e-7], ids=[10, 10])  # a reward model's rounding is no preference
    for every in (True, False):
        assert compared(same, "pair", every) is None
    assert compared(same, "ranking", every=False) is None


def test_what_nobody_judged_takes_no_part() -> None:
    one = judged([NAN, 2.0, 0.0, NAN])
    assert pairs(compared(one, "pair", every=False)) == [(11, 12, 2.0)]
    assert pairs(compared(one, "pair", every=True)) == [(11, 12, 2.0)]
    assert compared(judged([NAN, 2.0]), "pair", every=True) is None
    assert compared(judged([NAN, NAN]), "pair", every=False) is None
    assert best(judged([NAN, NAN]), 1, None) is None


@pytest.mark.parametrize("every", [True, False])
def test_ties_give_no_pair(every: bool) -> None:
    assert compared(judged([0.5, 0.5, 0.5]), "pair", every) is None


def test_rankings_are_strict() -> None:
    found = compared(judged([1.0, 3.0, 1.0, 2.0]), "ranking", every=False)
    assert found is not None
    assert tokens(found) == [11, 13, 10] and found.tree.ranks == (1.0, 2.0, 3.0)
    assert pairs(found) == [(11, 13, 1.0), (11, 10, 2.0), (13, 10, 1.0)]


def test_an_annotator_may_prefer_the_lower_score() -> None:
    drawn = judged([1.0, 0.0], order=[0.2, 0.9])
    assert pairs(compared(drawn, "pair", every=False)) == [(11, 10, -1.0)]


def test_best_ones() -> None:
    one = judged([0.5, 2.0, 2.0, 1.0], ids=[10, 11, 11, 13])
    assert tokens(best(one, 1, None)) == [11]
    assert tokens(best(one, 3, None)) == [11, 13, 10]  # the same response is kept once
    assert tokens(best(one, 3, 1.0)) == [11, 13]
    assert best(one, 3, 2.5) is None


@pytest.mark.parametrize("kind", ["pair", "ranking", "unpaired", None])
def test_an_unused_tree_weighs_nothing(kind: str | None) -> None:
    found = unused(judged([1.0, 1.0]).tree, kind)  # type: ignore[arg-type]
    batch = pack([found.tree])
    assert batch.tree_weight.tolist() == [0.0] and batch.weight.sum() == 0
