"""A run's folder: what is in it decides what a command does there.

    the folder holds                what happens
    nothing                         a fresh run
    an unfinished run, same recipe  it goes on from its newest checkpoint
    an unfinished run, another one  refused with the differences
    a finished run                  refused
    a run that was itself refused   a fresh run: its recipe or its data were wrong, nothing is lost
    something else                  refused: nothing of the user's is touched
    a run that is going on          refused

``--restart`` sets the old run's files aside, into ``old-<n>/`` in the same folder (never deleted,
and never a file that no run of ours makes), and starts afresh. ``--resume PATH`` goes on from that
checkpoint, whatever the recipe; what the folder had beyond it is set aside in the same way, or a
later start would take the newest checkpoint of a history that is no longer this run's. The same
``--resume`` again is the same command again: it goes on.

``run.json`` is the record that decides; every change of it is atomic. The other files
(config.resolved.yaml, command.txt, environment.json) are for people.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from safetensors import SafetensorError

from trimtab.errors import CheckpointError, RecipeError, UsageError
from trimtab.training import files, lock
from trimtab.training.aside import FOLDERS, RECORD, foreign_names, set_aside, step_of
from trimtab.training.checkpoint import Checkpoint, CheckpointStore, open_checkpoint
from trimtab.training.environment import describe_environment, exactness_notes

State = Literal["running", "interrupted", "failed", "refused", "finished"]
Difference = Callable[[str], Sequence[str]]
"""Given the old run's resolved YAML: one short line per key that differs, none if none does."""


class Start(NamedTuple):
    """Where a run begins: from a checkpoint, or from its first step (None).

    ``own``: the checkpoint is this folder's, so its metrics.jsonl belongs to it and is cut back to
    what the checkpoint remembers; otherwise the log begins empty.
    """

    checkpoint: Checkpoint | None
    own: bool


