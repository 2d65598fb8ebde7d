"""Metrics of rollouts and of their steps, by hand: clip shares, the sampler's gap, lengths."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.algorithms import support
from tests.algorithms.on_policy_runs import (
    rewards,  # noqa: F401
    run,
)
from tests.algorithms.stage_world import World

from trimtab.algorithms.experience import Experience, response_tree
from trimtab.algorithms.group import PAPERS, GroupPolicyGradient
from trimtab.algorithms.on_policy import OnPolicy, RolloutSettings
from trimtab.algorithms.policy import frozen
from trimtab.algorithms.rollout_log import completion_metrics
from trimtab.algorithms.sampling_gap import RECORDED, gap_metrics, keep_recorded
from trimtab.data.batch import pack
from trimtab.data.trees import Origin
from trimtab.training.algorithm import Micro
from trimtab.training.loop import Loop

LENGTHS = (4, 2, 5, 1)  # of two responses to the first prompt and two to the second
TOKENS = sum(LENGTHS)
RATIOS = [1.5, 1.0, 1.4, 0.5, *(0.5, 0.7), *(0.7, 1.0, 1.9, 1.0, 1.0), 0.6]
PREFIX = "sampling/"
CUTS = pytest.mark.parametrize("budget", [10_000, 1], ids=["one micro-batch", "two"])


def stage_of(
    ratios: list[float],
    advantages: list[float],
    *,
    algorithm: str = "dapo",
    budget: int = 10_000,
    valid: tuple[float, ...] = (1, 1, 1, 1),
    **more: Any,
) -> GroupPolicyGradient:
    """Two passes over a rollout whose tokens have these ratios on its first step."""
    rng = random.Random(3)
    trees = [
        response_tree(
            support.ids(rng, 3), [support.ids(rng, n) for n in lengths], Origin("p", i + 1)
        )
        for i, lengths in enumerate((LENGTHS[:2], LENGTHS[2:]))
    ]
    settings = RolloutSettings(
        per_prompt=2,
        per_held_out=1,
        max_new_tokens=8,
        temperature=1.0,
        passes=2,
        mini_batches=1,
        missing_eos_penalty=None,
        trainer_logprobs=False,
        seed=0,
        folder=Path(),
    )
    stage = GroupPolicyGradient(
        support.policy(torch.float32),
        support.stream(trees, 2, budget),
        total_steps=2,
        settings=settings,
        cast=SimpleNamespace(reference=None),
        group=dataclasses.replace(PAPERS[algorithm], kl_coef=0.0),
    )
    with frozen(stage.model):
        logp = stage.policy.token_stats(pack(trees)).logp
    made = Experience(0, trees, [0, 1])
    made.tokens |= {name: column(logp) for name, column in more.items()}
    made.tokens["old"] = logp - torch.tensor(ratios).log()
    made.responses |= {"score": torch.zeros(4), "ended": torch.tensor([True, False, True, False])}
    made.responses["valid"] = torch.tensor(valid)
    made.tokens["valid"] = made.responses["valid"][made.sequence]
    made.tokens["advantages"] = torch.tensor(advantages)[made.sequence]
    stage.current = made
    return stage


def logged(stage: GroupPolicyGradient, **settings: Any) -> list[dict[str, Any]]:
    """The records of a run over the rollout."""
    hooks = support.Silent()
    Loop(stage, support.settings(**settings), hooks).run()
    return hooks.records


def part(record: dict[str, Any], prefix: str) -> dict[str, float]:
    return {k.removeprefix(prefix): v for k, v in record.items() if k.startswith(prefix)}


# ---------------------------------------------------------------------- clip shares


@CUTS
@pytest.mark.parametrize(
    ("advantages", "low", "high", "least", "most"),
    [
        ([1.0, -1.0, -1.0, 1.0], 3, 2, 0.0, 0.5),
        ([1.0, -1.0, -1.0, -1.0], 4, 2, 0.0, 0.5),  # each of them is held back on one side
        ([-1.0, -1.0, -1.0, -1.0], 5, 0, 0.2, 0.0),  # the least is the second prompt's
        ([1.0, 1.0, 1.0, 1.0], 0, 3, 0.0, 0.5),  # and the greatest the first one's
    ],
)
def test_clip_shares_of_tokens_and_responses(
    budget: int, advantages: list[float], low: int, high: int, least: float, most: float
) -> None:
    """dapo: 0.8 to 1.28, so of a response with A > 0 what is below 0.8 is not held back."""
    found = part(logged(stage_of(RATIOS, advantages, budget=budget))[0], "clip_ratio/")
    assert found == pytest.approx(
        {
            "low_mean": low / TOKENS,
            "high_mean": high / TOKENS,
            "region_mean": (low + high) / TOKENS,
            "low_min": least,
            "high_max": most,
        }
    )


@CUTS
def test_a_response_that_nobody_judged_is_in_no_share(budget: int) -> None:
    """The third: with it the least would be 0.2, and 5 of 12 tokens."""
    stage = stage_of(RATIOS, [-1.0] * 4, budget=budget, valid=(1, 1, 0, 1))
    found = part(logged(stage)[0], "clip_ratio/")
    assert found["low_mean"] == pytest.approx(4 / 7)
    assert found["low_min"] == pytest.approx(0.25)


def test_extremes_of_steps_are_averaged_over_the_steps_of_a_line() -> None:
    """As TRL's are, and as every mean is over the steps: both steps have the same ratios here."""
    stage = stage_of(RATIOS, [1.0, -1.0, -1.0, 1.0])
    (record,) = logged(stage, logging_steps=2, learning_rate=1e-12)
    assert record["clip_ratio/high_max"] == pytest.approx(0.5)
    one, other = logged(stage_of(RATIOS, [1.0, -1.0, -1.0, 1.0]), learning_rate=0.1)
    shares = [step["clip_ratio/high_max"] for step in (one, other)]
    assert shares[0] != shares[1]
    both = logged(stage_of(RATIOS, [1.0, -1.0, -1.0, 1.0]), learning_rate=0.1, logging_steps=2)
    assert both[0]["clip_ratio/high_max"] == pytest.approx(sum(shares) / 2)


