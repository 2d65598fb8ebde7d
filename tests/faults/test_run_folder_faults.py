"""Killed at any operation of opening a run folder, the same command opens it; nothing is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trimtab.errors import TrimtabError
from trimtab.training import environment, files
from trimtab.training.checkpoint import CheckpointStore
from trimtab.training.metrics import MetricsLog
from trimtab.training.run_folder import RunFolder

from .crash import Fail, Kill, die_at, needs_fork, quiet_fork

pytestmark = [needs_fork, quiet_fork]

OLD = "learning_rate: 1.0\n"
NEW = "learning_rate: 2.0\n"
WEIGHTS = {step: {"masters": {"w": torch.full((2,), float(step))}} for step in range(50)}


def open_run(path: Path, recipe: str, **how: object) -> RunFolder:
    return RunFolder.open(path, resolved_yaml=recipe, command=["trimtab"], **how)  # type: ignore[arg-type]


def build(root: Path) -> None:
    """root/x: an unfinished run with steps 10, 20, 30; root/y: one with step 5."""
    for name, steps in (("x", (10, 20, 30)), ("y", (5,))):
        with open_run(root / name, OLD) as run:
            for step in steps:
                CheckpointStore(run.path).save(step, state={}, tensors=WEIGHTS[step])
            with MetricsLog(run.path / "metrics.jsonl") as log:
                log.append({"step": 1})
            (run.path / "notes.txt").write_text("mine")
            run.mark("interrupted")


def contents(root: Path) -> set[tuple[str, str]]:
    """What must not be lost: name and hash of every checkpoint file, log and note."""
    return {
        (path.name, files.measure_file(path).sha256)
        for path in files.files_below(root)
        if "checkpoint-" in str(path) or path.name in ("metrics.jsonl", "notes.txt")
    }


@pytest.fixture(autouse=True)
def no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes a trial, for nothing."""
    monkeypatch.setattr(environment, "_git_commit", lambda: None)


Opening = Callable[[Path], RunFolder]
OPENINGS: dict[str, tuple[Opening, str, int | None]] = {  # how, decision, step it begins from
    "fresh": (lambda root: open_run(root / "new", NEW), "fresh", None),
    "continue": (lambda root: open_run(root / "x", OLD), "continue", 30),
    "restart": (lambda root: open_run(root / "x", NEW, restart=True), "fresh", None),
    "resume": (
        lambda root: open_run(root / "x", NEW, resume=root / "x" / "checkpoint-10"),
        "resume",
        10,
    ),
    "resume_elsewhere": (
        lambda root: open_run(root / "x", NEW, resume=root / "y" / "checkpoint-5"),
        "resume",
        5,
    ),
}


@pytest.mark.parametrize("kind", ["kill", "error", pytest.param("half", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [
        "fresh",
        "restart",
        "resume",
        pytest.param("continue", marks=pytest.mark.slow),
        pytest.param("resume_elsewhere", marks=pytest.mark.slow),
    ],
)
def test_opening_disturbed_at_every_operation(ramdisk: Path, name: str, kind: str) -> None:
    opening, decision, step = OPENINGS[name]
    build(ramdisk / "base")
    kept = contents(ramdisk / "base")
    root = ramdisk / "root"
    for at in range(1, 500):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(ramdisk / "base", root)
        if kind == "error":
            fail = Fail(at)
            try:
                with files.hooked(fail):
                    opening(root).close()
            except TrimtabError as error:
                assert "\n" not in str(error)
            done = fail.count < at
        else:
            done = not die_at(Kill(at, root, half=kind == "half"), lambda: opening(root).close())
        with opening(root) as run:
            assert run.decision in (decision, "continue")
            start = run.starting_point(CheckpointStore(run.path))
            assert (start.checkpoint and start.checkpoint.step) == step
            record = json.loads((run.path / "run.json").read_text())
            asides = [path.name for path in sorted(run.path.glob("old-*"))]
            if name == "restart":  # a second --restart sets even the first one's new run aside
                assert asides[0] == "old-1"
            else:
                assert asides == (["old-1"] if name.startswith("resume") else [])
            assert record["recipe"] == (run.path / "config.resolved.yaml").read_text()
            run.finish({"loss": 1.0})
        assert contents(root) >= kept, at
        if done:
            assert at > 10
            return
    raise AssertionError("never done")


def test_placing_killed_at_every_operation(ramdisk: Path) -> None:
    def writer(text: str) -> Callable[[Path], None]:
        def write(folder: Path) -> None:
            for name in ("config.json", "model.safetensors"):
                (folder / name).write_text(text * 100)

        return write

    with open_run(ramdisk / "base", OLD) as run:
        run.place(writer("old"))
    root = ramdisk / "root"
    for at in range(1, 100):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(ramdisk / "base", root)

        def work() -> None:
            with open_run(root, OLD) as run:
                run.place(writer("new"))

        killed = die_at(Kill(at, root), work)
        for name in ("config.json", "model.safetensors"):
            assert (root / name).read_text() in ("old" * 100, "new" * 100)
        with open_run(root, OLD) as run:
            run.starting_point(CheckpointStore(root))
            run.place(writer("new"))
            assert not list(root.glob(".tmp-*"))
        if not killed:
            return
    raise AssertionError("never done")
