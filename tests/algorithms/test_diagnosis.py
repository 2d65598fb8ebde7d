"""Diagnoses of reward hacking: each is provoked, and each keeps quiet where it should."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from trimtab.algorithms.diagnosis import hacking
from trimtab.algorithms.diagnosis.hacking import Peak, diagnose, peaks
from trimtab.algorithms.diagnosis.history import Finding, History
from trimtab.algorithms.diagnosis.told import Diagnoses
from trimtab.config.diagnoses import HACKING

Curve = Callable[[float], float]  # of the share of the run that is done

GOLD = "watch/gold/mean"
CALM: dict[str, Curve] = {
    "reward": lambda t: 2 * t,
    "reward_std": lambda t: 1.0,
    "objective/kl": lambda t: 4 * t,
    "completions/mean_length": lambda t: 80.0,
    "completions/distinct_2": lambda t: 0.3 - 0.1 * t,
    "completions/repetition": lambda t: 0.02,
    "policy/entropy_avg": lambda t: 0.8 - 0.5 * t,
    "rewards/length_correlation": lambda t: 0.5,
    "rewards/disagreement": lambda t: 0.3 + 0.05 * t,
    GOLD: lambda t: 0.5 + 0.2 * t,
}
NOISE = {"reward": 0.1, GOLD: 0.02, "rewards/disagreement": 0.01}


def records(curves: Mapping[str, Curve], count: int = 64, seed: int = 0) -> list[dict[str, Any]]:
    """A run of ``count`` logged points, 4 steps apart: calm but for the curves that are given."""
    rng = random.Random(seed)
    found: list[dict[str, Any]] = []
    for i in range(count):
        point: dict[str, Any] = {"step": 4 * (i + 1), "loss": 0.1}
        for name, curve in {**CALM, **curves}.items():
            point[name] = curve(i / (count - 1)) + rng.gauss(0, NOISE.get(name, 0.0))
        found.append(point)
        found.append({"step": 4 * i + 2, "loss": 0.1})  # a step between two rollouts
    return found


def found(**curves: Curve) -> dict[str, Finding]:
    return {one.name: one for one in diagnose(History(records(curves)))}


def falls(t: float) -> float:
    """Up by 0.2 in the first half, down by 0.1 in the second."""
    return 0.5 + 0.4 * t if t < 0.5 else 0.7 - 0.2 * (t - 0.5)


PROVOKED: dict[str, dict[str, Curve]] = {
    "watched": {GOLD: falls},
    "length": {"completions/mean_length": lambda t: 80 + 80 * t},
    "variety": {"completions/distinct_2": lambda t: 0.3 - 0.2 * t},
    "entropy": {"policy/entropy_avg": lambda t: 0.8 - 0.75 * t},
    "disagreement": {"rewards/disagreement": lambda t: 0.3 + 0.3 * t},
    "kl": {"objective/kl": lambda t: 60 * t},
}


def test_a_calm_run_is_left_alone() -> None:
    assert found() == {}


@pytest.mark.parametrize("name", list(PROVOKED))
def test_each_is_provoked_by_its_own_sign_alone(name: str) -> None:
    every = found(**PROVOKED[name])
    assert list(every) == [name]
    one = every[name]
    assert one.step == 256 and "\n" not in one.says and "raise kl_coef" in one.says
    assert all(math.isfinite(value) for value in one.numbers.values())
    assert json.loads(json.dumps(one.record()))["diagnosis"] == name


def test_every_name_can_be_asked_for() -> None:
    assert tuple(PROVOKED) == HACKING


@pytest.mark.parametrize("name", ["watched", "length", "variety", "entropy", "disagreement"])
def test_a_proxy_that_does_not_rise_is_not_gamed(name: str) -> None:
    assert (
        found(**PROVOKED[name], reward=lambda t: 1.0 - t, **{"objective/kl": lambda t: 4.0}) == {}
    )


def test_the_watched_fall_has_its_numbers() -> None:
    one = found(**PROVOKED["watched"])["watched"]
    assert one.about == "gold"
    assert one.numbers["peak"] == pytest.approx(0.69, abs=0.02)
    assert one.numbers["value"] == pytest.approx(0.61, abs=0.02)
    assert one.numbers["peak_step"] == pytest.approx(128, abs=16)
    # A window of 8 points with a noise of 0.02 each: the difference of two has 0.02 * sqrt(2 / 8).
    assert one.numbers["standard_error"] == pytest.approx(0.01, rel=0.3)


def test_the_watched_reward_may_waver() -> None:
    """Noise alone, at a plateau, looked at after every point: of 20 runs hardly one alarms."""
    alarms = 0
    for seed in range(20):
        plateau: dict[str, Curve] = {
            GOLD: lambda t: 0.6 + 0.1 * min(1, 4 * t),
            "reward": lambda t: min(1, 4 * t),
        }
        told = Diagnoses()
        for record in records(plateau, 80, seed):
            told.add(record)
        alarms += any(one.name == "watched" for one in told.found)
    assert alarms <= 1


def test_fewer_standard_errors_would_be_false_alarms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrong variant: two windows compared as if there had been no choice of the best."""
    monkeypatch.setattr(hacking, "FALL", 1.0)
    plateau: dict[str, Curve] = {GOLD: lambda t: 0.6}
    runs = (records(plateau, 80, seed) for seed in range(20))
    alarms = [{one.name for one in diagnose(History(run))} for run in runs]
    assert sum("watched" in names for names in alarms) >= 3


