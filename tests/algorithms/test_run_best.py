"""Whole runs that keep their best checkpoint, watch rewards, are diagnosed and end early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from tests.algorithms.stage_world import Run, World
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import trimtab
from trimtab.algorithms.diagnosis import hacking
from trimtab.algorithms.diagnosis.history import LEAST
from trimtab.algorithms.experience import Experience
from trimtab.algorithms.rollout_log import distinct
from trimtab.config import resolve
from trimtab.errors import CheckpointError, TrimtabError
from trimtab.models import load
from trimtab.models.hub import is_scored
from trimtab.models.scored import load_scored

REWARDS = """
def vowels(completions, **_):
    return [sum(map(text.count, "aeiou")) / 10 for text in completions]

def brief(completions, **_):
    return [-float(len(text)) for text in completions]
"""


@pytest.fixture(scope="module", autouse=True)
def rewards(world: World) -> Path:
    path = world.root / "watched.py"
    path.write_text(REWARDS)
    return path


def ppo(world: World, **keys: Any) -> Run:
    functions = str(world.root / "watched.py")
    common: dict[str, Any] = {
        "reward_funcs": [f"{functions}:vowels"],
        "watch_funcs": [f"{functions}:brief"],
        "max_completion_length": 8,
        "num_generations": 2,
        "num_ppo_epochs": 1,
    }
    return world.run("ppo", "pairs", **{**common, **keys})


# ---------------------------------------------------------------------- the best checkpoint


def test_the_result_is_the_best_checkpoint(world: World) -> None:
    """Best here is the highest loss, which is an early model's."""
    keys: dict[str, Any] = {"max_steps": 8, "eval_steps": 2, "save_total_limit": 1}
    keys["greater_is_better"] = True
    found = world.run("sft", "answers", metric_for_best_model="eval_loss", **keys)
    losses = {r["step"]: r["eval_loss"] for r in found.evaluated}
    best = max(losses, key=losses.__getitem__)
    assert best < 8 and found.results["best_step"] == best
    assert found.results["eval_loss"] == losses[8], "the last model is the result"
    assert {p.name for p in found.folder.glob("checkpoint-*")} == {
        f"checkpoint-{best}",
        "checkpoint-8",
    }
    taken = world.run(
        "sft", "answers", metric_for_best_model="loss", load_best_model_at_end=True, **keys
    )
    assert taken.results["eval_loss"] == taken.results["best_metric"] == losses[best]
    same = load_file(taken.folder / f"checkpoint-{best}" / "model.safetensors")
    for name, tensor in load_file(taken.folder / "model.safetensors").items():
        assert torch.equal(tensor, same[name]), name
    last = load_file(taken.folder / "checkpoint-8" / "model.safetensors")
    assert any(not torch.equal(tensor, last[name]) for name, tensor in same.items())


def test_a_best_checkpoint_that_is_gone_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trimtab.algorithms import run as run_module

    whole = run_module.take_best

    def gone(loop: Any, folder: Path, note: Any) -> None:
        (folder / f"checkpoint-{loop.best.step}" / "masters.safetensors").unlink()
        whole(loop, folder, note)

    monkeypatch.setattr(run_module, "take_best", gone)
    with pytest.raises(CheckpointError, match=r"checkpoint-0: the best checkpoint cannot be read"):
        world.run(
            "sft",
            "answers",
            metric_for_best_model="loss",
            greater_is_better=True,
            load_best_model_at_end=True,
        )


def test_patience_in_a_whole_run(world: World) -> None:
    found = world.run(
        "sft",
        "answers",
        max_steps=20,
        eval_steps=1,
        learning_rate=0.3,
        metric_for_best_model="eval_loss",
        early_stopping_patience=3,
    )
    best = found.results["best_step"]
    assert found.results["steps"] == best + 3 < 20
    assert "has not improved in 3 evaluations" in found.results["stopped"]
    assert json.loads((found.folder / "run.json").read_text())["state"] == "finished"


