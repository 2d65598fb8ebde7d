"""What a command does in a folder: fresh, on, from a checkpoint, refused; nothing is ever lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import trimtab
from trimtab.errors import RecipeError, UsageError
from trimtab.training import lock
from trimtab.training.checkpoint import CheckpointStore
from trimtab.training.metrics import MetricsLog
from trimtab.training.run_folder import RunFolder, yaml_difference

RECIPE = "verb: dpo\nlearning_rate: 1.0e-06\nloss:\n  beta: 0.1\n"
OTHER = "verb: dpo\nlearning_rate: 1.0e-06\nloss:\n  beta: 0.5\n"
COMMAND = ["trimtab", "dpo", "my recipe.yaml", "--loss.beta", "0.1"]


def open_run(
    path: Path, recipe: str = RECIPE, *, restart: bool = False, resume: Path | None = None
) -> RunFolder:
    return RunFolder.open(
        path, resolved_yaml=recipe, command=COMMAND, restart=restart, resume=resume
    )


def checkpoint(path: Path, *steps: int, mark: str = "") -> None:
    store = CheckpointStore(path)
    for step in steps:
        tensors = {"masters": {"w": torch.full((2,), float(step))}}
        store.save(step, state={"step": step, "mark": mark}, tensors=tensors)


def unfinished(path: Path, *steps: int, recipe: str = RECIPE) -> Path:
    """A run that was killed after its checkpoints, with a file that is the user's."""
    with open_run(path, recipe) as run:
        checkpoint(path, *steps)
        with MetricsLog(path / "metrics.jsonl") as log:
            log.append({"step": 1})
        (path / "model.safetensors").write_text("weights")
        (path / "notes.txt").write_text("mine")
        run.mark("interrupted")
    return path


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def one_line(error: pytest.ExceptionInfo[UsageError]) -> str:
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2
    return str(error.value)


# ---------------------------------------------------------------- fresh


def test_a_fresh_run_records_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "x"
    with open_run(path) as run:
        assert (run.decision, run.notes) == ("fresh", [])
        assert run.starting_point(CheckpointStore(path)) == (None, True)
        assert json.loads((path / "run.json").read_text())["state"] == "running"
        assert (path / "config.resolved.yaml").read_text() == RECIPE
        command = (path / "command.txt").read_text()
        assert command == "trimtab dpo 'my recipe.yaml' --loss.beta 0.1\n"
        environment = json.loads((path / "environment.json").read_text())
        assert environment["packages"]["torch"].startswith(torch.__version__.partition("+")[0])
        assert environment["threads"] == torch.get_num_threads()
        run.finish({"loss": 0.5, "eval_loss": 0.6})
    record = json.loads((path / "run.json").read_text())
    assert record["state"] == "finished"
    assert json.loads((path / "all_results.json").read_text()) == {"loss": 0.5, "eval_loss": 0.6}
    assert json.loads((path / "eval_results.json").read_text()) == {"eval_loss": 0.6}
    assert lock.NAME not in names(path)


def test_an_empty_folder_and_what_a_kill_left_at_once_are_fresh(tmp_path: Path) -> None:
    for name in (".lock", ".tmp-run.json-0123abcd", ".DS_Store"):
        (tmp_path / name).write_text("")
    with open_run(tmp_path) as run:
        assert run.decision == "fresh"


def test_what_kills_left_is_cleared_where_a_run_writes_and_nowhere_else(tmp_path: Path) -> None:
    path = unfinished(tmp_path / "x", 1)
    for folder in ("", "completions", "samples", "rollouts", "mine"):
        (path / folder).mkdir(exist_ok=True)
        (path / folder / ".tmp-part-0123abcd").write_text("half")
        (path / folder / "kept").write_text("whole")
    with open_run(path) as run:
        run.starting_point(CheckpointStore(path))
    assert [str(one.relative_to(path)) for one in path.rglob(".tmp-*")] == [
        "mine/.tmp-part-0123abcd"
    ]
    assert len(list(path.rglob("kept"))) == 5


def test_a_folder_of_something_else_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / "checkpoint-5").mkdir()
    for restart in (False, True):
        with pytest.raises(UsageError) as error:
            open_run(tmp_path, restart=restart)
        assert "holds no run of trimtab's (checkpoint-5 and 1 more)" in one_line(error)
    assert names(tmp_path) == ["checkpoint-5", "thesis.tex"]