class RunFolder:
    """An open run folder, locked for this process until ``close`` (or the end of a ``with``).

    ``decision`` says what ``open`` decided, ``notes`` in words what the user should know of it,
    ``run_id`` names the history for trackers: the same over continuations, another after a
    restart or a ``--resume``.
    """

    def __init__(self, path: Path, held: lock.RunLock, record: dict[str, Any]) -> None:
        self.path = path
        self.decision: Literal["fresh", "continue", "resume"] = "fresh"
        self.notes: list[str] = []
        self._lock = held
        self._record: dict[str, Any] = record

    # ------------------------------------------------------------------ opening

    @classmethod
    def open(
        cls,
        output_dir: Path | str,
        *,
        resolved_yaml: str,
        command: Sequence[str],
        recipe_difference: Difference | None = None,
        restart: bool = False,
        resume: Path | str | None = None,
    ) -> RunFolder:
        """Decide what this command does in ``output_dir``, lock it and record the start.

        ``resolved_yaml`` must hold all that makes the run what it is, the verb included.
        ``recipe_difference`` says which differences from an old recipe count; by default all
        values that differ. Raises UsageError or RecipeError, in one line, when it is refused.
        """
        path = Path(output_dir)
        if restart and resume is not None:
            raise RecipeError(f"restart=true with resume={resume}: they exclude each other")
        _require_ours(path)
        try:
            files.make_folder(path)
            held = lock.RunLock(path)
        except OSError as error:
            raise UsageError(_unwritable(path, error)) from None
        except lock.Held as holder:
            raise UsageError(
                f"output_dir={path}: {holder} is running there; wait for it, or give another "
                "--output-dir"
            ) from None
        try:
            old = _read_record(path, restart)
            self = cls(path, held, old)
            compare = recipe_difference or (lambda text: yaml_difference(text, resolved_yaml))
            self._decide(compare, restart, None if resume is None else Path(resume))
            self._begin(resolved_yaml, command)
        except OSError as error:
            held.release()
            raise UsageError(_unwritable(path, error)) from None
        except BaseException:
            held.release()
            raise
        return self

    def _decide(self, compare: Difference, restart: bool, resume: Path | None) -> None:
        if self._record.get("state") == "refused":
            self._record = {}
        old = self._record
        if old and restart:
            aside = set_aside(self.path, lambda name: True)
            self.notes.append(f"the old run's files are now in {aside}; delete it when you like")
            old = self._record = {}
        if not old:
            if resume is not None:
                self._resume(resume, [])
            return
        if old["state"] == "finished":
            raise UsageError(
                f"output_dir={self.path}: holds a finished run; give another --output-dir, or "
                "--restart (its files are set aside)"
            )
        differences = list(compare(old["recipe"]))
        if resume is not None and (differences or not self._same_resume(resume)):
            self._resume(resume, differences)
        elif differences:
            raise RecipeError(
                f"output_dir={self.path}: holds an unfinished run of another recipe ("
                + "; ".join(differences)
                + "); give another --output-dir, or --restart (start over), or --resume PATH (go "
                "on from that checkpoint with the new recipe)"
            )
        else:
            self.decision = "continue"
            self.notes.append(f"{self.path} holds this run, {old['state']}: going on with it")

    def _same_resume(self, resume: Path) -> bool:
        source = self.resume_source
        return source is not None and source.resolve() == resume.resolve()

    def _resume(self, resume: Path, differences: Sequence[str]) -> None:
        try:
            checkpoint = open_checkpoint(resume)
        except CheckpointError as error:
            raise UsageError(str(error)) from None
        own = resume.resolve() == self.path.resolve() / f"checkpoint-{checkpoint.step}"
        if self._record:
            aside = set_aside(self.path, lambda name: not own or step_of(name) > checkpoint.step)
            self.notes.append(f"what the run had beyond {resume} is now in {aside}")
        if differences:
            self.notes.append(f"recipe differs from the old one: {'; '.join(differences)}")
        self.decision = "resume"
        source = {"path": _relative(resume, self.path), "step": checkpoint.step}
        self._record = {"resumed_from": source}

    def _begin(self, resolved_yaml: str, command: Sequence[str]) -> None:
        environment = describe_environment()
        if self.decision == "continue":
            changes = exactness_notes(self._record.get("environment", {}), environment)
            if changes:
                self.notes.append(
                    f"not the machine it began on ({'; '.join(changes)}): numbers can differ in "
                    "their last bits"
                )
        line = shlex.join(command)
        fresh: dict[str, Any] = {
            "state": "running",
            "run_id": uuid.uuid4().hex[:12],
            "resumed_from": None,
            "starts": [],
        }
        now = {"recipe": resolved_yaml, "environment": environment}
        if self._record.get("starts") and self._record.get("state") in ("interrupted", "failed"):
            self._record["starts"][-1]["ended"] = self._record.get("time")  # unless it was killed
        self._record = {**fresh, **self._record, **now}
        self._record["starts"].append(
            {"time": time.time(), "decision": self.decision, "command": line}
        )
        self.mark("running")
        texts = {
            "config.resolved.yaml": resolved_yaml,
            "command.txt": line + "\n",
            "environment.json": json.dumps(environment, indent=1) + "\n",
        }
        for name, text in texts.items():
            self._put(name, text)

    # ------------------------------------------------------------------ the run

    @property
    def run_id(self) -> str:
        """Twelve hex digits that name this history."""
        return self._record["run_id"]

    @property
    def resume_source(self) -> Path | None:
        """The checkpoint that this history began from, if it did."""
        source = self._record.get("resumed_from")
        return None if source is None else self.path / source["path"]

    def starting_point(self, store: CheckpointStore) -> Start:
        """The checkpoint to begin from, after clearing what kills left; adds to ``notes``."""
        store.clean_stale_tmp()
        for folder in (self.path, *(self.path / name for name in FOLDERS)):
            for path in folder.glob(".tmp-*"):  # of `write_atomic` and `place`
                files.remove_tree(path)
        newest = store.newest()
        self.notes.extend(
            f"{path} is not used: {reason}; it stays where it is" for path, reason in store.skipped
        )
        if newest is not None:
            return Start(newest, own=True)
        if self.resume_source is not None:
            return Start(open_checkpoint(self.resume_source), own=False)
        if self.decision == "continue":
            self.notes.append("there is no whole checkpoint yet: starting from the first step")
        return Start(None, own=True)

    def place(self, *writers: Callable[[Path], None]) -> None:
        """Write files into the run folder such that a kill leaves each of them old or new, whole.

        ``writers`` (save_model, say) write to a temporary folder; its files are fsynced and then
        renamed to their places.
        """
        temporary = self.path / f".tmp-place-{uuid.uuid4().hex[:8]}"
        try:
            files.make_folder(temporary)
            for writer in writers:
                files.before("foreign", temporary)
                writer(temporary)
            found = files.files_below(temporary)
            for source in found:
                files.sync_file(source)
            for source in found:
                target = self.path / source.relative_to(temporary)
                files.make_folder(target.parent)
                files.replace(source, target)
                files.sync_folder(target.parent)
        except (OSError, SafetensorError) as error:
            raise self._broken(error) from error
        finally:
            with contextlib.suppress(OSError):  # `starting_point` comes back to it
                files.remove_tree(temporary)

    def mark(self, state: State, reason: str | None = None) -> None:
        """Record how the run stands; ``reason`` is why it failed."""
        self._record = {**self._record, "state": state, "reason": reason}
        self._record["time"] = time.time()
        self._put(RECORD, json.dumps(self._record, indent=1) + "\n")

    def _put(self, name: str, text: str) -> None:
        try:
            files.write_atomic(self.path / name, text.encode())
        except OSError as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> CheckpointError:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        return CheckpointError(
            f"{self.path}: cannot be written to ({' '.join(reason.split())}); the last checkpoint "
            "is kept: see to the disk (space, permissions) and run the same command again"
        )

    def finish(self, results: Mapping[str, Any]) -> None:
        """Record that the run is whole, as its very last act: after the model and the card.

        Writes all_results.json, and train_results.json and eval_results.json as the HF Trainer
        splits them (by the prefix ``eval_``).
        """
        parts = {
            "all": dict(results),
            "train": {k: v for k, v in results.items() if not k.startswith("eval_")},
            "eval": {k: v for k, v in results.items() if k.startswith("eval_")},
        }
        for name, part in parts.items():
            if part:
                self._put(f"{name}_results.json", json.dumps(part, indent=1) + "\n")
        self.mark("finished")

    def _has_checkpoints(self) -> bool:
        return any(step_of(path.name) >= 0 for path in self.path.iterdir())

    def close(self) -> None:
        """Let go of the lock; what is recorded stays."""
        self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any):
        try:
            if self._record["state"] == "running":
                if kind is not None and not issubclass(kind, Exception):  # Ctrl-C, SystemExit
                    self.mark("interrupted")
                elif error is not None:
                    refused = isinstance(error, UsageError) and not self._has_checkpoints()
                    reason = (str(error).splitlines() or [type(error).__name__])[0]
                    self.mark("refused" if refused else "failed", reason)
        except CheckpointError:
            if error is None:
                raise  # otherwise the disk may be why it failed: `error` is what counts
        finally:
            self.close()


