"""The cases hang together, and figures are made of runs as they should be."""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks.trimtab_side import recipe_keys
from benchmarks.trl_side import arguments

from benchmarks import (
    models,
    on_policy,
    profile_step,
    rows,
    run,
    table,
    trimtab_on_policy,
    trl_on_policy,
)
from trimtab.config.resolve import recipe_from_kwargs


def job(case: dict[str, Any], arm: dict[str, Any]) -> dict[str, Any]:
    made = run.job_of(case, arm, [pair(case["kind"]) for _ in range(999)], 1)
    return {**made, "data": "rows.jsonl", "scratch": "scratch"}


def pair(kind: str) -> dict[str, Any]:
    if kind == "prompts":
        return {"prompt": [{"role": "user", "content": "p"}], "chosen": "c"}
    if kind == "plain-4":
        return {"prompt": "p", "responses": list("abcde"), "ranks": [5, 1, 2, 3, 4]}
    return {"prompt": "p", "chosen": "c", "rejected": "r"}


@pytest.mark.parametrize("name", list(run.cases_of(None, quick=False)))
def test_every_case_can_be_run(name: str) -> None:
    case = run.cases_of([name], quick=False)[name]
    assert case["rows"] in rows.pinned() and case["model"] in models.described()
    needed = 0 if case["measures"] == "startup" else case["steps"] * case["batch"]
    lines = rows.pinned()[case["rows"]]["files"][0].get("lines", [])
    assert needed <= len(lines) or case["measures"] == "startup"
    assert case["warmup_steps"] < case["steps"] or case["measures"] == "startup"
    assert next(iter(case["arms"].values()))["side"] == "trimtab"
    for arm in case["arms"].values():
        made = job(case, arm)
        if case["verb"] in on_policy.VERBS:
            assert_same_rollouts(case, made)
        elif arm["side"] == "trimtab":
            recipe: Any = recipe_from_kwargs(case["verb"], env={}, **recipe_keys(made)).recipe
            assert recipe.rows_per_step == case["batch"] and not recipe.shuffle
        else:
            # Of a step's rows the other side makes exactly the pairs of its micro-batches.
            pairs = [one for row in made["rows"][: case["batch"]] for one in rows.pairs_of(row)]
            keys = arguments(made)
            size, times = keys["per_device_train_batch_size"], keys["gradient_accumulation_steps"]
            assert len(pairs) == size * times == case["batch"] * case["pairs_per_row"]


def assert_same_rollouts(case: dict[str, Any], made: dict[str, Any]) -> None:
    """Either side makes as many responses of the same prompts, and as many passes over them."""
    assert made["rows"][0] == {"prompt": pair("prompts")["prompt"]}
    responses = case["batch"] * case["responses_per_row"]
    if made["arm"]["side"] == "trimtab":
        keys = trimtab_on_policy.recipe_keys(made)
        recipe: Any = recipe_from_kwargs(case["verb"], env={}, **keys).recipe
        assert recipe.rows_per_step * recipe.num_generations == responses and not recipe.shuffle
        assert recipe.max_steps == case["steps"] * recipe.passes
        assert recipe.max_completion_length == case["new_tokens"] and recipe.temperature == 1.0
        return
    keys = trl_on_policy.arguments(made)
    size, times = keys["per_device_train_batch_size"], keys["gradient_accumulation_steps"]
    assert size * times == responses
    if case["verb"] == "ppo":
        assert keys["total_episodes"] == case["steps"] * responses
        assert keys["num_ppo_epochs"] == case["passes"] == 4
    else:
        assert keys["num_generations"] == 8 and keys["beta"] > 0
        assert keys["max_steps"] == case["steps"] and keys["num_iterations"] == 1


def test_the_first_rollout_is_the_same_on_both_sides() -> None:
    found = on_policy.fixed_responses(3, 64, 16384, 42)
    assert found == on_policy.fixed_responses(3, 64, 16384, 42)
    assert [len(ids) for ids in found] == [64] * 3 and found[0] != found[1]
    assert all(on_policy.FIRST_WORD <= token < 16384 for ids in found for token in ids)
    chat = [{"role": "assistant", "content": "aXe."}]
    assert on_policy.vowels(["p"] * 3, ["aXe.", chat, ""]) == [5.0, 5.0, 0.0]


def test_sides_that_disagree_on_the_first_rollout_fail() -> None:
    first = {"log": [{"loss": 0.5}], "checks": {"reward": 1.0, "loss": 0.5, "grad_norm": 2.0}}
    for name, value, fails in (
        ("reward", 1.0 + 2e-4, True),
        ("loss", 0.5 + 5e-5, False),
        ("grad_norm", 2.0 + 6e-3, False),  # relative
        ("grad_norm", 2.0 + 2e-2, True),
        ("loss", float("nan"), True),
    ):
        other = {**first, "checks": {**first["checks"], name: value}}
        why = table.disagreement(table.loss_gap(first, other, "ppo"), {"fp32"})
        assert (why is not None) == fails, (name, value)
        assert why is None or why.startswith(name)
    with pytest.raises(ValueError, match="one side checks"):
        table.loss_gap(first, {**first, "checks": {"loss": 0.5, "grad_norm": 2.0}}, "grpo")