def test_a_file_or_a_closed_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is not a folder"):
        open_run(tmp_path / "file")
    with pytest.raises(UsageError, match="cannot be written to") as error:
        open_run(tmp_path / "file" / "below")
    one_line(error)


# ---------------------------------------------------------------- going on


def test_the_same_command_goes_on_from_the_newest_checkpoint(tmp_path: Path) -> None:
    first = open_run(tmp_path / "x")
    run_id = first.run_id
    first.close()
    checkpoint(tmp_path / "x", 10, 20)
    with open_run(tmp_path / "x") as run:
        assert run.decision == "continue"
        assert run.run_id == run_id
        start = run.starting_point(CheckpointStore(tmp_path / "x"))
        assert start.checkpoint is not None
        assert (start.checkpoint.step, start.own) == (20, True)
    starts = json.loads((tmp_path / "x" / "run.json").read_text())["starts"]
    assert [start["decision"] for start in starts] == ["fresh", "continue"]
    assert "ended" not in starts[0], "it was killed, nobody knows when"
    with open_run(tmp_path / "x") as run:
        run.mark("interrupted")
        stopped = json.loads((tmp_path / "x" / "run.json").read_text())["time"]
    with open_run(tmp_path / "x"):
        starts = json.loads((tmp_path / "x" / "run.json").read_text())["starts"]
    assert starts[2]["ended"] == stopped > starts[2]["time"]


def test_a_damaged_newest_is_passed_over_and_said_so(tmp_path: Path) -> None:
    path = unfinished(tmp_path / "x", 10, 20)
    (path / "checkpoint-20" / "MANIFEST.json").unlink()
    with open_run(path) as run:
        start = run.starting_point(CheckpointStore(path))
        assert start.checkpoint is not None
        assert start.checkpoint.step == 10
        assert f"{path / 'checkpoint-20'} is not used: it has no MANIFEST.json" in run.notes[-1]
    (path / "checkpoint-10" / "state.json").unlink()
    with open_run(path) as run:
        assert run.starting_point(CheckpointStore(path)).checkpoint is None
        assert "starting from the first step" in run.notes[-1]


def test_how_a_run_ended_is_recorded(tmp_path: Path) -> None:
    def state() -> tuple[str, str | None]:
        record = json.loads((tmp_path / "x" / "run.json").read_text())
        return record["state"], record["reason"]

    with pytest.raises(KeyboardInterrupt), open_run(tmp_path / "x"):
        raise KeyboardInterrupt
    assert state() == ("interrupted", None)
    with pytest.raises(ZeroDivisionError), open_run(tmp_path / "x"):
        raise ZeroDivisionError("one\ntwo")
    assert state() == ("failed", "one")
    with open_run(tmp_path / "x") as run:
        assert "failed: going on with it" in run.notes[0]
        run.mark("interrupted")
    assert state() == ("interrupted", None)


def test_another_machine_is_noted(tmp_path: Path) -> None:
    path = unfinished(tmp_path / "x", 10)
    record = json.loads((path / "run.json").read_text())
    record["environment"]["threads"] = 96
    (path / "run.json").write_text(json.dumps(record))
    with open_run(path) as run:
        assert f"threads: 96 -> {torch.get_num_threads()}" in run.notes[-1]
        assert "last bits" in run.notes[-1]


# ---------------------------------------------------------------- refused


def test_another_recipe_is_refused_with_the_differences(tmp_path: Path) -> None:
    path = unfinished(tmp_path / "x", 10)
    before = (path / "run.json").read_bytes()
    with pytest.raises(RecipeError) as error:
        open_run(path, OTHER)
    text = one_line(error)
    assert "another recipe (loss.beta: 0.1 -> 0.5)" in text
    assert all(remedy in text for remedy in ("--output-dir", "--restart", "--resume PATH"))
    assert (path / "run.json").read_bytes() == before


def test_differences_that_do_not_count_are_the_callers_to_say(tmp_path: Path) -> None:
    path = unfinished(tmp_path / "x", 10)
    with RunFolder.open(
        path, resolved_yaml=OTHER, command=COMMAND, recipe_difference=lambda old: []
    ) as run:
        assert run.decision == "continue"
    assert (path / "config.resolved.yaml").read_text() == OTHER


