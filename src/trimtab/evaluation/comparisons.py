"""Scored rows as a table of comparisons: what every number of a reward model's card is made of.

A row is a prompt with K responses, each with a score of the model and a length, and the pairs that
the row's ranks order. Shapes: n comparisons of all rows, G prompts.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.data.trees import Origin
from trimtab.evaluation.statistics import cluster_numbers

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredRow:
    """One row, judged.

    origin      file and line
    prompt      identity of the prompt: rows that share it are one cluster
    responses   identities of the K responses
    scores      [K] of the model
    lengths     [K] in tokens, the stop token included
    ranks       [K] of the data, 1 = best, ties allowed
    pairs       (winner, loser) for every strictly ordered pair that still differs after truncation
    source      the row's ``source`` column, or None
    gold        [K] true or given scores; empty where none are known
    margin      how much better the data say the winner of a pair is; None: not known
    extras      the row's other columns
    """

    origin: Origin
    prompt: str
    responses: tuple[str, ...]
    scores: tuple[float, ...]
    lengths: tuple[int, ...]
    ranks: tuple[float, ...]
    pairs: tuple[tuple[int, int], ...]
    source: str | None = None
    gold: tuple[float, ...] = ()
    margin: float | None = None
    extras: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])


@dataclasses.dataclass(frozen=True)
class Comparisons:
    """The comparisons of all rows in columns of n.

    winner, loser                scores of the preferred response and of the other
    winner_length, loser_length  in tokens
    first                        whether the preferred one comes first in an order that knows
                                 nothing of preferences (a hash of prompt and response)
    prompt                       number of the prompt, 0 to G - 1
    row                          index of the row
    source, k                    the row's, a source that is not known being ""
    margin                       the data's, NaN where not known
    gold_gap                     gold of the preferred one less that of the other, NaN unless known
    """

    winner: Floats
    loser: Floats
    winner_length: Floats
    loser_length: Floats
    first: Flags
    prompt: NDArray[np.int64]
    row: NDArray[np.int64]
    source: NDArray[np.str_]
    k: NDArray[np.int64]
    margin: Floats
    gold_gap: Floats

    @staticmethod
    def of(rows: Sequence[ScoredRow]) -> Comparisons:
        """Gather the comparisons of all rows, at least one."""
        table = [
            (index, row, winner, loser)
            for index, row in enumerate(rows)
            for winner, loser in row.pairs
        ]
        assert table, "no comparison in any row"
        numbers = cluster_numbers([row.prompt for row in rows])
        index = np.array([i for i, *_ in table])

        def column(values: Sequence[Any]) -> Floats:
            return np.array(values, dtype=np.float64)

        gold = column([r.gold[w] - r.gold[b] if r.gold else np.nan for _, r, w, b in table])
        margin = column([np.nan if r.margin is None else r.margin for _, r, _, _ in table])
        return Comparisons(
            winner=column([r.scores[w] for _, r, w, _ in table]),
            loser=column([r.scores[b] for _, r, _, b in table]),
            winner_length=column([r.lengths[w] for _, r, w, _ in table]),
            loser_length=column([r.lengths[b] for _, r, _, b in table]),
            first=np.array([comes_first(r, w, b) for _, r, w, b in table]),
            prompt=numbers[index],
            row=index,
            source=np.array([r.source or "" for _, r, _, _ in table]),
            k=np.array([len(r.scores) for _, r, _, _ in table]),
            margin=np.where(np.isnan(margin), gold, margin),
            gold_gap=gold,
        )

    def __len__(self) -> int:
        return len(self.winner)

    @property
    def gap(self) -> Floats:
        """[n] score of the preferred response less that of the other."""
        return self.winner - self.loser

    @property
    def right(self) -> Flags:
        """[n] whether the preferred response has the higher score; a tie is not right."""
        return self.winner > self.loser

    @property
    def prompts(self) -> int:
        """G, the number of different prompts."""
        return len(np.unique(self.prompt))

    def where(self, mask: Flags) -> Comparisons:
        """The comparisons under a mask."""
        columns = {f.name: getattr(self, f.name)[mask] for f in dataclasses.fields(self)}
        return Comparisons(**columns)


def comes_first(row: ScoredRow, one: int, other: int) -> bool:
    """Whether response ``one`` precedes ``other`` in an order by hashes of prompt and response.

    It says nothing about which is preferred: were the preferred one always first, the outcome to
    be predicted would be constant, and a model that says 1 to everything perfectly calibrated.
    """
    return _place(row, one) < _place(row, other)


def _place(row: ScoredRow, index: int) -> bytes:
    text = f"{row.prompt}\0{row.responses[index]}"
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
