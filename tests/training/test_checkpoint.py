"""Checkpoints: exact round trips, retention, damage found, one-line errors."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections import namedtuple
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import CheckpointError, RecipeError
from trimtab.training import files, manifest
from trimtab.training.checkpoint import CheckpointStore, encode_state, open_checkpoint
from trimtab.training.tensor_file import read_tensors, write_tensors

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16),
    *(torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2),
]


def weights(step: int) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(step)
    return {
        "masters": {
            "w": torch.randn(3, 5, generator=generator),
            "b": torch.randn(4, generator=generator).bfloat16(),
        },
        "optimizer": {"w.exp_avg": torch.randn(3, 5, generator=generator)},
    }


def fill(store: CheckpointStore, *steps: int) -> None:
    for step in steps:
        store.save(step, state={"step": step}, tensors=weights(step))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------- round trips


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_tensors_come_back_bit_by_bit_in_every_dtype(tmp_path: Path) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for dtype in DTYPES:
        bits = torch.randint(0, 256, (48,), dtype=torch.uint8)
        bits = bits % 2 if dtype == torch.bool else bits
        tensors[str(dtype)] = bits.view(dtype).reshape(2, -1)  # NaN payloads and all
    tensors["scalar"] = torch.tensor(1.5, dtype=torch.float64)
    tensors["empty"] = torch.zeros(0, 3)
    tensors["transposed"] = torch.arange(6.0).reshape(2, 3).T
    tensors["expanded"] = torch.tensor([7.0]).expand(4)
    write_tensors(tmp_path / "x.safetensors", tensors)
    for read in (read_tensors, safetensors.torch.load_file):
        found = read(tmp_path / "x.safetensors")
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype, name
            assert found[name].shape == tensor.shape, name
            assert raw(found[name]) == raw(tensor), name


def test_file_is_the_librarys_own_byte_for_byte(tmp_path: Path) -> None:
    """Of one dtype; the order of different dtypes is the writer's to choose."""
    tensors = {"b": torch.randn(3, 2), "a": torch.randn(5), "ü": torch.randn(1)}
    write_tensors(tmp_path / "x", tensors)
    assert (tmp_path / "x").read_bytes() == safetensors.torch.save(tensors)


def test_tied_tensors_are_written_by_value_under_each_name(tmp_path: Path) -> None:
    shared = torch.randn(4, 3)
    write_tensors(tmp_path / "x", {"embed": shared, "head": shared, "row": shared[1]})
    found = read_tensors(tmp_path / "x")
    assert torch.equal(found["embed"], shared)
    assert torch.equal(found["head"], shared)
    assert torch.equal(found["row"], shared[1])
    found["head"].zero_()
    assert torch.equal(found["embed"], shared)


def test_dtypes_that_safetensors_has_no_name_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"z is torch\.complex128"):
        write_tensors(tmp_path / "x", {"z": torch.zeros(2, dtype=torch.complex128)})


@given(st.floats(width=64))
def test_floats_in_the_state_come_back_bit_by_bit(value: float) -> None:
    found = json.loads(encode_state({"x": [value]}))["x"][0]
    if math.isnan(value):  # JSON keeps that it is one, not which of them
        assert math.isnan(found)
    else:
        assert struct.pack("<d", found) == struct.pack("<d", value)


@pytest.mark.parametrize(
    ("state", "place"),
    [
        ({"a": {"b": (1, 2)}}, "state.a.b: a tuple"),
        ({"a": {1: 2}}, "state.a: key 1"),
        ({"a": [0, torch.tensor(1.0)]}, r"state.a\[1\]: a Tensor"),
        ({"a": {1, 2}}, "state.a: a set"),
    ],
)
def test_state_that_would_not_come_back_equal_is_refused(state: dict, place: str) -> None:
    with pytest.raises(TypeError, match=place):
        encode_state(state)


def test_a_checkpoint_comes_back_whole(tmp_path: Path) -> None:
    state = {"step": 3, "x": [0.1, math.inf, None, True, "é\ud800"], "big": 2**127 + 1}

    def writer(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "sub" / "config.json").write_text("{}")

    store = CheckpointStore(tmp_path)
    path = store.save(3, state=state, tensors={**weights(3), "none": {}}, writers=[writer])
    assert path == tmp_path / "checkpoint-3"
    for found in (store.newest(), store.open(path)):
        assert found is not None
        assert (found.step, found.path, found.state) == (3, path, state)
        assert found.tensors("none") == {}
        for stem, tensors in weights(3).items():
            for name, tensor in found.tensors(stem).items():
                assert tensor.dtype == tensors[name].dtype
                assert torch.equal(tensor, tensors[name])
    assert names(path) == [
        *("MANIFEST.json", "masters.safetensors", "none.safetensors", "optimizer.safetensors"),
        *("state.json", "sub"),
    ]
    assert names(tmp_path) == ["checkpoint-3"]
    entries = json.loads((path / "MANIFEST.json").read_text())["files"]
    assert entries["sub/config.json"]["size"] == 2


