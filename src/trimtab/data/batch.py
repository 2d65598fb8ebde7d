"""Token trees packed end to end in one row, under a token budget, with nothing padded.

``TreeBatch`` is what models, losses and the loop see. The three layouts of ``models/forward.py``
are computed from the same batch and give their results in the same order.

Shapes: T packed tokens, M targets (trained tokens), N branches, R trees, P comparisons.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trimtab.data.trees import Origin, TokenTree


class Span(NamedTuple):
    """Half-open range of packed positions."""

    start: int
    end: int

    @property
    def length(self) -> int:
        """Tokens in the span."""
        return self.end - self.start


class TreeSpans(NamedTuple):
    """Where one tree lies in the packed row; the branches follow the trunk without gaps."""

    trunk: Span
    branches: tuple[Span, ...]

    @property
    def start(self) -> int:
        """First packed position of the tree."""
        return self.trunk.start

    @property
    def end(self) -> int:
        """One past the last packed position of the tree."""
        return self.branches[-1].end if self.branches else self.trunk.end


@dataclasses.dataclass(frozen=True, eq=False)
class TreeBatch:
    """Trees packed into a single row.

    Targets stand tree by tree, within a tree the trunk's first and then branch by branch, each in
    text order: all three layouts keep this order.

    ids               [T] int64   token ids
    depth             [T] int64   position of the token on its path from the root = position id
    spans             R           packed ranges of each tree
    predictor         [M] int64   packed position whose hidden state predicts the target
    target            [M] int64   packed position of the trained token
    target_sequence   [M] int64   n < N: branch n; N + r: the trunk of tree r
    end               [N] int64   packed position of a branch's last token (the trunk's if empty)
    tree_of_branch    [N] int64
    length            [N + R] int64  trained tokens of each branch, then of each trunk
    winner, loser     [P] int64   indices into the N branches
    weight, margin    [P] float32
    tree_weight       [R] float32
    ranks, scores     [N] float32 or None
    labels            [N] bool or None
    classes           [N] int64 or None
    origins           R
    """

    ids: Tensor
    depth: Tensor
    spans: tuple[TreeSpans, ...]
    predictor: Tensor
    target: Tensor
    target_sequence: Tensor
    end: Tensor
    tree_of_branch: Tensor
    length: Tensor
    winner: Tensor
    loser: Tensor
    weight: Tensor
    margin: Tensor
    tree_weight: Tensor
    ranks: Tensor | None
    scores: Tensor | None
    labels: Tensor | None
    classes: Tensor | None
    origins: tuple[Origin, ...]
    trees: tuple[TokenTree, ...]

    @property
    def branch_count(self) -> int:
        """N, the number of branches."""
        return self.end.numel()

    @property
    def tree_count(self) -> int:
        """R, the number of trees."""
        return len(self.spans)

    @property
    def target_ids(self) -> Tensor:
        """[M] the token ids to be predicted."""
        return self.ids[self.target]

    def to(self, device: torch.device | str) -> TreeBatch:
        """Return the same batch with its tensors on ``device``."""
        moved = {
            field.name: value.to(device)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **moved)

    def sequence_sums(self, per_target: Tensor) -> Tensor:
        """Sum ``per_target`` [M] into [N + R]: one sum a branch, then one a trunk."""
        out = per_target.new_zeros(self.branch_count + self.tree_count)
        return out.index_add(0, self.target_sequence, per_target)


class _Packer:
    """Accumulates the columns of a ``TreeBatch``; trunks' sequence numbers follow at the end."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.depth: list[int] = []
        self.spans: list[TreeSpans] = []
        self.targets: list[tuple[int, int, int, bool]] = []  # predictor, target, index, is_trunk
        self.end: list[int] = []
        self.tree_of_branch: list[int] = []
        self.comparisons: list[tuple[int, int, float, float]] = []

    def add(self, tree: TokenTree) -> None:
        index, first_branch = len(self.spans), len(self.end)
        start = len(self.ids)
        self._extend(tree.trunk.ids, 0)
        trunk = Span(start, len(self.ids))
        for i, trained in enumerate(tree.trunk.trained):
            if trained:
                assert i > 0, f"{tree.origin}: the first trunk token has nothing to predict it"
                self.targets.append((start + i - 1, start + i, index, True))
        branches: list[Span] = []
        for branch in tree.branches:
            begin = len(self.ids)
            self._extend(branch.ids, trunk.length)
            span = Span(begin, len(self.ids))
            for i, trained in enumerate(branch.trained):
                if trained:
                    predictor = begin + i - 1 if i else trunk.end - 1
                    assert predictor >= start, f"{tree.origin}: a trained token without a predictor"
                    self.targets.append((predictor, begin + i, len(self.end), False))
            self.end.append((span if span.length else trunk).end - 1)
            self.tree_of_branch.append(index)
            branches.append(span)
        self.spans.append(TreeSpans(trunk, tuple(branches)))
        self.comparisons += [
            (first_branch + c.winner, first_branch + c.loser, c.weight, c.margin)
            for c in tree.comparisons
        ]

    def _extend(self, ids: Sequence[int], depth: int) -> None:
        self.ids.extend(ids)
        self.depth.extend(range(depth, depth + len(ids)))


