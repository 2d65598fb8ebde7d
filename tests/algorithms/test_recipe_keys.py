"""No recipe key without effect."""

from __future__ import annotations

import ast
from pathlib import Path

import trimtab
from trimtab.config import VERBS
from trimtab.config.data_keys import DatasetSpec, MixSpec
from trimtab.config.recipes import NewModelSpec, NewTokenizerSpec

SOURCE = Path(trimtab.__file__).parent

# Methods of the recipes through which other keys are read.
READERS = {"train_specs", "eval_specs", "specs", "rows_per_step", "config", "gather", "passes"}


def names_in(tree: ast.AST) -> set[str]:
    """Attributes and strings: how a recipe's keys are read."""
    found = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    strings = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return found | {value for value in strings if isinstance(value, str)}


def read_names() -> set[str]:
    """Names that are read outside config/, or by a method of it that is called from outside."""
    outside: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        if path.parent.name != "config":
            outside |= names_in(ast.parse(path.read_text()))
    for path in (SOURCE / "config").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name in READERS:
                assert node.name in outside or node.name == "gather"
                outside |= names_in(node)
    return outside


def test_every_recipe_key_is_read() -> None:
    recipes = {verb.recipe for verb in VERBS.values()}
    groups = {DatasetSpec, MixSpec, NewModelSpec, NewTokenizerSpec}
    keys = {name for model in recipes | groups for name in model.model_fields}
    assert len(keys) > 60
    assert keys - read_names() == set()
    assert {"made_up_key"} - read_names() == {"made_up_key"}