def test_a_finished_run_is_refused_with_any_recipe_and_with_resume(tmp_path: Path) -> None:
    path = unfinished(tmp_path / "x", 10)
    with open_run(path) as run:
        run.finish({})
    for recipe, resume in ((RECIPE, None), (OTHER, None), (OTHER, path / "checkpoint-10")):
        with pytest.raises(UsageError) as error:
            open_run(path, recipe, resume=resume)
        assert "holds a finished run; give another --output-dir, or --restart" in one_line(error)


def test_restart_and_resume_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="exclude each other"):
        open_run(tmp_path / "x", restart=True, resume=tmp_path)
    assert not (tmp_path / "x").exists()


def test_an_unreadable_record_is_refused_and_restart_helps(tmp_path: Path) -> None:
    path = unfinished(tmp_path / "x", 10)
    for text in ("{", "[]", "{}", "\xff"):
        (path / "run.json").write_text(text)
        with pytest.raises(UsageError, match=r"run\.json: cannot be read; --restart"):
            open_run(path)
    with open_run(path, restart=True) as run:
        assert run.decision == "fresh"


def test_default_difference_names_keys_with_their_path() -> None:
    assert yaml_difference(RECIPE, RECIPE) == []
    assert yaml_difference("a: {b: 1, c: []}\nd: x", "a: {b: 2, c: []}\ne: null") == [
        "a.b: 1 -> 2",
        "d: x -> unset",
        "e: unset -> None",
    ]


# ---------------------------------------------------------------- restart


def test_restart_sets_the_old_run_aside_whole_and_leaves_the_users_files(tmp_path: Path) -> None:
    path = unfinished(tmp_path / "x", 10, 20)
    old_id = json.loads((path / "run.json").read_text())["run_id"]
    with open_run(path, OTHER, restart=True) as run:
        assert run.decision == "fresh"
        assert run.run_id != old_id
        assert run.starting_point(CheckpointStore(path)).checkpoint is None
        assert f"now in {path / 'old-1'}" in run.notes[0]
    fresh = ["command.txt", "config.resolved.yaml", "environment.json", "run.json"]
    assert names(path) == sorted([*fresh, "notes.txt", "old-1"])
    assert names(path / "old-1") == sorted(
        [*fresh, "checkpoint-10", "checkpoint-20", "metrics.jsonl", "model.safetensors"]
    )
    aside = CheckpointStore(path / "old-1").newest()
    assert aside is not None
    assert aside.step == 20
    with open_run(path, RECIPE, restart=True):
        assert (path / "old-2" / "run.json").exists()
    assert (path / "notes.txt").read_text() == "mine"


# ---------------------------------------------------------------- resume


def test_resume_goes_back_and_sets_the_rest_aside(tmp_path: Path) -> None:
    """Without that, a later start would take step 30 of the old recipe's history."""
    path = unfinished(tmp_path / "x", 10, 20, 30)
    old_id = json.loads((path / "run.json").read_text())["run_id"]
    log = (path / "metrics.jsonl").read_bytes()
    with open_run(path, OTHER, resume=path / "checkpoint-10") as run:
        assert run.decision == "resume"
        assert run.run_id != old_id
        assert "recipe differs from the old one: loss.beta: 0.1 -> 0.5" in run.notes[-1]
        start = run.starting_point(CheckpointStore(path))
        assert start.checkpoint is not None
        assert (start.checkpoint.step, start.own) == (10, True)
    kept = [name for name in names(path) if name.startswith(("checkpoint", "old"))]
    assert kept == ["checkpoint-10", "old-1"]
    aside = names(path / "old-1")
    assert [n for n in aside if n.startswith("checkpoint")] == ["checkpoint-20", "checkpoint-30"]
    assert (path / "old-1" / "metrics.jsonl").read_bytes() == log
    assert (path / "old-1" / "config.resolved.yaml").read_text() == RECIPE
    with open_run(path, OTHER) as run:  # the same recipe without --resume: this run, going on
        assert run.decision == "continue"


