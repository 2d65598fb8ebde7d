"""The rewards of answers, by a reward model, reward functions, or both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimtab.chat.session import Reward
from trimtab.data.rows import CompletionExample, Text
from trimtab.data.trees import Origin
from trimtab.rewards.combine import told_apart
from trimtab.rewards.functions import check_columns, resolve
from trimtab.rewards.score_rows import ScoreRow
from trimtab.rewards.scorers import FunctionScorer, ModelScorer, Scorer

TIME_LIMIT = 60.0  # seconds that a reward function may take, as in score
_LONGEST = 1 << 20  # tokens: a reward model's own limit counts


class Judges:
    """Judge answers one by one; RecipeError for a name that is no reward."""

    def __init__(self, model: str | None = None, functions: Sequence[str] = ()) -> None:
        scorers: list[Scorer] = []
        names: list[str] = []
        found = [resolve(text) for text in functions]  # before the model, which takes longer
        for function in found:
            check_columns(function, (), ids=False)
        if model is not None:
            scorers.append(
                ModelScorer(model, max_length=_LONGEST, token_budget=8192, on_bad="drop")
            )
            names.append(Path(model).name or model)
        for function in found:
            scorers.append(FunctionScorer(function.name, function, TIME_LIMIT, "drop"))
            names.append(function.name)
        self._scorers = scorers
        self.names = told_apart(names)

    def rewards(self, prompt: Text, text: str) -> tuple[Reward, ...]:
        """Of one answer; a blank one has none."""
        if not self._scorers:
            return ()
        if not text.strip():
            return tuple(Reward(name, None, "the answer is blank") for name in self.names)
        said: Any = text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        origin = Origin("chat", 1)
        example = CompletionExample(origin=origin, prompt=prompt, completion=said)
        row = ScoreRow(origin, {}, prompt, [said], example, [0], {})
        found: list[Reward] = []
        for name, scorer in zip(self.names, self._scorers, strict=True):
            (scored,) = scorer.score([row])
            why = " ".join(part for part in scored.why or () if part)
            found.append(Reward(name, scored.values[0], why))
        return tuple(found)
