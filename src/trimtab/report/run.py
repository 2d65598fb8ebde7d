"""A training run as its folder tells it, finished or not."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.config.resolved import RESOLVED_NAME, RecipeLine, recipe_lines
from trimtab.errors import UsageError
from trimtab.report import read
from trimtab.report.read import Record

ABOUT = "about.json"
LOG, RECORD = "metrics.jsonl", "run.json"


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run's folder holds.

    ``logged`` are the records of training steps, ``evaluations`` those with held-out numbers (both
    have a ``step``), ``diagnosed`` the lines that are diagnoses. ``about`` is what training leaves
    for its report (``algorithms/about.py``); runs of older versions have none.
    """

    path: Path
    verb: str
    state: str
    recipe: Sequence[RecipeLine]
    record: Record
    logged: Sequence[Record]
    evaluations: Sequence[Record]
    diagnosed: Sequence[Record]
    results: Record
    diagnoses: Record
    selfcheck: Record
    environment: Record
    about: Record

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return self.state == "finished"

    @property
    def values(self) -> dict[str, str]:
        """The recipe: dotted key -> value as text."""
        return {line.key: line.value for line in self.recipe}

    def setting(self, key: str) -> str:
        """A value of the recipe without quotes; empty where it is null or not there."""
        value = self.values.get(key, "")
        return "" if value in ("null", "[]", "{}") else value.strip('"')

    @property
    def starts(self) -> list[Record]:
        """When and with which command the run was started, every time."""
        found = self.record.get("starts")
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []

    @property
    def seconds(self) -> float | None:
        """From every start to its end; None where an end is not known, as after a kill."""
        if not self.finished or not self.starts:
            return None
        begun = [read.value(one, "time") for one in self.starts]
        ended = [read.value(one, "ended") for one in self.starts[:-1]]
        total = 0.0
        for start, end in zip(begun, [*ended, read.value(self.record, "time")], strict=True):
            if start is None or end is None:
                return None
            total += max(0.0, end - start)
        return total

    @property
    def last_step(self) -> int:
        """The last step that the log or the results know of."""
        steps = [read.value(one, "step") or 0 for one in (*self.logged, *self.evaluations)]
        return int(max([*steps, read.value(self.results, "steps") or 0], default=0))

    @property
    def parameters(self) -> int | None:
        """How many weights the model has: from the run's own count, or from its files."""
        own = read.value(self.about, "parameters")
        return int(own) if own is not None else parameters_of(self.path)

    @property
    def datasets(self) -> list[str]:
        """The files or hub ids that the run was trained on."""
        found = re.findall(r"\bpath: (\"[^\"]*\"|[^,}]+)", self.setting("datasets"))
        names = [name.strip().strip('"') for name in found]
        return names or [name for name in [self.setting("dataset_name")] if name]

    def series(self, name: str, *, held_out: bool = False) -> list[tuple[float, Record]]:
        """(step, record) of every record that has a number."""
        source = self.evaluations if held_out else self.logged
        full = f"eval_{name}" if held_out else name
        return [
            (step, one)
            for one in source
            if read.value(one, full) is not None and (step := read.value(one, "step")) is not None
        ]

    def ends_of(self, name: str) -> tuple[Record, Record] | None:
        """The first and the last record of training that have a number; None without two."""
        found = self.series(name)
        return (found[0][1], found[-1][1]) if len(found) > 1 else None


def is_run(folder: Path) -> bool:
    """Whether a folder holds a training run, whatever came of it."""
    return (folder / RECORD).is_file() or (folder / RESOLVED_NAME).is_file()


def load_run(folder: Path) -> Run:
    """Read a run; UsageError for files that are broken, or where there is no recipe."""
    record = read.optional_object(folder / RECORD)
    text = record.get("recipe")
    if not isinstance(text, str):
        if not (folder / RESOLVED_NAME).is_file():
            raise UsageError(f"{folder}: has no {RESOLVED_NAME}: it is no run of trimtab's")
        text = read.text_of(folder / RESOLVED_NAME)
    verb = re.search(r"^verb: (\w+)$", text, re.MULTILINE)
    if verb is None:
        raise UsageError(f"{folder / RESOLVED_NAME}: has no 'verb: dpo' line")
    every = read.records(folder / LOG)
    return Run(
        path=folder,
        verb=verb[1],
        state=str(record.get("state", "finished")),
        recipe=recipe_lines(text),
        record=record,
        logged=[one for one in every if "loss" in one],
        evaluations=[one for one in every if any(key.startswith("eval_") for key in one)],
        diagnosed=[one for one in every if "diagnosis" in one],
        results=read.optional_object(folder / "all_results.json"),
        diagnoses=read.optional_object(folder / "diagnoses.json"),
        selfcheck=read.optional_object(folder / "selfcheck.json"),
        environment=_environment(folder, record),
        about=read.optional_object(folder / ABOUT),
    )


def _environment(folder: Path, record: Mapping[str, Any]) -> Record:
    found = record.get("environment")
    if isinstance(found, dict):
        return found
    return read.optional_object(folder / "environment.json")


def parameters_of(folder: Path) -> int | None:
    """Weights in the safetensors files of a model folder; None without any, or if they are broken.

    Only the files' headers are read.
    """
    from safetensors import SafetensorError, safe_open

    paths = sorted(folder.glob("model*.safetensors")) or sorted(
        folder.glob("adapter_model*.safetensors")
    )
    total = 0
    try:
        for path in paths:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118 (not a dictionary)
                    size = 1
                    for length in file.get_slice(name).get_shape():
                        size *= length
                    total += size
    except (OSError, SafetensorError):
        return None
    return total or None


def chain(run: Run, most: int = 12) -> list[Run]:
    """The runs that this one goes back to, oldest first, itself last: as far as they are here.

    A recipe names the model that it starts from as the command did, relative to where that was
    given; both that place and the folder beside this run are looked at.
    """
    found = [run]
    while len(found) < most:
        name = found[0].setting("model_name_or_path")
        before = _folder_of(name, found[0].path) if name else None
        if before is None or any(_same(before, one.path) for one in found):
            break
        try:
            found.insert(0, load_run(before))
        except UsageError:
            break  # what is broken there is not this report's to tell
    return found


def _folder_of(name: str, beside: Path) -> Path | None:
    for place in (Path(name), beside.parent / Path(name).name):
        if is_run(place):
            return place
    return None


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
