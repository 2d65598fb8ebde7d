"""From command line, environment, file and defaults to one recipe, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trimtab.config import PreferenceRecipe, Resolved, recipe_from_kwargs, resolve
from trimtab.errors import RecipeError

BASE = ["--model-name-or-path", "m", "--dataset-name", "d.jsonl"]


def run(verb: str, *tokens: str, env: dict[str, str] | None = None) -> Resolved:
    return resolve(verb, [*BASE, *tokens], env=env or {})


def refused(verb: str, *tokens: str, env: dict[str, str] | None = None) -> str:
    with pytest.raises(RecipeError) as caught:
        run(verb, *tokens, env=env)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "x.yaml") -> str:
        Path(name).write_text(text)
        return name

    return write


# ---------------------------------------------------------------------- precedence


def test_precedence_and_provenance(recipe: Any) -> None:
    name = recipe("# mine\nseed: 1\nlearning_rate: 1e-5\nmax_steps: 5\n")
    env = {"TRIMTAB_SEED": "2", "TRIMTAB_LEARNING_RATE": "2e-5", "PATH": "/bin"}
    found = run("dpo", name, "--seed", "3", env=env)
    assert found.recipe.seed == 3 and found.provenance["seed"] == "command line"
    assert found.recipe.learning_rate == 2e-5
    assert found.provenance["learning_rate"] == "environment TRIMTAB_LEARNING_RATE"
    assert found.recipe.max_steps == 5 and found.provenance["max_steps"] == "x.yaml:4"
    assert found.provenance["optim"] == "default"


def test_every_key_has_a_provenance() -> None:
    found = run("dpo", "--mix.dataset-name", "t", "--mix.weight", "0.5")
    expected = set(PreferenceRecipe.model_fields) - {"loss", "mix"}
    assert expected < found.provenance.keys()
    assert {"loss.name", "loss.beta", "mix.weight", "mix.reduction"} <= found.provenance.keys()
    assert "loss.gamma" not in found.provenance  # another loss's


@pytest.mark.parametrize(
    "tokens",
    [
        ("--loss.beta", "0.2"),
        ("--beta", "0.2"),
        ("--beta=0.2",),
        ("--loss.beta=2e-1",),
        ("--loss", "{name: dpo, beta: 0.2}"),
    ],
)
def test_spellings_of_one_hyper_parameter(tokens: tuple[str, ...]) -> None:
    found = run("dpo", *tokens).recipe
    assert isinstance(found, PreferenceRecipe)
    assert found.loss.parameters == {"beta": 0.2}


def test_dashes_underscores_and_dots_in_files(recipe: Any) -> None:
    name = recipe("per-device-train-batch-size: 4\nmix.weight: 2\nmix:\n  dataset_name: t\n")
    found = run("sft", name, "--per_device_train_batch_size", "6").recipe
    assert found.per_device_train_batch_size == 6
    assert found.mix is not None and (found.mix.weight, found.mix.dataset_name) == (2.0, "t")


def test_the_declared_type_reads_yaml(recipe: Any) -> None:
    name = recipe("learning_rate: 1e-5\nrun_name: no\nshuffle: no\nseed: '7'\nwarmup_steps: 0.1\n")
    found = run("sft", name).recipe
    assert (found.learning_rate, found.run_name, found.shuffle) == (1e-5, "no", False)
    assert (found.seed, found.warmup_steps) == (7, 0.1)


def test_flags() -> None:
    assert run("sft", "--no-shuffle").recipe.shuffle is False
    assert run("sft", "--shuffle", "false").recipe.shuffle is False
    assert run("sft", "--shuffle=no").recipe.shuffle is False
    assert run("sft", "--use-peft", "--seed", "1").recipe.use_peft is True


def test_a_flag_does_not_swallow_the_recipe(recipe: Any) -> None:
    assert run("sft", "--use-peft", recipe("seed: 5\n")).recipe.seed == 5


def test_lists_and_negative_numbers() -> None:
    found = run("sft", "--report-to", "wandb", "mlflow", "--max-steps", "-1").recipe
    assert found.report_to == ["wandb", "mlflow"] and found.max_steps == -1
    assert run("sft", "--sample-prompts", "a, b").recipe.sample_prompts == ["a, b"]
    assert run("sft", "--sample-prompts", "[INST] a", "b").recipe.sample_prompts == [
        "[INST] a",
        "b",
    ]
    assert run("sft", "--sample-prompts", '["a, b", "c"]').recipe.sample_prompts == ["a, b", "c"]
    assert run("sft", "--sample-prompts=--x").recipe.sample_prompts == ["--x"]


def test_datasets_on_the_line() -> None:
    tokens = ["--model", "m", "--datasets", "[{path: a, weight: 2}, {path: b, weight: 1}]"]
    specs = resolve("sft", tokens, env={}).recipe.train_specs()
    assert [(s.path, s.weight) for s in specs] == [("a", 2.0), ("b", 1.0)]
    specs = resolve("sft", ["--model", "m", "--datasets", "a", "b"], env={}).recipe.train_specs()
    assert [s.path for s in specs] == ["a", "b"]


def test_columns_are_laid_over_each_other(recipe: Any) -> None:
    name = recipe("columns: {prompt: q, chosen: good}\n")
    assert run("dpo", name, "--columns.chosen", "best").recipe.columns == {
        "prompt": "q",
        "chosen": "best",
    }
    assert run("dpo", name, "--columns", "chosen=best").recipe.columns == {"chosen": "best"}
    assert run("dpo", "--columns.prompt", "q").recipe.train_specs()[0].columns == {"prompt": "q"}


def test_rows_on_the_line_take_the_place_of_the_files(recipe: Any) -> None:
    """One source by name and a list of sources say one thing; the later one holds."""
    name = recipe("datasets: [{path: a, weight: 2}]\neval_datasets: [{path: b}]\n")
    tokens = [name, "--model-name-or-path", "m", "--dataset-name", "c"]
    found = resolve("dpo", [*tokens, "--eval-dataset-name", "d"], env={}).recipe
    assert [found.datasets, found.eval_datasets] == [None, None]
    assert [found.dataset_name, found.eval_dataset_name] == ["c", "d"]
    name = recipe("dataset_name: a\n")
    found = resolve("dpo", [name, "--model-name-or-path", "m", "--datasets", "b"], env={}).recipe
    assert found.dataset_name is None and [s.path for s in found.datasets or ()] == ["b"]


def test_null_takes_a_group_away_and_a_key_brings_it_back(recipe: Any) -> None:
    name = recipe("mix: {dataset_name: t, weight: 1}\n")
    for tokens in (["--mix", "null"], ["--no-mix"]):
        assert run("sft", name, *tokens).recipe.mix is None
    assert run("sft", name, "--mix.weight", "3").recipe.mix.weight == 3.0  # type: ignore[union-attr]
    off = recipe("mix: null\n", "off.yaml")
    again = run("sft", off, "--mix.weight", "1", "--mix.dataset-name", "u").recipe.mix
    assert again is not None and again.dataset_name == "u"


def test_null_on_the_line(recipe: Any) -> None:
    assert run("sft", recipe("max_length: 5\n"), "--max-length", "null").recipe.max_length is None  # type: ignore[attr-defined]


def test_an_empty_group_is_a_choice(recipe: Any) -> None:
    text = "new_model: {}\nnew_tokenizer: {vocab_size: 300}\ndataset_name: d\n"
    found = resolve("pretrain", [recipe(text)], env={}).recipe
    assert found.new_model.architecture == "llama"  # type: ignore[attr-defined]


def test_a_run_folder_stands_for_its_recipe(tmp_path: Path) -> None:
    (tmp_path / "config.resolved.yaml").write_text(
        "verb: sft\nmodel_name_or_path: m\ndataset_name: d\n"
    )
    assert resolve("sft", [str(tmp_path)], env={}).recipe.model_name_or_path == "m"


def test_controls(recipe: Any) -> None:
    control = run("sft", "--restart", "--quiet", "--json", "--offline", "--dry-run").control
    assert control.restart and control.quiet and control.json and control.offline
    assert control.dry_run and control.resume is None
    assert run("sft", "--resume", "runs/x/checkpoint-5").control.resume == "runs/x/checkpoint-5"
    assert refused("sft", recipe("restart: true\n")) == (
        "restart: belongs on the command line, as --restart (x.yaml:1)"
    )
    assert refused("sft", "--restart=yes") == "--restart=yes: --restart takes no value"


# ---------------------------------------------------------------------- environment


def test_environment_names() -> None:
    env = {"TRIMTAB_MIX__WEIGHT": "2", "TRIMTAB_MIX_DATASET_NAME": "t", "TRIMTAB_BETA": "0.3"}
    found = run("dpo", env=env).recipe
    assert isinstance(found, PreferenceRecipe) and found.mix is not None
    assert (found.mix.weight, found.mix.dataset_name, found.loss.parameters["beta"]) == (
        2.0,
        "t",
        0.3,
    )
    assert run("sft", env={"TRIMTAB_BETA": "0.3"}).recipe.seed == 42  # dpo's business


def test_environment_errors() -> None:
    assert refused("dpo", env={"TRIMTAB_LERNING_RATE": "1"}) == (
        "TRIMTAB_LERNING_RATE: no such key (environment). Did you mean TRIMTAB_LEARNING_RATE?"
    )
    assert refused("dpo", env={"TRIMTAB_SEED": "x"}) == (
        "seed: 'x' is not a whole number (environment TRIMTAB_SEED)"
    )
    double = {"TRIMTAB_MIX__WEIGHT": "2", "TRIMTAB_MIX_WEIGHT": "3"}
    assert refused("dpo", env=double).startswith("mix.weight: given twice (environment")
    assert run("dpo", env={"TRIMTAB_CACHE": "/c", "TRIMTAB_TEST_X": "1"}).recipe.cache_dir is None


# ---------------------------------------------------------------------- losses


def loss_of(found: Resolved) -> tuple[str, dict[str, Any]]:
    assert isinstance(found.recipe, PreferenceRecipe)
    return found.recipe.loss.name, found.recipe.loss.parameters


def test_a_verb_is_dpo_with_that_loss() -> None:
    for name in ("simpo", "orpo", "kto", "ipo", "cpo", "bco"):
        by_verb, by_key = run(name), run("dpo", "--loss", name)
        assert loss_of(by_verb) == loss_of(by_key)
        same = {"output_dir": "same"}
        assert by_verb.recipe.model_copy(update=same) == by_key.recipe.model_copy(update=same)
        assert by_verb.recipe.output_dir != by_key.recipe.output_dir


def test_defaults_of_a_loss() -> None:
    found = run("orpo")
    assert isinstance(found.recipe, PreferenceRecipe)
    assert (found.recipe.nll_weight, found.recipe.nll_span) == (1.0, "prompt_and_completion")
    assert found.provenance["nll_weight"] == "default of orpo"
    assert run("orpo", "--nll-weight", "0.5").recipe.nll_weight == 0.5  # type: ignore[attr-defined]
    assert run("dpo").recipe.nll_weight == 0.0  # type: ignore[attr-defined]


def test_trl_spellings() -> None:
    assert loss_of(run("dpo", "--loss-type", "sigmoid")) == ("dpo", {"beta": 0.1})
    for theirs, ours in (("exo_pair", "exo"), ("nca_pair", "nca"), ("sppo_hard", "sppo")):
        assert loss_of(run("dpo", "--loss-type", theirs))[0] == ours
    assert loss_of(run("dpo", "--loss-type", "ipo")) == ("ipo", {"tau": 0.1})
    found = run("dpo", "--loss_type", "simpo", "--simpo-gamma", "0.5", "--rpo-alpha", "1")
    assert loss_of(found) == ("simpo", {"beta": 2.0, "gamma": 0.5})
    assert found.recipe.nll_weight == 1.0  # type: ignore[attr-defined]
    assert found.notes == (
        "loss_type is read as loss.name (command line)",
        "simpo_gamma is read as loss.gamma (command line)",
        "rpo_alpha is read as nll_weight (command line)",
    )
    mixed = run("sft", "--mix.dataset-name", "t", "--ptx-coef", "27.8").recipe.mix
    assert mixed is not None and mixed.weight == 27.8
    assert run("sft", "--bf16").recipe.precision == "bf16"
    assert run("sft", "--bf16", "false").recipe.precision == "fp32"


def test_hyper_parameters_of_another_loss() -> None:
    assert refused("dpo", "--loss", "simpo", "--loss.gama", "1") == (
        "loss.gama: simpo takes beta, gamma. Did you mean gamma? (command line)"
    )
    assert refused("dpo", "--gamma", "1") == (
        "loss.gamma: dpo takes beta; gamma belongs to simpo, alphapo (command line)"
    )
    assert refused("dpo", "--gama", "1") == (
        "gama: unknown key (command line). Did you mean --gamma?"
    )
    assert refused("dpo", "--beta", "big") == "loss.beta: 'big' is not a number (command line)"


def test_unknown_losses() -> None:
    assert "Did you mean simpo?" in refused("dpo", "--loss", "simp")
    assert refused("dpo", "--loss", "aot").startswith("loss: 'aot' is no loss here; losses are")
    assert refused("simpo", "--loss", "dpo") == (
        "loss: trimtab simpo trains simpo, not 'dpo' (command line); use trimtab dpo --loss dpo"
    )


def test_a_beta_for_one_loss_does_not_slip_into_another(recipe: Any) -> None:
    name = recipe("loss: dpo\nbeta: 0.1\n")
    assert refused("dpo", name, "--loss", "simpo") == (
        "loss.beta: 0.1 was meant for dpo (x.yaml:2), and the loss is simpo (command line); give "
        "--loss.beta for simpo, or take it out"
    )
    assert loss_of(run("dpo", name, "--loss", "simpo", "--beta", "2.5"))[1]["beta"] == 2.5
    assert loss_of(run("dpo", name))[1]["beta"] == 0.1
    for_simpo = recipe("loss: simpo\nbeta: 3\n", "simpo.yaml")
    assert loss_of(run("dpo", for_simpo, "--gamma", "2")) == ("simpo", {"beta": 3.0, "gamma": 2.0})


# ---------------------------------------------------------------------- sources, folders, Python


def test_sources() -> None:
    found = run(
        "sft", "--dataset-config", "main", "--eval-dataset", "e.jsonl", "--columns", "prompt=q"
    )
    (train,), (held_out,) = found.recipe.train_specs(), found.recipe.eval_specs()
    assert (train.path, train.name, train.split) == ("d.jsonl", "main", "train")
    assert (held_out.path, held_out.name, held_out.split) == ("e.jsonl", None, "test")
    assert train.columns == held_out.columns == {"prompt": "q"}
    assert run("sft").recipe.eval_specs() == []


@pytest.mark.parametrize(
    ("verb", "model", "data", "expected"),
    [
        ("dpo", "HuggingFaceTB/SmolLM2-135M", "trl-lib/uf", "runs/dpo-SmolLM2-135M-uf"),
        ("sft", "runs/x/checkpoint-50", "/a/b/train.jsonl", "runs/sft-x-checkpoint-50-b-train"),
        ("sft", ".", "../p q.csv", "runs/sft-here-p-q"),
        ("simpo", "m/", "C:\\data\\pairs.parquet", "runs/simpo-m-pairs"),
    ],
)
def test_output_folders(verb: str, model: str, data: str, expected: str) -> None:
    found = resolve(verb, ["--model", model, "--dataset", data], env={})
    again = resolve(verb, ["--dataset", data, "--model", model], env={})
    assert found.recipe.output_dir == again.recipe.output_dir == expected
    assert found.provenance["output_dir"].startswith("default")
    assert run("dpo", "--output-dir", "o").recipe.output_dir == "o"


def test_from_python(recipe: Any) -> None:
    found = recipe_from_kwargs(
        "dpo",
        model_name_or_path=Path("m"),
        dataset_name="d",
        loss={"name": "simpo", "gamma": 0.5},
        report_to=("wandb",),
        mix={"dataset_name": "t", "weight": 2},
        restart=True,
        env={},
    )
    assert loss_of(found) == ("simpo", {"beta": 2.0, "gamma": 0.5})
    assert found.recipe.model_name_or_path == "m" and found.recipe.report_to == ["wandb"]
    assert found.provenance["loss.gamma"] == "argument" and found.control.restart
    by_file = recipe_from_kwargs("sft", recipe("seed: 3\ndataset_name: d\n"), model="m", env={})
    assert by_file.recipe.seed == 3
    with pytest.raises(RecipeError, match=r"^lr: unknown key \(argument\): .* it is learning_rate"):
        recipe_from_kwargs("sft", lr=3, env={})
    with pytest.raises(RecipeError, match=r"^seed: 'x' is not a whole number \(argument\)$"):
        recipe_from_kwargs("sft", model="m", dataset="d", seed="x", env={})


def test_recipes_do_not_change() -> None:
    found = run("sft").recipe
    with pytest.raises(ValueError, match="frozen"):
        found.seed = 3  # type: ignore[misc]
