"""Diagnoses of training on rows, and of broken rollouts: each is provoked, and each keeps quiet."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from trimtab.algorithms.diagnosis.catalogue import CATALOGUE
from trimtab.algorithms.diagnosis.history import Facts, Finding
from trimtab.algorithms.diagnosis.told import Diagnoses
from trimtab.config.diagnoses import FAMILIES, PREFERENCE, REWARD_MODEL, SAMPLED

Curve = Callable[[float], Any]  # of the share of the run that is done

POINTS, EVERY = 20, 10
FACTS = Facts(
    total_steps=POINTS * EVERY,
    rows_per_step=8,
    held_out=True,
    fresh_reference=True,
    beta=0.1,
    loss="dpo",
    learning_rate=1e-6,
)
PAIRS = "preference training"
CALM: dict[str, dict[str, Curve]] = {
    PAIRS: {
        "loss": lambda t: math.log(2) - 0.2 * t,
        "grad_norm": lambda t: 1.5,
        "rewards/chosen": lambda t: 0.3 * t,
        "rewards/rejected": lambda t: -0.5 * t,
        "rewards/margins": lambda t: 0.8 * t,
        "rewards/accuracies": lambda t: 0.5 + 0.25 * t,
        "displacement/chosen": lambda t: 3 * t,
        "displacement/rejected": lambda t: -5 * t,
        "displacement/chosen_per_token": lambda t: 0.03 * t,
        "displacement/rejected_per_token": lambda t: -0.05 * t,
        "displacement/both_fell": lambda t: 0.2,
        "lengths/compared": lambda t: 1.0,
        "lengths/chosen_longer": lambda t: 0.6,
        "lengths/longer_rewarded": lambda t: 0.58,
        "eval_logps/chosen": lambda t: -100 + 2 * t,
        "eval_logps/rejected": lambda t: -110 - 4 * t,
        "eval_logps/chosen_per_token": lambda t: -1 + 0.02 * t,
        "eval_displacement/chosen_per_token_ci95": lambda t: [0.01 * t, 0.03 * t],
        "eval_displacement/elsewhere": lambda t: -2 * t,
        "eval_rewards/accuracies": lambda t: 0.5 + 0.2 * t,
        "eval_rewards/accuracies_ci95": lambda t: [0.43 + 0.2 * t, 0.57 + 0.2 * t],
        "eval_rewards/margins": lambda t: 0.5 * t,
        "eval_lengths/chosen_longer": lambda t: 0.6,
        "eval_lengths/longer_rewarded": lambda t: 0.62,
        "eval_pairs": lambda t: 200,
    },
    "reward model": {
        "loss": lambda t: math.log(2) - 0.1 * t,
        "accuracy": lambda t: 0.5 + 0.2 * t,
        "margin": lambda t: 0.5 * t,
        "epoch": lambda t: t,
        "eval_accuracy": lambda t: 0.5 + 0.2 * t,
        "eval_accuracy_ci95": lambda t: [0.46 + 0.2 * t, 0.54 + 0.2 * t],
        "eval_margin": lambda t: 0.4 * t,
        "eval_lengths/chosen_longer": lambda t: 0.6,
        "eval_lengths/longer_rewarded": lambda t: 0.64,
        "eval_pairs": lambda t: 400,
    },
    "on-policy training": {
        "reward": lambda t: t,
        "val/explained_variance": lambda t: -1 + 1.6 * min(1.0, 2 * t),
        "objective/kl": lambda t: 6 * t + 0.02 * math.sin(99 * t),
        "policy/approxkl_avg": lambda t: 0.02,
        "eval_kl": lambda t: 6 * t,
    },
}


def records(family: str, curves: Mapping[str, Curve], points: int = POINTS) -> list[dict[str, Any]]:
    """A run of logged points, with an evaluation before it, in its middle and at its end."""
    every = {**CALM[family], **curves}
    held = [name for name in every if name.startswith("eval_")]
    found: list[dict[str, Any]] = []
    for i in range(points + 1):
        t = i / POINTS
        if i:
            plain = {n: float(curve(t)) for n, curve in every.items() if n not in held}
            found.append({"step": i * EVERY, **plain})
        if i % (POINTS // 2) == 0 and held:
            found.append({"step": i * EVERY, **{name: every[name](t) for name in held}})
    return found


def told(
    family: str, curves: Mapping[str, Curve], facts: Facts = FACTS, points: int = POINTS
) -> dict[str, Finding]:
    """What is told of a run first, by name."""
    diagnoses = Diagnoses(families=[family], facts=facts)
    if family == "on-policy training":
        diagnoses = Diagnoses(facts=facts)
    for record in records(family, curves, points):
        diagnoses.add(record)
    return {one.name: one for one in reversed(diagnoses.found)}


def falls(chosen: float, rejected: float, per_token: float) -> dict[str, Curve]:
    """Both log-probs fall by that much until the end, in training and held out."""
    return {
        "eval_logps/chosen": lambda t: -100 - chosen * t,
        "eval_logps/rejected": lambda t: -110 - rejected * t,
        "eval_logps/chosen_per_token": lambda t: -1 - per_token * t,
        "eval_displacement/chosen_per_token_ci95": lambda t: [
            -1.2 * per_token * t,
            -0.8 * t * 0.01,
        ],
        "eval_displacement/elsewhere": lambda t: chosen * t,
        "displacement/chosen": lambda t: -chosen * t,
        "displacement/rejected": lambda t: -rejected * t,
        "displacement/chosen_per_token": lambda t: -per_token * t,
        "displacement/both_fell": lambda t: 0.7,
    }


PROVOKED: dict[tuple[str, str], dict[str, Curve]] = {
    (PAIRS, "displacement"): falls(5.0, 14.0, 0.05),
    (PAIRS, "stuck"): {
        "loss": lambda t: 0.6925,
        "rewards/chosen": lambda t: 0.001,
        "rewards/rejected": lambda t: 0.0,
        "displacement/chosen": lambda t: 0.1,
        "displacement/rejected": lambda t: -0.1,
    },
    (PAIRS, "saturated"): {
        "rewards/chosen": lambda t: 4 * t,
        "rewards/rejected": lambda t: -4 * t,
        "rewards/accuracies": lambda t: min(1.0, 0.5 + t),
    },
    (PAIRS, "small_beta"): {
        "displacement/chosen": lambda t: 30 * t,
        "displacement/rejected": lambda t: -30 * t,
        "displacement/chosen_per_token": lambda t: 0.5 * t,
        "displacement/rejected_per_token": lambda t: -0.6 * t,
    },
    (PAIRS, "below_chance"): {
        "eval_rewards/accuracies": lambda t: 0.5 - 0.2 * t,
        "eval_rewards/accuracies_ci95": lambda t: [0.43 - 0.2 * t, 0.57 - 0.2 * t],
        "eval_rewards/margins": lambda t: -0.5 * t,
    },
    (PAIRS, "by_length"): {"eval_lengths/longer_rewarded": lambda t: 0.6 + 0.25 * t},
    ("reward model", "at_chance"): {
        "eval_accuracy": lambda t: 0.52,
        "eval_accuracy_ci95": lambda t: [0.47, 0.57],
    },
    ("reward model", "too_good"): {
        "eval_accuracy": lambda t: 0.5 + 0.48 * t,
        "eval_accuracy_ci95": lambda t: [0.46 + 0.5 * t, 0.54 + 0.45 * t],
    },
    ("reward model", "below_chance"): {
        "eval_accuracy": lambda t: 0.5 - 0.2 * t,
        "eval_accuracy_ci95": lambda t: [0.46 - 0.2 * t, 0.54 - 0.2 * t],
        "eval_margin": lambda t: -0.3 * t,
    },
    ("reward model", "by_length"): {"eval_lengths/longer_rewarded": lambda t: 0.6 + 0.2 * t},
    ("on-policy training", "no_value"): {"val/explained_variance": lambda t: -0.1 - 0.1 * t},
    ("on-policy training", "impossible_kl"): {
        "objective/kl": lambda t: -0.5 + 0.02 * math.sin(99 * t)
    },
}


@pytest.mark.parametrize("family", list(CALM))
def test_a_calm_run_is_left_alone(family: str) -> None:
    assert told(family, {}) == {}


@pytest.mark.parametrize(("family", "name"), list(PROVOKED))
def test_each_is_provoked_by_its_own_sign_alone(family: str, name: str) -> None:
    every = told(family, PROVOKED[family, name])
    assert list(every) == [name]
    one = every[name]
    assert "\n" not in one.says and one.numbers
    assert all(math.isfinite(value) for value in one.numbers.values())
    assert Finding.of(json.loads(json.dumps(one.record()))) == one


def test_every_diagnosis_is_provoked_and_described() -> None:
    names = {name for _, name in PROVOKED}
    assert names == {*PREFERENCE, *REWARD_MODEL, *SAMPLED}
    assert set(CATALOGUE) == {name for every in FAMILIES.values() for name in every}


Quiet = tuple[str, Mapping[str, Curve], dict[str, Any]]
_BOTH = falls(5.0, 14.0, 0.05)
QUIET: dict[str, Quiet] = {
    "held-out likelihood does not worsen": (
        PAIRS,
        {name: curve for name, curve in _BOTH.items() if not name.startswith("eval_")},
        {},
    ),
    "the fall is within the interval": (
        PAIRS,
        {**_BOTH, "eval_displacement/chosen_per_token_ci95": lambda t: [-0.1, 0.001]},
        {},
    ),
    "a fall of 1 % of perplexity": (PAIRS, falls(1.0, 14.0, 0.01), {}),
    "rejected does not fall": (PAIRS, falls(5.0, -1.0, 0.05), {}),
    "the loss has no reference": (PAIRS, PROVOKED[PAIRS, "stuck"], {"fresh_reference": False}),
    "one right pair in ten is not learned": (
        PAIRS,
        {**PROVOKED[PAIRS, "saturated"], "rewards/accuracies": lambda t: 0.9},
        {},
    ),
    "a loss that scales its margin down has moved all the same": (
        PAIRS,
        {**PROVOKED[PAIRS, "stuck"], "displacement/rejected": lambda t: -2 * t},
        {},
    ),
    "the margin is still short of the one aimed at": (
        PAIRS,
        PROVOKED[PAIRS, "saturated"],
        {"loss": "simpo", "target": 5.0},
    ),
    "what such a margin weighs is not known of this loss": (
        PAIRS,
        PROVOKED[PAIRS, "saturated"],
        {"loss": "ipo"},
    ),
    "beta counts the distance": (
        PAIRS,
        {**PROVOKED[PAIRS, "small_beta"], "rewards/chosen": lambda t: 2 * t},
        {},
    ),
    "short responses, near each other": (
        PAIRS,
        {**PROVOKED[PAIRS, "small_beta"], "displacement/rejected": lambda t: 15 * t},
        {},
    ),
    "the interval holds a half": (
        PAIRS,
        {
            **PROVOKED[PAIRS, "below_chance"],
            "eval_rewards/accuracies_ci95": lambda t: [0.1, 0.52],
        },
        {},
    ),
    "ties beside the reference": (
        PAIRS,
        {**PROVOKED[PAIRS, "below_chance"], "eval_rewards/margins": lambda t: -1e-6},
        {},
    ),
    "the data prefers longer ones as much": (
        PAIRS,
        {**PROVOKED[PAIRS, "by_length"], "eval_lengths/chosen_longer": lambda t: 0.8},
        {},
    ),
    "too few pairs to tell length": (
        PAIRS,
        {**PROVOKED[PAIRS, "by_length"], "eval_pairs": lambda t: 20},
        {},
    ),
    "few pairs differ in length": (
        PAIRS,
        {**PROVOKED[PAIRS, "by_length"], "eval_lengths/compared": lambda t: 0.1},
        {},
    ),
    "too few rows to tell chance": (
        "reward model",
        {
            **PROVOKED["reward model", "at_chance"],
            "eval_accuracy_ci95": lambda t: [0.3, 0.7],
        },
        {},
    ),
    "good, as people are": (
        "reward model",
        {"eval_accuracy": lambda t: 0.9, "eval_accuracy_ci95": lambda t: [0.87, 0.93]},
        {},
    ),
    "negative within noise": (
        "on-policy training",
        {"objective/kl": lambda t: -0.2 + 3 * math.sin(99 * t)},
        {},
    ),
    "another model is the reference": (
        "on-policy training",
        {"eval_kl": lambda t: 5.0},
        {"fresh_reference": False},
    ),
    "several steps a rollout": (
        "on-policy training",
        {"policy/approxkl_avg": lambda t: 0.1},
        {"steps_per_rollout": 4},
    ),
}


@pytest.mark.parametrize("why", list(QUIET))
def test_it_keeps_quiet_where(why: str) -> None:
    family, curves, facts = QUIET[why]
    assert told(family, curves, FACTS._replace(**facts)) == {}


def test_displacement_has_its_numbers() -> None:
    one = told(PAIRS, _BOTH)["displacement"]
    assert one.step == 100, "the evaluation in the middle"
    assert one.numbers["chosen"] == pytest.approx(-2.5)
    assert one.numbers["rejected"] == pytest.approx(-7.0)
    assert "from -100 to -102.5" in one.says and "from -110 to -117" in one.says
    assert "the two keep exp(-2.5) = 0.082 of the probability they had" in one.says
    assert "raise beta (now 0.1)" in one.says and "the margin is made by pushing both" in one.says
    assert "training pushes both down" in told(PAIRS, falls(9.0, 5.0, 0.05))["displacement"].says


def test_displacement_without_held_out_rows_and_without_a_reference() -> None:
    training = {n: c for n, c in _BOTH.items() if not n.startswith("eval_")}
    alone = FACTS._replace(held_out=False)
    assert "give eval_dataset_name" in told(PAIRS, training, alone)["displacement"].says
    assert told(PAIRS, {**training, "displacement/both_fell": lambda t: 0.4}, alone) == {}
    simpo = {
        n: (lambda t: math.nan) if n.startswith("displacement") else c for n, c in _BOTH.items()
    }
    free = told(PAIRS, simpo, FACTS._replace(fresh_reference=False))["displacement"]
    assert "raise beta" not in free.says


def test_rows_that_are_learned_by_heart_are_told_apart() -> None:
    assert "by heart" not in told(PAIRS, _BOTH)["displacement"].says
    one = told(PAIRS, {**_BOTH, "displacement/chosen": lambda t: 3.0})["displacement"]
    assert "of training rows log p(chosen) rose by 3: they are learned by heart" in one.says


def test_stuck_waits_for_a_quarter_of_the_run() -> None:
    still = PROVOKED[PAIRS, "stuck"]
    assert told(PAIRS, still, points=4) == {}
    one = told(PAIRS, still, points=5)["stuck"]
    assert "the loss is 0.6925 (ln 2, as of a coin)" in one.says and "(now 1e-06)" in one.says


def test_too_few_rows_are_not_looked_at() -> None:
    """A point of 10 steps of 1 row says nothing; 64 rows take 7 of them."""
    still = PROVOKED[PAIRS, "stuck"]
    assert told(PAIRS, still, FACTS._replace(rows_per_step=1), points=6) == {}
    assert "stuck" in told(PAIRS, still, FACTS._replace(rows_per_step=1), points=7)


def test_by_length_is_told_of_shorter_ones_too() -> None:
    one = told(PAIRS, {"eval_lengths/longer_rewarded": lambda t: 0.6 - 0.3 * t})["by_length"]
    assert "the shorter response has the higher implicit reward in 70%" in one.says
    assert "the chosen one in 40%" in one.says


def test_training_rows_stand_in_for_held_out_ones() -> None:
    alone = FACTS._replace(held_out=False)
    wrong: dict[str, Curve] = {"accuracy": lambda t: 0.3, "margin": lambda t: -0.5}
    assert "on training rows is 30.0%" in told("reward model", wrong, alone)["below_chance"].says
    coin: dict[str, Curve] = {"accuracy": lambda t: 0.51}
    many = alone._replace(rows_per_step=64)
    assert list(told("reward model", coin, many)) == ["at_chance"]
    few = alone._replace(rows_per_step=4)
    assert told("reward model", coin, few) == {}, "with 80 rows it could be 0.62"


def test_a_reward_model_that_knows_its_rows_by_heart() -> None:
    chance = PROVOKED["reward model", "at_chance"]
    one = told("reward model", {**chance, "accuracy": lambda t: 0.95})["at_chance"]
    assert "learns those by heart" in one.says
    assert "by heart" not in told("reward model", chance)["at_chance"].says


def test_a_value_function_may_take_its_time() -> None:
    slow: dict[str, Curve] = {"val/explained_variance": lambda t: -1 + t}
    assert told("on-policy training", slow, points=9) == {}
    assert "no_value" in told("on-policy training", slow, points=10), "half of the run"


@pytest.mark.parametrize(
    ("curves", "facts", "says"),
    [
        ({"eval_kl": lambda t: 2.0}, {}, "2 nats before anything was learned"),
        ({"objective/kl": lambda t: 3.0}, {"steps_per_rollout": EVERY}, "3 nats before anything"),
        ({"policy/approxkl_avg": lambda t: 0.1}, {"steps_per_rollout": 1}, "0.1 with one step"),
    ],
)
def test_kls_that_cannot_be_yet(curves: dict[str, Curve], facts: dict[str, Any], says: str) -> None:
    found = told("on-policy training", curves, FACTS._replace(**facts))
    assert says in found["impossible_kl"].says


def sequence(diagnoses: Diagnoses, lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A log as it is written, with what is told between its lines."""
    found: list[dict[str, Any]] = []
    for line in lines:
        found += [line, *(one.record() for one in diagnoses.add(line))]
    return found


