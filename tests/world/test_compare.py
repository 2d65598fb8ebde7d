"""Curves at equal KL against hand computation, and the command at a size of seconds."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimtab.config.resolve import recipe_from_kwargs
from trimtab.world import compare, demo_stories
from trimtab.world.calibrate import train
from trimtab.world.compare import ARMS, Settings, main, recipe_keys
from trimtab.world.compare_report import Point, Run, apart, gain_at, text_apart, value_at
from trimtab.world.corpus import preference_rows, pretrain_documents, train_requests, write_jsonl


def point(step: int, gold: list[float], kl: list[float]) -> Point:
    return Point(step, 1.0 * step, gold, gold, kl, [9.0] * len(gold), [(6.0, 3), (2.0, 1)])


START = point(0, [0.4, 0.6], [0.0, 0.0])


def test_a_curve_is_read_where_it_first_reaches_a_kl() -> None:
    kl = np.array([[0.0, 2.0, 1.0, 4.0], [0.0, 0.5, 0.8, 0.9]])
    value = np.array([[0.5, 0.7, 0.9, 0.6], [0.5, 0.6, 0.7, 0.8]])
    assert value_at(kl, value, 1.0).tolist() == pytest.approx([0.6, np.nan], nan_ok=True)
    assert value_at(kl, value, 2.0)[0] == pytest.approx(0.7)
    # From (1, 0.9) to (4, 0.6): a third of the way back past 2.
    assert value_at(kl, value, 3.0)[0] == pytest.approx(0.7)
    assert np.isnan(value_at(kl, value, 4.5)).all()
    assert value_at(kl, value, 0.5)[1] == pytest.approx(0.6)


def test_gains_at_equal_kl_are_paired_by_request() -> None:
    one = Run("one", [point(1, [0.6, 0.8], [2.0, 2.0])])
    other = Run("other", [point(1, [0.5, 0.7], [1.0, 1.0]), point(2, [0.7, 0.9], [4.0, 4.0])])
    found = gain_at(START, one, 1.0)
    # Requests differ by 0.2 throughout: paired with sft the gain is the same for both.
    assert found[:3] == pytest.approx((0.1, 0.1, 0.1))
    assert gain_at(START, other, 2.5)[:3] == pytest.approx((0.2, 0.2, 0.2))
    assert gain_at(START, one, 1.6, other)[:3] == pytest.approx((0.02, 0.02, 0.02))
    assert np.isnan(gain_at(START, one, 2.5).mean)
    unsure = Run("unsure", [point(1, [0.6, 0.8], [1.0, 9.0])])
    assert np.isnan(gain_at(START, unsure, 4.0).mean), "of two requests one is short of it"
    assert np.isnan(gain_at(START, one, 2.5, other).mean)
    uneven = gain_at(START, Run("uneven", [point(1, [0.4, 1.0], [2.0, 2.0])]), 2.0)
    assert uneven[:3] == pytest.approx((0.2, 0.0, 0.4)), "as far as either request alone"


def test_differences_are_of_the_same_rows() -> None:
    assert apart([0.5, 0.9], [0.4, 0.8])[:3] == pytest.approx((0.1, 0.1, 0.1))
    on = dataclasses.replace(START, text=[(9.0, 3), (5.0, 1)])
    # 6 nats more on 4 tokens; documents alone: 1 and 3 a token.
    assert text_apart(on, START)[:3] == pytest.approx((1.5, 1.0, 3.0))
    assert START.text_loss() == 2.0


def test_every_arm_is_a_recipe_and_ptx_is_the_only_difference(tmp_path: Path) -> None:
    for name, arm in ARMS.items():
        keys = recipe_keys(name, tmp_path, tmp_path / "run", Settings(seed=3))
        recipe = recipe_from_kwargs(arm.verb, **keys).recipe
        assert recipe.seed == 3
        assert recipe.max_steps == arm.steps * 4
        if arm.verb != "dpo":
            assert keys["per_device_train_batch_size"] * arm.per_prompt == compare.STORIES
        if name + " without ptx" in ARMS:
            without = recipe_keys(
                name + " without ptx", tmp_path, tmp_path / "run", Settings(seed=3)
            )
            assert keys.pop("mix")["weight"] > 0
            assert keys == without


def test_the_command_leaves_tables_curves_and_charts(
    small_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    demo, out = tmp_path / "demo", tmp_path / "out"
    demo.mkdir()
    (demo / "sft").symlink_to(small_model)
    few: dict[str, Any] = {"max_steps": 1, "save_steps": None, "self_check": False}
    train(small_model, preference_rows(8), tmp_path / "reward", **few)
    (demo / "reward").symlink_to(tmp_path / "reward" / "model")
    write_jsonl(demo / "data" / "prompts.jsonl", [{"prompt": r} for r in train_requests(16)])
    write_jsonl(demo / "data" / "pairs.jsonl", preference_rows(16))
    write_jsonl(demo / "data" / "text.jsonl", [{"text": t} for t in pretrain_documents(16)])
    monkeypatch.setattr(demo_stories, "LONGEST", 8)
    monkeypatch.setattr(compare, "DOCUMENTS", 2)
    monkeypatch.setattr(compare, "STORIES", 8)
    chosen = ("ppo", "ppo without ptx", "grpo", "grpo without ptx", "rloo", "dpo beta=0.1")
    arms = {name: dataclasses.replace(ARMS[name], steps=1) for name in chosen}
    monkeypatch.setattr(compare, "ARMS", arms)
    command = f"compare --demo {demo} --output-dir {out} --points 2 --requests 3 --tellings 1"
    monkeypatch.setattr(sys, "argv", command.split())
    assert main() == 0
    text = (out / "compare.md").read_text()
    assert [line.split(" | ")[0][2:] for line in text.splitlines() if line.startswith("| ")] == [
        "",
        *("sft", *chosen),
        "KL, nats",
        *"1234",
        "",
        *("ppo", "grpo"),
    ]
    record = json.loads((out / "compare.json").read_text())
    assert [point["step"] for point in record["curves"]["rloo"]] == [1, 2]
    assert record["sft"]["kl"]["mean"] == 0
    assert record["curves"]["ppo"][1]["cpu_seconds"] > record["curves"]["ppo"][0]["cpu_seconds"] > 0
    for name in ("gold-over-kl", "text-over-gold"):
        assert (out / f"{name}.svg").read_text().startswith("<svg")
    # What is done is not done again.
    said = capsys.readouterr().out
    monkeypatch.setattr(compare, "recipe_keys", None)
    assert main() == 0
    assert capsys.readouterr().out == said
    monkeypatch.setattr(sys, "argv", [*command.split(), "--seed", "1"])
    assert main() == 2
    assert "holds a comparison with" in capsys.readouterr().err
