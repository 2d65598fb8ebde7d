"""Checkpoints: all of a run's state, written so that no kill at any instant can lose the last one.

The protocol (design.md 4): everything goes into ``.tmp-checkpoint-<step>-<pid>-<random>``, each
file fsynced; then MANIFEST.json with sizes and SHA-256, fsynced; then the folder and those in it
are fsynced, it is renamed to ``checkpoint-<step>``, and the run folder is fsynced; then all of it
is read back and compared; and only then are older checkpoints removed (renamed to ``.trash-...``
first, so that a half-removed one is never taken for a checkpoint).

What a kill leaves behind:

    while writing          .tmp-checkpoint-...   ignored, removed by ``clean_stale_tmp``
    while removing         .trash-checkpoint-... the same
    while replacing one    .old-checkpoint-...   still a checkpoint to ``newest``, named back by
    of the same step                             ``clean_stale_tmp`` when its successor is missing

Only safetensors and JSON are written or read. Floats in the JSON are written with ``repr`` and
come back bit by bit, infinities and NaN included (as Python's json writes them: ``NaN``).
"""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from safetensors import SafetensorError
from torch import Tensor

from trimtab.errors import CheckpointError, RecipeError
from trimtab.training import files, manifest
from trimtab.training.manifest import Damaged, Manifest
from trimtab.training.tensor_file import read_tensors, tensor_bytes, write_tensors

STATE_NAME = "state.json"
_FINAL = re.compile(r"checkpoint-(\d+)")
_OLD = re.compile(r"\.old-checkpoint-(\d+)-[0-9a-f]+")
_LEFTOVER = re.compile(r"\.(tmp|trash)-checkpoint-\d+-[0-9a-f-]+")
_STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # the disk, or the quota
_MARGIN = 1 << 20  # bytes, for what the estimate cannot know: names, the manifest, block sizes

Writer = Callable[[Path], None]


class Skipped(NamedTuple):
    """A checkpoint that was not taken, and why."""

    path: Path
    reason: str


class Checkpoint:
    """A verified checkpoint, to read from."""

    def __init__(self, path: Path, contents: Manifest) -> None:
        self.path = path
        self.step = contents.step
        self.manifest = contents

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, step={self.step})"

    @functools.cached_property
    def state(self) -> dict[str, Any]:
        """The JSON state that was saved, equal to the last bit."""
        return json.loads(files.read_file(self.path / STATE_NAME))

    def tensors(self, stem: str) -> dict[str, Tensor]:
        """The tensors saved under a stem, on the CPU, with the dtypes they had."""
        name = f"{stem}.safetensors"
        if name not in self.manifest.entries:
            raise CheckpointError(
                f"{self.path}: has no {name}, only {', '.join(sorted(self.manifest.entries))}; "
                "it was made by another kind of run: choose a checkpoint of this one"
            )
        return read_tensors(self.path / name)


def open_checkpoint(path: Path | str) -> Checkpoint:
    """The checkpoint in folder ``path``, verified; a CheckpointError of one line if it is none."""
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"resume={path}: there is no such folder; give a checkpoint-<step>")
    try:
        return Checkpoint(path, manifest.verify(path))
    except Damaged as damage:
        inside = _steps(path)
        hint = (
            f"it is a run folder: give {path / inside[-1][1].name}"
            if inside
            else "give another checkpoint-<step>"
        )
        raise CheckpointError(f"resume={path}: {damage}; {hint}") from None


