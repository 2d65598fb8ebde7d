"""Every comparison that ships is whole: each cell is a valid recipe, and fits the budget."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from trimtab.comparison.digests import Digests
from trimtab.comparison.plan import make_plan
from trimtab.comparison.recipe import read_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "compare").glob("*.yaml"))


class Names(Digests):
    """Hashes of names: the files themselves are made by the demo."""

    def _once(self, kind: str, what: str, find: Any) -> str:
        return hashlib.sha256(f"{kind}:{what}".encode()).hexdigest()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_cell_resolves(path: Path) -> None:
    plan = make_plan(read_recipe([str(path)]), digests=Names())
    recipe = plan.recipe
    runs = [cell for cell in plan.cells if cell.kind == "run"]
    assert len({cell.key for cell in runs}) == len(runs), "no two cells are the same work"
    assert {cell.seed for cell in runs} == set(recipe.seeds)
    for cell in runs:
        assert cell.resolved is not None
        assert max(cell.examined) == cell.resolved.recipe.max_steps
        assert 1 <= len(cell.examined) <= recipe.checkpoints
    assert not plan.notes, "the budget is whole steps for all"
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"trimtab compare recipes/compare/{path.name}" in line for line in header)


def test_there_are_recipes() -> None:
    assert {"tiny", "world"} <= {path.stem for path in RECIPES}