def test_refusals(world: World) -> None:
    def refused(pattern: str, *tokens: str, verb: str = "sft") -> None:
        with pytest.raises(TrimtabError, match=pattern) as caught:
            resolve(verb, ["--model", "m", "--dataset", "d", *tokens], env={})
        assert caught.value.exit_code == 2 and "\n" not in str(caught.value)

    best, held = ("--metric-for-best-model", "eval_loss"), ("--eval-dataset", "e")
    refused("metric_for_best_model: .*no held-out rows", *best)
    refused("load_best_model_at_end: .*without metric_for", "--load-best-model-at-end")
    refused(
        "early_stopping_patience: .*give eval_steps", *best, *held, "--early-stopping-patience=2"
    )
    judged = ("--reward-funcs", "f", "--stop-when")
    refused(r"stop_when.*holds 'lenght'.*Did you mean length", *judged, "lenght", verb="ppo")
    refused(r"stop_when: watched: nothing is watched", *judged, "watched", verb="ppo")
    with pytest.raises(TrimtabError, match=r"metric_for_best_model='lss': .* they have loss"):
        world.run("sft", "answers", metric_for_best_model="lss")
    with pytest.raises(TrimtabError, match=r"stop_when: disagreement: there is no ensemble"):
        ppo(world, stop_when=["disagreement"])
    with pytest.raises(TrimtabError, match=r"stop_when: no_value: there is no value function"):
        ppo(world, stop_when=["no_value"], objective="importance")


# ---------------------------------------------------------------------- watched rewards


def test_watched_rewards_are_measured_and_change_nothing(world: World) -> None:
    found, without = ppo(world, max_steps=4), ppo(world, max_steps=4, watch_funcs=[])
    for record, plain in zip(found.trained, without.trained, strict=True):
        assert record["watch/brief/mean"] < 0 <= record["watch/brief/std"]
        kept = {k: v for k, v in record.items() if not k.startswith("watch/")}
        assert kept == plain
        assert record["min_reward"] <= record["reward"] <= record["max_reward"]
    table = pq.read_table(found.folder / "completions" / "rollout_000000.parquet").to_pydict()
    expected = sum(table["watch/brief"]) / len(table["watch/brief"])
    assert found.trained[0]["watch/brief/mean"] == pytest.approx(expected)
    assert table["watch/brief"] == [-float(len(text)) for text in table["completion"]]
    last = found.records[-1]
    low, high = last["eval_watch/brief/mean_ci95"]
    assert low <= last["eval_watch/brief/mean"] <= high
    told = json.loads((found.folder / "diagnoses.json").read_text())
    assert told["diagnoses"] == [] and set(told["peaks"]) == {"brief"}
    assert found.results["watch/brief/peak_step"] == 3, "the middle of four"


def test_distinct_counts_over_all_responses(world: World) -> None:
    found = ppo(world, max_steps=1)
    rollout = Experience.load(found.folder / "rollouts" / "rollout_000000.safetensors")
    texts = [branch.ids for tree in rollout.trees for branch in tree.branches]
    for n in (1, 2):
        grams = [tuple(ids[i : i + n]) for ids in texts for i in range(len(ids) - n + 1)]
        assert distinct(rollout, n) == len(set(grams)) / len(grams)
        assert found.trained[0][f"completions/distinct_{n}"] == distinct(rollout, n) <= 1
    assert distinct(rollout, 1) < 1


def test_members_of_an_ensemble_disagree(world: World) -> None:
    keys = world.keys("pairs", sample_prompts=..., ensemble=2)
    trimtab.reward(**keys)
    folder = keys["output_dir"]
    found = ppo(world, reward_model=folder, reward_funcs=[], watch_model=f"{folder}/member-1")
    table = pq.read_table(found.folder / "completions" / "rollout_000000.parquet").to_pydict()
    name = Path(folder).name
    # Two members: the distance of one from the mean is 1 / sqrt(2) of the standard deviation.
    for mean, one, spread in zip(
        table[f"rewards/{name}"], table["watch/member-1"], table["disagreement"], strict=True
    ):
        assert spread == pytest.approx(abs(one - mean) * 2**0.5, abs=1e-5)
    assert found.trained[0]["rewards/disagreement"] > 0
    assert "eval_rewards/disagreement" in found.records[-1]


