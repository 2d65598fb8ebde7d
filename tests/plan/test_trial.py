"""Trials: what is tried, and that the rest is arithmetic. Operations stand in for seconds here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.plan.test_plan import config_of
from torch.utils.flop_counter import FlopCounterMode

from trimtab.plan import flops, trial
from trimtab.plan.flops import Tree
from trimtab.plan.skeleton import Skeleton
from trimtab.plan.time import shape_of, work_of
from trimtab.plan.trace import batch_of
from trimtab.plan.trial import Work, cut, decoding, reached

CPU = torch.device("cpu")
TREES = [Tree(40, (60, 30), 90), Tree(20, (50,), 50), Tree(1, (90,), 89)]
PLAIN = Work("adamw")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call takes a second for each operation of its matrix products."""

    def operations(call: Callable[[], None], *_: Any, **__: Any) -> float:
        with FlopCounterMode(display=False) as counter:
            call()
        return float(counter.get_total_flops())

    monkeypatch.setattr(trial, "_clocked", operations)


def skeleton_of(
    name: str = "llama", layers: int = 12, dtype: torch.dtype = torch.float32, **more: Any
) -> Skeleton:
    config = config_of(name)
    config.num_hidden_layers = layers
    if hasattr(config, "layer_types"):
        config.layer_types = ["full_attention"] * layers
    return Skeleton(config, dtype, **more)


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize(
    ("adapters", "entropy", "dtype"),
    [
        (None, True, torch.float32),
        ((4, ("all-linear",)), False, torch.float32),
        # Masters apart from the weights; of the head beside adapters there are none.
        ((4, ("all-linear",)), False, torch.bfloat16),
    ],
    ids=["full", "lora", "lora-bf16"],
)
def test_few_layers_tell_of_all(
    adapters: Any, entropy: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    skeleton = skeleton_of(lora=adapters, dtype=dtype)
    work = PLAIN._replace(entropy=entropy)
    shape = shape_of(skeleton)
    every = {"device": CPU, "rate": 1e15, "room": None}
    whole = reached(skeleton, shape, [TREES], work, **every)
    monkeypatch.setattr(trial, "_affordable", lambda *_: ([TREES], (2, 6)))
    few = reached(skeleton, shape, [TREES], work, **every)
    assert whole is not None and few is not None
    assert (whole.layers, few.layers) == (12, 6)
    assert few.training == pytest.approx(whole.training, rel=0.01)
    assert few.reading == pytest.approx(whole.reading, rel=0.01)
    # The count of the plan against what was really multiplied: attention's blocks are not counted
    # on this device, and the last layer's MLP is spared where nothing reads it.
    assert 0.9 < whole.training < 1.35 and 0.9 < whole.reading < 1.35


@pytest.mark.usefixtures("counted")
def test_scores_have_no_head(monkeypatch: pytest.MonkeyPatch) -> None:
    skeleton = skeleton_of(scores=1)
    shape = shape_of(skeleton)
    trees = [tree._replace(targets=len(tree.branches)) for tree in TREES]
    found = reached(skeleton, shape, [trees], PLAIN, device=CPU, rate=1e15, room=None)
    monkeypatch.setattr(trial, "_affordable", lambda *_: ([trees], (2, 6)))
    few = reached(skeleton, shape, [trees], PLAIN, device=CPU, rate=1e15, room=None)
    assert found is not None and few is not None
    assert few.training == pytest.approx(found.training, rel=0.01)


@pytest.mark.usefixtures("counted")
def test_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    skeleton = skeleton_of()
    shape = shape_of(skeleton)
    prompts = [Tree(length, (24,) * 4, 96) for length in (30, 12, 7)]
    every = {"slots": 8, "device": CPU, "room": None}
    whole = decoding(skeleton, shape, prompts, rate=1e15, **every)
    monkeypatch.setattr(trial, "_fits", lambda _, layers, *__, **___: layers < 12)
    few = decoding(skeleton, shape, prompts, rate=1e15, **every)
    assert whole is not None and few is not None
    assert (whole.prompts, whole.rows) == (2, 8) == (few.prompts, few.rows)
    assert few.reading == pytest.approx(whole.reading, rel=0.02)
    body = sum(product.weights for product in shape.body)
    # A packed head's products and those in place are not counted, keys' and values' are.
    assert 0.6 * 2 * 8 * body < whole.step < 1.2 * 2 * 8 * (body + shape.head.weights)
    assert few.step == pytest.approx(whole.step, rel=0.1)
    assert decoding(skeleton, shape, prompts, rate=1.0, **every) is None


def test_what_there_is_time_for() -> None:
    skeleton = skeleton_of()
    shape = shape_of(skeleton)
    small, middle, large = ([Tree(10, (60, 30), 90)] * count for count in (4, 8, 20))
    picks = trial._picks(shape, [large, small, middle])
    assert picks == [small, middle, large]

    def affordable(rate: float, room: int | None = None) -> Any:
        return trial._affordable(skeleton, shape, picks, rate, room)

    work = flops.training(shape, middle) + flops.forward(shape, middle)
    just = trial.PASSES * work / trial.EXPECTED / trial.SECONDS
    assert affordable(1e15) == (picks, (12,))
    assert affordable(1.01 * just) == ([middle], (12,))
    assert affordable(0.6 * just) == ([middle[::2]], (12,))  # 400 tokens; 200 are too few
    assert affordable(0.45 * just)[1] == (2, 6)
    assert affordable(0.001 * just) == ([], (2, 6))
    assert affordable(1e15, room=10**6)[0] == []
    weights = sum(p.numel() for p in skeleton.model(12).parameters())
    assert affordable(1e15, room=30 * weights)[1] == (2, 6)


def test_counts() -> None:
    skeleton = skeleton_of()
    shape = shape_of(skeleton)
    half = cut(shape, 6)
    body = sum(product.weights for product in shape.body)
    assert 2 * sum(product.weights for product in half.body) == body
    assert half.head == shape.head and half.layers == 6
    assert trial._deeper(skeleton, (2, 6), [1.0, 3.0]) == 6.0
    assert trial._deeper(skeleton, (12,), [7.0]) == 7.0
    # A prompt that is learnt is trained in the trunk, but for its first token.
    assert batch_of([Tree(10, (5, 4), 18)]).target.numel() == 18
    assert batch_of([Tree(10, (5, 4), 8)]).target.numel() == 8


def test_what_an_algorithm_computes() -> None:
    from trimtab.config.resolve import resolve

    words = ["--model", "m", "--dataset", "d"]
    found = {
        verb: work_of(resolve(verb, [*words, *more], env={}).recipe)
        for verb, more in (
            ("sft", []),
            ("dpo", ["--gradient-checkpointing"]),
            ("grpo", ["--reward-funcs", "length(target=4)", "--optim", "sgd"]),
        )
    }
    assert found == {
        "sft": Work("adamw", entropy=True, correct=True),
        "dpo": Work("adamw", checkpointing=True),
        "grpo": Work("sgd", entropy=True),
    }
