"""Setting an old run's files aside: moved to ``old-<n>/`` in its folder, never deleted.

Only names that a run of ours makes are touched; whatever else lies in the folder stays. Inside the
folder, because that is the same file system and needs no rights on the folder above.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable
from pathlib import Path

from trimtab.training import files, lock

RECORD = "run.json"
FOLDERS = ("completions", "samples", "rollouts")  # of files that a run writes one by one
RUN_FILES = (  # what runs make, as patterns of names in the run folder
    *("config.resolved.yaml", "command.txt", "environment.json", "README.md"),
    *("metrics.jsonl", "samples.jsonl", "trackers.json", "report.html", "trainer_state.json"),
    *("all_results.json", "train_results.json", "eval_results.json", "selfcheck.json"),
    *("diagnoses.json", "about.json", "value_model"),
    *("checkpoint-*", ".old-checkpoint-*", *FOLDERS, "tensorboard"),
    *("bad_rows*", "quarantine*", "nonfinite*"),  # caches stay: their keys name their content
    *("config.json", "generation_config.json", "model*.safetensors", "model*.index.json"),
    *("adapter_config.json", "adapter_model*.safetensors", "value_head*.safetensors"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("chat_template.jinja", "additional_chat_templates"),
)
_ASIDE = re.compile(r"old-(\d+)")
_HIDDEN = re.compile(r"\.(tmp|trash|old)-.+|\.lock")  # ours, while a run begins or after a kill
_NOBODYS = (".DS_Store", ".gitignore", ".gitkeep")
_COPIED = ("metrics.jsonl", "config.resolved.yaml", "command.txt", "environment.json")
assert _HIDDEN.fullmatch(lock.NAME)


def foreign_names(folder: Path) -> list[str]:
    """Names in a folder without a run that a run which has only just begun does not explain."""
    return [
        name
        for name in sorted(os.listdir(folder))
        if not _HIDDEN.fullmatch(name) and not _ASIDE.fullmatch(name) and name not in _NOBODYS
    ]


def step_of(name: str) -> int:
    """The step in a checkpoint's name; -1 for any other name."""
    match = re.fullmatch(r"(?:\.old-)?checkpoint-(\d+)(?:-[0-9a-f]+)?", name)
    return int(match[1]) if match else -1


def set_aside(folder: Path, moves: Callable[[str], bool]) -> Path:
    """Move the run's files whose name ``moves`` to old-<n>; returns that folder.

    run.json is copied there, last of all: an old-<n> without it is a move that a kill ended, and
    is gone on with. It also stays, until the caller replaces it: without it the folder would, for
    a moment, be nobody's. So do the log and the recipe where they are not moved (a history that is
    left at an earlier checkpoint).
    """
    moved = [
        name
        for name in sorted(os.listdir(folder))
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in RUN_FILES) and moves(name)
    ]
    record = files.read_file(folder / RECORD)
    target = _target(folder, moved, record)
    files.make_folder(target)
    for name in moved:
        files.rename(folder / name, target / name)
    for name in _COPIED:
        if name not in moved and (folder / name).is_file():
            files.write_atomic(target / name, files.read_file(folder / name))
    files.sync_folder(target)
    files.sync_folder(folder)
    files.write_atomic(target / RECORD, record)
    return target


def _target(folder: Path, moved: list[str], record: bytes) -> Path:
    """The next old-<n>, or the last one when this very move was begun, or done, there."""
    numbers = [int(m[1]) for m in map(_ASIDE.fullmatch, os.listdir(folder)) if m]
    last = folder / f"old-{max(numbers, default=1)}"
    if (last / RECORD).exists():
        usable = not moved and files.read_file(last / RECORD) == record
    else:
        usable = not any(os.path.lexists(last / name) for name in moved)
    return last if usable else folder / f"old-{max(numbers) + 1}"
