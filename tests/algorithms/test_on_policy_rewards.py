"""On-policy runs: rewards of several sources, those that are no numbers, PPO's parts, refusals."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from tests import tiny_runs
from tests.algorithms.on_policy_runs import (
    rewards,  # noqa: F401
    run,
)
from tests.algorithms.stage_world import World

import trimtab
from trimtab.algorithms.experience import Experience
from trimtab.algorithms.on_policy import OnPolicy, sequence_sums
from trimtab.errors import RunError, TrimtabError
from trimtab.rewards.reward_model import RewardModel

# ---------------------------------------------------------------------- rewards


def test_rewards_of_several_sources_are_summed(world: World) -> None:
    file = world.root / "rewards.py"
    whole = run(
        world,
        "ppo",
        reward_funcs=[f"{file}:vowels", f"{file}:dots"],
        reward_weights=[2.0, 0.5],
        max_steps=1,
        sample_prompts=2,
    )
    found = whole.trained[0]
    samples = pq.read_table(whole.folder / "completions" / "completions_00001.parquet").to_pylist()
    for one in samples:
        assert one["reward"] == pytest.approx(2 * one["rewards/vowels"] + 0.5 * one["rewards/dots"])
        assert one["rewards/vowels"] == pytest.approx(
            sum(map(one["completion"].count, "aeiou")) / 10
        )
        assert one["tokens"] > 0
    expected = 2 * found["rewards/vowels/mean"] + 0.5 * found["rewards/dots/mean"]
    assert found["reward"] == pytest.approx(expected, rel=1e-6)
    assert found["objective/scores"] == pytest.approx(expected, rel=1e-6)


def test_rewards_of_one_name_are_told_apart(world: World) -> None:
    """A model and a function; and none of their names is a column of the completions."""
    model = world.keys("pairs", sample_prompts=...)
    model["output_dir"] = str(world.root / "vowels")
    trimtab.reward(**model)
    both = run(world, "ppo", "vowels", reward_model=model["output_dir"], max_steps=1)
    record = both.trained[0]
    expected = record["rewards/vowels/mean"] + record["rewards/vowels_2/mean"]
    assert record["reward"] == pytest.approx(expected, rel=1e-5)
    found = run(world, "ppo", "prompt", watch_funcs=[f"{world.root}/rewards.py:prompt"] * 2)
    table = pq.read_table(found.folder / "completions" / "rollout_000000.parquet").to_pydict()
    assert all(isinstance(text, str) for text in table["prompt"])
    assert table["rewards/prompt"] == table["watch/prompt"] == table["watch/prompt_2"]


def test_scores_that_are_no_numbers(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward model's are as a function's: the run stops and names one, or leaves them out."""
    own = str(world.run("reward", "pairs", sample_prompts=...).folder)
    whole = RewardModel.member_scores

    def broken(self: RewardModel, trees: Any) -> Any:
        found = whole(self, trees)
        found[0][1] = [math.nan]
        found[0][2] = [math.inf]
        return found

    monkeypatch.setattr(RewardModel, "member_scores", broken)
    keys: dict[str, Any] = {"reward_funcs": None, "reward_model": own, "max_steps": 1}
    with pytest.raises(RunError, match=r"reward_model=.*:\d+ \(.*gave nan, .*on_bad_reward=drop"):
        run(world, "ppo", **keys)
    record = run(world, "ppo", on_bad_reward="drop", **keys).trained[0]
    assert record["rewards/dropped"] == pytest.approx(2 / 12)
    assert math.isfinite(record["reward"]) and math.isfinite(record["loss"])


def test_an_evaluation_that_nobody_could_judge_is_no_number(world: World) -> None:
    found = run(world, "ppo", "rare", metric_for_best_model="eval_reward", max_steps=1)
    for record in found.evaluated:
        assert math.isnan(record["eval_reward"]) and math.isnan(record["eval_rewards/rare/mean"])
        assert record["eval_length"] > 0