def finished_recipe(path: Path) -> str | None:
    """The recipe of the finished run in a folder, as it was written; None if there is none."""
    if not (path / "run.json").is_file():
        return None
    record = _read_record(path, False)
    return record["recipe"] if record.get("state") == "finished" else None


def yaml_difference(old: str, new: str) -> list[str]:
    """One ``key: old -> new`` for every value in which two YAML mappings differ."""
    import yaml

    before, now = _flat(yaml.safe_load(old)), _flat(yaml.safe_load(new))
    return [
        f"{key}: {before.get(key, 'unset')} -> {now.get(key, 'unset')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key, "unset") != now.get(key, "unset")
    ]


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {key: value} if key else {}
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat.update(_flat(item, f"{key}.{name}" if key else str(name)))
    return flat


def _require_ours(path: Path) -> None:
    if os.path.lexists(path) and not path.is_dir():
        raise UsageError(f"output_dir={path}: is not a folder; give another --output-dir")
    if not path.is_dir() or (path / RECORD).exists():
        return
    others = foreign_names(path)
    if others:
        raise UsageError(
            f"output_dir={path}: is not empty and holds no run of trimtab's ({others[0]}"
            + (f" and {len(others) - 1} more" if len(others) > 1 else "")
            + "); give another --output-dir"
        )


def _read_record(path: Path, restart: bool) -> dict[str, Any]:
    try:
        record = json.loads(files.read_file(path / RECORD))
        if not isinstance(record["recipe"], str) or not isinstance(record["starts"], list):
            raise TypeError
        return {**record, "state": str(record["state"])}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError):
        if restart:
            return {"state": "unreadable"}
        raise UsageError(
            f"{path / RECORD}: cannot be read; --restart sets the old run's files aside"
        ) from None


def _unwritable(path: Path, error: OSError) -> str:
    return (
        f"output_dir={path}: cannot be written to ({error.strerror or error}); see to it, or give "
        "another --output-dir"
    )


def _relative(path: Path, folder: Path) -> str:
    try:
        return os.path.relpath(path.resolve(), folder.resolve())
    except ValueError:  # another drive, on Windows
        return str(path.resolve())
