"""Which trees a recipe's steps hold: from its rows where they are here, else from its limits."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimtab.algorithms.recipe_rows import RecipeRows, longest_of
from trimtab.algorithms.stream import TreeStream
from trimtab.config.on_policy_recipe import OnPolicyRecipe
from trimtab.config.recipes import LossKeys, PretrainRecipe
from trimtab.config.resolved import Resolved
from trimtab.config.reward_recipe import RewardRecipe
from trimtab.data.store_cache import default_cache_dir
from trimtab.data.trees import TokenTree
from trimtab.losses.contract import LossSpec
from trimtab.plan.flops import Tree
from trimtab.plan.shapes import Shape
from trimtab.training.progress import Progress
from trimtab.training.seeds import derive

SAMPLED_STEPS = 64  # that are looked at; of the epoch's, evenly
LONGEST = 1024  # tokens, where neither the recipe nor the rows say how long texts are


@dataclasses.dataclass(frozen=True)
class Batches:
    """``steps`` None where the number of rows is not known and max_steps not set.

    rows      all trees that were looked at, step by step; on policy: prompts with whole responses
    micros    all micro-batches of these
    per_step  of them in a step, on average
    largest   the micro-batch with most tokens, or the longest row where a self-check trains on it
    reading   the trees of the largest batch that is read without gradients, at twice the budget
    source    for people: what this is known from
    longest   the row with most tokens, where the run begins with a pass over it
    """

    steps: int | None
    rows: list[list[Tree]]
    micros: list[list[Tree]]
    per_step: float
    largest: list[Tree]
    reading: list[Tree]
    source: str
    longest: Tree | None = None


def batches_of(resolved: Resolved, shape: Shape | None, spec: LossSpec | None) -> Batches:
    """The batches of a recipe; its rows are tokenised (and cached, as the run will) if local."""
    recipe: Any = resolved.recipe
    specs = recipe.train_specs()
    here = all(Path(one.path).expanduser().exists() for one in specs)
    fresh = isinstance(recipe, PretrainRecipe) and recipe.new_model is not None
    readable = fresh or (shape is not None and shape.source is not None)
    if recipe.tokenizer_name_or_path is not None:
        readable = readable and Path(recipe.tokenizer_name_or_path).expanduser().exists()
    if here and readable:
        return _of_rows(resolved, None if shape is None else shape.source, spec)
    why = "its rows are not here" if not here else "its tokenizer is not here"
    return _assumed(resolved, shape, why)


def _of_rows(resolved: Resolved, source: Any, spec: LossSpec | None) -> Batches:
    recipe: Any = resolved.recipe
    with tempfile.TemporaryDirectory() as scratch, Progress(0, "plan", mode="quiet") as progress:
        rows = RecipeRows(
            resolved,
            None if isinstance(recipe, OnPolicyRecipe) else spec,
            source,
            progress,
            folder=Path(scratch),
            cache_dir=Path(recipe.cache_dir or default_cache_dir()),
        )
        train = rows.training()
    stream = TreeStream(
        train.stores,
        rows_per_step=recipe.rows_per_step,
        token_budget=recipe.token_budget,
        seed=derive(recipe.seed, "order of main"),
        weights=train.weights,
        shuffle=recipe.shuffle,
    )
    steps = recipe.max_steps
    if steps < 1:
        steps = max(1, round(recipe.num_train_epochs * stream.steps_per_epoch))
        if isinstance(recipe, OnPolicyRecipe):
            steps *= recipe.passes * recipe.num_mini_batches  # type: ignore[attr-defined]
    seen = min(_rounds(recipe, steps), stream.steps_per_epoch)
    wanted = sorted({seen * i // SAMPLED_STEPS for i in range(SAMPLED_STEPS)})
    looked = [[_tree(stream.tree(row), recipe) for row in stream.rows(s)] for s in wanted]
    every = "all" if len(looked) == seen else f"{len(looked)} of {seen}"
    note = f"{len(stream):,} trees of its rows; {every} batches were looked at"
    longest = _tree(longest_of(train.stores), recipe) if recipe.self_check else None
    return batched(recipe, steps, looked, note, longest)


def _assumed(resolved: Resolved, shape: Shape | None, why: str) -> Batches:
    """Every row as long as the recipe allows: a quarter prompt, the rest response."""
    recipe: Any = resolved.recipe
    positions = None
    if shape is not None:
        text = shape.config.get_text_config(decoder=True)
        positions = getattr(text, "max_position_embeddings", None)
    longest = getattr(recipe, "max_length", None) or min(positions or LONGEST, LONGEST)
    if isinstance(recipe, PretrainRecipe):
        tree = Tree(1, (recipe.context_length,), recipe.context_length)
    elif isinstance(recipe, OnPolicyRecipe):
        prompt = recipe.max_prompt_length or LONGEST // 4
        tree = _rollout(Tree(prompt, (), 0), recipe)
    else:
        paired = isinstance(recipe, (LossKeys, RewardRecipe))
        answer = longest - longest // 4
        count = 2 if paired else 1
        targets = count if isinstance(recipe, RewardRecipe) else count * answer
        tree = Tree(longest // 4, (answer,) * count, targets)
    steps = recipe.max_steps if recipe.max_steps > 0 else None
    note = f"{why}: every row is taken to be as long as the recipe allows ({tree.tokens} tokens)"
    return batched(recipe, steps, [[tree] * recipe.rows_per_step], note)


def _rounds(recipe: Any, steps: int) -> int:
    """Batches of rows that so many optimizer steps take."""
    if isinstance(recipe, OnPolicyRecipe):
        return math.ceil(steps / (recipe.passes * recipe.num_mini_batches))  # type: ignore[attr-defined]
    return steps


def _tree(tree: TokenTree, recipe: Any) -> Tree:
    if isinstance(recipe, OnPolicyRecipe):
        return _rollout(Tree(len(tree.trunk.ids), (), 0), recipe)
    trained = sum(map(sum, (tree.trunk.trained, *(one.trained for one in tree.branches))))
    if isinstance(recipe, RewardRecipe):
        trained = len(tree.branches)
    return Tree(len(tree.trunk.ids), tuple(len(one.ids) for one in tree.branches), trained)


def _rollout(prompt: Tree, recipe: Any) -> Tree:
    """A prompt with whole responses."""
    count, length = recipe.num_generations, recipe.max_completion_length
    return Tree(prompt.trunk, (length,) * count, count * length)


def batched(
    recipe: Any,
    steps: int | None,
    rows: list[list[Tree]],
    note: str,
    longest: Tree | None = None,
) -> Batches:
    """The rows of steps, cut into micro-batches by the recipe's token budget."""
    if isinstance(recipe, OnPolicyRecipe):
        minis = recipe.num_mini_batches  # type: ignore[attr-defined]
        parts = [step[i::minis] for step in rows for i in range(minis)]
    else:
        parts = rows
    runs = [split(part, recipe.token_budget) for part in parts]
    alone = [] if longest is None else [[longest]]
    wide = [split(step, 2 * recipe.token_budget) for step in rows]
    return Batches(
        steps=steps,
        rows=rows,
        micros=[run for one in runs for run in one],
        per_step=sum(map(len, runs)) / len(runs),
        largest=max((run for one in (*runs, alone) for run in one), key=tokens),
        reading=max((run for one in wide for run in one), key=tokens),
        source=note,
        longest=longest,
    )


def split(trees: Sequence[Tree], budget: int) -> list[list[Tree]]:
    """As ``data.batch.split_by_tokens``, of lengths alone."""
    runs: list[list[Tree]] = []
    used = 0
    for tree in trees:
        if not runs or used + tree.tokens > budget:
            runs.append([])
            used = 0
        runs[-1].append(tree)
        used += tree.tokens
    return runs


def tokens(trees: Sequence[Tree]) -> int:
    """Tokens of all of them."""
    return sum(tree.tokens for tree in trees)
