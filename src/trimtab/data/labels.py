"""The classes of a run: named in its recipe, or found in its training rows.

A class is known by its text: a row's ``"1"`` and a recipe's ``1`` are the same class, because a
command line and a table of text know no other kind. Where nobody names the classes, rows that mix
numbers and names are refused: it could not be said which order they have.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Sequence

from trimtab.data.quarantine import BadRow
from trimtab.data.rows import Example, LabelledExample
from trimtab.data.trees import Origin
from trimtab.errors import DataError

ClassName = int | str
_SHOWN = 8  # classes that a message lists


class Labels:
    """The classes in their order, whose places are the numbers that a model is trained on.

    ``names`` is None until the training rows have been seen, unless they were given.
    """

    def __init__(self, given: Sequence[ClassName] | None = None) -> None:
        self.names: tuple[ClassName, ...] | None = None
        if given is not None:
            self._settle(given)

    def check(self, example: Example) -> None:
        """Raise ``BadRow`` for a row whose class is not one of those that are known."""
        if self.names is None or not isinstance(example, LabelledExample):
            return
        if str(example.label) not in _places(self.names):
            raise BadRow("label", "not one of the labels", f"{example.label!r} in {shown(self)}")

    def learn(self, examples: Iterable[Example]) -> list[str]:
        """Take the classes from training rows, unless they are known; lines about them.

        Raises DataError for numbers beside names, and where all rows are of one class.
        """
        rows = [example for example in examples if isinstance(example, LabelledExample)]
        counts = Counter(str(row.label) for row in rows)
        if self.names is None:
            self._settle(_ordered(rows))
        if len(counts) == 1:
            only, number = next(iter(counts.items()))
            raise DataError(
                f"{_place(rows[0].origin)}: label: all {number} training rows are {only!r}: with "
                "one class there is nothing to learn; give rows of at least two (a sorted file "
                "needs more than its first rows)"
            )
        names = [str(name) for name in self.names or ()]
        parts = [f"{name} ({counts[name]:,})" for name in names[:_SHOWN]]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        lines = [f"{len(names)} classes: {', '.join(parts)}{more}"]
        if absent := [name for name in names if not counts[name]]:
            lines.append(f"no training row is {', '.join(absent[:_SHOWN])}")
        return lines

    def _settle(self, names: Sequence[ClassName]) -> None:
        self.names = tuple(names)
        assert len({str(name) for name in names}) == len(names), "each class once"


def place_of(label: ClassName, names: tuple[ClassName, ...]) -> int:
    """The number of a class, which is one of ``names``."""
    return _places(names)[str(label)]


@functools.lru_cache(maxsize=4)
def _places(names: tuple[ClassName, ...]) -> dict[str, int]:
    return {str(name): place for place, name in enumerate(names)}


def shown(labels: Labels) -> str:
    """The classes on one line, the first ones of many."""
    names = [str(name) for name in labels.names or ()]
    more = ", ..." if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _ordered(rows: Sequence[LabelledExample]) -> list[ClassName]:
    """Numbers by size, names by the alphabet."""
    first: dict[ClassName, Origin] = {}
    for row in rows:
        first.setdefault(row.label, row.origin)
    numbers = [label for label in first if isinstance(label, int)]
    names = [label for label in first if isinstance(label, str)]
    if numbers and names:
        raise DataError(
            f"{_place(first[names[0]])}: label: {names[0]!r} is text, and {numbers[0]} in "
            f"{_place(first[numbers[0]])} is a number; write all labels in one way, or name them "
            "with labels"
        )
    return [*sorted(numbers), *sorted(names)]


def _place(origin: Origin) -> str:
    return f"{origin.source}:{origin.row}"
