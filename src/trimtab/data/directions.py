"""Rankings whose ranks and scores point opposite ways: one of the two columns is turned round."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from trimtab.data.rows import Example, RankedExample
from trimtab.errors import DataError


def require_one_direction(examples: Iterable[Example]) -> None:
    """Refuse rows of which most pairs with both have the better rank at the lower score.

    Single rows may disagree: ranks of noisy annotators beside a true reward do. But who takes 1
    for the worst rank would train every pair the wrong way round, and nothing else would say so.

    Raises:
        DataError: names the first row that disagrees.
    """
    agreeing, opposed = 0, 0
    first: RankedExample | None = None
    for row in examples:
        if not isinstance(row, RankedExample) or not row.ranks or not row.scores:
            continue
        for (rank, score), (other, lower) in itertools.combinations(
            zip(row.ranks, row.scores, strict=True), 2
        ):
            way = (other - rank) * (score - lower)
            agreeing += way > 0
            opposed += way < 0
            first = row if first is None and way < 0 else first
    if first is not None and opposed > agreeing:
        raise DataError(
            f"{first.origin.source}:{first.origin.row}: ranks: the better rank has the lower score "
            f"here, and in {opposed:,} of the {agreeing + opposed:,} pairs of this source that "
            "have both; 1 is the best rank, and a higher score is better: turn one of the two "
            "columns round, or remove it"
        )