def test_a_step_of_rankings_is_six_micro_batches_of_pairs() -> None:
    case = run.cases_of(["reward-9m-k4"], quick=False)["reward-9m-k4"]
    keys = arguments(job(case, case["arms"]["trl-tuned"]))
    found = (keys["per_device_train_batch_size"], keys["gradient_accumulation_steps"])
    assert found == (8, 6) and keys["gradient_checkpointing"] is False
    assert "pairs_per_row" not in keys


def test_arms_depend_on_what_the_machine_can() -> None:
    for gain, left, bf16 in ((2.0, True, True), (0.5, False, False)):
        case: dict[str, Any] = {
            "notes": [],
            "arms": {
                "a": {"side": "trimtab"},
                "b": {"side": "trl", "bf16": "best"},
                "c": {"side": "trl", "needs": "bf16"},
            },
        }
        run.arms_of(case, None, gain)
        assert ("c" in case["arms"]) == left == (not case["notes"])
        assert case["arms"]["b"]["bf16"] is bf16
        assert all("needs" not in arm for arm in case["arms"].values())


def result(step: float, reference: float, peak: float, loss: float) -> dict[str, Any]:
    return {
        "step_seconds": [9.0, step, step],
        "rows": [4, 4, 4],
        "reference_seconds": reference,
        "reference_rows": 12 if reference else 0,
        "peak_mb": peak,
        "train_peak_mb": peak,
        "seconds_to_first_step": 1.0,
        "seconds_to_first_step_end": 2.0,
        "precision": "fp32",
        "log": [{"loss": loss, "logps/chosen": -10.0, "logps/rejected": -20.0}] * 3,
    }


def test_figures_of_a_case() -> None:
    case = {
        "verb": "dpo",
        "warmup_steps": 1,
        "measures": "rows",
        "lora": None,
        "machine": [],
        "runs": {
            "trimtab": [result(1.0, 3.0, 100.0, 0.7), result(3.0, 3.0, 100.0, 0.7)],
            "trl": [result(4.0, 0.0, 400.0, 0.8)],
            "failed": [],
        },
    }
    figures = table.case_figures(case, None)
    # 1/4 s a row for steps and 3/12 s for the reference, then 3/4 + 3/12: the median of 2 and 1.
    assert figures["trimtab"]["rows_per_second"] == pytest.approx(1.5)
    assert figures["trl"]["rows_per_second"] == pytest.approx(1.0)
    assert figures["trl"]["ratio_rows"] == pytest.approx(1.5)
    assert figures["trl"]["ratio_peak"] == pytest.approx(0.25)
    assert "failed" not in figures
    gap = figures["trl"]["loss_gap"]
    assert gap["first_loss"] == pytest.approx(0.1) and gap["logps_relative"] == 0.0
    assert "first_loss differs by 0.1" in str(table.disagreement(gap, {"fp32"}))
    assert table.disagreement({**gap, "first_loss": 1e-6}, {"fp32"}) is None
    nan = float("nan")
    assert table.disagreement({**gap, "first_loss": nan}, {"fp32"}) is not None


def test_scores_are_compared_as_well_as_the_loss() -> None:
    """Mean and margin of the scores of a reward model: read elsewhere, they show it at once."""
    first = {"log": [{"loss": 0.7, "margin": 0.1, "mean_reward": -0.2}, {"loss": 0.6}]}
    other = {"log": [{"loss": 0.7, "margin": 0.1, "mean_reward": -0.3}, {"loss": 0.6}]}
    gap = table.loss_gap(first, other, "reward")
    assert gap["scores"] == pytest.approx(0.1) and gap["first_loss"] == 0.0
    assert "scores differs by 0.1" in str(table.disagreement(gap, {"fp32"}))
    assert table.disagreement(table.loss_gap(first, first, "reward"), {"fp32"}) is None
    assert table.loss_gap(first, other, "sft")["scores"] is None


def test_every_operation_is_in_one_part_of_the_profile() -> None:
    seconds = {
        "aten::addmm": 3.0,
        "mkldnn::_linear_pointwise": 1.0,
        "aten::_scaled_dot_product_flash_attention_for_cpu": 2.0,
        "aten::_foreach_mul_": 0.25,
        "aten::mul": 0.5,
    }
    parts = profile_step.by_part(seconds)
    assert parts["matrix products"] == 4.0 and parts["attention"] == 2.0
    assert parts["optimizer, clipping"] == 0.25 and parts[profile_step.REST] == 0.5
    assert sum(parts.values()) == sum(seconds.values())
    text = profile_step.lines("part", parts, 6.75)
    assert text[1].split()[-2:] == ["4.000", "59.3%"]
