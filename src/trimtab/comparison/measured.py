"""What all examinations found, as tables of seeds by prompts."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.comparison import work
from trimtab.comparison.cells import Cell, Plan, label_of, proxy_of
from trimtab.config.compare_recipe import BASE

Floats = NDArray[np.float64]
PARTS = ("choose", "examine")
OWN_PROXY = "own_proxy"  # the column of a method with a reward of its own, on a scale of its own


@dataclasses.dataclass(frozen=True)
class Setting:
    """A point of a method's grid after so many steps (or its n), over all seeds.

    ``columns[part][name]`` is [seeds, prompts, samples]; ``text`` [seeds, rows, 2] has nats and
    tokens. ``seconds`` and ``tokens`` are of each seed.
    """

    method: str
    settings: Mapping[str, Any]
    step: int
    final: bool
    seeds: tuple[int, ...]
    columns: Mapping[str, Mapping[str, Floats]]
    text: Floats | None
    seconds: tuple[float, ...]
    tokens: tuple[int, ...]
    runs: tuple[str, ...]
    texts: tuple[Mapping[str, str], ...]  # of the first seed: {"prompt", "answer"}

    @property
    def label(self) -> str:
        """Its settings in words."""
        return label_of(self.settings)

    def cells(self, name: str, part: str = "examine") -> Floats:
        """[seeds, prompts] means over the samples."""
        return self.columns[part][name].mean(axis=2)

    def has(self, name: str) -> bool:
        """Whether there is such a column."""
        return name in self.columns["examine"]


@dataclasses.dataclass(frozen=True)
class Measured:
    """The model at the start and every setting of every method that is there for all seeds."""

    base: Setting
    methods: Mapping[str, list[Setting]]
    left_out: tuple[str, ...]  # methods' settings of which a seed is missing


def gather(plan: Plan) -> Measured | None:
    """All that was found; None where even the model at the start was not examined."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in plan.cells:
        if cell.kind != "pilot":
            groups.setdefault((cell.method, cell.label), []).append(cell)
    methods: dict[str, list[Setting]] = {}
    left_out: list[str] = []
    for (method, label), cells in groups.items():
        if any(work.missing(plan, cell) for cell in cells):
            left_out.append(method if label == "default" else f"{method} ({label})")
            continue
        found = [_setting(plan, cells, at) for at in cells[0].examined]
        methods.setdefault(method, []).extend(found)
    base = methods.pop(BASE, None)
    if base is None:
        return None
    order = [name for name in plan.recipe.methods if name in methods]
    return Measured(base[0], {name: methods[name] for name in order}, tuple(left_out))


def _setting(plan: Plan, cells: list[Cell], at: int) -> Setting:
    records = [work.read(plan, cell, at) for cell in cells]
    names: list[str] = [name for name, values in records[0]["examine"].items() if values]
    own: dict[str, str] = {"proxy": OWN_PROXY} if cells[0].proxy != proxy_of(plan.recipe) else {}
    columns = {
        part: {
            own.get(name, name): np.array([record[part][name] for record in records], np.float64)
            for name in names
        }
        for part in PARTS
    }
    text = None
    if records[0]["text"] is not None:
        text = np.array([record["text"] for record in records], dtype=np.float64)
    spent = [record.get("spent", {"seconds": 0.0, "tokens": 0}) for record in records]
    first = cells[0]
    best_of = first.kind == "best_of_n"
    last = max(first.examined)
    return Setting(
        first.method,
        {"n": at} if best_of else first.settings,
        0 if best_of else at,
        best_of or at == last,
        tuple(cell.seed for cell in cells),
        columns,
        text,
        tuple(one["seconds"] for one in spent),
        tuple(int(one["tokens"]) for one in spent),
        tuple(_run(plan, cell, at) for cell in cells),
        tuple(records[0]["texts"]),
    )


def _run(plan: Plan, cell: Cell, at: int) -> str:
    """Where the model of a point is, or was: relative to the comparison's folder, or the base."""
    if cell.kind != "run":
        return plan.recipe.model_name_or_path
    folder = Path(os.path.relpath(plan.run_folder(cell), plan.folder)).as_posix()
    return folder if at == max(cell.examined) else f"{folder}/checkpoint-{at}"
