"""What tokenising did, as numbers: rows in = rows that gave trees + rows dropped, with reasons."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trimtab.data.tokenise_trees import NO_ROOM, SAME, SAME_TRUNCATED, Planted
from trimtab.data.trees import Origin
from trimtab.errors import DataError

_FIRST = 3  # rows of each reason that a message can name

_REMEDIES = {
    NO_ROOM: "raise max_length, or set max_prompt_length below it",
    SAME: "give pairs that differ",
    SAME_TRUNCATED: "raise max_length",
}


@dataclass
class Dropped:
    """Rows dropped for one reason, the first few by name."""

    count: int = 0
    first: list[str] = field(default_factory=list[str])

    def add(self, origin: Origin, detail: str) -> None:
        """Count one row; ``detail`` is what is particular to it."""
        self.count += 1
        if len(self.first) < _FIRST:
            place = f"{origin.source}:{origin.row}"
            self.first.append(f"{place}: {detail}" if detail else place)


@dataclass
class TokeniseReport:
    """Counts over the rows of one call of ``tokenise_all``.

    rows, trees          rows in, trees out
    dropped              reason -> rows
    prompts_cut          trees whose prompt was truncated
    responses_cut        branches whose end was truncated
    tokens, trained      tokens of all trees (trunks once), and those that are trained
    unscored             tokens with nothing before them to predict them
    branches             branches with a trained token
    branches_stopped     those of them whose last token is a stop token
    leading_bos          the longest run of BOS that a tree begins with: 0 or 1 when all is well
    boundary_splits      turns cut in token space, where prompt and answer would have merged
    control_rows         rows whose text contains control tokens of the tokenizer
    mask_sources         assistant turns by how their mask was found
    notices              lines that a user should read once
    """

    rows: int = 0
    trees: int = 0
    dropped: dict[str, Dropped] = field(default_factory=dict[str, Dropped])
    prompts_cut: int = 0
    responses_cut: int = 0
    tokens: int = 0
    trained: int = 0
    unscored: int = 0
    branches: int = 0
    branches_stopped: int = 0
    leading_bos: int = 0
    boundary_splits: int = 0
    control_rows: int = 0
    mask_sources: dict[str, int] = field(default_factory=dict[str, int])
    notices: list[str] = field(default_factory=list[str])

    @property
    def rows_dropped(self) -> int:
        """Rows that gave no tree."""
        return sum(dropped.count for dropped in self.dropped.values())

    @property
    def supervised_share(self) -> float:
        """Trained tokens among all tokens."""
        return self.trained / self.tokens if self.tokens else 0.0

    @property
    def stop_share(self) -> float:
        """Branches that end in a stop token among those that train anything."""
        return self.branches_stopped / self.branches if self.branches else 0.0

    def drop(self, origin: Origin, reason: str, detail: str) -> None:
        """Count a dropped row."""
        self.dropped.setdefault(reason, Dropped()).add(origin, detail)

    def count(self, planted: Planted, stops: frozenset[int], bos: int | None) -> None:
        """Count a finished tree."""
        tree = planted.tree
        self.trees += 1
        self.tokens += tree.token_count
        self.trained += tree.trained_count
        self.unscored += planted.unscored
        self.prompts_cut += planted.prompt_cut
        self.responses_cut += planted.branches_cut
        scored = tree.trained_count == 0  # for a reward model, which reads the last token
        for branch in tree.branches:
            if branch.trained_count or (scored and branch.ids):
                self.branches += 1
                end = scored or branch.trained[-1]
                self.branches_stopped += end and branch.ids[-1] in stops
        path = tree.trunk.ids + (tree.branches[0].ids if tree.branches else ())
        run = 0
        while bos is not None and run < len(path) and path[run] == bos:
            run += 1
        self.leading_bos = max(self.leading_bos, run)

    def check(self, max_dropped: float) -> None:
        """Refuse when nothing is left, or when more than the share ``max_dropped`` was dropped."""
        if not self.rows:
            raise DataError("no rows: the data is empty")
        if self.trees and self.rows_dropped <= max_dropped * self.rows:
            return
        reason, worst = max(self.dropped.items(), key=lambda item: item[1].count)
        remedy = _REMEDIES.get(reason, "mend or remove such rows")
        others = self.rows_dropped - worst.count
        told = f"{worst.first[0]}: {reason} ({worst.count} of {self.rows} rows"
        told += f", {others} more for other reasons)" if others else ")"
        if not self.trees:
            raise DataError(f"{told}; no row is left to train on; {remedy}")
        raise DataError(
            f"{told}; max_dropped_rows allows {max_dropped:.3g} of the rows; {remedy}, or raise "
            "max_dropped_rows"
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON types, to be kept beside a cached store."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TokeniseReport:
        """Undo ``to_json``."""
        dropped = {reason: Dropped(**value) for reason, value in data["dropped"].items()}
        values: dict[str, Any] = {**data, "dropped": dropped}
        return cls(**values)