def test_it_is_told_again_when_it_doubles_and_a_run_that_goes_on_tells_the_same() -> None:
    every = records(PAIRS, _BOTH)
    whole = Diagnoses(families=[PAIRS], facts=FACTS)
    log = sequence(whole, every)
    assert [one.step for one in whole.found] == [100, 200], "0.025, then 0.05 nats a token"
    for at in range(len(log)):
        if "diagnosis" in log[at]:
            continue  # a checkpoint is never between a record and its diagnosis
        again = Diagnoses(families=[PAIRS], facts=FACTS)
        again.remember(json.loads(json.dumps(log[:at])))
        sequence(again, [line for line in log[at:] if "diagnosis" not in line])
        assert again.found == whole.found
        assert again.summary() == whole.summary()
    assert whole.summary()["at_end"] == ["displacement"]


def test_what_is_over_at_the_end_is_said() -> None:
    from trimtab.algorithms.finish import diagnosis_lines

    late: dict[str, Curve] = {
        "rewards/chosen": lambda t: 0.0 if t < 0.6 else t,
        "rewards/rejected": lambda t: 0.0,
        "displacement/chosen": lambda t: 0.0 if t < 0.6 else 10 * t,
        "displacement/rejected": lambda t: 0.0,
    }
    diagnoses = Diagnoses(families=[PAIRS], facts=FACTS)
    sequence(diagnoses, records(PAIRS, late))
    first, last = diagnosis_lines(diagnoses.summary())
    assert first.startswith("diagnosis stuck (step 50; not so any more at the end): the loss is")
    assert last == "trimtab explain stuck: when this is told, and why"
    assert diagnosis_lines(None) == diagnosis_lines(Diagnoses().summary()) == []
