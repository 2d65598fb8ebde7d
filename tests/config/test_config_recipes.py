"""Every recipe that ships is a valid one, and its header's commands name it and its verb."""

from pathlib import Path

import pytest

from trimtab.config.resolve import resolve

# Those of comparisons are another kind: tests/comparison/.
EVERY = (Path(__file__).parents[2] / "recipes").rglob("*.yaml")
RECIPES = sorted(path for path in EVERY if path.parent.name != "compare")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_recipe_resolves(path: Path) -> None:
    resolved = resolve(path.stem, [str(path)], env={})
    assert resolved.verb == path.stem
    assert resolved.recipe.max_steps != 0
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"trimtab {path.stem} recipes/{path.parent.name}/{path.name}" in x for x in header)


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 7
