"""Time of a run: useful operations over a rate that is measured here, and what of it is reached."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from trimtab.config.on_policy_recipe import OnPolicyRecipe
from trimtab.plan import flops
from trimtab.plan.batches import Batches
from trimtab.plan.flops import Product, Shape, Tree
from trimtab.plan.memory import Models
from trimtab.plan.skeleton import Skeleton
from trimtab.training.precision import gemm_rate

REACHED = 0.60
"""Share of the rate of matrix products that training reaches with its useful operations: 52 to 64 %
on the 9 M model, 60 % on SmolLM2 (docs/performance.md)."""
SAMPLING_REACHED = 0.50
"""The same of decoding, of the rate of products with as many rows as responses that run
(45 to 73 % in docs/performance.md)."""


WIDEST = 768
"""Products are measured at no larger width: their rate hardly grows, and a second is enough."""


@dataclasses.dataclass(frozen=True)
class Duration:
    """In seconds. ``step``: of training, on average; ``before``: reference log-probs (cached);
    ``rollout``: sampling, judging and reading of one. ``total`` None where steps are not known."""

    gflops: float
    step: float
    before: float
    rollout: float
    total: float | None


def duration_of(recipe: Any, models: Models, batches: Batches, device: torch.device) -> Duration:
    """Measure the machine for a second, and divide."""
    policy = models.policy
    rate = REACHED * _rate(policy, device) * 1e9
    shape = shape_of(policy)
    rank = None if policy.lora is None else policy.lora[0]
    every = [tree for step in batches.rows for tree in step]
    again = 4 / 3 if recipe.gradient_checkpointing else 1.0
    work = again * flops.training(shape, every, lora_rank=rank)
    if models.critic is not None:
        work += again * flops.training(shape_of(models.critic), every)
    rounds = len(batches.rows)
    if not isinstance(recipe, OnPolicyRecipe):
        step = work / rounds / rate
        before = 0.0
        if _reads_reference(recipe) and batches.steps is not None:
            before = batches.steps * flops.forward(shape, every) / rounds / rate
        total = None if batches.steps is None else before + batches.steps * step
        return Duration(rate / REACHED / 1e9, step, before, 0.0, total)
    step = work / rounds / recipe.num_mini_batches / rate  # type: ignore[attr-defined]
    rollout = _rollout(recipe, models, every, device) / rounds
    per = recipe.passes * recipe.num_mini_batches  # type: ignore[attr-defined]
    total = None if batches.steps is None else batches.steps * (step + rollout / per)
    return Duration(rate / REACHED / 1e9, step, 0.0, rollout, total)


def _rollout(recipe: Any, models: Models, every: list[Tree], device: torch.device) -> float:
    """Seconds of sampling all trees, of reading them by the reference, judges and the critic."""
    policy = models.policy
    rows = min(recipe.rollout_slots, sum(len(tree.branches) for tree in every))
    slow = SAMPLING_REACHED * _rate(policy, device, rows) * 1e9
    seconds = flops.generation(shape_of(policy), every) / slow
    readers = [one for one in (models.reference, *models.judges, models.critic) if one is not None]
    for reader in readers:
        rate = REACHED * _rate(reader, device) * 1e9
        seconds += flops.forward(shape_of(reader), every) / rate
    return seconds


def _rate(skeleton: Skeleton, device: torch.device, tokens: int = 512) -> float:
    """GFLOP/s of a product of so many rows."""
    return gemm_rate(skeleton.dtype, device, min(skeleton.width, WIDEST), tokens=tokens)


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
