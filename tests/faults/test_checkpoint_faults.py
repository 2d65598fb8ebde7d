"""Whatever fails or dies at whatever operation of a save, a verified checkpoint is there after it.

Each scenario is a folder with checkpoints in it and one more save. It is tried for every operation
k: killed before it, killed in the middle of a write, a power cut, an error at it, an error from it
on, and for a disk with room for b bytes. The twins at the end show that the sweeps find what is
wrong with four variants of the protocol.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from trimtab.errors import CheckpointError
from trimtab.training import files, manifest
from trimtab.training.checkpoint import Checkpoint, CheckpointStore

from .crash import Fail, Full, Kill, die_at, needs_fork, quiet_fork

pytestmark = [needs_fork, quiet_fork]

TENSORS = {
    stem: {
        version: {"w": torch.full((40,), float(version)), "b": torch.full((3,), -float(version))}
        for version in range(10)
    }
    for stem in ("masters", "optimizer")
}


def model_writer(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "weights.bin").write_bytes(b"x" * 100)


def save(store: CheckpointStore, step: int, version: int | None = None) -> None:
    version = step if version is None else version
    store.save(
        step,
        state={"version": version},
        tensors={stem: versions[version] for stem, versions in TENSORS.items()},
        writers=[model_writer],
    )


def version_of(checkpoint: Checkpoint) -> int:
    """The version that a checkpoint holds; all its parts must be of the same."""
    version = checkpoint.state["version"]
    for stem, versions in TENSORS.items():
        found = checkpoint.tensors(stem)
        assert found.keys() == versions[version].keys()
        for name, tensor in found.items():
            assert torch.equal(tensor, versions[version][name])
    assert (checkpoint.path / "config.json").read_text() == "{}"
    return version


class Scenario(NamedTuple):
    """Saves done, the save that is disturbed as (step, version), the keep limit."""

    before: tuple[int, ...]
    disturbed: tuple[int, int]
    keep: int | None
    versions: tuple[int | None, ...]  # what may be the newest afterwards; the last is the new one
    left: tuple[int, ...]  # steps in the folder when all is well


SCENARIOS = {
    "first": Scenario((), (1, 1), 1, (None, 1), (1,)),
    "keep_one": Scenario((1,), (2, 2), 1, (1, 2), (2,)),
    "keep_two": Scenario((1, 2), (3, 3), 2, (2, 3), (2, 3)),
    "same_step_other_content": Scenario((1,), (1, 2), 1, (1, 2), (1,)),
    "same_step_same_content": Scenario((1,), (1, 1), 1, (1, 1), (1,)),
}


@pytest.fixture(params=SCENARIOS)
def scenario(request: pytest.FixtureRequest) -> Scenario:
    return SCENARIOS[request.param]


def prepare(folder: Path, scenario: Scenario) -> Path:
    """The scenario's folder before the disturbed save, freshly made."""
    base, run = folder / "base", folder / "run"
    if not base.exists():
        base.mkdir(parents=True)
        for step in scenario.before:
            save(CheckpointStore(base, scenario.keep), step)
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(base, run)
    return run


SLOWER = [pytest.param(how, marks=pytest.mark.slow) for how in ("power_cut", "half")]


def check_after(run: Path, scenario: Scenario, allowed: tuple[int | None, ...]) -> int | None:
    """A verified checkpoint is there, to a reader as to the next run; the next save succeeds."""
    as_reader = CheckpointStore(run).newest()
    store = CheckpointStore(run, scenario.keep)
    store.clean_stale_tmp()
    newest = store.newest()
    found = None if newest is None else version_of(newest)
    assert found in allowed
    assert (None if as_reader is None else as_reader.step) == (newest and newest.step)
    assert store.skipped == []
    save(store, *scenario.disturbed)
    newest = store.newest()
    assert newest is not None
    assert version_of(newest) == scenario.versions[-1]
    kept = sorted(path.name for path in run.iterdir())
    assert set(kept) >= {f"checkpoint-{step}" for step in scenario.left}
    assert all(name.startswith("checkpoint-") for name in kept), kept
    return found


def kills(
    folder: Path, scenario: Scenario, work: Callable[[Path], None], **how: bool
) -> Iterator[Path]:
    """The run folder after a kill at operation 1, 2, ... until the work ends undisturbed."""
    for at in range(1, 1000):
        run = prepare(folder, scenario)
        kill = Kill(at, run, **how)
        died = die_at(kill, lambda run=run: work(run))
        yield run
        if not died:
            assert at > 15, "hardly anything goes through files.py"
            return
    raise AssertionError("the work never ends")


@pytest.mark.parametrize("how", ["kill", *SLOWER])
def test_kill_at_every_operation(ramdisk: Path, scenario: Scenario, how: str) -> None:
    def work(run: Path) -> None:
        save(CheckpointStore(run, scenario.keep), *scenario.disturbed)

    options = {} if how == "kill" else {how: True}
    seen = [
        check_after(run, scenario, scenario.versions)
        for run in kills(ramdisk, scenario, work, **options)
    ]
    assert seen[0] == scenario.versions[0]
    assert seen[-1] == scenario.versions[-1]
    assert seen == sorted(seen, key=scenario.versions.index)  # old, old, ..., new, new


