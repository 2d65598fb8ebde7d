"""Going on from a checkpoint: what it and the recipe must have in common, and what they need not.

The same command on an unfinished folder goes on with the same recipe; then the rows and the
tokenizer must be the same ones, too, or it would be another run under the old one's name. With
``--resume PATH`` the recipe may be another one, as long as the trained weights and the optimizer
are of the same kind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trimtab.algorithms.build import Built
from trimtab.config.recipes import LossKeys
from trimtab.config.resolved import Resolved
from trimtab.data.chat_tokens import fingerprint_tokenizer
from trimtab.errors import CheckpointError, DataError, RecipeError
from trimtab.models.score_head import head_of
from trimtab.training.checkpoint import Checkpoint, open_checkpoint
from trimtab.training.loop import Loop

REFERENCE = "reference"  # weights of a reference that changes: ``Stage.tensors``


def memory(resolved: Resolved, built: Built) -> dict[str, Any]:
    """What a checkpoint remembers of its run, beside the loop's own state; plain JSON."""
    recipe = resolved.recipe
    loss = recipe.loss.name if isinstance(recipe, LossKeys) else resolved.verb
    inputs = {f"{rows.role} rows": rows.loaded.fingerprint for rows in built.rows}
    for rows in built.rows:
        trees = [store.fingerprint() for store in rows.stores]
        inputs[f"{rows.role} trees"] = hashlib.sha256(":".join(trees).encode()).hexdigest()
    inputs |= built.identities
    return {
        "precision": built.precision.name,
        "optimizer": recipe.optim,
        "objective": loss,
        "reference": getattr(recipe, "ref_model_name_or_path", None),
        "classes": _classes(built),
        "inputs": {**inputs, "tokenizer": fingerprint_tokenizer(built.tokenizer)},
    }


def _classes(built: Built) -> list[str]:
    """A classifier's, in the order of their numbers."""
    head = head_of(built.stage.policy.model)
    return [] if head is None else [str(label) for label in head.labels]


def restore(
    loop: Loop,
    checkpoint: Checkpoint,
    resolved: Resolved,
    built: Built,
    note: Callable[[str], None],
    *,
    same_run: bool,
) -> None:
    """Put the checkpoint's state into the loop.

    ``same_run``: it is this run's own. Raises DataError or RecipeError, naming what does not fit.
    """
    state, now = checkpoint.state, memory(resolved, built)
    tensors = {stem: checkpoint.tensors(stem) for stem in ("masters", "optimizer")}
    if same_run:
        _same_inputs(checkpoint, state["inputs"], now["inputs"])
    _same_weights(loop, checkpoint, tensors["masters"])
    if state["optimizer"] != now["optimizer"]:
        raise RecipeError(
            f"optim={now['optimizer']}: {checkpoint.path} holds the state of {state['optimizer']}; "
            f"go on with that one, or begin a new run with --model-name-or-path {checkpoint.path}"
        )
    step, total = state["run"]["step"], loop.algorithm.total_steps
    if step >= total and not same_run:
        raise RecipeError(
            f"resume={checkpoint.path}: is at step {step}, and the recipe ends after {total}; "
            "raise max_steps (num_train_epochs)"
        )
    if state.get("classes", []) != now["classes"]:
        raise RecipeError(
            f"resume={checkpoint.path}: its classes are {', '.join(state.get('classes', []))}, and "
            f"here they are {', '.join(now['classes'])}; name them in its order with labels"
        )
    same_objective = state["objective"] == now["objective"]
    if not same_objective:
        # Running statistics of one loss mean nothing to another.
        state = {**state, "algorithm": loop.algorithm.state_dict()}
        note(f"{checkpoint.path} was trained with {state['objective']}; its statistics start anew")
    if not same_run:  # another recipe may mean something else by the best, and where to stop
        state = {**state, "run": {**state["run"], "begun": False, "stopped": None}, "best": {}}
    loop.restore(state, tensors)
    if f"{REFERENCE}.safetensors" not in checkpoint.manifest.entries or not same_objective:
        return
    if state.get("reference", now["reference"]) == now["reference"]:
        built.stage.load_tensors(checkpoint.tensors(REFERENCE))
        return
    built.stage.forget_tensors()
    note(f"{checkpoint.path} has a later reference; here it is ref_model_name_or_path, as named")


def take_best(loop: Loop, folder: Path, note: Callable[[str], None]) -> None:
    """Put the weights of the run's best checkpoint into the model, where it is not the last one.

    Raises CheckpointError where that checkpoint is gone or damaged.
    """
    step = loop.best.step
    if step is None or step == loop.state.step:
        return
    path = folder / f"checkpoint-{step}"
    try:
        checkpoint = open_checkpoint(path)
    except CheckpointError as error:
        why = str(error).removeprefix(f"resume={path}: ")
        raise CheckpointError(
            f"{path}: the best checkpoint cannot be read ({why}); put it back and run the same "
            "command again, or go on from another one with --resume PATH "
            "--no-load-best-model-at-end"
        ) from None
    loop.masters.load(checkpoint.tensors("masters"))
    note(f"the model is that of step {step}, the best one")


def _same_inputs(checkpoint: Checkpoint, then: dict[str, str], now: dict[str, str]) -> None:
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name):
            raise DataError(
                f"{checkpoint.path}: the {name} have changed since this run began ("
                f"{(then.get(name) or 'none')[:12]} then, {(now.get(name) or 'none')[:12]} now); "
                "put them back, or start over with --restart"
            )


def _same_weights(loop: Loop, checkpoint: Checkpoint, masters: dict[str, Any]) -> None:
    wanted = {name: tuple(master.shape) for name, master in loop.masters}
    found = {name: tuple(tensor.shape) for name, tensor in masters.items()}
    for name in sorted(wanted.keys() | found.keys()):
        there, here = found.get(name), wanted.get(name)
        if there != here:
            raise RecipeError(
                f"resume={checkpoint.path}: {name} is {there or 'not trained'} there and "
                f"{here or 'not trained'} here; go on with the model and the use_peft and lora_* "
                "keys it was made with"
            )