@pytest.mark.parametrize(
    ("verb", "keys"),
    [
        ("ppo", {"whiten_advantages": False}),
        ("grpo", {}),
        ("grpo", {"algorithm": "dapo"}),
        ("rloo", {}),
    ],
)
def test_a_rollout_that_nobody_judges_ends_the_run(
    world: World, verb: str, keys: dict[str, Any]
) -> None:
    with pytest.raises(TrimtabError, match=r"rollout 1: 12 of 12 responses could not be judged"):
        run(world, verb, "none", max_steps=1, **keys)


def test_missing_end_costs_its_penalty(world: World) -> None:
    plain = run(world, "ppo", max_steps=1).trained[0]
    fined = run(world, "ppo", max_steps=1, missing_eos_penalty=2.0).trained[0]
    expected = plain["reward"] - 2.0 * plain["completions/clipped_ratio"]
    assert 0 < plain["completions/clipped_ratio"] <= 1
    assert fined["reward"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("verb", ["ppo", "grpo", "rloo"])
def test_responses_that_nobody_judges_are_left_out(
    world: World, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(world, verb, "shy", max_steps=2)
    assert found.trained[0]["rewards/dropped"] == pytest.approx(4 / 12)
    assert found.trained[0]["reward"] > 0  # the mean is over the others
    # Whatever stands in their place: nothing of it is trained on, or logged.
    judged = OnPolicy.judged

    def odd(self: OnPolicy, experience: Any) -> None:
        judged(self, experience)
        r = experience.responses
        r["score"] = torch.where(r["valid"], r["score"], 7.0)

    monkeypatch.setattr(OnPolicy, "judged", odd)
    again = run(world, verb, "shy", max_steps=2)
    names = {
        "loss",
        "grad_norm",
        "reward",
        "reward_std",
        "val/explained_variance",
        "loss/value_avg",
    }
    for here, there in zip(found.trained, again.trained, strict=True):
        for name in names & here.keys():
            assert here[name] == pytest.approx(there[name], abs=1e-6), name
    table = pq.read_table(found.folder / "completions" / "rollout_000000.parquet").to_pydict()
    assert (
        len(table["completion"]) == 12
        and {"prompt", "reward", "tokens", "rewards/shy"} <= table.keys()
    )
    for name in ("reward", "rewards/shy"):
        unknown = [value is None or math.isnan(value) for value in table[name]]
        assert unknown == [i % 3 == 0 for i in range(12)], name


def test_reward_model_of_the_same_tokenizer_reads_the_tokens(world: World) -> None:
    """And one with another gets the text: its scores are those of the rendered rows."""
    own = world.run("reward", "pairs", sample_prompts=...).folder
    found = run(world, "ppo", reward_funcs=None, reward_model=str(own), max_steps=1)
    assert f"rewards/{own.name}/mean" in found.trained[0]
    assert "value_model" not in json.loads((found.folder / "config.json").read_text())
    other = world.root / "other-tokenizer"
    tiny_runs.save_tiny_model(other, seed=5, chat_template="{{ messages[0]['content'] }}")
    second = world.run("reward", "pairs", sample_prompts=..., model_name_or_path=str(other)).folder
    crossed = run(world, "ppo", reward_funcs=None, reward_model=str(second), max_steps=1)
    assert f"rewards/{second.name}/mean" in crossed.trained[0]
    with pytest.raises(TrimtabError, match=r"value_model=.*tokenizer differs"):
        run(world, "ppo", value_model=str(second), max_steps=1)


def test_isolated_functions_say_what_holds_them(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    run(world, "ppo", reward_isolate=True, max_steps=1, quiet=False)
    assert "vowels: isolated" in capsys.readouterr().err


# ---------------------------------------------------------------------- PPO's parts


def test_a_response_as_one_action(world: World) -> None:
    """Line 4 of whole responses: what a response brought in all, less its prompt's value."""
    keys: dict[str, Any] = {
        "ref_model_name_or_path": str(world.root / "other"), "kl_coef": 0.2, "max_steps": 1,
        "num_ppo_epochs": 1, "whiten_advantages": False, "gamma": 1.0,
    }  # fmt: skip
    found = run(world, "ppo", ratio="sequence", **keys)
    one = Experience.load(found.folder / "rollouts" / "rollout_000000.safetensors")
    ends = one.lengths.cumsum(0)
    starts = (ends - one.lengths).tolist()
    gained = sequence_sums(one.tokens["rewards"], one)
    wanted = gained - one.tokens["values"][starts].double()
    for i, start in enumerate(starts):
        own = one.tokens["advantages"][start : int(ends[i])]
        assert own.double() == pytest.approx([wanted[i].item()] * len(own), abs=1e-5)
    # At the policy that sampled the ratios are 1: the loss is the advantages' mean, negated.
    record = found.trained[0]
    assert record["loss/policy_avg"] == pytest.approx(-wanted.mean().item(), abs=1e-4)
    # Its gradient is that of line 3 with a baseline of no gradient, and no token's own.
    tokens = run(world, "ppo", ratio="token", **keys).trained[0]
    assert record["grad_norm"] != pytest.approx(tokens["grad_norm"], rel=1e-2)
    whitened = run(world, "ppo", ratio="sequence", **{**keys, "whiten_advantages": True})
    one = Experience.load(whitened.folder / "rollouts" / "rollout_000000.safetensors")
    values = one.tokens["advantages"][starts].double()
    assert values.mean().item() == pytest.approx(0, abs=1e-5)
    assert values.std(correction=0).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("truncated", ["zero", "bootstrap"])
def test_a_response_that_was_cut_off_counts_once(world: World, truncated: str) -> None:
    """By its score, or by the value after it in the score's place; never by both."""
    value = world.run("reward", "pairs", sample_prompts=..., max_steps=1).folder
    keys: dict[str, Any] = {"kl_coef": 0.0, "missing_eos_penalty": 0.5, "lam": 1.0, "gamma": 1.0}
    keys |= {"max_steps": 1, "whiten_advantages": False, "truncated_value": truncated}
    found = run(world, "ppo", num_ppo_epochs=1, value_model=str(value), **keys)
    one = Experience.load(found.folder / "rollouts" / "rollout_000000.safetensors")
    r, t = one.responses, one.tokens
    ended = r["ended"].bool()
    assert not ended.all() and r["value_after"].abs().min() > 0
    instead = r["value_after"] - 0.5 if truncated == "bootstrap" else r["raw_score"] - 0.5
    wanted = torch.where(ended, r["raw_score"], instead)
    assert t["returns"] == pytest.approx(wanted[one.sequence], abs=1e-5)
    assert r["score"] == pytest.approx(r["raw_score"] - 0.5 * (~ended), abs=1e-6)  # as logged


def test_a_critic_from_the_reward_model_has_a_new_head(world: World) -> None:
    """Its path keeps the head, and the offset of the rewards with it."""
    own = world.run("reward", "pairs", sample_prompts=..., max_steps=3).folder
    keys: dict[str, Any] = {"reward_funcs": None, "reward_model": str(own), "max_steps": 1}
    begun: list[dict[str, torch.Tensor]] = []
    for value in (None, str(own)):
        found = run(world, "ppo", **dict(keys), value_model=value, kl_coef=0.0)
        one = Experience.load(found.folder / "rollouts" / "rollout_000000.safetensors")
        begun.append({**one.tokens, **one.responses})
    new, old = begun
    assert new["values"].std() == 0 and old["values"].std() > 1e-3
    mean = new["returns"].mean().item()
    assert new["values"].mean().item() == pytest.approx(mean, abs=1e-5)
    # At a stop token the head that was kept gives the reward.
    ended = old["ended"].bool()
    reward = RewardModel.load(own)
    assert reward.offset != 0
    whole = Experience.load(found.folder / "rollouts" / "rollout_000000.safetensors")
    trees = [t._replace(branches=(b,)) for t in whole.trees for b in t.branches]
    scores = torch.tensor([score for (score,) in reward.score_trees(trees)])
    assert old["value_after"] == pytest.approx(scores, abs=1e-5)
    assert old["raw_score"][ended] == pytest.approx(scores[ended], abs=1e-5)


def test_value_models(world: World) -> None:
    keys: dict[str, Any] = {"max_steps": 3, "num_ppo_epochs": 3, "learning_rate": 1e-3}
    for value in ("shared", str(world.root / "other"), None):
        found = run(world, "ppo", value_model=value, **keys)
        first, last = found.trained[0], found.trained[2]
        assert last["loss/value_avg"] < first["loss/value_avg"], value
    # A rate of its own: the same first losses, and values that move further.
    slow, fast = (
        run(world, "ppo", **keys, value_learning_rate=rate).trained for rate in (1e-3, 5e-3)
    )
    assert slow[0]["loss/value_avg"] == fast[0]["loss/value_avg"]
    assert slow[1]["loss/value_avg"] != pytest.approx(fast[1]["loss/value_avg"], rel=1e-3)
    assert slow[1]["loss/policy_avg"] == pytest.approx(fast[1]["loss/policy_avg"], abs=1e-7)
    lora = run(world, "ppo", use_peft=True, lora_r=2, max_steps=2, self_check=True)
    assert (lora.folder / "adapter_model.safetensors").is_file()


def test_objectives_are_equal_at_the_start(world: World) -> None:
    """Lines 1 to 3 have one gradient where the policy is the one that sampled."""
    keys: dict[str, Any] = {"max_steps": 1, "num_ppo_epochs": 1, "kl_coef": 0.2}
    for ratio in ("token", "sequence"):
        norms = [
            run(world, "ppo", objective=line, ratio=ratio, **keys).trained[0]["grad_norm"]
            for line in ("on_policy", "importance", "clip_reward")
        ]
        assert norms == pytest.approx([norms[0]] * 3, rel=1e-4)


def test_literal_kl_has_no_gradient(world: World) -> None:
    """Written at the policy that sampled, beta does nothing; in the reward it does."""

    def norms(placement: str, beta: float) -> float:
        found = run(
            world,
            "ppo",
            objective="importance",
            kl_placement=placement,
            kl_coef=beta,
            ref_model_name_or_path=str(world.root / "other"),
            max_steps=1,
            num_ppo_epochs=1,
        )
        return found.trained[0]["grad_norm"]

    assert norms("literal", 5.0) == pytest.approx(norms("literal", 0.0), rel=1e-6)
    assert norms("reward", 5.0) != pytest.approx(norms("reward", 0.0), rel=1e-2)


def test_adaptive_controller_follows_its_rule(world: World) -> None:
    found = run(
        world,
        "ppo",
        kl_controller="adaptive",
        kl_coef=0.1,
        kl_target=1.0,
        kl_horizon=24,
        num_ppo_epochs=1,
        ref_model_name_or_path=str(world.root / "other"),
        max_steps=3,
    )
    expected = 0.1
    for record in found.trained:
        assert record["kl_coef"] == pytest.approx(expected, rel=1e-6)
        error = min(max(record["objective/kl"] / 1.0 - 1, -0.2), 0.2)
        expected *= 1 + error * 12 / 24


def test_adaptive_controller_keeps_a_tenth(world: World) -> None:
    """A rollout of many horizons would make the coefficient negative."""
    found = run(world, "ppo", kl_controller="adaptive", kl_horizon=1, num_ppo_epochs=1, max_steps=3)
    coefficients = [record["kl_coef"] for record in found.trained]
    assert coefficients == pytest.approx([0.05, 0.005, 0.0005])


def test_ptx_term_is_in_the_same_step(world: World) -> None:
    mix = {"dataset_name": str(world.root / "texts.jsonl"), "weight": 0.5}
    tax = {"eval_text_name": str(world.root / "texts_held.jsonl")}
    keys: dict[str, Any] = {"max_steps": 8, "learning_rate": 3e-3, **tax}
    without, found = run(world, "ppo", **keys), run(world, "ppo", mix=mix, **keys)
    record = found.trained[0]
    assert record["grad_norm/main"] > 0 and record["grad_norm/mix"] > 0
    total = record["grad_norm/main"] + record["grad_norm/mix"]
    assert record["grad_norm"] <= total * (1 + 1e-6)
    assert found.records[-1]["eval_lm_loss"] < without.records[-1]["eval_lm_loss"]


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("function", "pattern"),
    [
        ("broken", r"broken.*raised .*ValueError"),
        ("short", r"short.*gave 1 values for 5 samples"),
        ("nan", r"nan.*gave nan, not a number"),
        ("text", r"text.*gave 'good'"),
        ("picky", r"picky.*asks for column 'solution'"),
        ("missing", r"rewards\.py:missing"),
    ],
)
def test_reward_functions_that_fail_are_named(world: World, function: str, pattern: str) -> None:
    with pytest.raises(TrimtabError, match=pattern) as caught:
        run(world, "ppo", function, max_steps=1)
    assert "\n" not in str(caught.value)


def test_refusals(world: World) -> None:
    def refused(pattern: str, verb: str = "ppo", **keys: Any) -> None:
        with pytest.raises(TrimtabError, match=pattern) as caught:
            run(world, verb, max_steps=1, **keys)
        assert caught.value.exit_code == 2 and "\n" not in str(caught.value)

    refused("reward_model: missing", reward_funcs=None)
    refused(r"num_generations.*no signal", "grpo", num_generations=1)
    refused(r"scale_rewards: reinforce_pp", "grpo", algorithm="reinforce_pp", scale_rewards="none")
    refused(r"epsilon_high: rloo clips nothing", "rloo", epsilon_high=0.3)
    refused(r"num_iterations: 2: rloo has no ratios", "rloo", num_iterations=2)
    refused(r"kl_estimator: has no effect", "grpo", kl_coef=0, kl_estimator="k3")
    refused(r"epsilon", "grpo", epsilon=1.5)
    refused(
        r"kl_estimator.*reference would be ignored", "grpo", kl_placement="loss", kl_estimator="k1"
    )
    refused(r"objective.*one step a rollout", objective="on_policy")
    refused(r"kl_controller: .*0 stays 0", kl_controller="adaptive", kl_coef=0.0)
    refused(r"mix\.dataset_name.*missing", mix={"weight": 0.5})
    refused(r"num_mini_batches.*at most one a prompt", num_mini_batches=9)
    refused("no such folder", reward_funcs=None, reward_model=str(world.root / "nowhere"))
    long = tiny_runs.write_rows(world.root / "long.jsonl", [{"prompt": "a cat " * 900}])
    refused(r"long\.jsonl:1: a prompt of .* fills", dataset_name=str(long), eval_dataset_name=None)


# ---------------------------------------------------------------------- no room for a response


@pytest.mark.parametrize("which", ["train", "held_out"])
def test_a_prompt_that_fills_the_positions(world: World, tmp_path: Path, which: str) -> None:
    model = shutil.copytree(world.root / "model", tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 40}))
    short = [{"prompt": "a cat"}] * 3
    files = {
        name: tiny_runs.write_rows(
            tmp_path / f"{name}.jsonl",
            [*short, {"prompt": "the " * (90 if name == which else 1)}, *short],
        )
        for name in ("train", "held_out")
    }
    said = rf"{which}.jsonl:4: a prompt of \d+ tokens fills the model's 40 positions .*max_prompt_"
    keys: dict[str, Any] = {
        "model_name_or_path": str(model),
        "dataset_name": str(files["train"]),
        "eval_dataset_name": str(files["held_out"]),
        "max_steps": 1,
    }
    with pytest.raises(TrimtabError, match=said):
        run(world, "ppo", **keys)
    run(world, "ppo", max_prompt_length=16, **keys)
