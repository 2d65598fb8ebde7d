"""ppo and the group algorithms as whole runs on tiny models, and what they must not do."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from tests import tiny_runs
from tests.algorithms.stage_world import CONTINUOUS, Run, World, apart

import trimtab
from trimtab.algorithms import group, ppo
from trimtab.algorithms.experience import Experience, response_tree
from trimtab.algorithms.policy import Policy
from trimtab.data.trees import Origin
from trimtab.errors import RunError, TrimtabError
from trimtab.rewards.reward_model import RewardModel

REWARDS = """
def vowels(completions, **_):
    return [sum(map(text.count, "aeiou")) / 10 for text in completions]

def dots(completions, **_):
    return [float(text.count(".")) for text in completions]

def many(completions, **_):
    return [float(sum(map(text.count, "aeiou")) > 1) for text in completions]

def rare(completions, **_):
    return [len(text) / 10 if len(completions) == 12 else None for text in completions]

def none(completions, **_):
    return [None] * len(completions)

def prompt(completions, **_):
    return [len(text) / 10 for text in completions]

def same(completions, **_):
    return [0.5] * len(completions)

def shy(completions, **_):
    return [None if i % 3 == 0 else float(len(text)) / 40 for i, text in enumerate(completions)]

def broken(completions, **_):
    raise ValueError("no")

def short(completions, **_):
    return [1.0]

def nan(completions, **_):
    return [float("nan")] * len(completions)

def text(completions, **_):
    return ["good"] * len(completions)

def picky(completions, solution, **_):
    return [1.0] * len(completions)
"""
ALGORITHMS = ["grpo", "dr_grpo", "dapo", "gspo", "rloo", "reinforce_pp", "reinforce_pp_baseline"]


@pytest.fixture(scope="module", autouse=True)
def rewards(world: World) -> Path:
    path = world.root / "rewards.py"
    path.write_text(REWARDS)
    return path


def run(world: World, verb: str, function: str = "vowels", **keys: Any) -> Run:
    """Three steps on prompts, or as many as are asked for."""
    common: dict[str, Any] = {
        "reward_funcs": [f"{world.root / 'rewards.py'}:{function}"],
        "max_completion_length": 8,
        "max_grad_norm": 0.0,
        "num_generations": 3,
    }
    if verb == "rloo" or keys.get("reward_model"):
        common |= {"num_generations": 3}
    if keys.get("reward_funcs", 1) is None:
        common.pop("reward_funcs")
        keys.pop("reward_funcs")
    return world.run(verb, "pairs", **{**common, **keys})


# ---------------------------------------------------------------------- ratios


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_first_mini_batch_has_ratio_one(world: World, temperature: float) -> None:
    """losses.md 5.4: exactly 1 by the trainer's own log-probs, measured for the sampler's."""
    keys = {"temperature": temperature, "max_steps": 1}
    own = run(world, "ppo", old_logprobs="trainer", token_budget=10_000, **keys).trained[0]
    assert own["val/ratio"] == pytest.approx(1.0, abs=1e-6)
    assert own["policy/approxkl_avg"] < 1e-12 and own["policy/clipfrac_avg"] == 0.0
    sampled = run(world, "ppo", **keys).trained[0]
    assert sampled["val/ratio"] == pytest.approx(1.0, abs=1e-4)
    assert sampled["objective/kl"] == pytest.approx(0.0, abs=1e-3)


def test_temperature_of_the_sampling_alone_is_rejected(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wrong variant (B20): ratios of the model at temperature 1."""
    whole = Policy.token_stats

    def cold(self: Policy, *args: Any, **keys: Any) -> Any:
        return whole(self, *args, **{**keys, "temperature": 1.0})

    monkeypatch.setattr(Policy, "token_stats", cold)
    found = run(world, "ppo", temperature=0.7, max_steps=1).trained[0]
    assert abs(found["val/ratio"] - 1.0) > 1e-3


# ---------------------------------------------------------------------- cuts and layouts


@pytest.mark.parametrize("verb", ["ppo", "grpo", "dapo"])
def test_token_budget_and_layout_change_nothing(world: World, verb: str) -> None:
    keys: dict[str, Any] = {**CONTINUOUS, "learning_rate": 0.05, "max_steps": 2}
    if verb == "ppo":
        keys |= {"num_ppo_epochs": 2}
    else:
        keys |= {"algorithm": verb, "num_iterations": 2}
        verb = "grpo"
    whole = run(world, verb, token_budget=10_000, **keys)
    assert apart(run(world, verb, token_budget=40, **keys), whole, 1e-4) == []
    assert apart(run(world, verb, attn_layout="packed", **keys), whole, 1e-4) == []


