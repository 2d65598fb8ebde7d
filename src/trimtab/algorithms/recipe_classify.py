"""What a classify recipe adds to building a stage: a head with a score for every class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trimtab.config.classify_recipe import ClassifyRecipe
from trimtab.models.score_head import ScoreHead, attach_head, without_output_head
from trimtab.training.seeds import derive

STD = 0.02  # of the fresh head, as of all of GPT-1's weights


def classifier(recipe: ClassifyRecipe, model: Any, labels: Sequence[str | int]) -> Any:
    """A language model with a fresh head, N(0, 0.02^2) under the run's seed.

    Its output head is trained where something reads it: the language-model loss, or ``mix``.
    """
    seed = derive(recipe.seed, "score head") % 2**32
    model = attach_head(model, ScoreHead("classify", tuple(labels)), std=STD, seed=seed)
    return model if recipe.alpha or recipe.mix else without_output_head(model)
