"""Whole runs that go wrong in a known way, and what they say of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests import tiny_runs
from tests.algorithms.stage_world import Run, World

from trimtab.config import resolve
from trimtab.errors import TrimtabError


def named(run: Run) -> list[str]:
    return [record["diagnosis"] for record in run.records if "diagnosis" in record]


def dpo(world: World, **keys: Any) -> Run:
    common: dict[str, Any] = {"max_steps": 30, "logging_steps": 5, "eval_steps": 15, "quiet": True}
    return world.run("dpo", "pairs", **{**common, **keys})


def test_a_rate_that_is_too_high_displaces(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    held_out = tiny_runs.write_rows(world.root / "many.jsonl", tiny_runs.pairs(80, 50))
    run = dpo(world, learning_rate=0.02, max_steps=20, quiet=False, eval_dataset_name=str(held_out))
    line = next(record for record in run.records if record.get("diagnosis") == "displacement")
    first, last = run.evaluated[0], next(r for r in run.evaluated if r["step"] == line["step"])
    fall = last["eval_logps/chosen"] - first["eval_logps/chosen"]
    assert line["numbers"]["chosen"] == pytest.approx(fall) and fall < 0
    # The reference is the policy at the start, so the two ways to measure it agree.
    assert last["eval_displacement/chosen"] == pytest.approx(fall, abs=1e-4)
    assert last["eval_displacement/elsewhere"] > 0
    told = json.loads((run.folder / "diagnoses.json").read_text())
    assert told["diagnoses"] == [record for record in run.records if "diagnosis" in record]
    said = capfd.readouterr().err
    assert f"step {line['step']}: preference training (displacement): {line['says']}" in said
    assert "\ndiagnosis displacement (step " in said and "trimtab explain displacement" in said


def test_a_rate_that_is_too_low_is_stuck_and_a_good_one_is_not(world: World) -> None:
    run = dpo(world, learning_rate=1e-7, stop_when=["stuck"])
    assert named(run) == ["stuck"]
    assert run.results["stopped"] == "diagnosis stuck (stop_when)"
    line = next(record for record in run.records if "diagnosis" in record)
    assert line["step"] == 20, "64 rows of 4 a step are seen by then"
    assert "ln 2, as of a coin" in line["says"]
    assert named(dpo(world, learning_rate=1e-3)) == []


def test_a_reward_model_that_learns_its_rows_by_heart(world: World) -> None:
    """Held-out answers are random: five rows are too few to say so, and nothing is said."""
    run = world.run("reward", "pairs", max_steps=20, learning_rate=1e-2)
    assert run.trained[-1]["accuracy"] > 0.9
    assert 0 <= run.trained[-1]["lengths/longer_rewarded"] <= 1
    assert named(run) == []
    assert json.loads((run.folder / "diagnoses.json").read_text())["diagnoses"] == []


def test_refusals() -> None:
    def refused(pattern: str, verb: str, *tokens: str) -> None:
        with pytest.raises(TrimtabError, match=pattern) as caught:
            resolve(verb, ["--model", "m", "--dataset", "d", *tokens], env={})
        assert caught.value.exit_code == 2 and "\n" not in str(caught.value)

    refused(r"stop_when.*holds 'kl'; diagnoses are displacement", "dpo", "--stop-when", "kl")
    refused(r"stop_when.*Did you mean at_chance", "reward", "--stop-when", "at_chanse")
    refused(r"stop_when: stuck: is told where the reference", "simpo", "--stop-when", "stuck")
    refused(
        r"stop_when: small_beta: is told", "dpo", "--stop-when", "small_beta", "--ref-model", "r"
    )
