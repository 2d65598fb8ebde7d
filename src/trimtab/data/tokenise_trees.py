"""Token ids to token trees: truncation, what is trained, comparisons, windows of documents.

Everything here works on ids alone. A row that cannot become a tree is a ``RowProblem`` whose reason
is one of the constants below, so that reports can count by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from trimtab.data.chat_template import RowProblem
from trimtab.data.trees import Branch, Comparison, Origin, TokenTree

TruncationMode = Literal["keep_end", "keep_start"]
Margins = Literal["column", "scores", "none"]

SAME = "chosen and rejected are the same"
SAME_TRUNCATED = "chosen and rejected are the same after truncation"
NO_ROOM = "the prompt leaves no room for a response"
NOTHING_LEFT = "truncation leaves nothing to train"
NOTHING = "there is nothing to train"


class Limits(NamedTuple):
    """Lengths in tokens; None is no limit. ``bos`` survives when a prompt loses its start."""

    max_length: int | None
    max_prompt_length: int | None
    truncation_mode: TruncationMode
    bos: int | None


@dataclass
class Draft:
    """A tree before truncation: ids of the prompt, and ids with masks of its continuations.

    ``unscored`` counts what would be trained but starts the text, with nothing to predict it.
    ``ending`` is how many of a continuation's last tokens stay when it is cut to length.
    """

    origin: Origin
    prompt: list[int]
    branches: list[tuple[list[int], list[bool]]]
    weight: float = 1.0
    comparisons: list[Comparison] = field(default_factory=list[Comparison])
    ranks: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()
    labels: tuple[bool, ...] = ()
    classes: tuple[int, ...] = ()
    train_trunk: bool = False
    unscored: int = 0
    ending: int = 0


class Planted(NamedTuple):
    """A finished tree and what happened to it.

    ``unscored`` tokens would be trained but have nothing before them that could predict them.
    """

    tree: TokenTree
    prompt_cut: bool = False
    branches_cut: int = 0
    unscored: int = 0


def plant(draft: Draft, limits: Limits) -> Planted:
    """Truncate, check and freeze: first the prompt is cut, then each branch before its ending.

    No length is ever negative: a prompt that leaves no room is a ``RowProblem``, as are branches
    with nothing trained left and pairs that have become the same.
    """
    prompt = cut_prompt(draft.prompt, limits)
    room = None if limits.max_length is None else limits.max_length - len(prompt)
    if room is not None and (room < 0 or (room <= draft.ending and draft.branches)):
        raise RowProblem(NO_ROOM, f"{len(prompt)} tokens, max_length {limits.max_length}")
    branches: list[Branch] = []
    branches_cut, unscored = 0, draft.unscored
    for ids, trained in draft.branches:
        cut = room is not None and len(ids) > room
        branches_cut += cut
        kept_ids, kept = ids, trained
        if cut and room is not None:
            gone = slice(room - draft.ending, len(ids) - draft.ending)
            kept_ids, kept = list(ids), list(trained)
            del kept_ids[gone], kept[gone]
        if not prompt and kept and kept[0]:
            kept = [False, *kept[1:]]
            unscored += 1
        if not any(kept):
            raise RowProblem(NOTHING_LEFT if cut else NOTHING, f"of {sum(trained)} trained tokens")
        branches.append(Branch(tuple(kept_ids), tuple(kept)))
    comparisons = [c for c in draft.comparisons if branches[c.winner].ids != branches[c.loser].ids]
    if draft.comparisons and not comparisons:
        raise RowProblem(SAME_TRUNCATED if branches_cut else SAME)
    trunk_trained = [draft.train_trunk and i > 0 for i in range(len(prompt))]
    unscored += draft.train_trunk and bool(prompt) and prompt[0] != limits.bos
    tree = TokenTree(
        Branch(tuple(prompt), tuple(trunk_trained)),
        tuple(branches),
        tuple(comparisons),
        draft.origin,
        draft.ranks,
        draft.scores,
        draft.labels,
        draft.weight,
        draft.classes,
    )
    return Planted(tree, len(prompt) < len(draft.prompt), branches_cut, unscored)


def for_scores(tree: TokenTree, margins: Margins, scale: float) -> TokenTree:
    """The tree as a reward model reads it: no token is trained, its comparisons are one element.

    They share the row's weight, 1 / (comparisons) each: the divisor C(K, 2) of arXiv:2203.02155,
    equation 1, less the tied pairs, which say nothing. Rows that are joined later by their prompt
    (``group_by_prompt``) keep their own divisors, so that joining changes no objective.
    """

    def margin(c: Comparison) -> float:
        if margins == "scores" and tree.scores:
            return scale * (tree.scores[c.winner] - tree.scores[c.loser])
        return scale * c.margin if margins == "column" else 0.0

    share = tree.weight / max(len(tree.comparisons), 1)
    return tree._replace(
        trunk=_untrained(tree.trunk),
        branches=tuple(map(_untrained, tree.branches)),
        comparisons=tuple(c._replace(weight=share, margin=margin(c)) for c in tree.comparisons),
    )


def _untrained(branch: Branch) -> Branch:
    return branch._replace(trained=(False,) * len(branch.ids))


def cut_prompt(prompt: list[int], limits: Limits) -> list[int]:
    """At most ``max_prompt_length`` ids: the last ones (and BOS, if it was there) or the first."""
    most = limits.max_prompt_length
    if most is None or len(prompt) <= most:
        return prompt
    if limits.truncation_mode == "keep_start":
        return prompt[:most]
    head = prompt[:1] if most > 0 and prompt[0] == limits.bos else []
    tail = most - len(head)
    return head + prompt[len(prompt) - tail :]


def compare_by_rank(ranks: Sequence[float], weight: float) -> list[Comparison]:
    """Every strictly ordered pair of branches, best against the others first; 1 = best."""
    order = sorted(range(len(ranks)), key=lambda i: (ranks[i], i))
    return [
        Comparison(winner, loser, weight)
        for position, winner in enumerate(order)
        for loser in order[position + 1 :]
        if ranks[winner] < ranks[loser]
    ]


def ranks_of(scores: Sequence[float]) -> tuple[float, ...]:
    """Ranks of scores: 1 plus the number of strictly higher ones, so that ties share a rank."""
    return tuple(1.0 + sum(other > score for other in scores) for score in scores)


def windows(
    context: Sequence[int],
    ids: Sequence[int],
    length: int,
    stride: int | None,
    origin: Origin,
    weight: float = 1.0,
) -> Iterator[Planted]:
    """Cut a document so that every token of ``ids`` is trained exactly once.

    ``context`` stands before the document (a separator, or empty: the first token then has nothing
    to predict it and is unscored). Without ``stride`` the windows are ``length`` tokens behind the
    one token before them. With ``stride`` every window after the first trains only ``stride``
    tokens and shows as many earlier ones as make ``length`` tokens of context for the last.
    """
    unscored = 0
    if not context and ids:
        context, ids, unscored = ids[:1], ids[1:], 1
    if not ids:
        raise RowProblem(NOTHING, f"{unscored} tokens")
    sequence = [*context, *ids]
    begin, part = len(context), 0
    while begin < len(sequence):
        step = length if part == 0 or stride is None else stride
        end = min(begin + step, len(sequence))
        if part == 0:
            first = 0
        elif stride is None:
            first = begin - 1
        else:
            first = max(0, end - length - 1)
        trunk, branch = tuple(sequence[first:begin]), tuple(sequence[begin:end])
        tree = TokenTree(
            Branch(trunk, (False,) * len(trunk)),
            (Branch(branch, (True,) * len(branch)),),
            (),
            origin._replace(part=part),
            weight=weight,
        )
        yield Planted(tree, unscored=unscored)
        unscored = 0
        begin, part = end, part + 1


def group_by_prompt(trees: Sequence[TokenTree], *, by_weight: bool = False) -> list[TokenTree]:
    """One tree for each distinct trunk, in the order of first appearance.

    A response that several rows have becomes one branch, and their comparisons point at it. Scores,
    labels and classes are kept when every row has them and equal responses agree; ranks are those
    of the scores then, since the ranks of different rows say nothing about each other. Comparisons
    keep their rows' weights. Labels, scores and (``by_weight``) the likelihood of responses have
    but the weight of their tree: rows with different ones then stay apart.
    """
    groups: dict[tuple[Branch, float | None], list[TokenTree]] = {}
    for tree in trees:
        weighed = by_weight or bool(tree.scores or tree.labels)
        key = (tree.trunk, tree.weight if weighed else None)
        groups.setdefault(key, []).append(tree)
    return [group[0] if len(group) == 1 else _merge(group) for group in groups.values()]


def _merge(group: Sequence[TokenTree]) -> TokenTree:
    index: dict[Branch, int] = {}
    comparisons: list[Comparison] = []
    for tree in group:
        places = [index.setdefault(branch, len(index)) for branch in tree.branches]
        comparisons += [
            c._replace(winner=places[c.winner], loser=places[c.loser]) for c in tree.comparisons
        ]
    scores = _agreed([(t.branches, t.scores) for t in group], index)
    labels = _agreed([(t.branches, t.labels) for t in group], index)
    classes = _agreed([(t.branches, t.classes) for t in group], index)
    return group[0]._replace(
        branches=tuple(index),
        comparisons=tuple(comparisons),
        ranks=ranks_of(scores) if scores else (),
        scores=tuple(scores),
        labels=tuple(bool(label) for label in labels),
        classes=tuple(int(number) for number in classes),
    )


def _agreed(
    columns: Sequence[tuple[Sequence[Branch], Sequence[float]]], index: dict[Branch, int]
) -> list[float]:
    """One value for each branch of ``index``, or none at all unless all rows have and agree."""
    found: dict[Branch, float] = {}
    for branches, values in columns:
        if len(values) != len(branches):
            return []
        for branch, value in zip(branches, values, strict=True):
            if found.setdefault(branch, value) != value:
                return []
    return [found[branch] for branch in index]
