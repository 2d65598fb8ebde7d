"""Runs that failed and go on, with the same recipe or another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests import tiny_runs
from tests.algorithms.stage_world import Run, World

import trimtab
from trimtab.algorithms import run as run_module
from trimtab.errors import DataError, RecipeError


class Broken(Exception):
    pass


def broken_run(world: World, monkeypatch: pytest.MonkeyPatch, **keys: Any) -> dict[str, Any]:
    """The keys of a run of four steps that failed in its third, with a checkpoint of step 2."""
    found = world.keys("pairs", **{"max_steps": 4, "save_steps": 2, **keys})
    log = run_module._Hooks.log

    def failing(self: Any, step: int, record: dict[str, Any]) -> None:
        if step == 3:
            raise Broken
        log(self, step, record)

    with monkeypatch.context() as patch:
        patch.setattr(run_module._Hooks, "log", failing)
        with pytest.raises(Broken):
            trimtab.dpo(**found)
    assert (Path(found["output_dir"]) / "checkpoint-2").is_dir()
    return found


def test_a_failed_run_goes_on_and_refuses_other_rows(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny_runs.write_rows(world.root / "changing.jsonl", tiny_runs.pairs(12))
    keys = broken_run(world, monkeypatch, dataset_name=str(data))
    tiny_runs.write_rows(data, tiny_runs.pairs(12, 8))
    message = r"checkpoint-2: the training rows have changed since this run began .* --restart"
    with pytest.raises(DataError, match=message):
        trimtab.dpo(**keys)
    tiny_runs.write_rows(data, tiny_runs.pairs(12))
    run = Run(trimtab.dpo(**keys))
    calm = world.run("dpo", "pairs", max_steps=4)
    assert run.trained == calm.trained and run.evaluated == calm.evaluated


def test_resume_with_another_recipe(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = broken_run(world, monkeypatch)
    resume = {"resume": str(Path(keys["output_dir"]) / "checkpoint-2")}

    def again(**changes: Any) -> Run:
        return world.run("dpo", "pairs", **{"max_steps": 4, **resume, **changes})

    calm = world.run("dpo", "pairs", max_steps=4)
    assert again().trained == calm.trained[2:], "in a folder of its own: the same steps"
    other = again(learning_rate=1e-4, loss="simpo", precision="bf16")
    assert [record["step"] for record in other.trained] == [3, 4]
    assert other.trained[0]["learning_rate"] == 1e-4
    assert "bf16" in (other.folder / "README.md").read_text(), "the recipe's, not the checkpoint's"
    for changes, message in (
        (
            {"use_peft": True},
            r"^resume=.* is not trained there and .*; go on with the model and the use_peft",
        ),
        (
            {"model_name_or_path": str(bigger(world))},
            r"^resume=.*\(290, 32\) there and \(\d+, 16\)",
        ),
        ({"optim": "sgd"}, r"^optim=sgd: .* holds the state of adamw"),
        ({"max_steps": 2}, r"^resume=.*is at step 2, and the recipe ends after 2; raise max_steps"),
    ):
        with pytest.raises(RecipeError, match=message):
            again(**changes)


def bigger(world: World) -> Path:
    """A model of another width."""
    return tiny_runs.save_tiny_model(world.root / "wide", width=16)