def test_groups_without_signal_stay_in_the_divisor(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not computed; the loss and the step are those of a run that computes them."""
    keys = {**CONTINUOUS, "algorithm": "dr_grpo", "max_steps": 2, "learning_rate": 0.05}
    skipping = run(world, "grpo", "many", **keys)
    assert 0 < skipping.trained[0]["frac_reward_zero_std"] < 1
    whole = group.GroupPolicyGradient.select
    monkeypatch.setattr(
        group.GroupPolicyGradient, "select", lambda self, e, c: super(type(self), self).select(e, c)
    )
    every = run(world, "grpo", "many", **keys)
    for here, there in zip(skipping.trained, every.trained, strict=True):
        assert here["loss"] == pytest.approx(there["loss"], abs=1e-6)
        assert here["grad_norm"] == pytest.approx(there["grad_norm"], rel=1e-4)

    def forgetful(self: Any, experience: Any, chosen: Any) -> Any:
        found = whole(self, experience, chosen)
        found[0].beside = {}  # the wrong variant: out of the divisor, too
        return found

    monkeypatch.setattr(group.GroupPolicyGradient, "select", forgetful)
    wrong = run(world, "grpo", "many", **keys)
    assert wrong.trained[0]["grad_norm"] != pytest.approx(every.trained[0]["grad_norm"], rel=1e-2)


def test_no_signal_at_all_moves_nothing(world: World) -> None:
    found = run(world, "grpo", "same", algorithm="dr_grpo", max_steps=2)
    assert all(r["grad_norm"] == 0.0 for r in found.trained)
    assert found.trained[0]["frac_reward_zero_std"] == 1.0


def test_flat_groups_are_sampled_again_whole(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """DAPO's dynamic sampling: as many responses as a group has, whatever an evaluation takes."""
    seen: list[tuple[int, int]] = []
    sampled = group.GroupPolicyGradient.sampled

    def noted(self: Any, number: int, rows: Any, prompts: Any, seed: int) -> Any:
        found = sampled(self, number, rows, prompts, seed)
        if number >= 0:
            seen.append((len(prompts), len(found.lengths)))
        return found

    monkeypatch.setattr(group.GroupPolicyGradient, "sampled", noted)
    again = run(world, "grpo", "many", algorithm="dapo", max_steps=2)
    assert len(seen) > 2  # some groups were flat
    assert all(responses == 3 * prompts for prompts, responses in seen)
    once = run(world, "grpo", "many", algorithm="dapo", dynamic_sampling=False, max_steps=2)
    flat, left = (r.trained[0]["frac_reward_zero_std"] for r in (once, again))
    assert left < flat


def test_a_broken_advantage_is_no_group_without_signal() -> None:
    """It reaches the loss, which then says what is wrong."""
    trees = [response_tree([1], [[2], [3]], Origin("d", i)) for i in range(3)]
    one = Experience(0, trees, [0, 1, 2], responses={"valid": torch.ones(6)})
    one.tokens["advantages"] = torch.tensor([0, 0, math.nan, 0, 1, -1.0])
    stage = object.__new__(group.GroupPolicyGradient)
    stage.kl_in_loss = False
    stage.stream = SimpleNamespace(token_budget=100)  # type: ignore[assignment]
    assert [micro.rows for micro in stage.select(one, [0, 1, 2])] == [(1, 2)]


# ---------------------------------------------------------------------- learning


@pytest.mark.parametrize(
    "verb",
    [
        "ppo",
        pytest.param("rloo", marks=pytest.mark.slow),
        pytest.param("grpo dr_grpo", marks=pytest.mark.slow),
    ],
)
def test_reward_rises(world: World, verb: str) -> None:
    verb, _, algorithm = verb.partition(" ")
    keys: dict[str, Any] = {"algorithm": algorithm} if algorithm else {}
    if verb == "ppo":
        keys |= {"num_ppo_epochs": 2, "kl_coef": 0.01}
    found = run(
        world,
        verb,
        max_steps=24,
        learning_rate=1e-2 if verb == "rloo" else 3e-3,
        per_device_train_batch_size=8,
        num_generations=4,
        num_generations_eval=4,
        logging_steps=6,
        **keys,
    )
    first, last = (
        next(r for r in rs if "eval_reward" in r) for rs in (found.records, found.records[::-1])
    )
    assert last["eval_reward"] > first["eval_reward"] + 0.05, verb


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
    with pytest.raises(TrimtabError, match=r"rollout 1: 12 of 12 responses could not be judged"):
        run(world, "ppo", "none", max_steps=1)


def test_missing_end_costs_its_penalty(world: World) -> None:
    plain = run(world, "ppo", max_steps=1).trained[0]
    fined = run(world, "ppo", max_steps=1, missing_eos_penalty=2.0).trained[0]
    expected = plain["reward"] - 2.0 * plain["completions/clipped_ratio"]
    assert 0 < plain["completions/clipped_ratio"] <= 1
    assert fined["reward"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("verb", ["ppo", "grpo", "rloo"])
def test_responses_that_nobody_judges_are_left_out(world: World, verb: str) -> None:
    found = run(world, verb, "shy", max_steps=2)
    assert found.trained[0]["rewards/dropped"] == pytest.approx(4 / 12)
    assert found.trained[0]["reward"] > 0  # the mean is over the others
    table = pq.read_table(found.folder / "completions" / "rollout_000000.parquet").to_pydict()
    assert (
        len(table["completion"]) == 12
        and {"prompt", "reward", "tokens", "rewards/shy"} <= table.keys()
    )


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


# ---------------------------------------------------------------------- PPO's parts


def test_value_models(world: World) -> None:
    for value in ("shared", str(world.root / "other"), None):
        found = run(world, "ppo", value_model=value, max_steps=3, num_ppo_epochs=3)
        first, last = found.trained[0], found.trained[2]
        assert last["loss/value_avg"] < first["loss/value_avg"], value
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


def test_all_group_algorithms_run(world: World) -> None:
    for name in ALGORITHMS:
        keys = {"epsilon": 0.2} if name == "rloo" else {}  # without one it takes a single pass
        found = run(
            world, "grpo", algorithm=name, max_steps=2, num_iterations=2, learning_rate=1e-3, **keys
        )
        assert found.trained[-1]["val/ratio"] == pytest.approx(1.0, abs=0.2)
        assert all(torch.isfinite(torch.tensor(r["loss"])) for r in found.trained), name


def test_settings_are_the_papers() -> None:
    assert group.PAPERS["grpo"].kl_coef == 0.04 and group.PAPERS["dapo"].high == 0.28
    assert set(group.PAPERS) == set(ALGORITHMS)
    assert ppo.PPO.__doc__