def test_the_same_resume_again_is_the_same_command_and_goes_on(tmp_path: Path) -> None:
    path = unfinished(tmp_path / "x", 10, 20)
    source = path / "checkpoint-10"
    with open_run(path, OTHER, resume=source) as run:
        run_id = run.run_id
    checkpoint(path, 15, mark="new history")
    with open_run(path, OTHER, resume=source) as run:
        assert (run.decision, run.run_id) == ("continue", run_id)
        start = run.starting_point(CheckpointStore(path))
        assert start.checkpoint is not None
        assert start.checkpoint.state == {"step": 15, "mark": "new history"}
    with open_run(path, RECIPE, resume=source) as run:  # another recipe: from there once more
        assert run.decision == "resume"
        start = run.starting_point(CheckpointStore(path))
        assert start.checkpoint is not None
        assert start.checkpoint.step == 10


def test_resume_from_another_folder(tmp_path: Path) -> None:
    source = unfinished(tmp_path / "x", 10) / "checkpoint-10"
    other = unfinished(tmp_path / "y", 40)
    for path in (tmp_path / "new", other):
        for decision in ("resume", "continue"):  # killed before its first own checkpoint
            with open_run(path, OTHER, resume=source) as run:
                assert run.decision == decision
                start = run.starting_point(CheckpointStore(path))
                assert start.checkpoint is not None
                assert (start.checkpoint.step, start.own) == (10, False)
    assert "checkpoint-40" in names(other / "old-1")
    assert names(source.parent)[0] == "checkpoint-10"  # the source is only read


def test_resume_from_nothing_is_refused_and_touches_nothing(tmp_path: Path) -> None:
    path = unfinished(tmp_path / "x", 10)
    before = names(path)
    for wrong, reason in ((path / "checkpoint-11", "no such folder"), (path, "is a run folder")):
        with pytest.raises(UsageError, match=reason) as error:
            open_run(path, OTHER, resume=wrong)
        one_line(error)
    assert names(path) == before


# ---------------------------------------------------------------- lock


HOLDER = """
import sys
from trimtab.training.lock import RunLock
from pathlib import Path
held = RunLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_running_run_is_refused_and_a_killed_ones_lock_is_taken_over(tmp_path: Path) -> None:
    source = str(Path(next(iter(trimtab.__path__))).parent)
    environment = {**os.environ, "PYTHONPATH": source}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(UsageError) as error:
            open_run(tmp_path)
        assert f"process {process.pid} on " in one_line(error)
        assert "is running there" in one_line(error)
        process.kill()
        process.wait()
    assert names(tmp_path) == [lock.NAME]  # stale
    with open_run(tmp_path) as run:
        assert run.decision == "fresh"
    assert lock.NAME not in names(tmp_path)


def test_one_process_cannot_open_a_folder_twice(tmp_path: Path) -> None:
    with open_run(tmp_path), pytest.raises(UsageError, match="this very process"):
        open_run(tmp_path)
    open_run(tmp_path).close()


@pytest.mark.parametrize("alive", [True, False])
def test_without_locks_in_the_file_system_the_process_id_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    def unsupported(descriptor: int) -> None:
        raise OSError(lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "_lock", unsupported)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    holder = {"pid": os.getppid() if alive else gone.pid, "host": lock.socket.gethostname()}
    (tmp_path / lock.NAME).write_text(json.dumps(holder))
    if alive:
        with pytest.raises(lock.Held, match=str(holder["pid"])):
            lock.RunLock(tmp_path)
    else:
        held = lock.RunLock(tmp_path)
        assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()
        held.release()


# ---------------------------------------------------------------- placing files


def test_placed_files_are_old_or_new_and_whole(tmp_path: Path) -> None:
    def model(folder: Path) -> None:
        (folder / "model.safetensors").write_text("new")
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_text("new")

    def broken(folder: Path) -> None:
        (folder / "model.safetensors").write_text("half")
        raise ZeroDivisionError

    with open_run(tmp_path / "x") as run:
        run.place(model)
        assert (tmp_path / "x" / "sub" / "x").read_text() == "new"
        with pytest.raises(ZeroDivisionError):
            run.place(broken)
        assert (tmp_path / "x" / "model.safetensors").read_text() == "new"
        assert not [name for name in names(tmp_path / "x") if name.startswith(".tmp")]
