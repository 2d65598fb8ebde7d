"""From the recipe of online_dpo or raft to its stage, around what ``build_on_policy.py`` made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trimtab.algorithms.on_policy import Cast
from trimtab.algorithms.online import OnlinePreference, OnlineSettings
from trimtab.algorithms.policy import Policy
from trimtab.algorithms.preference import PreferenceOptimisation, References
from trimtab.algorithms.raft import Raft
from trimtab.algorithms.recipe_loss import RecipeLoss
from trimtab.algorithms.stream import TreeStream
from trimtab.config.online_recipe import OnlineRecipe, RaftRecipe


def online_stage(
    recipe: OnlineRecipe,
    loss: RecipeLoss,
    policy: Policy,
    stream: TreeStream,
    cast: Cast,
    common: dict[str, Any],
    note: Callable[[str], None],
) -> OnlinePreference:
    """Online preference learning by a loss; ``common``: what all on-policy stages get."""
    named = recipe.ref_model_name_or_path is not None
    preference = PreferenceOptimisation(
        policy,
        stream,
        spec=loss.spec,
        make_loss=loss.make,
        references=References(live=cast.reference, named=named),
        seed=recipe.seed,
        total_steps=common["total_steps"],
        nll_weight=recipe.nll_weight,
    )
    settings = OnlineSettings(
        every_pair=recipe.pairs == "all",
        noisy=recipe.annotator == "bradley_terry",
        sync_steps=recipe.ref_model_sync_steps,
    )
    return OnlinePreference(
        policy, stream, online=settings, preference=preference, note=note, **common
    )


def raft_stage(
    recipe: RaftRecipe,
    policy: Policy,
    stream: TreeStream,
    common: dict[str, Any],
    note: Callable[[str], None],
) -> Raft:
    """Reward-ranked fine-tuning."""
    return Raft(
        policy,
        stream,
        keep_top=recipe.keep_top,
        min_score=recipe.min_score,
        note=note,
        **common,
    )
