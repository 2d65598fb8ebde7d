"""Every recipe that ships is a valid one, and its header's commands name it and its verb."""

from pathlib import Path

import pytest

from trimtab.comparison.recipe import read_recipe
from trimtab.config.recipe_files import recipe_files, verb_of_file
from trimtab.config.resolve import resolve
from trimtab.errors import RecipeError
from trimtab.rewards import spec
from trimtab.shipped import RECIPES, or_shipped

EVERY = recipe_files()
# Those of comparisons are another kind: tests/comparison/.
FOUND = [one for one in EVERY if one.verb != "compare"]


@pytest.mark.parametrize("one", FOUND, ids=lambda one: one.name)
def test_recipe_resolves(one) -> None:
    resolved = resolve(one.verb, [str(one.path)], env={})
    assert resolved.verb == one.verb
    assert resolved.recipe.max_steps != 0
    header = [line for line in one.path.read_text().splitlines() if line.startswith("#")]
    assert any(f"trimtab {one.verb} recipes/{one.name}.yaml" in line for line in header)
    assert len(one.about) > 40, "the header begins with what it does, on what and how long"
    for function in getattr(resolved.recipe, "reward_funcs", ()):  # its file is shipped with it
        assert or_shipped(Path(spec.parse(function).place)).is_file()


def test_there_are_recipes_and_they_are_those_of_the_checkout() -> None:
    checkout = Path(__file__).parents[2] / RECIPES
    assert sorted(one.path for one in EVERY) == sorted(checkout.rglob("*.yaml"))
    assert len(FOUND) >= 10


def test_a_shipped_recipe_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    resolved = resolve("dpo", ["recipes/tiny/dpo.yaml"], env={})
    assert resolved.recipe.max_train_rows == 2000
    assert resolved.notes[0] == "recipes/tiny/dpo.yaml: the recipe that comes with trimtab"
    own = tmp_path / "recipes" / "tiny" / "dpo.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("model: m\ndataset: d\nmax_train_rows: 7\n")
    resolved = resolve("dpo", ["recipes/tiny/dpo.yaml"], env={})
    assert resolved.recipe.max_train_rows == 7  # the user's own comes first
    with pytest.raises(
        RecipeError,
        match=r"dop\.yaml: no such recipe file\. Did you mean recipes/tiny/dpo\.yaml\?$",
    ):
        resolve("dpo", ["recipes/tiny/dop.yaml"], env={})


def test_a_shipped_recipe_by_its_name_in_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tiny/dpo", "recipes/tiny/dpo"):
        resolved = resolve("dpo", [name], env={})
        assert resolved.notes[0] == "recipes/tiny/dpo.yaml: the recipe that comes with trimtab"
        assert resolved.provenance["learning_rate"].startswith("recipes/tiny/")
    assert (
        resolve("dpo", ["large/qwen2.5-1.5b-dpo-lora"], env={})
        .notes[0]
        .startswith("recipes/large/")
    )
    assert read_recipe(["compare/tiny"]).recipe.title == "tiny"
    assert read_recipe(["compare/tiny"]).where("budget") == "recipes/compare/tiny.yaml:18"
    with pytest.raises(
        RecipeError, match=r"^tiny/dop: no such recipe file\. Did you mean tiny/dpo\?"
    ):
        resolve("dpo", ["tiny/dop"], env={})
    with pytest.raises(RecipeError, match=r"recipe is for trimtab dpo \(recipes/tiny/dpo\.yaml:6"):
        resolve("sft", ["tiny/dpo"], env={})
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "dpo").write_text("model: m\ndataset: d\nmax_train_rows: 7\n")
    assert resolve("dpo", ["tiny/dpo"], env={}).recipe.max_train_rows == 7


def test_the_verb_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("model: m\n")
    assert verb_of_file(file) is None
    file.write_text("model: m\nverb: dpp\n")
    with pytest.raises(
        RecipeError, match=r"verb: 'dpp' is no training verb \(.*:2\). Did you mean"
    ):
        verb_of_file(file)
