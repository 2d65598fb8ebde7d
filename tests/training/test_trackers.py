"""report_to: TensorBoard for real, the others through packages that note what they are told."""

from __future__ import annotations

import json
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import RecipeError
from trimtab.training.trackers import (
    TRACKERS,
    RunInfo,
    build_trackers,
    check_report_to,
    rewrite_names,
)


def info(folder: Path, *, run_id: str = "abc", first_step: int = 0) -> RunInfo:
    return RunInfo(folder, "project", "dpo-x", run_id, {"beta": 0.1, "long": "x" * 900}, first_step)


def test_names_are_rewritten_as_the_hf_trainer_does() -> None:
    record = {"step": 3, "loss": 0.5, "rewards/chosen": 1, "eval_loss": 0.4, "text": "x", "n": None}
    assert rewrite_names(record) == {
        "train/loss": 0.5,
        "train/rewards/chosen": 1,
        "eval/loss": 0.4,
    }


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_named_with_its_extra(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(RecipeError) as error:
        build_trackers([name], info(tmp_path))
    assert str(error.value) == (
        f"report_to=['{name}']: the package {name} is not installed; pip install 'trimtab[{name}]'"
    )


def test_unknown_trackers_are_refused_with_a_suggestion() -> None:
    with pytest.raises(RecipeError, match=r"no tracker 'tensorbord'; did you mean 'tensorboard'"):
        check_report_to(["tensorbord"])
    with pytest.raises(RecipeError, match="choose from tensorboard, trackio, wandb, mlflow"):
        check_report_to(["zzz"])
    check_report_to([])


def test_a_tracker_that_cannot_start_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_module(monkeypatch, "wandb")

    def init(**_: Any) -> None:
        raise OSError("no account\nlog in with ...")

    fake.init = init
    with pytest.raises(RecipeError) as error:
        build_trackers(["wandb"], info(tmp_path))
    assert "wandb could not be started (no account)" in str(error.value)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- tensorboard


def read_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_tensorboard_for_real_with_a_kill_and_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    trackers = build_trackers(["tensorboard"], info(tmp_path))
    for step in (1, 2, 3):
        trackers.log(step, {"step": step, "loss": step / 2, "eval_loss": step / 4})
    # killed here, not closed; the checkpoint is of step 1
    with build_trackers(["tensorboard"], info(tmp_path, first_step=1)) as trackers:
        for step in (2, 3, 4):
            trackers.log(step, {"step": step, "loss": step / 2})
    assert read_tensorboard(tmp_path) == {
        "train/loss": [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)],
        "eval/loss": [(1, 0.25)],
    }


# ---------------------------------------------------------------- the others


def fake_module(monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
    module: Any = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    monkeypatch.setitem(sys.modules, name, module)
    return module


class Told:
    """What a fake package was told: calls by name, and logged (step, name, value)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.values: list[tuple[int, str, float]] = []
        module = fake_module(monkeypatch, name)
        run = types.SimpleNamespace(
            log=self.log, finish=self.end, info=types.SimpleNamespace(run_id="server-7")
        )

        def call(what: str) -> Any:
            return lambda *args, **how: (self.calls.append((what, {**how, "args": args})), run)[1]

        for what in ("init", "set_experiment", "start_run", "log_params"):
            setattr(module, what, call(what))
        module.log = self.log
        module.log_metrics = self.log
        module.finish = module.end_run = self.end

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.values += [(step, name, value) for name, value in numbers.items()]

    def end(self) -> None:
        self.calls.append(("end", {}))

    def called(self, what: str) -> list[dict[str, Any]]:
        return [how for name, how in self.calls if name == what]


@pytest.mark.parametrize("name", ["trackio", "wandb", "mlflow"])
def test_resumed_runs_hand_nothing_over_twice(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told(monkeypatch, name)
    trackers = build_trackers([name], info(tmp_path))
    for step in (1, 2):
        trackers.log(step, {"step": step, "loss": step / 2})
    trackers.log(2, {"eval_loss": 0.25})  # killed here; the checkpoint is of step 1
    with build_trackers([name], info(tmp_path, first_step=1)) as trackers:
        for step in (2, 3):
            trackers.log(step, {"step": step, "loss": step / 2, "grad_norm": 1.0})
            trackers.log(step, {"eval_loss": step / 8})
    assert told.values == [
        *((1, "train/loss", 0.5), (2, "train/loss", 1.0), (2, "eval/loss", 0.25)),
        (2, "train/grad_norm", 1.0),  # was not there at the first time: nothing is left out
        *((3, "train/loss", 1.5), (3, "train/grad_norm", 1.0), (3, "eval/loss", 0.375)),
    ]
    assert len(told.called("end")) == 1


@pytest.mark.parametrize("name", ["trackio", "wandb", "mlflow"])
def test_another_history_is_handed_over_anew(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told(monkeypatch, name)
    for run_id in ("one", "two"):
        with build_trackers([name], info(tmp_path, run_id=run_id)) as trackers:
            trackers.log(1, {"loss": 0.5})
    assert told.values == [(1, "train/loss", 0.5)] * 2


def test_wandb_and_trackio_are_told_which_run_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, key, value in (("wandb", "id", "abc"), ("trackio", "name", "dpo-x-abc")):
        told = Told(monkeypatch, name)
        for _ in range(2):
            build_trackers([name], info(tmp_path)).close()
        for how in told.called("init"):
            assert how[key] == value
            assert how["resume"] == "allow"
            assert how["config"]["beta"] == 0.1
            assert how["project"] == "project"


def test_mlflow_goes_on_in_its_own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(monkeypatch, "mlflow")
    for _ in range(2):
        build_trackers(["mlflow"], info(tmp_path)).close()
    first, second = told.called("start_run")
    assert first["run_name"] == "dpo-x"
    assert second["run_id"] == "server-7"
    [parameters] = told.called("log_params")
    assert parameters["args"][0] == {"beta": "0.1", "long": "x" * 500}


def test_a_tracker_that_fails_is_dropped_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told(monkeypatch, "trackio")
    broken = Told(monkeypatch, "wandb")

    def fail(numbers: dict[str, float], step: int) -> None:
        raise ConnectionError("server gone\nmore")

    broken.log = fail  # type: ignore[method-assign]
    sys.modules["wandb"].init = lambda **_: types.SimpleNamespace(log=fail)  # type: ignore[attr-defined]
    notes: list[str] = []
    with build_trackers(["wandb", "trackio"], info(tmp_path), notes.append) as trackers:
        trackers.log(1, {"loss": 0.5})
        trackers.log(2, {"loss": 0.25})
    assert [step for step, _, _ in told.values] == [1, 2]
    assert len(notes) == 1
    assert notes[0].startswith("report_to: wandb failed (server gone); the run goes on")


def test_marks_survive_a_broken_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(monkeypatch, "trackio")
    (tmp_path / "trackers.json").write_text("{")
    with build_trackers(["trackio"], info(tmp_path)) as trackers:
        trackers.log(1, {"loss": 0.5})
    assert told.values == [(1, "train/loss", 0.5)]
    marks = json.loads((tmp_path / "trackers.json").read_text())
    assert marks == {"trackio": {"run_id": "abc", "step": 1, "names": ["train/loss"]}}