def pack(trees: Sequence[TokenTree]) -> TreeBatch:
    """Pack trees into one row (CPU tensors); at least one tree."""
    assert trees, "a batch has at least one tree"
    packer = _Packer()
    for tree in trees:
        packer.add(tree)
    branch_count, tree_count = len(packer.end), len(trees)
    sequence = [branch_count + i if trunk else i for _, _, i, trunk in packer.targets]
    length = torch.zeros(branch_count + tree_count, dtype=torch.int64)
    target_sequence = torch.tensor(sequence, dtype=torch.int64)
    length.index_add_(0, target_sequence, torch.ones_like(target_sequence))
    return TreeBatch(
        ids=_integers(packer.ids),
        depth=_integers(packer.depth),
        spans=tuple(packer.spans),
        predictor=_integers([t[0] for t in packer.targets]),
        target=_integers([t[1] for t in packer.targets]),
        target_sequence=target_sequence,
        end=_integers(packer.end),
        tree_of_branch=_integers(packer.tree_of_branch),
        length=length,
        winner=_integers([c[0] for c in packer.comparisons]),
        loser=_integers([c[1] for c in packer.comparisons]),
        weight=_floats([c[2] for c in packer.comparisons]),
        margin=_floats([c[3] for c in packer.comparisons]),
        tree_weight=_floats([tree.weight for tree in trees]),
        ranks=_per_branch(trees, "ranks", torch.float32),
        scores=_per_branch(trees, "scores", torch.float32),
        labels=_per_branch(trees, "labels", torch.bool),
        classes=_per_branch(trees, "classes", torch.int64),
        origins=tuple(tree.origin for tree in trees),
        trees=tuple(trees),
    )


def _integers(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def _floats(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def _per_branch(trees: Sequence[TokenTree], name: str, dtype: torch.dtype) -> Tensor | None:
    """Concatenate a per-branch column, or None unless every tree has it."""
    columns = [getattr(tree, name) for tree in trees]
    pairs = zip(columns, trees, strict=True)
    if not all(len(column) == len(tree.branches) for column, tree in pairs):
        return None
    return torch.tensor([value for column in columns for value in column], dtype=dtype)


def split_by_tokens(trees: Sequence[TokenTree], token_budget: int) -> Iterator[list[TokenTree]]:
    """Cut trees, in their order, into runs of at most ``token_budget`` tokens.

    A tree is never split: one over the budget is a run of its own.
    """
    run: list[TokenTree] = []
    used = 0
    for tree in trees:
        if run and used + tree.token_count > token_budget:
            yield run
            run, used = [], 0
        run.append(tree)
        used += tree.token_count
    if run:
        yield run


def unshare(tree: TokenTree) -> list[TokenTree]:
    """One tree a branch, each with its own copy of the trunk (the ``packed`` layout).

    A trained trunk stays trained in the first copy only, so that every target still counts once.
    Comparisons are left out: they hold between branches that are no longer in one tree.
    """
    untrained = tree.trunk._replace(trained=(False,) * len(tree.trunk.ids))
    if not tree.branches:
        return [tree]
    return [
        TokenTree(tree.trunk if i == 0 else untrained, (branch,), (), tree.origin)
        for i, branch in enumerate(tree.branches)
    ]
