"""What is refused on the way to a recipe: one line, with the place, the value and the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trimtab.config import Resolved, resolve
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


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (
            ("--lerning-rate", "1"),
            "lerning_rate: unknown key (command line). Did you mean --learning-rate?",
        ),
        (("--learning-rate", "fast"), "learning_rate: 'fast' is not a number (command line)"),
        (("--learning-rate", "0"), "learning_rate: '0' must be more than 0 (command line)"),
        (("--seed", "1", "--seed", "2"), "seed: given twice (command line)"),
        (("--dataset", "e.jsonl"), "dataset_name: given twice (command line)"),
        (("--seed",), "--seed: a value is missing (command line)"),
        (("--seed", "--shuffle"), "--seed: a value is missing (command line)"),
        (("-x",), "-x: unknown option; options begin with two dashes"),
        (
            ("--precision", "bf17"),
            "precision: 'bf17' is not one of auto, fp32, bf16 (command line). Did you mean bf16?",
        ),
        (("--shuffle=maybe",), "shuffle: 'maybe' is not true or false (command line)"),
        (("--device", "gpu"), "device: 'gpu' is not one of auto, cpu, cuda, cuda:N, mps"),
        (("nothing.yaml",), "nothing.yaml: no such recipe file"),
        (("pairs.jsonl",), "pairs.jsonl: is a data file: write --dataset-name pairs.jsonl"),
        (("recipe.yaml", "a/b.csv.gz"), "a/b.csv.gz: is a data file: write --dataset-name a/b.csv"),
        (("recipe.yaml", "b.yaml"), "b.yaml: one recipe file at most, and recipe.yaml is given"),
        (("--stage", "dpo"), "stage: use trimtab dpo (command line)"),
        (
            ("--report-to", "wandbb"),
            "report_to: 'wandbb' holds 'wandbb'; trackers are tensorboard, trackio, wandb, mlflow "
            "(command line)",
        ),
        (("--eval-steps", "0"), "eval_steps: 0 steps apart is never; null means only"),
        (("--max-steps", "0"), "max_steps: 0 steps train nothing; -1 leaves it to"),
        (
            ("--max-length", "10", "--max-prompt-length", "10"),
            "max_prompt_length: 10 leaves no room for a response within max_length 10; make it "
            "smaller (command line)",
        ),
        (
            ("--mix.wieght", "1"),
            "mix.wieght: unknown key (command line). Did you mean --mix.weight",
        ),
        (
            ("--mix.weight", "1"),
            "mix.dataset_name: missing; name the text that mix adds to the loss",
        ),
        (("--mix", "text.jsonl"), "mix: 'text.jsonl' is not a group of keys (command line): "),
        (("--datasets.0.path", "x"), "datasets.0.path: datasets is a list; give it whole"),
        (("--datasets", "x"), "datasets: give dataset_name or datasets, not both (command line)"),
        (
            ("--beta", "0.1"),
            "beta: unknown key (command line): sft has no such key; it belongs to online_dpo, dpo",
        ),
        (
            ("--zzzzzz", "1"),
            "zzzzzz: unknown key (command line). trimtab sft --help lists all keys",
        ),
        (("--dataset-train-split", "a", "b.yaml"), "b.yaml: no such recipe file"),
    ],
)
def test_one_line_each(tokens: tuple[str, ...], expected: str) -> None:
    assert refused("sft", *tokens).startswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "seed: 1\nlerning_rate: 1\n",
            "lerning_rate: unknown key (x.yaml:2). Did you mean learning_rate?",
        ),
        ("\nlearning_rate: fast\n", "learning_rate: 'fast' is not a number (x.yaml:2)"),
        ("seed: 1\nseed: 2\n", "x.yaml:2: seed is given twice, first in line 1"),
        ("max_steps: 1\nmax-steps: 2\n", "max_steps: given twice (x.yaml:1 and x.yaml:2)"),
        (
            "mix:\n  dataset_name: t\n  weight: much\n",
            "mix.weight: 'much' is not a number (x.yaml:3)",
        ),
        ("mix:\n  dataset_name: t\n", "mix.weight: missing (x.yaml:1)"),
        (
            "mix:\n  reduktion: t\n",
            "mix.reduktion: unknown key (x.yaml:2). Did you mean mix.reduction?",
        ),
        ("mix:\n  - weight: 1\n", "mix: [{'weight': '1'}] is not a group of keys (x.yaml:1): "),
        ("seed:\n", "seed: None is not a whole number (x.yaml:1)"),
        ("seed: [1]\n", "seed: ['1'] is not a whole number (x.yaml:1)"),
        ("- seed\n", "x.yaml: is not a recipe: no 'key: value' lines at its top level"),
        ("run_name: {a: b}\n", "run_name: {'a': 'b'} is not text (x.yaml:1)"),
        ("columns: [prompt]\n", "columns: ['prompt'] is not of the form ours=theirs"),
        ("verb: dpo\n", "verb: this recipe is for trimtab dpo (x.yaml:1), and the command is"),
        (
            "eval_datasets:\n  - path: a\n  - fraction: 2\n    path: b\n",
            "eval_datasets.1.fraction: 2 must be at most 1 (x.yaml:3)",
        ),
        (
            "eval_datasets:\n  - path: a\n    splitt: b\n",
            "eval_datasets.0.splitt: unknown key (x.yaml:3). Did you mean eval_data",
        ),
        ("eval_datasets: []\n", "eval_datasets: [] must not be empty (x.yaml:1)"),
    ],
)
def test_one_line_each_with_its_line(recipe: Any, text: str, expected: str) -> None:
    assert refused("sft", recipe(text)).startswith(expected)


def test_several_mistakes_are_named_together(recipe: Any) -> None:
    found = refused("sft", recipe("seed: x\nlearning_rate: y\n"))
    assert "x.yaml" in found and found.endswith(("; and seed", "; and learning_rate"))


@pytest.mark.parametrize("settings", ["config.json", "adapter_config.json"])
def test_a_model_folder_is_no_recipe(recipe: Any, tmp_path: Path, settings: str) -> None:
    (tmp_path / "m").mkdir()
    assert refused("sft", "m") == "m: is a folder, not a recipe file"
    (tmp_path / "m" / settings).write_text("{}")
    assert refused("sft", "m") == "m: is a model folder: write --model-name-or-path m"


def test_what_is_missing() -> None:
    with pytest.raises(RecipeError, match=r"^dataset_name: missing; give --dataset-name FILE"):
        resolve("sft", ["--model", "m"], env={})
    with pytest.raises(RecipeError, match=r"^model_name_or_path: missing; give --model-name-or-p"):
        resolve("sft", ["--dataset", "d"], env={})


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (("--new-model.hidden-size", "64"), "tokenizer_name_or_path: missing; a fresh model needs"),
        (("--new-tokenizer.vocab-size", "300"), "model_name_or_path: missing"),
        (
            ("--new-model.hidden-size", "64", "--model", "m"),
            "new_model: give model_name_or_path or new_model, not both",
        ),
        (
            ("--model", "m", "--new-tokenizer.vocab-size", "300"),
            "new_tokenizer: a loaded model knows only its own tokenizer",
        ),
        (
            ("--model", "m", "--context-length", "8", "--eval-stride", "9"),
            "eval_stride: 9 is more than context_length 8",
        ),
        (
            ("--new-model.architecture", "gpt2", "--new-model.head-dim", "8"),
            "new_model.head_dim: gpt2 has no such key; remove it",
        ),
        (
            ("--new-model.hidden-size", "66"),
            "new_model.hidden_size: 66 is no multiple of num_attention_heads 4",
        ),
        (
            ("--new-model.num-key-value-heads", "3"),
            "new_model.num_key_value_heads: 3 does not divide num_attention_heads 4",
        ),
        (("--model", "m", "--truncation-mode", "keep_end"), "truncation_mode: unknown key"),
    ],
)
def test_pretrain(tokens: tuple[str, ...], expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve("pretrain", ["--dataset", "d", *tokens], env={})
    assert str(caught.value).startswith(expected)


def test_pretrain_lengths_are_context_length() -> None:
    for key in ("max-length", "block-size", "context-length"):
        found = resolve("pretrain", ["--model", "m", "--dataset", "d", f"--{key}", "64"], env={})
        assert found.recipe.context_length == 64  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("verb", "tokens", "expected"),
    [
        ("sft", ("--lora-r", "8"), "lora_r: 8: has no effect without use_peft=true"),
        (
            "sft",
            ("--optim", "sgd", "--adam-beta1", "0.8"),
            "adam_beta1: 0.8: has no effect with optim=sgd",
        ),
        (
            "sft",
            ("--max-skipped-steps", "3"),
            "max_skipped_steps: 3: has no effect without on_nonfinite",
        ),
        (
            "sft",
            ("--lr-scheduler-type", "constant", "--warmup-steps", "5"),
            "warmup_steps: 5: has no effect with lr_scheduler_type=constant; use",
        ),
        (
            "sft",
            ("--lr-scheduler-type", "constant", "--min-lr-ratio", "0.1"),
            "min_lr_ratio: 0.1: has no effect",
        ),
        (
            "sft",
            ("--eval-steps", "5"),
            "eval_steps: 5: there are no held-out rows to evaluate on; give",
        ),
        (
            "ppo",
            ("--reward-funcs", "f", "--use-peft", "--lora-dropout", "0.1"),
            "lora_dropout: the ratio of a response to the policy that sampled it would be noise",
        ),
        (
            "ppo",
            ("--reward-funcs", "f", "--ratio", "sequence", "--lam", "0.9"),
            "lam: has no effect with ratio=sequence, where a response is one action",
        ),
        (
            "ppo",
            ("--reward-funcs", "f", "--eval-text-name", "t", "--num-generations-eval", "5"),
            "num_generations_eval: 5: there are no held-out rows to evaluate on; give",
        ),
        (
            "sft",
            ("--sample-prompts", "0", "--sample-steps", "5"),
            "sample_steps: 5: has no effect with sample_prompts=0",
        ),
        (
            "dpo",
            ("--nll-span", "prompt_and_completion"),
            "nll_span: 'prompt_and_completion': has no effect with nll",
        ),
        (
            "simpo",
            ("--no-precompute-ref-log-probs",),
            "precompute_ref_log_probs: False: simpo has no reference model",
        ),
        (
            "simpo",
            ("--ref-model", "m"),
            "ref_model_name_or_path: simpo has no reference model; remove it",
        ),
    ],
)
def test_values_that_would_change_nothing(
    verb: str, tokens: tuple[str, ...], expected: str
) -> None:
    assert refused(verb, *tokens).startswith(expected)


def test_values_that_do_change_something_pass() -> None:
    assert run("sft", "--lora-r", "8", "--use-peft").recipe.lora_r == 8
    assert run("sft", "--lora-r", "16").recipe.lora_r == 16  # the default, as in a resolved recipe
    found = run("sft", "--eval-steps", "5", "--dataset-test-split", "test").recipe
    assert [s.split for s in found.eval_specs()] == ["test"]
    words = ("--reward-funcs", "f", "--eval-text-name", "t", "--eval-steps", "5")
    assert run("ppo", *words, "--max-eval-rows", "9").recipe.eval_steps == 5
