"""Memory of a run by part, and the most that it takes at a time.

A run has moments: reading (reference log-probs, judging), sampling, training. What stands beside
them all (weights, optimizer) is counted once; the moment that needs most on top decides. All in
bytes, for the process beyond what Python and its libraries take.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from trimtab.algorithms.group import group_settings
from trimtab.algorithms.recipe_reference import NEEDS_LIVE
from trimtab.config.on_policy_recipe import GroupRecipe, OnPolicyRecipe, PpoRecipe
from trimtab.losses.contract import LossSpec
from trimtab.models.logprobs import CHUNK_BYTES, KEEP_BYTES
from trimtab.plan.batches import Batches
from trimtab.plan.flops import Tree
from trimtab.plan.skeleton import Skeleton
from trimtab.plan.trace import Work, reading_work, training_work
from trimtab.rollout.steps import PROMPT_TOKENS

LIBRARIES = 420 * 10**6
"""Python, torch, transformers and PEFT themselves (measured: 411 MB resident, CPU build)."""
ROWS = 15 * 10**6
TOKEN = 1250
"""Bytes of rows and what a run holds beside tensors, and of a token of the tokenizer (measured:
15 MB with 290 tokens, 38 to 53 with 16,384, 75 with 49,152)."""
ALLOCATOR = 1.20
"""What the C allocator holds over what tensors need at the worst moment: freed blocks that fit no
later tensor. How much depends on the sizes' sequence, and no count foresees it: docs/plan.md has
the measured range, and the setting that takes it to 1."""
TIGHT = "MALLOC_MMAP_THRESHOLD_=1048576"
"""glibc then gives every block of a megabyte back when it is freed: ``Memory.tight``."""
OPTIMIZER_BYTES = {"adamw": 8, "rmsprop": 4, "sgd": 0}  # a trained weight


@dataclasses.dataclass(frozen=True)
class Models:
    """The models of a run; ``judges`` are reward models, ``reference`` a model of its own.

    ``whole`` is what a reward model is cut from, None where nothing is cut.
    """

    policy: Skeleton
    whole: Skeleton | None = None
    reference: Skeleton | None = None
    judges: tuple[Skeleton, ...] = ()
    critic: Skeleton | None = None


@dataclasses.dataclass(frozen=True)
class Memory:
    """``parts``: what stands all the time, by name; ``moments``: what each moment needs beside it.

    ``peak`` is the most of the process beyond its libraries; ``tight`` the same under ``TIGHT``.
    """

    parts: dict[str, int]
    moments: dict[str, dict[str, int]]
    peak: int
    tight: int

    @property
    def worst(self) -> str:
        """The moment that decides."""
        return max(self.moments, key=lambda name: sum(self.moments[name].values()))

    @property
    def total(self) -> int:
        """The whole process."""
        return self.peak + LIBRARIES


def needs_reference_model(recipe: Any, spec: LossSpec | None) -> bool:
    """Whether a reference stands in memory beside the policy (adapters are switched off instead).

    A named one does while its log-probs are computed, at least.
    """
    named = (
        recipe.ref_model_name_or_path is not None
        if hasattr(recipe, "ref_model_name_or_path")
        else False
    )
    if isinstance(recipe, OnPolicyRecipe):
        asked = not isinstance(recipe, GroupRecipe) or group_settings(recipe).kl_coef > 0
        return asked and (named or not recipe.use_peft)
    if spec is None:
        return False
    needs = spec.needs | spec.prepare_needs
    if not needs & ({"reference"} | NEEDS_LIVE):
        return False
    live = bool(needs & NEEDS_LIVE) or not recipe.precompute_ref_log_probs
    return named or (live and not recipe.use_peft)


def memory_of(recipe: Any, models: Models, batches: Batches) -> Memory:
    """The memory of a run."""
    parts = _standing(recipe, models)
    moments = {"training": _training(recipe, models, batches)}
    if isinstance(recipe, OnPolicyRecipe):
        moments["sampling"] = _sampling(recipe, models.policy, batches)
        readers = [*models.judges, *([models.critic] if models.critic else [])]
        for reader in readers[:1]:
            moments["judging"] = {"activations": reading_work(reader, batches.reading)}
    moments["reading"] = _reading(models.policy, batches.reading)
    # Between steps there are no gradients: a step of one micro-batch makes them as it goes back,
    # while what it kept for that goes away.
    gradients = parts.pop("gradients")
    needs = moments["training"]
    if batches.per_step > 1:
        needs["gradients"] = gradients
    elif gradients > needs["activations"] + needs.get("logits", 0):
        needs |= {"activations": 0, "logits": 0, "gradients": gradients}
    most = max(sum(needs.values()) for needs in moments.values())
    standing = sum(parts.values()) + ROWS + TOKEN * models.policy.vocabulary
    return Memory(parts, moments, standing + int(ALLOCATOR * most), standing + most)


def _standing(recipe: Any, models: Models) -> dict[str, int]:
    every, trained = models.policy.counts
    size = models.policy.dtype.itemsize
    parts = {"weights": every * size}
    if models.whole is not None:  # loaded first; the allocator keeps what is then dropped
        parts["cut away"] = max(0, models.whole.counts[0] - every) * size
    masters = trained * 4 if size < 4 else 0
    gradients, slots = trained * 4, trained * OPTIMIZER_BYTES[recipe.optim]
    if models.critic is not None:
        value, learnt = models.critic.counts
        parts["value model"] = value * models.critic.dtype.itemsize
        masters += learnt * 4 if models.critic.dtype.itemsize < 4 else 0
        gradients += learnt * 4
        slots += learnt * OPTIMIZER_BYTES[recipe.optim]
    if masters:
        parts["fp32 masters"] = masters
    parts["optimizer"] = slots
    parts["gradients"] = gradients
    if models.reference is not None:
        parts["reference"] = models.reference.counts[0] * models.reference.dtype.itemsize
    if models.judges:
        parts["reward models"] = sum(one.counts[0] * one.dtype.itemsize for one in models.judges)
    return parts


def _training(recipe: Any, models: Models, batches: Batches) -> dict[str, int]:
    """One micro-batch with its gradients."""
    policy = models.policy
    again = recipe.gradient_checkpointing
    body = training_work(policy, batches.largest, checkpointing=again)
    needs = {"activations": body.kept, "work": body.moment}
    if not policy.scores:
        kept, work = _logits(policy, sum(tree.targets for tree in batches.largest))
        needs["logits"] = kept
        needs["work"] = max(body.moment, work)
    if models.critic is not None:
        value: Work = training_work(models.critic, batches.largest, checkpointing=again)
        needs["activations"] += value.kept
    return needs


def _logits(skeleton: Skeleton, targets: int) -> tuple[int, int]:
    """What ``models/logprobs.py`` keeps of the logits, and needs at its worst moment."""
    size, vocabulary = skeleton.dtype.itemsize, skeleton.vocabulary
    rows = min(targets, max(1, CHUNK_BYTES // (vocabulary * 4)))
    chunk = rows * vocabulary * size
    if not skeleton.trains_head:
        return targets * skeleton.width * size, 2 * chunk
    of_head = vocabulary * skeleton.width * 4
    whole = targets * vocabulary * size
    if whole <= KEEP_BYTES:
        return whole, of_head + min(chunk, whole)
    return 0, 2 * chunk + of_head


def _reading(skeleton: Skeleton, trees: list[Tree]) -> dict[str, int]:
    """A pass without gradients, logits included."""
    needs = {"activations": reading_work(skeleton, trees)}
    if not skeleton.scores:
        targets = sum(tree.targets for tree in trees)
        rows = min(targets, max(1, CHUNK_BYTES // (skeleton.vocabulary * 4)))
        needs["logits"] = 2 * rows * skeleton.vocabulary * skeleton.dtype.itemsize
    return needs


def _sampling(recipe: Any, policy: Skeleton, batches: Batches) -> dict[str, int]:
    """Keys and values of running responses and their prompts, and the logits of a step."""
    config = policy.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 2 * policy.layers * heads * head * policy.dtype.itemsize
    prompts = max(batches.rows, key=lambda step: max(tree.trunk for tree in step))
    rows = min(recipe.rollout_slots, recipe.num_generations * len(prompts))
    used = min(len(prompts), -(-rows // recipe.num_generations) + 1)
    longest = max(tree.trunk for tree in prompts)
    cache = token * (rows * recipe.max_completion_length + used * longest)
    vocabulary = policy.vocabulary
    # A step's logits twice, and the head packed for its products.
    logits = 2 * rows * vocabulary * 4 + vocabulary * policy.width * policy.dtype.itemsize
    read = min(PROMPT_TOKENS, sum(tree.trunk for tree in prompts))
    reading = reading_work(policy, [Tree(max(1, read), (), 0)])
    return {"KV cache": cache, "logits": logits, "activations": reading}


def dtype_named(name: str) -> torch.dtype:
    """``fp32`` or ``bf16``."""
    return torch.float32 if name == "fp32" else torch.bfloat16


def has_critic(recipe: Any) -> bool:
    """Whether a recipe trains a value model of its own."""
    shared = recipe.use_peft or getattr(recipe, "value_model", None) == "shared"
    critic = isinstance(recipe, PpoRecipe) and recipe.objective == "clip_advantage"
    return critic and not shared
