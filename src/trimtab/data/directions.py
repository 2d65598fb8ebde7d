"""Rankings whose ranks and scores point opposite ways: one of the two columns is turned round."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from trimtab.data.rows import Example, RankedExample
from trimtab.errors import DataError


class Directions:
    """Pairs of responses of a source by whether the better rank has the higher score.

    Single rows may disagree: ranks of noisy annotators beside a true reward do. But who takes 1
    for the worst rank would train every pair the wrong way round, and nothing else would say so.
    """

    def __init__(self) -> None:
        self.agreeing, self.opposed = 0, 0
        self.first: RankedExample | None = None  # of the rows with a pair that is opposed

    def add(self, row: Example) -> bool:
        """Count the pairs of a row that has both; whether one of them is opposed."""
        if not isinstance(row, RankedExample) or not row.ranks or not row.scores:
            return False
        before = self.opposed
        for (rank, score), (other, lower) in itertools.combinations(
            zip(row.ranks, row.scores, strict=True), 2
        ):
            way = (other - rank) * (score - lower)
            self.agreeing += way > 0
            self.opposed += way < 0
        found = self.opposed > before
        self.first = row if self.first is None and found else self.first
        return found

    @property
    def turned(self) -> bool:
        """Whether most pairs are opposed."""
        return self.opposed > self.agreeing

    def __str__(self) -> str:
        return (
            f"in {self.opposed:,} of the {self.agreeing + self.opposed:,} pairs of this source "
            "that have both"
        )


def require_one_direction(examples: Iterable[Example]) -> None:
    """Refuse rows of which most pairs with both have the better rank at the lower score.

    Raises:
        DataError: names the first row that disagrees.
    """
    found = Directions()
    for row in examples:
        found.add(row)
    if found.turned and found.first is not None:
        raise DataError(
            f"{found.first.origin.source}:{found.first.origin.row}: ranks: the better rank has the "
            f"lower score here, and {found}; 1 is the best rank, and a higher score is better: "
            "turn one of the two columns round, or remove it"
        )
