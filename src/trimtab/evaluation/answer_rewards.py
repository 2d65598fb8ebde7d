"""Rewards of answers: every reward model and reward function alone, kept on disk as they come."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from trimtab.data.rows import RankedExample, Text
from trimtab.data.trees import Origin
from trimtab.evaluation.answers import Row, Side
from trimtab.rewards.combine import names_of
from trimtab.rewards.functions import RewardFunction, check_columns, resolve
from trimtab.rewards.score_journal import CHUNK, Journal
from trimtab.rewards.score_rows import ScoreRow
from trimtab.rewards.scorers import FunctionScorer, ModelScorer, Scorer, find_model
from trimtab.training.progress import Progress

TIME_LIMIT = 60.0  # seconds that a function may take for a call of at most 64 rows

Scores = dict[str, list[list[float | None]]]
"""By reward, of every row, of every answer; None where it has none."""


class Rewards(NamedTuple):
    """A reward model (folder or hub id) and reward functions, as the user wrote them."""

    model: str | None = None
    functions: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.model is not None or bool(self.functions)


class Raters:
    """All rewards, found and loaded once for both sides; ``close`` them."""

    def __init__(
        self, rewards: Rewards, *, max_length: int, token_budget: int, progress: Progress
    ) -> None:
        self.functions: list[RewardFunction] = [resolve(spec) for spec in rewards.functions]
        self.scorers: list[Scorer] = []
        if rewards.model is not None:
            find_model(rewards.model)
            progress.stage(f"loading {rewards.model}")
            self.scorers.append(
                ModelScorer(
                    rewards.model, max_length=max_length, token_budget=token_budget, on_bad="stop"
                )
            )
        for name, function in zip(names_of(self.functions), self.functions, strict=True):
            self.scorers.append(FunctionScorer(name, function, TIME_LIMIT, "stop"))

    def rate(self, side: Side, path: Path, progress: Progress) -> Scores:
        """Rewards of a side's answers; ``path`` keeps them until the evaluation is done.

        A blank answer has no reward (None). RunError where a reward fails.
        """
        for function in self.functions:
            check_columns(function, {n for row in side.rows for n in row.columns}, ids=False)
        rows = [_score_row(side, number, row) for number, row in enumerate(side.rows)]
        progress.stage(f"scoring the answers of {side.name}", total=len(rows))
        told = json.dumps([[told_of(row), row.columns] for row in side.rows], default=str)
        journal = Journal(
            path,
            [hashlib.sha256(told.encode()).hexdigest()] + [one.identity for one in self.scorers],
            restart=False,
        )
        try:
            for start in range(len(journal.entries), len(rows), CHUNK):
                chunk = rows[start : start + CHUNK]
                asked = [row for row in chunk if row.texts]
                scored = [iter(scorer.score(asked) if asked else ()) for scorer in self.scorers]
                journal.add([[next(one) for one in scored] if row.texts else [] for row in chunk])
                progress.update(start + len(chunk))
            entries = list(journal.entries)
        finally:
            journal.close()
        found: Scores = {scorer.name: [] for scorer in self.scorers}
        for row, entry in zip(side.rows, entries, strict=True):
            for place, scores in enumerate(found.values()):
                given = iter(entry[place].values if entry else ())
                scores.append([next(given) if text.strip() else None for text in row.texts])
        return found

    def close(self) -> None:
        """Let go of the functions."""
        for function in self.functions:
            function.close()


def told_of(row: Row) -> list[Text]:
    """A row's prompt and answers."""
    return [row.prompt, *row.answers]


def _score_row(side: Side, number: int, row: Row) -> ScoreRow:
    """What scorers read of a row: the answers that say something."""
    texts = [one for one, text in zip(row.answers, row.texts, strict=True) if text.strip()]
    different: list[Text] = []
    for text in texts:
        if text not in different:
            different.append(text)
    origin = Origin(str(side.where), number + 1)
    example = RankedExample(origin=origin, prompt=row.prompt, responses=different)
    places = [different.index(text) for text in texts]
    return ScoreRow(origin, {}, row.prompt, texts, example, places, row.columns)


@dataclasses.dataclass(frozen=True)
class Rated:
    """A side with its rewards."""

    side: Side
    scores: Scores

    def of(self, rows: Sequence[int]) -> Rated:
        """The rows of some numbers alone."""
        side = dataclasses.replace(self.side, rows=[self.side.rows[i] for i in rows])
        return Rated(side, {k: [v[i] for i in rows] for k, v in self.scores.items()})