class CheckpointStore:
    """The checkpoints of one run folder. One process writes to it (``run_folder`` sees to that)."""

    def __init__(
        self, run_dir: Path | str, keep: int | None = None, note: Callable[[str], None] = print
    ) -> None:
        """``keep``: how many checkpoints to keep, None for all; ``note`` tells the user a line."""
        if keep is not None and keep < 1:
            raise RecipeError(
                f"save_total_limit={keep}: must be at least 1, or null to keep every checkpoint"
            )
        self.run_dir = Path(run_dir)
        self.keep = keep
        self.best: int | None = None  # the step whose checkpoint is kept beside those
        self.note = note
        self.skipped: list[Skipped] = []

    # ------------------------------------------------------------------ writing

    def save(
        self,
        step: int,
        *,
        state: Mapping[str, Any],
        tensors: Mapping[str, Mapping[str, Tensor]],
        writers: Sequence[Writer] = (),
    ) -> Path:
        """Write ``checkpoint-<step>``; when this returns it is on the disk and was read back.

        ``state`` is plain JSON (dicts with string keys, lists, str, int, float, bool, None; what
        would not come back equal is refused with a TypeError). ``tensors`` maps a file's stem to
        its tensors; ones that share memory are written by value under each name. ``writers`` put
        further files into the folder they are given. A checkpoint of the same step is kept if its
        content is the same, and otherwise replaced without a moment in which neither is there.

        Raises a CheckpointError when the disk is full or fails; what was there before is kept.
        """
        content = encode_state(state)
        for stem in tensors:
            assert _STEM.fullmatch(stem), f"not a file stem: {stem!r}"
        temporary = self.run_dir / f".tmp-checkpoint-{step}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        try:
            files.make_folder(self.run_dir)
            self._require_space(step, len(content), tensors)
            entries = self._write(temporary, content, tensors, writers)
            written = Manifest(step, entries)
            files.write_file(temporary / manifest.NAME, written.encode())
            _sync_folders(temporary)
            final = self._commit(temporary, written)
        except (OSError, SafetensorError) as error:
            self._discard(temporary)
            self._fail(step, error)
        except Exception:
            self._discard(temporary)
            raise
        self._prune(step)
        return final

    def _write(
        self,
        folder: Path,
        state: bytes,
        tensors: Mapping[str, Mapping[str, Tensor]],
        writers: Sequence[Writer],
    ) -> dict[str, files.Written]:
        """Write and fsync all files; returns what the manifest says about each."""
        files.make_folder(folder)
        for writer in writers:  # first: they may clear or list the folder that they write to
            files.before("foreign", folder)
            writer(folder)
        entries: dict[str, files.Written] = {}
        for path in files.files_below(folder):
            files.sync_file(path)
            entries[path.relative_to(folder).as_posix()] = files.measure_file(path)
        own = {STATE_NAME, manifest.NAME, *(f"{stem}.safetensors" for stem in tensors)}
        assert not own & entries.keys(), f"written twice: {sorted(own & entries.keys())}"
        for stem, group in tensors.items():
            entries[f"{stem}.safetensors"] = write_tensors(folder / f"{stem}.safetensors", group)
        entries[STATE_NAME] = files.write_file(folder / STATE_NAME, state)
        return entries

    def _commit(self, temporary: Path, written: Manifest) -> Path:
        """Give the complete folder its name, durably, and read it back."""
        final = self.run_dir / f"checkpoint-{written.step}"
        replaced: Path | None = None
        if os.path.lexists(final):
            if _intact(final) == written:
                self._discard(temporary)
                return final
            replaced = self._hidden("old", written.step)
            files.rename(final, replaced)
        try:
            files.rename(temporary, final)
            files.sync_folder(self.run_dir)
            if manifest.verify(final) != written:
                raise Damaged("its manifest is another one")
        except (OSError, Damaged) as error:
            self._take_back(final, replaced, written.step)
            if isinstance(error, Damaged):
                raise OSError(errno.EIO, f"read back, {error}", str(final)) from None
            raise
        if replaced is not None:
            self._remove(replaced, written.step)
        return final

    def _take_back(self, final: Path, replaced: Path | None, step: int) -> None:
        """After a failed commit: what was there before is there again, as far as the disk lets."""
        try:
            if os.path.lexists(final):
                files.rename(final, self._hidden("trash", step))
            if replaced is not None:
                files.rename(replaced, final)
        except OSError:
            return  # `newest` finds the replaced one under its hidden name too

    def _hidden(self, kind: str, step: int) -> Path:
        return self.run_dir / f".{kind}-checkpoint-{step}-{uuid.uuid4().hex[:8]}"

    def _require_space(
        self, step: int, state_size: int, tensors: Mapping[str, Mapping[str, Tensor]]
    ) -> None:
        """Refuse to begin what cannot end: the sizes known, and the rest as it was last time."""
        need = state_size + sum(tensor_bytes(group) for group in tensors.values()) + _MARGIN
        own = {STATE_NAME, *(f"{stem}.safetensors" for stem in tensors)}
        for _, path in reversed(_steps(self.run_dir)):
            try:
                last = manifest.read(path)
            except Damaged:
                continue
            need += sum(entry.size for name, entry in last.entries.items() if name not in own)
            break
        free = files.free_bytes(self.run_dir)
        if free < need:
            self._refuse(
                step, f"it needs about {_size(need)}, and {_size(free)} are free", full=True
            )

    def _fail(self, step: int, error: Exception) -> NoReturn:
        """Turn a failure of the disk into one line for the user."""
        reason = " ".join(str(error).split())
        full = "os error 28" in reason  # safetensors' own writer, which knows no errno
        if isinstance(error, OSError):
            full = error.errno in _FULL
            reason = error.strerror or reason
            if error.filename:
                reason += f" ({Path(error.filename).name})"
        self._refuse(step, reason, full=full, cause=error)

    def _refuse(
        self, step: int, reason: str, *, full: bool, cause: Exception | None = None
    ) -> NoReturn:
        others = [path.name for _, path in _steps(self.run_dir)]
        kept = f"{others[-1]} is kept" if others else "there is no earlier one"
        remedy = (
            "free some space (or set a smaller save_total_limit)" if full else "see to the disk"
        )
        raise CheckpointError(
            f"{self.run_dir}: checkpoint-{step} could not be written: {reason}; {kept}; {remedy} "
            "and run the same command again"
        ) from cause

    # ------------------------------------------------------------------ removing

    def _discard(self, temporary: Path) -> None:
        try:
            files.remove_tree(temporary)
        except OSError:
            return  # `clean_stale_tmp` comes back to it

    def _remove(self, path: Path, step: int) -> bool:
        """Remove a checkpoint; a file that is in use must not end the run."""
        try:
            trash = self._hidden("trash", step)
            files.rename(path, trash)
            files.remove_tree(trash)
        except OSError as error:
            self.note(f"{path} could not be removed whole ({error.strerror or error}); going on")
            return False
        return True

    def _prune(self, step: int) -> None:
        """Keep ``keep`` checkpoints: the one of ``step``, just verified, and the newest before it.

        The best one is kept beside them. Later ones are not ours to judge, and damaged ones neither
        count nor are removed: the user was told of them.
        """
        if self.keep is None:
            return
        older: list[Path] = []
        for number, path in _steps(self.run_dir):
            if number >= step or number == self.best:
                continue
            try:
                manifest.check_sizes(path, manifest.read(path))
            except Damaged:
                continue
            older.append(path)
        for path in older[: max(0, len(older) - (self.keep - 1))]:
            self._remove(path, step)

    def clean_stale_tmp(self) -> list[Path]:
        """Clear away what kills left behind; returns what was removed or named back.

        Call it before ``newest``, and only in the process that holds the run folder's lock.
        """
        touched: list[Path] = []
        for path in _entries(self.run_dir):
            old = _OLD.fullmatch(path.name)
            if old:
                final = self.run_dir / f"checkpoint-{old[1]}"
                if not os.path.lexists(final):
                    files.rename(path, final)
                    files.sync_folder(self.run_dir)
                    touched.append(path)
                elif _intact(final) and self._remove(path, int(old[1])):
                    touched.append(path)
            elif _LEFTOVER.fullmatch(path.name):
                self._discard(path)
                touched.append(path)
        return touched

    # ------------------------------------------------------------------ reading

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies; ``skipped`` then lists the newer ones, and why."""
        self.skipped = []
        candidates = [(step, 1, path) for step, path in _steps(self.run_dir)]
        for path in _entries(self.run_dir):
            if match := _OLD.fullmatch(path.name):
                candidates.append((int(match[1]), 0, path))
        for step, _, path in sorted(candidates, reverse=True):
            try:
                contents = manifest.verify(path)
                if contents.step != step:
                    raise Damaged(f"it holds step {contents.step}")
            except Damaged as damage:
                self.skipped.append(Skipped(path, str(damage)))
            else:
                return Checkpoint(path, contents)
        return None

    @staticmethod
    def open(path: Path | str) -> Checkpoint:
        """The checkpoint in any folder, for ``--resume PATH``; see ``open_checkpoint``."""
        return open_checkpoint(path)


def encode_state(state: Mapping[str, Any]) -> bytes:
    """JSON that reads back equal, or a TypeError that names what would not."""
    _require_plain(state, "state")
    return json.dumps(state, indent=1).encode()


def _require_plain(value: object, place: str) -> None:
    if value is None or isinstance(value, str | bool | int | float):
        return
    if isinstance(value, list):
        for index, item in enumerate(value):
            _require_plain(item, f"{place}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{place}: key {key!r} would come back as a string")
            _require_plain(item, f"{place}.{key}")
    else:
        raise TypeError(f"{place}: a {type(value).__name__} does not come back equal from JSON")


def _intact(path: Path) -> Manifest | None:
    try:
        return manifest.verify(path)
    except Damaged:
        return None


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def _steps(run_dir: Path) -> list[tuple[int, Path]]:
    """The folders named ``checkpoint-<step>``, oldest first, verified or not."""
    found = [(_FINAL.fullmatch(path.name), path) for path in _entries(run_dir) if path.is_dir()]
    return sorted((int(match[1]), path) for match, path in found if match)


def _sync_folders(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            files.sync_folder(path)
    files.sync_folder(folder)


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"
