"""From a resolved recipe to its plan: models, batches, memory, time, and whether it fits."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from trimtab.algorithms.recipe_loss import recipe_loss
from trimtab.algorithms.recipe_model import choose_device
from trimtab.config.on_policy_recipe import OnPolicyRecipe
from trimtab.config.recipes import LossKeys, PretrainRecipe
from trimtab.config.resolved import Resolved
from trimtab.config.reward_recipe import RewardRecipe
from trimtab.errors import RecipeError
from trimtab.machine.memory import memory as machine_memory
from trimtab.models import cut
from trimtab.models.hub import quiet
from trimtab.plan.batches import Batches, batched, batches_of
from trimtab.plan.memory import (
    LIBRARIES,
    TIGHT,
    Memory,
    Models,
    dtype_named,
    has_critic,
    memory_of,
    needs_reference_model,
)
from trimtab.plan.shapes import Shape, find_shape, with_layers
from trimtab.plan.skeleton import Skeleton, skeleton_of
from trimtab.plan.time import WIDEST, Duration, duration_of
from trimtab.training.precision import choose_precision


class Remedy(NamedTuple):
    """A change of the recipe, and the memory of the whole process with it."""

    change: str
    total: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """``room`` is what the machine has free, None where it does not say; all in bytes."""

    verb: str
    model: str
    weights: int
    trained: int
    precision: str
    memory: Memory
    batches: Batches
    duration: Duration
    room: int | None
    notes: list[str]
    remedies: list[Remedy]

    @property
    def fits(self) -> bool | None:
        """Whether the run has room here."""
        return None if self.room is None else self.memory.total <= self.room


def plan(resolved: Resolved, tell: Callable[[str], None] = lambda _: None) -> Plan:
    """The plan of a recipe; ``tell`` is told what is being done.

    RecipeError where a model's shape cannot be found.
    """
    quiet()
    recipe: Any = resolved.recipe
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    notes: list[str] = []
    shape = _shape(resolved)
    spec = recipe_loss(recipe.loss).spec if issubclass(type(recipe), LossKeys) else None
    config = shape.config if shape is not None else _new_config(recipe)
    device = choose_device(recipe.device)
    width = config.get_text_config(decoder=True).hidden_size
    chosen = choose_precision(recipe.precision, device, min(width, WIDEST))
    policy = skeleton_of(recipe, config, dtype_named(chosen.name))
    models = _models(recipe, config, policy, spec, notes)
    tell("reading the rows")
    batches = batches_of(resolved, shape, spec)
    tell("counting memory")
    found = memory_of(recipe, models, batches)
    every, trained = policy.counts
    if device.type != "cpu":
        notes.append(f"the memory is counted as on a CPU; the run would be on {device.type}")
    room = _room(device)
    remedies: list[Remedy] = []
    if room is not None and found.total > room:
        remedies = _remedies(recipe, config, policy, spec, batches, room, found.total)
        if sys.platform == "linux" and device.type == "cpu":
            tight = found.tight + LIBRARIES
            remedies.append(Remedy(f"{TIGHT} in the environment (slower)", tight))
    tell("trying the recipe's work on random weights, up to 40 s")
    duration = duration_of(recipe, models, batches, device, room)
    return Plan(
        verb=resolved.verb,
        model="a new model" if shape is None else f"{shape.name} ({shape.where})",
        weights=every,
        trained=trained,
        precision=f"{chosen.name} ({chosen.reason})",
        memory=found,
        batches=batches,
        duration=duration,
        room=room,
        notes=notes,
        remedies=remedies,
    )


def _remedies(
    recipe: Any,
    config: Any,
    policy: Skeleton,
    spec: Any,
    batches: Batches,
    room: int,
    now: int,
) -> list[Remedy]:
    """What would need less: each change alone, the most helpful first, and then all together."""
    changes: dict[str, Any] = {}
    if policy.dtype == torch.float32:
        changes["precision"] = "bf16"
    if not recipe.use_peft and recipe.model_name_or_path is not None:
        changes["use_peft"] = True
    if not recipe.gradient_checkpointing:
        changes["gradient_checkpointing"] = True
    if len(batches.largest) > 1:
        changes["token_budget"] = max(16, recipe.token_budget // 4)

    def total(wanted: dict[str, Any]) -> int:
        changed = recipe.model_copy(update=wanted)
        name = "bf16" if wanted.get("precision") else "fp32"
        dtype = policy.dtype if "precision" not in wanted else dtype_named(name)
        models = _models(changed, config, skeleton_of(changed, config, dtype), spec, [])
        cut_anew = batched(changed, batches.steps, batches.rows, batches.source, batches.longest)
        return memory_of(changed, models, cut_anew).total

    found: list[Remedy] = []
    for name, value in list(changes.items()):
        needs = total({name: value})
        if needs < now:
            found.append(Remedy(_told({name: value}), needs))
        else:  # such as running one of two layers again
            del changes[name]
    found.sort(key=lambda one: one.total)
    if len(changes) > 1 and all(one.total > room for one in found):
        found.append(Remedy(_told(changes), total(changes)))
    return found


def _told(changes: dict[str, Any]) -> str:
    return " ".join(f"{name}={str(value).lower()}" for name, value in changes.items())


def _shape(resolved: Resolved) -> Shape | None:
    recipe, key = resolved.recipe, "model_name_or_path"
    if recipe.model_name_or_path is None:
        return None
    try:
        return find_shape(recipe.model_name_or_path, revision=recipe.model_revision, key=key)
    except RecipeError as error:
        raise resolved.placed(error, key) from None


def _new_config(recipe: PretrainRecipe) -> Any:
    """The configuration of a fresh model."""
    from transformers import AutoConfig

    from trimtab.models.build import ARCHITECTURES

    assert recipe.new_model is not None, "a recipe without a model is refused"
    if recipe.new_tokenizer is not None:
        vocabulary = recipe.new_tokenizer.vocab_size
    else:
        from trimtab.models.load import load_tokenizer

        assert recipe.tokenizer_name_or_path is not None, "refused when it was read"
        vocabulary = len(load_tokenizer(recipe.tokenizer_name_or_path))  # type: ignore[arg-type]
    spec = recipe.new_model
    settings = spec.config(recipe.context_length + 1)
    return AutoConfig.for_model(ARCHITECTURES[spec.architecture], **settings, vocab_size=vocabulary)


def _models(recipe: Any, config: Any, policy: Skeleton, spec: Any, notes: list[str]) -> Models:
    frozen = dataclasses.replace(policy, lora=None, trained=False)
    reference = None
    if needs_reference_model(recipe, spec):
        name = getattr(recipe, "ref_model_name_or_path", None)
        config = policy.config
        if name is not None:
            config = find_shape(name, key="ref_model_name_or_path").config
        reference = dataclasses.replace(frozen, config=config)
    judges: list[Skeleton] = []
    if issubclass(type(recipe), OnPolicyRecipe):
        for key in ("reward_model", "watch_model"):
            if (path := getattr(recipe, key)) is not None:
                judges += _judges(path, key, policy, notes)
    critic = None
    if has_critic(recipe):
        start = judges[0] if judges and recipe.value_model is None else frozen
        if recipe.value_model is not None:
            config = find_shape(recipe.value_model, key="value_model").config
            start = dataclasses.replace(frozen, config=config)
        critic = dataclasses.replace(start, dtype=policy.dtype, scores=1, trained=True)
    whole = Skeleton(config, policy.dtype) if isinstance(recipe, RewardRecipe) else None
    return Models(policy, whole, reference, tuple(judges), critic)


def _judges(path: str, key: str, policy: Skeleton, notes: list[str]) -> list[Skeleton]:
    """Reward models; one that is not there yet is taken to be half of the policy, in fp32."""
    from trimtab.rewards.manifest import model_folders

    if not Path(path).expanduser().exists() and not _is_hub_id(path):
        depth, _ = cut.fit(Skeleton(policy.config, torch.float32).model(), 0.5)
        notes.append(f"{key}={path} is not there yet: counted as half of the policy, in fp32")
        config = with_layers(policy.config, depth)
        return [Skeleton(config, torch.float32, scores=1, trained=False)]
    found: list[Skeleton] = []
    for name in model_folders(path, key):
        shape = find_shape(str(name), key=key)
        dtype = getattr(shape.config, "dtype", None) or torch.float32
        found.append(Skeleton(shape.config, dtype, scores=1, trained=False))
    return found


def _is_hub_id(path: str) -> bool:
    """``owner/name``; a path of a run has more parts, or begins with runs."""
    return path.count("/") == 1 and not path.startswith(("runs/", ".", "/"))


def _room(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = machine_memory()
    return found.available if found.available is not None else found.total


def as_json(made: Plan) -> str:
    """The plan for programs."""
    record = {
        "verb": made.verb,
        "model": made.model,
        "weights": made.weights,
        "trained": made.trained,
        "precision": made.precision,
        "memory": {
            "parts": made.memory.parts,
            "moments": made.memory.moments,
            "worst": made.memory.worst,
            "peak": made.memory.peak,
            "tight": made.memory.tight,
            "total": made.memory.total,
        },
        "steps": made.batches.steps,
        "time": dataclasses.asdict(made.duration),
        "room": made.room,
        "fits": made.fits,
        "batches": made.batches.source,
        "notes": made.notes,
        "remedies": [one._asdict() for one in made.remedies],
    }
    return json.dumps(record, ensure_ascii=False)
