"""Schedules against transformers' own, step by step."""

import pytest
import torch
import transformers

from trimtab.training.schedule import learning_rate, warmup_steps

TOTAL, WARM, PEAK = 50, 7, 3e-4


@pytest.mark.parametrize(
    "name", ["linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt"]
)
def test_equals_transformers(name: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    theirs = transformers.get_scheduler(
        name, optimizer, num_warmup_steps=WARM, num_training_steps=TOTAL
    )
    for step in range(TOTAL):
        ours = learning_rate(step, peak=PEAK, schedule=name, total_steps=TOTAL, warmup=WARM)
        assert ours == pytest.approx(theirs.get_last_lr()[0], rel=1e-12), step
        optimizer.step()
        theirs.step()


def test_warmup_below_one_is_a_share() -> None:
    assert warmup_steps(0.1, 55) == 6
    assert warmup_steps(3, 55) == 3
    assert warmup_steps(0, 55) == 0


def test_floor() -> None:
    last = learning_rate(100, peak=1.0, schedule="cosine", total_steps=100, min_ratio=0.1)
    assert last == pytest.approx(0.1)
