"""``VERB --help`` shows every key, and its defaults are those that a run gets."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from trimtab.cli.verb_help import print_verb_help
from trimtab.config import VERBS, PreferenceRecipe, resolve
from trimtab.config.hints import CONTROLS
from trimtab.config.loss_schema import loss_schemas
from trimtab.config.on_policy_recipe import OnPolicyRecipe
from trimtab.config.schema import recipe_keys


def help_of(verb: str, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    print_verb_help(verb, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_key_is_there_with_words(verb: str) -> None:
    text = help_of(verb)
    for key in recipe_keys(VERBS[verb].recipe).values():
        if key.path.startswith("loss"):
            continue
        name = key.path.replace("_", "-")
        row = re.search(rf"^ +--(\[no-\])?{re.escape(name)} .*", text, re.M)
        assert row, name
        assert key.description and key.description[:20] in row[0]
    for name in CONTROLS:
        assert f"--{name.replace('_', '-')}" in text


@pytest.mark.parametrize("verb", list(VERBS))
def test_defaults_are_those_of_a_run(verb: str) -> None:
    text = help_of(verb)
    judged = ["--reward-funcs", "f"] if issubclass(VERBS[verb].recipe, OnPolicyRecipe) else []
    recipe = resolve(verb, ["--model", "m", "--dataset", "d", *judged], env={}).recipe
    for name in ("learning_rate", "num_train_epochs", "per_device_train_batch_size"):
        row = re.search(rf"^ +--{name.replace('_', '-')} .*?; default (.*?)\]", text, re.S | re.M)
        assert row and float(row[1]) == getattr(recipe, name), name


@pytest.mark.parametrize("verb", ["simpo", "orpo", "kto", "ipo", "cpo", "bco"])
def test_a_verb_of_one_loss_shows_its_hyper_parameters(verb: str) -> None:
    text = help_of(verb)
    parameters = loss_schemas()[verb].parameters
    for name, parameter in parameters.items():
        default = f"{parameter.default:g}"
        assert re.search(
            rf"--{name.replace('_', '-')} +Hyper-parameter of {verb}.*default {default}\]", text
        )
    assert ("--gamma" in text) == ("gamma" in parameters)
    assert "--loss " not in text


def test_dpo_shows_all_losses() -> None:
    text = help_of("dpo")
    for name, schema in loss_schemas().items():
        assert f"--loss {name}" in text
        assert all(f"--{p.replace('_', '-')} " in text for p in schema.parameters)
    assert "[its defaults: per_device_train_batch_size 128" in text


def test_it_fits_a_narrow_terminal() -> None:
    for verb in VERBS:
        lines = help_of(verb, width=80).splitlines()
        assert max(len(line) for line in lines if not line.startswith("Example")) <= 80
        assert "…" not in "".join(lines)


def test_no_field_is_left_without_help() -> None:
    for field in PreferenceRecipe.model_fields.values():
        assert field.description