def test_a_diagnosis_is_logged_told_and_ends_the_run(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hacking, "NATS", -1.0)  # any distance is far
    monkeypatch.setattr(hacking, "FAR_FOR_GAIN", -1.0)
    found = ppo(world, max_steps=12, stop_when=["kl"], quiet=False, num_ppo_epochs=1)
    assert found.results["steps"] == 2 * LEAST
    assert found.results["stopped"] == "diagnosis kl (stop_when)"
    line = next(r for r in found.records if "diagnosis" in r)
    assert (line["step"], line["diagnosis"]) == (8, "kl")
    assert json.loads((found.folder / "diagnoses.json").read_text())["diagnoses"][0] == line
    said = capfd.readouterr().err
    assert f"step 8: reward hacking (kl): {line['says']}" in said
    assert "watched reward brief on rollouts" in said
    assert "ended early, after step 8: diagnosis kl (stop_when)" in said


# ---------------------------------------------------------------------- the value model


@pytest.mark.parametrize("value", [None, "shared"])
def test_the_value_model_is_kept(world: World, value: str | None) -> None:
    """transformers gives the values that the critic would, and a next run takes it.

    A new head begins at the first rollout's mean return, which the config keeps as an offset.
    """
    found = ppo(world, value_model=value, num_ppo_epochs=2, max_steps=4)
    folder = found.folder / "value_model"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rollout = Experience.load(found.folder / "rollouts" / "rollout_000001.safetensors")
    assert AutoTokenizer.from_pretrained(folder).get_vocab()
    ours = load_file(found.folder / "checkpoint-4" / "masters.safetensors")
    head = ours["value.weight" if value else "value.score.weight"]
    assert torch.equal(model.score.weight, head) and float(head.abs().max()) > 0
    tree = rollout.trees[0]
    ids = torch.tensor([[*tree.trunk.ids, *tree.branches[0].ids]])
    with torch.no_grad():
        value_after = model(input_ids=ids).logits
        states = model.model(input_ids=ids).last_hidden_state[:, -1]
    assert value_after.shape == (1, 1)
    assert torch.allclose(value_after, states @ head.T, atol=1e-5)
    offset = json.loads((folder / "config.json").read_text())["reward_offset"]
    begun = Experience.load(found.folder / "rollouts" / "rollout_000000.safetensors").tokens
    assert begun["values"] == pytest.approx(torch.full_like(begun["values"], -offset), abs=1e-5)
    assert offset == pytest.approx(-begun["returns"].mean().item(), abs=1e-5) and offset != 0
    again = ppo(world, value_model=str(folder), max_steps=1, old_logprobs="trainer")
    first = Experience.load(again.folder / "rollouts" / "rollout_000000.safetensors")
    at = first.trees[0]
    text = torch.tensor([[*at.trunk.ids, *at.branches[0].ids]])
    with torch.no_grad():
        expected = float(model(input_ids=text).logits) - offset
    assert float(first.responses["value_after"][0]) == pytest.approx(expected, abs=1e-5)


def test_the_value_head_of_an_adapter_is_an_adapter(world: World) -> None:
    pytest.importorskip("peft")
    found = ppo(world, use_peft=True, lora_r=2, max_steps=2)
    source = load.locate(str(found.folder / "value_model"))
    assert source.kind == "adapter" and is_scored(source)
    model: Any = load_scored(source)
    ours = load_file(found.folder / "checkpoint-2" / "masters.safetensors")["value.weight"]
    scores = [p for n, p in model.named_parameters() if "score" in n and "default" in n]
    assert len(scores) == 1 and torch.equal(scores[0], ours)


def test_without_a_critic_there_is_no_value_model(world: World) -> None:
    found = ppo(world, objective="importance", num_ppo_epochs=1, max_steps=1)
    assert not (found.folder / "value_model").exists()
