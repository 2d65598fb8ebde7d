"""Checks that compare rows by their keys: copies, labels that disagree, held-out rows, lengths.

Each takes the table of all rows and gives the rows that show one fault.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from trimtab.data.doctor.ledger import At, Rows
from trimtab.data.doctor.table import Table, column, groups
from trimtab.intervals import Interval, wilson_interval

# A share of pairs in which the longer response was preferred beyond which length is worth a
# warning: human preferences lie between 0.5 and 0.6, those of models that judge at 0.6 to 0.7.
LENGTH_BOUND = 0.65


def duplicate_rows(table: Table, rows: Rows) -> Iterator[At]:
    """Later copies of a row."""
    numbers = column(table.number)
    for group in groups(column(table.row)):
        first, *copies = (int(numbers[place]) for place in group)
        yield from (At(copy, f"as {rows.name(first)}") for copy in copies)


def near_duplicate_rows(table: Table, rows: Rows) -> Iterator[At]:
    """Rows that differ from an earlier one in spaces or case; copies of them are copies alone."""
    exact, numbers = column(table.row), column(table.number)
    for group in groups(column(table.loose)):
        seen = {int(exact[group[0]])}
        for place in group[1:]:
            key = int(exact[place])
            if key not in seen:
                seen.add(key)
                yield At(int(numbers[place]), f"as {rows.name(int(numbers[group[0]]))}")


def conflicting_labels(table: Table, rows: Rows) -> Iterator[At]:
    """All rows of one text whose labels are not all the same."""
    labels, numbers = column(table.label), column(table.number)
    names = {number: name for name, number in table.labels.items()}
    labelled = np.flatnonzero(labels)
    for group in groups(column(table.answered)[labelled]):
        places = labelled[group]
        own = labels[places]
        if len(set(own.tolist())) == 1:
            continue
        for place, label in zip(places, own, strict=True):
            other = places[int(np.argmax(own != label))]
            where = rows.name(int(numbers[other]))
            text = f"{names[int(label)]}, but {names[int(labels[other])]} in {where}"
            yield At(int(numbers[place]), text)


def single_label(table: Table, rows: Rows) -> Iterator[At]:
    """All labelled rows, where they have one label between them and are more than one."""
    labelled = np.flatnonzero(column(table.label))
    if len(labelled) > 1 and len(table.labels) == 1:
        (name,) = table.labels
        yield from (At(int(number), name) for number in column(table.number)[labelled])


def held_out_rows(table: Table, held_out: Table, names: Rows) -> Iterator[At]:
    """Rows that are held out, too; ``names`` are those of the held-out rows."""
    yield from _overlap(table, table.leak, held_out, held_out.leak, names)


def held_out_prompts(table: Table, held_out: Table, names: Rows) -> Iterator[At]:
    """Rows whose prompt is held out, too."""
    yield from _overlap(table, table.prompt, held_out, held_out.prompt, names)


def _overlap(
    table: Table, ours: array[int], held_out: Table, theirs: array[int], names: Rows
) -> Iterator[At]:
    first: dict[int, int] = {}
    for key, number in zip(theirs, held_out.number, strict=True):
        first.setdefault(key, number)
    first.pop(0, None)  # no prompt
    for key, number in zip(ours, table.number, strict=True):
        if key in first:
            yield At(number, f"as {names.name(first[key])}")


class LengthBias(NamedTuple):
    """How often the longer response was preferred, of the pairs whose lengths differ."""

    longer_preferred: Interval
    bound: float

    @property
    def beyond(self) -> bool:
        """Whether the whole interval lies beyond the bound, on either side."""
        interval = self.longer_preferred
        return interval.low > self.bound or interval.high < 1 - self.bound

    def __str__(self) -> str:
        share, low, high, n = self.longer_preferred
        side = "longer" if share >= 0.5 else "shorter"
        if side == "shorter":
            share, low, high = 1 - share, 1 - high, 1 - low
        return (
            f"the {side} response is preferred in {share:.3f} [{low:.3f}, {high:.3f}] of {n:,} "
            f"pairs of different length; bound {self.bound:g}"
        )

    def to_json(self) -> Mapping[str, float]:
        """As JSON types."""
        share, low, high, n = self.longer_preferred
        return {
            "longer_preferred": share,
            "low": low,
            "high": high,
            "pairs": n,
            "bound": self.bound,
        }


def length_bias(table: Table) -> LengthBias | None:
    """Wilson's 95 % interval over rows with a best and a worst response; None without any."""
    signs = np.array(table.longer, np.int8)
    compared = int(np.count_nonzero(signs))
    if not compared:
        return None
    return LengthBias(wilson_interval(int((signs > 0).sum()), compared), LENGTH_BOUND)


def rows_of_bias(table: Table, bias: LengthBias) -> Iterator[At]:
    """The rows that make the bias: those in which the favoured side was preferred."""
    sign = 1 if bias.longer_preferred.mean >= 0.5 else -1
    for number, longer in zip(table.number, table.longer, strict=True):
        if longer == sign:
            yield At(number)
