"""Which trees an optimizer step sees: a pure function of the step, cut under a token budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from trimtab.data.batch import pack, split_by_tokens
from trimtab.data.order import Order
from trimtab.data.trees import TokenTree
from trimtab.training.algorithm import Micro


class Trees(Protocol):
    """Trees by number: a ``TreeStore``, or a plain list in tests."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> TokenTree: ...


class TreeStream:
    """Trees of one or several sources, ``rows_per_step`` of them an optimizer step.

    An epoch's last step takes what is left of the epoch, so that every tree is seen exactly once
    an epoch. Trees are numbered through all sources, in the order in which those were given.
    """

    def __init__(
        self,
        sources: Sequence[Trees],
        *,
        rows_per_step: int,
        token_budget: int,
        seed: int,
        weights: Sequence[float] | None = None,
        shuffle: bool = True,
        name: str = "main",
    ) -> None:
        sizes = [len(source) for source in sources]
        assert min(sizes) > 0, "a source without trees is refused before"
        self.sources = sources
        self.order = Order(sizes, weights, seed=seed, shuffle=shuffle)
        self.first = [sum(sizes[:i]) for i in range(len(sizes))]
        self.rows_per_step = rows_per_step
        self.token_budget = token_budget
        self.name = name

    def __len__(self) -> int:
        """Trees in one epoch."""
        return self.order.rows_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch, the last one possibly shorter."""
        return math.ceil(len(self) / self.rows_per_step)

    def position(self, step: int) -> tuple[int, int]:
        """Half-open range of positions in the order that step ``step`` covers."""
        epoch, within = divmod(step, self.steps_per_epoch)
        start = epoch * len(self) + within * self.rows_per_step
        return start, min(start + self.rows_per_step, (epoch + 1) * len(self))

    def epoch(self, step: int) -> float:
        """Epochs done after ``step`` steps."""
        whole, within = divmod(step, self.steps_per_epoch)
        return whole + min(within * self.rows_per_step, len(self)) / len(self)

    def rows(self, step: int) -> list[int]:
        """Numbers of the trees of step ``step``, in the order of the data."""
        start, end = self.position(step)
        found = (self.order.row(position) for position in range(start, end))
        return [self.first[source] + row for source, row in found]

    def tree(self, number: int) -> TokenTree:
        """Tree by its number through all sources."""
        source = max(i for i, first in enumerate(self.first) if first <= number)
        return self.sources[source][number - self.first[source]]

    def micros(self, step: int) -> list[Micro]:
        """The step's trees as micro-batches."""
        return micro_batches(self, self.rows(step), self.token_budget, self.name)


def micro_batches(
    stream: TreeStream, rows: Sequence[int], token_budget: int, name: str
) -> list[Micro]:
    """Pack numbered trees, in the order given, into micro-batches under the budget."""
    trees = [stream.tree(row) for row in rows]
    micros: list[Micro] = []
    taken = 0
    for run in split_by_tokens(trees, token_budget):
        micros.append(Micro(pack(run), tuple(rows[taken : taken + len(run)]), name))
        taken += len(run)
    return micros
