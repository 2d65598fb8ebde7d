"""From sampled responses and their scores to what a stage trains on: pairs, rankings, the best.

Plain Python on trees. Responses that nobody could judge take no part. Two responses are compared
where one has the higher score and their tokens differ; what ties is left out, of the sum and of the
divisor, as tied rows of a file are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from trimtab.data.tokenise_trees import compare_by_rank, ranks_of
from trimtab.data.trees import Branch, Comparison, TokenTree
from trimtab.losses.contract import Kind


class Chosen(NamedTuple):
    """A tree to train on; ``places``: of each of its branches, the one it was in the rollout."""

    tree: TokenTree
    places: tuple[int, ...]


class Judged(NamedTuple):
    """A prompt's responses: ``scores``, and ``order``, by which they are compared.

    ``order`` are the scores themselves, or those with an annotator's noise; ``valid`` is False
    where nobody could judge.
    """

    tree: TokenTree
    scores: Sequence[float]
    order: Sequence[float]
    valid: Sequence[bool]

    @property
    def known(self) -> list[int]:
        """Responses with a score, the best first; equals as they were sampled."""
        known = [i for i, valid in enumerate(self.valid) if valid]
        return sorted(known, key=lambda i: -self.order[i])

    def margin(self, winner: int, loser: int) -> float:
        """Difference of two scores."""
        return self.scores[winner] - self.scores[loser]


def compared(judged: Judged, kind: Kind, every: bool) -> Chosen | None:
    """The comparisons of one prompt for a loss of this kind; None where there are none.

    pair        the best against the worst, or ``every`` two with different scores
    ranking     all responses with different scores; of equal ones the first
    unpaired    the best as wanted, the worst as not
    """
    if kind == "ranking":
        return _ranking(judged)
    if every and kind == "pair":
        return _every_pair(judged)
    known = judged.known
    if not known:
        return None
    best, worst = known[0], known[-1]
    branches = judged.tree.branches
    if judged.order[best] <= judged.order[worst] or branches[best].ids == branches[worst].ids:
        return None
    comparison = Comparison(0, 1, margin=judged.margin(best, worst))
    return Chosen(
        judged.tree._replace(
            branches=(branches[best], branches[worst]),
            comparisons=(comparison,),
            labels=(True, False) if kind == "unpaired" else (),
        ),
        (best, worst),
    )


def _every_pair(judged: Judged) -> Chosen | None:
    """All ordered pairs; a response that was sampled twice is one branch with both's pairs."""
    known, branches = judged.known, judged.tree.branches
    pairs = [
        (known[c.winner], known[c.loser])
        for c in compare_by_rank(ranks_of([judged.order[i] for i in known]), 1.0)
        if branches[known[c.winner]].ids != branches[known[c.loser]].ids
    ]
    if not pairs:
        return None
    used = sorted({i for pair in pairs for i in pair})
    places: dict[Branch, int] = {}  # in the rollout, of each different response
    for i in used:
        places.setdefault(branches[i], i)
    index = {branch: number for number, branch in enumerate(places)}
    comparisons = tuple(
        Comparison(index[branches[one]], index[branches[two]], margin=judged.margin(one, two))
        for one, two in pairs
    )
    tree = judged.tree._replace(branches=tuple(places), comparisons=comparisons)
    return Chosen(tree, tuple(places.values()))


def _ranking(judged: Judged) -> Chosen | None:
    """A strict order: of equal scores, and of equal responses, the first."""
    branches = judged.tree.branches
    order: list[int] = []
    for i in judged.known:
        tied = bool(order) and judged.order[i] == judged.order[order[-1]]
        if not tied and all(branches[i].ids != branches[j].ids for j in order):
            order.append(i)
    if len(order) < 2:
        return None
    ranks = tuple(float(rank) for rank in range(1, len(order) + 1))
    comparisons = tuple(
        c._replace(margin=judged.margin(order[c.winner], order[c.loser]))
        for c in compare_by_rank(ranks, 1.0)
    )
    tree = judged.tree._replace(
        branches=tuple(branches[i] for i in order), comparisons=comparisons, ranks=ranks
    )
    return Chosen(tree, tuple(order))


def best(judged: Judged, top: int, least: float | None) -> Chosen | None:
    """At most ``top`` different responses with the highest scores, none below ``least``."""
    branches = judged.tree.branches
    places: dict[Branch, int] = {}
    for i in judged.known:
        if least is None or judged.scores[i] >= least:
            places.setdefault(branches[i], i)
    kept = list(places.values())[:top]
    if not kept:
        return None
    return Chosen(judged.tree._replace(branches=tuple(branches[i] for i in kept)), tuple(kept))


def unused(tree: TokenTree, kind: Kind | None) -> Chosen:
    """A tree of weight 0: what a step without anything to train on is made of.

    It adds nothing to any sum and any divisor, and is there because a step has to have a batch.
    """
    count = 1 if kind is None else 2
    return Chosen(
        tree._replace(
            branches=tree.branches[:count],
            comparisons=() if kind is None else (Comparison(0, 1, weight=0.0),),
            ranks=(1.0, 2.0) if kind == "ranking" else (),
            labels=(True, False) if kind == "unpaired" else (),
            weight=0.0,
        ),
        tuple(range(count)),
    )