def test_of_whole_responses_all_tokens_are_held_back_or_none() -> None:
    """gspo: ratios 1.00003 (within), 0.9, 0.9 and 1.1 of responses, the second with A > 0."""
    ratios = [1.00003] * 4 + [0.9] * 7 + [1.1]
    stage = stage_of(ratios, [1.0, 1.0, -1.0, 1.0], algorithm="gspo")
    found = part(logged(stage)[0], "clip_ratio/")
    shares = {"low_mean": 5 / 12, "high_mean": 1 / 12, "region_mean": 0.5}
    assert found == pytest.approx({**shares, "low_min": 0.0, "high_max": 1.0})


def test_nothing_is_held_back_without_a_clip_range() -> None:
    found = part(logged(stage_of(RATIOS, [1.0, -1.0, -1.0, 1.0], algorithm="rloo"))[0], "clip_rat")
    assert len(found) == 5 and not any(found.values())


# ---------------------------------------------------------------------- sampler and trainer


@CUTS
def test_gap_by_hand_on_the_first_step_alone(budget: int) -> None:
    """The sampler is wrong by ln 2 at two tokens of one micro-batch and by -ln 4 at one."""
    ratios = [1.0] * TOKENS
    ratios[1] = ratios[4] = 2.0
    ratios[11] = 0.25
    first, second = logged(stage_of(ratios, [1.0, -1.0, -1.0, 1.0], budget=budget))
    assert part(first, PREFIX) == pytest.approx(
        {
            "sampling_logp_difference/mean": (2 * math.log(2) + math.log(4)) / 12,
            "sampling_logp_difference/max": math.log(4),
            "importance_sampling_ratio/min": 0.25,
            "importance_sampling_ratio/mean": (9 + 2 * 2.0 + 0.25) / 12,
            "importance_sampling_ratio/max": 2.0,
        },
        abs=1e-5,
    )
    assert part(second, PREFIX) == {} and second["clip_ratio/region_mean"] >= 0