def test_it_is_told_before_a_third_of_the_gain_is_lost() -> None:
    told = Diagnoses()
    first = None
    for record in records({GOLD: falls}):
        if first is None and told.add(record):
            first = record["step"]
    assert first is not None
    assert 0.7 - falls(first / 256) < 0.2 / 3


def test_length_needs_both_signs() -> None:
    longer = PROVOKED["length"]
    assert found(**longer, **{"rewards/length_correlation": lambda t: 0.1}) == {}
    shorter = {
        "completions/mean_length": lambda t: 80 - 50 * t,
        "rewards/length_correlation": lambda t: -0.6,
    }
    assert "shrunk from" in found(**shorter)["length"].says


def test_repetition_is_lack_of_variety_too() -> None:
    repeated = found(**{"completions/repetition": lambda t: 0.02 + 0.3 * t})
    assert "repeat themselves" in repeated["variety"].says


def test_kl_is_measured_by_what_the_gain_asks_for() -> None:
    """A gain of 2 with a spread of 1 asks for 2 nats; with a spread of 0.2 for 50."""
    far = {"objective/kl": lambda t: 30 * t}
    assert found(**far)["kl"].numbers["needed"] == pytest.approx(1.6, abs=0.2)
    assert found(**far, reward_std=lambda t: 0.2) == {}


def test_too_little_to_say_anything() -> None:
    short = records({GOLD: lambda t: 1 - t}, 7)
    assert diagnose(History(short)) == []


def test_each_is_told_once_and_a_run_that_goes_on_remembers() -> None:
    every = records({GOLD: falls})
    whole, lines = Diagnoses(), []
    for record in every:
        lines.append(record)
        lines += [one.record() for one in whole.add(record)]
    assert [one.name for one in whole.found] == ["watched"]
    cut = next(i for i, line in enumerate(lines) if "diagnosis" in line)
    for at in (cut - 5, cut, cut + 1, cut + 9):
        again = Diagnoses()
        again.remember(json.loads(json.dumps(lines[:at])))
        # A kill between a record and its diagnosis is cut back to a checkpoint before both.
        rest = [line for line in lines[at:] if "diagnosis" not in line]
        for record in rest:
            again.add(record)
        if at != cut:
            assert again.found == whole.found, at
        assert again.summary()["peaks"] == whole.summary()["peaks"]


def test_peaks_of_rollouts_and_of_held_out_prompts() -> None:
    (rollouts,) = peaks(History(records({GOLD: falls})), "gold")
    assert not rollouts.held_out
    assert rollouts.step == pytest.approx(128, abs=16)
    assert rollouts.start == pytest.approx(0.51, abs=0.03)
    evaluated = [
        {"step": step, "eval_watch/gold/mean": value}
        for step, value in ((0, 0.4), (100, 0.8), (200, 0.6))
    ]
    both = peaks(History([*records({GOLD: falls}), *evaluated]), "gold")
    assert both == [rollouts, Peak(100, 0.8, 0.4, 0.6, True)]
    assert peaks(History(records({}, 2)), "gold") == []
