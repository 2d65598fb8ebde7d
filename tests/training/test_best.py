"""The best evaluation: chosen, saved, kept, stopped for, and remembered by checkpoints."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.algorithms.support import Silent, make_stage, settings

from trimtab.errors import RecipeError
from trimtab.training.best import Best, BestRule
from trimtab.training.checkpoint import CheckpointStore
from trimtab.training.loop import Loop


@pytest.mark.parametrize(
    ("name", "greater"),
    [
        ("eval_loss", False),
        ("eval_perplexity", False),
        ("bpb", False),
        ("eval_kl", False),
        ("eval_rewards/disagreement", False),
        ("eval_completions/repetition", False),
        ("eval_accuracy", True),
        ("eval_rewards/length/mean", True),
        ("eval_watch/gold/mean", True),
    ],
)
def test_the_way_that_is_better_follows_from_the_name(name: str, greater: bool) -> None:
    rule = BestRule.of(name, None, None)
    assert rule == BestRule(name.removeprefix("eval_"), greater)
    assert BestRule.of(name, not greater, 3).greater is not greater


def test_length_has_no_better_end() -> None:
    with pytest.raises(RecipeError, match=r"'eval_length': .* give greater_is_better"):
        BestRule.of("eval_length", None, None)
    assert not BestRule.of("eval_length", False, None).greater


def test_equal_and_nan_are_not_better() -> None:
    rule, best = BestRule("loss", False, 2), Best()
    values = [math.nan, 2.0, 2.0, math.nan, 1.0]
    assert [rule.improves(best, {"loss": v}, i) for i, v in enumerate(values)] == [
        *(False, True, False, False),
        True,
    ]
    assert best == Best(4, 1.0, 0) and rule.out_of_patience(best) is None
    for step in (5, 6):
        rule.improves(best, {"loss": 3.0}, step)
    assert rule.out_of_patience(best) == (
        "loss has not improved in 2 evaluations (its best was 1, after step 4)"
    )
    with pytest.raises(RecipeError, match=r"metric_for_best_model='loss': .* they have kl"):
        rule.improves(best, {"kl": 1.0, "kl_ci95": [0, 1]}, 7)


def scripted(values: dict[int, float], steps: int = 8, **changes: Any) -> tuple[Loop, Silent]:
    """A loop whose evaluations give these values, by step."""
    stage = make_stage("sft", per_step=2, budget=60, steps=steps)
    stage.evaluate = lambda step: {"score": values[step]}  # type: ignore[method-assign]
    hooks = Silent()
    chosen = {"eval_steps": 2, "eval_on_start": True, "logging_steps": 3, **changes}
    return Loop(stage, settings(**chosen), hooks), hooks


VALUES = {0: 1.0, 2: 3.0, 4: 2.0, 6: 2.5, 8: 2.0}


def test_the_best_is_saved_when_it_is_measured() -> None:
    loop, hooks = scripted(VALUES, best=BestRule("score", True))
    assert loop.run()
    assert hooks.saved == [0, 2, 8], "the start, the best one, the last one"
    assert loop.best == Best(2, 3.0, 3) and loop.state.stopped is None


def test_patience_ends_the_run_with_its_log_and_a_checkpoint() -> None:
    loop, hooks = scripted(VALUES, best=BestRule("score", True, patience=2))
    assert loop.run() and loop.state.step == 6
    assert hooks.saved == [0, 2, 6]
    assert loop.state.stopped and "not improved in 2 evaluations" in loop.state.stopped
    assert [r["step"] for r in hooks.records if "loss" in r] == [3, 6]
    loop, hooks = scripted(VALUES, best=BestRule("score", True, patience=1))
    assert loop.run() and loop.state.step == 4
    # The window since step 3 is not lost.
    assert [r["step"] for r in hooks.records if "loss" in r] == [3, 4]
    assert loop.run() and loop.state.step == 4, "it is over"


def test_a_hook_may_end_the_run_and_the_last_step_is_evaluated() -> None:
    loop, hooks = scripted({**VALUES, 3: 0.5})
    whole = hooks.log

    def stopping(step: int, record: dict[str, Any]) -> str | None:
        whole(step, record)
        return "enough" if step == 3 else None

    hooks.log = stopping  # type: ignore[method-assign]
    assert loop.run() and loop.state.stopped == "enough"
    assert hooks.records[-1]["eval_score"] == 0.5 and hooks.saved == [3]


@pytest.mark.parametrize("at", [0, 2, 4, 5])
def test_a_run_that_goes_on_judges_as_the_undisturbed_one(at: int) -> None:
    rule = BestRule("score", True, patience=3)
    whole, whole_hooks = scripted(VALUES, best=rule)
    whole.run()
    first, first_hooks = scripted(VALUES, best=rule)
    kept: list[Any] = []

    def save(step: int) -> None:
        state, tensors = first.checkpoint()
        copies = {k: {n: t.clone() for n, t in v.items()} for k, v in tensors.items()}
        kept.append((step, json.loads(json.dumps(state)), copies))

    first_hooks.save = save  # type: ignore[method-assign]
    first.run(should_stop=lambda: first.state.step >= at)
    step, state, tensors = next(one for one in kept if one[0] == at)
    assert step == at
    second, second_hooks = scripted(VALUES, best=rule)
    second.restore(state, tensors)
    second.run()
    assert second.best == whole.best and second.state == whole.state
    before = [r for r in first_hooks.records if r["step"] <= at]

    def plain(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in r.items() if not k.startswith("time/")} for r in records]

    assert plain(before + second_hooks.records) == plain(whole_hooks.records)


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2, note=lambda _: None)

    def save(step: int) -> list[str]:
        store.save(step, state={}, tensors={"masters": {"w": torch.ones(2) * step}})
        return sorted(path.name for path in tmp_path.glob("checkpoint-*"))

    assert save(1) == ["checkpoint-1"]
    store.best = 1
    save(2)
    save(3)
    assert save(4) == ["checkpoint-1", "checkpoint-3", "checkpoint-4"]
    store.best = 5
    assert save(5) == ["checkpoint-4", "checkpoint-5"]
