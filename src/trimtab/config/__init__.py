"""Recipes: what a run is told, where each value came from, and everything that can be refused.

Nothing here imports torch or transformers; ``trimtab --help`` reads recipes and must be quick.
"""

from trimtab.config.data_keys import DatasetSpec, MixSpec
from trimtab.config.recipes import (
    LossChoice,
    NewModelSpec,
    NewTokenizerSpec,
    PreferenceRecipe,
    PretrainRecipe,
    SftRecipe,
    TrainRecipe,
)
from trimtab.config.resolve import Control, Resolved, recipe_from_kwargs, resolve
from trimtab.config.resolved import (
    RESUME_FREE,
    difference,
    load_resolved,
    load_text,
    to_yaml,
)
from trimtab.config.verbs import VERBS

__all__ = [
    "RESUME_FREE",
    "VERBS",
    "Control",
    "DatasetSpec",
    "LossChoice",
    "MixSpec",
    "NewModelSpec",
    "NewTokenizerSpec",
    "PreferenceRecipe",
    "PretrainRecipe",
    "Resolved",
    "SftRecipe",
    "TrainRecipe",
    "difference",
    "load_resolved",
    "load_text",
    "recipe_from_kwargs",
    "resolve",
    "to_yaml",
]