def test_equal_states_make_equal_bytes(tmp_path: Path) -> None:
    for run in ("a", "b"):
        fill(CheckpointStore(tmp_path / run), 5)
    for name in names(tmp_path / "a" / "checkpoint-5"):
        one, two = (tmp_path / run / "checkpoint-5" / name for run in ("a", "b"))
        assert one.read_bytes() == two.read_bytes(), name


# ---------------------------------------------------------------- retention


@pytest.mark.parametrize(("keep", "left"), [(None, [1, 2, 3, 10]), (1, [10]), (3, [2, 3, 10])])
def test_keep_limit_counts_by_step_and_not_by_name(
    tmp_path: Path, keep: int | None, left: list[int]
) -> None:
    store = CheckpointStore(tmp_path, keep)
    fill(store, 1, 2, 3, 10)  # "checkpoint-10" sorts before "checkpoint-2" as a name
    assert names(tmp_path) == sorted(f"checkpoint-{step}" for step in left)
    newest = store.newest()
    assert newest is not None
    assert newest.step == 10


def test_later_checkpoints_are_not_counted_and_the_new_one_is_never_removed(
    tmp_path: Path,
) -> None:
    fill(CheckpointStore(tmp_path), 20, 30)
    fill(CheckpointStore(tmp_path, keep=1), 25)
    assert names(tmp_path) == ["checkpoint-25", "checkpoint-30"]


def test_a_damaged_checkpoint_does_not_take_a_good_ones_place(tmp_path: Path) -> None:
    fill(CheckpointStore(tmp_path), 1, 2, 3)
    (tmp_path / "checkpoint-3" / "state.json").unlink()
    fill(CheckpointStore(tmp_path, keep=2), 4)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]


def test_keep_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="save_total_limit=0: must be at least 1"):
        CheckpointStore(tmp_path, keep=0)


