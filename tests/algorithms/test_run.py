"""Whole stages in this process, from recipe to model folder, on tiny models and tiny files."""

from __future__ import annotations

import ast
import contextlib
import json
import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests import tiny_runs
from transformers import AutoModelForCausalLM, AutoTokenizer

import trimtab
from trimtab.algorithms import recipe_reference
from trimtab.algorithms import run as run_module
from trimtab.algorithms.policy import Policy
from trimtab.algorithms.reference import LiveReference, ReferenceCache
from trimtab.algorithms.run import RunResult
from trimtab.config import VERBS
from trimtab.config.data_keys import DatasetSpec, MixSpec
from trimtab.config.recipes import NewModelSpec, NewTokenizerSpec
from trimtab.errors import DataError, RecipeError
from trimtab.models.tokenizers import CHAT_TEMPLATE
from trimtab.training.metrics import read_metrics, without_timings

SOURCE = Path(trimtab.__file__).parent
LN2 = math.log(2)


class World:
    """Models and data files; ``run`` trains on them for three steps of four rows."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.count = 0
        for seed, name in enumerate(("model", "other")):
            tiny_runs.save_tiny_model(root / name, seed=seed)
        for name, make in (
            ("texts", tiny_runs.texts),
            ("answers", tiny_runs.answers),
            ("pairs", tiny_runs.pairs),
            ("labelled", tiny_runs.labelled),
            ("rankings", tiny_runs.rankings),
        ):
            tiny_runs.write_rows(root / f"{name}.jsonl", make(12))
            tiny_runs.write_rows(root / f"{name}_held.jsonl", make(5, 50))

    def rows(self, name: str) -> dict[str, str]:
        """Training and held-out rows as recipe keys."""
        return {
            "dataset_name": str(self.root / f"{name}.jsonl"),
            "eval_dataset_name": str(self.root / f"{name}_held.jsonl"),
        }

    def keys(self, data: str, **keys: Any) -> dict[str, Any]:
        """Recipe keys of a run in a folder of its own."""
        self.count += 1
        common: dict[str, Any] = {
            "model_name_or_path": str(self.root / "model"),
            "output_dir": str(self.root / f"run-{self.count}"),
            "cache_dir": str(self.root / "cache"),
            "precision": "fp32",
            "device": "cpu",
            "max_steps": 3,
            "per_device_train_batch_size": 4,
            "token_budget": 100,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "logging_steps": 1,
            "save_steps": None,
            "sample_prompts": 0,
            "self_check": False,
            "quiet": True,
            **self.rows(data),
        }
        found = {**common, **keys}
        return {key: value for key, value in found.items() if value is not ...}

    def run(self, verb: str, data: str, **keys: Any) -> Run:
        """Train; ``...`` as a value leaves a key out."""
        return Run(getattr(trimtab, verb)(**self.keys(data, **keys)))


class Run:
    """A finished run and its metrics."""

    def __init__(self, result: RunResult) -> None:
        self.folder = result.output_dir
        self.results = result.results
        self.records = list(read_metrics(self.folder / "metrics.jsonl"))

    @property
    def trained(self) -> list[dict[str, Any]]:
        """Records of training."""
        return [without_timings(record) for record in self.records if "loss" in record]

    @property
    def evaluated(self) -> list[dict[str, Any]]:
        """Records of evaluations."""
        return [without_timings(record) for record in self.records if "eval_loss" in record]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("runs"))


# Adam's first step is the sign of a gradient: rounding of one that is nearly 0 is a whole step.
# And beta-DPO filters by gaps, which are all rounding where the policy is its reference.
CONTINUOUS = {"optim": "sgd", "learning_rate": 0.3}


def apart(one: Run, other: Run, tolerance: float = 1e-5) -> list[str]:
    """Metrics in which two runs differ, by a share of the larger value or of 1."""
    assert len(one.records) == len(other.records)
    found: list[str] = []
    for here, there in zip(
        [*one.trained, *one.evaluated], [*other.trained, *other.evaluated], strict=True
    ):
        assert here.keys() == there.keys()
        skipped = {"num_tokens"}  # a layout may have more
        if abs(here.get("rewards/margins", 1.0)) < 1e-5:  # at the reference: signs of rounding
            skipped.add("rewards/accuracies")
        for key in here.keys() - skipped:
            values = torch.tensor([here[key]]).flatten(), torch.tensor([there[key]]).flatten()
            scale = max(1.0, float(values[0].abs().max()))
            if float((values[0] - values[1]).abs().max()) > tolerance * scale:
                found.append(f"{key} at {here['step']}: {here[key]} and {there[key]}")
    return found


# ---------------------------------------------------------------------- an independent reader


def plain_logprobs(model: Any, folder: Path, rows: Iterable[tuple[str, str]]) -> list[float]:
    """Summed log-probs of responses, with transformers alone: its logits, row by row."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for prompt, response in rows:
        before = tokenizer(prompt).input_ids
        ids = [*before, *tokenizer(response).input_ids, tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        start = max(1, len(before))
        targets = torch.tensor(ids[start:])
        found.append(logits[start - 1 : -1].gather(1, targets[:, None]).sum().item())
    return found


def held_pairs(world: World, side: str) -> list[tuple[str, str]]:
    lines = (world.root / "pairs_held.jsonl").read_text().splitlines()
    return [(row["prompt"], row[side]) for row in map(json.loads, lines)]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


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


# ---------------------------------------------------------------------- the reference


def test_reference_log_probs_are_computed_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    shard = ReferenceCache._shard

    def counted(self: ReferenceCache, policy: Any, stream: Any, rows: Any) -> Any:
        computed.append(len(rows))
        return shard(self, policy, stream, rows)

    monkeypatch.setattr(ReferenceCache, "_shard", counted)
    cache = {"cache_dir": str(world.root / "reference-cache")}
    first = world.run("dpo", "pairs", **cache)
    assert computed == [12, 5]
    second = world.run("dpo", "pairs", **cache, seed=7, max_steps=4)
    assert computed == [12, 5], "other steps and another seed: the same rows, the same model"
    assert second.evaluated[0] == first.evaluated[0], "cached and fresh values have the same bits"
    world.run("dpo", "pairs", **cache, model_name_or_path=str(world.root / "other"))
    assert computed == [12, 5, 12, 5], "another model is another reference"
    world.run("dpo", "rankings", **cache, eval_dataset_name=...)
    assert computed == [12, 5, 12, 5, 12], "and so are other rows"


@pytest.mark.parametrize(
    ("verb", "keys"),
    [
        ("dpo", {}),
        ("dpo", {"use_peft": True}),
        ("dpo", {"loss": "tdpo2"}),
        ("dpo", {"loss": "beta_dpo", "ref": "other"}),
        ("kto", {}),
    ],
)
def test_a_live_reference_is_the_cached_one(world: World, verb: str, keys: dict[str, Any]) -> None:
    if "ref" in keys:
        keys = {**keys, "ref_model_name_or_path": str(world.root / "other")}
        del keys["ref"]
    keys = {**keys, **CONTINUOUS}
    cached = world.run(verb, "pairs", **keys)
    live = world.run(verb, "pairs", **keys, precompute_ref_log_probs=False, self_check=True)
    assert apart(cached, live) == []
    assert abs(cached.results["eval_rewards/margins"]) > 1e-3


def test_a_reference_that_moves_is_found_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: without its copy the reference is the policy, and all rewards stay 0."""

    def not_frozen(policy: Policy) -> LiveReference:
        return LiveReference(policy, contextlib.nullcontext)

    monkeypatch.setattr(recipe_reference, "frozen_copy", not_frozen)
    cached = world.run("dpo", "pairs")
    live = world.run("dpo", "pairs", precompute_ref_log_probs=False)
    assert apart(cached, live)
    assert live.results["eval_rewards/margins"] == pytest.approx(0, abs=1e-6)


def test_a_named_reference(world: World) -> None:
    """Another model than the policy: rewards at the start are the difference of the two."""
    other = str(world.root / "other")
    run = world.run("dpo", "pairs", beta=0.5, ref_model_name_or_path=other, self_check=True)
    start = run.evaluated[0]
    for side in ("chosen", "rejected"):
        sums = [
            mean(
                plain_logprobs(
                    AutoModelForCausalLM.from_pretrained(world.root / name),
                    world.root / name,
                    held_pairs(world, side),
                )
            )
            for name in ("model", "other")
        ]
        reward = start[f"eval_rewards/{side}"]
        assert reward == pytest.approx(0.5 * (sums[0] - sums[1]), rel=1e-4)
        assert abs(reward) > 0.05
    same = world.run("dpo", "pairs", ref_model_name_or_path=str(world.root / "model"))
    assert apart(same, world.run("dpo", "pairs")) == []


# ---------------------------------------------------------------------- what must change nothing


@pytest.mark.parametrize(
    ("verb", "data", "keys"),
    [
        ("sft", "answers", {"mix": True}),
        ("dpo", "pairs", {"use_peft": True}),
        ("dpo", "pairs", {"loss": "beta_dpo", "ref": "other"}),
        ("orpo", "pairs", {}),
        ("kto", "pairs", {}),
        ("dpo", "rankings", {"loss": "plackett_luce"}),
    ],
)
def test_memory_keys_change_no_number(
    world: World, verb: str, data: str, keys: dict[str, Any]
) -> None:
    """Half the token budget, recomputed activations, each layout, rows in other portions."""
    if "mix" in keys:
        keys = {"mix": {"dataset_name": str(world.root / "texts.jsonl"), "weight": 0.5}}
    if "ref" in keys:
        keys = {**keys, "ref_model_name_or_path": str(world.root / "other")}
        del keys["ref"]
    keys = {**keys, **CONTINUOUS}
    run = world.run(verb, data, **keys)
    variants: list[dict[str, Any]] = [
        {"token_budget": 50},
        {"gradient_checkpointing": True},
        {"attn_layout": "packed"},
        {"attn_layout": "padded"},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    ]
    for variant in variants:
        assert apart(run, world.run(verb, data, **keys, **variant)) == [], variant
    assert apart(run, world.run(verb, data, **keys, seed=1)), "the comparison sees a difference"
    assert apart(run, world.run(verb, data, **keys, per_device_train_batch_size=3))


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


# ---------------------------------------------------------------------- going on


class Broken(Exception):
    pass


def broken_run(world: World, monkeypatch: pytest.MonkeyPatch, **keys: Any) -> dict[str, Any]:
    """The keys of a run of four steps that failed in its third, with a checkpoint of step 2."""
    found = world.keys("pairs", **{"max_steps": 4, "save_steps": 2, **keys})
    log = run_module._Hooks.log

    def failing(self: Any, step: int, record: dict[str, Any]) -> None:
        if step == 3:
            raise Broken
        log(self, step, record)

    with monkeypatch.context() as patch:
        patch.setattr(run_module._Hooks, "log", failing)
        with pytest.raises(Broken):
            trimtab.dpo(**found)
    assert (Path(found["output_dir"]) / "checkpoint-2").is_dir()
    return found


def test_a_failed_run_goes_on_and_refuses_other_rows(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny_runs.write_rows(world.root / "changing.jsonl", tiny_runs.pairs(12))
    keys = broken_run(world, monkeypatch, dataset_name=str(data))
    tiny_runs.write_rows(data, tiny_runs.pairs(12, 8))
    message = r"checkpoint-2: the training rows have changed since this run began .* --restart"
    with pytest.raises(DataError, match=message):
        trimtab.dpo(**keys)
    tiny_runs.write_rows(data, tiny_runs.pairs(12))
    run = Run(trimtab.dpo(**keys))
    calm = world.run("dpo", "pairs", max_steps=4)
    assert run.trained == calm.trained and run.evaluated == calm.evaluated


def test_resume_with_another_recipe(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = broken_run(world, monkeypatch)
    resume = {"resume": str(Path(keys["output_dir"]) / "checkpoint-2")}

    def again(**changes: Any) -> Run:
        return world.run("dpo", "pairs", **{"max_steps": 4, **resume, **changes})

    calm = world.run("dpo", "pairs", max_steps=4)
    assert again().trained == calm.trained[2:], "in a folder of its own: the same steps"
    other = again(learning_rate=1e-4, loss="simpo", precision="bf16")
    assert [record["step"] for record in other.trained] == [3, 4]
    assert other.trained[0]["learning_rate"] == 1e-4
    assert "bf16" in (other.folder / "README.md").read_text(), "the recipe's, not the checkpoint's"
    for changes, message in (
        (
            {"use_peft": True},
            r"^resume=.* is not trained there and .*; go on with the model and the use_peft",
        ),
        (
            {"model_name_or_path": str(bigger(world))},
            r"^resume=.*\(290, 32\) there and \(\d+, 16\)",
        ),
        ({"optim": "sgd"}, r"^optim=sgd: .* holds the state of adamw"),
        ({"max_steps": 2}, r"^resume=.*is at step 2, and the recipe ends after 2; raise max_steps"),
    ):
        with pytest.raises(RecipeError, match=message):
            again(**changes)


def bigger(world: World) -> Path:
    """A model of another width."""
    return tiny_runs.save_tiny_model(world.root / "wide", width=16)


# ---------------------------------------------------------------------- no key without effect

# Methods of the recipes through which other keys are read.
READERS = {"train_specs", "eval_specs", "specs", "rows_per_step", "config", "gather"}


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
