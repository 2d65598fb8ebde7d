"""Ensembles of reward models: the same recipe under several seeds, and a manifest over them.

    output_dir/ensemble.json    {"kind": "reward_ensemble", "members": ["member-1", ...], ...}
    output_dir/member-1/ ...    each one a run folder, and so a model folder

A member is a run like any other: one that was killed goes on, one that is finished is left alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trimtab.config.resolved import Resolved, difference
from trimtab.errors import RecipeError, UsageError
from trimtab.models.hub import read_json
from trimtab.rewards.manifest import KIND, MANIFEST
from trimtab.training import files
from trimtab.training.run_folder import finished_recipe


def member_recipe(resolved: Resolved, number: int) -> Resolved:
    """The recipe of one member, counted from 0: a folder and a seed of its own."""
    recipe: Any = resolved.recipe
    folder = Path(recipe.output_dir) / f"member-{number + 1}"
    own = recipe.model_copy(
        update={"output_dir": str(folder), "seed": recipe.seed + number, "ensemble": 1}
    )
    return dataclasses.replace(resolved, recipe=own)


def train_ensemble(resolved: Resolved, train: Callable[[Resolved], Any]) -> tuple[bool, list[Any]]:
    """Train every member that is not finished yet; whether all are, and their results."""
    recipe: Any = resolved.recipe
    folder = Path(recipe.output_dir)
    if (folder / MANIFEST).is_file() and not resolved.control.restart:
        raise UsageError(
            f"output_dir={folder}: holds a finished ensemble; give another --output-dir, or "
            "--restart (its files are set aside)"
        )
    results: list[Any] = []
    for number in range(recipe.ensemble):
        member = member_recipe(resolved, number)
        path = Path(str(member.recipe.output_dir))
        old = None if resolved.control.restart else finished_recipe(path)
        if old is not None:
            _require_same(path, difference(old, member))
            results.append(read_json(path / "all_results.json"))
            continue
        result = train(member)
        if result.interrupted:
            return False, results
        results.append(result.results)
    write_manifest(folder, [f"member-{n + 1}" for n in range(recipe.ensemble)], results)
    return True, results


def write_manifest(folder: Path, names: Sequence[str], results: Sequence[Any]) -> None:
    """The manifest, with the members' held-out accuracies where they have some."""
    content = {
        "kind": KIND,
        "members": list(names),
        "eval_accuracy": [r.get("eval_accuracy") for r in results],
    }
    files.write_atomic(folder / MANIFEST, (json.dumps(content, indent=1) + "\n").encode())


def _require_same(path: Path, differences: Sequence[str]) -> None:
    if differences:
        raise RecipeError(
            f"output_dir={path}: this member is finished and was trained by another recipe ("
            + "; ".join(differences)
            + "); give another --output-dir, or --restart"
        )