@pytest.mark.parametrize("on", [False, True], ids=["once", "from_then_on"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_error_at_every_operation(ramdisk: Path, scenario: Scenario, error: int, on: bool) -> None:
    for at in range(1, 1000):
        run = prepare(ramdisk, scenario)
        store = CheckpointStore(run, scenario.keep, note=lambda line: None)
        fail = Fail(at, error, on)
        with files.hooked(fail):
            try:
                save(store, *scenario.disturbed)
                saved = True
            except CheckpointError as failure:
                assert "\n" not in str(failure)
                assert "could not be written" in str(failure)
                if "read back" not in str(failure):
                    assert ("free some space" in str(failure)) == (error == errno.ENOSPC)
                saved = False
        allowed = scenario.versions[-1:] if saved else scenario.versions
        check_after(run, scenario, allowed)
        if fail.count < at:
            assert saved
            return
    raise AssertionError("the save never succeeds")


def test_disk_with_room_for_every_number_of_bytes(ramdisk: Path, scenario: Scenario) -> None:
    failed = 0
    for room in range(0, 100_000, 61):
        run = prepare(ramdisk, scenario)
        try:
            with files.hooked(Full(room)):
                save(CheckpointStore(run, scenario.keep), *scenario.disturbed)
        except CheckpointError as failure:
            assert "No space left on device" in str(failure)
            if scenario.before:
                assert f"checkpoint-{scenario.before[-1]} is kept" in str(failure)
            check_after(run, scenario, scenario.versions[:1])
            failed += 1
        else:
            check_after(run, scenario, scenario.versions[-1:])
            break
    assert failed > 20


def test_loop_of_saves_killed_again_and_again_with_one_kept(ramdisk: Path) -> None:
    """Each start goes on from the newest and is killed a little later in its own operations."""
    run = ramdisk / "run"
    run.mkdir()
    done, starts = 0, 0
    while done < 8:
        starts += 1
        assert starts < 200

        def work(first: int = done) -> None:
            store = CheckpointStore(run, keep=1)
            store.clean_stale_tmp()
            for step in range(first + 1, 9):
                save(store, step)

        die_at(Kill(11 + 17 * (starts % 5), run, power_cut=starts % 2 == 0), work)
        store = CheckpointStore(run, keep=1)
        newest = store.newest()
        assert store.skipped == []
        reached = 0 if newest is None else version_of(newest)
        assert reached >= done
        done = reached
    assert starts > 5


def test_kill_while_clearing_what_a_kill_left(ramdisk: Path) -> None:
    scenario = SCENARIOS["same_step_other_content"]
    left = ramdisk / "left"
    for at in range(30, 90, 5):  # before, there is nothing to clear but a temporary folder
        run = prepare(ramdisk, scenario)
        store_work = lambda run=run: save(CheckpointStore(run, 1), 1, 2)  # noqa: E731
        if not die_at(Kill(at, run), store_work):
            break
        shutil.rmtree(left, ignore_errors=True)
        shutil.copytree(run, left)
        for again in range(1, 60):
            shutil.rmtree(run)
            shutil.copytree(left, run)
            clear = lambda run=run: CheckpointStore(run, 1).clean_stale_tmp()  # noqa: E731
            if not die_at(Kill(again, run, power_cut=True), clear):
                break
            newest = CheckpointStore(run).newest()
            assert newest is not None
            assert version_of(newest) in (1, 2)


# ---------------------------------------------------------------- the sweeps find wrong variants


def worst(folder: Path, work: Callable[[Path], None], **how: bool) -> list[str]:
    """What is wrong after kills at every operation, in the scenario with one kept checkpoint."""
    scenario = SCENARIOS["keep_one"]
    wrong: list[str] = []
    for run in kills(folder, scenario, work, **how):
        store = CheckpointStore(run, 1)
        newest = store.newest()
        if newest is None:
            wrong.append("nothing left")
        if store.skipped:
            wrong.append("garbage")
    return wrong


def right(run: Path) -> None:
    save(CheckpointStore(run, 1), 2)


def test_the_protocol_itself_has_nothing_wrong(ramdisk: Path) -> None:
    assert worst(ramdisk, right) == []
    assert worst(ramdisk, right, power_cut=True) == []


def test_sweep_rejects_removing_the_old_one_first(ramdisk: Path) -> None:
    def delete_before_verify(run: Path) -> None:
        files.remove_tree(run / "checkpoint-1")
        right(run)

    assert "nothing left" in worst(ramdisk, delete_before_verify)


def test_sweep_rejects_writing_to_the_final_name(ramdisk: Path) -> None:
    def in_place(run: Path) -> None:
        final = run / "checkpoint-2"
        store = CheckpointStore(run, 1)
        tensors = {stem: versions[2] for stem, versions in TENSORS.items()}
        entries = store._write(final, b'{"version": 2}', tensors, [model_writer])
        files.write_file(final / manifest.NAME, manifest.Manifest(2, entries).encode())

    assert "garbage" in worst(ramdisk, in_place)


def test_power_cuts_reject_a_missing_fsync_of_files(ramdisk: Path) -> None:
    wrong = worst(ramdisk, right, power_cut=True, honest=False)
    assert "nothing left" in wrong
    assert "garbage" in wrong


def test_power_cuts_reject_a_missing_fsync_of_the_folder(ramdisk: Path) -> None:
    assert "nothing left" in worst(ramdisk, right, power_cut=True, folders_honest=False)


def test_a_reader_that_goes_by_the_name_takes_garbage(ramdisk: Path) -> None:
    """Why the manifest decides: a copy that was interrupted has the name and some files."""
    run = prepare(ramdisk, SCENARIOS["keep_one"])
    shutil.copytree(run / "checkpoint-1", run / "checkpoint-7")
    (run / "checkpoint-7" / "optimizer.safetensors").unlink()
    by_name = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert by_name.name == "checkpoint-7"
    newest = CheckpointStore(run).newest()
    assert newest is not None
    assert newest.step == 1
