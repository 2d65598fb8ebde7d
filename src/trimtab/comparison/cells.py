"""What a comparison is made of: its cells, and the plan of all of them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from trimtab.config.compare_recipe import CompareRecipe, JudgeSpec
from trimtab.config.resolved import Resolved


class Rate(NamedTuple):
    """What an optimizer step of a method takes, measured on its first ones."""

    tokens: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Cell:
    """One piece of work: a model to examine, a run to train and examine, or the best of n.

    ``examined`` has, step by step (or n by n), the key of the file that holds what was found.
    ``cost`` is a guess of its time, in seconds of one thread with a model of half a million
    weights, to begin with the longest and to say how much is left.
    """

    kind: Literal["base", "run", "best_of_n", "pilot"]
    method: str
    settings: Mapping[str, Any]
    seed: int
    examined: Mapping[int, str]
    cost: float
    proxy: JudgeSpec
    resolved: Resolved | None = None
    key: str = ""
    identity: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])

    @property
    def label(self) -> str:
        """Its settings in words; ``default`` where its method has no grid."""
        return label_of(self.settings)

    @property
    def says(self) -> str:
        """Which one it is, in words."""
        settings = "" if not self.settings else f" {self.label}"
        return f"{self.method}{settings} seed {self.seed}"

    @property
    def folder(self) -> str:
        """Name of its run's folder: readable, and another one for another recipe."""
        words = f"{self.method}-{self.label}-seed-{self.seed}-{self.key[:8]}"
        return re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-")


def label_of(settings: Mapping[str, Any]) -> str:
    """``beta 0.1, gamma 1``."""
    words = (f"{name.rpartition('.')[2]} {value}" for name, value in settings.items())
    return ", ".join(words) or "default"


@dataclasses.dataclass(frozen=True)
class Plan:
    """All cells; ``examination`` is what all examinations depend on, beside model and proxy."""

    recipe: CompareRecipe
    folder: Path
    cells: tuple[Cell, ...]
    examination: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def parts(self) -> Path:
        """Folder of runs and examinations, which several comparisons can share."""
        return parts_of(self.recipe)

    def place(self, key: str) -> Path:
        """The file of an examination."""
        return self.parts / "examinations" / f"{key}.json"

    def run_folder(self, cell: Cell) -> Path:
        """Where a cell trains."""
        return self.parts / "runs" / cell.folder


def proxy_of(recipe: Any) -> JudgeSpec:
    """The rewards that a recipe names: a comparison's, or those of one method's run."""
    return JudgeSpec(
        reward_model=recipe.reward_model,
        reward_funcs=recipe.reward_funcs,
        reward_weights=recipe.reward_weights,
    )


def parts_of(recipe: CompareRecipe) -> Path:
    """Where runs and examinations lie."""
    folder = recipe.parts_dir or recipe.output_dir
    assert folder is not None, "reading a recipe gives it a folder"
    return Path(folder)


def rate_name(method: str, settings: Mapping[str, Any]) -> str:
    """What the rate of a method and its settings goes by: all seeds have one."""
    return f"{method}: {label_of(settings)}"
