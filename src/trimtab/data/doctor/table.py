"""All rows as columns of keys: some 60 bytes a row and 40 a comparison, however long the texts."""

from __future__ import annotations

import itertools
from array import array
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trimtab.data.doctor.shape import Keys, Shape, Turns

Column = NDArray[np.uint64]


def _words() -> array[int]:
    return array("Q")


@dataclass
class Comparisons:
    """Ranked pairs of responses as keys: in a row ``winner`` beats ``loser`` after ``prompt``."""

    row: array[int] = field(default_factory=_words)
    prompt: array[int] = field(default_factory=_words)
    winner: array[int] = field(default_factory=_words)
    loser: array[int] = field(default_factory=_words)


@dataclass
class Table:
    """The keys of all rows (``shape.Keys``) that could be read.

    number   of the row (``ledger.Rows``)
    label    number of the label (``labels``), 0 without one
    longer   of the best and the worst response: 1 where the best has more characters, -1 where the
             worst has, 0 where they have as many or nothing is compared
    """

    number: array[int] = field(default_factory=_words)
    row: array[int] = field(default_factory=_words)
    loose: array[int] = field(default_factory=_words)
    leak: array[int] = field(default_factory=_words)
    prompt: array[int] = field(default_factory=_words)
    answered: array[int] = field(default_factory=_words)
    label: array[int] = field(default_factory=_words)
    longer: array[int] = field(default_factory=lambda: array("b"))
    pairs: Comparisons = field(default_factory=Comparisons)
    labels: dict[str, int] = field(default_factory=dict[str, int])

    def add(self, number: int, shape: Shape, keys: Keys) -> None:
        """Note one row down."""
        self.number.append(number)
        self.row.append(keys.row)
        self.loose.append(keys.loose)
        self.leak.append(keys.leak)
        self.prompt.append(keys.prompt)
        self.answered.append(keys.answered)
        self.label.append(0 if shape.label is None else self._label(shape.label))
        self.longer.append(_longer(shape))
        if shape.ranks:
            self._compare(number, shape.ranks, keys)

    def _label(self, name: str) -> int:
        return self.labels.setdefault(name, len(self.labels) + 1)

    def _compare(self, number: int, ranks: tuple[float, ...], keys: Keys) -> None:
        ranked = list(zip(ranks, keys.responses, strict=True))
        if len({response for _, response in ranked}) < len({*ranked}):
            return  # a response outranks itself, which is a finding of its own: it orders nothing
        compared: set[tuple[int, int]] = set()
        for (rank, one), (other_rank, other) in itertools.combinations(ranked, 2):
            if rank != other_rank:
                compared.add((one, other) if rank < other_rank else (other, one))
        for winner, loser in sorted(compared):
            self.pairs.row.append(number)
            self.pairs.prompt.append(keys.asked)
            self.pairs.winner.append(winner)
            self.pairs.loser.append(loser)


def column(words: array[int]) -> Column:
    """The column as numpy sees it, without a copy."""
    return np.frombuffer(words, np.uint64) if words else np.empty(0, np.uint64)


def groups(keys: Column) -> list[NDArray[np.intp]]:
    """Positions of equal keys, for every key that comes twice or more; positions ascend."""
    if not len(keys):
        return []
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    ends = np.r_[starts[1:], len(keys)]
    return [order[a:b] for a, b in zip(starts, ends, strict=True) if b - a > 1]


def _longer(shape: Shape) -> int:
    if not shape.ranks:
        return 0
    best = shape.responses[shape.ranks.index(min(shape.ranks))]
    worst = shape.responses[shape.ranks.index(max(shape.ranks))]
    more, less = _characters(best), _characters(worst)
    return (more > less) - (more < less)


def _characters(turns: Turns) -> int:
    return sum(len(turn.content) for turn in turns)
