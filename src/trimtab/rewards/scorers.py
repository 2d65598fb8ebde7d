"""What gives the rows of ``trimtab score`` their scores: a reward model, or a reward function."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from trimtab.data.tokenise import Drop
from trimtab.data.trees import Origin, TokenTree
from trimtab.errors import RunError
from trimtab.models.hub import ModelSource, locate
from trimtab.rewards.functions import OnBad, RewardFunction, call, columns_of
from trimtab.rewards.manifest import MANIFEST, members_of
from trimtab.rewards.score_rows import ScoreRow

DECIMALS = 6
"""Of a reward model's scores: beyond them lies the noise of fp32 and of how rows were batched."""


@dataclasses.dataclass
class Scored:
    """What one scorer makes of a row.

    values  of each text, None where it has no score
    std     of each text, the ensemble's disagreement (standard deviation over its members, n - 1)
    why     the reason for a missing score, and what is particular to this row
    cut     texts that were cut to ``max_length``
    """

    values: list[float | None]
    std: list[float] | None = None
    why: tuple[str, str] | None = None
    cut: int = 0


class Scorer(Protocol):
    """Scores rows; ``name`` is for people, ``identity`` changes where its scores may."""

    name: str
    identity: Any

    def score(self, rows: Sequence[ScoreRow]) -> list[Scored]:
        """Scores of all rows."""
        ...


class FunctionScorer:
    """A reward function, called with all texts of all rows at once."""

    def __init__(
        self, name: str, function: RewardFunction, time_limit: float | None, on_bad: OnBad
    ) -> None:
        self.name = name
        self.function = function
        self.identity = ["function", function.spec, function.digest, on_bad]
        self._time_limit = time_limit
        self._on_bad: OnBad = on_bad

    def score(self, rows: Sequence[ScoreRow]) -> list[Scored]:
        """As ``Scorer.score``; RunError for a problem, with ``on_bad="stop"``."""
        owners = [row for row in rows for _ in row.texts]
        outcome = call(
            self.function,
            [row.prompt for row in owners],
            [text for row in rows for text in row.texts],
            columns_of([row.columns for row in owners]),
            self._time_limit,
            origins=[row.origin for row in owners],
            on_bad=self._on_bad,
        )
        reasons = {problem.index: problem.reason for problem in outcome.problems}
        found: list[Scored] = []
        start = 0
        for row in rows:
            values = outcome.values[start : start + len(row.texts)]
            why: tuple[str, str] | None = None
            if None in values:
                place = start + values.index(None)
                reason = reasons.get(place) or reasons.get(None) or "gave no reward"
                text = f"{values.index(None) + 1} of {len(values)}"
                why = (f"{self.name} {reason}", f"text {text}" if len(values) > 1 else "")
            found.append(Scored(values, why=why))
            start += len(row.texts)
        return found


class ModelScorer:
    """A reward model or an ensemble of them."""

    def __init__(self, path: str, *, max_length: int, token_budget: int, on_bad: OnBad) -> None:
        """Load it; RecipeError for what is no reward model."""
        from trimtab.models.attention import unwrap
        from trimtab.models.device import best_device
        from trimtab.rewards.reward_model import RewardModel

        self.name = path
        self._model = RewardModel.load(path, device=best_device(), token_budget=token_budget)
        config = unwrap(self._model.members[0].model).config.get_text_config(decoder=True)
        positions = getattr(config, "max_position_embeddings", None)
        self.max_length = min(max_length, positions or max_length)
        self.members = len(self._model.members)
        self.identity = model_identity(path, self.max_length, token_budget, on_bad)
        self._on_bad: OnBad = on_bad

    def score(self, rows: Sequence[ScoreRow]) -> list[Scored]:
        """As ``Scorer.score``; RunError for a score that is not finite, with ``on_bad="stop"``."""
        read = self._model.trees([row.example for row in rows], max_length=self.max_length)
        trees = [one[0] for one in read if not isinstance(one, Drop)]
        scores = iter(zip(*self._model.member_scores(trees), strict=True))
        return [
            Scored([None] * len(row.texts), why=(one.reason, one.detail))
            if isinstance(one, Drop)
            else self._scored(row, one[0], next(scores))
            for row, one in zip(rows, read, strict=True)
        ]

    def _scored(
        self, row: ScoreRow, tree: TokenTree, by_member: Sequence[Sequence[float]]
    ) -> Scored:
        """``by_member`` has the scores of the different texts, member by member."""
        means: list[float | None] = []
        deviations: list[float] = []
        for place in row.places:
            values = [scores[place] for scores in by_member]
            finite = all(map(math.isfinite, values))
            if not finite and self._on_bad == "stop":
                raise _not_finite(row.origin, self.name)
            means.append(round(statistics.fmean(values), DECIMALS) + 0.0 if finite else None)
            spread = statistics.stdev(values) if finite and self.members > 1 else 0.0
            deviations.append(round(spread, DECIMALS))
        longest = self.max_length - len(tree.trunk.ids)
        cut = sum(len(tree.branches[place].ids) >= longest for place in row.places)
        why = ("the score is not finite", "") if None in means else None
        return Scored(means, deviations if self.members > 1 else None, why, cut)


def find_model(path: str) -> list[ModelSource]:
    """The reward model, or an ensemble's members; RecipeError where there is none. Nothing is read.

    A wrong path should not cost the time that importing torch takes.
    """
    folder = Path(path).expanduser()
    names = members_of(folder) if (folder / MANIFEST).is_file() else [path]
    return [locate(name, key="reward_model") for name in names]


def model_identity(path: str, *options: Any) -> list[Any]:
    """What tells one reward model from another without reading it: files, sizes and times."""
    from trimtab.models import load

    found: list[Any] = ["model", *options]
    for source in find_model(path):
        for place in dict.fromkeys((source.folder, load.base_of(source, "reward_model").folder)):
            files = sorted(file for file in place.iterdir() if file.is_file())
            wanted = [f for f in files if f.suffix in (".safetensors", ".json", ".jinja")]
            states = [(file.name, file.stat()) for file in wanted if file.name != "run.json"]
            found.append([(name, stat.st_size, stat.st_mtime_ns) for name, stat in states])
    return json.loads(json.dumps(found))


def _not_finite(origin: Origin, name: str) -> RunError:
    return RunError(
        f"{origin.source}:{origin.row}: the score of reward model {name} is not finite; its "
        "weights are damaged or overflow in their precision (on_bad=drop leaves such rows out)"
    )
