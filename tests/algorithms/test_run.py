"""Whole stages in this process, from recipe to model folder, on tiny models and tiny files."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from tests import tiny_runs
from tests.algorithms.stage_world import World, held_pairs, mean, plain_logprobs
from transformers import AutoModelForCausalLM, AutoTokenizer

import trimtab
from trimtab.errors import DataError, RecipeError
from trimtab.models.tokenizers import CHAT_TEMPLATE

LN2 = math.log(2)


# ---------------------------------------------------------------------- every verb


@pytest.mark.parametrize(
    ("verb", "data", "keys", "metric"),
    [
        ("sft", "answers", {}, "eval_mean_token_accuracy"),
        ("sft", "texts", {}, "eval_perplexity"),
        ("dpo", "pairs", {}, "eval_rewards/margins"),
        ("simpo", "pairs", {}, "eval_rewards/accuracies"),
        ("orpo", "pairs", {}, "eval_logps/accuracies"),
        ("kto", "labelled", {}, "eval_rewards/chosen"),
        ("kto", "pairs", {}, "eval_rewards/margins"),
        ("dpo", "pairs", {"loss": "tdpo2"}, "eval_rewards/margins"),
        ("dpo", "pairs", {"loss": "beta_dpo"}, "eval_rewards/margins"),
        ("dpo", "rankings", {}, "eval_rewards/margins"),
        ("dpo", "rankings", {"loss": "plackett_luce"}, "eval_rewards/margins"),
        ("dpo", "pairs", {"nll_weight": 0.5, "group_by_prompt": True}, "eval_rewards/margins"),
        ("bco", "labelled", {}, "eval_rewards/chosen"),
        ("cpo", "pairs", {}, "eval_nll_loss"),
        ("dpo", "pairs", {"loss": "wpo"}, "eval_rewards/margins"),
        ("dpo", "pairs", {"loss": "ld_dpo", "use_peft": True}, "eval_rewards/margins"),
        ("dpo", "scored", {"loss": "infonca"}, "eval_rewards/margins"),
        ("dpo", "pairs", {"loss": {"dpo": 0.8, "bco_pair": 0.2, "sft": 1}}, "eval_nll_loss"),
        ("kto", "pairs", {"group_by_prompt": True}, "eval_rewards/margins"),
    ],
)
def test_every_verb_ends_in_a_model_folder(
    world: World, verb: str, data: str, keys: dict[str, Any], metric: str
) -> None:
    run = world.run(verb, data, **keys, self_check=True, sample_prompts=1, sample_max_new_tokens=2)
    assert [record["step"] for record in run.trained] == [1, 2, 3]
    assert [record["step"] for record in run.evaluated] == [0, 3]
    assert all(math.isfinite(record[metric]) for record in run.evaluated)
    assert run.results[metric] == run.evaluated[1][metric]
    assert run.results["eval_loss_before"] == run.evaluated[0]["eval_loss"]
    assert run.results["steps"] == 3 and run.results["rows"] == 12
    about = json.loads((run.folder / "about.json").read_text())
    assert about["parameters"] >= about["trained_parameters"] > 0 and about["rows"] > 0
    assert any(1 in part["trained"] for part in about["example"]["segments"])
    assert (run.folder / "report.html").stat().st_size < 100_000
    assert run.trained[-1]["epoch"] == 1.0
    assert json.loads((run.folder / "run.json").read_text())["state"] == "finished"
    AutoModelForCausalLM.from_pretrained(run.folder)
    assert sorted(path.name for path in (run.folder / "completions").iterdir()) == [
        "completions_00000.parquet",
        "completions_00003.parquet",
    ]


def test_sft_is_what_plain_transformers_says_of_the_folder(world: World) -> None:
    run = world.run("sft", "answers")
    model = AutoModelForCausalLM.from_pretrained(run.folder)
    lines = (world.root / "answers_held.jsonl").read_text().splitlines()
    rows = [(row["prompt"], row["completion"]) for row in map(json.loads, lines)]
    sums = plain_logprobs(model, run.folder, rows)
    assert -sum(sums) / run.results["eval_tokens"] == pytest.approx(
        run.results["eval_loss"], rel=1e-5
    )
    assert run.results["eval_loss"] < run.results["eval_loss_before"] - 0.05


def test_dpo_is_what_plain_transformers_says_of_the_folder(world: World) -> None:
    run = world.run("dpo", "pairs", beta=0.3)
    assert run.results["eval_loss_before"] == pytest.approx(LN2, abs=1e-6)
    model = AutoModelForCausalLM.from_pretrained(run.folder)
    before = AutoModelForCausalLM.from_pretrained(world.root / "model")
    gaps = []
    for side in ("chosen", "rejected"):
        now = plain_logprobs(model, run.folder, held_pairs(world, side))
        then = plain_logprobs(before, run.folder, held_pairs(world, side))
        assert mean(now) == pytest.approx(run.results[f"eval_logps/{side}"], rel=1e-5)
        gaps.append([a - b for a, b in zip(now, then, strict=True)])
    margins = [0.3 * (chosen - rejected) for chosen, rejected in zip(*gaps, strict=True)]
    assert mean(margins) == pytest.approx(run.results["eval_rewards/margins"], rel=1e-4)
    loss = mean([math.log1p(math.exp(-margin)) for margin in margins])
    assert loss == pytest.approx(run.results["eval_loss"], rel=1e-4)
    assert abs(mean(margins)) > 0.01


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_pretrain_from_nothing(world: World, architecture: str) -> None:
    run = world.run(
        "pretrain",
        "texts",
        model_name_or_path=...,
        new_tokenizer={"vocab_size": 280},
        new_model={"architecture": architecture, "hidden_size": 16, "num_hidden_layers": 1},
        context_length=12,
        eval_stride=6,
        max_steps=6,
        self_check=True,
        sample_prompts=2,
        sample_max_new_tokens=50,  # far beyond the last position
    )
    assert run.results["eval_loss_before"] == pytest.approx(math.log(280), rel=0.1)
    assert run.results["eval_loss"] < run.results["eval_loss_before"] - 0.3
    assert run.results["eval_perplexity"] == pytest.approx(math.exp(run.results["eval_loss"]))
    # Every token of every document is scored once, end token included; stride changes context only.
    tokenizer = AutoTokenizer.from_pretrained(run.folder)
    lines = (world.root / "texts_held.jsonl").read_text().splitlines()
    documents = [json.loads(line)["text"] for line in lines]
    tokens = sum(len(tokenizer(text).input_ids) + 1 for text in documents)
    assert run.results["eval_tokens"] == tokens
    size = sum(len(text.encode()) for text in documents)
    bits = run.results["eval_loss"] * tokens / LN2
    assert run.results["eval_bpb"] == pytest.approx(bits / size)
    further = world.run("pretrain", "texts", model_name_or_path=str(run.folder), context_length=12)
    assert further.results["eval_loss_before"] < run.results["eval_loss_before"] - 0.3


def test_conversations(world: World) -> None:
    tiny_runs.save_tiny_model(world.root / "chat", chat_template=CHAT_TEMPLATE)
    turns = [
        {"messages": [{"role": "user", "content": r["prompt"]},
                      {"role": "assistant", "content": r["completion"]}]}
        for r in tiny_runs.answers(12)
    ]  # fmt: skip
    pairs = [
        {"prompt": [{"role": "user", "content": r["prompt"]}],
         **{k: [{"role": "assistant", "content": r[k]}] for k in ("chosen", "rejected")}}
        for r in tiny_runs.pairs(12)
    ]  # fmt: skip
    for verb, rows in (("sft", turns), ("dpo", pairs)):
        data = str(tiny_runs.write_rows(world.root / f"chat_{verb}.jsonl", rows))
        run = world.run(
            verb,
            "pairs",
            model_name_or_path=str(world.root / "chat"),
            dataset_name=data,
            eval_dataset_name=str(tiny_runs.write_rows(world.root / "chat_held.jsonl", rows)),
            self_check=True,
            sample_prompts=["the cat sees"],
            sample_max_new_tokens=3,
        )
        assert run.results["eval_loss"] < run.results["eval_loss_before"]
        stops = json.loads((run.folder / "generation_config.json").read_text())["eos_token_id"]
        assert AutoTokenizer.from_pretrained(run.folder).eos_token_id in stops


def test_sources_with_weights_over_more_than_an_epoch(world: World) -> None:
    """Weighted draws repeat rows within an epoch: every reference log-prob has to be there."""
    small = tiny_runs.write_rows(world.root / "small.jsonl", tiny_runs.pairs(3, 77))
    sources = [
        {"path": str(world.root / "pairs.jsonl"), "weight": 1.0, "fraction": 0.5},
        {"path": str(small), "weight": 3.0},
    ]
    run = world.run("dpo", "pairs", dataset_name=..., datasets=sources, max_steps=7)
    assert run.trained[0]["loss"] == pytest.approx(LN2, abs=1e-5)
    assert run.results["rows"] == 22  # epochs of 9 rows, 4 + 4 + 1: two of them and a step


# ---------------------------------------------------------------------- mix


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_sum"])
@pytest.mark.parametrize(
    ("verb", "data", "own"),
    [("pretrain", "texts", "nll"), ("sft", "answers", "nll"), ("dpo", "pairs", "dpo")],
)
def test_mix_adds_its_term(world: World, verb: str, data: str, own: str, reduction: str) -> None:
    mixed = {"dataset_name": str(world.root / "texts_held.jsonl"), "weight": 0.25}
    run = world.run(verb, data, mix={**mixed, "reduction": reduction, "batch_size": 2}, max_steps=1)
    alone = world.run(verb, data, max_steps=1)
    (record,) = run.trained
    assert record[f"loss/{own}"] == pytest.approx(alone.trained[0]["loss"], rel=1e-6)
    expected = record[f"loss/{own}"] + 0.25 * record["loss/mix"]
    assert record["loss"] == pytest.approx(expected, rel=1e-6)
    if reduction == "token_mean":
        assert record["loss/mix"] == pytest.approx(record["mix_nll"], rel=1e-6)
    else:
        assert record["loss/mix"] > 2 * record["mix_nll"]  # a sum over tokens, per row
    assert record["grad_norm"] != pytest.approx(alone.trained[0]["grad_norm"], rel=1e-3)


# ---------------------------------------------------------------------- adapters


def test_lora_goes_through_the_stages(world: World) -> None:
    lora = {"use_peft": True, "lora_r": 2, "self_check": True}
    first = world.run("dpo", "pairs", **lora)
    assert (first.folder / "adapter_model.safetensors").exists()
    assert not (first.folder / "model.safetensors").exists()
    assert first.results["eval_loss_before"] == pytest.approx(LN2, abs=1e-6)
    assert abs(first.results["eval_rewards/margins"]) > 1e-3

    base = AutoModelForCausalLM.from_pretrained(world.root / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft's use of an old name of transformers
        plain = PeftModel.from_pretrained(base, first.folder)
    sums = plain_logprobs(plain, first.folder, held_pairs(world, "chosen"))
    assert mean(sums) == pytest.approx(first.results["eval_logps/chosen"], rel=1e-5)

    # The reference of the next stage is this policy, adapter included, and not its base.
    more = {"use_peft": True, "model_name_or_path": str(first.folder), "self_check": True}
    second = world.run("dpo", "pairs", **more)
    assert second.evaluated[0]["eval_loss"] == pytest.approx(LN2, abs=1e-6)
    assert second.evaluated[0]["eval_rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert second.trained[0]["loss"] == pytest.approx(LN2, abs=1e-5)
    assert second.trained[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert second.results["eval_logps/chosen_before"] == pytest.approx(
        first.results["eval_logps/chosen"], rel=1e-5
    )
    assert abs(second.results["eval_rewards/margins"]) > 1e-3
    card = (second.folder / "README.md").read_text()
    assert "lora_r" in card and "16" not in card.split("lora_r")[1].splitlines()[0]

    # All weights: the adapter is merged first.
    third = world.run("dpo", "pairs", model_name_or_path=str(second.folder), self_check=True)
    assert (third.folder / "model.safetensors").exists()
    assert not (third.folder / "adapter_config.json").exists()
    assert third.results["eval_logps/chosen_before"] == pytest.approx(
        second.results["eval_logps/chosen"], rel=1e-5
    )
    model = AutoModelForCausalLM.from_pretrained(third.folder)
    sums = plain_logprobs(model, third.folder, held_pairs(world, "chosen"))
    assert mean(sums) == pytest.approx(third.results["eval_logps/chosen"], rel=1e-5)

    with pytest.raises(RecipeError, match=r"^lora_r=4: the adapter in .* has 2 "):
        world.run("dpo", "pairs", **more, lora_r=4)


# ---------------------------------------------------------------------- rows, API, keys


def test_bad_rows_are_set_aside(world: World) -> None:
    rows = [json.dumps(row) for row in tiny_runs.pairs(12)]
    rows[3] = '{"prompt": "the cat", "chosen": '
    rows[7] = json.dumps({"prompt": "the cat\n", "chosen": "sees.", "rejected": 5})
    data = world.root / "broken.jsonl"
    data.write_text("\n".join(rows) + "\n")
    run = world.run("dpo", "pairs", dataset_name=str(data), max_bad_rows=2)
    lines = (run.folder / "quarantine.training.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [row["line"] for row in found] == [4, 8]
    assert found[1]["field"] == "rejected"
    assert run.results["rows"] == 4 + 4 + 2 and run.results["steps"] == 3
    assert "2 bad rows" in (run.folder / "README.md").read_text()
    with pytest.raises(DataError, match=r"broken\.jsonl:4: .*2 of 12 rows are bad"):
        world.run("dpo", "pairs", dataset_name=str(data), max_bad_rows=1)


def test_the_python_interface(world: World) -> None:
    keys = world.keys("pairs", beta=0.2, run_name="x")
    run = trimtab.dpo(**keys)
    assert run.output_dir == Path(keys["output_dir"]) and not run.interrupted
    assert run.results == json.loads((run.output_dir / "all_results.json").read_text())
    assert "trimtab.dpo(" in (run.output_dir / "command.txt").read_text()
    assert "beta: 0.2" in (run.output_dir / "config.resolved.yaml").read_text()
    with pytest.raises(RecipeError, match=r"^btea: unknown key"):
        trimtab.dpo(**world.keys("pairs", btea=0.2))


def test_a_dry_run_writes_nothing_but_the_cache(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(world.root.iterdir())
    keys = world.keys("pairs", dry_run=True, self_check=True, quiet=False)
    result = trimtab.dpo(**keys)
    assert result.results == {} and not Path(keys["output_dir"]).exists()
    assert sorted(world.root.iterdir()) == before
    said = capsys.readouterr().err
    assert "self-check: " in said and "3 steps would follow" in said