@CUTS
def test_a_sampler_that_is_right_has_no_gap(budget: int) -> None:
    found = part(logged(stage_of([1.0] * TOKENS, [1.0, -1.0, -1.0, 1.0], budget=budget))[0], PREFIX)
    assert found.pop("sampling_logp_difference/mean") < 1e-6
    assert found.pop("sampling_logp_difference/max") < 1e-6
    assert list(found.values()) == pytest.approx([1.0] * 3, abs=1e-6)


def test_where_old_is_the_trainers_the_sampler_is_measured_by_its_own_column() -> None:
    stage = stage_of(
        [1.0] * TOKENS, [1.0, -1.0, -1.0, 1.0], sampled=lambda logp: logp + math.log(2)
    )
    first, second = logged(stage)
    assert first["sampling/sampling_logp_difference/mean"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["sampling/importance_sampling_ratio/max"] == pytest.approx(0.5, abs=1e-6)
    assert first["val/ratio"] == pytest.approx(1.0, abs=1e-6)
    assert part(second, PREFIX) == {}


def test_mixed_in_text_has_nothing_recorded() -> None:
    stage = stage_of(RATIOS, [1.0] * 4)
    (own,) = stage.micros(0)
    text = Micro(own.batch, own.rows, stream="mix")
    keep_recorded([own, text])
    assert torch.equal(own.tokens[RECORDED], own.tokens["old"]) and text.tokens == {}
    assert gap_metrics(torch.zeros(TOKENS), text.tokens) == {}


@pytest.mark.parametrize(
    ("verb", "old"), [("grpo", "sampler"), ("grpo", "trainer"), ("ppo", "sampler")]
)
def test_gap_of_a_whole_run(
    world: World, verb: str, old: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two mini-batches, two passes: of four steps the first is measured, in every rollout."""
    keys: dict[str, Any] = {
        "old_logprobs": old,
        "num_iterations" if verb == "grpo" else "num_ppo_epochs": 2,
        "num_mini_batches": 2,
        "max_steps": 5,
        "learning_rate": 1e-3,
        "temperature": 0.7,
    }
    found = run(world, verb, **keys).trained
    assert [bool(part(step, PREFIX)) for step in found] == [True, False, False, False, True]
    assert all(found[i]["sampling/sampling_logp_difference/max"] < 1e-5 for i in (0, 4))
    assert found[1]["policy/approxkl_avg"] > 1e-8  # training, which is no gap
    assert [step["episode"] for step in found] == [12, 12, 12, 12, 24]

    sampled = OnPolicy.sampled

    def shifted(self: Any, *arguments: Any) -> Experience:
        made = sampled(self, *arguments)
        made.tokens["old"] = made.tokens["old"] - 0.25
        return made

    monkeypatch.setattr(OnPolicy, "sampled", shifted)
    wrong = part(run(world, verb, **{**keys, "max_steps": 1}).trained[0], PREFIX)
    assert wrong.pop("sampling_logp_difference/mean") == pytest.approx(0.25, abs=1e-5)
    assert wrong.pop("sampling_logp_difference/max") == pytest.approx(0.25, abs=1e-5)
    assert list(wrong.values()) == pytest.approx([math.exp(0.25)] * 3, abs=1e-5)


# ---------------------------------------------------------------------- lengths


def test_lengths_of_responses_that_ended_by_themselves() -> None:
    made = stage_of(RATIOS, [1.0] * 4).current
    assert made is not None
    made.responses["ended"] = torch.tensor([True, True, False, False])  # 4 and 2 of 4, 2, 5, 1
    found = {name: metric.sum / metric.count for name, metric in completion_metrics(made).items()}
    lengths = {n: v for n, v in part(found, "completions/").items() if n.endswith("length")}
    assert lengths == {
        "mean_length": 3.0,
        "min_length": 1.0,
        "max_length": 5.0,
        "mean_terminated_length": 3.0,
        "min_terminated_length": 2.0,
        "max_terminated_length": 4.0,
    }
    made.responses["ended"] = torch.zeros(4).bool()
    assert not [name for name in completion_metrics(made) if "terminated" in name]
