"""One cell of a comparison: train what is not trained, examine what is not examined.

What was found is a file each, written at once, so that a cell that was killed goes on: training
from its last checkpoint, examination with the first one that has no file.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.comparison.cells import Cell, Plan
from trimtab.comparison.examine import Examiner, Found
from trimtab.training import files
from trimtab.training.metrics import read_metrics
from trimtab.training.run_folder import finished_recipe


def missing(plan: Plan, cell: Cell) -> list[int]:
    """The steps (or counts) of a cell that were not examined yet."""
    if cell.kind == "pilot":
        return [] if plan.place(cell.key).exists() else [0]
    return [at for at, key in cell.examined.items() if not plan.place(key).exists()]


def read(plan: Plan, cell: Cell, at: int) -> dict[str, Any]:
    """What an examination found."""
    return json.loads(plan.place(cell.examined[at]).read_text(encoding="utf-8"))


def do(plan: Plan, cell: Cell, examiner: Examiner) -> None:
    """Everything that is missing of a cell; KeyboardInterrupt after Ctrl-C, with all saved."""
    todo = missing(plan, cell)
    if not todo:
        return
    if cell.kind == "base":
        found = {0: examiner.of_model(None, cell.seed, cell.proxy)}
    elif cell.kind == "best_of_n":
        began = time.perf_counter()
        found = examiner.best_of(list(cell.examined), cell.seed, cell.proxy)
        spent = (time.perf_counter() - began) / sum(cell.examined)
        for n, one in found.items():
            one["spent"] = {"seconds": spent * n, "tokens": 0}
    elif cell.kind == "pilot":
        folder = plan.run_folder(cell)
        _train(cell, folder)
        _keep(plan, cell, cell.key, 0, {"rate": _rate(folder)})
        files.remove_tree(folder)
        return
    else:
        _run(plan, cell, examiner, todo)
        return
    for at in todo:
        _keep(plan, cell, cell.examined[at], at, found[at])


def _keep(plan: Plan, cell: Cell, key: str, at: int, found: Mapping[str, Any]) -> None:
    record = {
        "key": key,
        "method": cell.method,
        "settings": dict(cell.settings),
        "seed": cell.seed,
        "at": at,
        "of": cell.identity,
        "examination": plan.examination,
        **found,
    }
    place = plan.place(key)
    files.make_folder(place.parent)
    files.write_atomic(place, (json.dumps(record) + "\n").encode())


# ---------------------------------------------------------------------- training runs


def _run(plan: Plan, cell: Cell, examiner: Examiner, todo: list[int]) -> None:
    folder = plan.run_folder(cell)
    last = max(cell.examined)
    where = {at: folder if at == last else folder / f"checkpoint-{at}" for at in cell.examined}
    finished = finished_recipe(folder) is not None
    if finished and not all(where[at].is_dir() for at in todo):
        # It ended in an earlier comparison, whose checkpoints are gone or were others.
        files.remove_tree(folder)
        finished = False
    if not finished:
        _train(cell, folder)
    spent = _spent(folder, list(cell.examined))
    for at in todo:
        found: Found = examiner.of_model(str(where[at]), cell.seed, cell.proxy)
        _keep(plan, cell, cell.examined[at], at, {**found, "spent": spent[at]})
    if not plan.recipe.keep_checkpoints:
        for checkpoint in folder.glob("checkpoint-*"):
            files.remove_tree(checkpoint)
        for name in ("rollouts", "completions"):
            files.remove_tree(folder / name)


def _train(cell: Cell, folder: Path) -> None:
    from trimtab.algorithms.run import train

    assert cell.resolved is not None
    recipe = cell.resolved.recipe.model_copy(update={"output_dir": str(folder)})
    resolved = dataclasses.replace(cell.resolved, recipe=recipe)
    result = train(resolved, command=["trimtab", "compare", f"# {cell.says}"])
    if result.interrupted:
        raise KeyboardInterrupt


def _records(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run's steps; of an ended rollout the step is the last one."""
    return [one for one in read_metrics(folder / "metrics.jsonl") if "num_tokens" in one]


def _spent(folder: Path, steps: list[int]) -> dict[int, dict[str, float]]:
    """Seconds of training and sampling, and tokens through the optimizer, up to each step."""
    seconds, before, clock, tokens = 0.0, 0, {0: 0.0}, {0: 0}
    for record in _records(folder):
        speed = record["time/tokens_per_second"]
        seconds += (record["num_tokens"] - before) / speed if speed else 0.0
        before = record["num_tokens"]
        clock[record["step"]], tokens[record["step"]] = seconds, before
    return {
        step: {
            "seconds": clock[max(at for at in clock if at <= step)],
            "tokens": tokens[max(at for at in tokens if at <= step)],
        }
        for step in steps
    }


def _rate(folder: Path) -> dict[str, float]:
    """Tokens and seconds of a step, of a run that was made to tell."""
    last = _records(folder)[-1]["step"]
    spent = _spent(folder, [last])[last]
    return {name: value / last for name, value in spent.items()}
