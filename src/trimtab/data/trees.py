"""Token trees: a prompt and its K continuations, the one shape that every stage trains on.

K=1 in sft, 2 in dpo, K ranked ones in reward modelling, G rollouts in ppo and grpo; a document is
a tree whose trunk is the token before its first one.

Torch is not imported here: rows become trees in plain Python and are packed by ``batch.py``.
"""

from __future__ import annotations

from typing import NamedTuple


class Branch(NamedTuple):
    """A run of tokens; ``trained[i]`` says whether the model is taught to predict ``ids[i]``."""

    ids: tuple[int, ...]
    trained: tuple[bool, ...]

    @property
    def trained_count(self) -> int:
        """How many of the tokens are trained."""
        return sum(self.trained)


class Comparison(NamedTuple):
    """Branch ``winner`` was preferred to branch ``loser`` (indices into the tree's branches)."""

    winner: int
    loser: int
    weight: float = 1.0
    margin: float = 0.0


class Origin(NamedTuple):
    """Where a tree came from, to name it in messages and to key caches.

    ``source`` is the file or hub id as the user named it, ``row`` its 1-based line or row number,
    ``part`` counts the trees of one row (windows of a document, turns of a chat) from 0.
    """

    source: str
    row: int
    part: int = 0


class TokenTree(NamedTuple):
    """``[trunk | branch 1 | ... | branch K]``: each branch continues the trunk, none a sibling.

    The last trunk token predicts the first token of every branch, so a trunk is never empty when
    the first token of a branch is trained. ``ranks`` (1 = best, ties allowed), ``scores``,
    ``labels`` (KTO: wanted or not) and ``classes`` (numbers of labels, from 0) have one entry a
    branch, or none at all.
    """

    trunk: Branch
    branches: tuple[Branch, ...]
    comparisons: tuple[Comparison, ...]
    origin: Origin
    ranks: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()
    labels: tuple[bool, ...] = ()
    weight: float = 1.0
    classes: tuple[int, ...] = ()

    @property
    def token_count(self) -> int:
        """Tokens in the tree, the trunk counted once."""
        return len(self.trunk.ids) + sum(len(branch.ids) for branch in self.branches)

    @property
    def trained_count(self) -> int:
        """Trained tokens in the tree, the trunk counted once."""
        return self.trunk.trained_count + sum(b.trained_count for b in self.branches)

    @property
    def depth(self) -> int:
        """Length of the longest path from root to leaf: the context that the tree needs."""
        return len(self.trunk.ids) + max((len(b.ids) for b in self.branches), default=0)
