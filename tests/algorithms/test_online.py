"""online_dpo and raft as whole runs on tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny_runs
from tests.algorithms.on_policy_runs import REWARDS
from tests.algorithms.stage_world import CONTINUOUS, Run, World, apart
from transformers import AutoModelForCausalLM

import trimtab
from trimtab.algorithms import fresh
from trimtab.algorithms.experience import Experience
from trimtab.algorithms.online import OnlinePreference
from trimtab.algorithms.pairing import Chosen
from trimtab.cli import main
from trimtab.data.trees import Comparison
from trimtab.errors import TrimtabError
from trimtab.proof.language import Language
from trimtab.proof.transformer import save_transformer
from trimtab.training.seeds import derive

OWN_LOSS = """
from trimtab.losses.types import Pair, PreferenceTerms


def rebel(policy: Pair, reference: Pair, margins, *, beta: float = 0.1) -> PreferenceTerms:
    chosen = policy.chosen.sum - reference.chosen.sum
    rejected = policy.rejected.sum - reference.rejected.sum
    losses = (beta * (chosen - rejected) - margins) ** 2
    return PreferenceTerms(losses, (beta * chosen).detach(), (beta * rejected).detach())
"""


@pytest.fixture(scope="module", autouse=True)
def files(world: World) -> None:
    (world.root / "rewards.py").write_text(REWARDS)
    (world.root / "own.py").write_text(OWN_LOSS)


def run(world: World, verb: str = "online_dpo", function: str = "vowels", **keys: Any) -> Run:
    """Two steps on prompts, four responses each."""
    common: dict[str, Any] = {
        "reward_funcs": [f"{world.root / 'rewards.py'}:{function}"],
        "max_completion_length": 8,
        "max_grad_norm": 0.0,
        "num_generations": 4,
        "max_steps": 2,
        "eval_dataset_name": ...,
    }
    return world.run(verb, "pairs", **{**common, **keys})


# ---------------------------------------------------------------------- cuts and layouts


@pytest.mark.parametrize(
    "keys",
    [
        {"pairs": "all", "num_iterations": 2},
        {"loss": "plackett_luce", "num_mini_batches": 2},
        {"loss": "tdpo2", "nll_weight": 0.3},
        {"loss": "kto"},
        {"verb": "raft", "keep_top": 2},
    ],
    ids=["all", "ranking", "tdpo2", "kto", "raft"],
)
def test_token_budget_and_layout_change_nothing(world: World, keys: dict[str, Any]) -> None:
    keys = {"verb": "online_dpo", **CONTINUOUS, "learning_rate": 0.05, **keys}
    whole = run(world, token_budget=10_000, **keys)
    assert apart(run(world, token_budget=30, **keys), whole, 1e-4) == []
    assert apart(run(world, attn_layout="packed", **keys), whole, 1e-4) == []


def test_losses_of_every_kind_at_the_reference(world: World) -> None:
    """Values that are known before the first step, with the self-check of the reference."""
    keys: dict[str, Any] = {"max_steps": 1, "self_check": True}
    for loss, value in (("dpo", 0.693147), ("tdpo2", 0.693147), ("kto", 0.5)):
        found = run(world, loss=loss, **keys)
        assert found.trained[0]["loss"] == pytest.approx(value, abs=1e-4), loss
        names = (found.folder / "selfcheck.json").read_text()
        assert "log-ratio to the reference is 0" in names
    own = {"loss": {"file": f"{world.root / 'own.py'}:rebel"}}
    record = run(world, pairs="all", **own, **keys).trained[0]
    assert record["loss"] > record["objective/scores_margin"] ** 2 > 0  # mean of margin^2


# ---------------------------------------------------------------------- ties and divisors


def test_prompts_without_a_comparison_are_in_no_divisor(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is the mean over the comparisons that there are: ln 2 at the reference."""
    found = run(world, function="many", num_generations=2, max_steps=1).trained[0]
    assert 0 < found["frac_reward_zero_std"] < 1
    assert found["pairs"] == 4 * (1 - found["frac_reward_zero_std"])
    assert found["loss"] == pytest.approx(0.693147, abs=1e-4)

    def weighty(tree: Any, kind: Any) -> Chosen:  # the wrong variant: ties as pairs
        return Chosen(
            tree._replace(comparisons=(Comparison(0, 1),), branches=tree.branches[:2]), (0, 1)
        )

    whole = fresh.FreshSamples.chosen

    def wrong(self: Any, experience: Experience) -> list[Any]:
        found = whole(self, experience)
        return [one or weighty(t, "pair") for one, t in zip(found, experience.trees, strict=True)]

    monkeypatch.setattr(fresh.FreshSamples, "chosen", wrong)
    tied = run(world, function="many", num_generations=2, max_steps=1).trained[0]
    assert tied["grad_norm"] != pytest.approx(found["grad_norm"], rel=0.05)


