"""docs/defaults.md says what the code does."""

from __future__ import annotations

import re
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from trimtab.config import VERBS, NewModelSpec, resolve
from trimtab.config.loss_schema import loss_schemas
from trimtab.config.on_policy_recipe import OnPolicyRecipe
from trimtab.config.resolved import _flow
from trimtab.config.verbs import LOSS_DEFAULTS

DOC = Path(__file__).resolve().parents[2] / "docs" / "defaults.md"


def tables() -> dict[str, dict[str, str]]:
    """Heading -> key -> what the column "here" says."""
    found: dict[str, dict[str, str]] = {}
    for section in DOC.read_text(encoding="utf-8").split("\n## ")[1:]:
        heading = section.split("\n")[0]
        rows = re.findall(r"^\| `([\w.]+)` \| ([^|]*) \|", section, re.M)
        found[heading] = dict(rows)
    return found


JUDGED = {
    name: ["--reward-funcs", "f"]
    for name, verb in VERBS.items()
    if issubclass(verb.recipe, OnPolicyRecipe)
}


def default(verb: str, key: str) -> Any:
    if key.startswith("new_model."):
        return getattr(NewModelSpec(), key.removeprefix("new_model."))
    tokens = ["--model", "m", "--dataset", "d", *JUDGED.get(verb, [])]
    recipe = resolve(verb, tokens, env={}).recipe.model_dump()
    return reduce(lambda group, name: group[name], key.split("."), recipe)


def number(text: str) -> str:
    """1e-06 and 1.0e-06 are the same number."""
    return str(float(text)) if re.fullmatch(r"[\d.]+(e-?\d+)?", text) else text


def test_every_verb_has_a_table() -> None:
    assert list(tables()) == [*VERBS, "All stages"]
    assert all(tables().values())


@pytest.mark.parametrize("verb", list(VERBS))
def test_defaults_of_a_verb(verb: str) -> None:
    for key, here in tables()[verb].items():
        assert number(_flow(default(verb, key))) == number(here), key


@pytest.mark.parametrize("verb", list(VERBS))
def test_defaults_of_all_stages(verb: str) -> None:
    for key, here in tables()["All stages"].items():
        if key == "truncation_mode" and verb in ("pretrain", "classify"):
            continue
        assert number(_flow(default(verb, key))) == number(here), key


def test_the_check_sees_a_difference() -> None:
    assert number(_flow(default("dpo", "learning_rate"))) != number("5e-7")


def test_defaults_of_further_losses_are_in_the_text() -> None:
    text = DOC.read_text(encoding="utf-8")
    for key, loss in (("alpha", "tdpo2"), ("scale", "beta_dpo"), ("momentum", "beta_dpo")):
        tokens = ["--model", "m", "--dataset", "d", "--loss", loss]
        value = resolve("dpo", tokens, env={}).recipe.loss.parameters[key]  # type: ignore[attr-defined]
        assert f"`loss.{key}` {value}" in text


def test_defaults_of_every_loss_are_in_its_table() -> None:
    """The table "Losses of --loss" names each loss without a verb, and what it changes."""
    rows = re.findall(r"^\| (\w+) \|([^|`]*)\| [^|]* \|$", DOC.read_text("utf-8"), re.M)
    table = {name: cell.strip() for name, cell in rows}
    verbs = {verb.loss or verb.name for verb in VERBS.values()}
    without_verb = loss_schemas().keys() - verbs - {"tdpo2", "beta_dpo", "plackett_luce"}
    assert without_verb <= table.keys()
    for name in without_verb:
        wanted = ", ".join(f"{k} {v}" for k, v in LOSS_DEFAULTS.get(name, {}).items())
        assert table[name] == wanted, name
