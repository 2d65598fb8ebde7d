"""The resolved recipe: it says where values came from, reads back the same, and compares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.config import (
    RESUME_FREE,
    VERBS,
    Resolved,
    difference,
    load_resolved,
    load_text,
    resolve,
    to_yaml,
)
from trimtab.config.on_policy_recipe import OnPolicyRecipe
from trimtab.config.recipes import TrainRecipe
from trimtab.errors import RecipeError

BASE = ["--model", "m", "--dataset", "d.jsonl"]


def run(verb: str, *tokens: str) -> Resolved:
    return resolve(verb, [*BASE, *tokens], env={})


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_round_trip_of_defaults(verb: str) -> None:
    judged = ["--reward-funcs", "f"] if issubclass(VERBS[verb].recipe, OnPolicyRecipe) else []
    found = run(verb, *judged)
    text = to_yaml(found)
    again = load_text(text)
    assert (again.verb, again.recipe) == (found.verb, found.recipe)
    assert to_yaml(Resolved(verb, again.recipe, found.provenance)) == text


@pytest.mark.parametrize("labels", [[1, 0], ["no", "yes"], ["1", "x"], ["a: b", "#c", "1e5"]])
def test_round_trip_of_classes(labels: list[int | str], tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump({"labels": labels}))
    found = run("classify", str(file))
    again = load_text(to_yaml(found))
    assert again.recipe.labels == found.recipe.labels == labels  # type: ignore[attr-defined]


def test_comments_say_where_values_came_from(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("seed: 5\nloss: simpo\n")
    lines = to_yaml(run("dpo", str(file), "--gamma", "2", "--learning-rate", "1e-6")).splitlines()
    assert f"seed: 5  # {file}:1" in lines
    assert f"  name: simpo  # {file}:2" in lines
    assert "  gamma: 2.0  # command line" in lines
    assert "  beta: 2.0  # default" in lines
    assert "lr_scheduler_type: cosine  # default of simpo" in lines
    assert "learning_rate: 1.0e-06  # command line" in lines
    assert "verb: dpo" in lines


def test_other_readers_of_yaml_get_the_same_values() -> None:
    found = run("dpo", "--learning-rate", "1e-6", "--run-name", "no", "--sample-prompts", "a: b")
    values = yaml.safe_load(to_yaml(found))
    assert values.pop("verb") == "dpo"
    assert values == found.recipe.model_dump()


def test_a_resolved_recipe_runs_again_as_a_recipe(tmp_path: Path) -> None:
    found = run("orpo", "--mix.dataset-name", "t", "--mix.weight", "0.5", "--report-to", "wandb")
    (tmp_path / "config.resolved.yaml").write_text(to_yaml(found))
    for name in (tmp_path, tmp_path / "config.resolved.yaml"):
        assert resolve("orpo", [str(name)], env={}).recipe == found.recipe
        assert load_resolved(name).recipe == found.recipe


def test_what_is_no_resolved_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="has no 'verb: dpo' line"):
        load_text("seed: 1\n")
    with pytest.raises(RecipeError, match=r"config\.resolved\.yaml: no such recipe file"):
        load_resolved(tmp_path)
    with pytest.raises(RecipeError, match=r"^gone: unknown key \(config\.resolved\.yaml:3\)"):
        load_text("verb: sft\nmodel_name_or_path: m\ngone: 1\ndataset_name: d\n")


# ---------------------------------------------------------------------- differences


def test_differences_are_named() -> None:
    old, new = run("dpo"), run("dpo", "--beta", "0.2", "--learning-rate", "5e-7", "--no-shuffle")
    assert difference(to_yaml(old), to_yaml(new)) == [
        "learning_rate: 1.0e-06 there, 5.0e-07 here",
        "shuffle: true there, false here",
        "loss.beta: 0.1 there, 0.2 here",
    ]
    assert difference(old, old) == []


def test_differences_of_groups_and_lists() -> None:
    mixed = run("sft", "--mix.dataset-name", "t", "--mix.weight", "0.5")
    assert difference(run("sft"), mixed) == [
        "mix: null there, {dataset_name: t, weight: 0.5, reduction: token_mean} here"
    ]
    peft = run("sft", "--use-peft", "--lora-target-modules", "q_proj,v_proj")
    assert difference(run("sft"), peft) == [
        "use_peft: false there, true here",
        "lora_target_modules: [all-linear] there, [q_proj, v_proj] here",
    ]


def test_another_verb_or_loss() -> None:
    lines = difference(run("dpo"), run("simpo"))
    assert lines[0] == "verb: dpo there, simpo here"
    assert "loss.name: dpo there, simpo here" in lines
    assert "loss.gamma: null there, 1.0 here" in lines


def test_some_keys_are_free() -> None:
    tokens = ["--report-to", "wandb", "--run-name", "x", "--save-total-limit", "5"]
    tokens += ["--output-dir", "elsewhere", "--no-self-check", "--save-steps", "3"]
    assert difference(run("dpo"), run("dpo", *tokens)) == []
    assert difference(run("dpo"), run("dpo", "--threads", "1")) != []
    assert all(verb.recipe.model_fields.keys() >= RESUME_FREE for verb in VERBS.values())


def test_the_recipe_of_another_version_is_a_difference() -> None:
    (line,) = difference("verb: sft\nold_key: 1\n", run("sft"))
    assert line.startswith("the old recipe is of another version of trimtab (")


# ---------------------------------------------------------------------- any recipe

WORDS = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=20
).filter(lambda s: s.strip() and not s.startswith("~"))
SHARES = st.integers(1, 10**6) | st.floats(0.001, 0.999)
FLOATS = st.floats(1e-300, 1e300)
SPECS = st.fixed_dictionaries(
    {"path": WORDS},
    optional={
        "name": WORDS,
        "data_files": WORDS | st.lists(WORDS, min_size=1, max_size=2),
        "split": WORDS,
        "columns": st.dictionaries(st.sampled_from(["prompt", "chosen"]), WORDS, max_size=2),
        "fraction": st.floats(0.001, 1.0),
        "kind": st.none() | st.sampled_from(["text", "preference"]),
    },
)
COMMON = {
    "model_name_or_path": WORDS,
    "datasets": st.lists(SPECS, min_size=1, max_size=3),
    "run_name": WORDS | st.sampled_from(["null", "no", "1e-5", "~", "true", "- a", "#", "a: b"]),
    "learning_rate": FLOATS,
    "weight_decay": st.floats(0, 1e300),
    "warmup_steps": SHARES | st.just(0),
    "eval_steps": st.none() | SHARES,
    "seed": st.integers(0, 2**63 - 1),
    "shuffle": st.booleans(),
    "max_train_rows": st.none() | st.integers(1, 10**12),
    "report_to": st.lists(st.sampled_from(["wandb", "mlflow"]), unique=True),
    "sample_prompts": st.integers(0, 99) | st.lists(WORDS, max_size=3),
    "lora_target_modules": st.lists(WORDS, min_size=1, max_size=3),
    "precision": st.sampled_from(["auto", "fp32", "bf16"]),
    "mix": st.none()
    | st.fixed_dictionaries(
        {"dataset_name": WORDS, "weight": FLOATS}, optional={"batch_size": st.integers(1, 99)}
    ),
}
LOSSES = st.one_of(
    st.just("dpo"),
    st.fixed_dictionaries({"name": st.just("simpo")}, optional={"beta": FLOATS, "gamma": FLOATS}),
    st.fixed_dictionaries({"name": st.just("kto")}, optional={"desirable_weight": FLOATS}),
)
OWN: dict[str, dict[str, Any]] = {
    "pretrain": {"context_length": st.integers(2, 10**6)},
    "sft": {"completion_only_loss": st.none() | st.booleans()},
    "dpo": {"loss": LOSSES, "nll_weight": st.floats(0, 1e300)},
}


@pytest.mark.parametrize("verb", sorted(OWN))
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_recipe_reads_back_the_same(verb: str, data: st.DataObject) -> None:
    needed = {k: COMMON[k] for k in ("model_name_or_path", "datasets")}
    others = {k: v for k, v in (COMMON | OWN[verb]).items() if k not in needed}
    values = data.draw(st.fixed_dictionaries(needed, optional=others))
    recipe: TrainRecipe = VERBS[verb].recipe.model_validate(values)
    where = data.draw(WORDS)
    provenance = dict.fromkeys(["seed", "learning_rate", "loss.name", "mix.weight"], where)
    text = to_yaml(Resolved(verb, recipe, provenance))
    again = load_text(text)
    assert again.recipe == recipe
    assert [type(v) for v in again.recipe.model_dump().values()] == [
        type(v) for v in recipe.model_dump().values()
    ]
    assert difference(again, Resolved(verb, recipe, {})) == []