def test_ties_everywhere_are_told_and_move_nothing(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    keys: dict[str, Any] = {"quiet": False, "max_steps": 3}
    found = run(world, function="same", self_check=True, **keys)
    said = "".join(capsys.readouterr())
    assert "rollout 1: 16 responses to 4 prompts and no comparison, for all scores of a" in said
    assert "(rollouts like that: 2)" in said and "(rollouts like that: 3)" not in said
    assert all(r["grad_norm"] == 0.0 and r["loss"] == 0.0 for r in found.trained)
    assert all(r["pairs"] == 0 and r["frac_reward_zero_std"] == 1 for r in found.trained)
    before = AutoModelForCausalLM.from_pretrained(world.root / "model").state_dict()
    after = AutoModelForCausalLM.from_pretrained(found.folder).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    raft = run(world, "raft", "vowels", min_score=9.0, **keys)
    assert raft.trained[-1]["completions/kept_ratio"] == 0
    assert "none of 16 responses reaches min_score=9" in "".join(capsys.readouterr())


def test_responses_that_nobody_judges_are_left_out(world: World) -> None:
    found = run(world, function="shy", pairs="all", max_steps=1).trained[0]
    assert found["rewards/dropped"] == pytest.approx(6 / 16)
    assert 0 < found["pairs"] <= 3 + 3 + 3 + 3 + 3  # at most 3 of a prompt's 4 are judged


def test_missing_end_costs_its_penalty(world: World) -> None:
    plain = run(world, max_steps=1).trained[0]
    fined = run(world, max_steps=1, missing_eos_penalty=2.0).trained[0]
    expected = plain["reward"] - 2.0 * plain["completions/clipped_ratio"]
    assert fined["reward"] == pytest.approx(expected, rel=1e-5)


# ---------------------------------------------------------------------- the reference


def test_log_probs_are_of_the_model_whatever_the_temperature(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: dict[str, Any] = {"temperature": 0.6, "max_steps": 1}
    found = run(world, **keys).trained[0]
    assert found["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert abs(found["rewards/chosen"]) < 1e-4

    def hot(self: OnlinePreference, experience: Experience) -> torch.Tensor:
        sums = torch.zeros(len(experience.lengths))
        return sums.index_add(0, experience.sequence, experience.tokens["reference"])

    monkeypatch.setattr(OnlinePreference, "_reference_sums", hot)  # the wrong variant
    assert abs(run(world, **keys).trained[0]["rewards/chosen"]) > 1e-3


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_the_policy_becomes_the_reference(world: World, lora: bool) -> None:
    """After a refresh the log-ratios are 0 again; without it they are not."""
    keys: dict[str, Any] = {"num_iterations": 2, "max_steps": 6, "learning_rate": 3e-3}
    keys |= {"use_peft": True, "lora_r": 2} if lora else {}
    still = run(world, **keys).trained
    synced = run(world, ref_model_sync_steps=4, **keys).trained
    for step in (0, 1, 2, 3):
        assert synced[step] == still[step]
    assert abs(still[4]["objective/kl"]) > 1e-3 and abs(synced[4]["objective/kl"]) < 1e-4
    assert abs(still[4]["rewards/margins"]) > 1e-4 > abs(synced[4]["rewards/margins"])
    assert abs(synced[5]["rewards/margins"]) > 1e-4  # it stays where it was


def test_a_resumed_run_has_the_reference_of_its_checkpoint(world: World) -> None:
    """In a folder of its own, too; with another reference by name it begins with that one."""
    keys: dict[str, Any] = {"max_steps": 4, "learning_rate": 3e-3, "ref_model_sync_steps": 2}
    calm = run(world, save_steps=1, save_total_limit=None, **keys)
    resume = str(calm.folder / "checkpoint-3")
    again = run(world, resume=resume, **keys)
    assert again.trained == calm.trained[3:]
    other = run(
        world, resume=resume, ref_model_name_or_path=str(world.root / "other"), **keys
    ).trained
    assert abs(other[0]["objective/kl"] - calm.trained[3]["objective/kl"]) > 1e-2


# ---------------------------------------------------------------------- learning


@pytest.mark.parametrize("verb", ["online_dpo", "raft"])
def test_reward_rises(world: World, verb: str) -> None:
    keys = {"num_iterations": 2, "eval_dataset_name": world.rows("pairs")["eval_dataset_name"]}
    found = run(
        world,
        verb,
        max_steps=24,
        learning_rate=1e-2,
        per_device_train_batch_size=8,
        logging_steps=6,
        **keys,
    )
    first, last = (
        next(r for r in rs if "eval_reward" in r) for rs in (found.records, found.records[::-1])
    )
    assert last["eval_reward"] > first["eval_reward"] + 0.05, verb
    assert last["eval_kl"] > first["eval_kl"] + 0.1


# ---------------------------------------------------------------------- rounds by hand

SEED = 2  # with which no response is cut off: rows of dpo end with a stop token always
TEXT_REWARD = """
import random

def reward(completions, **_):
    return [random.Random("r" + t).gauss(0, 1) if t.strip() else None for t in completions]
"""


def command(*words: Any) -> None:
    assert main([str(word) for word in words]) == 0


def test_rounds_are_those_of_sample_score_and_dpo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Iterative DPO: R rollouts with a refresh each = R times sample, score --keep pair, dpo."""
    monkeypatch.chdir(tmp_path)
    save_transformer(tmp_path / "start", Language(prompts="xy"), seed=3, spread=0.08)
    (tmp_path / "reward.py").write_text(TEXT_REWARD)
    prompts = ["xy", "yx", "xx", "yy"]
    tiny_runs.write_rows(tmp_path / "prompts.jsonl", [{"prompt": p} for p in prompts])
    shared: dict[str, Any] = {
        "seed": SEED,
        "optim": "sgd",
        "learning_rate": 0.3,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "max_grad_norm": 0.0,
        "per_device_train_batch_size": 4,
        "precision": "fp32",
        "device": "cpu",
        "save_steps": None,
        "sample_prompts": 0,
        "self_check": False,
        "quiet": True,
        "cache_dir": "cache",
    }
    trimtab.online_dpo(
        model_name_or_path="start",
        dataset_name="prompts.jsonl",
        reward_funcs=["reward.py:reward"],
        num_generations=4,
        max_completion_length=28,
        num_iterations=2,
        ref_model_sync_steps=2,
        max_steps=4,
        output_dir="online",
        **shared,
    )
    model = "start"
    for turn in (0, 1):
        rollout = Experience.load(tmp_path / f"online/rollouts/rollout_{turn:06d}.safetensors")
        assert rollout.responses["ended"].all()  # rows of dpo end with a stop token always
        ordered = [{"prompt": prompts[row]} for row in rollout.rows]
        tiny_runs.write_rows(tmp_path / f"prompts{turn}.jsonl", ordered)
        seed = derive(SEED, "roll", turn)
        command(
            *("sample", "--model", model, "--dataset", f"prompts{turn}.jsonl", "--seed", seed),
            *("--output", f"sampled{turn}.jsonl", "--max-completion-length", 28),
            *("--precision", "fp32"),
        )
        command(
            *("score", f"sampled{turn}.jsonl", "--reward-funcs", "reward.py:reward"),
            *("--keep", "pair", "--output", f"pairs{turn}.jsonl"),
        )
        trimtab.dpo(
            model_name_or_path=model,
            dataset_name=f"pairs{turn}.jsonl",
            num_train_epochs=2,
            output_dir=f"round{turn}",
            **shared,
        )
        model = f"round{turn}"
        rows = [json.loads(line) for line in Path(f"pairs{turn}.jsonl").read_text().splitlines()]
        expected: dict[str, list[float]] = {}
        scores, valid = (rollout.responses[name].view(4, 4) for name in ("score", "valid"))
        for place, row in enumerate(rollout.rows):
            known = scores[place][valid[place]]
            if known.numel() and known.max() > known.min():
                expected[prompts[row]] = [known.max().item(), known.min().item()]
        by_prompt = {row["prompt"]: [row["chosen_score"], row["rejected_score"]] for row in rows}
        assert by_prompt.keys() == expected.keys() and len(rows) >= 2
        for prompt, pair in expected.items():
            assert by_prompt[prompt] == pytest.approx(pair, abs=1e-6)
    start, by_hand, online = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict()
        for name in ("start", model, "online")
    )
    moved = max((by_hand[n] - start[n]).abs().max().item() for n in start)
    gap = max((by_hand[n] - online[n]).abs().max().item() for n in start)
    assert moved > 1e-3 and gap < 1e-3 * moved
    # The wrong variant: the first model as the reference of the second round.
    trimtab.dpo(
        model_name_or_path="round0",
        ref_model_name_or_path="start",
        dataset_name="pairs1.jsonl",
        num_train_epochs=2,
        output_dir="stale",
        **shared,
    )
    stale = AutoModelForCausalLM.from_pretrained(tmp_path / "stale").state_dict()
    assert max((stale[n] - online[n]).abs().max().item() for n in start) > 1e-2 * moved


# ---------------------------------------------------------------------- refusals


def test_refusals(world: World) -> None:
    def refused(pattern: str, verb: str = "online_dpo", **keys: Any) -> None:
        with pytest.raises(TrimtabError, match=pattern) as caught:
            run(world, verb, **keys)
        assert caught.value.exit_code == 2 and "\n" not in str(caught.value)

    refused(r"num_generations: 1: one response.*at least 2", num_generations=1)
    refused(r"reward_model: missing", reward_funcs=[])
    refused(r"pairs: all: kto compares no pairs", loss="kto", pairs="all")
    refused(r"pairs: all: plackett_luce.*whole rankings", loss="plackett_luce", pairs="all")
    refused(
        r"per_device_train_batch_size: 4 .*take at least 2 a step", loss="kto", num_mini_batches=4
    )
    refused(r"ref_model_sync_steps: 3 falls inside", ref_model_sync_steps=3, num_iterations=2)
    refused(r"ref_model_sync_steps: simpo has no reference", ref_model_sync_steps=2, loss="simpo")
    refused(r"keep_top: 4 of 4 responses chooses nothing", "raft", keep_top=4)
    refused(r"keep_top: 9 of num_generations=4", "raft", keep_top=9)
    refused(r"old_logprobs: unknown key", old_logprobs="trainer")
    refused(r"stop_when: entropy: these steps compute none", stop_when=["entropy"])
    refused(r"stop_when: entropy: these steps compute none", "raft", stop_when=["entropy"])
    refused(r"sync_ref_model: .*online_dpo has ref_model_sync_steps", sync_ref_model=True)
    refused(r"loss: 'best' is no loss", loss="best")
    long = tiny_runs.write_rows(world.root / "long.jsonl", [{"prompt": "a cat " * 900}])
    refused(r"long\.jsonl:1: a prompt of .* fills", dataset_name=str(long))


def test_orpo_brings_its_likelihood_and_nothing_else(world: World) -> None:
    from trimtab.config import resolve

    words = ["--model", "m", "--dataset", "d", "--reward-funcs", "f", "--loss", "orpo"]
    recipe: Any = resolve("online_dpo", words, env={}).recipe
    assert (recipe.nll_weight, recipe.num_train_epochs, recipe.learning_rate) == (1.0, 1.0, 5e-7)
