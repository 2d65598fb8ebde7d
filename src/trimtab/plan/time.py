"""Time of a run: useful operations, over the rate that its own code is seen to reach here."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from trimtab.config.classify_recipe import ClassifyRecipe
from trimtab.config.on_policy_recipe import OnPolicyRecipe
from trimtab.config.recipes import LossKeys
from trimtab.config.reward_recipe import RewardRecipe
from trimtab.plan import flops
from trimtab.plan.batches import Batches
from trimtab.plan.flops import Product, Shape
from trimtab.plan.memory import Models
from trimtab.plan.skeleton import Skeleton
from trimtab.plan.trial import Work, decoding, reached
from trimtab.training.precision import gemm_rate

REACHED = 0.60
"""Share of the rate of matrix products that training reaches with its useful operations, where it
is not tried: 52 to 64 % on the 9 M model, 60 % on SmolLM2 (docs/performance.md)."""
SAMPLING_REACHED = 0.50
"""The same of decoding, of the rate of products with as many rows as responses that run
(45 to 73 % in docs/performance.md)."""


WIDEST = 768
"""Products are measured at no larger width: their rate hardly grows, and a second is enough."""


@dataclasses.dataclass(frozen=True)
class Duration:
    """In seconds. ``step``: of training, on average; ``before``: reference log-probs (cached);
    ``rollout``: sampling, judging and reading of one, for ``rollout_steps`` steps. ``total`` None
    where steps are not known.
    ``share`` of the rate ``gflops`` is what training reached, None where that was not tried."""

    gflops: float
    share: float | None
    step: float
    before: float
    rollout: float
    rollout_steps: int
    total: float | None


def duration_of(
    recipe: Any, models: Models, batches: Batches, device: torch.device, room: int | None
) -> Duration:
    """Try the recipe's work for some seconds, and divide."""
    policy = models.policy
    rate = gemm_rate(policy.dtype, device, min(policy.width, WIDEST)) * 1e9
    shape = shape_of(policy)
    tried = reached(
        policy, shape, batches.micros, work_of(recipe), device=device, rate=rate, room=room
    )
    train, read = (REACHED * rate,) * 2 if tried is None else tried[:2]
    every = [tree for step in batches.rows for tree in step]
    rank = None if policy.lora is None else policy.lora[0]
    again = 4 / 3 if recipe.gradient_checkpointing else 1.0
    work = again * flops.training(shape, every, lora_rank=rank)
    trained = policy.counts[1]
    if models.critic is not None:
        work += again * flops.training(shape_of(models.critic), every)
        trained += models.critic.counts[1]
    rounds = len(batches.rows)
    update = 0.0 if tried is None else trained * tried.update
    share = None if tried is None else train / rate
    if not isinstance(recipe, OnPolicyRecipe):
        step = work / rounds / train + update
        before = 0.0
        if _reads_reference(recipe) and batches.steps is not None:
            before = batches.steps * flops.forward(shape, every) / rounds / read
        total = None if batches.steps is None else before + batches.steps * step
        return Duration(rate / 1e9, share, step, before, 0.0, 1, total)
    step = work / rounds / recipe.num_mini_batches / train + update  # type: ignore[attr-defined]
    rollout = _rollout(recipe, models, batches, device, rate, room)
    for reader in (models.reference, *models.judges, models.critic):
        if reader is not None:
            rollout += flops.forward(shape_of(reader), every) / rounds / read
    per = recipe.passes * recipe.num_mini_batches  # type: ignore[attr-defined]
    total = None if batches.steps is None else batches.steps * (step + rollout / per)
    return Duration(rate / 1e9, share, step, 0.0, rollout, per, total)


def work_of(recipe: Any) -> Work:
    """What the recipe's algorithm computes of every micro-batch."""
    plain = issubclass(type(recipe), (LossKeys, RewardRecipe, ClassifyRecipe))
    on_policy = issubclass(type(recipe), OnPolicyRecipe)
    return Work(
        recipe.optim,
        entropy=not plain,
        correct=not plain and not on_policy,
        checkpointing=recipe.gradient_checkpointing,
    )


def _rollout(
    recipe: Any,
    models: Models,
    batches: Batches,
    device: torch.device,
    rate: float,
    room: int | None,
) -> float:
    """Seconds of sampling one rollout, its responses whole."""
    policy, shape = models.policy, shape_of(models.policy)
    prompts = max(batches.rows, key=len)
    slots = recipe.rollout_slots
    tried = decoding(policy, shape, prompts, slots=slots, device=device, rate=rate, room=room)
    every = [tree for step in batches.rows for tree in step]
    rounds = len(batches.rows)
    rows = sum(len(tree.branches) for tree in every) / rounds
    if tried is None:
        width = min(policy.width, WIDEST)
        few = gemm_rate(policy.dtype, device, width, tokens=min(slots, math.ceil(rows)))
        return flops.generation(shape, every) / rounds / (SAMPLING_REACHED * few * 1e9)
    waves = max(1.0, rows / tried.rows)
    reading = tried.reading * len(every) / rounds / tried.prompts
    return reading + waves * tried.step * (recipe.max_completion_length - 1)


def _reads_reference(recipe: Any) -> bool:
    loss = getattr(recipe, "loss", None)
    return loss is not None and loss.schema_.needs_reference and recipe.precompute_ref_log_probs


def shape_of(skeleton: Skeleton) -> Shape:
    """The dense layers of a skeleton, as they are: every linear module of one layer, times all."""
    made: Any = dataclasses.replace(skeleton, lora=None).model(1)
    config = skeleton.config.get_text_config(decoder=True)
    head = made.get_output_embeddings()
    body: list[Product] = []
    for module in made.modules():
        if module is head or module is getattr(made, "score", None):
            continue
        if isinstance(module, torch.nn.Linear):
            body.append(Product(module.in_features, module.out_features, skeleton.layers))
        elif type(module).__name__ == "Conv1D":  # GPT-2's linear layer
            inputs, outputs = module.weight.shape  # type: ignore[misc]
            body.append(Product(inputs, outputs, skeleton.layers))
    width = (getattr(config, "head_dim", None) or 0) * config.num_attention_heads
    head_product = Product(skeleton.width, 0 if skeleton.scores else skeleton.vocabulary, 1)
    return Shape(tuple(body), head_product, skeleton.layers, width or skeleton.width)
