"""Losses of reward models: golden values, gradients, extremes, and wrong variants."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trimtab.losses import centring_loss, plackett_luce_ranking_loss, ranking_loss

FOUR = torch.tensor([2.0, 1.0, 0.5, -1.0], dtype=torch.float64)
PAIRS = list(itertools.combinations(range(4), 2))  # winner first: rewards fall


def four(loss: Callable[..., Tensor]) -> Tensor:
    winners, losers = (torch.tensor(side) for side in zip(*PAIRS, strict=True))
    return loss(FOUR[winners], FOUR[losers])


def test_golden_values_of_pairs() -> None:
    """reference values to 9 digits; the mean over C(4, 2) pairs is InstructGPT's loss."""
    assert four(ranking_loss).sum().item() == pytest.approx(1.36568059, abs=1e-8)
    assert four(ranking_loss).mean().item() == pytest.approx(0.2276134317, abs=1e-9)
    high, low = torch.tensor([[1.2], [0.7]], dtype=torch.float64)
    assert ranking_loss(high, low).item() == pytest.approx(0.4740769842, abs=1e-9)
    third = torch.tensor([1 / 3], dtype=torch.float64)
    assert ranking_loss(high, low, third).item() == pytest.approx(0.6132820581, abs=1e-9)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda w, r: torch.nn.functional.softplus(w - r),  # sign
        lambda w, r: 1 - torch.sigmoid(w - r),  # no log
        lambda w, r: torch.nn.functional.softplus(-0.5 * (w - r)),  # scale
        lambda w, r: torch.nn.functional.softplus(r - w.mean()),  # against the mean
    ],
)
def test_wrong_variants_miss_the_golden_value(wrong: Callable[..., Tensor]) -> None:
    assert abs(four(wrong).sum().item() - 1.36568059) > 1e-3


def test_golden_value_of_plackett_luce() -> None:
    scores = torch.tensor([[0.4, 0.1, -0.2, -0.5]], dtype=torch.float64)
    mask = torch.ones(1, 4, dtype=torch.bool)
    assert plackett_luce_ranking_loss(scores, mask).item() == pytest.approx(2.374588609, abs=1e-9)
    # the divisor leaves out the places that are gone: all four in each would be another number
    wrong = -(scores - scores.logsumexp(-1, keepdim=True)).sum().item()
    assert abs(wrong - 2.374588609) > 0.1


def test_two_responses_are_a_pair_for_both_losses() -> None:
    scores = torch.randn(7, 2, dtype=torch.float64)
    listwise = plackett_luce_ranking_loss(scores, torch.ones(7, 2, dtype=torch.bool))
    assert torch.allclose(listwise, ranking_loss(scores[:, 0], scores[:, 1]), atol=1e-14)


def test_plackett_luce_never_reads_the_padding() -> None:
    scores = torch.tensor([[1.0, 0.5, float("nan")]])
    mask = torch.tensor([[True, True, False]])
    alone = plackett_luce_ranking_loss(scores[:, :2], mask[:, :2])
    assert torch.equal(plackett_luce_ranking_loss(scores, mask), alone)


def test_gradients_by_finite_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    values = [
        3 * torch.randn(6, dtype=torch.float64, generator=generator, requires_grad=False)
        for _ in range(3)
    ]
    chosen, rejected = (v.requires_grad_() for v in values[:2])
    assert torch.autograd.gradcheck(lambda a, b: ranking_loss(a, b, values[2]), (chosen, rejected))
    assert torch.autograd.gradcheck(centring_loss, (chosen, rejected))
    scores = torch.randn(3, 4, dtype=torch.float64, generator=generator).requires_grad_()
    mask = torch.tensor([[True] * 4, [True, True, False, False], [True, True, True, False]])
    assert torch.autograd.gradcheck(lambda s: plackett_luce_ranking_loss(s, mask), (scores,))


def test_extremes_are_finite_and_differences_count_alone() -> None:
    far = torch.tensor([1e4, -1e4], dtype=torch.float64)
    losses = ranking_loss(far, -far)
    assert losses.tolist() == [0.0, 2e4]
    shifted = ranking_loss(far + 123.0, -far + 123.0)
    assert torch.equal(losses, shifted)
    assert centring_loss(far, -far).tolist() == [0.0, 0.0]
    assert centring_loss(torch.tensor([1.5]), torch.tensor([0.5])).item() == 4.0
    assert ranking_loss(torch.zeros(1), torch.zeros(1)).item() == pytest.approx(math.log(2))


def test_half_precision_scores_are_compared_in_fp32() -> None:
    high, low = torch.tensor([300.5]).bfloat16(), torch.tensor([300.0]).bfloat16()
    assert ranking_loss(high, low).dtype == torch.float32
