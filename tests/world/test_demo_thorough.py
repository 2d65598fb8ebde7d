"""``trimtab demo --thorough``: the recipe of the comparison, on the paths of this demo."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.cli import main
from trimtab.comparison.recipe import read_recipe
from trimtab.world import demo_thorough


def test_the_recipe_is_read_with_the_paths_of_the_demo(tmp_path: Path) -> None:
    read = read_recipe(demo_thorough.tokens_of(tmp_path))
    recipe = read.recipe
    assert recipe.model_name_or_path == str(tmp_path / "sft")
    assert recipe.methods["ppo"]["mix"]["dataset_name"] == str(tmp_path / "data" / "text.jsonl")
    assert recipe.output_dir == str(tmp_path / "comparison") and len(recipe.seeds) == 5
    assert "runs/" not in recipe.model_dump_json().replace(str(tmp_path), "")


def test_a_finished_demo_is_only_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[Path, int]] = []
    monkeypatch.setattr(demo_thorough, "run_thorough", lambda *given: asked.append(given) or 0)
    (tmp_path / "summary.json").write_text("{}")
    assert main(["demo", "--thorough", "--output-dir", str(tmp_path), "--seed", "3"]) == 0
    assert asked == [(tmp_path, 3)]
    assert main(["demo", "--thorough", "--fast", "--output-dir", str(tmp_path)]) == 2
    assert "leave --fast and --seeds out" in capsys.readouterr().err