def test_a_checkpoint_that_cannot_be_removed_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    store = CheckpointStore(tmp_path, keep=1, note=notes.append)
    fill(store, 1)

    def busy(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(files, "remove_tree", busy)
    fill(store, 2)
    assert len(notes) == 1
    assert "checkpoint-1 could not be removed whole (Permission denied)" in notes[0]
    monkeypatch.undo()
    assert len(store.clean_stale_tmp()) == 1
    assert names(tmp_path) == ["checkpoint-2"]


# ---------------------------------------------------------------- the same step again


def test_equal_content_of_the_same_step_is_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    fill(store, 7)
    before = (tmp_path / "checkpoint-7").stat().st_ino
    fill(store, 7)
    assert (tmp_path / "checkpoint-7").stat().st_ino == before
    assert names(tmp_path) == ["checkpoint-7"]


def test_other_content_of_the_same_step_replaces_it(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    fill(store, 7)
    store.save(7, state={"step": 7, "again": True}, tensors=weights(8))
    newest = store.newest()
    assert newest is not None
    assert newest.state["again"] is True
    assert names(tmp_path) == ["checkpoint-7"]


def test_a_damaged_one_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    fill(store, 7)
    (tmp_path / "checkpoint-7" / "state.json").write_text("{}")
    fill(store, 7)
    assert store.open(tmp_path / "checkpoint-7").state == {"step": 7}
    assert names(tmp_path) == ["checkpoint-7"]


# ---------------------------------------------------------------- damage


def damages(folder: Path) -> list[tuple[str, str]]:
    """Every way of damaging a checkpoint here: (what is done, what the reason must say)."""
    found: list[tuple[str, str]] = []
    for path in files.files_below(folder):
        found.append((f"{path.name}:missing", "missing|has no MANIFEST"))
        found.append((f"{path.name}:cut", r"bytes instead of|cannot be read"))
        size = path.stat().st_size
        found.extend(
            (f"{path.name}:{byte}", "changed after|cannot be read|format|not one of trimtab's")
            for byte in range(0, size, max(1, size // 25))
        )
    return found


def test_every_damage_is_found_and_named(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run")
    fill(store, 1, 2)
    whole = tmp_path / "run" / "checkpoint-2"
    shutil.copytree(whole, tmp_path / "whole")
    tried = damages(whole)
    assert len(tried) > 80
    for damage, reason in tried:
        shutil.rmtree(whole)
        shutil.copytree(tmp_path / "whole", whole)
        name, _, how = damage.partition(":")
        content = bytearray((whole / name).read_bytes())
        if how == "missing":
            (whole / name).unlink()
        elif how == "cut":
            (whole / name).write_bytes(content[:-1])
        else:
            content[int(how)] ^= 0x04
            (whole / name).write_bytes(content)
        newest = store.newest()
        if newest is not None and newest.step == 2:
            # a flipped bit between the manifest's tokens may say the same
            assert name == "MANIFEST.json", damage
            assert json.loads(content) == json.loads((tmp_path / "whole" / name).read_bytes())
            continue
        assert newest is not None, damage
        assert newest.step == 1, damage
        assert newest.state == {"step": 1}
        [(path, found)] = store.skipped
        assert path == whole
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(found)


def test_reader_without_hashes_would_take_a_flipped_bit(tmp_path: Path) -> None:
    """The twin: sizes alone, or the presence of the manifest, do not tell."""
    store = CheckpointStore(tmp_path)
    fill(store, 1)
    path = tmp_path / "checkpoint-1" / "masters.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    manifest.check_sizes(path.parent, manifest.read(path.parent))  # passes
    with pytest.raises(manifest.Damaged, match=r"masters\.safetensors was changed"):
        manifest.verify(path.parent)
    assert store.newest() is None


def test_folder_of_another_step_is_no_checkpoint_of_its_name(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    fill(store, 1, 2)
    (tmp_path / "checkpoint-2").rename(tmp_path / "checkpoint-9")
    newest = store.newest()
    assert newest is not None
    assert newest.step == 1
    assert store.skipped == [(tmp_path / "checkpoint-9", "it holds step 2")]


@pytest.mark.parametrize("name", ["../precious", "/etc/passwd", "a/../../b", "..\\x", "C:x"])
def test_a_manifest_cannot_lead_outside(tmp_path: Path, name: str) -> None:
    fill(CheckpointStore(tmp_path), 1)
    folder = tmp_path / "checkpoint-1"
    forged = manifest.Manifest(1, {name: files.Written(0, "0" * 64)})
    (folder / manifest.NAME).write_bytes(forged.encode())
    with pytest.raises(manifest.Damaged, match="outside the checkpoint"):
        manifest.verify(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '{"format": 1}', "[" * 100_000, "\x00\xff"]
)
def test_nonsense_manifests_are_damage_and_no_crash(tmp_path: Path, text: str) -> None:
    fill(CheckpointStore(tmp_path), 1)
    (tmp_path / "checkpoint-1" / manifest.NAME).write_text(text)
    store = CheckpointStore(tmp_path)
    assert store.newest() is None
    assert "MANIFEST.json" in store.skipped[0].reason


def test_a_read_back_that_differs_is_a_failed_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that stores something else than it was given."""
    store = CheckpointStore(tmp_path, keep=1)
    fill(store, 1)
    honest = files.sync_folder

    def lying(path: Path) -> None:
        honest(path)
        stored = tmp_path / "checkpoint-2" / "masters.safetensors"
        if path == tmp_path and stored.exists():
            content = bytearray(stored.read_bytes())
            content[-3] ^= 1
            stored.write_bytes(content)

    monkeypatch.setattr(files, "sync_folder", lying)
    with pytest.raises(CheckpointError, match=r"masters\.safetensors was changed"):
        fill(store, 2)
    monkeypatch.undo()
    store.clean_stale_tmp()
    assert names(tmp_path) == ["checkpoint-1"]
    newest = store.newest()
    assert newest is not None
    assert newest.step == 1


# ---------------------------------------------------------------- messages


def one_line(error: pytest.ExceptionInfo[CheckpointError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_open_names_what_is_wrong(tmp_path: Path) -> None:
    fill(CheckpointStore(tmp_path), 1, 2)
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(tmp_path / "checkpoint-3")
    assert "there is no such folder" in one_line(error)
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(tmp_path)
    assert f"it is a run folder: give {tmp_path / 'checkpoint-2'}" in one_line(error)
    (tmp_path / "checkpoint-2" / "state.json").unlink()
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(tmp_path / "checkpoint-2")
    assert "state.json is missing" in one_line(error)
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(tmp_path / "checkpoint-1").tensors("reference")
    assert "has no reference.safetensors" in one_line(error)


def test_disk_is_asked_for_space_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def model(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"x" * 5_000_000)

    store = CheckpointStore(tmp_path)
    store.save(1, state={}, tensors=weights(1), writers=[model])
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 5_500_000))
    with pytest.raises(CheckpointError) as error:  # 5.0 MB of model as last time, 1 MiB of margin
        store.save(2, state={}, tensors=weights(2), writers=[model])
    assert "needs about 5.8 MiB, and 5.2 MiB are free; checkpoint-1 is kept" in one_line(error)
    assert "free some space" in one_line(error)
    assert names(tmp_path) == ["checkpoint-1"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 7_000_000))
    store.save(2, state={}, tensors=weights(2), writers=[model])


def test_a_writers_own_bug_is_no_disk_failure_and_leaves_nothing(tmp_path: Path) -> None:
    def broken(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise ZeroDivisionError

    store = CheckpointStore(tmp_path)
    fill(store, 1)
    with pytest.raises(ZeroDivisionError):
        store.save(2, state={}, tensors={}, writers=[broken])
    assert names(tmp_path) == ["checkpoint-1"]


def test_safetensors_own_disk_errors_are_checkpoint_errors(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        raise safetensors.SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    with pytest.raises(CheckpointError) as error:
        CheckpointStore(tmp_path).save(2, state={}, tensors={}, writers=[full])
    assert "there is no earlier one; free some space" in one_line(error)
