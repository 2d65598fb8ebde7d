"""The loss of classes: golden values, gradients, extremes, and wrong variants."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trimtab.losses import classification_loss

LOGITS = torch.tensor([[2.0, 1.0, 0.5], [-1.0, 0.25, 3.0]], dtype=torch.float64)
CLASSES = torch.tensor([0, 1])
# log(e^2 + e^1 + e^0.5) - 2 and log(e^-1 + e^0.25 + e^3) - 0.25, by hand
GOLDEN = [
    math.log(math.exp(2) + math.exp(1) + math.exp(0.5)) - 2,
    math.log(math.exp(-1) + math.exp(0.25) + math.exp(3)) - 0.25,
]


def test_golden_values() -> None:
    assert classification_loss(LOGITS, CLASSES).tolist() == pytest.approx(GOLDEN, abs=1e-14)
    assert pytest.approx([0.46436, 2.82904], abs=1e-5) == GOLDEN


@pytest.mark.parametrize(
    "wrong",
    [
        lambda z, y: -z.gather(1, y[:, None])[:, 0],  # no normaliser
        lambda z, y: 1 - z.softmax(-1).gather(1, y[:, None])[:, 0],  # no log
        lambda z, y: -z.sigmoid().log().gather(1, y[:, None])[:, 0],  # each class alone
        lambda z, y: classification_loss(z, y).mean().expand(2),  # reduced
    ],
)
def test_wrong_variants_miss_the_golden_values(wrong: Callable[..., Tensor]) -> None:
    assert (wrong(LOGITS, CLASSES) - torch.tensor(GOLDEN)).abs().max().item() > 1e-2


def test_two_classes_are_a_pair_of_scores() -> None:
    from trimtab.losses import ranking_loss

    scores = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    first = torch.zeros(7, dtype=torch.int64)
    pairs = ranking_loss(scores[:, 0], scores[:, 1])
    assert torch.allclose(classification_loss(scores, first), pairs, atol=1e-14)


def test_gradient_is_softmax_less_one_hot() -> None:
    logits = LOGITS.clone().requires_grad_()
    classification_loss(logits, CLASSES).sum().backward()
    expected = LOGITS.softmax(-1) - torch.nn.functional.one_hot(CLASSES, 3)
    assert logits.grad is not None and torch.allclose(logits.grad, expected, atol=1e-14)
    assert torch.autograd.gradcheck(lambda z: classification_loss(z, CLASSES), (logits,))


def test_extremes_are_finite_and_a_constant_is_free() -> None:
    far = torch.tensor([[1e4, -1e4]], dtype=torch.float64)
    assert classification_loss(far, torch.tensor([0])).item() == 0.0
    assert classification_loss(far + 77.0, torch.tensor([1])).item() == 2e4


def test_half_precision_logits_are_normalised_in_fp32() -> None:
    loss = classification_loss(torch.tensor([[1.0, 1.0]]).bfloat16(), torch.tensor([0]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log(2), abs=1e-7)
