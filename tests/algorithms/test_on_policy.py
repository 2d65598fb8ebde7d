"""ppo and the group algorithms as whole runs on tiny models: ratios, cuts, groups, learning."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.algorithms.on_policy_runs import (
    rewards,  # noqa: F401
    run,
)
from tests.algorithms.stage_world import CONTINUOUS, World, apart

from trimtab.algorithms import group, ppo
from trimtab.algorithms.experience import Experience, response_tree
from trimtab.algorithms.policy import Policy
from trimtab.data.trees import Origin

ALGORITHMS = ["grpo", "dr_grpo", "dapo", "gspo", "rloo", "reinforce_pp", "reinforce_pp_baseline"]


# ---------------------------------------------------------------------- ratios


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_first_mini_batch_has_ratio_one(world: World, temperature: float) -> None:
    """losses.md 5.4: exactly 1 by the trainer's own log-probs, measured for the sampler's."""
    keys = {"temperature": temperature, "max_steps": 1}
    # Whatever the cuts: the log-probs of before were read in other batches than the first one.
    for cuts in ({"token_budget": 10_000}, {"token_budget": 40, "num_mini_batches": 2}):
        for verb, how in (
            ("ppo", {}),
            ("ppo", {"ratio": "sequence"}),
            ("grpo", {}),
            ("grpo", {"algorithm": "gspo"}),
        ):
            own = run(world, verb, old_logprobs="trainer", **cuts, **keys, **how).trained[0]
            assert own["val/ratio"] == 1.0 and own["policy/approxkl_avg"] == 0.0
    later = run(
        world, "ppo", old_logprobs="trainer", num_mini_batches=2, **{**keys, "max_steps": 2}
    ).trained[1]
    assert later["policy/approxkl_avg"] > 1e-8  # the weights have moved
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
        learning_rate=3e-3 if verb == "grpo" else 1e-2,
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
