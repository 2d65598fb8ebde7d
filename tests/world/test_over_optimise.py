"""What is made of an over-optimised run: curve, peak, what was lost when a diagnosis fired."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from trimtab.world import over_optimise
from trimtab.world.over_optimise import GOLD, Settings, chart, summarise, table


def evaluation(step: int, proxy: float, gold: float) -> dict[str, Any]:
    return {
        "step": step,
        "eval_reward": proxy,
        "eval_reward_ci95": [proxy - 0.1, proxy + 0.1],
        GOLD: gold,
        f"{GOLD}_ci95": [gold - 0.02, gold + 0.02],
        "eval_kl": step / 4,
        "eval_length": 80.0,
        "eval_completions/repetition": 0.05,
    }


def diagnosis(step: int, name: str = "watched") -> dict[str, Any]:
    return {"step": step, "diagnosis": name, "about": "gold", "says": "it fell", "numbers": {}}


RECORDS = [
    evaluation(0, -1.0, 0.5),
    {"step": 2, "loss": 1.0, "reward": -0.5},
    diagnosis(8, "kl"),
    evaluation(10, 0.0, 0.7),
    evaluation(20, 0.5, 0.68),
    diagnosis(26),
    evaluation(30, 1.0, 0.65),
    evaluation(40, 1.5, 0.3),
]


def test_what_was_lost_is_a_share_of_the_gain() -> None:
    found = summarise(RECORDS)
    assert found["peak"] == {"step": 10, "gold": 0.7, "gain": pytest.approx(0.2)}
    assert found["lost_at_the_end"] == pytest.approx(2.0)
    early, late = found["diagnoses"]
    assert (early["step"], early["lost"]) == (8, 0.0), "before the peak nothing is lost"
    assert late["gold"] == 0.65, "the first evaluation after it"
    assert late["lost"] == pytest.approx(0.05 / 0.2)
    assert [point["step"] for point in found["curve"]] == [0, 10, 20, 30, 40]
    assert found["curve"][1]["watch/gold/mean_ci95"] == [0.7 - 0.02, 0.7 + 0.02]


def test_a_log_is_diagnosed_by_the_rules_of_today() -> None:
    far = [{"step": s, "reward": 0.1 * s, "reward_std": 1.0, "objective/kl": 9.0} for s in range(9)]
    old = [*far, diagnosis(3, "length")]
    assert [r["diagnosis"] for r in over_optimise.diagnosed(old) if "diagnosis" in r] == ["kl"]


def test_a_run_that_never_gained_has_nothing_to_lose() -> None:
    found = summarise([evaluation(0, 0.0, 0.5), evaluation(4, 1.0, 0.4), diagnosis(4)])
    assert found["lost_at_the_end"] == 0.0 and found["diagnoses"][0]["lost"] == 0.0


def test_table_and_chart_hold_the_numbers() -> None:
    found = summarise(RECORDS)
    lines = table(found)
    assert lines[3].startswith("| 10 | 0 [-0.1, 0.1] | 0.7 [0.68, 0.72] | 2.5 | 80 |")
    assert lines[-1] == "step 26, watched (25% of the gain lost): it fell"
    drawn = chart(found)
    ElementTree.fromstring(drawn)
    assert "step 40: 1.500" in drawn and "watched: it fell" in drawn
    # Gold at step 26, between 0.9 (step 20) and 0.75 (step 30) of its gain.
    gold = over_optimise._shares(found["curve"], "watch/gold/mean")
    assert over_optimise._between(gold, 26) == pytest.approx(0.9 - 0.15 * 0.6)
    assert [point.y for point in gold] == pytest.approx([0, 1, 0.9, 0.75, -1])


def test_keys_log_every_rollout_and_evaluate_between_rollouts(tmp_path: Path) -> None:
    keys = over_optimise.ppo_keys(tmp_path, tmp_path, Settings(rollouts=10, evaluations=4))
    assert keys["logging_steps"] == keys["num_ppo_epochs"] == over_optimise.PASSES
    assert keys["eval_steps"] % over_optimise.PASSES == 0
    assert keys["max_steps"] == 10 * over_optimise.PASSES
    assert len((tmp_path / "prompts.jsonl").read_text().splitlines()) == 960


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rollouts", "0"], "--rollouts 0: must be above 0"),
        (["--kl-coef", "-1"], "--kl-coef -1.0: must be above 0"),
        ([], "has no model pretrain; run trimtab demo, or name its folder"),
    ],
)
def test_refusals_are_one_line(
    options: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders = ["--demo", str(tmp_path / "none"), "--output-dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["over_optimise", *folders, *options])
    assert over_optimise.main() == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
